"""fp32 values as the float types of files."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: What users call a type -> its name in files.
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def _to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The nearest bf16, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def as_dtype(dtype: str, name: str, values: NDArray[np.float32]) -> NDArray[Any]:
    """The values of a tensor as "F32", "F16" or "BF16" (bits as uint16). ValueError, by its name,
    for values that F16 cannot hold."""
    if dtype == "F32":
        return values
    if dtype == "BF16":
        return _to_bf16(values)
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        raise ValueError(
            f'tensor "{name}" has values that float16 cannot hold (or that are not finite): '
            "choose dtype bfloat16 or float32"
        )
    return halves
