"""CTranslate2 in a worker of peers.py: converted from the dequantised weights to its int8.

It has no 4-bit weights for the CPU, so it reads twice the bytes. A call generates a whole answer
and says when each token came.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from hf_weights import hf_directory, made_once
from serve import Case, Worker, prompt_ids, serve


class CTranslate2(Worker):
    """One generator. Tokens go in as the vocabulary's strings."""

    def load(self, path: str, threads: int, max_context: int, max_seqs: int) -> dict[str, Any]:
        hf = hf_directory(path)

        def convert(folder: Path) -> None:
            converter = ctranslate2.converters.TransformersConverter(str(hf))
            converter.convert(str(folder), quantization="int8", force=True)

        folder = made_once(f"{Path(path).stem}-ctranslate2", convert)
        self.generator = ctranslate2.Generator(
            str(folder), device="cpu", compute_type="int8", intra_threads=threads, inter_threads=1
        )
        self.tokens: list[str] = json.loads((folder / "vocabulary.json").read_text())
        return {"version": ctranslate2.__version__, "variants": ["its int8 of the same weights"]}

    def token_times(self, prompts: list[list[str]], n_new: int) -> list[float]:
        """Seconds from the start until every prompt has its 1st, 2nd, ... token."""
        times: dict[int, float] = {}
        start = time.perf_counter()

        def on_token(result: Any) -> bool:
            times[result.step] = time.perf_counter() - start
            return False

        self.generator.generate_batch(
            prompts,
            max_batch_size=len(prompts),
            max_length=n_new,
            min_length=n_new,
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=on_token,
        )
        if len(times) != n_new:
            raise RuntimeError(f"wanted {n_new} tokens, {len(times)} came")
        return [times[step] for step in sorted(times)]

    def prompt(self, n: int, seq: int = 0) -> list[str]:
        return [self.tokens[i] for i in prompt_ids(len(self.tokens), n, start=seq)]

    def run(self, variant: str, case: Case) -> float:
        self.token_times([self.prompt(16)], 4)  # warms up
        if case["kind"] == "prefill":
            return case["n"] / self.token_times([self.prompt(case["n"])], 1)[0]
        n_seqs, n = case["n_seqs"], case["n"]
        prompts = [self.prompt(max(case["context"], 1), seq) for seq in range(n_seqs)]
        times = self.token_times(prompts, n + 2)
        return n_seqs * n / (times[-1] - times[1])

    def cross_entropy(self, variant: str, texts: list[list[int]]) -> list[float]:
        losses = []
        for ids in texts:
            tokens = [self.tokens[i] for i in ids]
            view = self.generator.forward_batch([tokens], return_log_probs=True)
            rows = np.array(view)[0, : len(ids) - 1].astype(np.float64)
            losses.append(-float(rows[np.arange(len(rows)), ids[1:]].mean()))
        return losses


if __name__ == "__main__":
    serve(CTranslate2())
