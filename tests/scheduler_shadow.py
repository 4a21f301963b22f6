"""A scheduler checked plan by plan against an independent model of what was computed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np

from lmdeploy_c import _C


@dataclass
class Shadow:
    """What a sequence should be: its tokens, and which positions are in KV.

    texts: at each position a number for the whole text up to there, which is what KV there depends
    on. The imagined model's next token is a function of it, so equal prompts give equal answers.
    """

    tokens: list[int]
    max_len: int
    computed: int = 0  # positions in KV once the plans in flight have run
    n_pending: int = 0
    in_flight: int = 0
    texts: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    begun_with: int = 0  # positions of a session that it begins with, at most

    def token(self, position: int) -> int:
        """A token that came or that will come."""
        if position < len(self.tokens):
            return self.tokens[position]
        return self.text(position - 1) % 50000

    def text(self, position: int) -> int:
        for p in range(len(self.texts), position + 1):
            self.texts.append(hash((self.texts[-1] if p else 0, self.token(p))))
        return self.texts[position]


class Checked:
    """A scheduler, and the shadow that every plan is compared with."""

    def __init__(self, *, enable_prefix_caching: bool = True, **config: int) -> None:
        self.scheduler = _C.Scheduler(enable_prefix_caching=enable_prefix_caching, **config)
        self.shares = enable_prefix_caching
        self.kv: dict[int, list[int]] = {}  # block -> the text behind each of its positions
        self.block_len = config.get("block_len", 64)
        self.budget = config.get("max_prefill_token_num", 512)
        self.max_batch_size = config.get("max_batch_size", 64)
        self.live: dict[int, Shadow] = {}
        self.ended_in_flight: dict[int, Shadow] = {}
        self.plans: list[_C.StepPlan] = []
        self.finished: list[int] = []
        self.sessions = False
        self.n_copies = self.n_from_sessions = 0

    def add(self, n_tokens: int, max_new_tokens: int, n_texts: int = 1000) -> int:
        start = random.randrange(n_texts)
        return self.go_on([start + i for i in range(n_tokens)], max_new_tokens)

    def go_on(
        self, tokens: list[int], max_new_tokens: int, session: _C.Snapshot | None = None
    ) -> int:
        seq_id = self.scheduler.add(tokens, max_new_tokens=max_new_tokens, snapshot=session)
        shadow = Shadow(tokens, len(tokens) + max_new_tokens)
        if session is not None:
            self.sessions = True
            known = session.token_ids[: session.n_computed].tolist()
            agree = [a == b for a, b in zip(known, tokens, strict=False)]
            shadow.begun_with = min((*agree, False).index(False), len(tokens) - 1)
        self.live[seq_id] = shadow
        return seq_id

    def shadow(self, seq_id: int) -> Shadow:
        return self.live.get(seq_id) or self.ended_in_flight[seq_id]

    def schedule(self) -> _C.StepPlan | None:
        plan = self.scheduler.schedule()
        self.scheduler.check()
        if plan is not None:
            self.check_plan(plan)
            self.plans.append(plan)
        return plan

    def check_plan(self, plan: _C.StepPlan) -> None:
        for seq_id in plan.preempted:
            assert self.live[int(seq_id)].in_flight == 0, "preempted while in flight"
        n = len(plan.seq_ids)
        assert plan.input_lens.sum() == len(plan.token_ids) == len(plan.positions) <= self.budget
        assert n <= self.max_batch_size
        assert len(set(plan.slots.tolist())) == n
        assert len(set(plan.seq_ids.tolist())) == n
        decodes = (plan.input_lens == 1) & (plan.history_lens > 0)
        assert sorted(decodes, reverse=True) == list(decodes), "decodes stand first"
        for start, to in plan.copies.tolist():
            self.kv[to] = list(self.kv[start])
        self.n_copies += len(plan.copies)
        named: dict[int, set[int]] = {}
        written: dict[int, int] = {}
        row = 0
        rows: list[int] = []
        for i, seq_id in enumerate(plan.seq_ids.tolist()):
            shadow = self.live[seq_id]
            history, n_input = int(plan.history_lens[i]), int(plan.input_lens[i])
            end = history + n_input
            if seq_id in plan.preempted or history != shadow.computed:
                assert shadow.in_flight == 0, "only who comes anew falls back or finds more"
                if not self.shares:
                    most = max(shadow.computed, shadow.begun_with)
                    assert history <= most, "a restart may only fall back"
                self.n_from_sessions += min(history, shadow.begun_with)
                shadow.begun_with = 0
            blocks = plan.block_ids[plan.block_offsets[i] : plan.block_offsets[i + 1]].tolist()
            assert len(blocks) == -(-end // self.block_len)
            if history == shadow.computed and not (self.shares or self.sessions):
                kept = -(-history // self.block_len)
                assert blocks[:kept] == shadow.blocks[:kept], "computed blocks stay"
            self.run_rows(shadow, blocks, history, end)
            for block in blocks:
                named.setdefault(block, set()).add(seq_id)
            for block in blocks[history // self.block_len :]:
                written[block] = seq_id
            for p in range(history, end):
                expected = shadow.tokens[p] if p < len(shadow.tokens) else -1
                assert plan.token_ids[row] == expected
                assert plan.positions[row] == p
                row += 1
            total = len(shadow.tokens) + shadow.n_pending
            assert end <= total
            if end == total and total < shadow.max_len:
                rows.append(row - 1)
                shadow.n_pending += 1
            shadow.computed, shadow.blocks = end, blocks
            shadow.in_flight += 1
        for other in self.plans:  # what another plan in flight reads is not given away
            for i, seq_id in enumerate(other.seq_ids.tolist()):
                for block in other.block_ids[other.block_offsets[i] : other.block_offsets[i + 1]]:
                    named.setdefault(int(block), set()).add(seq_id)
        assert self.shares or self.sessions or all(len(holders) == 1 for holders in named.values())
        for block, seq_id in written.items():
            assert named[block] == {seq_id}, "a block that is written has one holder"
        assert plan.logits_rows.tolist() == rows

    def run_rows(self, shadow: Shadow, blocks: list[int], history: int, end: int) -> None:
        """Writes the step's positions, and checks that KV holds just this text up to there."""
        for p in range(history, end):
            block = self.kv.setdefault(blocks[p // self.block_len], [0] * self.block_len)
            block[p % self.block_len] = shadow.text(p)
        shadow.text(end - 1)
        for i, block_id in enumerate(blocks):
            wanted = shadow.texts[i * self.block_len : min(end, (i + 1) * self.block_len)]
            assert self.kv[block_id][: len(wanted)] == wanted, "a stale or a foreign block"

    def update(self) -> None:
        plan = self.plans.pop(0)
        starts = np.cumsum(plan.input_lens) - plan.input_lens
        tokens = []
        for row in plan.logits_rows.tolist():
            i = int(np.searchsorted(starts, row, side="right")) - 1
            seq_id = int(plan.seq_ids[i])
            shadow = self.shadow(seq_id)
            tokens.append(shadow.token(len(shadow.tokens)))
            shadow.tokens.append(tokens[-1])
            shadow.n_pending -= 1
        for seq_id in plan.seq_ids.tolist():
            shadow = self.shadow(seq_id)
            shadow.in_flight -= 1
            if shadow.in_flight == 0:
                self.ended_in_flight.pop(seq_id, None)
        for seq_id, reason in self.scheduler.update(plan.plan_id, tokens):
            assert reason == "length"
            assert len(self.live[seq_id].tokens) == self.live[seq_id].max_len
            self.end(seq_id)
        for shadow in self.live.values():
            assert len(shadow.tokens) < shadow.max_len, "who is full has ended"
        self.scheduler.check()

    def end(self, seq_id: int) -> None:
        shadow = self.live.pop(seq_id)
        if shadow.in_flight:
            self.ended_in_flight[seq_id] = shadow
        self.finished.append(seq_id)

    def cancel(self, seq_id: int) -> None:
        self.scheduler.cancel(seq_id)
        self.end(seq_id)
        self.scheduler.check()

    def drain(self, limit: int = 100_000) -> None:
        for _ in range(limit):
            if not self.live and not self.plans:
                break
            if self.schedule() is None:
                assert self.plans, "nothing runs, nothing is in flight, someone lives"
            self.update()
        assert not self.live
        stats = self.scheduler.stats()
        assert stats["n_active_blocks"] == 0
        assert stats["n_running"] == stats["n_waiting"] == 0
