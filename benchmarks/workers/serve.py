"""A worker's side of peers.py: one engine in a process of its own, asked by lines of JSON.

Runs in the engine's own environment, so it knows nothing but the standard library. The parent
stops the whole process (SIGSTOP) while others run: an idle engine cannot spin.

    {"op": "load", "path", "threads", "max_context", "max_seqs"} -> {"version", "variants"}
    {"op": "run", "variant", "case": {"kind", "context", "n", "n_seqs"}} -> {"tok_s"}
    {"op": "cross_entropy", "variant", "texts": [[id]]} -> {"losses": [float]}

Any may answer {"error": reason}.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

Case = dict[str, Any]


def prompt_ids(vocab_size: int, n: int, start: int = 0) -> list[int]:
    """The same arbitrary tokens for every engine."""
    return [(i * 7919 + 13) % (vocab_size - 3) + 3 for i in range(start, start + n)]


class Worker:
    """What an engine has to say. A case's kind is one of

    prefill: `n` tokens at once, up to the first new token; decode: `n` tokens of one sequence, one
    by one, after `context` tokens; batch: the same of `n_seqs` sequences in step.
    """

    def load(self, path: str, threads: int, max_context: int, max_seqs: int) -> dict[str, Any]:
        raise NotImplementedError

    def run(self, variant: str, case: Case) -> float:
        """Tokens a second."""
        raise NotImplementedError

    def cross_entropy(self, variant: str, texts: list[list[int]]) -> list[float]:
        raise NotImplementedError("its API gives no logits of a prompt")


def peers_answer(worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
    op = request.pop("op")
    if op == "load":
        return worker.load(**request)
    if op == "run":
        return {"tok_s": worker.run(**request)}
    if op == "cross_entropy":
        return {"losses": worker.cross_entropy(**request)}
    raise ValueError(f"unknown op {op!r}")


def serve(
    worker: Any, answer: Callable[[Any, dict[str, Any]], dict[str, Any]] = peers_answer
) -> None:
    """Answers on the real stdout; whatever a library prints goes to stderr."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            reply = answer(worker, json.loads(line))
        except Exception as error:
            text = str(error).strip() or type(error).__name__
            reply = {"error": f"{type(error).__name__}: {text}"[:300]}
        print(json.dumps(reply), file=replies, flush=True)
