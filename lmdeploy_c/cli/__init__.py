"""The command line: `lmdeploy_c chat`, `plan`, `serve`, `lite`, `check_env`, `list`, a file each.

Nothing heavy is imported until a command runs, so that --help answers at once. A mistake of the
user is one line on standard error and exit code 1 (2 for wrong arguments), never a traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ..version import __version__
from . import chat, check_env, lite, plan, serve
from . import list as list_command
from .output import PROG, complain, note

_LATER_COMMANDS = ("convert",)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        PROG,
        description="Large language models on a C engine, with LMDeploy's interface.",
        epilog=f"{PROG} COMMAND --help shows a command's options; {PROG} chat starts at once, with "
        "the embedded model.",
    )
    parser.add_argument("-v", "--version", action="version", version=f"{PROG} {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in (chat, plan, serve, lite, check_env, list_command):
        command.add_parser(commands)
    return parser


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
        complain(f"{arguments[0]} is not part of release {__version__}")
        return 2
    args = make_parser().parse_args(arguments)
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        note("interrupted")
        return 130
    except BrokenPipeError:  # as in `lmdeploy_c chat ... | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ImportError, MemoryError, OSError, RuntimeError, ValueError) as e:
        complain(e or type(e).__name__)
        return 1
