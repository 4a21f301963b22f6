"""Matrices to codes: the grids against a search written down in NumPy, and refusals by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lmdeploy_c import _C

FORMS = [(4, False), (4, True), (3, False), (8, False), (8, True), (2, True)]


def matrix(seed: int = 0, n_out: int = 33, n_in: int = 256) -> NDArray[np.float32]:
    """Weights like a model's: columns of different sizes, and outliers."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(n_out, n_in)) * rng.uniform(0.2, 3.0, n_in) * 0.02
    w[rng.random(w.shape) < 0.01] *= 6
    return w.astype(np.float32)


def values(codes: Any, scales: Any, zeros: Any) -> NDArray[np.float64]:
    group = codes.shape[1] // scales.shape[1]
    scales, zeros = (x.astype(np.float64).repeat(group, 1) for x in (scales, zeros))
    result: NDArray[np.float64] = scales * (codes.astype(np.float64) - zeros)
    return result


def errors(w: Any, h: Any, got: Any, group: int) -> NDArray[np.float64]:
    """The weighted squared error of each group."""
    off: NDArray[np.float64] = h * (values(*got) - w) ** 2
    return off.reshape(len(w), -1, group).sum(-1)


def nearest(w: Any, scale: Any, zero: Any, bits: int) -> NDArray[np.float64]:
    codes: NDArray[np.float64] = np.clip(np.rint(w / scale + zero), 0, 2**bits - 1)
    return codes


def searched(w: NDArray[np.float32], h: Any, bits: int, symmetric: bool) -> float:
    """The least error of one group over the widths and zeros that the search tries."""
    most, x = 2**bits - 1, w.astype(np.float64)
    low, high = min(x.min(), 0.0), max(x.max(), 0.0)
    full = max(high, -low) / (2 ** (bits - 1) - 0.5) if symmetric else (high - low) / most

    def error_of(width: float) -> float:
        scale = float(np.float16(np.float32(full) * np.float32(width)))
        centre = most / 2 - (high + low) / 2 / scale
        zeros = (
            [2 ** (bits - 1)] if symmetric else np.clip(np.rint(centre + np.arange(-1, 2)), 0, most)
        )
        offs = [(nearest(x, scale, zero, bits) - zero) * scale - x for zero in zeros]
        return min(float((h * off * off).sum()) for off in offs)

    widths = 0.55 + 0.05 * np.arange(12)
    coarse = min(widths, key=error_of)
    return min(error_of(width) for width in (coarse, coarse - 0.025, coarse + 0.025))


@pytest.mark.parametrize(("bits", "symmetric"), FORMS)
@pytest.mark.parametrize("group", [32, 128, -1])
def test_from_the_smallest_to_the_largest(bits: int, symmetric: bool, group: int) -> None:
    w = matrix()
    codes, scales, zeros = _C.Quantizer(2).quantize(
        w, bits=bits, group_size=group, symmetric=symmetric, search=False
    )
    n = w.shape[1] if group == -1 else group
    x = w.astype(np.float64).reshape(len(w), -1, n)
    low, high = np.minimum(x.min(-1), 0), np.maximum(x.max(-1), 0)
    full = (high - low) / (2**bits - 1)
    if symmetric:
        full = np.maximum(high, -low) / (2 ** (bits - 1) - 0.5)
    assert scales.dtype == np.float16 and codes.dtype == zeros.dtype == np.uint8
    np.testing.assert_allclose(scales, np.maximum(full, 2**-14), rtol=2**-11)
    if symmetric:
        assert (zeros == 2 ** (bits - 1)).all()
    else:
        assert (np.abs(zeros + low / scales.astype(np.float64)) <= 0.501).all()
    off = np.abs(values(codes, scales, zeros) - w)
    assert (off <= 1.02 * scales.astype(np.float64).repeat(n, 1)).all()
    assert codes.max() == 2**bits - 1 and codes.min() == 0


@pytest.mark.parametrize(("bits", "symmetric"), FORMS)
def test_the_best_grid(bits: int, symmetric: bool) -> None:
    """No worse than the best of all grids that the search tries, each error counting as asked."""
    w = matrix(1)
    columns = np.random.default_rng(2).gamma(0.5, size=w.shape[1]).astype(np.float32)
    h = np.broadcast_to(columns.astype(np.float64), w.shape)
    quantizer = _C.Quantizer(2)
    options: dict[str, Any] = {"bits": bits, "group_size": 64, "symmetric": symmetric}
    got = errors(w, h, quantizer.quantize(w, **options, importance=columns), 64)
    plain = errors(w, h, quantizer.quantize(w, **options, search=False), 64)
    for row in range(len(w)):
        for g in range(4):
            part = slice(g * 64, g * 64 + 64)
            best = searched(w[row, part], h[row, part], bits, symmetric)
            assert got[row, g] <= best * (1 + 1e-4)
    assert got.sum() < 0.97 * plain.sum()


# ---- without data ----


def without_data(w: NDArray[np.float32], h: Any, bits: int, symmetric: bool) -> float:
    """The error that the quick search of one group comes to."""
    most, x = 2**bits - 1, w.astype(np.float64)
    low, high = min(x.min(), 0.0), max(x.max(), 0.0)
    full = max(high, -low) / (2 ** (bits - 1) - 0.5) if symmetric else (high - low) / most

    def grid(scale: float, zero: Callable[[float], float]) -> tuple[float, float, float]:
        rounded = float(np.float16(scale))
        at = 2.0 ** (bits - 1) if symmetric else float(np.clip(np.rint(zero(rounded)), 0, most))
        off = (nearest(x, rounded, at, bits) - at) * rounded - x
        return float((h * off * off).sum()), rounded, at

    tried = [grid(full, lambda s: -low / s)]
    tried += [
        grid(full * width, lambda s: most / 2 - (high + low) / 2 / s)
        for width in (0.6, 0.72, 0.84, 0.96, 1.08)
    ]
    best = min(tried)
    for with_min in (False,) if symmetric else (True, False):
        _, scale, zero = best
        code = nearest(x, scale, zero, bits) - zero
        columns = np.stack([code, np.ones_like(x)], 1) if with_min else code[:, None]
        fit = np.linalg.lstsq(columns * np.sqrt(h)[:, None], x * np.sqrt(h), rcond=None)[0]
        offset = zero - (fit[1] / np.float16(fit[0]) if with_min else 0.0)
        best = min(best, grid(fit[0], lambda s, offset=offset: offset))  # type: ignore[misc]
    return best[0]


@pytest.mark.parametrize(("bits", "symmetric"), FORMS)
@pytest.mark.parametrize("group", [32, 64, 128])
def test_the_quick_search_without_data(bits: int, symmetric: bool, group: int) -> None:
    """As the same search in NumPy, and on the whole nearly as good as the long one."""
    w = matrix(1)
    h = w.astype(np.float64) ** 2
    h += h.mean(1, keepdims=True)
    options: dict[str, Any] = {"bits": bits, "group_size": group, "symmetric": symmetric}
    got = errors(w, h, _C.Quantizer(2).quantize(w, **options), group)
    plain = errors(w, h, _C.Quantizer(2).quantize(w, **options, search=False), group)
    quick, long = (
        np.array([
            [search(w[row, at : at + group], h[row, at : at + group], bits, symmetric)
             for at in range(0, w.shape[1], group)]
            for row in range(len(w))
        ])
        for search in (without_data, searched)
    )  # fmt: skip
    # A weight that lies between two codes may fall to either side.
    assert (np.abs(got / quick - 1) < 1e-3).mean() > 0.97
    assert got.sum() == pytest.approx(quick.sum(), rel=2e-3)
    assert got.sum() < 1.12 * long.sum()
    assert got.sum() < 0.97 * plain.sum()


def test_codes_are_the_nearest_and_threads_change_nothing() -> None:
    w = matrix(3, 65, 192)
    got = [_C.Quantizer(n).quantize(w, group_size=96) for n in (1, 3)]
    assert all((a == b).all() for a, b in zip(*got, strict=True))
    codes, scales, zeros = got[0]
    wide = [x.astype(np.float64).repeat(96, 1) for x in (scales, zeros)]
    exact = w / wide[0] + wide[1]
    assert (np.abs(codes - np.clip(exact, 0, 15)) <= 0.5 + 1e-5).all()


def test_groups_of_zeros_and_of_one_sign() -> None:
    w = matrix(4, 4, 128)
    w[0], w[1, :64], w[2], w[3] = 0, 0, np.abs(w[2]) + 1, -np.abs(w[3]) - 1
    for search in (False, True):
        codes, scales, zeros = _C.Quantizer(1).quantize(w, group_size=64, search=search)
        got = values(codes, scales, zeros)
        assert (got[0] == 0).all() and (got[1, :64] == 0).all() and (scales > 0).all()
        assert (np.abs(got - w) <= 1.02 * scales.astype(np.float64).repeat(64, 1)).all()


def test_halves_and_other_layouts_are_taken() -> None:
    w = matrix(5).astype(np.float16)
    quantizer = _C.Quantizer()
    expected = quantizer.quantize(w.astype(np.float32), group_size=32)
    for given in (w, np.asfortranarray(w), w.tolist()):
        got = quantizer.quantize(given, group_size=32)
        assert all((a == b).all() for a, b in zip(got, expected, strict=True))


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"weight": matrix()[0]}, ValueError, "weight must have 2 dimensions, not 1"),
    ({"weight": {}}, TypeError, "float"),
    ({"weight": np.zeros((0, 64), np.float32)}, ValueError, "rows and columns, not 0 x 64"),
    ({"weight": np.full((2, 256), 1e9, np.float32)}, ValueError, "scale of fp16"),
    ({"bits": 1}, ValueError, "bits must be 2 to 8, not 1"),
    ({"bits": 9}, ValueError, "bits must be 2 to 8, not 9"),
    ({"group_size": 24}, ValueError, "group_size must be a multiple of 16 .* not 24"),
    ({"group_size": 0}, ValueError, "group_size .* not 0"),
    ({"group_size": -2}, ValueError, "group_size .* not -2"),
    ({"group_size": 96}, ValueError, "divides the 256 columns, not 96"),
    ({"symmetric": 1}, TypeError, "symmetric"),
    ({"importance": np.ones(3, np.float32)}, ValueError, "for each of 256 columns, not 3"),
    ({"importance": -np.ones(256, np.float32)}, ValueError, "column 0 is -1"),
    ({"importance": np.full(256, np.nan, np.float32)}, ValueError, "column 0 is nan"),
    ({"group": 3}, TypeError, "group"),
]


@pytest.mark.parametrize(("options", "kind", "message"), BAD)
def test_refusals(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        _C.Quantizer(1).quantize(**{"weight": matrix(), **options})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named(bad: float) -> None:
    w = matrix()
    w[7, 100] = bad
    with pytest.raises(ValueError, match="row 7 of the weight"):
        _C.Quantizer(2).quantize(w)


def test_number_of_threads() -> None:
    for bad in (-1, 257):
        with pytest.raises(ValueError, match=r"(num_)?threads"):
            _C.Quantizer(bad)
