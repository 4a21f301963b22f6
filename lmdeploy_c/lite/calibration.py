"""What each linear of a model reads of a text: by it the quantizer weighs errors."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..engine.loading import make_tokenizer
from ..progress import counting_bar
from .source import Source

#: What a linear's module is called in its layer -> which of `_C.column_squares` it reads.
_READS = {
    "qkv": re.compile(r"self_attn\.[qkv]_proj|attention\.wqkv"),
    "o": re.compile(r"self_attn\.o_proj|attention\.wo"),
    "gate_up": re.compile(r"mlp\.(gate|up)_proj|feed_forward\.w[13]"),
    "down": re.compile(r"mlp\.down_proj|feed_forward\.w2"),
}
#: Of the mean of a linear's columns: none counts less, however seldom it was used.
LEAST = 1e-3


def _windows(ids: list[int], seqlen: int, samples: int) -> list[list[int]]:
    """At most `samples` windows of `seqlen` tokens, spread over the text."""
    windows = [ids[i : i + seqlen] for i in range(0, len(ids), seqlen)]
    windows = [w for w in windows if len(w) == seqlen] or [ids]
    step = max(len(windows) / samples, 1.0)
    return [windows[int(i * step)] for i in range(min(samples, len(windows)))]


class Calibration:
    """Statistics of a model's activations on a text.

    n_tokens: of the text that were used. Raises what loading a model raises, and ValueError for an
    empty text or numbers below 1.
    """

    def __init__(
        self,
        source: Source,
        text: str,
        *,
        seqlen: int = 512,
        samples: int = 128,
        num_threads: int | None = None,
    ) -> None:
        from .._C import Model, column_squares

        if seqlen < 1 or samples < 1:
            given = f"{seqlen} and {samples}"
            raise ValueError(f"calib_seqlen and calib_samples must be at least 1, not {given}")
        if not text.strip():
            raise ValueError("the calibration text is empty")
        found = source.checkpoint
        ids = make_tokenizer(found).encode(text)
        windows = _windows(ids, min(seqlen, found.config["max_position"]), samples)
        self.n_tokens = sum(map(len, windows))
        model = Model(found.config, found.source, num_threads=num_threads)
        sums: list[NDArray[np.float64]] = []
        with counting_bar("calibrating", len(windows), "window") as advance:
            for window in windows:
                new = column_squares(model, np.array(window, np.int32))
                sums = [a + b for a, b in zip(sums, new, strict=True)] if sums else list(new)
                advance()
        self._squares = dict(zip(_READS, sums, strict=True))

    def importance(self, name: str) -> NDArray[np.float32]:
        """What the squared error of each column of a linear's weight counts: [n_in]."""
        layer = int(name.split(".layers.")[1].split(".")[0])
        read = next(read for read, names in _READS.items() if names.search(name))
        squares = self._squares[read][layer] / self.n_tokens
        counts: NDArray[np.float32] = np.maximum(squares, LEAST * squares.mean()).astype(np.float32)
        return counts


def read_text(path: str | Path) -> str:
    """A calibration text. FileNotFoundError says that data sets are not downloaded."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(path)!r} is no file: calib_dataset takes a text file on this machine; data sets "
            "are not downloaded"
        )
    return path.read_text(encoding="utf-8", errors="replace")
