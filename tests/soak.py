"""The soak: mixed traffic from many threads for minutes (`make soak`, SOAK_SECONDS=600).

Whole answers, streams that are left early, event loops, sessions that are forked, rewound, saved
and loaded, cancels, timeouts, wrong requests, a small KV cache. Every request has to end once;
every greedy answer has to be what it was when it was alone, as far as it goes; memory, threads and
descriptors have to stay where they are. Exits 1 with what was wrong.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from lmdeploy_c import (
    GenerationConfig,
    Pipeline,
    Response,
    Session,
    SpeculativeConfig,
    TurbomindEngineConfig,
    pipeline,
)

SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
N_CLIENTS = 8
N_TOKENS = 48
CONFIG = TurbomindEngineConfig(
    session_len=1024, max_batch_size=8, cache_max_entry_count=18, max_waiting_requests=64
)
TOPICS = ("cats", "rivers", "numbers", "Paris", "the sea", "a lost key", "winter", "bread")
FORMS = ("Tell me about {}.", "Write a short story about {}.", "List ten words about {}.")
PROMPTS = [form.format(topic) for form in FORMS for topic in TOPICS]
PROMPTS += [f"Sum up: {' '.join(f'{t} {i}.' for i in range(60))}" for t in TOPICS[:4]]
#: Growth of resident memory after the warm-up that counts as none, bytes.
FLAT = 24 << 20


def usage() -> dict[str, int]:
    """Resident bytes, threads and open descriptors of this process."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "rss": int(status["VmRSS"].split()[0]) * 1024,
        "threads": int(status["Threads"]),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }


class Soak:
    """The pipeline under load, and what was seen."""

    def __init__(self, pipe: Pipeline, folder: Path) -> None:
        self.pipe, self.folder = pipe, folder
        self.greedy = GenerationConfig(max_new_tokens=N_TOKENS)
        self.expected = {p: pipe(p, self.greedy).token_ids for p in PROMPTS}
        self.wrong: list[str] = []
        self.done: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.stop = threading.Event()

    def check(self, what: str, right: object, detail: object = "") -> None:
        if not right:
            with self.lock:
                self.wrong.append(f"{what}: {detail}")

    def check_answer(self, prompt: str, tokens: list[int], reason: str | None) -> None:
        wanted = self.expected[prompt]
        whole = reason in ("stop", "length") and len(tokens) == len(wanted)
        cut = reason in ("abort", None, "length") and len(tokens) <= len(wanted)
        self.check("answer", tokens == wanted[: len(tokens)] and (whole or cut), (prompt, reason))

    # What clients do; each takes its own random numbers.

    def ask(self, draw: random.Random) -> None:
        prompts = draw.sample(PROMPTS, draw.randint(1, 4))
        config = GenerationConfig(max_new_tokens=N_TOKENS, priority=draw.choice([0, 0, 1]))
        for prompt, answer in zip(prompts, self.pipe(prompts, config), strict=True):
            self.check_answer(prompt, answer.token_ids, answer.finish_reason)
            self.check("end", answer.finish_reason in ("stop", "length"), answer)

    def sample(self, draw: random.Random) -> None:
        seed = draw.randrange(1000)
        config = GenerationConfig(
            max_new_tokens=20, do_sample=True, temperature=1.0, random_seed=seed, logprobs=3
        )
        prompt = draw.choice(PROMPTS)
        first, again = self.pipe([prompt, prompt], config)
        self.check("seed", first.token_ids == again.token_ids, (prompt, seed))

    def leave_a_stream(self, draw: random.Random) -> None:
        prompt, n = draw.choice(PROMPTS), draw.randint(0, 20)
        tokens: list[int] = []
        for piece in self.pipe.stream_infer(prompt, gen_config=self.greedy):
            tokens += piece.token_ids
            if len(tokens) > n:
                break
        self.check_answer(prompt, tokens, None)

    def run_out_of_time(self, draw: random.Random) -> None:
        prompt = draw.choice(PROMPTS)
        config = GenerationConfig(max_new_tokens=N_TOKENS, timeout=draw.uniform(0.001, 0.3))
        answer = self.pipe(prompt, config)
        self.check_answer(prompt, answer.token_ids, answer.finish_reason)

    def ask_wrongly(self, draw: random.Random) -> None:
        wrong: list[Callable[[], Response]] = [
            lambda: self.pipe("word " * 2000),
            lambda: self.pipe("hi", GenerationConfig(stop_token_ids=[10**8])),
            lambda: self.pipe("hi", session_id=draw.randrange(10**9), sequence_start=False),
            lambda: self.pipe([{"role": "user", "content": 3}]),
        ]
        answer = draw.choice(wrong)()
        self.check("error", answer.finish_reason == "error" and answer.error_message, answer)

    def loop(self, draw: random.Random) -> None:
        async def one(prompt: str, limit: int) -> None:
            tokens: list[int] = []
            async for piece in self.pipe.generate(prompt, self.greedy):
                tokens += piece.token_ids
                if len(tokens) > limit:
                    break
            self.check_answer(prompt, tokens, None)

        async def many() -> None:
            tasks = [
                asyncio.ensure_future(one(p, draw.choice([5, 10**6])))
                for p in draw.sample(PROMPTS, 3)
            ]
            if draw.random() < 0.5:
                await asyncio.sleep(draw.uniform(0, 0.2))
                tasks[0].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run(many())

    def talk(self, draw: random.Random) -> None:
        """A conversation, and its twin by another way: they have to say the same."""
        session = self.pipe.session(GenerationConfig(max_new_tokens=16))
        for prompt in draw.sample(PROMPTS[: len(TOPICS)], draw.randint(1, 3)):
            session(prompt, stream_response=False)
        twin = session.fork()
        if draw.random() < 0.5:
            twin("And?", stream_response=False)
            twin.rewind(1)
        if draw.random() < 0.5:
            path = self.folder / f"{session.session_id}"
            twin.save(path, kv=draw.random() < 0.7)
            twin = self.pipe.load_session(path)
            twin.gen_config = session.gen_config
            path.unlink()
        said = [self.last(s, "Go on.") for s in (session, twin)]
        self.check("sessions", said[0] == said[1], said)

    def last(self, session: Session, prompt: str) -> list[int] | None:
        answer = session(prompt, stream_response=False)
        assert isinstance(answer, Response)
        return answer.token_ids

    def client(self, seed: int) -> None:
        draw = random.Random(seed)
        acts = (
            (self.ask, 5),
            (self.sample, 2),
            (self.leave_a_stream, 3),
            (self.run_out_of_time, 2),
            (self.ask_wrongly, 1),
            (self.loop, 2),
            (self.talk, 3),
        )
        while not self.stop.is_set():
            act = draw.choices([a for a, _ in acts], [w for _, w in acts])[0]
            try:
                act(draw)
            except Exception as error:
                self.check(act.__name__, False, repr(error))
            with self.lock:
                self.done[act.__name__] += 1


def run(soak: Soak, seconds: float) -> dict[str, int]:
    """Runs every client; the growth of what should not grow after a quarter of the time."""
    clients = [threading.Thread(target=soak.client, args=(i,)) for i in range(N_CLIENTS)]
    started, warm = time.monotonic(), None
    for client in clients:
        client.start()
    while (elapsed := time.monotonic() - started) < seconds and not soak.wrong:
        time.sleep(1)
        if warm is None and elapsed > seconds / 4:
            warm = usage()
        if int(elapsed) % 30 == 0:
            n = sum(soak.done.values())
            print(f"{elapsed:5.0f} s  {n} acts  {usage()['rss'] >> 20} MB", flush=True)
    late = usage()
    soak.stop.set()
    for client in clients:
        client.join(120)
        soak.check("client", not client.is_alive(), "it does not end")
    return {k: late[k] - (warm or late)[k] for k in late}


def check_idle(soak: Soak) -> None:
    """Everything has ended, once, and every block is back."""
    deadline = time.monotonic() + 20
    while (stats := soak.pipe.stats())["n_running"] or stats["n_waiting"]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    soak.check("blocks", not stats["n_active_blocks"] and not stats["n_running"], stats)
    metrics = soak.pipe.metrics()
    ended = sum(metrics["n_ended"].values())
    soak.check("ends", metrics["n_submitted"] == ended, (metrics["n_submitted"], ended))
    print(
        f"{ended} requests {metrics['n_ended']}, {stats['n_preempted']} preempted, "
        f"{stats['n_cached_tokens']} of {stats['n_prompt_tokens']} prompt tokens found again"
    )
    soak.check("load", stats["n_preempted"] > 0, "nobody was preempted: the load was too small")


def main() -> int:
    with (
        tempfile.TemporaryDirectory() as folder,
        pipeline(backend_config=CONFIG, speculative_config=SpeculativeConfig("ngram")) as pipe,
    ):
        soak = Soak(pipe, Path(folder))
        growth = run(soak, SECONDS)
        check_idle(soak)
        print(f"done: {dict(soak.done)}; growth after the first quarter: {growth}")
        soak.check("memory", growth["rss"] < FLAT, growth)
        # In the middle of the traffic both move by what its clients have open.
        soak.check("threads", growth["threads"] < 8, growth)
        soak.check("descriptors", growth["descriptors"] < 40, growth)
    for what in soak.wrong[:20]:
        print(f"WRONG {what}", file=sys.stderr)
    print("wrong" if soak.wrong else "all right")
    return bool(soak.wrong)


if __name__ == "__main__":
    sys.exit(main())
