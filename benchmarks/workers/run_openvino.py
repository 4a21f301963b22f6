"""OpenVINO GenAI in a worker of peers.py: it reads the GGUF itself; its batching, stepped.

Its defaults for this CPU stand (they choose the arithmetic and an 8-bit KV cache); only its prefix
cache is off, since every round has the same tokens, and a step takes 512 tokens as ours does.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from serve import Case, Worker, prompt_ids, serve


def taken(handle: Any) -> int:
    """Takes what a request has given since the last time, and counts its tokens."""
    n = 0
    while handle.can_read():
        n += sum(len(output.generated_ids) for output in handle.read().values())
    return n


class OpenVino(Worker):
    """One pipeline; requests come one after another."""

    def load(self, path: str, threads: int, max_context: int, max_seqs: int) -> dict[str, Any]:
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = 512
        self.pipe = genai.ContinuousBatchingPipeline(
            path, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads}
        )
        self.vocab_size = len(self.pipe.get_tokenizer().get_vocab())
        self.n_requests = 0
        return {"version": version("openvino-genai"), "variants": ["its defaults"]}

    def submit(self, ids: list[int], n_new: int, **options: Any) -> Any:
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = n_new, True, False
        for name, value in options.items():
            setattr(config, name, value)
        self.n_requests += 1
        return self.pipe.add_request(self.n_requests, ov.Tensor(np.array([ids], np.int64)), config)

    def finish(self, *handles: Any) -> None:
        """Steps to the end. A request whose handle is dropped is dropped too: keep them."""
        while self.pipe.has_non_finished_requests():
            self.pipe.step()

    def run(self, variant: str, case: Case) -> float:
        self.finish(self.submit(prompt_ids(self.vocab_size, 16), 4))  # warms up
        if case["kind"] == "prefill":
            ids = prompt_ids(self.vocab_size, case["n"])
            start = time.perf_counter()
            handle = self.submit(ids, 1)
            self.finish(handle)
            if len(handle.read_all()[0].generated_ids) != 1:
                raise RuntimeError("no token came out")
            return case["n"] / (time.perf_counter() - start)
        handles = [
            self.submit(
                prompt_ids(self.vocab_size, max(case["context"], 1), start=seq), case["n"] + 32
            )
            for seq in range(case["n_seqs"])
        ]
        while not all(handle.can_read() for handle in handles):
            self.pipe.step()
        self.pipe.step()
        for handle in handles:
            taken(handle)
        start = time.perf_counter()
        for _ in range(case["n"]):
            self.pipe.step()
        seconds = time.perf_counter() - start
        for handle in handles:
            if taken(handle) < case["n"]:
                raise RuntimeError("a sequence stood still")
            handle.cancel()
        self.finish(*handles)
        return case["n_seqs"] * case["n"] / seconds

    def cross_entropy(self, variant: str, texts: list[list[int]]) -> list[float]:
        losses = []
        for ids in texts:
            handle = self.submit(ids, 1, echo=True, logprobs=1)
            self.finish(handle)
            # The first token has no probability; the last one was generated.
            logprobs = handle.read_all()[0].generated_log_probs[1 : len(ids)]
            losses.append(-float(np.mean(np.array(logprobs, np.float64))))
        return losses


if __name__ == "__main__":
    serve(OpenVino())
