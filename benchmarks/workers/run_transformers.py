"""transformers in a worker of peers.py: the weights dequantised, eager, in fp32 and in bf16."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import transformers
from serve import Case, Worker, prompt_ids, serve

DTYPES = {"dequantised to fp32": torch.float32, "dequantised to bf16": torch.bfloat16}


class Transformers(Worker):
    """One model for each dtype, made when first wanted; the longest context is kept filled."""

    def load(self, path: str, threads: int, max_context: int, max_seqs: int) -> dict[str, Any]:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        gguf = Path(path)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        self.models = {"dequantised to fp32": model.eval()}
        self.kept: dict[str, tuple[int, Any, torch.Tensor]] = {}
        self.vocab_size = model.config.vocab_size
        return {"version": transformers.__version__, "variants": list(DTYPES)}

    def model(self, variant: str) -> Any:
        if variant not in self.models:
            plain = self.models["dequantised to fp32"]
            copy = type(plain)._from_config(plain.config, dtype=DTYPES[variant])
            copy.load_state_dict(plain.state_dict())
            self.models[variant] = copy.eval()
        return self.models[variant]

    def forward(self, model: Any, ids: torch.Tensor, cache: Any = None) -> tuple[torch.Tensor, Any]:
        """The next tokens [n_seqs, 1], and the cache."""
        out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1:].argmax(-1), out.past_key_values

    def prompts(self, case: Case) -> torch.Tensor:
        n = max(case["context"], 1)
        rows = [prompt_ids(self.vocab_size, n, start=seq) for seq in range(case["n_seqs"])]
        return torch.tensor(rows)

    def fill(self, variant: str, case: Case) -> tuple[torch.Tensor, Any]:
        """A cache with the case's context; a long one is kept and cut back."""
        model, n = self.model(variant), case["context"]
        if n <= 512:
            return self.forward(model, self.prompts(case))
        if variant not in self.kept or self.kept[variant][0] != n:
            token, cache = None, None
            for part in self.prompts(case).split(512, dim=1):
                token, cache = self.forward(model, part, cache)
            self.kept[variant] = (n, cache, token)
        _, cache, token = self.kept[variant]
        if (extra := cache.get_seq_length() - n) > 0:
            cache.crop(-extra)
        return token, cache

    def run(self, variant: str, case: Case) -> float:
        model = self.model(variant)
        self.forward(model, torch.tensor([[1, 2, 3, 4]]))  # warms up
        if case["kind"] == "prefill":
            ids = torch.tensor([prompt_ids(self.vocab_size, case["n"])])
            start = time.perf_counter()
            self.forward(model, ids)
            return case["n"] / (time.perf_counter() - start)
        token, cache = self.fill(variant, case)
        token, cache = self.forward(model, token, cache)
        start = time.perf_counter()
        for _ in range(case["n"]):
            token, cache = self.forward(model, token, cache)
        return case["n_seqs"] * case["n"] / (time.perf_counter() - start)

    def cross_entropy(self, variant: str, texts: list[list[int]]) -> list[float]:
        model, losses = self.model(variant), []
        for text in texts:
            ids = torch.tensor(text)
            logits = model(input_ids=ids[None]).logits[0, :-1].double()
            losses.append(float(torch.nn.functional.cross_entropy(logits, ids[1:])))
        return losses


if __name__ == "__main__":
    serve(Transformers())
