"""The load that serving.py puts on an engine: starts requests and stamps what they deliver.

One thread, one selector, for every engine alike; knows none of them. Closed loop, open loop and the
test of smoothness differ only in when a request starts. Standard library only.
"""

from __future__ import annotations

import random
import selectors
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

now = time.perf_counter
SILENCE_S = 300.0  # longer without a token is a failure
SETTLED, QUIET = 16, 64  # tokens that every decode has before smooth() looks, and while it looks


class Stream(Protocol):
    """An answer on its way. Its descriptor is readable while there is something to read."""

    def fileno(self) -> int: ...
    def read(self) -> tuple[int, bool]:
        """New tokens, and whether that was all. Never waits."""
        ...

    def cancel(self) -> None: ...


@dataclass
class Job:
    """A request, encoded as its engine wants it before the clock starts."""

    payload: Any
    n_prompt: int
    n_output: int


def random_ids(vocab_size: int, n: int, seed: int) -> list[int]:
    """Tokens of a prompt; another seed has nothing in common with it."""
    rng = random.Random(seed)
    return [rng.randrange(3, vocab_size) for _ in range(n)]


@dataclass
class Record:
    """What became of a job. start: when it was due, though it may have been sent later."""

    job: Job
    start: float
    times: list[float] = field(default_factory=list)  # of deliveries
    counts: list[int] = field(default_factory=list)  # of their tokens
    end: float = 0.0

    @property
    def n_tokens(self) -> int:
        return sum(self.counts)

    def pauses(self) -> list[tuple[float, float]]:
        """(from, to) between deliveries."""
        return list(zip(self.times, self.times[1:], strict=False))

    def gaps(self) -> list[float]:
        """Seconds between tokens: one that brings n counts as n of an n-th. (llama.cpp's server
        holds tokens back that end within a character.)"""
        pairs = zip(self.pauses(), self.counts[1:], strict=False)
        return [(b - a) / n for (a, b), n in pairs for _ in range(n)]


class Load:
    """The requests that run, and the records of all."""

    def __init__(self, submit: Callable[[Any], Stream]) -> None:
        self.submit = submit
        self.selector = selectors.DefaultSelector()
        self.records: list[Record] = []
        self.n_running = 0

    def start(self, job: Job, due: float | None = None) -> Record:
        record = Record(job, now() if due is None else due)
        self.records.append(record)
        self.selector.register(self.submit(job.payload), selectors.EVENT_READ, record)
        self.n_running += 1
        return record

    def wait(self, timeout: float | None = None) -> int:
        """Takes what has come, after at most timeout seconds; returns how many requests ended."""
        ready = self.selector.select(SILENCE_S if timeout is None else timeout)
        if not ready and timeout is None:
            raise RuntimeError(f"no token for {SILENCE_S:.0f} s")
        return sum(self.take(key) for key, _ in ready)

    def take(self, key: selectors.SelectorKey) -> bool:
        record: Record = key.data
        stream: Stream = key.fileobj  # type: ignore[assignment]
        n, ended = stream.read()
        at = now()
        if n:
            record.times.append(at)
            record.counts.append(n)
        if ended:
            record.end = at
            self.selector.unregister(key.fileobj)
            self.n_running -= 1
            if record.n_tokens != record.job.n_output:
                raise RuntimeError(f"{record.n_tokens} of {record.job.n_output} tokens came")
        return ended

    def cancel_all(self) -> None:
        for key in list(self.selector.get_map().values()):
            self.selector.unregister(key.fileobj)
            key.fileobj.cancel()  # type: ignore[union-attr]
        self.n_running = 0

    def close(self) -> None:
        self.cancel_all()
        self.selector.close()


def closed_loop(load: Load, jobs: list[Job], users: int) -> None:
    """Each user sends its next request when the last one ended."""
    waiting = deque(jobs)
    while waiting or load.n_running:
        while waiting and load.n_running < users:
            load.start(waiting.popleft())
        load.wait()


def open_loop(load: Load, jobs: list[Job], arrivals: list[float]) -> None:
    """Requests come when they come; one that is sent late is late for its user, too."""
    start, waiting = now(), deque(zip(arrivals, jobs, strict=True))
    while waiting or load.n_running:
        while waiting and start + waiting[0][0] <= now():
            at, job = waiting.popleft()
            load.start(job, start + at)
        load.wait(max(0.0, start + waiting[0][0] - now()) if waiting else None)


def smooth(load: Load, decodes: list[Job], long: Job) -> dict[str, Any]:
    """Pauses of running decodes: alone, and while a long prompt is computed.

    A pause counts as disturbed when any of it lies between the arrival of the long prompt and its
    first token, so a decode that stood still all the while is in it.
    """
    records = [load.start(job) for job in decodes]

    def until_each_has(n: int, more_than: list[int]) -> float:
        """Until every decode has n tokens more than it had."""
        while any(r.n_tokens < n + before for r, before in zip(records, more_than, strict=True)):
            load.wait()
            if any(record.end for record in records):
                raise RuntimeError("a decode ended before it was measured")
        return now()

    def counts() -> list[int]:
        return [record.n_tokens for record in records]

    begin = until_each_has(SETTLED, [0] * len(records))
    until_each_has(QUIET, counts())
    arrival = load.start(long)
    while not arrival.times:
        load.wait()
    until_each_has(1, counts())
    load.cancel_all()
    pauses = [pause for record in records for pause in record.pauses()]
    first = arrival.times[0]
    return {
        "quiet": [b - a for a, b in pauses if a >= begin and b < arrival.start],
        "disturbed": [b - a for a, b in pauses if b >= arrival.start and a <= first],
        "ttft": [first - arrival.start],
    }


def summary(records: list[Record]) -> dict[str, Any]:
    """Seconds from the first start to the last end, tokens, and every latency in seconds."""
    return {
        "seconds": max(r.end for r in records) - min(r.start for r in records),
        "n_requests": len(records),
        "n_prompt": sum(r.job.n_prompt for r in records),
        "n_output": sum(r.n_tokens for r in records),
        "ttft": [round(r.times[0] - r.start, 6) for r in records],
        "gaps": [round(gap, 6) for r in records for gap in r.gaps()],
    }


class Target:
    """An engine under load: a worker of serving.py. Subclasses say how it starts and is asked."""

    vocab_size: int

    def load(self, **options: Any) -> dict[str, Any]:
        """-> {"version", "pids": its processes but this one}"""
        raise NotImplementedError

    def encode(self, ids: list[int], n_output: int) -> Any:
        raise NotImplementedError

    def submit(self, payload: Any) -> Stream:
        raise NotImplementedError

    def job(self, n_prompt: int, n_output: int, seed: int, n_shared: int = 0) -> Job:
        """n_shared: tokens that every prompt begins with, besides its own."""
        ids = random_ids(self.vocab_size, n_shared, -1) + random_ids(
            self.vocab_size, n_prompt, seed
        )
        return Job(self.encode(ids, n_output), len(ids), n_output)

    def warm_up(self, n: int) -> None:
        load = Load(self.submit)
        closed_loop(load, [self.job(16, 4, -2 - i) for i in range(n)], n)
        load.close()

    def run(
        self,
        pairs: list[list[int]],
        seed: int,
        users: int = 0,
        arrivals: list[float] | None = None,
        n_shared: int = 0,
    ) -> dict[str, Any]:
        """A closed loop of `users`, or an open one with arrivals."""
        jobs = [self.job(p, n, seed + i, n_shared) for i, (p, n) in enumerate(pairs)]
        self.warm_up(max(1, min(users, 4)))
        load, cpu = Load(self.submit), time.thread_time()
        try:
            if arrivals is None:
                closed_loop(load, jobs, users)
            else:
                open_loop(load, jobs, arrivals)
        finally:
            load.close()
        return {**summary(load.records), "client_s": time.thread_time() - cpu}

    def smooth(self, n_decodes: int, n_long: int, seed: int) -> dict[str, Any]:
        decodes = [self.job(64 + i, 1024, seed + i) for i in range(n_decodes)]
        long = self.job(n_long, 8, seed + n_decodes)
        self.warm_up(1)
        load = Load(self.submit)
        try:
            return smooth(load, decodes, long)
        finally:
            load.close()


def answer(target: Target, request: dict[str, Any]) -> dict[str, Any]:
    """The protocol of serve.py, with load, run and smooth."""
    op = request.pop("op")
    calls = {"load": target.load, "run": target.run, "smooth": target.smooth}
    if op not in calls:
        raise ValueError(f"unknown op {op!r}")
    return calls[op](**request)
