"""The texts that a model reads so that the quantizer knows what its linears read."""

from __future__ import annotations

from pathlib import Path

from ..engine.loading import make_tokenizer
from ..messages import GenerationConfig, TurbomindEngineConfig
from ..pipeline import pipeline
from .source import Source

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


def windows_of(
    source: Source,
    dataset: str | Path,
    *,
    samples: int | None = None,
    seqlen: int = 512,
    num_threads: int | None = None,
) -> list[list[int]]:
    """Tokens of a data set: "self", the model's own samples, or a text file of this machine.

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
        return own_windows(source, seqlen, samples, num_threads)
    return windows_of_text(source, _read(Path(dataset)), seqlen, samples)


def _read(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(path)!r} is no file: calib_dataset is 'self', the model's own samples, or a "
            "text file on this machine; data sets are not downloaded"
        )
    return path.read_text(encoding="utf-8", errors="replace")
