"""What the routes of a server share: the engine, threads for what takes long, and who is answered.
In the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from ..engine.answer import Answer
from ..engine.choices import merge
from ..engine.text_engine import TextEngine
from ..messages import ErrorCode, Response
from .config import ServeConfig
from .errors import ApiError, failed
from .exchange import Exchange
from .sessions import Sessions

_T = TypeVar("_T")

#: Threads that render templates and tokenise. Both are short, and tokenising releases the GIL.
_N_THREADS = 2


class Job:
    """The answers that a request waits for."""

    def __init__(
        self,
        exchange: Exchange,
        model: str,
        answers: Sequence[Answer],
        session_id: int | None = None,
    ) -> None:
        self.request_id, self.key, self.path = exchange.request_id, exchange.key, exchange.path
        self.model, self.answers = model, list(answers)
        self.started = time.monotonic()
        self.first_token: float | None = None
        self.session_id = None if session_id == -1 else session_id
        #: Why its answers were cut off, if they were.
        self.cut_by: Literal["abort", "drain"] | None = None

    def cut(self, reason: Literal["abort", "drain"]) -> None:
        """Ends the answers with what they have."""
        self.cut_by = self.cut_by or reason
        for answer in self.answers:
            answer.cancel()

    async def deltas(self) -> AsyncGenerator[Response, None]:
        """Pieces of the answers as they come. ApiError for an answer that fails."""
        streams = [answer.deltas() for answer in self.answers]
        stream = streams[0] if len(streams) == 1 else merge(streams)
        async with contextlib.aclosing(stream) as deltas:
            async for delta in deltas:
                if delta.finish_reason == "error":
                    raise failed(delta)
                if self.first_token is None:
                    self.first_token = time.monotonic()
                yield delta

    async def responses(self) -> list[Response]:
        """The answers as a whole, in their order. ApiError for one that fails."""
        async with contextlib.aclosing(self.deltas()) as deltas:
            async for _ in deltas:
                pass
        return [answer.response for answer in self.answers]

    def count(self) -> tuple[int, int, int]:
        """Tokens so far: of prompts, of these found in the KV cache, of answers. A prompt with
        several answers counts once."""
        firsts = [answer for answer in self.answers if answer.response.choice == 0]
        return (
            sum(answer.response.input_token_len for answer in firsts),
            sum(answer.response.cached_tokens for answer in firsts),
            sum(answer.response.generate_token_len for answer in self.answers),
        )


class Service:
    """A server's state: what each handler is given.

    Attributes:
        engine: answers. config: as given. created: when it began, as Unix time.
        jobs: who is answered. sessions: conversations of /v1/chat/interactive. draining: no new
            work is taken.
    """

    def __init__(self, engine: TextEngine, config: ServeConfig) -> None:
        self.engine, self.config = engine, config
        self.created = int(time.time())
        self.jobs: set[Job] = set()
        self.sessions = Sessions(engine, config.max_sessions)
        self.draining = False
        self._pool = ThreadPoolExecutor(_N_THREADS, "lmdeploy_c-serve")

    def engine_of(self, name: str | None) -> TextEngine:
        """The engine of a model's name; None: of the only one. ApiError 404."""
        known = self.engine.model_name
        if name is None or name == known:
            return self.engine
        raise ApiError(
            404,
            f"the model {name:.100} does not exist; there is {known}",
            ErrorCode.MODEL_NOT_FOUND.value,
            param="model",
        )

    async def in_thread(
        self, work: Callable[[], _T], dispose: Callable[[_T], object] = lambda _: None
    ) -> _T:
        """The result of work that takes long. dispose: gets it if nobody waits for it any more."""
        future = self._pool.submit(work)
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:

            def done(ended: Future[_T]) -> None:
                if not ended.cancelled() and ended.exception() is None:
                    dispose(ended.result())

            future.add_done_callback(done)
            raise

    @contextlib.asynccontextmanager
    async def answering(
        self,
        exchange: Exchange,
        engine: TextEngine,
        start: Callable[[], list[Answer]],
        session_id: int | None = None,
    ) -> AsyncIterator[Job]:
        """A time in which answers are written. start: asks for them, in another thread.
        session_id: names the request, too. Leaving it in any way ends those that still run."""
        answers = await self.in_thread(start, _close)
        job = Job(exchange, engine.model_name, answers, session_id)
        self.jobs.add(job)
        try:
            yield job
        finally:
            _close(answers)
            self.jobs.discard(job)
            exchange.log.update(describe(job))

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _close(answers: Sequence[Answer]) -> None:
    for answer in answers:
        answer.close()


def describe(job: Job) -> dict[str, Any]:
    """What the access log says of it."""
    n_prompt, n_cached, n_generated = job.count()
    reasons = {answer.response.finish_reason or "abort" for answer in job.answers}
    return {
        "model": job.model,
        "prompt_tokens": n_prompt,
        "cached_tokens": n_cached,
        "completion_tokens": n_generated,
        "finish_reason": ",".join(sorted(reasons)),
    }
