"""Quantises a model layer by layer: calibrates, quantises, keeps what is done, and writes the new
directory when all is done."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..files.checkpoint import fingerprint
from ..progress import layers_progress
from ..version import __version__
from . import calibration_data, rewrite
from .floats import as_dtype
from .layers import Layers, LayerSums, layer_of
from .recipe import METHODS, LayerQuantizer, LayerResult, LinearReport, Recipe
from .shards import MAX_SHARD_BYTES, Part, Tensor
from .source import Source
from .target import Directory, GgufFile, target_of
from .unfinished import Unfinished

if TYPE_CHECKING:
    from .._C import Quantizer


def _recipe(method: str | Recipe) -> Recipe:
    if isinstance(method, Recipe):
        return method
    if method not in METHODS:
        raise ValueError(f"method must be {', '.join(METHODS)}, not {method!r}")
    return METHODS[method]


def _digest(windows: Sequence[Sequence[int]]) -> str:
    return hashlib.blake2b(repr([list(w) for w in windows]).encode(), digest_size=16).hexdigest()


class _Job:
    """One model on its way through a recipe."""

    def __init__(
        self, source: Source, recipe: Recipe, target: Directory | GgufFile,
        unfinished: Unfinished, num_threads: int | None,
    ) -> None:  # fmt: skip
        from .._C import Quantizer

        self._source, self._stored = source, target.stored
        self._scheme, self._form = target.scheme, target.form
        self._recipe, self._unfinished, self._num_threads = recipe, unfinished, num_threads
        self._quantizer: Quantizer = Quantizer(num_threads)
        self.n_layer: int = source.checkpoint.config["n_layer"]
        self._linears = [
            [n for n in target.linears if layer_of(n) == i] for i in range(self.n_layer)
        ]

    def run(self, windows: Sequence[Sequence[int]] | None) -> None:
        """Quantises the layers that are not done yet. windows: to calibrate by, or None."""
        bar: AbstractContextManager[Callable[[int, str], object]] = layers_progress(
            "quantising", self._n_weights(range(self.n_layer))
        )
        with bar as progress:
            quantise = LayerQuantizer(
                self._recipe, self._scheme, self._source.checkpoint.config, self._quantizer
            )
            layers = None
            for layer in range(self.n_layer):
                is_done = self._unfinished.has(layer)
                if windows is not None and layers is None:
                    layers = Layers(
                        self._source, windows, self._quantizer, num_threads=self._num_threads
                    )
                sums = None
                if layers is not None and not (is_done and layer == self.n_layer - 1):
                    progress(0, f"layer {layer + 1} of {self.n_layer}: reads")
                    sums = layers.run(layer, watch=not is_done, gram=self._recipe.reads_grams)
                progress(0, f"layer {layer + 1} of {self.n_layer}: quantises")
                if not is_done:
                    self._quantise(layer, quantise, sums)
                progress(self._n_weights([layer]), "")

    def _n_weights(self, layers: Sequence[int] | range) -> int:
        shapes = (self._source.tensors[name].shape for i in layers for name in self._linears[i])
        return sum(rows * cols for rows, cols in shapes)

    def _quantise(self, layer: int, quantise: LayerQuantizer, sums: LayerSums | None) -> None:
        names = [name for name in self._source.tensors if layer_of(name) == layer]
        result = quantise(self._linears[layer], self._source.read, names, sums)
        self._unfinished.keep(layer, self._tensors(names, result), result.reports)

    def _tensors(self, names: Sequence[str], result: LayerResult) -> Mapping[Tensor, NDArray[Any]]:
        """All tensors of a layer as they are written."""
        found: dict[Tensor, NDArray[Any]] = {}
        for name in names:
            if name in result.codes:
                stem, codes = name.removesuffix("weight"), result.codes[name]
                shapes = self._form.shapes(self._scheme, *codes.codes.shape)
                arrays = self._form.pack(codes)
                found |= {Tensor(stem + s, *what): arrays[s] for s, what in shapes.items()}
            else:
                value = result.floats.get(name)
                value = self._source.read(name) if value is None else value
                array = as_dtype(self._stored, name, np.ascontiguousarray(value))
                found[Tensor(name, self._stored, value.shape)] = array
        return found

    def layers(self) -> list[Part]:
        """The tensors of layers, each a part."""
        return [p for layer in range(self.n_layer) for p in self._unfinished.tensors(layer)]

    def reports(self) -> list[LinearReport]:
        return [r for layer in range(self.n_layer) for r in self._unfinished.reports(layer)]


def quantize(
    model: str | Path | None = None,
    work_dir: str | Path = "./work_dir",
    *,
    method: str | Recipe = "best",
    format: str = "awq",
    w_bits: int = 4,
    w_group_size: int | None = None,
    w_sym: bool = False,
    w_type: str | Mapping[str, str] | None = None,
    desc_act: bool = False,
    dtype: str = "float16",
    calib_dataset: str | Path | Sequence[Any] | None = "builtin",
    calib_samples: int | None = None,
    calib_seqlen: int = 512,
    num_threads: int | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> list[LinearReport]:
    """Writes a model with the linears of its layers quantised. Embedding, norms and lm_head stay
    floats. One layer is in memory at a time; a run that was stopped continues, with the same
    result, where the same call is made again.

    model: a path, a model id, or None for the embedded model. method: "best"; "awq",
    "awq-searched", "gptq" or "rtn", which are cheaper. format: "awq", "gptq", "compressed-tensors"
    (pack-quantized), "int-quantized" (the same tool's, for 8-bit weights beside 8-bit activations)
    or "gguf". w_bits: 4; of gptq and compressed-tensors also 3 and 8, of int-quantized 8.
    w_group_size: columns that share a scale; -1: a whole row, as int-quantized needs; None: the
    largest of 128, 64 and 32 that fits the model. w_sym: zero is the middle code; int-quantized
    needs it. desc_act: groups are of columns that carry as much instead of neighbours, and the
    columns that carry most are rounded first; of format "gptq", with method "gptq" or "best".
    dtype: of what stays a float. num_threads: None: all usable ones.

    gguf: model.gguf in the directory, in groups of 32. w_type: "q4_1", "q4_0" or "q8_0" (None: by
    w_bits and w_sym, which say the same), with embedding and lm_head in Q8_0; or a type for each
    tensor: patterns of names -> types, "f16", "bf16" and "f32" too, of which the first that matches
    counts. The method makes the linears of 4 bits, if there are any; other blocks are rounded, and
    all of them, without calibration, by method "rtn". Matrices whose columns are no multiple of 32
    stay floats.

    calib_dataset: what the model reads first, so that an error counts what it changes: "builtin",
    the text that comes with the package; "self", its own samples; a .txt, .jsonl or .json file; one
    of LMDeploy's names of which there is a local copy; or a list of texts and objects, as a .jsonl
    file's lines. None: no calibration: large weights count more, and only "rtn" can do without.
    calib_samples: windows of it, at most; None: 4 tokens for each column of the widest linear, and
    24 windows at least. calib_seqlen: tokens of a window.

    Returns what was done to each linear. Raises what `export` raises, and ValueError for a group
    size that does not fit and for a weight or an input that is not finite, by its tensor.
    """
    source = Source(model)
    recipe, folder = _recipe(method), Path(work_dir)
    if calib_dataset is None and (recipe.scales or recipe.solver):
        raise ValueError(f'method {method!r} needs calib_dataset; "rtn" does without')
    if desc_act and not recipe.solver:
        raise ValueError('desc_act is for methods "gptq" and "best"')
    target = target_of(
        source, format, w_bits, w_group_size, w_sym, w_type, desc_act, dtype, max_shard_bytes
    )
    rewrite.check_work_dir(source, folder)
    is_plain = not (recipe.scales or recipe.solver)
    if isinstance(target, GgufFile) and (is_plain or not target.linears):
        return target.write(folder, [])
    job = {
        "version": __version__, "model": fingerprint(source.checkpoint), "recipe": repr(recipe),
        "target": target.key,
    }  # fmt: skip

    def find_windows(dataset: Any) -> list[list[int]]:
        return calibration_data.windows(
            source, dataset, samples=calib_samples, seqlen=calib_seqlen, num_threads=num_threads
        )

    if calib_dataset in (None, "self"):
        # A model's own samples take long and are always the same: the folder keeps them.
        windows, calibration = None, f"{calib_dataset} {calib_samples} {calib_seqlen}"
    else:
        windows = find_windows(calib_dataset)
        calibration = _digest(windows)
    unfinished = Unfinished(folder, {**job, "calibration": calibration})
    if calib_dataset == "self":
        windows = unfinished.windows() or find_windows("self")
        unfinished.keep_windows(windows)
    if windows and recipe.solver:
        config = source.checkpoint.config
        widest = max(config["hidden_dim"], config["ffn_dim"])
        calibration_data.enough(sum(map(len, windows)), widest)
    at_work = _Job(source, recipe, target, unfinished, num_threads)
    at_work.run(windows)
    reports = at_work.reports()
    reports += target.write(folder, at_work.layers())
    unfinished.remove()
    return reports
