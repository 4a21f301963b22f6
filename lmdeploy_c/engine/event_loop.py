"""Waiting in event loops: one descriptor for all answers of a loop, however many they are."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .. import _C

if TYPE_CHECKING:
    from .._C import Request

#: The loops in which answers are waited for. Each touches its own entry alone.
_wakers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Waker] = weakref.WeakKeyDictionary()


class _Waker:
    """Sets the event of each request that has output. It is in its loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.events: dict[int, asyncio.Event] = {}
        self.poller = _C.Poller()
        self.fd = self.poller.fileno()
        self.keys = itertools.count()
        loop.add_reader(self.fd, self._wake)

    def _wake(self) -> None:
        for key in self.poller.wait(0):
            event = self.events.get(key)
            if event is not None:
                event.set()


@contextlib.contextmanager
def output_event(request: Request) -> Iterator[asyncio.Event]:
    """An event of the running loop that is set when the request has output to read."""
    loop, pid = asyncio.get_running_loop(), os.getpid()
    waker = _wakers.get(loop)
    if waker is None:
        waker = _wakers[loop] = _Waker(loop)
    key, event = next(waker.keys), asyncio.Event()
    waker.events[key] = event
    try:
        waker.poller.add(request, key)
        yield event
    finally:
        del waker.events[key]
        # A forked child has its parent's epoll object: what it takes out there, the parent loses.
        if os.getpid() == pid:
            waker.poller.remove(request)
            if not waker.events:
                loop.remove_reader(waker.fd)
                _wakers.pop(loop, None)
