"""Makes up for drift: what a linear reads in the quantised model is not what the original's reads,
and its weight can be chosen so that its outputs are nearly the original's nevertheless.

GPTAQ: arXiv 2504.02692. Qronos: arXiv 2505.11695. Of the linears that add to the residual stream,
as in LoaQ, the stream after them is what shall be the original's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .._C import InputSums, Quantizer

Array = NDArray[np.float32]

#: Inputs of linears that add to the residual stream: what is wanted is their output.
ADDS = ("o", "down")


def corrected(
    quantizer: Quantizer, weight: Array, group: str, sums: InputSums, held_out: InputSums,
    damp: float,
) -> Array:  # fmt: skip
    """A weight [n_out, n_in] whose outputs are nearer to the wanted ones: W + s (Y X^T - W H) (H +
    d I)^-1, H being the gram of the inputs X, Y what is wanted and d `damp` times the mean of H's
    diagonal. The strength s, 0 to 1, is the best one on the held-out tokens; without any, 1.

    group: one of INPUTS. sums, held_out: as `Quantizer.run_pair` makes them.
    """
    if not sums.squares().any():
        return weight
    change = quantizer.regress(sums, _misses(weight, group, sums, _gram(sums)), damp=damp)
    if held_out.n_tokens:
        change *= _strength(weight, change, group, held_out)
    change += weight
    return change


def _gram(sums: InputSums) -> Array:
    gram = sums.gram()
    assert gram is not None
    return gram


def _misses(weight: Array, group: str, sums: InputSums, gram: Array) -> Array:
    """Y X^T - W H: what the outputs miss, times the inputs."""
    wanted = sums.wanted()
    assert wanted is not None
    wanted = wanted if group in ADDS else weight @ wanted
    wanted -= weight @ gram
    return wanted


def _strength(weight: Array, change: Array, group: str, sums: InputSums) -> float:
    gram = _gram(sums)
    gain = float(np.vdot(change, _misses(weight, group, sums, gram)))
    cost = float(np.vdot(change, change @ gram))
    return min(max(gain / cost, 0.0), 1.0) if cost > 0 else 0.0
