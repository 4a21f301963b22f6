"""LMDeploy's functions that compress: `auto_awq`, `auto_gptq` and `smooth_quant`, with LMDeploy's
arguments. Each is `quantize` by a recipe; `calibrate` is in statistics.py.

Defaults are LMDeploy's but for what a CPU and any model need: fewer tokens of calibration, data
that are not downloaded, and groups that divide the model's columns.
"""

from __future__ import annotations

import logging
from pathlib import Path

from ..files.checkpoint import resolve_model
from ..messages import unsupported
from . import rewrite
from .documents import Dataset
from .driver import quantize
from .recipe import Recipe
from .report import Report
from .source import Source
from .target import GROUP_SIZES, group_size_for

logger = logging.getLogger("lmdeploy_c")

AWQ_METHODS = ("awq", "awq-searched")


def open_source(
    model: str | Path | None, *, revision: str | None = None, download_dir: str | None = None,
    device: str = "cpu", batch_size: int = 1, trust_remote_code: bool = False,
) -> Source:  # fmt: skip
    """The model, with warnings about arguments that change nothing. Raises what `Source` raises,
    and ValueError for a batch_size below 1."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if device != "cpu":
        logger.warning("device %s is not used: models are compressed on the CPU", device)
    if trust_remote_code:
        logger.warning("trust_remote_code changes nothing: a model's code is never run")
    return Source(resolve_model(model, revision, download_dir))


def _group_size(source: Source, wanted: int | None) -> int:
    """The wanted size, or, with a warning where it is not LMDeploy's 128, the largest that fits."""
    size = group_size_for(source, wanted)
    usual = GROUP_SIZES[0]
    if wanted is None and size != usual:
        widths = {name: source.tensors[name].shape[1] for name in source.linears()}
        name = next(name for name, n in widths.items() if n % usual)
        logger.warning(
            "groups have %d columns: LMDeploy's %d do not divide the %d columns of %s",
            size, usual, widths[name], name,
        )  # fmt: skip
    return size


def _dtype(source: Source, dtype: str) -> str:
    """ "auto": the model's own where that is bfloat16, and else float16, as LMDeploy runs it."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if rewrite.stored_dtype(source, "auto") == "BF16" else "float16"


def _method(method: str | None, search_scale: bool) -> str:
    if method is None:
        return "awq-searched" if search_scale else "awq"
    if search_scale and method not in AWQ_METHODS:
        raise ValueError(f"search_scale is for AWQ's scales, which method {method!r} does without")
    return "awq-searched" if search_scale else method


def auto_awq(
    model: str | Path | None = None,
    work_dir: str | Path = "./work_dir",
    calib_dataset: Dataset = "builtin",
    calib_samples: int | None = None,
    batch_size: int = 1,
    calib_seqlen: int = 512,
    w_bits: int = 4,
    w_sym: bool = False,
    w_group_size: int | None = None,
    search_scale: bool = False,
    device: str = "cpu",
    revision: str | None = None,
    dtype: str = "auto",
    download_dir: str | None = None,
    trust_remote_code: bool = False,
    *,
    method: str | None = None,
    num_threads: int | None = None,
) -> Report:
    """Writes a model with 4-bit weights in AWQ's format, by LMDeploy's method: each linear's
    columns are scaled by what they carry, and what comes before it undoes that.

    model, work_dir, calib_dataset, calib_seqlen, num_threads and what is returned and raised: as
    `quantize`. calib_samples: windows, at most; None: as `quantize`; 0: data free, which is method
    "rtn". search_scale: the scales of a search. method: any of `quantize` in place of AWQ's, such
    as "best". w_group_size: None: the largest of 128, 64 and 32 that fits, with a warning where
    that is not 128. dtype: of what stays a float; "auto": bfloat16 where the model is, or float16.
    revision, download_dir: of a model id.

    batch_size, device and trust_remote_code change nothing: texts are read in steps of many tokens,
    on the CPU, and a model's code is never run.
    """
    source = open_source(
        model, revision=revision, download_dir=download_dir, device=device,
        batch_size=batch_size, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    chosen, is_free = _method(method, search_scale), calib_samples == 0
    if is_free and search_scale:
        logger.warning("search_scale changes nothing without calibration: calib_samples is 0")
    return quantize(
        source.path, work_dir,
        method="rtn" if is_free and method is None else chosen,
        format="awq", w_bits=w_bits, w_sym=w_sym,
        w_group_size=_group_size(source, w_group_size),
        dtype=_dtype(source, dtype),
        calib_dataset=calib_dataset, calib_samples=calib_samples, calib_seqlen=calib_seqlen,
        num_threads=num_threads,
    )  # fmt: skip


def auto_gptq(
    model: str | Path | None = None,
    work_dir: str | Path = "./work_dir",
    w_bits: int = 4,
    w_group_size: int | None = None,
    calib_dataset: Dataset = "builtin",
    calib_samples: int | None = None,
    calib_seqlen: int = 512,
    batch_size: int = 1,
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    *,
    w_sym: bool = True,
    desc_act: bool = False,
    method: str = "gptq",
    num_threads: int | None = None,
) -> Report:
    """Writes a model in GPTQ's format, by its paper's method (arXiv 2210.17323): each column's
    error is made good by the columns after it. To the diagonal of H a hundredth of its mean is
    added.

    Arguments: as `auto_awq`, and w_bits: 3, 4 or 8. w_sym: zero is the middle code; True, as
    LMDeploy has it. desc_act: the columns that carry most come first, and groups are of such.
    calib_samples must not be 0. Returns and raises: as `quantize`.
    """
    source = open_source(
        model, revision=revision, batch_size=batch_size, trust_remote_code=trust_remote_code
    )
    return quantize(
        source.path, work_dir, method=method, format="gptq", w_bits=w_bits, w_sym=w_sym,
        desc_act=desc_act, w_group_size=_group_size(source, w_group_size),
        dtype=_dtype(source, dtype), calib_dataset=calib_dataset,
        calib_samples=calib_samples, calib_seqlen=calib_seqlen, num_threads=num_threads,
    )  # fmt: skip


def smooth_recipe(alpha: float = 0.5, search_scale: bool = False) -> Recipe:
    """SmoothQuant's scales, and each row's largest |weight| as the largest code. ValueError."""
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be from 0 to 1, not {alpha}")
    scales = "searched" if search_scale else "plain"
    return Recipe(scales=scales, search=False, absmax=True, alpha=alpha)


def smooth_quant(
    model: str | Path | None = None,
    work_dir: str | Path = "./work_dir",
    calib_dataset: Dataset = "builtin",
    calib_samples: int | None = None,
    calib_seqlen: int = 512,
    search_scale: bool = False,
    batch_size: int = 1,
    w_bits: int = 8,
    dtype: str = "auto",
    device: str = "cpu",
    quant_dtype: str = "int8",
    revision: str | None = None,
    download_dir: str | None = None,
    trust_remote_code: bool = False,
    *,
    alpha: float = 0.5,
    num_threads: int | None = None,
) -> Report:
    """Writes a model with 8-bit weights and smoothed activations (SmoothQuant, arXiv 2211.10438) in
    compressed-tensors' format of W8A8, int-quantized: who runs it quantises activations per token.

    alpha: how much of the range goes from activations into weights, 0 to 1: a column's scale is
    its largest |input|^alpha over its weights' size^(1 - alpha). quant_dtype: "int8". calib_samples
    must not be 0. The other arguments, and what is returned and raised: as `auto_awq`.
    UnsupportedError for another quant_dtype or w_bits.
    """
    if quant_dtype != "int8" or w_bits != 8:
        raise unsupported(f"smooth_quant to {quant_dtype} of {w_bits} bits: int8 is served")
    if calib_samples == 0:
        raise ValueError("smooth_quant needs calibration: calib_samples must not be 0")
    recipe = smooth_recipe(alpha, search_scale)
    source = open_source(
        model, revision=revision, download_dir=download_dir, device=device,
        batch_size=batch_size, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    return quantize(
        source.path, work_dir, method=recipe, format="int-quantized", w_bits=8, w_group_size=-1,
        w_sym=True, dtype=_dtype(source, dtype), calib_dataset=calib_dataset,
        calib_samples=calib_samples, calib_seqlen=calib_seqlen, num_threads=num_threads,
    )  # fmt: skip
