"""lmdeploy_c in a worker of peers.py, and the measurements that engine.py makes.

Through `_C.Engine`: scheduling, sampling and the wake-up of the reader are counted.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from serve import Case, Worker, prompt_ids, serve

from lmdeploy_c import _C, __version__
from lmdeploy_c.files.checkpoint import open_checkpoint, resolve_model

W4A16, FAST = "W4A16", "fast activations"


def read_to_end(request: _C.Request) -> _C.Output:
    while (output := request.read()) is None or output.finish_reason is None:
        pass
    if output.finish_reason == "error":
        raise RuntimeError(output.error_message)
    return output


def read_one(request: _C.Request) -> _C.Output:
    """The next output, which must not be the last."""
    while (output := request.read()) is None:
        pass
    if output.finish_reason is not None:
        raise RuntimeError(output.error_message or "the request ended before it was measured")
    return output


class Ours(Worker):
    """One model, an engine for each way to treat activations."""

    def load(
        self, path: str | None, threads: int | None, max_context: int, max_seqs: int
    ) -> dict[str, Any]:
        checkpoint = open_checkpoint(resolve_model(path and Path(path)))
        self.model = _C.Model(checkpoint.config, checkpoint.source, num_threads=threads)
        self.vocab_size = self.model.config["vocab_size"]
        self.sizes = (max_context, max_seqs)
        self.engines: dict[str, _C.Engine] = {}
        return {"version": __version__, "variants": [W4A16, FAST]}

    def engine(self, variant: str) -> _C.Engine:
        """Made when first wanted, and kept."""
        if variant not in self.engines:
            max_context, max_seqs = self.sizes
            # The same prompt comes round after round, and is to be computed each time; the prompts
            # of a batch come in before the first answer has gone far, however slow the machine.
            self.engines[variant] = _C.Engine(
                self.model,
                fast_activations=variant == FAST,
                enable_prefix_caching=False,
                target_step_ms=0.0,
                session_len=min(max_context, self.model.config["max_position"]),
                n_blocks=-(-max(max_context, max_seqs * 192) // 64) + max_seqs + 8,
                max_batch_size=max_seqs,
            )
            self.warm_up(self.engines[variant])
        return self.engines[variant]

    def warm_up(self, engine: _C.Engine) -> None:
        read_to_end(engine.submit(prompt_ids(self.vocab_size, 16), max_new_tokens=4))

    def close(self) -> None:
        for engine in self.engines.values():
            engine.close()

    def run(self, variant: str, case: Case) -> float:
        engine = self.engine(variant)
        self.warm_up(engine)
        if case["kind"] == "prefill":
            return self.prefill(engine, case["n"])
        n_seqs = case["n_seqs"]
        # A step that prefills is over before the clock starts: every sequence has its first token.
        requests = [
            engine.submit(
                prompt_ids(self.vocab_size, max(case["context"], 1), start=seq),
                max_new_tokens=case["n"] + 32,  # more than is measured: nobody leaves early
            )
            for seq in range(n_seqs)
        ]
        for request in requests:
            read_one(request)
        return self.decode(engine, requests[0], case["n"])

    def prefill(self, engine: _C.Engine, n: int) -> float:
        ids = prompt_ids(self.vocab_size, n)
        start = time.perf_counter()
        read_to_end(engine.submit(ids, max_new_tokens=1))
        return n / (time.perf_counter() - start)

    def decode(self, engine: _C.Engine, first: _C.Request, n: int) -> float:
        """The rate over n steps from now, between two returns of the oldest request's reader."""
        read_one(first)
        start, before = time.perf_counter(), engine.stats()["n_tokens_generated"]
        steps = 0
        while steps < n - 1:
            steps += len(read_one(first).token_ids)
        seconds = time.perf_counter() - start
        return (engine.stats()["n_tokens_generated"] - before) / seconds

    def cross_entropy(self, variant: str, texts: list[list[int]]) -> list[float]:
        engine = self.engine(variant)
        outputs = [
            read_to_end(engine.submit(ids, max_new_tokens=0, return_ppl=True)) for ids in texts
        ]
        return [float(output.ppl or float("nan")) for output in outputs]


if __name__ == "__main__":
    serve(Ours())
