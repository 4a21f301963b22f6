"""Fuzzing the file readers in this process: mutants open, or are refused as documented.

Mutants are made from a few small right files by seeded edits, without knowing the format, so that
every reader can use them. A crash ends the test run; a read that hangs fails it. libFuzzer with
sanitizers (`make fuzz`) looks deeper.
"""

import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import gguf_bytes as gb
import numpy as np
from conftest import GOLDEN

from lmdeploy_c import _C

N_MUTANTS = 10_000
MAX_SECONDS = 1.0  # for one mutant, on a loaded machine too
#: Where parsers break: around 0, powers of two, the limits of a type.
NUMBERS = [0, 1, 2, 7, 31, 32, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32]
NUMBERS += [2**60, 2**61, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 8, 2**64 - 1]


def change(rng: np.random.Generator, data: bytearray, others: Sequence[bytes], n_head: int) -> None:
    """One edit in place, mostly among the first n_head bytes: where the format's structure is."""
    n = min(len(data), n_head) if rng.random() < 0.9 else len(data)
    at = int(rng.integers(n))
    kind = rng.integers(7)
    if kind == 0:
        data[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        data[at] = int(rng.integers(256))
    elif kind == 2:  # a length or count replaced
        number = NUMBERS[rng.integers(len(NUMBERS))]
        raw = struct.pack("<Q", number)[: 4 if rng.random() < 0.3 else 8]
        data[at : at + len(raw)] = raw
    elif kind == 3:  # a length or count moved a little
        raw = bytes(data[at : at + 8]).ljust(8, b"\0")
        number = (struct.unpack("<Q", raw)[0] + int(rng.integers(-9, 10))) % 2**64
        data[at : at + 8] = struct.pack("<Q", number)
    elif kind == 4:  # cut
        del data[at:]
    elif kind == 5:  # a piece of another file, over or in between
        other = others[rng.integers(len(others))]
        begin = int(rng.integers(min(len(other), n_head)))
        piece = other[begin : begin + int(rng.integers(1, 64))]
        data[at : at + (len(piece) if rng.random() < 0.5 else 0)] = piece
    else:  # a piece removed
        del data[at : at + int(rng.integers(1, 32))]


def mutants(seeds: Sequence[bytes], n: int, n_head: int, seed: int = 0) -> Iterator[bytes]:
    rng = np.random.default_rng(seed)
    for _ in range(n):
        data = bytearray(seeds[rng.integers(len(seeds))])
        for _ in range(int(rng.integers(1, 4))):
            if data:
                change(rng, data, seeds, n_head)
        yield bytes(data)


def survives(
    path: Path,
    contents: Iterator[bytes],
    read: Callable[[Path], object],
    documented: tuple[type[Exception], ...],
) -> tuple[int, int]:
    """Reads every mutant from `path`. Returns how many opened and how many were refused."""
    n_opened = n_refused = 0
    for i, content in enumerate(contents):
        path.write_bytes(content)
        start = time.monotonic()
        try:
            read(path)
            n_opened += 1
        except documented:
            n_refused += 1
        except Exception as error:
            raise AssertionError(f"mutant {i} raised {error!r}, which is not documented") from error
        assert time.monotonic() - start < MAX_SECONDS, f"mutant {i} took too long"
    return n_opened, n_refused


# ---- GGUF ----


def read_gguf(path: Path) -> None:
    """Everything that an open file offers."""
    file = _C.Gguf(path)
    assert file.n_bytes == path.stat().st_size
    assert isinstance(file.metadata, dict)
    for name, (_, shape) in file.tensors.items():
        assert file.dequantize(name).shape == shape


def test_gguf(tmp_path: Path) -> None:
    golden = [p.read_bytes() for p in sorted((GOLDEN / "gguf").glob("llama-*.gguf"))]
    # The small file has all its structure in a few hundred bytes, where most edits hit something.
    seeds = [*[gb.small_file()] * len(golden), *golden]
    n_opened, n_refused = survives(
        tmp_path / "mutant.gguf",
        mutants(seeds, N_MUTANTS, n_head=600),
        read_gguf,
        (_C.CheckpointError, _C.UnsupportedError),
    )
    assert n_opened > N_MUTANTS // 100, "the mutants are too wild to reach anything"
    assert n_refused > N_MUTANTS // 10, "the mutants are too tame"
