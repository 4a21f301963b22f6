"""A conversation on a terminal: prompts of several lines, and commands such as /undo."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..messages import nearest
from .loop_guard import LoopGuard
from .output import complain, note

if TYPE_CHECKING:
    from ..engine.session import Session
    from ..pipeline import Pipeline

#: Commands, and the file that each takes, as an example.
_COMMANDS = {
    "/help": "",
    "/undo": "",
    "/reset": "",
    "/save": "talk.session",
    "/load": "talk.session",
    "/exit": "",
}
_LEAVE = ("/exit", "/quit", "exit", "quit")

_HELP = """\
Enter sends. Pasted text is one message. A line that ends in \\ goes on in the next one; so does
text between two \"\"\".
  /help       this text
  /undo       take the last turn back
  /reset      forget the conversation (also: end)
  /save FILE  write the conversation to a file
  /load FILE  go on with the conversation in a file
  /exit       leave (also: exit, quit, Ctrl-D, Ctrl-C)
Ctrl-C stops an answer that is being written, and keeps the conversation."""


def talk(pipe: Pipeline, session: Session) -> None:
    """Reads prompts and shows answers until the user leaves."""
    with contextlib.suppress(ImportError):
        import readline  # line editing and history for input()

        readline.parse_and_bind("set enable-bracketed-paste on")
    plan = pipe.plan
    note(
        f"{pipe.model_name}: {plan.device} ({plan.isa}), {plan.num_threads} threads, "
        f"{plan.session_len} tokens of context. /help for help"
    )
    config = session.gen_config
    if config is not None and config.do_sample:
        note(
            f"sampling: temperature {config.temperature}, top_p {config.top_p}, top_k "
            f"{config.top_k}. --temperature 0 takes the likeliest tokens"
        )
    for prompt in _prompts():
        text = prompt.strip()
        if text.lower() in _LEAVE:
            return
        if text.lower() == "end":  # LMDeploy's word
            text = "/reset"
        name, _, argument = text.partition(" ")
        if "\n" in text:
            show_answer(session, prompt)
        elif name in _COMMANDS:
            session = _run(pipe, session, name, argument.strip())
        elif _is_meant_as_command(name, argument):
            meant = nearest(name, list(_COMMANDS))
            note(f"{name[:60]} is not a command{meant or ':'} /help lists them")
        elif text:
            show_answer(session, prompt)


def _is_meant_as_command(name: str, argument: str) -> bool:
    """Of what is no command: a word alone, or what looks like a command that takes a file. Other
    prompts may begin with a path."""
    if not name.startswith("/"):
        return False
    return not argument or bool(nearest(name, [c for c, file in _COMMANDS.items() if file]))


def show_answer(session: Session, prompt: str) -> int:
    """Streams one answer to standard output. Exit code: 0, 1 on an error, 130 on Ctrl-C."""
    last, guard, cycle = None, LoopGuard(), 0
    pieces = session(prompt)
    try:
        for last in pieces:
            print(last.text, end="", flush=True)
            cycle = guard.add(last.token_ids)
            if cycle:
                break
    except KeyboardInterrupt:
        print(flush=True)
        return 130
    finally:
        pieces.close()
    print(flush=True)
    if last is not None and last.finish_reason == "error":
        complain(last.error_message or "the request failed")
        return 1
    if cycle:
        note(
            f"(stopped, for it goes round in a circle: the same {cycle} tokens again and again; "
            "--repetition-penalty 1.1 or --temperature 0.7 help)"
        )
    elif last is not None and last.finish_reason == "length":
        note(f"(cut after {last.generate_token_len} tokens: --max-new-tokens, --session-len)")
    return 0


def _run(pipe: Pipeline, session: Session, command: str, path: str) -> Session:
    """Runs a command; returns the session that goes on."""
    example = _COMMANDS[command]
    try:
        if example and not path:
            note(f"{command} takes a file: {command} {example}")
        elif path and not example:
            note(f"{command} takes nothing after it")
        elif command == "/help":
            print(_HELP)
        elif command == "/reset":
            session.reset()
            note("(a new conversation)")
        elif command == "/undo" and not session.history:
            note("nothing to undo: the conversation has no turn")
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
    """What the user types, one prompt at a time, until Ctrl-D or Ctrl-C."""
    while True:
        try:
            prompt = read_prompt()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        yield prompt


def read_prompt(read: Callable[[str], str] = input) -> str:
    """Reads lines until one ends the prompt; pasted ones come together, and end it. Raises EOFError
    when there is nothing to read."""
    lines, quoted, ask = list[str](), False, ">>> "
    while True:
        line = read(ask)
        if "\n" in line and not quoted:
            return "\n".join([*lines, line.rstrip("\n")])
        if line.count('"""') % 2:
            quoted = not quoted
        more = quoted or line.endswith("\\")
        lines.append(line[:-1] if line.endswith("\\") and not quoted else line)
        if not more:
            return "\n".join(lines).replace('"""', "")
        ask = "... "
