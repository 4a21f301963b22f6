"""fp32 values as the float types of files."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: What users call a type -> its name in files.
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
BF16_INFINITY = np.uint16(0x7F80)  # and NaNs have these bits


def _to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The nearest bf16, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def check_finite(name: str, values: NDArray[np.float32]) -> None:
    """ValueError, by the tensor's name, for a NaN or an infinity."""
    is_finite = np.isfinite(values).reshape(len(values), -1).all(1)
    if not is_finite.all():
        place = f"{'row' if values.ndim > 1 else 'value'} {is_finite.argmin()}"
        raise ValueError(f'tensor "{name}": a NaN or an infinity in {place}')


def as_dtype(dtype: str, name: str, values: NDArray[np.float32]) -> NDArray[Any]:
    """The values of a tensor as "F32", "F16" or "BF16" (bits as uint16). ValueError, by its name,
    for values that are not finite, or not in that type."""
    check_finite(name, values)
    if dtype == "F32":
        return values
    if dtype == "BF16":
        bits = _to_bf16(values)
        fits = ((bits & BF16_INFINITY) != BF16_INFINITY).all()
    else:
        with np.errstate(over="ignore"):
            bits = values.astype(np.float16)
        fits = np.isfinite(bits).all()
    if not fits:
        found, wider = ("bfloat16", "") if dtype == "BF16" else ("float16", "bfloat16 or ")
        raise ValueError(
            f'tensor "{name}" has values that {found} cannot hold: choose dtype {wider}float32'
        )
    return bits
