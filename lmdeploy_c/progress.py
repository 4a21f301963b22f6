"""Progress bars, on terminals and in notebooks only. tqdm is imported when a bar is shown."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

#: A call of at most so many prompts shows no bar unless it is asked to.
FEW_PROMPTS = 8


def is_interactive() -> bool:
    """Whether standard error is a terminal, or this is a notebook."""
    return "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())


def _tqdm(**kwargs: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a notebook without widgets gets a plain bar
        return importlib.import_module("tqdm.auto").tqdm(**kwargs)


@contextmanager
def prompt_bar(use_tqdm: bool | None, n_prompts: int) -> Iterator[Callable[[], object]]:
    """Gives a function to call once for each answer. use_tqdm: None shows a bar for more than
    FEW_PROMPTS prompts, if somebody can see it."""
    if not (is_interactive() and n_prompts > FEW_PROMPTS if use_tqdm is None else use_tqdm):
        yield lambda: None
        return
    with _tqdm(total=n_prompts, unit="prompt") as bar:
        yield bar.update


@contextmanager
def layers_progress(what: str, total: int) -> Iterator[Callable[[int, str], object]]:
    """Gives a function to call with how much more of `total` is done, and what comes next ("": the
    same); a bar with the time that is left, where somebody can see it."""
    if not is_interactive():
        yield lambda n, text: None
        return
    with _tqdm(desc=what, total=total, unit="weight", unit_scale=True, leave=False) as bar:

        def progress(n: int, text: str) -> None:
            if text:
                bar.set_postfix_str(text)
            bar.update(n)

        yield progress


@contextmanager
def bytes_progress(what: str) -> Iterator[Callable[[int, int], object] | None]:
    """Gives a function to call with the bytes that are done and those of all, which shows a bar
    once `what` takes over half a second; None where nobody can see it."""
    if not is_interactive():
        yield None
        return
    bar = _tqdm(desc=what, unit="B", unit_scale=True, delay=0.5, leave=False)

    def progress(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    with bar:
        yield progress


@contextmanager
def adding_bytes(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """The same, but the function takes the bytes that were done since it was called last."""
    n_done = 0
    with bytes_progress(what) as progress:

        def add(n_bytes: int) -> None:
            nonlocal n_done
            n_done += n_bytes
            if progress:
                progress(n_done, total)

        yield add


def loading_progress() -> AbstractContextManager[Callable[[int, int], object] | None]:
    """Gives the `progress` argument of `_C.Model`."""
    return bytes_progress("loading")
