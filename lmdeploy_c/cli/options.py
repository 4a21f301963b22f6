"""Options of the command line, and how they become configurations."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..messages import SpeculativeConfig, TurbomindEngineConfig
from ..version import __version__

if TYPE_CHECKING:
    from ..text.chat_template import ChatTemplateConfig

Commands = argparse._SubParsersAction  # what a command's parser is added to
#: A flag, its type, its help. It sets the field of its name; its default is the field's.
Option = tuple[str, Callable[[str], Any], str]


class Formatter(argparse.HelpFormatter):
    """Adds type and default to each option's help. Where a model may have a value of its own, the
    help says itself what holds."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        if action.nargs == 0 or not action.option_strings or action.help == argparse.SUPPRESS:
            return text
        kind = getattr(action.type, "__name__", "str")
        default = "" if action.default == argparse.SUPPRESS else " Default: %(default)s."
        return f"{text}{default} Type: {kind}"


class Later(argparse.Action):
    """A flag that LMDeploy has and this release does not."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        parser.error(f"{option_string} is not served by release {__version__}")


class Sample(argparse.Action):
    """An option of sampling: giving it asks for sampling."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, values)
        namespace.do_sample = True


def cache_size(text: str) -> float | int | str:
    """0.5, 1000 or 512MB, as cache_max_entry_count takes it."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def quant_policy(text: str) -> int:
    """0, 4, 8, int4 or int8."""
    number = text.lower().removeprefix("int")
    if number not in ("0", "4", "8"):
        raise argparse.ArgumentTypeError(f"0, 4, 8, int4 or int8, not {text!r}")
    return int(number)


def kv_bits(text: str) -> int | tuple[int, ...]:
    """16, 8, 4, or bits of keys and of values, as 8,4."""
    try:
        bits = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"16, 8, 4 or a pair such as 8,4, not {text!r}") from None
    return bits if len(bits) > 1 else bits[0]


#: What people set comes first; last what LMDeploy has and is one value here.
ENGINE_OPTIONS: tuple[Option, ...] = (
    ("--session-len", int, "Most tokens of the conversation; None: the model's own length."),
    (
        "--device",
        str,
        "cpu, cuda, cuda:N (the GPU with that number), or auto: the first GPU that can run the "
        "model, or else the CPU.",
    ),
    ("--num-threads", int, "Threads; None: what affinity mask and cgroup quota allow."),
    ("--filename", str, "Which GGUF file of a repository or folder, such as '*q8_0.gguf'."),
    ("--revision", str, "Of a model id: a branch, a tag or a commit."),
    ("--download-dir", str, "Where model ids are fetched to; None: the hub's own cache."),
    (
        "--cache-max-entry-count",
        cache_size,
        "KV cache: a fraction of available memory, a number of blocks, or a size such as 512MB. "
        "None: on the CPU half of what is available, at most 4 GiB.",
    ),
    ("--quant-policy", quant_policy, "KV cache: 0 (fp16), 8 or int8, 4 or int4."),
    ("--kv-bits", kv_bits, "KV cache: 16, 8, 4, or keys and values as 8,4."),
    ("--max-batch-size", int, "Sequences that run at once; None: 64 on the CPU, 256 on a GPU."),
    (
        "--max-prefill-token-num",
        int,
        "Token budget of a step; None: 512 on the CPU, 8192 on a GPU.",
    ),
    ("--cache-block-seq-len", int, "Tokens in a KV block."),
    (
        "--quantize",
        str,
        "w4 or w8: the floats of the layers become codes of 4 or 8 bits while they are loaded. "
        "None: as the files have them.",
    ),
    ("--model-format", str, "hf, awq, gptq or gguf; None: as found."),
    ("--dtype", str, "auto."),
    ("--rope-scaling-factor", float, "0: as the model says."),
    ("--tp", int, "Devices: 1."),
    ("--cp", int, "Devices: 1."),
    ("--ep", int, "Devices: 1."),
    ("--communicator", str, "Between devices; there is one."),
    ("--moe-a2a-backend", str, "Between devices; there is one."),
    ("--async", int, "1."),
)

GENERATION_OPTIONS: tuple[Option, ...] = (("--max-new-tokens", int, "Most tokens of an answer."),)
#: Giving one of these asks for sampling.
SEED_OPTIONS: tuple[Option, ...] = (("--seed", int, "Sampling's seed; None draws one."),)
#: So does one of these, whose default is the model's own.
SAMPLING_OPTIONS: tuple[Option, ...] = (
    ("--temperature", float, "Sampling temperature; 0: the likeliest token."),
    ("--top-p", float, "Sample from the most likely tokens that sum to this probability."),
    ("--top-k", int, "Sample from so many tokens; 0: all."),
    ("--min-p", float, "Leave out tokens below this share of the likeliest one's probability."),
)
#: Not sampling, and the model's own too.
PENALTY_OPTIONS: tuple[Option, ...] = (("--repetition-penalty", float, "Above 1: repeat less."),)


def _field(flag: str) -> str:
    name = flag[2:].replace("-", "_")
    return {"async": "async_", "seed": "random_seed"}.get(name, name)


def add_options(
    group: argparse._ArgumentGroup,
    options: Sequence[Option],
    config: type,
    action: type[argparse.Action] | str = "store",
    of_model: bool = False,
) -> None:
    """Adds options that set fields of a configuration. of_model: one that is not given is left to
    the model, and then to the field."""
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    for flag, kind, text in options:
        name, default = _field(flag), defaults[_field(flag)]
        if of_model:
            text, default = f"{text} Default: the model's own, or {default}.", argparse.SUPPRESS
        group.add_argument(flag, dest=name, type=kind, default=default, action=action, help=text)


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model_path",
        nargs="?",
        metavar="MODEL",
        help="a GGUF file, a Hugging Face directory, or a model id: owner/name, owner/name:Q4_0, "
        "owner/name/file.gguf; default: the embedded model",
    )


def values(args: argparse.Namespace, options: Sequence[Option]) -> dict[str, Any]:
    """The fields that the options set."""
    names = (_field(flag) for flag, _, _ in options)
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """The options of an engine, and of its drafts."""
    engine = parser.add_argument_group("engine")
    add_options(engine, ENGINE_OPTIONS, TurbomindEngineConfig)
    engine.add_argument(
        "--enable-prefix-caching", action="store_true", help="Accepted; it is the default."
    )
    engine.add_argument(
        "--language-model-only", action="store_true", help="Accepted; models are text only."
    )
    engine.add_argument(
        "--speculative-algorithm",
        help="ngram: draft tokens from earlier text; answers stay the same. None: no drafts.",
    )
    engine.add_argument(
        "--speculative-num-draft-tokens",
        type=int,
        default=SpeculativeConfig.num_speculative_tokens,
        help="Most draft tokens of a step.",
    )


def chat_template_config(name: str | None) -> ChatTemplateConfig | None:
    """What --chat-template names: a template, or a file.json."""
    if name is None:
        return None
    from ..text.chat_template import ChatTemplateConfig

    return (
        ChatTemplateConfig.from_json(name) if name.endswith(".json") else ChatTemplateConfig(name)
    )


def speculative_config(args: argparse.Namespace) -> SpeculativeConfig | None:
    """What the options of drafts say; None where there are none."""
    if args.speculative_algorithm is None:
        return None
    return SpeculativeConfig(args.speculative_algorithm, "", args.speculative_num_draft_tokens)
