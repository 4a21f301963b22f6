"""A model one layer at a time: the hidden states of texts through it, and what its linears read.

One layer's weights are in memory at once, as the file has them.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .source import Source

if TYPE_CHECKING:
    from .._C import InputSums, Model, Quantizer, TensorSpec

#: What reads the same input, in the order of `Quantizer.run_layer`'s sums, which end with the keys
#: and values: the modules of a layer.
INPUTS = {
    "qkv": re.compile(r"self_attn\.[qkv]_proj|attention\.wqkv"),
    "o": re.compile(r"self_attn\.o_proj|attention\.wo"),
    "gate_up": re.compile(r"mlp\.(gate|up)_proj|feed_forward\.w[13]"),
    "down": re.compile(r"mlp\.down_proj|feed_forward\.w2"),
}
LAYER = re.compile(r"(.*\.layers|blk)\.(\d+)\.(.+)")
EMBEDDINGS = (
    "token_embd.weight",
    "model.embed_tokens.weight",
    "model.tok_embeddings.weight",
)
HELD_OUT = 6  # every so many-th text is kept from calibration
PART_BYTES = 1 << 26  # of states: about so many are in memory twice while a layer takes them
MOST_BYTES = 1 << 28  # of all states together, of one model: more are in a file between layers
FINAL_NORMS = ("output_norm.weight", "model.norm.weight")


def layer_of(name: str) -> int:
    """The layer of a tensor's name; -1: none."""
    found = LAYER.fullmatch(name)
    return int(found[2]) if found else -1


def is_held_out(i: int, every: int = HELD_OUT) -> bool:
    """Whether the i-th text is kept from calibration; every 0: none is."""
    return every > 0 and i % every == every - 1


def input_of(name: str) -> str:
    """Which of INPUTS a linear reads, by its tensor's name."""
    return next(read for read, names in INPUTS.items() if names.search(name))


@dataclass(frozen=True)
class LayerSums:
    """What a layer's linears read, by INPUTS: of texts to calibrate by, and of held-out ones.
    kv: keys, as attention compares them, and values, of texts to calibrate by: [2, n_kv_head,
    head_dim] are its columns."""

    calibration: dict[str, InputSums]
    held_out: dict[str, InputSums]

    def read(self, group: str) -> tuple[InputSums, InputSums]:
        """What the linears of one of INPUTS read: to calibrate by, and held out."""
        return self.calibration[group], self.held_out[group]

    def put(self, values: Mapping[str, NDArray[np.float32]]) -> None:
        """Is told what has become of linears: nothing, to the original model's inputs."""

    kv: InputSums


@dataclass
class Texts:
    """Some texts, all to calibrate by or all held out, and their hidden states."""

    idxs: list[int]  # among all texts
    lengths: list[int]
    hidden: NDArray[np.float32]  # [n_tokens, hidden], one text after another


class Layers:
    """Texts on their way through a model's layers.

    windows: of token ids. held_out: every so many-th window is kept from calibration; 0: none.
    folder: for temporary files of hidden states that are large; None: the system's.
    Raises what loading a model raises.
    """

    def __init__(
        self,
        source: Source,
        windows: Sequence[Sequence[int]],
        quantizer: Quantizer,
        *,
        held_out: int = HELD_OUT,
        folder: Path | None = None,
        num_threads: int | None = None,
    ) -> None:
        config = source.checkpoint.config
        self._source, self._quantizer, self._num_threads = source, quantizer, num_threads
        self._config = {**config, "n_layer": 1, "vocab_size": 1, "tie_embeddings": True}
        self._widths = {
            "qkv": config["hidden_dim"],
            "o": config["n_head"] * config["head_dim"],
            "gate_up": config["hidden_dim"],
            "down": config["ffn_dim"],
        }
        n_bytes = 4 * config["hidden_dim"] * sum(map(len, windows))
        self._folder, self._is_large = folder, n_bytes > MOST_BYTES
        name = next(n for n in source.tensors if n in EMBEDDINGS)
        table = source.read(name)
        every = range(len(windows))
        self._calibration, self._held_out = (
            self._embedded(table, windows, [i for i in every if is_held_out(i, held_out) == kept])
            for kept in (False, True)
        )

    def _embedded(
        self, table: NDArray[np.float32], windows: Sequence[Sequence[int]], idxs: Sequence[int]
    ) -> list[Texts]:
        """Some of the windows, cut where PART_BYTES are full."""
        most = max(PART_BYTES // (4 * table.shape[1]), 1)
        ends = np.cumsum([len(windows[i]) for i in idxs])
        runs = groupby(zip(idxs, ends, strict=True), lambda at: at[1] // most)
        found = []
        for run in ([i for i, _ in members] for _, members in runs):
            ids = np.concatenate([np.asarray(windows[i], np.int64) for i in run])
            found.append(Texts(run, [len(windows[i]) for i in run], self._kept(table[ids])))
        return found

    def _specs(self, layer: int) -> list[TensorSpec]:
        """The tensors of a model that has this layer alone, and a vocabulary of one token."""
        specs: list[TensorSpec] = []
        for spec in self._source.specs:
            name, dtype, shape, path, offset, n_bytes = spec
            found = LAYER.fullmatch(name)
            if found and int(found[2]) == layer:
                specs.append((f"{found[1]}.0.{found[3]}", dtype, shape, path, offset, n_bytes))
            elif name in EMBEDDINGS:
                row = (1, *shape[1:])
                specs.append((name, dtype, row, path, offset, n_bytes // shape[0]))
            elif name in FINAL_NORMS:
                specs.append(spec)
        return specs

    def _open(self, layer: int) -> Model:
        return self._open_with(layer, {})

    def _open_with(self, layer: int, replaced: Mapping[str, TensorSpec]) -> Model:
        """replaced: tensors that are elsewhere, by their names in a model of this layer alone."""
        from .._C import Model

        specs = [replaced.get(spec[0], spec) for spec in self._specs(layer)]
        return Model(self._config, specs, num_threads=self._num_threads)

    def new_sums(self, gram: bool) -> dict[str, InputSums]:
        """Sums of nothing, for each input of a layer."""
        from .._C import InputSums

        return {name: InputSums(width, gram=gram) for name, width in self._widths.items()}

    def _new_layer_sums(self, gram: bool) -> LayerSums:
        from .._C import InputSums

        kv = InputSums(2 * self._config["n_kv_head"] * self._config["head_dim"], gram=False)
        return LayerSums(self.new_sums(gram), self.new_sums(gram), kv)

    def run(self, layer: int, *, watch: bool = True, gram: bool = True) -> LayerSums | None:
        """Takes the texts through the next layer. watch: and gives what its linears read; gram:
        with the products of columns."""
        model = self._open(layer)
        sums = self._new_layer_sums(gram) if watch else None
        try:
            self._take(
                self._calibration, model, (*sums.calibration.values(), sums.kv) if sums else None
            )
            self._take(self._held_out, model, (*sums.held_out.values(), None) if sums else None)
        except ValueError as error:
            raise self._explained(layer, error) from None
        return sums

    def _take(
        self, parts: Sequence[Texts], model: Model, sums: Sequence[InputSums | None] | None
    ) -> None:
        for texts in parts:
            states = self._quantizer.run_layer(model, texts.hidden, texts.lengths, sums)
            texts.hidden = self._kept(states)

    def _kept(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Hidden states until their next layer; large ones in a file without a name."""
        if not self._is_large:
            return states
        with tempfile.TemporaryFile(dir=self._folder) as file:
            file.write(states.data)
            file.flush()
            return np.memmap(file, np.float32, "r", shape=states.shape)

    def _explained(self, layer: int, error: ValueError) -> ValueError:
        """The error of a run, with the tensor that it comes from, or the layer."""
        names = [n for n in self._source.tensors if layer_of(n) == layer or n in EMBEDDINGS]
        for name in names:
            if not np.isfinite(self._source.read(name)).all():
                return ValueError(f'tensor "{name}" has a NaN or an infinity')
        return ValueError(f"layer {layer}: {error}")

    def hidden(self) -> list[NDArray[Any]]:
        """The states after the layers that were run, a text each: [n_tokens, hidden]."""
        every = [*self._calibration, *self._held_out]
        return by_text(every, [texts.hidden for texts in every])


def by_text(
    parts: Sequence[Texts], states: Sequence[NDArray[np.float32]]
) -> list[NDArray[np.float32]]:
    found: dict[int, NDArray[np.float32]] = {}
    for texts, rows in zip(parts, states, strict=True):
        found |= zip(texts.idxs, np.split(rows, np.cumsum(texts.lengths)[:-1]), strict=True)
    return [found[i] for i in sorted(found)]
