"""The command line: `lmdeploy_c chat`, `plan`, `check_env`, `list`.

Nothing heavy is imported until a command runs, so that --help answers at once. A mistake of the
user is one line on standard error and exit code 1 (2 for wrong arguments), never a traceback.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..messages import GenerationConfig, SpeculativeConfig, TurbomindEngineConfig
from ..version import __version__

if TYPE_CHECKING:
    from ..engine.session import Session
    from ..pipeline import Pipeline
    from ..text.chat_template import ChatTemplateConfig

PROG = "lmdeploy_c"
_LATER_COMMANDS = ("serve", "lite", "convert")

#: LMDeploy's flags of `chat` that no configuration of this release has.
_LATER_FLAGS = (
    "--adapters",
    "--dllm-block-length",
    "--eager-mode",
    "--prefix-cache-decode-state-interval",
    "--prefix-cache-state-budget",
    "--speculative-dflash-block-size",
    "--speculative-draft-model",
)

#: Commands of a conversation, and whether each takes a file.
_COMMANDS = {"/help": False, "/undo": False, "/reset": False, "/save": True, "/load": True}

_CHAT_HELP = """\
Enter sends. A line that ends in \\ goes on in the next one; so does text between two \"\"\".
  /help       this text
  /undo       take the last turn back
  /reset      forget the conversation
  /save FILE  write the conversation to a file
  /load FILE  go on with one
  /exit       leave (also: exit, end, Ctrl-D)
Ctrl-C stops the answer that is being written, and keeps the conversation."""


class _Formatter(argparse.HelpFormatter):
    """Adds type and default to each option's help."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        if action.nargs == 0 or not action.option_strings or action.help == argparse.SUPPRESS:
            return text
        kind = getattr(action.type, "__name__", "str").lstrip("_")
        return f"{text} Default: %(default)s. Type: {kind}"


class _Later(argparse.Action):
    """A flag that LMDeploy has and this release does not."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        parser.error(f"{option_string} is not served by release {__version__}")


class _Sample(argparse.Action):
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


def _cache_size(text: str) -> float | int | str:
    """0.5, 1000 or 512MB, as cache_max_entry_count takes it."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _quant_policy(text: str) -> int:
    """0, 4, 8, int4 or int8."""
    number = text.lower().removeprefix("int")
    if number not in ("0", "4", "8"):
        raise argparse.ArgumentTypeError(f"0, 4, 8, int4 or int8, not {text!r}")
    return int(number)


def _kv_bits(text: str) -> int | tuple[int, ...]:
    """16, 8, 4, or bits of keys and of values, as 8,4."""
    try:
        bits = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"16, 8, 4 or a pair such as 8,4, not {text!r}") from None
    return bits if len(bits) > 1 else bits[0]


# Options of `chat`: flag, type, help. Each sets the field of its name; defaults are the fields'.
_Option = tuple[str, Callable[[str], Any], str]

_ENGINE_OPTIONS: tuple[_Option, ...] = (
    ("--session-len", int, "Most tokens of the conversation; None: the model's own length."),
    ("--max-batch-size", int, "Sequences that run at once; None: 64."),
    (
        "--cache-max-entry-count",
        _cache_size,
        "KV cache: a fraction of available memory, a number of blocks, or a size such as 512MB.",
    ),
    ("--cache-block-seq-len", int, "Tokens in a KV block."),
    ("--max-prefill-token-num", int, "Token budget of a step; None: 512."),
    ("--num-threads", int, "Threads; None: what affinity mask and cgroup quota allow."),
    ("--device", str, "auto or cpu."),
    ("--dtype", str, "auto."),
    ("--model-format", str, "hf or gguf; None: as found."),
    ("--revision", str, "Version of a model id."),
    ("--download-dir", str, "Where model ids are downloaded to."),
    ("--quant-policy", _quant_policy, "KV cache: 0 (fp16), 8 or int8, 4 or int4."),
    ("--kv-bits", _kv_bits, "KV cache: 16, 8, 4, or keys and values as 8,4."),
    ("--rope-scaling-factor", float, "0: as the model says."),
    ("--tp", int, "Devices: 1."),
    ("--cp", int, "Devices: 1."),
    ("--ep", int, "Devices: 1."),
    ("--communicator", str, "Between devices; there is one."),
    ("--moe-a2a-backend", str, "Between devices; there is one."),
    ("--async", int, "1."),
)

_GENERATION_OPTIONS: tuple[_Option, ...] = (
    ("--max-new-tokens", int, "Most tokens of an answer."),
    ("--repetition-penalty", float, "Above 1: repeat less."),
)
#: Giving one of these asks for sampling.
_SAMPLING_OPTIONS: tuple[_Option, ...] = (
    ("--temperature", float, "Sampling temperature."),
    ("--top-p", float, "Sample from the most likely tokens that sum to this probability."),
    ("--top-k", int, "Sample from so many tokens; 0: all."),
    ("--min-p", float, "Leave out tokens below this share of the likeliest one's probability."),
    ("--seed", int, "Sampling's seed; None draws one."),
)


def _field(flag: str) -> str:
    name = flag[2:].replace("-", "_")
    return {"async": "async_", "seed": "random_seed"}.get(name, name)


def _add_options(
    group: argparse._ArgumentGroup,
    options: Sequence[_Option],
    config: type,
    action: type[argparse.Action] | str = "store",
) -> None:
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    for flag, kind, text in options:
        name = _field(flag)
        group.add_argument(
            flag, dest=name, type=kind, default=defaults[name], action=action, help=text
        )


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model_path",
        nargs="?",
        metavar="MODEL",
        help="a GGUF file, a Hugging Face directory or a model id; default: the embedded model",
    )


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        PROG, description="Large language models on a C engine, with LMDeploy's interface."
    )
    parser.add_argument("-v", "--version", action="version", version=f"{PROG} {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    chat = commands.add_parser(
        "chat",
        usage=f"{PROG} chat [MODEL] [--prompt TEXT] [options]",
        formatter_class=_Formatter,
        help="talk to a model",
        description="Talk to a model. With --prompt, or when standard input is no terminal, "
        "it answers once and exits. '_' and '-' are the same in flags.",
        epilog="Enter sends; /help lists what else there is.",
    )
    _add_model(chat)
    chat.add_argument("--prompt", help="Answer this and exit.")
    chat.add_argument(
        "--chat-template", help="A built-in template's name, or a file.json; None: the model's own."
    )
    chat.add_argument(
        "--backend",
        choices=("turbomind", "pytorch"),
        default="turbomind",
        help="pytorch, too, runs on the C engine.",
    )
    chat.add_argument("--log-level", default="WARNING", help="INFO reports sizes before loading.")
    chat.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="Accepted; code that comes with a model is never run.",
    )
    engine = chat.add_argument_group("engine")
    _add_options(engine, _ENGINE_OPTIONS, TurbomindEngineConfig)
    engine.add_argument(
        "--enable-prefix-caching", action="store_true", help="Accepted; it is the default."
    )
    engine.add_argument(
        "--language-model-only", action="store_true", help="Accepted; models are text only."
    )
    engine.add_argument(
        "--speculative-algorithm",
        help="ngram: guess tokens from earlier text; answers stay the same. None: do not guess.",
    )
    engine.add_argument(
        "--speculative-num-draft-tokens",
        type=int,
        default=SpeculativeConfig.num_speculative_tokens,
        help="Most tokens guessed in a step.",
    )
    generation = chat.add_argument_group("generation")
    _add_options(generation, _GENERATION_OPTIONS, GenerationConfig)
    _add_options(generation, _SAMPLING_OPTIONS, GenerationConfig, _Sample)
    generation.add_argument(
        "--do-sample",
        action="store_true",
        help="Sample; without it, and without --temperature, --top-p, --top-k, --min-p and "
        "--seed, the likeliest token is taken.",
    )
    for flag in _LATER_FLAGS:
        chat.add_argument(flag, nargs="*", action=_Later, help=argparse.SUPPRESS)
    chat.set_defaults(run=_chat)

    planning = commands.add_parser(
        "plan",
        usage=f"{PROG} plan [MODEL] [options]",
        formatter_class=_Formatter,
        help="show what a model would take on this machine, without loading it",
    )
    _add_model(planning)
    planning.add_argument(
        "--no-measure",
        action="store_true",
        help="Leave out the speed, which takes a second to time.",
    )
    _add_options(planning.add_argument_group("engine"), _ENGINE_OPTIONS, TurbomindEngineConfig)
    planning.set_defaults(run=_plan)

    check = commands.add_parser(
        "check_env",
        help="show versions, CPU, memory and what else a report needs",
        formatter_class=_Formatter,
    )
    check.add_argument("--dump-file", help="Also write it to this file: .json, .yml or .yaml.")
    check.set_defaults(run=_check_env)

    listing = commands.add_parser("list", help="list supported architectures and chat templates")
    listing.set_defaults(run=_list)
    return parser


def _values(args: argparse.Namespace, options: Sequence[_Option]) -> dict[str, Any]:
    return {_field(flag): getattr(args, _field(flag)) for flag, _, _ in options}


def _generation_config(args: argparse.Namespace) -> GenerationConfig:
    options = (*_GENERATION_OPTIONS, *_SAMPLING_OPTIONS)
    return GenerationConfig(do_sample=args.do_sample, **_values(args, options))


def _template_config(name: str | None) -> ChatTemplateConfig | None:
    if name is None:
        return None
    from ..text.chat_template import ChatTemplateConfig

    return (
        ChatTemplateConfig.from_json(name) if name.endswith(".json") else ChatTemplateConfig(name)
    )


def _speculative_config(args: argparse.Namespace) -> SpeculativeConfig | None:
    if args.speculative_algorithm is None:
        return None
    return SpeculativeConfig(args.speculative_algorithm, "", args.speculative_num_draft_tokens)


def _chat(args: argparse.Namespace) -> int:
    engine_config = TurbomindEngineConfig(**_values(args, _ENGINE_OPTIONS))
    generation_config = _generation_config(args)
    template_config = _template_config(args.chat_template)
    drafts = _speculative_config(args)
    if args.backend == "pytorch":
        _note("--backend pytorch: this release has no PyTorch engine; the C engine runs")
    prompt = args.prompt
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()
        if not prompt:
            raise ValueError("no prompt: standard input is empty")
    from ..pipeline import pipeline

    with pipeline(
        args.model_path,
        engine_config,
        template_config,
        args.log_level,
        speculative_config=drafts,
    ) as pipe:
        session = pipe.session(generation_config)
        if prompt is not None:
            return _answer(session, prompt)
        _talk(pipe, session)
        return 0


def _answer(session: Session, prompt: str) -> int:
    """Streams one answer to standard output. Exit code: 0, 1 on an error, 130 on Ctrl-C."""
    last = None
    try:
        for last in session(prompt):  # type: ignore[union-attr]
            print(last.text, end="", flush=True)
    except KeyboardInterrupt:
        print(flush=True)
        return 130
    print(flush=True)
    if last is not None and last.finish_reason == "error":
        _complain(last.error_message or "the request failed")
        return 1
    if last is not None and last.finish_reason == "length":
        _note(f"(cut after {last.generate_token_len} tokens: --max-new-tokens, --session-len)")
    return 0


def _talk(pipe: Pipeline, session: Session) -> None:
    """The conversation on a terminal."""
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  line editing and history for input()
    plan = pipe.plan
    _note(
        f"{pipe.model_name}: {plan['device']} ({plan['isa']}), {plan['num_threads']} threads, "
        f"{plan['session_len']} tokens of context. /help for help"
    )
    for prompt in _prompts():
        command, _, argument = prompt.strip().partition(" ")
        if prompt.strip().lower() in ("/exit", "/quit", "exit", "end"):
            return
        if command in _COMMANDS and _COMMANDS[command] == bool(argument):
            session = _command(pipe, session, command, argument.strip())
        elif command in _COMMANDS or (command.startswith("/") and not argument):
            _note(f"{command[:60]} is no command as it stands: /help")
        elif command:
            _answer(session, prompt)


def _command(pipe: Pipeline, session: Session, command: str, path: str) -> Session:
    """Does what a line of the conversation asks; the session that goes on."""
    try:
        if command == "/help":
            print(_CHAT_HELP)
        elif command == "/reset":
            session.reset()
            _note("(a new conversation)")
        elif command == "/undo":
            session.rewind(1)
            _note(f"({len(session.history)} turns)")
        elif command == "/save":
            session.save(path)
            _note(f"(saved: {len(session.history)} turns)")
        else:
            loaded = pipe.load_session(path)
            loaded.gen_config = session.gen_config
            _note(f"(loaded: {len(loaded.history)} turns)")
            return loaded
    except (OSError, TypeError, ValueError) as error:
        _complain(str(error))
    return session


def _prompts() -> Iterator[str]:
    """What the user types, one prompt at a time, until Ctrl-D."""
    while True:
        try:
            yield _read_prompt()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(/exit or Ctrl-D to leave)")


def _read_prompt(read: Callable[[str], str] = input) -> str:
    """Reads lines until one ends the prompt. Raises EOFError when there is nothing to read."""
    lines, quoted, ask = [], False, ">>> "
    while True:
        line = read(ask)
        if line.count('"""') % 2:
            quoted = not quoted
        more = quoted or line.endswith("\\")
        lines.append(line[:-1] if line.endswith("\\") and not quoted else line)
        if not more:
            return "\n".join(lines).replace('"""', "")
        ask = "... "


def _plan(args: argparse.Namespace) -> int:
    from ..planning import plan

    config = TurbomindEngineConfig(**_values(args, _ENGINE_OPTIONS))
    print(plan(args.model_path, config, measure=not args.no_measure))
    return 0


def _check_env(args: argparse.Namespace) -> int:
    from .check_env import collect, dump, render

    report = collect()
    if args.dump_file is not None:
        dump(report, args.dump_file)
    print(render(report), end="")
    return 0


def _list(args: argparse.Namespace) -> int:
    from ..files.model_config import ARCHITECTURES, GGUF_ARCHITECTURES
    from ..text.chat_template import MODELS

    print("Hugging Face architectures:", ", ".join(ARCHITECTURES))
    print("GGUF architectures:        ", ", ".join(GGUF_ARCHITECTURES))
    print("chat templates:            ", ", ".join(["hf", *MODELS.classes]))
    return 0


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _complain(error: object) -> None:
    _note(f"{PROG}: error: " + " ".join(str(error).split()))


def _dashed(argument: str) -> str:
    """--session_len=1 as --session-len=1."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code. Wrong arguments and --help raise SystemExit."""
    arguments = [_dashed(a) for a in (sys.argv[1:] if argv is None else argv)]
    if arguments and arguments[0] in _LATER_COMMANDS:
        _complain(f"{arguments[0]} is not part of release {__version__}")
        return 2
    args = make_parser().parse_args(arguments)
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        _note("interrupted")
        return 130
    except BrokenPipeError:  # as in `lmdeploy_c chat ... | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ImportError, MemoryError, OSError, RuntimeError, ValueError) as e:
        _complain(e or type(e).__name__)
        return 1
