"""A model as one GGUF file, each tensor in a type of its own.

`types_of` says which, `GgufModel` writes. The metadata of a GGUF file is copied; a directory's is
made.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.loading import make_tokenizer
from ..files.sampling_defaults import GGUF_NAMES as SAMPLING_NAMES
from ..files.sampling_defaults import sampling_defaults
from ..messages import unsupported
from ..progress import adding_bytes
from . import gguf_config, gguf_tokenizer
from .floats import as_dtype, check_finite
from .gguf_packing import BLOCK_LEN, ROUND, BlockCodes, pack, round_to_nearest
from .gguf_tensors import Piece, pieces
from .gguf_writer import file_bytes, write_gguf
from .shards import Part, Tensor
from .source import LINEARS, ROPE_FREQS, Source

logger = logging.getLogger("lmdeploy_c")

FILE = "model.gguf"
#: A type -> general.file_type of a file whose weights mostly have it.
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32}
FLOATS = ("F32", "F16", "BF16")
#: Embeddings and heads have this type where the linears are quantised.
EMBEDDING_TYPE = "Q8_0"
EMBEDDINGS = (
    "model.embed_tokens.weight", "lm_head.weight", "model.tok_embeddings.weight", "output.weight",
)  # fmt: skip
#: Keys of a GGUF file that say how its tensors are stored.
_OF_STORAGE = ("general.file_type", "general.quantization_version", "general.alignment", "split.",
               "quantize.")  # fmt: skip

#: (name, type, values [n_out, n_in]) -> codes, of a tensor whose columns are a multiple of 32.
Quantise = Callable[[str, str, NDArray[np.float32]], BlockCodes]


# ---- types ----


def _known(name: str) -> str:
    if name.upper() not in FILE_TYPES:
        known = ", ".join(sorted(t.lower() for t in FILE_TYPES))
        raise ValueError(f"a tensor's type in a GGUF file must be one of {known}, not {name!r}")
    return name.upper()


def _wanted(w_type: str | Mapping[str, str], name: str) -> str | None:
    """The type that is asked for; None: it stays a float."""
    if isinstance(w_type, str):
        if LINEARS.fullmatch(name):
            return _known(w_type)
        quantises = _known(w_type) in ROUND
        return EMBEDDING_TYPE if quantises and name in EMBEDDINGS else None
    return next((_known(t) for pattern, t in w_type.items() if fnmatchcase(name, pattern)), None)


def float_types(source: Source, dtype: str | None) -> dict[str, str]:
    """The type of each tensor, by its name: `dtype` for matrices; None: its own, or F32 for codes.
    What is no matrix is F32, as llama.cpp wants it."""
    return {
        name: "F32" if len(t.shape) != 2 else dtype or (t.dtype if t.dtype in FLOATS else "F32")
        for name, t in source.tensors.items()
    }


def types_of(source: Source, w_type: str | Mapping[str, str], dtype: str) -> dict[str, str]:
    """The type of each tensor, by its name: "Q4_1", "F16", ...

    w_type: "q4_0", "q4_1", "q8_0", "f16", "bf16" or "f32": of the layers' linears; where they are
    quantised, embedding and head are Q8_0. Or patterns of names (`fnmatch`) -> types, of which the
    first that matches counts. dtype: "F32", "F16" or "BF16", of the others, and of matrices whose
    columns are no multiple of 32, which is said. What is no matrix is F32, as llama.cpp wants it.

    ValueError for a type that is none, and for a pattern that no tensor matches.
    """
    shapes = {name: stored.shape for name, stored in source.tensors.items()}
    if not isinstance(w_type, str):
        for pattern in w_type:
            if not any(fnmatchcase(name, pattern) for name in shapes):
                raise ValueError(f"w_type: no tensor matches {pattern!r}")
    found = {}
    for name, shape in shapes.items():
        if len(shape) != 2:
            found[name] = "F32"
            continue
        wanted = _wanted(w_type, name) or dtype
        if wanted in ROUND and shape[1] % BLOCK_LEN:
            logger.warning(
                "%s has %d columns, no multiple of %d: it is kept as %s instead of %s",
                *(name, shape[1], BLOCK_LEN, dtype, wanted),
            )
            wanted = dtype
        found[name] = wanted
    return found


def type_named(bits: int, symmetric: bool) -> str:
    """A type of blocks by what its codes are. UnsupportedError."""
    if bits not in (4, 8):
        raise unsupported(f"w_bits of gguf must be 4 or 8, not {bits}")
    return "Q8_0" if bits == 8 else "Q4_0" if symmetric else "Q4_1"


def solved_type(types: Mapping[str, str]) -> str:
    """The type of which a method makes the codes: of 4 bits, where there is one; other blocks are
    rounded. ValueError for both Q4_0 and Q4_1."""
    found = [dtype for dtype in ("Q4_0", "Q4_1") if dtype in types.values()]
    if len(found) > 1:
        raise ValueError("w_type: a file has linears of q4_0 or of q4_1, not both; or method rtn")
    return found[0] if found else "Q8_0"


# ---- metadata ----


def _sampling(source: Source) -> dict[str, Any]:
    """general.sampling.*: how the model's own files sample. A file that names more than the penalty
    says that it is sampled from."""
    found = sampling_defaults(source.checkpoint)
    named = {k: v for k, v in found.items() if k in SAMPLING_NAMES}
    if not found.get("do_sample"):
        named = {k: v for k, v in named.items() if k == "repetition_penalty"}
    return {
        f"general.sampling.{SAMPLING_NAMES[key]}": np.int32(value)
        if key == "top_k"
        else np.float32(value)
        for key, value in named.items()
    }


def _made(source: Source) -> dict[str, Any]:
    """The metadata of a directory. UnsupportedError."""
    found = source.checkpoint
    arch, config = gguf_config.architecture_of(found), found.config
    tokenizer = make_tokenizer(found)
    return {
        "general.architecture": arch,
        "general.type": "model",
        "general.name": source.path.resolve().name,
        **_sampling(source),
        **gguf_config.of_config(config, arch),
        **gguf_tokenizer.of_tokenizer(
            tokenizer, config["vocab_size"], found.bos_token_id, found.eos_token_ids
        ),
    }


def _metadata(source: Source, parts: list[Part]) -> dict[str, Any]:
    if source.is_gguf:
        items = source.checkpoint.metadata.items()
        found = {key: value for key, value in items if not key.startswith(_OF_STORAGE)}
    else:
        found = _made(source)
    values: Counter[str] = Counter()
    for tensor in (tensor for part in parts for tensor in part.tensors if len(tensor.shape) == 2):
        values[tensor.dtype] += tensor.shape[0] * tensor.shape[1]
    [(most, _)] = values.most_common(1)
    return {
        **found,
        "general.file_type": FILE_TYPES[most],
        "general.quantization_version": 2,  # of the blocks' layouts, as llama.cpp counts them
    }


# ---- tensors ----


def rounded(name: str, dtype: str, values: NDArray[np.float32]) -> BlockCodes:
    """The plain grid of each group. ValueError, by the tensor's name, for values that it cannot
    hold."""
    check_finite(name, values)
    made = round_to_nearest(dtype, values)
    if not made.is_finite():
        raise ValueError(f'tensor "{name}" has values that {dtype} cannot hold')
    return made


def _shape(piece: Piece, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if piece.rows is None else (len(piece.rows), *shape[1:])


def _part(
    source: Source,
    name: str,
    dtype: str,
    made: list[Piece],
    quantise: Quantise,
    ready: Mapping[str, Part],
) -> Part:
    """The tensors that are made of one of the source."""
    shape = source.tensors[name].shape

    def make() -> list[NDArray[Any]]:
        values = ready[name].make()[0] if name in ready else source.read(name)
        if values.dtype == np.uint8:
            return [values if p.rows is None else values[p.rows] for p in made]
        if dtype in ROUND:
            codes = quantise(name, dtype, values)
            return [pack(codes if p.rows is None else codes.rows(p.rows)) for p in made]
        floats = as_dtype(dtype, name, values)
        return [floats if p.rows is None else floats[p.rows] for p in made]

    return Part(tuple(Tensor(p.name, dtype, _shape(p, shape)) for p in made), make)


def _rope_freqs(source: Source) -> list[Part]:
    made = gguf_config.rope_freqs(source.checkpoint.config)
    factors = source.rope_freqs() if source.is_gguf else made
    if factors is None:
        return []
    return [Part((Tensor(ROPE_FREQS, "F32", factors.shape),), lambda: [factors])]


class GgufModel:
    """A source as a GGUF file to be written, checked.

    types: the type of each tensor of the source. quantise: codes of the tensors that get blocks.
    ready: tensors by their names that are taken instead of the source's when the file is written:
    blocks, as the bytes of rows, or fp32.

    Raises UnsupportedError for what llama.cpp cannot express, and CheckpointError for tensors that
    are missing or have other shapes than the configuration says.
    """

    def __init__(
        self,
        source: Source,
        types: Mapping[str, str],
        quantise: Quantise = rounded,
        ready: Mapping[str, Part] = MappingProxyType({}),
    ) -> None:
        found = pieces(source)
        made = [_part(source, name, types[name], found[name], quantise, ready) for name in found]
        self._parts = [*_rope_freqs(source), *made]
        self._metadata = _metadata(source, self._parts)

    @property
    def n_bytes(self) -> int:
        """What the file takes."""
        return file_bytes(self._metadata, self._parts)

    def write(self, folder: Path, what: str) -> Path:
        """Writes `FILE`, which is not there until it is whole, and returns its path. what: the word
        beside the progress bar. ValueError for values that a type cannot hold; OSError."""
        with adding_bytes(what, sum(part.n_bytes for part in self._parts)) as done:
            write_gguf(folder / FILE, self._metadata, self._parts, done)
        return folder / FILE
