"""llama.cpp in a worker of peers.py, through llama-cpp-python's low-level interface.

Token ids in, a greedy argmax out: no tokenizer and no sampler is counted. A context lives as long
as the worker, so that a long one is filled once; the two variants are its two attentions.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any

import llama_cpp as ll
import numpy as np
from serve import Case, Worker, prompt_ids, serve

VARIANTS = {
    "flash attention": ll.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "plain attention": ll.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
CHUNK = 512  # tokens of one prefill call, as ours


@ll.llama_log_callback
def quiet(level: int, text: bytes, user_data: object) -> None:
    pass


class Context:
    """A llama_context, its batch, and how many positions of its first sequence are kept."""

    def __init__(self, model: Any, threads: int, n_ctx: int, n_seqs: int, attention: int) -> None:
        params = ll.llama_context_default_params()
        params.n_ctx, params.n_seq_max = n_ctx, n_seqs
        params.n_batch = params.n_ubatch = CHUNK
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = attention
        params.kv_unified = n_seqs == 1
        params.no_perf = True
        self.ctx = ll.llama_init_from_model(model, params)
        if not self.ctx:
            raise RuntimeError("llama_init_from_model gave no context")
        self.memory = ll.llama_get_memory(self.ctx)
        self.vocab_size = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))
        self.batch = ll.llama_batch_init(CHUNK, 0, 1)
        view = np.ctypeslib.as_array
        self.token = view(self.batch.token, (CHUNK,))
        self.pos = view(self.batch.pos, (CHUNK,))
        self.n_seq_id = view(self.batch.n_seq_id, (CHUNK,))
        self.wants = view(self.batch.logits, (CHUNK,))
        self.filled = 0

    def decode(self, tokens: Any, pos: Any, seqs: Any = 0, wants: Any = 1) -> None:
        n = len(tokens)
        self.token[:n], self.pos[:n], self.n_seq_id[:n], self.wants[:n] = tokens, pos, 1, wants
        seqs = np.broadcast_to(seqs, n)
        for i in range(n):
            self.batch.seq_id[i][0] = int(seqs[i])
        self.batch.n_tokens = n
        code = ll.llama_decode(self.ctx, self.batch)
        if code != 0:
            raise RuntimeError(f"llama_decode gave {code}")

    def logits(self, n: int) -> np.ndarray:
        """The rows of the last call that were wanted, in its order."""
        ll.llama_synchronize(self.ctx)
        address = ctypes.addressof(ll.llama_get_logits(self.ctx).contents)
        flat = (ctypes.c_float * (n * self.vocab_size)).from_address(address)
        return np.frombuffer(flat, np.float32).reshape(n, self.vocab_size)

    def prefill(self, ids: list[int], seq: int = 0, start: int = 0) -> int:
        """Returns the next token."""
        for at in range(start, len(ids), CHUNK):
            part = ids[at : at + CHUNK]
            wants = np.zeros(len(part), np.int8)
            wants[-1] = at + len(part) == len(ids)
            self.decode(part, np.arange(at, at + len(part)), seq, wants)
        return int(self.logits(1)[0].argmax())

    def forget(self, seq: int, start: int = 0) -> None:
        ll.llama_memory_seq_rm(self.memory, seq, start, -1)

    def clear(self) -> None:
        ll.llama_memory_clear(self.memory, True)
        self.filled = 0


class LlamaCpp(Worker):
    """One model, a context for each case and attention."""

    def load(self, path: str, threads: int, max_context: int, max_seqs: int) -> dict[str, Any]:
        ll.llama_log_set(quiet, ctypes.c_void_p(0))
        ll.llama_backend_init()
        self.model = ll.llama_model_load_from_file(path.encode(), ll.llama_model_default_params())
        if not self.model:
            raise RuntimeError("llama_model_load_from_file refused the file")
        self.threads = threads
        self.contexts: dict[tuple[int, int, str], Context] = {}
        return {
            "version": ll.__version__,
            "variants": list(VARIANTS),
            "info": ll.llama_print_system_info().decode(),
        }

    def context(self, variant: str, n_ctx: int, n_seqs: int) -> Context:
        n_ctx = -(-n_ctx // 256) * 256
        key = (n_ctx, n_seqs, variant)
        if key not in self.contexts:
            self.contexts[key] = Context(
                self.model, self.threads, n_ctx * n_seqs, n_seqs, VARIANTS[variant]
            )
        return self.contexts[key]

    def run(self, variant: str, case: Case) -> float:
        if case["kind"] == "prefill":
            return self.run_prefill(self.context(variant, case["n"] + 64, 1), case["n"])
        context = self.context(variant, case["context"] + case["n"] + 64, case["n_seqs"])
        if case["kind"] == "decode":
            return self.run_decode(context, case["context"], case["n"])
        return self.run_batch(context, case["n_seqs"], case["context"], case["n"])

    def run_prefill(self, context: Context, n: int) -> float:
        ids = prompt_ids(context.vocab_size, n)
        context.clear()
        context.prefill(ids[:16])
        context.clear()
        start = time.perf_counter()
        context.prefill(ids)
        return n / (time.perf_counter() - start)

    def run_decode(self, context: Context, n_context: int, n: int) -> float:
        n_context = max(n_context, 1)
        if context.filled != n_context:
            context.clear()
            context.prefill(prompt_ids(context.vocab_size, n_context))
            context.filled = n_context
        context.forget(0, n_context)
        token = [0]

        def steps(at: int, n_steps: int) -> None:
            for pos in range(at, at + n_steps):
                context.decode(token, pos)
                token[0] = int(context.logits(1)[0].argmax())

        steps(n_context, 2)
        start = time.perf_counter()
        steps(n_context + 2, n)
        return n / (time.perf_counter() - start)

    def run_batch(self, context: Context, n_seqs: int, n_context: int, n: int) -> float:
        context.clear()
        seqs = np.arange(n_seqs)
        tokens = np.array([
            context.prefill(prompt_ids(context.vocab_size, n_context + seq)[seq:], seq)
            for seq in range(n_seqs)
        ])  # fmt: skip

        def steps(at: int, n_steps: int) -> None:
            for pos in range(at, at + n_steps):
                context.decode(tokens, pos, seqs)
                tokens[:] = context.logits(n_seqs).argmax(1)

        steps(n_context, 1)
        start = time.perf_counter()
        steps(n_context + 1, n)
        return n_seqs * n / (time.perf_counter() - start)

    def cross_entropy(self, variant: str, texts: list[list[int]]) -> list[float]:
        context = self.context(variant, max(map(len, texts)) + 64, 1)
        losses = []
        for ids in texts:
            context.clear()
            rows = []
            for at in range(0, len(ids), CHUNK):
                part = ids[at : at + CHUNK]
                context.decode(part, np.arange(at, at + len(part)))
                rows.append(context.logits(len(part)).astype(np.float64))
            logits = np.concatenate(rows)[:-1]
            top = logits.max(1)
            norm = top + np.log(np.exp(logits - top[:, None]).sum(1))
            losses.append(float((norm - logits[np.arange(len(ids) - 1), ids[1:]]).mean()))
        return losses


if __name__ == "__main__":
    serve(LlamaCpp())
