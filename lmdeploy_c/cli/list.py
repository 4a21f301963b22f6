"""`lmdeploy_c list`: what is supported."""

from __future__ import annotations

import argparse
from typing import Any

from .options import Commands


def add_parser(commands: Commands[Any]) -> None:
    parser = commands.add_parser(
        "list",
        help="list supported architectures and chat templates",
        description="List the architectures that can be loaded, by their names in config.json and "
        "in GGUF files, and the chat templates that --chat-template names.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..files.model_config import ARCHITECTURES, GGUF_ARCHITECTURES
    from ..text.built_in_templates import MODELS

    print("Hugging Face architectures:", ", ".join(ARCHITECTURES))
    print("GGUF architectures:        ", ", ".join(GGUF_ARCHITECTURES))
    print("chat templates:            ", ", ".join(MODELS.module_dict))
    return 0
