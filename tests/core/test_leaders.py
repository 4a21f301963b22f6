"""Requests that wait for another one's prompt: the answers that share it."""

import random
import time

import pytest
from conftest import greedy, make_engine, read_all

from lmdeploy_c import _C


def test_followers_of_leaders_that_end_or_lose_their_slot(tiny_model: _C.Model) -> None:
    """Random traffic through few blocks and slots: whoever leads, ends early or is preempted,
    every answer is the one that its prompt has alone."""
    rng = random.Random(0)
    prompts = [
        [rng.randrange(96) for _ in range(rng.choice([1, 15, 16, 17, 40]))] for _ in range(6)
    ]
    alone = make_engine(tiny_model)
    wanted = [greedy(alone, prompt, 20) for prompt in prompts]
    alone.close()
    engine = make_engine(
        tiny_model, session_len=64, n_blocks=6, block_len=16, max_batch_size=5,
        max_prefill_token_num=16,
    )  # fmt: skip
    for _ in range(12):
        asked = []
        for i, prompt in enumerate(prompts):
            leader = None
            for _ in range(rng.randint(1, 4)):
                priority = rng.randint(-1, 1)
                request = engine.submit(prompt, max_new_tokens=20, leader=leader, priority=priority)
                leader = leader if leader and rng.random() < 0.7 else request
                asked.append((i, request))
        cancelled = {id(request) for _, request in asked if rng.random() < 0.2}
        for _, request in asked:
            if id(request) in cancelled:
                request.cancel()
        for i, request in asked:
            if id(request) not in cancelled:
                assert read_all(request).token_ids == wanted[i]
        del asked
    while (stats := engine.stats())["n_running"] + stats["n_waiting"]:
        time.sleep(0.001)
    assert stats["n_active_blocks"] == 0 and stats["n_preempted"] > 0
    engine.close()


def test_others_pass_those_that_wait_for_a_prompt(tiny_model: _C.Model) -> None:
    """A leader reads its prompt for many steps; a request behind its follower is not held up."""
    counts = []
    for _ in range(5):
        engine = make_engine(tiny_model, max_prefill_token_num=64, max_batch_size=4)
        leader = engine.submit([3] * 600, max_new_tokens=1)
        follower = engine.submit([3] * 600, max_new_tokens=1, leader=leader)
        short = engine.submit([5], max_new_tokens=1)
        read_all(follower)
        assert short.read(0) is not None  # it ended before the follower did
        counts.append(engine.stats()["n_tokens_prefilled"])
        engine.close()
    # A follower that is submitted when its leader has ended reads the end of the prompt itself.
    assert min(counts) == 601 and max(counts) < 601 + 64


def test_a_leader_that_has_ended_leaves_its_snapshot(tiny_model: _C.Model) -> None:
    prompt = list(range(3, 50))
    for keep_snapshot in (True, False):
        engine = make_engine(tiny_model, enable_prefix_caching=False)
        leader = engine.submit(prompt, max_new_tokens=1, keep_snapshot=keep_snapshot)
        read_all(leader)
        read_all(engine.submit(prompt, max_new_tokens=1, leader=leader))
        n_computed = len(prompt) * 2 - (46 if keep_snapshot else 0)
        stats = engine.stats()
        assert stats["n_prompt_tokens"] - stats["n_cached_tokens"] == n_computed
        with pytest.raises(TypeError, match="leader must be a Request, not int"):
            engine.submit(prompt, leader=1)  # type: ignore[arg-type]
        other = make_engine(tiny_model)
        assert "another engine" in (other.submit(prompt, leader=leader).read(9).error_message or "")  # type: ignore[union-attr]
        other.close()
        engine.close()
