"""One side of before.py: times this installation's engine, a case at a time, as lines of JSON.

Says only what every commit since 2dae4de understands, so that the same file drives both sides.
"""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Any

from lmdeploy_c.checkpoint import open_checkpoint, resolve_model

from lmdeploy_c import _C

LONG, SHORT, N_SEQUENCES = 4096, 8, 16


class Side:
    """An engine on the embedded model, and how long each case takes it, in seconds."""

    def __init__(self) -> None:
        self.checkpoint = open_checkpoint(resolve_model(None))
        self.model = self.load()
        rng = random.Random(1)
        self.prompts = [[rng.randrange(1000, 40000) for _ in range(LONG)] for _ in range(2)]
        self.engine = self.start(enable_prefix_caching=False)
        self.caching = self.start(enable_prefix_caching=True)

    def load(self) -> _C.Model:
        return _C.Model(self.checkpoint.config, self.checkpoint.source)

    def start(self, **options: Any) -> _C.Engine:
        return _C.Engine(self.model, session_len=LONG + 128, n_blocks=160, **options)

    def tokens(self, request: _C.Request) -> list[float]:
        """When each token came."""
        times: list[float] = []
        while True:
            output = request.read()
            if output is None:
                continue
            times += [time.perf_counter()] * len(output.token_ids)
            if output.finish_reason is not None:
                return times

    def prefill(self) -> float:
        start = time.perf_counter()
        self.tokens(self.engine.submit(self.prompts[0][:512], max_new_tokens=1))
        return time.perf_counter() - start

    def decode(self) -> float:
        times = self.tokens(self.engine.submit(self.prompts[0][:SHORT], max_new_tokens=96))
        return times[-1] - times[0]

    def decode_4k(self) -> float:
        """The context comes from the prefix cache but for the first time."""
        times = self.tokens(self.caching.submit(self.prompts[1], max_new_tokens=48))
        return times[-1] - times[0]

    def sequences(self) -> float:
        start = time.perf_counter()
        prompts = [self.prompts[0][i : i + SHORT] for i in range(N_SEQUENCES)]
        for request in [self.engine.submit(ids, max_new_tokens=32) for ids in prompts]:
            self.tokens(request)
        return time.perf_counter() - start

    def load_model(self) -> float:
        start = time.perf_counter()
        self.load()
        return time.perf_counter() - start


def main() -> None:
    side = Side()
    cases = {
        "prefill": side.prefill,
        "decode": side.decode,
        "decode_4k": side.decode_4k,
        "sequences": side.sequences,
        "load": side.load_model,
    }
    for line in sys.stdin:
        seconds = cases[json.loads(line)["case"]]()
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
