"""ONNX Runtime GenAI in a worker of peers.py: its model builder's int4 of the dequantised weights.

The builder rounds the weights afresh (symmetric, groups of 32, the output too): the same shape, not
the same model, which the cross-entropy shows.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as genai
from hf_weights import hf_directory, made_once
from serve import Case, Worker, prompt_ids, serve

BUILDER = [sys.executable, "-m", "onnxruntime_genai.models.builder"]


class OnnxRuntime(Worker):
    """One model; a generator for each run."""

    def load(self, path: str, threads: int, max_context: int, max_seqs: int) -> dict[str, Any]:
        hf = hf_directory(path)

        def build(folder: Path) -> None:
            where = ["-i", str(hf), "-o", str(folder), "-c", str(folder / "cache")]
            what = ["-p", "int4", "-e", "cpu", "--extra_options", "hf_token=false"]
            subprocess.run([*BUILDER, *where, *what], check=True, stdout=sys.stderr)

        folder = made_once(f"{Path(path).stem}-onnxruntime", build)
        config = genai.Config(str(folder))
        overlay = {"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}
        config.overlay(json.dumps(overlay))
        self.model = genai.Model(config)
        details = json.loads((folder / "genai_config.json").read_text())
        self.vocab_size = details["model"]["vocab_size"]
        return {"version": genai.__version__, "variants": ["its own int4 rounding"]}

    def generator(self, rows: list[list[int]], n_new: int) -> Any:
        """Has taken the rows in."""
        params = genai.GeneratorParams(self.model)
        n = len(rows[0]) + n_new
        params.set_search_options(batch_size=len(rows), max_length=n, min_length=n, do_sample=False)
        generator = genai.Generator(self.model, params)
        generator.append_tokens(np.array(rows, np.int32))
        return generator

    def run(self, variant: str, case: Case) -> float:
        self.generator([prompt_ids(self.vocab_size, 16)], 4).generate_next_token()  # warms up
        if case["kind"] == "prefill":
            ids = prompt_ids(self.vocab_size, case["n"])
            start = time.perf_counter()
            self.generator([ids], 1).generate_next_token()
            return case["n"] / (time.perf_counter() - start)
        n_seqs, n = case["n_seqs"], case["n"]
        context = max(case["context"], 1)
        rows = [prompt_ids(self.vocab_size, context, start=seq) for seq in range(n_seqs)]
        generator = self.generator(rows, n + 8)
        generator.generate_next_token()
        generator.generate_next_token()
        start = time.perf_counter()
        for _ in range(n):
            generator.generate_next_token()
        return n_seqs * n / (time.perf_counter() - start)

    def cross_entropy(self, variant: str, texts: list[list[int]]) -> list[float]:
        losses = []
        for ids in texts:
            logits = np.array(self.generator([ids], 1).get_output("logits"), np.float64)[0]
            if len(logits) != len(ids):
                raise NotImplementedError("its API gives no logits of a prompt")
            top = logits.max(1)
            norm = top + np.log(np.exp(logits - top[:, None]).sum(1))
            picked = logits[np.arange(len(ids) - 1), ids[1:]]
            losses.append(float((norm[:-1] - picked).mean()))
        return losses


if __name__ == "__main__":
    serve(OnnxRuntime())
