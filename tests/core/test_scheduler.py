"""The scheduler by itself: plans against an independent model of what was computed."""

from __future__ import annotations

import random
from itertools import count

import pytest
from scheduler_shadow import Checked, Shadow

from lmdeploy_c import _C

CONFIGS = [
    {"n_blocks": 40, "block_len": 16, "max_batch_size": 8, "max_prefill_token_num": 64,
     "session_len": 300},
    {"n_blocks": 12, "block_len": 7, "max_batch_size": 16, "max_prefill_token_num": 11,
     "session_len": 80},
    {"n_blocks": 30, "block_len": 1, "max_batch_size": 4, "max_prefill_token_num": 5,
     "session_len": 30},
    {"n_blocks": 6, "block_len": 64, "max_batch_size": 3, "max_prefill_token_num": 512,
     "session_len": 380},
]  # fmt: skip


@pytest.mark.parametrize("prefix_caching", [False, True], ids=["plain", "prefix-caching"])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c['n_blocks']}x{c['block_len']}")
def test_random_operations(config: dict[str, int], prefix_caching: bool) -> None:
    """2,500 operations each, 20,000 in all: every plan fits the shadow, KV holds what every
    sequence reads, every sequence ends. Four texts alone: most begin like another."""
    random.seed(config["n_blocks"])
    checked = Checked(enable_prefix_caching=prefix_caching, **config)
    most = min(config["session_len"], config["n_blocks"] * config["block_len"])
    for _ in range(2500):
        choice = random.random()
        if choice < 0.25 and len(checked.live) < 40:
            n = random.randint(1, most - 1)
            checked.add(n, random.randint(1, min(most - n, 40)), n_texts=4)
        elif choice < 0.30 and checked.live:
            checked.cancel(random.choice(list(checked.live)))
        elif choice < 0.65 and len(checked.plans) < 2:
            checked.schedule()
        elif checked.plans:
            checked.update()
    stats = checked.scheduler.stats()
    assert stats["n_preempted"] > 0
    if prefix_caching:
        assert stats["n_cached_tokens"] > stats["n_prompt_tokens"] // 10
    else:
        assert stats["n_cached_tokens"] == 0
    checked.drain()


@pytest.mark.parametrize("prefix_caching", [False, True], ids=["plain", "prefix-caching"])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c['n_blocks']}x{c['block_len']}")
def test_random_sessions(config: dict[str, int], prefix_caching: bool) -> None:
    """Turns that go on from any earlier one, forked and rewound anywhere, in pools that evict: KV
    holds just the text that every plan reads."""
    random.seed(config["n_blocks"])
    checked = Checked(enable_prefix_caching=prefix_caching, **config)
    most = min(config["session_len"], config["n_blocks"] * config["block_len"])
    sessions: list[_C.Snapshot] = []
    for turn in range(2500):
        choice = random.random()
        if choice < 0.20 and len(checked.live) < 12:
            session = random.choice(sessions) if sessions and random.random() < 0.9 else None
            tokens = [] if session is None else session.token_ids.tolist()
            if random.random() < 0.3:
                tokens = tokens[: random.randint(0, len(tokens))]
            tokens = tokens[: most - 2] + [turn] * random.randint(1, 5)
            n = random.randint(1, min(most - len(tokens), 9)) if len(tokens) < most else 0
            if n:
                checked.go_on(tokens, n, session)
        elif choice < 0.32 and checked.live:
            seq_id = random.choice(list(checked.live))
            session = checked.scheduler.snapshot(seq_id)
            shadow = checked.live[seq_id]
            assert session.token_ids.tolist() == shadow.tokens
            most_known = max(shadow.computed, shadow.begun_with)
            assert prefix_caching or session.n_computed <= most_known
            sessions.append(session)
            del sessions[:-8]
            if random.random() < 0.5:
                checked.cancel(seq_id)
        elif choice < 0.65 and len(checked.plans) < 2:
            checked.schedule()
        elif checked.plans:
            checked.update()
    assert checked.n_from_sessions > 100
    assert checked.n_copies > 5 or config["block_len"] == 1
    checked.drain()


def test_a_session_goes_on_in_its_last_block() -> None:
    """The first to go on writes behind it in place; a fork, and a rewind, write into a copy."""
    checked = Checked(n_blocks=20, block_len=16, max_prefill_token_num=512, session_len=200)
    seq_id = checked.add(20, 9, n_texts=1)
    for _ in range(3):
        checked.schedule()
        checked.update()
    session = checked.scheduler.snapshot(seq_id)
    assert session.n_computed == 22
    checked.cancel(seq_id)
    text = session.token_ids.tolist()
    for tokens, cached, copies in (
        ([*text, 7], 22, []),
        ([*text, 8], 22, [1]),
        ([*text[:19], 9], 19, [1]),
        (text[:16], 15, [0]),
    ):
        went = checked.go_on(tokens, 1, session)
        plan = checked.schedule()
        assert plan is not None
        assert plan.seq_ids.tolist() == [went]
        assert plan.history_lens.tolist() == [cached]
        assert plan.copies[:, 0].tolist() == copies
        checked.update()
    with pytest.raises(RuntimeError, match="no KV"):
        session.export_kv()
    with pytest.raises(ValueError, match="another engine"):
        _C.Scheduler(n_blocks=4).add(text, snapshot=session)
    with pytest.raises(TypeError, match="Snapshot"):
        checked.scheduler.add(text, snapshot=3)  # type: ignore[arg-type]


def test_a_prompt_is_found_again() -> None:
    """Full blocks of prompt and answer, but never the last token: something has to be computed."""
    checked = Checked(n_blocks=20, block_len=16, max_prefill_token_num=512, session_len=200)
    checked.add(40, 30, n_texts=1)
    checked.drain()
    for n_tokens, cached in [(40, 32), (33, 32), (32, 16), (16, 0), (15, 0)]:
        checked.add(n_tokens, 1, n_texts=1)
        plan = checked.schedule()
        assert plan is not None
        assert plan.history_lens.tolist() == [cached]
        checked.update()
    answer = Shadow(list(range(40)), 70)
    followed = checked.scheduler.add([answer.token(p) for p in range(69)], max_new_tokens=1)
    plan = checked.scheduler.schedule()
    assert plan is not None
    assert plan.seq_ids.tolist() == [followed]
    assert plan.history_lens.tolist() == [64]
    assert checked.scheduler.stats()["n_cached_tokens"] == 32 + 32 + 16 + 64


def test_evicted_text_is_computed_and_found_again() -> None:
    checked = Checked(n_blocks=4, block_len=16, session_len=64)
    checked.add(40, 1, n_texts=1)
    checked.drain()
    other = checked.scheduler.add(range(500, 562), max_new_tokens=1)  # takes every block
    plan = checked.scheduler.schedule()
    assert plan is not None
    checked.scheduler.update(plan.plan_id, [1])
    with pytest.raises(KeyError):
        checked.scheduler.cancel(other)
    for cached in (0, 32):
        checked.add(40, 1, n_texts=1)
        plan = checked.schedule()
        assert plan is not None
        assert plan.history_lens.tolist() == [cached]
        checked.update()


def test_one_budget_for_prefill_and_decode() -> None:
    checked = Checked(n_blocks=64, max_prefill_token_num=32)
    first = checked.add(10, 50)
    checked.schedule()
    checked.update()
    second = checked.add(100, 5)
    plan = checked.schedule()
    assert plan is not None
    assert plan.seq_ids.tolist() == [first, second]
    assert plan.input_lens.tolist() == [1, 31]
    checked.drain()


def test_first_come_first_served() -> None:
    checked = Checked(n_blocks=8, block_len=16, max_batch_size=1, session_len=128)
    order = [checked.add(20, 3) for _ in range(6)]
    checked.drain()
    assert checked.finished == order


def test_waiting_says_why() -> None:
    scheduler = _C.Scheduler(n_blocks=3, block_len=16, max_batch_size=8, session_len=48)
    scheduler.add(range(30), max_new_tokens=2)
    blocked = scheduler.add(range(40), max_new_tokens=2)
    behind = scheduler.add(range(4), max_new_tokens=2)
    plan = scheduler.schedule()
    assert plan is not None
    assert plan.waiting == [(blocked, "no block is free"), (behind, "behind another that waits")]


def test_preempted_sequence_keeps_what_was_not_evicted() -> None:
    checked = Checked(n_blocks=5, block_len=16, max_batch_size=4, session_len=80)
    old, young = checked.add(31, 40), checked.add(31, 3)
    checked.schedule()
    checked.update()
    plan = None
    for _ in range(40):
        plan = checked.schedule()
        assert plan is not None
        checked.update()
        if young in plan.preempted:
            break
    else:
        pytest.fail("nobody was preempted")
    assert old in checked.live
    checked.drain()


def test_what_can_never_fit_is_refused() -> None:
    scheduler = _C.Scheduler(n_blocks=2, block_len=16, session_len=100)
    with pytest.raises(ValueError, match="do not ever fit"):
        scheduler.add(range(30), max_new_tokens=10)
    with pytest.raises(ValueError, match="at least one token"):
        scheduler.add([], max_new_tokens=1)


def test_wrong_use_is_an_exception() -> None:
    scheduler = _C.Scheduler(n_blocks=4)
    with pytest.raises(KeyError):
        scheduler.cancel(3)
    with pytest.raises(ValueError, match="oldest in flight"):
        scheduler.update(1, [])
    scheduler.add([1, 2], max_new_tokens=4)
    plan = scheduler.schedule()
    assert plan is not None
    with pytest.raises(ValueError, match="1 logits rows, but 2"):
        scheduler.update(plan.plan_id, [1, 2])
    with pytest.raises(ValueError, match="n_blocks"):
        _C.Scheduler(n_blocks=0)
    with pytest.raises(TypeError, match="integers"):
        scheduler.add([0.5])


def test_a_placeholder_that_never_comes() -> None:
    scheduler = _C.Scheduler(n_blocks=4)
    scheduler.add([1, 2, 3], max_new_tokens=9)
    first, second = scheduler.schedule(), scheduler.schedule()
    assert first is not None
    assert second is not None
    assert second.token_ids.tolist() == [-1]
    scheduler.update(first.plan_id, [-1])
    scheduler.update(second.plan_id, [-1])
    for _ in range(3):
        plan = scheduler.schedule()
        assert plan is None or plan.input_lens.min() > 0
        scheduler.check()


def test_the_last_token_needs_no_block() -> None:
    checked = Checked(n_blocks=1, block_len=16, session_len=17)
    checked.add(16, 1)
    checked.drain()


def test_memory_once_touched_serves_again() -> None:
    scheduler = _C.Scheduler(n_blocks=100, block_len=16, enable_prefix_caching=False)
    used = set()
    for _ in range(10):
        seq_id = scheduler.add(list(range(40)), max_new_tokens=4)
        plan = scheduler.schedule()
        assert plan is not None
        used.update(plan.block_ids.tolist())
        scheduler.update(plan.plan_id, [1])
        scheduler.finish(seq_id)
    assert len(used) == 3


def test_a_scheduler_of_no_blocks_for_anyone_says_so() -> None:
    scheduler = _C.Scheduler(n_blocks=2, block_len=16, max_batch_size=2, session_len=33)
    stuck = scheduler.add(range(20), max_new_tokens=13)
    other = scheduler.add(range(5), max_new_tokens=2)
    plan = scheduler.schedule()
    assert plan is not None
    assert plan.seq_ids.tolist() == [stuck]
    assert plan.waiting == [(other, "no block is free")]


def test_priorities_pass_a_bounded_number() -> None:
    """Who waits longest goes first, but that a step of priority passes 64 earlier ones: in every
    schedule the first steps come in order of rank, and none is passed by all that come."""
    random.seed(1)
    scheduler = _C.Scheduler(n_blocks=30, block_len=16, max_batch_size=3, session_len=64)
    waiting: dict[int, int] = {}  # seq_id -> rank
    passed: dict[int, int] = {}
    n_passes = 0
    for turn in range(3000):
        for _ in range(2 if turn < 1000 else 0):
            priority = random.choice([0, 0, 0, 1, 2, -1])
            seq_id = scheduler.add([3] * random.randint(1, 20), max_new_tokens=2, priority=priority)
            waiting[seq_id] = len(passed) - 64 * priority
            passed[seq_id] = 0
        plan = scheduler.schedule()
        if plan is None:
            continue
        scheduler.check()
        begun = [s for s in plan.seq_ids.tolist() if s in waiting]
        ranks = [(waiting.pop(s), s) for s in begun]
        if ranks and waiting:
            assert max(ranks) < min((rank, s) for s, rank in waiting.items())
        for _, seq_id in ranks:
            for other in waiting:
                passed[other] += other < seq_id
                n_passes += other < seq_id
        scheduler.update(plan.plan_id, [5] * len(plan.logits_rows))
    assert not waiting
    assert n_passes > 100, "nobody was passed: the test shows nothing"
    assert max(passed.values()) <= 3 * 64
    with pytest.raises(ValueError, match="priority"):
        scheduler.add([1], max_new_tokens=1, priority=1001)


def test_the_budget_can_be_set() -> None:
    checked = Checked(n_blocks=64, max_prefill_token_num=32)
    checked.add(100, 5)
    checked.scheduler.set_budget(7)
    plan = checked.schedule()
    assert plan is not None
    assert plan.input_lens.tolist() == [7]
    for wrong in (0, 33, -1):
        with pytest.raises(ValueError, match="1 to 32"):
            checked.scheduler.set_budget(wrong)
    checked.update()
    checked.drain()


def test_a_sequence_of_high_rank_gets_its_blocks_though_plans_are_in_flight() -> None:
    """A plan is made while another is in flight, whose sequences cannot be preempted. A long
    prompt of high priority still runs in every second plan, among a stream of short ones that
    would take every block."""
    scheduler = _C.Scheduler(
        n_blocks=128, max_batch_size=128, max_prefill_token_num=2048, session_len=8192
    )
    plans: list[_C.StepPlan] = []
    new = count()
    first, gaps, gap = -1, [], 0
    for turn in range(1500):
        while scheduler.stats()["n_waiting"] < 2:
            scheduler.add([next(new)] * 64, max_new_tokens=400)
        if turn == 600:
            first = scheduler.add(range(6000), max_new_tokens=100, priority=100)
        while len(plans) < 2 and (plan := scheduler.schedule()) is not None:
            plans.append(plan)
            gap = 0 if first in plan.seq_ids else gap + 1
            if gaps or gap == 0:  # from its first plan on
                gaps.append(gap)
        done = plans.pop(0)
        ended = scheduler.update(done.plan_id, [5] * len(done.logits_rows))
        if (first, "length") in ended:
            break
    assert (first, "length") in ended
    assert max(gaps) <= 2
    assert scheduler.stats()["n_preempted"] > 0
