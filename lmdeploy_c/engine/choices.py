"""Several answers to one prompt: GenerationConfig.n, and Response.choices.

Each is a request of its own; those after the first begin with the first one's prompt
(`TextEngine.ask_again`).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Sequence

from ..messages import MAX_CHOICES, GenerationConfig, Response
from .answer import Answer


def n_choices(config: GenerationConfig | None) -> int:
    """How many answers a configuration asks for. A wrong n is refused in the one answer it gets."""
    n = 1 if config is None else config.n
    return n if isinstance(n, int) and 1 <= n <= MAX_CHOICES else 1


class Call:
    """The answers of a call: n_choices[i] to its i-th prompt.

    places: (prompt, choice) of each answer; n_answers: how many those are.
    """

    def __init__(
        self,
        n_choices: list[int],
        first: Callable[[int], Answer],
        again: Callable[[Answer, int], Answer] | None = None,
    ) -> None:
        self.n_choices = n_choices
        self.places = [(i, choice) for i, n in enumerate(n_choices) for choice in range(n)]
        self.n_answers = len(self.places)
        self._ask, self._again = first, again
        self._first: Answer | None = None  # of the prompt that is being asked

    def start(self, k: int) -> Answer:
        """Starts the k-th answer; they are started in order."""
        i, choice = self.places[k]
        if choice == 0 or self._first is None or self._again is None:
            self._first = self._ask(i)
            return self._first
        return self._again(self._first, choice)


def with_choices(
    answers: Iterable[Response], n_choices: Sequence[int]
) -> Generator[Response, None, None]:
    """One Response for each prompt, when all of its answers are complete: the first of them, with
    all as its choices where n_choices[index] is more than 1."""
    found: dict[int, list[Response]] = {}
    for answer in answers:
        choices = found.setdefault(answer.index, [])
        choices.append(answer)
        if len(choices) == n_choices[answer.index]:
            choices = sorted(found.pop(answer.index), key=lambda choice: choice.choice)
            first = choices[0]
            yield dataclasses.replace(first, choices=choices) if len(choices) > 1 else first


async def merge(
    streams: Sequence[AsyncGenerator[Response, None]],
) -> AsyncGenerator[Response, None]:
    """Pieces of several streams in an event loop, as they come. Leaving it closes them all."""
    import asyncio

    waiting: dict[asyncio.Future[Response], AsyncGenerator[Response, None]] = {}
    try:
        waiting = {asyncio.ensure_future(anext(stream)): stream for stream in streams}
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for future in done:
                stream = waiting.pop(future)
                with contextlib.suppress(StopAsyncIteration):
                    piece = future.result()
                    waiting[asyncio.ensure_future(anext(stream))] = stream
                    yield piece
    finally:
        for future in waiting:
            future.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for stream in streams:
            await stream.aclose()


async def generate(call: Call, stream_response: bool) -> AsyncGenerator[Response, None]:
    """The answers of a call, in an event loop."""
    answers: list[Answer] = []
    try:
        answers.extend(map(call.start, range(call.n_answers)))
        streams = [answer.deltas() for answer in answers]
        stream = streams[0] if len(streams) == 1 else merge(streams)
        async with contextlib.aclosing(stream) as deltas:
            async for delta in deltas:
                if stream_response:
                    yield delta
    finally:
        for answer in answers:
            answer.close()
    if not stream_response:
        yield next(with_choices((a.response for a in answers), call.n_choices))
