"""Quantises a model layer by layer: calibrates, quantises, keeps what is done, and writes the new
directory when all is done."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..files.checkpoint import fingerprint
from ..messages import unsupported
from ..progress import layers_progress
from ..version import __version__
from . import calibration_data, held_out, rewrite, rotation
from . import mixed as mixing
from .floats import as_dtype
from .layers import Layers, layer_of
from .packing import Codes, Scheme
from .pairs import LayerPairs
from .recipe import METHODS, LayerQuantizer, LayerResult, Reads, Recipe, bits_name
from .report import FILE, Report, peak_memory
from .report_values import LayerReport, LinearReport
from .shards import MAX_SHARD_BYTES, Part, Tensor
from .source import Source
from .target import Directory, GgufFile, target_of
from .unfinished import WIDE, Unfinished

if TYPE_CHECKING:
    from .._C import Quantizer

logger = logging.getLogger("lmdeploy_c")


def _recipe(method: str | Recipe) -> Recipe:
    if isinstance(method, Recipe):
        return method
    if method not in METHODS:
        raise ValueError(f"method must be {', '.join(METHODS)}, not {method!r}")
    return METHODS[method]


def _digest(windows: Sequence[Sequence[int]]) -> str:
    return hashlib.blake2b(repr([list(w) for w in windows]).encode(), digest_size=16).hexdigest()


class _Job:
    """One model on its way through a recipe. wide: linears get codes of this scheme too."""

    def __init__(
        self, source: Source, recipe: Recipe, target: Directory | GgufFile,
        unfinished: Unfinished, num_threads: int | None, wide: Scheme | None = None,
    ) -> None:  # fmt: skip
        from .._C import Quantizer

        self._source, self._stored = source, target.stored
        self._scheme, self._form, self._wide = target.scheme, target.form, wide
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
                self._recipe, self._scheme, self._source.checkpoint.config, self._quantizer,
                wide=self._wide,
            )  # fmt: skip
            if windows is not None and self._recipe.damp is not None:
                self._run_pairs(windows, quantise, progress)
                return
            layers = None
            for layer in range(self.n_layer):
                is_done = self._unfinished.has(layer)
                if windows is not None and layers is None:
                    layers = Layers(
                        self._source, windows, self._quantizer,
                        folder=self._unfinished.folder, num_threads=self._num_threads,
                    )  # fmt: skip
                sums, began = None, time.monotonic()
                if layers is not None and not (is_done and layer == self.n_layer - 1):
                    progress(0, f"layer {layer + 1} of {self.n_layer}: reads")
                    sums = layers.run(layer, watch=not is_done, gram=self._recipe.reads_grams)
                progress(0, f"layer {layer + 1} of {self.n_layer}: quantises")
                if not is_done:
                    self._keep(layer, self._made(layer, quantise, sums), began)
                progress(self._n_weights([layer]), "")

    def _run_pairs(
        self, windows: Sequence[Sequence[int]], quantise: LayerQuantizer,
        progress: Callable[[int, str], object],
    ) -> None:  # fmt: skip
        """The layers that are left, each of which reads what those before it have become."""
        pairs = LayerPairs(
            self._source, windows, self._quantizer, self._unfinished.folder,
            num_threads=self._num_threads,
        )  # fmt: skip
        first = self._unfinished.n_done()
        progress(self._n_weights(range(first)), "")
        if 0 < first < self.n_layer:
            pairs.load(self._unfinished.states(first))
        for layer in range(first, self.n_layer):
            progress(0, f"layer {layer + 1} of {self.n_layer}")
            began = time.monotonic()
            pairs.begin(layer)
            done = self._made(layer, quantise, pairs)
            pairs.end()
            pairs.save(self._unfinished.states(layer + 1))
            self._keep(layer, done, began)
            self._unfinished.states(layer).unlink(missing_ok=True)
            progress(self._n_weights([layer]), "")

    def _n_weights(self, layers: Sequence[int] | range) -> int:
        shapes = (self._source.tensors[name].shape for i in layers for name in self._linears[i])
        return sum(rows * cols for rows, cols in shapes)

    def _made(self, layer: int, quantise: LayerQuantizer, reads: Reads | None) -> LayerResult:
        return quantise(self._linears[layer], self._source.read, self._names(layer), reads)

    def _names(self, layer: int) -> list[str]:
        return [name for name in self._source.tensors if layer_of(name) == layer]

    def _keep(self, layer: int, result: LayerResult, began: float) -> None:
        linears = tuple(self._facts(linear) for linear in result.reports)
        wide = [self._packed(name, codes) for name, codes in result.wide.items()]
        self._unfinished.keep(
            layer,
            self._tensors(self._names(layer), result),
            {tensor: array for packed in wide for tensor, array in packed.items()},
            LayerReport(linears, time.monotonic() - began, peak_memory()),
        )

    def _n_bytes(self, name: str, scheme: Scheme) -> int:
        rows, cols = self._source.tensors[name].shape
        return self._form.n_bytes(scheme, rows, cols)

    def _facts(self, linear: LinearReport) -> LinearReport:
        """A report with what is known of the linear besides its errors."""
        rows, cols = self._source.tensors[linear.name].shape
        return replace(
            linear,
            shape=(rows, cols),
            bits=self._scheme.bits,
            group_size=self._scheme.group_size,
            after_bytes=self._n_bytes(linear.name, self._scheme),
        )

    def _packed(self, name: str, codes: Codes) -> Mapping[Tensor, NDArray[Any]]:
        stem, arrays = name.removesuffix("weight"), self._form.pack(codes)
        shapes = self._form.shapes(codes.scheme, *codes.codes.shape)
        return {Tensor(stem + s, *what): arrays[s] for s, what in shapes.items()}

    def _tensors(self, names: Sequence[str], result: LayerResult) -> Mapping[Tensor, NDArray[Any]]:
        """All tensors of a layer as they are written."""
        found: dict[Tensor, NDArray[Any]] = {}
        for name in names:
            if name in result.codes:
                found |= self._packed(name, result.codes[name])
            else:
                value = result.floats.get(name)
                value = self._source.read(name) if value is None else value
                array = as_dtype(self._stored, name, np.ascontiguousarray(value))
                found[Tensor(name, self._stored, value.shape)] = array
        return found

    # ---- the result ----

    def reports(self, room: int) -> list[LayerReport]:
        """By layer. room: bytes for linears that get the wide scheme, those that gain most."""
        found = [self._unfinished.report(layer) for layer in range(self.n_layer)]
        if self._wide is None:
            return found
        wide = {x.name: self._widened(x, self._wide) for report in found for x in report.linears}
        chosen = mixing.choose(mixing.units(found, wide), room)
        return [
            replace(
                report,
                linears=tuple(wide[x.name] if x.unit in chosen else x for x in report.linears),
            )
            for report in found
        ]

    def _widened(self, linear: LinearReport, wide: Scheme) -> LinearReport:
        error, n_bytes = linear.tried[bits_name(wide)], self._n_bytes(linear.name, wide)
        return replace(linear, error=error, bits=wide.bits, after_bytes=n_bytes)

    def layers(self, reports: Sequence[LayerReport]) -> list[Part]:
        """The tensors of layers, each a part: linears in the bits that their reports say."""
        parts = []
        for layer, report in enumerate(reports):
            wide = {_module(x.name) for x in report.linears if x.bits != self._scheme.bits}
            kept = self._unfinished.tensors(layer)
            parts += [part for part in kept if _module(part.tensors[0].name) not in wide]
            if wide:
                others = self._unfinished.tensors(layer, WIDE)
                parts += [part for part in others if _module(part.tensors[0].name) in wide]
        return parts


def _module(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _with_others(
    reports: Sequence[LayerReport], others: Sequence[LinearReport], n_layer: int
) -> tuple[LayerReport, ...]:
    """Reports by layer, with linears that were made while the file was written."""
    found = list(reports) or [LayerReport((), 0.0, peak_memory())] * n_layer
    for linear in others:
        i = layer_of(linear.name)
        found[i] = replace(found[i], linears=(*found[i].linears, linear))
    return tuple(found)


def _before(source: Source, reports: Sequence[LayerReport]) -> tuple[LayerReport, ...]:
    """Reports with the sizes that linears have in the model they are compared with."""
    return tuple(
        replace(
            report,
            linears=tuple(replace(x, before_bytes=source.n_bytes(x.name)) for x in report.linears),
        )
        for report in reports
    )


def _evaluation(
    source: Source, folder: Path, windows: Sequence[Sequence[int]], num_threads: int | None
) -> dict[str, Any]:
    """What a Report says of the new model beside the original one."""
    try:
        return {"evaluation": held_out.evaluate(source, folder, windows, num_threads)}
    except (MemoryError, RuntimeError, ValueError) as error:
        # The model is written: what cannot be measured here does not take it away.
        logger.warning("the new model is not evaluated: %s", error)
        return {"not_evaluated": str(error)}


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
    rotate: bool = False,
    mixed: str | None = None,
    evaluate: bool = True,
    num_threads: int | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Report:
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
    24 windows at least; 0: no calibration. calib_seqlen: tokens of a window.

    rotate: first turns the residual stream and the value heads by orthogonal matrices, which the
    written weights have taken up; tied embeddings become two matrices. The rotated floats lie in
    work_dir until the end.

    mixed: a size, "110MB" of the file or "4.5bpw" (bits per weight of the linears, scales and
    zeros included): linears get 8 bits in place of w_bits where that takes away most of the error,
    as many as the size has room for. In formats "compressed-tensors" and "gguf". Which they are is
    known at the end, so that linears do not make up for one another's errors then. evaluate: at the
    end, compares the new model with the original one on texts that no calibration has; both are in
    memory then. Where they do not fit, the report says so.

    Returns a report, a sequence of what was done to each linear; work_dir has it as report.json.
    Raises what `export` raises, and ValueError for a group size or a size that does not fit and for
    a weight or an input that is not finite, by its tensor.
    """
    original = Source(model)
    recipe, folder = _recipe(method), Path(work_dir)
    if mixed is not None:
        recipe = replace(recipe, damp=None)
    if calib_samples == 0:
        calib_dataset = None
    if calib_dataset is None and (recipe.scales or recipe.solver):
        raise ValueError(
            f'method {method!r} needs calib_dataset and calib_samples; "rtn" does without'
        )
    if desc_act and not recipe.solver:
        raise ValueError('desc_act is for methods "gptq" and "best"')
    rewrite.check_work_dir(original, folder)
    source = original
    if rotate:
        source = rotation.rotated(original, folder, rewrite.stored_dtype(original, dtype))
    target = target_of(
        source, format, w_bits, w_group_size, w_sym, w_type, desc_act, dtype, max_shard_bytes
    )
    rewrite.check_outside(source)

    def finish(
        reports: Sequence[LayerReport], layers: Sequence[Part],
        windows: Sequence[Sequence[int]] | None, seconds: float,
    ) -> Report:  # fmt: skip
        began = time.monotonic()
        rounded = target.write(folder, layers, reports)
        written = time.monotonic()
        evaluation = _evaluation(original, folder, windows or [], num_threads) if evaluate else {}
        report = Report(
            model=str(original.path),
            work_dir=str(folder),
            method=method if isinstance(method, str) else repr(method),
            format=format,
            layers=_before(
                original, _with_others(reports, rounded, source.checkpoint.config["n_layer"])
            ),
            before_bytes=sum(original.n_bytes(name) for name in original.tensors),
            after_bytes=sum(file.stat().st_size for file in rewrite.weights_of(folder)),
            seconds={
                "texts": seconds,
                "layers": math.fsum(layer.seconds for layer in reports),
                "writing": written - began,
                "evaluating": time.monotonic() - written,
            },
            **evaluation,
        )
        report.save(folder / FILE)
        rotation.remove(folder)
        return report

    is_plain = not (recipe.scales or recipe.solver)
    if isinstance(target, GgufFile) and (is_plain or not target.linears):
        if mixed is not None:
            raise unsupported("mixed in a GGUF file whose linears are all rounded: use method best")
        return finish([], [], None, 0.0)
    wide = target.wide() if mixed is not None else None
    room = mixing.room(mixed, source, target, wide) if mixed is not None and wide else 0
    job = {
        "version": __version__, "model": fingerprint(source.checkpoint), "recipe": repr(recipe),
        "target": target.key, "wide": wide and vars(wide),
    }  # fmt: skip

    def find_windows(dataset: Any) -> list[list[int]]:
        return calibration_data.windows(
            original, dataset, samples=calib_samples, seqlen=calib_seqlen, num_threads=num_threads
        )

    began = time.monotonic()
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
    seconds = time.monotonic() - began
    if windows and recipe.solver:
        config = source.checkpoint.config
        widest = max(config["hidden_dim"], config["ffn_dim"])
        calibration_data.enough(sum(map(len, windows)), widest)
    at_work = _Job(source, recipe, target, unfinished, num_threads, wide)
    try:
        at_work.run(windows)
    except KeyboardInterrupt:
        logger.warning("stopped: the same call continues with what is in %s", unfinished.folder)
        raise
    reports = at_work.reports(room)
    report = finish(reports, at_work.layers(reports), windows, seconds)
    unfinished.remove()
    return report
