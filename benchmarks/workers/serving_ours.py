"""lmdeploy_c under the load of serving.py, in process: through `_C.Engine` with its defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drive import Target, answer
from serve import serve

from lmdeploy_c import _C, __version__
from lmdeploy_c.files.checkpoint import open_checkpoint, resolve_model

BLOCK_LEN = 64
SLOTS = 64  # those of a pipeline


class Answer:
    """A request as the load sees it."""

    def __init__(self, request: _C.Request) -> None:
        self.request = request

    def fileno(self) -> int:
        return self.request.fileno()

    def read(self) -> tuple[int, bool]:
        output = self.request.read(0)
        if output is None:
            return 0, False
        if output.finish_reason == "error":
            raise RuntimeError(output.error_message)
        return len(output.token_ids), output.finish_reason is not None

    def cancel(self) -> None:
        self.request.cancel()
        while not self.request.done:
            self.request.read()


class Ours(Target):
    def load(
        self, path: str | None, threads: int, slots: int, context: int, fast: bool
    ) -> dict[str, Any]:
        """context: most tokens of one sequence. slots: as many may have them all."""
        checkpoint = open_checkpoint(resolve_model(path and Path(path)))
        model = _C.Model(checkpoint.config, checkpoint.source, num_threads=threads)
        self.vocab_size = model.config["vocab_size"]
        self.engine = _C.Engine(
            model,
            session_len=context,
            n_blocks=slots * -(-context // BLOCK_LEN) + SLOTS,
            max_batch_size=max(SLOTS, slots),
            fast_activations=fast,
        )
        return {"version": __version__, "pids": []}

    def encode(self, ids: list[int], n_output: int) -> tuple[list[int], int]:
        return ids, n_output

    def submit(self, payload: tuple[list[int], int]) -> Answer:
        ids, n_output = payload
        return Answer(self.engine.submit(ids, max_new_tokens=n_output))


if __name__ == "__main__":
    serve(Ours(), answer)
