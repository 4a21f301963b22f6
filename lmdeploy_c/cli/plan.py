"""`lmdeploy_c plan`: what a model would take on this machine."""

from __future__ import annotations

import argparse
from typing import Any

from ..messages import TurbomindEngineConfig
from .options import ENGINE_OPTIONS, Commands, Formatter, add_model, add_options, values
from .output import PROG


def add_parser(commands: Commands[Any]) -> None:
    parser = commands.add_parser(
        "plan",
        usage=f"{PROG} plan [MODEL] [options]",
        formatter_class=Formatter,
        help="show what a model would take on this machine, without loading it",
        description="Show the memory that a model would take on this machine, and how fast it "
        "would be, without loading it. A model id is fetched first.",
    )
    add_model(parser)
    parser.add_argument(
        "--no-measure",
        action="store_true",
        help="Leave out the speed, which takes a second to time.",
    )
    add_options(parser.add_argument_group("engine"), ENGINE_OPTIONS, TurbomindEngineConfig)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..planning import plan

    config = TurbomindEngineConfig(**values(args, ENGINE_OPTIONS))
    print(plan(args.model_path, config, measure=not args.no_measure))
    return 0
