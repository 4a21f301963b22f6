"""What is done to the linears of a layer: the methods of `lite quantize`, as data and as one
function of a layer's weights and of what it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from . import drift, packing, smoothing
from .floats import check_finite
from .layers import INPUTS, input_of
from .report_values import LinearReport, channels

if TYPE_CHECKING:
    from .._C import InputSums, Quantizer

Array = NDArray[np.float32]

LEAST = 1e-3  # of the mean of a linear's columns: none counts less, however seldom it was used
ROWS = 128  # of a weight, at most, by which its error is estimated


@dataclass(frozen=True)
class Solver:
    """How weights become codes with feedback: the arguments of `Quantizer.solve`."""

    search: bool = True
    ordered: bool = True
    rounds: int = 2
    shrink: float = 0.25
    damp: float = 0.01


@dataclass(frozen=True)
class Recipe:
    """A method. scales: None, "plain" or "searched" (smoothing.py), alpha: the power of the inputs
    in plain ones; solver: None rounds each weight to its group's grid; search: such a grid is the
    one with the least error; absmax: it is the one whose largest code is the largest |weight|.
    damp: linears make up for what those before them have changed (drift.py), damped by so much of
    the mean of H's diagonal; None: each is quantised as if the others were not."""

    scales: str | None = None
    solver: Solver | None = None
    search: bool = True
    alpha: float = 0.5
    absmax: bool = False
    damp: float | None = None

    def __post_init__(self) -> None:
        if self.damp is not None and self.scales:
            raise ValueError(
                "a recipe has scales or damp: linears are corrected too late for scales"
            )

    @property
    def reads_grams(self) -> bool:
        """Whether it asks how columns go together, not just how large they are."""
        return self.solver is not None or self.scales == "searched"


METHODS = {
    "rtn": Recipe(),
    "awq": Recipe(scales="plain", search=False),
    "awq-searched": Recipe(scales="searched"),
    "gptq": Recipe(solver=Solver(search=False, ordered=False, rounds=0, shrink=0.0)),
    "best": Recipe(solver=Solver(), damp=0.1),
}


@dataclass
class LayerResult:
    """A layer quantised: the codes of its linears, also in more bits where both are wanted; the
    floats that changed; and reports."""

    codes: dict[str, packing.Codes] = field(default_factory=dict)
    wide: dict[str, packing.Codes] = field(default_factory=dict)
    floats: dict[str, Array] = field(default_factory=dict)
    reports: list[LinearReport] = field(default_factory=list)


class Reads(Protocol):
    """What linears of a layer read, by INPUTS; and is told what they have become."""

    def read(self, group: str) -> tuple[InputSums, InputSums]: ...
    def put(self, values: Mapping[str, Array]) -> None: ...


class LayerQuantizer:
    """Quantises layers by a recipe.

    config: the model's, normalised. wide: a scheme of more bits, in which there shall be codes too:
    rounded to grids alone, because their errors are small.
    """

    def __init__(
        self,
        recipe: Recipe,
        scheme: packing.Scheme,
        config: Mapping[str, Any],
        quantizer: Quantizer,
        wide: packing.Scheme | None = None,
    ) -> None:
        self._recipe, self._scheme, self._config = recipe, scheme, config
        self._quantizer, self._wide = quantizer, wide
        self._grid: dict[str, Any] = {"bits": scheme.bits, "symmetric": scheme.symmetric}

    def __call__(
        self, linears: Sequence[str], read: Callable[[str], Array], names: Sequence[str],
        reads: Reads | None,
    ) -> LayerResult:  # fmt: skip
        """linears: a layer's, by their tensors' names; names: all of the layer's tensors; read:
        gives one. reads: None: no calibration."""
        result = LayerResult()
        scales = self._fold(linears, read, names, reads, result) if self._recipe.scales else {}
        for group in INPUTS:
            members = [name for name in linears if input_of(name) == group]
            if members:
                weights = [result.floats.pop(name, None) for name in members]
                parts = [read(n) if w is None else w for n, w in zip(members, weights, strict=True)]
                for name, part in zip(members, parts, strict=True):
                    check_finite(name, part)
                sums = reads.read(group) if reads else (None, None)
                weight = np.concatenate(parts) if len(parts) > 1 else parts[0]
                # A bias is in what the residual stream misses, and no weight can make up for it.
                has_bias = any(name.removesuffix("weight") + "bias" in names for name in members)
                if self._recipe.damp is not None and sums[0] and sums[1] and not has_bias:
                    weight = drift.corrected(
                        self._quantizer, weight, group, sums[0], sums[1], self._recipe.damp
                    )
                ends = np.cumsum([len(part) for part in parts])
                values = self._quantise(members, weight, ends, scales.get(group), sums, result)
                if reads:
                    reads.put(values)
        return result

    # ---- scales ----

    def _fold(
        self, linears: Sequence[str], read: Callable[[str], Array], names: Sequence[str],
        reads: Reads | None, result: LayerResult,
    ) -> dict[str, Array]:  # fmt: skip
        """The columns' scales of each input, divided out of what makes the input: norms, rows of
        weights, biases; these are in result.floats."""
        if reads is None:
            return {}
        found: dict[str, Array] = {}
        for group in INPUTS:
            if not smoothing.can_fold(group, self._config):
                continue
            sources = [n for n in names if smoothing.SOURCES[group].search(n)]
            members = [name for name in linears if input_of(name) == group]
            sums = reads.read(group)[0]
            is_dead = np.zeros(sums.n_cols, bool)
            for name in sources:
                if "norm" in name:
                    is_dead |= read(name) == 0
            weight = np.concatenate([read(name) for name in members])
            scales = self._scales(weight, sums, is_dead)
            for name in sources:
                value = result.floats.get(name)
                value = read(name) if value is None else value
                result.floats[name] = value / (scales[:, None] if value.ndim == 2 else scales)
            found[group] = scales
        return found

    def _scales(self, weight: Array, sums: InputSums, is_dead: NDArray[np.bool_]) -> Array:
        size = self._scheme.group_size
        if self._recipe.scales == "plain":
            return smoothing.plain(weight, sums, size, is_dead, self._recipe.alpha)
        return smoothing.searched(weight, sums, size, is_dead, self._quantizer, **self._grid)

    # ---- codes ----

    def _quantise(
        self, members: Sequence[str], weight: Array, ends: NDArray[np.intp], scales: Array | None,
        sums: tuple[InputSums | None, InputSums | None], result: LayerResult,
    ) -> dict[str, Array]:  # fmt: skip
        """The linears of one input, together: their rows of weight end at `ends`. Gives what they
        stand for after that, by name."""
        read, held_out = sums
        n_outliers, outliers = channels(read) if read else (0, ())
        wide = None
        try:
            made, order = self._in_order(weight, scales, read)
            if self._wide:
                wide = self._rounded(weight, scales, read, self._wide)
            plain = self._quantizer.quantize(
                weight, group_size=self._scheme.group_size, search=False, **self._grid
            )
        except ValueError as error:
            raise ValueError(f"{', '.join(members)}: {error}") from None
        values, codes, g_idx = smoothing.values_of(*made), made[0], None
        if order is not None:
            places = np.argsort(order)
            values, codes = values[:, places], codes[:, places]
            g_idx = (places // (len(places) // made[1].shape[1])).astype(np.int32)
        every = [values, *([smoothing.values_of(*wide)] if wide else [])]
        if scales is not None:
            every = [values / scales for values in every]
        every = [smoothing.values_of(*plain), *every]
        stand_for = {}
        for name, begin, end in zip(members, [0, *ends[:-1]], ends, strict=True):
            at = slice(begin, end)
            result.codes[name] = packing.Codes(
                self._scheme, codes[at], made[1][at], made[2][at], g_idx
            )
            min_max, written, *in_wide = self._errors(
                weight[at], [values[at] for values in every], held_out
            )
            tried = {}
            if self._wide and wide:
                result.wide[name] = packing.Codes(self._wide, *(x[at] for x in wide))
                tried = {bits_name(self._scheme): written, bits_name(self._wide): in_wide[0]}
            stand_for[name] = every[1][at]
            result.reports.append(
                LinearReport(
                    name,
                    min_max,
                    written,
                    tried,
                    n_outliers=n_outliers,
                    outliers=outliers,
                    first_token_mass=read.first_token_mass if read else 0.0,
                )
            )
        return stand_for

    def _in_order(
        self, weight: Array, scales: Array | None, sums: InputSums | None
    ) -> tuple[Any, NDArray[np.intp] | None]:
        """Codes, and the order of their columns: None, or, where the scheme is desc_act, those that
        carry most first."""
        if not self._scheme.desc_act or sums is None:
            return self._codes(weight, scales, sums), None
        order = np.argsort(-_squares(sums, scales), kind="stable")
        weight = np.ascontiguousarray(weight[:, order])
        scales = None if scales is None else scales[order]
        return self._codes(weight, scales, sums.in_order(order)), order

    def _codes(self, weight: Array, scales: Array | None, sums: InputSums | None) -> Any:
        recipe, size = self._recipe, self._scheme.group_size
        if recipe.solver and sums is not None:
            return self._quantizer.solve(
                weight, sums, group_size=size, scales=scales, minima=self._scheme.minima,
                **self._grid, **vars(recipe.solver),
            )  # fmt: skip
        if recipe.absmax:
            weight = weight if scales is None else weight * scales
            return absmax_codes(weight, self._scheme)
        return self._rounded(weight, scales, sums, self._scheme)

    def _rounded(
        self, weight: Array, scales: Array | None, sums: InputSums | None, scheme: packing.Scheme
    ) -> Any:
        return self._quantizer.quantize(
            weight if scales is None else weight * scales,
            bits=scheme.bits,
            group_size=scheme.group_size,
            symmetric=scheme.symmetric,
            search=self._recipe.search,
            importance=None if sums is None else importance(sums, scales),
        )

    def _errors(
        self, weight: Array, candidates: Sequence[Array], sums: InputSums | None
    ) -> list[float]:
        """What each of some values in place of a weight does to its outputs."""
        if sums is None or sums.n_tokens == 0 or not self._recipe.reads_grams:
            squares = sums.squares() if sums is not None and sums.n_tokens else 1.0

            def size(rows: Array) -> float:
                return float((np.square(rows, dtype=np.float64) * squares).sum())
        else:
            every = slice(None, None, -(-len(weight) // ROWS))
            weight, candidates = weight[every], [values[every] for values in candidates]
            gram = sums

            def size(rows: Array) -> float:
                return float(self._quantizer.output_errors(gram, rows).sum())

        whole = size(weight) or 1.0
        return [size(values - weight) / whole for values in candidates]


def absmax_codes(
    weight: Array, scheme: packing.Scheme
) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.uint8]]:
    """A matrix as `Quantizer.quantize` gives it, on symmetric grids whose largest code is the
    largest |weight| of a group: |code - zero| is 127 at most where bits are 8."""
    middle = 1 << (scheme.bits - 1)
    groups = weight.reshape(len(weight), scheme.n_groups(weight.shape[1]), -1)
    scales = (np.abs(groups).max(-1) / (middle - 1)).astype(np.float16)
    steps = scales[..., None].astype(np.float32)
    codes = np.divide(groups, steps, out=np.zeros_like(groups), where=steps > 0)
    codes = np.clip(np.rint(codes), 1 - middle, middle - 1).reshape(weight.shape) + middle
    return codes.astype(np.uint8), scales, np.full(scales.shape, middle, np.uint8)


def bits_name(scheme: packing.Scheme) -> str:
    """What a report calls codes of a scheme beside those of another."""
    return f"{scheme.bits} bits"


def _squares(sums: InputSums, scales: Array | None) -> NDArray[np.float64]:
    """Sums of squares of the columns that are read once scales are divided out: [n_in]."""
    squares = sums.squares()
    return squares if scales is None else squares / np.square(scales, dtype=np.float64)


def importance(sums: InputSums, scales: Array | None = None) -> Array:
    """What the squared error of each column counts: [n_in]."""
    squares = _squares(sums, scales) / max(sums.n_tokens, 1)
    counts: Array = np.maximum(squares, LEAST * squares.mean()).astype(np.float32)
    return counts
