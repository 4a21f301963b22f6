"""Opens the GGUF file of a model, or all the files that it was split into.

llama-gguf-split writes NAME-00001-of-00003.gguf and so on: the first part has the metadata, each
has some of the tensors, and the keys split.no, split.count and split.tensors.count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .safetensors import bad_file, check_no_pointer

if TYPE_CHECKING:
    from .._C import Gguf

_PART_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


def by_model(names: Iterable[str]) -> list[list[str]]:
    """Names of GGUF files, those of each model together: a file, or by their names its parts."""
    models: dict[tuple[str, ...], list[str]] = {}
    for name in sorted(names):
        part = _PART_NAME.fullmatch(name)
        models.setdefault(part.group(1, 3) if part else (name,), []).append(name)
    return list(models.values())


def _count(gguf: Gguf, key: str, default: int) -> int:
    value: Any = gguf.metadata.get(f"split.{key}", default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise bad_file(Path(gguf.path), f"its split.{key} must be a count, not {value!r:.40}")
    return value


def _part_paths(path: Path, n_parts: int) -> list[Path]:
    """The paths of all parts, beside the one that is named."""
    name = _PART_NAME.fullmatch(path.name)
    if not name or int(name[3]) != n_parts:
        wanted = f"NAME-00001-of-{n_parts:05}.gguf"
        raise bad_file(path, f"it is one of {n_parts} parts, which must be named as {wanted}")
    paths = [
        path.with_name(f"{name[1]}-{i:05}-of-{n_parts:05}.gguf") for i in range(1, n_parts + 1)
    ]
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise bad_file(
            path, f"it is one of {n_parts} parts; missing: {', '.join(missing[:3])}{more}"
        )
    return paths


def _open(path: Path) -> Gguf:
    from .._C import Gguf

    check_no_pointer(path)
    return Gguf(path)


def open_parts(path: Path, *, metadata_only: bool = False) -> list[Gguf]:
    """The files of a model, the one with the metadata first. path: any of them.

    metadata_only: that first one alone.
    Raises FileNotFoundError, UnsupportedError, and CheckpointError, which names missing parts.
    """
    named = _open(path)
    n_parts = _count(named, "count", 0)
    if n_parts <= 1:
        return [named]
    paths = _part_paths(path, n_parts)
    parts = [_open(part) for part in paths[: 1 if metadata_only else None]]
    for i, part in enumerate(parts):
        if (_count(part, "no", 0), _count(part, "count", 0)) != (i, n_parts):
            raise bad_file(paths[i], f"its split.no and split.count are not {i} and {n_parts}")
    n_tensors = sum(len(part.tensors) for part in parts)
    if not metadata_only and n_tensors != _count(named, "tensors.count", n_tensors):
        found = f"{n_tensors} tensors in {n_parts} parts"
        raise bad_file(path, f"{found}, but split.tensors.count says otherwise")
    return parts
