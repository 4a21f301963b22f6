"""How good a model is on a text, and how far one is from another: perplexity, KL divergence.

A text is cut into windows that are computed each from its beginning, and every token of a window
but the first is predicted. Intervals are of windows, which are independent: mean +- 1.96 standard
errors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..engine.scores import cross_entropies
from ..engine.text_engine import TextEngine
from ..files.checkpoint import open_checkpoint, resolve_model
from ..messages import TurbomindEngineConfig
from ..text.chat_template import ChatTemplateConfig

WINDOW = 512  # tokens
ROWS = 128  # of logits that are compared at once


@dataclass(frozen=True)
class Mean:
    """A mean over tokens, and half the width of its 95 % interval (NaN for one window)."""

    value: float
    half_width: float

    def __format__(self, form: str) -> str:
        """Both numbers in the form, ".4f" where there is none; the value alone for one window."""
        form = form or ".4f"
        if math.isnan(self.half_width):
            return format(self.value, form)
        return f"{self.value:{form}} ± {self.half_width:{form.lstrip('+')}}"

    def __str__(self) -> str:
        return format(self)


@dataclass(frozen=True)
class TextScore:
    """A model on a text: the cross-entropy of its tokens in nats, and exp of that."""

    cross_entropy: Mean
    n_tokens: int  # predicted ones

    @property
    def perplexity(self) -> float:
        return math.exp(self.cross_entropy.value)

    def __str__(self) -> str:
        mean, interval = self.cross_entropy, ""
        if not math.isnan(mean.half_width):
            low, high = (math.exp(mean.value + sign * mean.half_width) for sign in (-1, 1))
            interval = f" ({low:.3f} to {high:.3f})"
        return (
            f"perplexity {self.perplexity:.3f}{interval}, cross-entropy {mean} nats, "
            f"{self.n_tokens} tokens"
        )


@dataclass(frozen=True)
class Comparison:
    """A model beside a reference on the same text.

    kl: KL(reference || model) a token, in nats. same_top: how often both think the same token the
    likeliest. reference, model: their own scores. rise: how many nats the model's cross-entropy is
    above the reference's; of the same tokens, so its interval is far narrower than theirs.
    """

    kl: Mean
    same_top: Mean
    reference: TextScore
    model: TextScore
    rise: Mean

    def __str__(self) -> str:
        before = self.reference.cross_entropy.value
        rise = Mean(100 * self.rise.value / before, 100 * self.rise.half_width / before)
        same = Mean(100 * self.same_top.value, 100 * self.same_top.half_width)
        return (
            f"KL {self.kl} nats, same likeliest token {same:.2f} %\n"
            f"reference: {self.reference}\nmodel:     {self.model} "
            f"({rise:+.2f} % cross-entropy)"
        )


def _mean(windows: Sequence[NDArray[np.float64]]) -> Mean:
    n, value = sum(map(len, windows)), sum(float(w.sum()) for w in windows)
    value /= n
    if len(windows) < 2:
        return Mean(value, math.nan)
    # Of a ratio of sums: the windows' residuals.
    residuals = [float((w - value).sum()) for w in windows]
    variance = sum(r * r for r in residuals) * len(windows) / (len(windows) - 1)
    return Mean(value, 1.96 * math.sqrt(variance) / n)


def _score(windows: Sequence[NDArray[np.float64]]) -> TextScore:
    return TextScore(_mean(windows), sum(map(len, windows)))


def _cut(ids: Sequence[int], window: int) -> list[list[int]]:
    """Windows of tokens; a last one of one token predicts nothing and is left out."""
    if window < 2:
        raise ValueError(f"window must be at least 2 tokens, not {window}")
    cut = [list(ids[i : i + window]) for i in range(0, len(ids), window)]
    cut = [part for part in cut if len(part) > 1]
    if not cut:
        raise ValueError(f"the text has {len(ids)} tokens; at least 2 are needed")
    return cut


def _lowered(
    window: int, models: Sequence[str | Path | None], config: TurbomindEngineConfig | None
) -> int:
    """The window, or the context of a model that has a smaller one, unless a config says more."""
    if config is not None:
        return window
    found = (open_checkpoint(resolve_model(model)).config["max_position"] for model in models)
    return min([window, *map(int, found)])


def _open(
    model: str | Path | None, window: int, config: TurbomindEngineConfig | None
) -> closing[TextEngine]:
    config = config or TurbomindEngineConfig(session_len=window, max_batch_size=1)
    return closing(TextEngine(model, config, ChatTemplateConfig("base")))


def _logits(engine: TextEngine, ids: Sequence[int]) -> NDArray[np.float32]:
    """The logits behind each token: [len(ids), vocab_size]."""
    request = engine.core.submit(ids, max_new_tokens=0, output_logits="all")
    rows = []
    while True:
        output = request.read()
        if output is None:
            continue
        if output.logits is not None:
            rows.append(output.logits)
        if output.finish_reason == "error":
            raise RuntimeError(output.error_message)
        if output.finish_reason is not None:
            return np.concatenate(rows)


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    result: NDArray[np.float64] = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return result


def _surprise(log_p: NDArray[np.float64], ids: Sequence[int]) -> NDArray[np.float64]:
    """-log p of tokens, whose predictions are the rows."""
    return -log_p[np.arange(len(ids)), ids]


def perplexity(
    model: str | Path | None,
    text: str,
    *,
    window: int = WINDOW,
    config: TurbomindEngineConfig | None = None,
) -> TextScore:
    """A model's perplexity on a text. window: tokens that are computed together; without a config,
    at most the model's context. config: of the engine. ValueError for a text of fewer than 2
    tokens."""
    window = _lowered(window, [model], config)
    with _open(model, window, config) as engine:
        cut = _cut(engine.tokenizer.encode(text), window)
        scores = cross_entropies(engine, cut)
        # One window after another is a mean already; its tokens stand for it.
        return _score([np.full(len(w) - 1, s) for w, s in zip(cut, scores, strict=True)])


@dataclass(frozen=True)
class _Window:
    """What two models think of a window's tokens, a number for each."""

    kl: NDArray[np.float64]
    same_top: NDArray[np.float64]
    surprise: tuple[NDArray[np.float64], NDArray[np.float64]]


def _compare(a: TextEngine, b: TextEngine, ids: Sequence[int]) -> _Window:
    logits = [_logits(engine, ids)[:-1] for engine in (a, b)]
    kl, surprises = [], []
    for at in range(0, len(ids) - 1, ROWS):
        p, q = (_log_softmax(x[at : at + ROWS]) for x in logits)
        kl.append((np.exp(p) * (p - q)).sum(-1))
        next_ids = ids[at + 1 : at + 1 + len(p)]
        surprises.append([_surprise(p, next_ids), _surprise(q, next_ids)])
    same = logits[0].argmax(-1) == logits[1].argmax(-1)
    of_a, of_b = (np.concatenate(parts) for parts in zip(*surprises, strict=True))
    return _Window(np.concatenate(kl), same.astype(np.float64), (of_a, of_b))


def divergence(
    reference: str | Path | None,
    model: str | Path | None,
    text: str,
    *,
    window: int = WINDOW,
    config: TurbomindEngineConfig | None = None,
) -> Comparison:
    """How far a model is from a reference on a text, token by token.

    window: tokens that are computed together; without a config, at most the models' context.
    config: of both engines. ValueError where their tokenizers differ, or the text has fewer than 2
    tokens.
    """
    window = _lowered(window, [reference, model], config)
    with _open(reference, window, config) as a, _open(model, window, config) as b:
        ids = a.tokenizer.encode(text)
        if ids != b.tokenizer.encode(text) or a.vocab_size != b.vocab_size:
            raise ValueError("the two models do not have the same tokens for this text")
        return _comparison([_compare(a, b, tokens) for tokens in _cut(ids, window)])


def compare(
    reference: str | Path | None,
    model: str | Path | None,
    texts: Mapping[str, Sequence[Sequence[int]]],
    config: TurbomindEngineConfig,
) -> dict[str, Comparison]:
    """How far a model is from a reference that has the same tokens: on each text, and as "all" on
    all of them. texts: by their names, windows of 2 tokens to config.session_len."""
    with _open(reference, 0, config) as a, _open(model, 0, config) as b:
        found = {k: [_compare(a, b, ids) for ids in windows] for k, windows in texts.items()}
    of_all = [window for windows in found.values() for window in windows]
    return {name: _comparison(windows) for name, windows in [*found.items(), ("all", of_all)]}


def _comparison(windows: Sequence[_Window]) -> Comparison:
    return Comparison(
        kl=_mean([w.kl for w in windows]),
        same_top=_mean([w.same_top for w in windows]),
        reference=_score([w.surprise[0] for w in windows]),
        model=_score([w.surprise[1] for w in windows]),
        rise=_mean([w.surprise[1] - w.surprise[0] for w in windows]),
    )
