"""A conversation on a terminal: prompts of several lines, and commands such as /undo."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .output import complain, note

if TYPE_CHECKING:
    from ..engine.session import Session
    from ..pipeline import Pipeline

#: Commands, and whether each takes a file.
_COMMANDS = {"/help": False, "/undo": False, "/reset": False, "/save": True, "/load": True}

_HELP = """\
Enter sends. A line that ends in \\ goes on in the next one; so does text between two \"\"\".
  /help       this text
  /undo       take the last turn back
  /reset      forget the conversation
  /save FILE  write the conversation to a file
  /load FILE  go on with the conversation in a file
  /exit       leave (also: exit, end, Ctrl-D)
Ctrl-C stops the answer that is being written, and keeps the conversation."""


def talk(pipe: Pipeline, session: Session) -> None:
    """Reads prompts and shows answers until the user leaves."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  line editing and history for input()
    plan = pipe.plan
    note(
        f"{pipe.model_name}: {plan.device} ({plan.isa}), {plan.num_threads} threads, "
        f"{plan.session_len} tokens of context. /help for help"
    )
    for prompt in _prompts():
        command, _, argument = prompt.strip().partition(" ")
        if prompt.strip().lower() in ("/exit", "/quit", "exit", "end"):
            return
        if command in _COMMANDS:
            if _COMMANDS[command] == bool(argument):
                session = _run(pipe, session, command, argument.strip())
            else:
                takes = "takes a file" if _COMMANDS[command] else "takes nothing after it"
                note(f"{command} {takes}: /help")
        elif command.startswith("/") and not argument:
            note(f"{command[:60]} is not a command: /help lists them")
        elif command:
            show_answer(session, prompt)


def show_answer(session: Session, prompt: str) -> int:
    """Streams one answer to standard output. Exit code: 0, 1 on an error, 130 on Ctrl-C."""
    last = None
    try:
        for last in session(prompt):
            print(last.text, end="", flush=True)
    except KeyboardInterrupt:
        print(flush=True)
        return 130
    print(flush=True)
    if last is not None and last.finish_reason == "error":
        complain(last.error_message or "the request failed")
        return 1
    if last is not None and last.finish_reason == "length":
        note(f"(cut after {last.generate_token_len} tokens: --max-new-tokens, --session-len)")
    return 0


def _run(pipe: Pipeline, session: Session, command: str, path: str) -> Session:
    """Runs a command; returns the session that goes on."""
    try:
        if command == "/help":
            print(_HELP)
        elif command == "/reset":
            session.reset()
            note("(a new conversation)")
        elif command == "/undo":
            session.rewind(1)
            note(f"({len(session.history)} turns)")
        elif command == "/save":
            session.save(path)
            note(f"(saved: {len(session.history)} turns)")
        else:
            loaded = pipe.load_session(path)
            loaded.gen_config = session.gen_config
            note(f"(loaded: {len(loaded.history)} turns)")
            return loaded
    except (OSError, TypeError, ValueError) as error:
        complain(str(error))
    return session


def _prompts() -> Iterator[str]:
    """What the user types, one prompt at a time, until Ctrl-D."""
    while True:
        try:
            yield read_prompt()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(/exit or Ctrl-D to leave)")


def read_prompt(read: Callable[[str], str] = input) -> str:
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
