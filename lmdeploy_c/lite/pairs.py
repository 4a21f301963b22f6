"""Two models one layer at a time: the original, and the one that is being quantised, whose hidden
states drift from the original's with each linear that has become codes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .floats import as_dtype
from .layers import INPUTS, LAYER, Layers, by_text
from .shards import whole_file
from .source import Source

if TYPE_CHECKING:
    from .._C import InputSums, Model, Quantizer, TensorSpec


class LayerPairs(Layers):
    """Texts on their way through the layers of both models.

    For each layer in turn: `begin`; `read` and `put` for each of INPUTS, in their order; `end`.
    folder: of files that come and go. The other arguments, and what is raised: as `Layers`.
    """

    def __init__(
        self,
        source: Source,
        windows: Sequence[Sequence[int]],
        quantizer: Quantizer,
        folder: Path,
        **options: Any,
    ) -> None:
        super().__init__(source, windows, quantizer, folder=folder, **options)
        self._values = folder / "values"
        self._texts = [*self._calibration, *self._held_out]
        self._drifted = [texts.hidden for texts in self._texts]

    def begin(self, layer: int) -> None:
        self._layer, self._n_read = layer, 0
        self._replaced: dict[str, TensorSpec] = {}
        self._values.mkdir(exist_ok=True)

    def read(self, group: str) -> tuple[InputSums, InputSums]:
        """What the linears of one of INPUTS read in the quantised model, and what is wanted of
        them: to calibrate by, and held out."""
        for passed_over in list(INPUTS)[self._n_read : list(INPUTS).index(group)]:
            self._read_next(passed_over)
        return self._read_next(group)

    def _read_next(self, group: str) -> tuple[InputSums, InputSums]:
        from .._C import InputSums

        width, wanted = self._widths[group], self._widths["qkv"]
        calibration, held_out = (InputSums(width, n_wanted=wanted) for _ in range(2))
        models = self._open(self._layer), self._drifted_model()
        for i, (texts, drifted) in enumerate(zip(self._texts, self._drifted, strict=True)):
            sums = calibration if i < len(self._calibration) else held_out
            try:
                states = self._quantizer.run_pair(
                    *models, texts.hidden, drifted, texts.lengths, self._n_read, sums
                )
            except ValueError as error:
                raise self._explained(self._layer, error) from None
            texts.hidden, self._drifted[i] = map(self._kept, states)
        self._n_read += 1
        return calibration, held_out

    def put(self, values: Mapping[str, NDArray[np.float32]]) -> None:
        """Linears of the layer stand for these values from here on."""
        for name, matrix in values.items():
            stored_name, rows = self._source.as_stored(name, matrix)
            found = LAYER.fullmatch(stored_name)
            assert found is not None
            new_name, path = f"{found[1]}.0.{found[3]}", self._values / name
            stored = as_dtype("F16", name, rows)
            path.write_bytes(stored.data)
            self._replaced[new_name] = (new_name, "F16", rows.shape, str(path), 0, stored.nbytes)

    def _drifted_model(self) -> Model:
        return self._open_with(self._layer, self._replaced)

    def end(self) -> None:
        """Both models' texts go through what is left of the layer."""
        for group in list(INPUTS)[self._n_read :]:
            self._read_next(group)
        model = self._drifted_model()
        for i, texts in enumerate(self._texts):
            self._drifted[i] = self._kept(
                self._quantizer.run_layer(model, self._drifted[i], texts.lengths, from_middle=True)
            )
        shutil.rmtree(self._values)

    def drifted(self) -> list[NDArray[np.float32]]:
        """The quantised model's states, as `hidden` has the original's."""
        return by_text(self._texts, self._drifted)

    # ---- the states, for a run that is continued ----

    def save(self, path: Path) -> None:
        """Writes the hidden states of both models, after the last layer that was ended."""
        with whole_file(path) as file:
            for texts, drifted in zip(self._texts, self._drifted, strict=True):
                file.write(texts.hidden.data)
                file.write(drifted.data)

    def load(self, path: Path) -> None:
        """Goes on from what `save` wrote, of the same texts. Raises OSError, ValueError where it
        is not as long."""
        with path.open("rb") as file:
            for i, texts in enumerate(self._texts):
                shape, count = texts.hidden.shape, texts.hidden.size
                texts.hidden, self._drifted[i] = (
                    self._kept(np.fromfile(file, np.float32, count).reshape(shape))
                    for _ in range(2)
                )
