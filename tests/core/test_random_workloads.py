"""Thousands of requests in random engines, each compared bit for bit with itself alone."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy as np
import pytest
from conftest import Answer, exact_kv_bits, load_model, make_engine
from test_exactness import CODES, LONG

from lmdeploy_c import _C

SESSION_LEN = 400
#: What an engine may be made with; the KV cache's own form is the oracle's too.
CHOICES: dict[str, list[Any]] = {
    "max_batch_size": [1, 2, 5, 16],
    "max_prefill_token_num": [5, 32, 64, 512],
    "enable_prefix_caching": [False, True],
    "num_speculative_tokens": [0, 0, 3, 7],
    "target_step_ms": [0.0, 1e-3, 100.0],
}


class Workload:
    """One engine, what its requests have to give, and the sessions they leave."""

    def __init__(self, model: _C.Model, seed: int) -> None:
        self.random = random.Random(seed)
        self.vocab_size = model.config["vocab_size"]
        block_len = self.random.choice([16, 32, 64])
        options = {name: self.random.choice(values) for name, values in CHOICES.items()}
        least = -(-SESSION_LEN // block_len)
        n_blocks = self.random.choice([least, least + 2, least * 3, least * 12])
        if options["num_speculative_tokens"]:
            options["adaptive_speculation"] = self.random.random() < 0.5
        kv_bits = self.random.choice([16, 16, exact_kv_bits(), 8, 4, (8, 4)])
        shape = {"block_len": block_len, "session_len": SESSION_LEN, "kv_bits": kv_bits}
        self.options = {**options, **shape, "n_blocks": n_blocks}
        self.engine = make_engine(model, **self.options)
        self.oracle = make_engine(
            model, n_blocks=least, max_batch_size=1, enable_prefix_caching=False, **shape
        )
        self.trunks = [self.new_tokens(150) for _ in range(3)]
        self.sessions: deque[tuple[list[int], _C.Snapshot]] = deque(maxlen=8)
        self.running: list[tuple[list[int], dict[str, Any], _C.Request, bool]] = []
        self.n_compared = 0

    def new_tokens(self, n: int) -> list[int]:
        return [self.random.randrange(3, self.vocab_size) for _ in range(n)]

    def parameters(self) -> dict[str, Any]:
        draw = self.random
        found: dict[str, Any] = {
            "max_new_tokens": draw.choice([1, 5, 12, 60]),
            "output_logits": draw.choice([None, "generation"]),
            "priority": draw.choice([0, 0, 0, 1, -1]),
        }
        if draw.random() < 0.4:
            found.update(do_sample=True, temperature=1.3, top_k=20, random_seed=draw.randrange(99))
        if draw.random() < 0.2:
            found.update(repetition_penalty=1.3, presence_penalty=0.5)
        if draw.random() < 0.2:
            found.update(stop_words=[self.new_tokens(1)], min_new_tokens=2)
        return found

    def start(self) -> None:
        """A new request: a text of its own, one that begins like others, or a session's turn."""
        kind, session = self.random.random(), None
        if kind < 0.3:
            prompt = self.new_tokens(self.random.choice([3, 40, 90, 300]))
        elif kind < 0.6 or not self.sessions:
            trunk = self.random.choice(self.trunks)
            prompt = trunk[: self.random.randint(1, len(trunk))] + self.new_tokens(2)
        else:
            text, session = self.random.choice(self.sessions)
            if self.random.random() < 0.3:
                text = text[: self.random.randint(0, len(text))]
            prompt = [*text, *self.new_tokens(self.random.randint(1, 20))]
        if len(prompt) > SESSION_LEN - 65:
            return
        asked = self.parameters()
        request = self.engine.submit(prompt, snapshot=session, keep_snapshot=True, **asked)
        cancelled = self.random.random() < 0.1
        if cancelled and self.random.random() < 0.5:
            request.cancel()
        self.running.append((prompt, asked, request, cancelled))

    def end(self) -> None:
        """Reads a request to its end, or as far as it goes before it is cancelled."""
        at = self.random.randrange(len(self.running))
        prompt, asked, request, cancelled = self.running.pop(at)
        got = read(request, cancel=cancelled)
        if request.snapshot is not None:
            tokens = request.snapshot.token_ids.tolist()
            assert tokens[: len(prompt)] == prompt
            assert len(got.token_ids) <= len(tokens) - len(prompt)
            self.sessions.append((tokens, request.snapshot))
        asked = {k: v for k, v in asked.items() if k != "priority"}
        expected = read(self.oracle.submit(prompt, **asked))
        if cancelled:
            assert got.finish_reason in ("abort", expected.finish_reason)
        else:
            assert got.finish_reason == expected.finish_reason
            assert len(got.token_ids) == len(expected.token_ids)
        n = len(got.token_ids)
        assert got.token_ids == expected.token_ids[:n], self.options
        if got.logits is not None and n and not cancelled:
            assert expected.logits is not None
            assert np.array_equal(got.logits, expected.logits), self.options
        self.n_compared += 1

    def run(self, n_requests: int) -> None:
        depth = self.random.choice([1, 4, 24, 24])
        for _ in range(n_requests):
            self.start()
            while len(self.running) > depth:
                self.end()
        while self.running:
            self.end()
        stats = self.engine.stats()
        assert stats["n_active_blocks"] == stats["n_running"] == stats["n_waiting"] == 0
        metrics = self.engine.metrics()
        assert metrics["n_submitted"] == sum(metrics["n_ended"].values())
        self.stats = stats
        self.engine.close()
        self.oracle.close()


def read(request: _C.Request, cancel: bool = False) -> Answer:
    tokens: list[int] = []
    logits: list[np.ndarray] = []
    while (output := request.read(120)) is not None:
        assert output.finish_reason != "error", output.error_message
        tokens += output.token_ids
        if output.logits is not None:
            logits.append(output.logits)
        if output.finish_reason is not None:
            rows = np.concatenate(logits) if logits else None
            return Answer(tokens, [], rows, output.finish_reason, None)
        if cancel:
            request.cancel()
    pytest.fail("no output in 120 s")


@pytest.mark.parametrize("path", [LONG, CODES], ids=["bf16", "q4_1"])
def test_random_workloads(path: Any) -> None:
    """4,000 requests in 40 engines: any mix of batch, chunking, shared beginnings, forks, drafts,
    preemption, cancels and KV of any bits, down to the smallest pool that can run."""
    model = load_model(path, num_threads=2)
    seen = dict.fromkeys(("n_preempted", "n_cached_tokens", "n_accepted_tokens"), 0.0)
    for seed in range(20):
        workload = Workload(model, seed)
        workload.run(100)
        assert workload.n_compared > 80
        for name in seen:
            seen[name] += workload.stats[name]
    assert all(seen.values()), seen
