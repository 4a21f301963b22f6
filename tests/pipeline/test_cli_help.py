"""What --help shows: what a command does, and first what people want."""

import argparse
from collections.abc import Iterator

import pytest

from lmdeploy_c.cli import make_parser


def commands() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    [choices] = [a.choices for a in make_parser()._actions if a.dest == "command"]
    for name, parser in choices.items():
        yield name, parser
        inner = [a.choices for a in parser._actions if a.dest == f"{name}_command"]
        for inside in inner:
            yield from ((f"{name} {n}", p) for n, p in inside.items() if p.description)


COMMANDS = dict(commands())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_what_it_does_and_each_option_what_it_is(name: str) -> None:
    parser = COMMANDS[name]
    assert parser.description and parser.description.endswith(".")
    shown = " ".join(parser.format_help().split())
    assert shown.startswith(f"usage: lmdeploy_c {name} ")
    assert parser.description.split(".")[0] in shown
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            continue
        assert action.help, action.option_strings


def test_what_people_want_comes_first() -> None:
    shown = COMMANDS["chat"].format_help()
    wanted = ["--prompt", "--max-new-tokens", "--temperature", "--top-p", "--session-len",
              "--device", "--num-threads", "--quant-policy", "--tp ", "--async"]  # fmt: skip
    places = [shown.index(f"\n  {flag}") for flag in wanted]
    assert places == sorted(places)
