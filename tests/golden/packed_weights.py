"""Packs matrices as AWQ (gemm) and GPTQ (4 bits, no act order) checkpoints do.

A group of a row's columns has a scale, a half, and a zero: value = (code - zero) * scale. Tensors
lie transposed, with the columns of the matrix first, and eight codes share a word of 32 bits.
"""

import numpy as np
import torch

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# The code that each nibble of a word holds, of a run of eight, from the lowest nibble up.
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
GPTQ_ORDER = [0, 1, 2, 3, 4, 5, 6, 7]


def quantize(w, group_size):
    """Rounds to 16 steps between a group's least and largest value.

    Returns codes [n_out, n_groups, group_size], and zeros and scales [n_out, n_groups, 1].
    """
    groups = w.reshape(len(w), -1, group_size)
    low, high = (f(groups, axis=2, keepdims=True) for f in (np.min, np.max))
    scales = ((high - low) / 15).astype(np.float16).astype(np.float32)
    zeros = np.clip(np.round(-low / scales), 0, 15)
    codes = np.clip(np.round(groups / scales) + zeros, 0, 15)
    return codes.astype(np.int64), zeros.astype(np.int64), scales


def pack_words(codes, order):
    """Packs runs of eight along the last axis."""
    runs = codes.reshape(*codes.shape[:-1], -1, 8)[..., order]
    words = (runs << (4 * np.arange(8))).sum(-1)
    return words.astype(np.uint32).view(np.int32)


def pack_matrix(w, method, group_size):
    """Returns the tensors of a checkpoint by their suffix, and the values they stand for."""
    codes, zeros, scales = quantize(w, group_size)
    values = ((codes - zeros) * scales).astype(np.float32).reshape(w.shape)
    codes, zeros, scales = codes.reshape(w.shape), zeros[..., 0].T, scales[..., 0].T
    tensors = {"scales": scales.astype(np.float16)}
    if method == "awq":
        tensors["qweight"] = pack_words(codes.T, AWQ_ORDER)
        tensors["qzeros"] = pack_words(zeros, AWQ_ORDER)
    else:
        tensors["qweight"] = pack_words(codes, GPTQ_ORDER).T
        tensors["qzeros"] = pack_words((zeros - 1) % 16, GPTQ_ORDER)  # stored as one less
        tensors["g_idx"] = (np.arange(w.shape[1]) // group_size).astype(np.int32)
    return tensors, values


def pack_weights(weights, method, group_size):
    """Packs every linear of the layers. Returns what is stored, and the dense values of it."""
    stored, dense = {}, {}
    for name, w in weights.items():
        module, kind = name.rsplit(".", 1)
        if kind != "weight" or not module.endswith(LINEARS):
            stored[name] = dense[name] = w
            continue
        tensors, values = pack_matrix(w.float().numpy(), method, group_size)
        for suffix, array in tensors.items():
            stored[f"{module}.{suffix}"] = torch.from_numpy(np.ascontiguousarray(array))
        dense[name] = torch.from_numpy(values)
    return stored, dense
