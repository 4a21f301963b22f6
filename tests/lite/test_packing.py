"""Words of codes: the stream that compressed-tensors and GPTQ define, an odd end included."""

from __future__ import annotations

import numpy as np
import pytest

from lmdeploy_c.lite import packing


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("n", [1, 7, 8, 10, 11, 31, 32, 33, 96, 100])
def test_code_i_is_bits_from_i_times_bits_on(bits: int, n: int) -> None:
    """As one large number for each line, which is cut into words."""
    codes = np.random.default_rng(n).integers(0, 2**bits, (5, n), np.uint8)
    made = packing.FORMATS["compressed-tensors"].pack(
        packing.Codes(
            packing.Scheme(bits, -1, False),
            codes,
            np.ones((5, 1), np.float16),
            np.arange(5, dtype=np.uint8)[:, None],
        )
    )
    words, zeros = made["weight_packed"].view(np.uint32), made["weight_zero_point"]
    assert words.shape == (5, -(-n * bits // 32)) and zeros.shape == (-(-5 * bits // 32), 1)
    for line, row in zip(codes, words, strict=True):
        number = sum(int(code) << (bits * i) for i, code in enumerate(line))
        assert [number >> (32 * i) & 0xFFFFFFFF for i in range(len(row))] == row.tolist()
    assert sum(int(i) << (bits * i) for i in range(5)) == sum(
        int(word) << (32 * i) for i, word in enumerate(zeros[:, 0].view(np.uint32))
    )


def test_words_of_compressed_tensors() -> None:
    """32 codes of 3 bits, as compressed-tensors 0.20's pack_to_int32 packs them."""
    codes = (np.arange(32, dtype=np.uint8) * 5 + 3) % 8
    made = packing.Codes(
        packing.Scheme(3, -1, True),
        codes[None],
        np.ones((1, 1), np.float16),
        np.full((1, 1), 4, np.uint8),
    )
    arrays = packing.FORMATS["compressed-tensors"].pack(made)
    assert arrays["weight_packed"].tolist() == [[1137079619, 1967375989, -965393466]]
    assert arrays["weight_shape"].tolist() == [1, 32]


@pytest.mark.parametrize("form", packing.FORMATS)
def test_tensors_have_the_shapes_that_are_announced(form: str) -> None:
    found = packing.FORMATS[form]
    names = {"F16": np.float16, "I32": np.int32, "I64": np.int64, "I8": np.int8}
    for bits in found.bits:
        scheme = packing.Scheme(bits, -1 if found.by_row else 32, found.by_row)
        n_groups = scheme.n_groups(96)
        made = packing.Codes(
            scheme,
            np.zeros((64, 96), np.uint8),
            np.ones((64, n_groups), np.float16),
            np.full((64, n_groups), 2 ** (bits - 1), np.uint8),
        )
        arrays = found.pack(made)
        shapes = {
            name: (names[d], shape) for name, (d, shape) in found.shapes(scheme, 64, 96).items()
        }
        assert {name: (a.dtype.type, a.shape) for name, a in arrays.items()} == shapes
