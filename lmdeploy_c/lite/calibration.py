"""What each linear of a model reads of a text: by it the quantizer weighs errors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..engine.loading import make_tokenizer
from ..messages import GenerationConfig, TurbomindEngineConfig
from ..pipeline import pipeline
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


#: What a model's own samples begin with: prose, lists and code, in a few languages.
STARTS = (
    "The", "In", "A", "def ", "What", "How", "1.", "- ", "I", "import ", "Once", "#", "To", "We",
    "class ", "It", "When", "<", "If", "Le", "Der", "El", "On", "x = ",
)  # fmt: skip
ROOM = 16  # tokens of a window that its beginning may take


def windows_of_text(source: Source, text: str, seqlen: int, samples: int) -> list[list[int]]:
    """At most `samples` windows of `seqlen` tokens, spread over a text. ValueError."""
    if not text.strip():
        raise ValueError("the calibration text is empty")
    ids = make_tokenizer(source.checkpoint).encode(text)
    windows = [ids[i : i + seqlen] for i in range(0, len(ids), seqlen)]
    windows = [w for w in windows if len(w) == seqlen] or [ids]
    step = max(len(windows) / samples, 1.0)
    return [windows[int(i * step)] for i in range(min(samples, len(windows)))]


def own_windows(
    source: Source, seqlen: int, samples: int, num_threads: int | None
) -> list[list[int]]:
    """What the model itself says: samples of its whole distribution, the same every time."""
    config = TurbomindEngineConfig(
        session_len=seqlen, max_batch_size=min(samples, 32), num_threads=num_threads
    )
    starts = [STARTS[i % len(STARTS)] for i in range(samples)]
    settings = [
        GenerationConfig(max_new_tokens=max(seqlen - ROOM, 1), do_sample=True, temperature=1.0,
                         top_p=1.0, top_k=0, random_seed=i, ignore_eos=True)
        for i in range(samples)
    ]  # fmt: skip
    with pipeline(source.path, config) as pipe:
        answers = pipe(starts, gen_config=settings, do_preprocess=False)
        for answer in answers:
            answer.raise_for_error()
        return [
            [*pipe.tokenizer.encode(start), *answer.token_ids]
            for start, answer in zip(starts, answers, strict=True)
        ]


class Calibration:
    """Statistics of a model's activations on windows of tokens.

    n_tokens: of all windows. Raises what loading a model raises.
    """

    def __init__(
        self, source: Source, windows: Sequence[Sequence[int]], num_threads: int | None = None
    ) -> None:
        from .._C import Model, column_squares

        found = source.checkpoint
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


def calibrate(
    source: Source,
    dataset: str | Path,
    *,
    samples: int | None = None,
    seqlen: int = 512,
    num_threads: int | None = None,
) -> Calibration:
    """Calibrates by a data set: "self", the model's own samples, or a text file of this machine.

    samples: windows, at most; None: 24 of the model's own, 128 of a file. seqlen: tokens of a
    window, lowered to the model's context. FileNotFoundError, ValueError.
    """
    is_own = dataset == "self"
    samples = samples if samples is not None else 24 if is_own else 128
    if seqlen < 1 or samples < 1:
        raise ValueError(
            f"calib_seqlen and calib_samples must be at least 1, not {seqlen} and {samples}"
        )
    seqlen = min(seqlen, source.checkpoint.config["max_position"])
    if is_own:
        windows = own_windows(source, seqlen, samples, num_threads)
    else:
        windows = windows_of_text(source, _read(Path(dataset)), seqlen, samples)
    return Calibration(source, windows, num_threads)


def _read(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(path)!r} is no file: calib_dataset is 'self', the model's own samples, or a "
            "text file on this machine; data sets are not downloaded"
        )
    return path.read_text(encoding="utf-8", errors="replace")
