"""`lmdeploy_c chat`: one answer, or a conversation on the terminal."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping
from typing import Any

from ..messages import GenerationConfig, TurbomindEngineConfig
from .options import (
    ENGINE_OPTIONS,
    GENERATION_OPTIONS,
    PENALTY_OPTIONS,
    SAMPLING_OPTIONS,
    SEED_OPTIONS,
    Commands,
    Formatter,
    Later,
    Sample,
    add_engine_options,
    add_model,
    add_options,
    chat_template_config,
    speculative_config,
    values,
)
from .output import PROG, note

#: LMDeploy's flags that no configuration of this release has.
_LATER_FLAGS = (
    "--adapters",
    "--dllm-block-length",
    "--eager-mode",
    "--prefix-cache-decode-state-interval",
    "--prefix-cache-state-budget",
    "--speculative-dflash-block-size",
    "--speculative-draft-model",
)


def add_parser(commands: Commands[Any]) -> None:
    chat = commands.add_parser(
        "chat",
        usage=f"{PROG} chat [MODEL] [--prompt TEXT] [options]",
        formatter_class=Formatter,
        help="talk to a model",
        description="Talk to a model. With --prompt, or when standard input is no terminal, "
        "it answers once and exits. '_' and '-' are the same in flags.",
        epilog="Enter sends; /help lists what else there is.",
    )
    add_model(chat)
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
    _add_generation_options(chat)
    add_engine_options(chat)
    for flag in _LATER_FLAGS:
        chat.add_argument(flag, nargs="*", action=Later, help=argparse.SUPPRESS)
    chat.set_defaults(run=run)


def _add_generation_options(chat: argparse.ArgumentParser) -> None:
    generation = chat.add_argument_group("generation")
    add_options(generation, GENERATION_OPTIONS, GenerationConfig)
    add_options(generation, PENALTY_OPTIONS, GenerationConfig, of_model=True)
    add_options(generation, SAMPLING_OPTIONS, GenerationConfig, Sample, of_model=True)
    add_options(generation, SEED_OPTIONS, GenerationConfig, Sample)
    generation.add_argument(
        "--do-sample",
        action="store_true",
        help="Sample; without it, and without --temperature, --top-p, --top-k, --min-p and "
        "--seed, the likeliest token is taken, unless the model's files say otherwise.",
    )


def run(args: argparse.Namespace) -> int:
    engine_config = TurbomindEngineConfig(**values(args, ENGINE_OPTIONS))
    generation_config(args)  # what is wrong in it is said before a model is loaded
    template_config = chat_template_config(args.chat_template)
    speculative = speculative_config(args)
    if args.backend == "pytorch":
        note("--backend pytorch: this release has no PyTorch engine; the C engine runs")
    prompt = args.prompt
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()
        if not prompt:
            raise ValueError("no prompt: standard input is empty")
    logging.getLogger("lmdeploy_c.requests").disabled = True  # show_answer says what failed
    from ..pipeline import pipeline
    from .terminal import show_answer, talk

    with pipeline(
        args.model_path,
        engine_config,
        template_config,
        args.log_level,
        speculative_config=speculative,
    ) as pipe:
        session = pipe.session(generation_config(args, pipe.engine.sampling_defaults))
        if prompt is not None:
            return show_answer(session, prompt)
        talk(pipe, session)
        return 0


def generation_config(
    args: argparse.Namespace, of_model: Mapping[str, Any] | None = None
) -> GenerationConfig:
    """What the options say, and where they say nothing what the model's files do."""
    options = (*GENERATION_OPTIONS, *PENALTY_OPTIONS, *SAMPLING_OPTIONS, *SEED_OPTIONS)
    given = values(args, options)
    if args.do_sample:
        given["do_sample"] = True
    return GenerationConfig(**{**(of_model or {}), **given})
