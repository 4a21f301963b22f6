"""Models by their ids on a hub: which files of a repository are wanted, and fetching them.

The hub is Hugging Face's, through huggingface_hub with its cache and variables (HF_HOME, HF_TOKEN,
HF_ENDPOINT, HF_HUB_OFFLINE), or ModelScope with LMDEPLOY_USE_MODELSCOPE=True. Names of files come
from the network: none leaves the folder of its repository.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from . import gguf_parts, safetensors

logger = logging.getLogger("lmdeploy_c")

#: Which quantisation of a GGUF repository is taken where none is named: the first that is there.
PREFERRED = (
    *("Q4_K_M", "Q4_K_S", "Q4_K_L", "Q4_K_XL", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS"),
    *("Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q6_K", "Q8_0", "BF16", "F16", "FP16", "F32"),
    *("Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K"),
)
#: What a Hugging Face directory is read from.
DIRECTORY_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]
_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:/(.+\.gguf)|:([\w.-]+))?")
_HOST = re.compile(r"(?:https?://)?(?:www\.)?(?:hf\.co|huggingface\.co)/")
_IN_A_REVISION = re.compile(r"([^/]+/[^/]+)/(?:blob|resolve|tree)/([^/]+)")
_LISTED = 12  # files that a message names
_TIMEOUT = 10.0  # seconds, of a question to the hub


@dataclass(frozen=True)
class ModelId:
    """A repository, and what of it: nothing more, a quantisation, or a file."""

    repo: str
    tag: str | None = None
    file: str | None = None
    revision: str | None = None


def parse_id(text: str) -> ModelId | None:
    """owner/name, owner/name:Q4_0, owner/name/file.gguf, each also after hf.co/ or as the address
    of a page on huggingface.co; None for anything else."""
    revision = None
    host = _HOST.match(text)
    if host:
        text = text[host.end() :].rstrip("/")
        place = _IN_A_REVISION.match(text)
        if place:
            revision = place[2]
            text = place[1] + text[place.end() :]
    found = _ID.fullmatch(text)
    if not found:
        return None
    tag = None if found[3] in (None, "latest") else found[3]
    return ModelId(found[1], tag, found[2], revision)


# ---- which files ----


def _has_tag(name: str, tag: str) -> bool:
    """Whether a file's name has a quantisation as a whole word: Q4_K is not in Q4_K_M."""
    word = rf"(?<![A-Za-z0-9]){re.escape(tag)}(?![A-Za-z0-9_])"
    return re.search(word, name, re.IGNORECASE) is not None


def _matches(name: str, pattern: str) -> bool:
    return any(fnmatch(part, pattern) for part in (name, PurePosixPath(name).name))


def choose_gguf(
    where: str, names: Sequence[str], tag: str | None = None, pattern: str | None = None
) -> list[str]:
    """The file of one GGUF model among names, or all its parts in order.

    tag: a quantisation. pattern: a name, or one with wildcards. Neither: the only model, or the
    first of PREFERRED. where: what the names are of, for messages.
    Raises FileNotFoundError for nothing, ValueError for several.
    """
    models = [
        parts
        for parts in gguf_parts.by_model(names)
        if not re.match(r"mmproj|.*imatrix", PurePosixPath(parts[0]).name, re.IGNORECASE)
    ]
    if pattern is not None:
        wanted = f"a file {pattern!r}"
        found = [parts for parts in models if any(_matches(name, pattern) for name in parts)]
    elif tag is not None or len(models) != 1:
        tags = PREFERRED if tag is None else (tag,)
        wanted = "a GGUF file" if tag is None else f"a GGUF file of {tag!r}"
        by_tag = ([m for m in models if _has_tag(m[0], one)] for one in tags)
        found = next((some for some in by_tag if some), [])
    else:
        return models[0]
    if len(found) == 1:
        return found[0]
    firsts = [parts[0] for parts in found or models]
    more = f" and {len(firsts) - _LISTED} more" if len(firsts) > _LISTED else ""
    listed = (", ".join(firsts[:_LISTED]) or "none") + more
    if found:
        raise ValueError(f"{where!r} has several: {listed}; name one by filename=")
    raise FileNotFoundError(f"{where!r} has not {wanted}; its GGUF files: {listed}")


def _plain(names: Sequence[str]) -> list[str]:
    paths = [(name, PurePosixPath(name)) for name in names]
    return sorted(name for name, path in paths if not path.is_absolute() and ".." not in path.parts)


def _in_directory(names: Sequence[str]) -> list[str]:
    """DIRECTORY_FILES among names, but copies of the weights, and shards that an index names."""
    files = [n for n in names if "/" not in n and any(fnmatch(n, p) for p in DIRECTORY_FILES)]
    weights = [name for name in files if name.endswith(".safetensors")]
    if "model.safetensors" in weights:
        wanted = ["model.safetensors"]
    elif safetensors.INDEX in files:
        wanted = []
    else:
        wanted = [name for name in weights if not name.startswith("adapter_")]
    return [name for name in files if name not in weights or name in wanted]


# ---- the hubs ----


class _HuggingFace:
    title, package = "the Hugging Face hub", "huggingface_hub"

    def __init__(self, repo: str, revision: str | None, cache_dir: str | None) -> None:
        import huggingface_hub

        self._hub = huggingface_hub
        self._repo = repo
        self._where: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir}

    def names(self) -> list[str]:
        """The repository's files; those in the cache where the hub does not answer."""
        try:
            # One try: list_repo_files would wait half a minute where there is no network.
            about = self._hub.HfApi().model_info(
                self._repo, revision=self._where["revision"], timeout=_TIMEOUT
            )
            return [file.rfilename for file in about.siblings or ()]
        except Exception as error:
            try:  # that no file is wanted leaves nothing to miss
                cached = Path(self.fetch(["-"], local_files_only=True))
            except Exception:
                raise error from None
            files = (path for path in cached.rglob("*") if path.is_file())
            return [path.relative_to(cached).as_posix() for path in files]

    def fetch(self, names: Sequence[str], **options: Any) -> str:
        patterns = [glob.escape(name) for name in names]
        return str(
            self._hub.snapshot_download(
                self._repo, allow_patterns=patterns, **self._where, **options
            )
        )

    def reason(self, error: Exception, include: str) -> str:
        kind = type(error).__name__
        if kind == "GatedRepoError":
            return "it gives this one to those who asked on its page, and have set HF_TOKEN"
        if kind == "RepositoryNotFoundError":
            return "it has no such repository, or a private one, which needs HF_TOKEN"
        if kind == "RevisionNotFoundError":
            return f"its repository has no revision {self._where['revision']!r}"
        if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
            return _first_line(error)  # a full disk, a folder that is not ours
        command = f"hf download {self._repo}{include} --local-dir {self._repo.split('/')[1]}"
        return (
            f"it was not reached ({_first_line(error)}). Where there is a network, run: {command}; "
            "bring that folder here, and give its path as the model"
        )


class _ModelScope:
    title, package = "ModelScope", "modelscope"

    def __init__(self, repo: str, revision: str | None, cache_dir: str | None) -> None:
        from modelscope import snapshot_download
        from modelscope.hub.api import HubApi

        self._api, self._download = HubApi(), snapshot_download
        self._repo, self._revision, self._cache_dir = repo, revision, cache_dir

    def names(self) -> list[str]:
        files = self._api.get_model_files(self._repo, revision=self._revision, recursive=True)
        return [str(file["Path"]) for file in files if file.get("Type") != "tree"]

    def fetch(self, names: Sequence[str]) -> str:
        return str(
            self._download(
                self._repo,
                revision=self._revision,
                cache_dir=self._cache_dir,
                allow_patterns=[glob.escape(name) for name in names],
            )
        )

    def reason(self, error: Exception, include: str) -> str:
        return _first_line(error)


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


class _Repository:
    """A repository of a hub, whose refusals say what to do."""

    def __init__(
        self, id: ModelId, revision: str | None, cache_dir: str | None, pattern: str | None
    ) -> None:
        modelscope = os.environ.get("LMDEPLOY_USE_MODELSCOPE", "False").lower() in ("1", "true")
        kind = _ModelScope if modelscope else _HuggingFace
        self.id, self.pattern = id, pattern
        try:
            self.hub = kind(id.repo, revision or id.revision, cache_dir)
        except ImportError:
            raise FileNotFoundError(
                f"{id.repo!r} is no path here, and {kind.package}, which would fetch it from "
                f"{kind.title}, is not installed: pip install {kind.package}"
            ) from None

    def names(self) -> list[str]:
        return _plain(self._ask(self.hub.names))

    def fetch(self, names: Sequence[str]) -> Path:
        return Path(self._ask(self.hub.fetch, names))

    def _ask(self, function: Callable[..., Any], *args: Any) -> Any:
        try:
            return function(*args)
        except Exception as error:
            wanted = self.pattern or (self.id.tag and f"*{self.id.tag}*.gguf")
            if wanted is None and "gguf" in self.id.repo.lower():
                wanted = f"*{PREFERRED[0]}*.gguf"
            include = f' --include "{wanted}"' if wanted else ""
            raise FileNotFoundError(
                f"{self.id.repo!r} is no path here, and {self.hub.title} did not give it: "
                f"{self.hub.reason(error, include)}"
            ) from error


def download(
    id: ModelId, revision: str | None, cache_dir: str | None, filename: str | None
) -> Path:
    """The GGUF file or the directory of a model, fetched where the cache lacks it.

    revision: None is the one in the address, or the newest. filename: a GGUF file of the
    repository, or a pattern for it. Raises FileNotFoundError and ValueError, which say what to do,
    and CheckpointError for an index that names no files.
    """
    pattern = filename or (id.file and glob.escape(id.file))
    repository = _Repository(id, revision, cache_dir, pattern)
    names = repository.names()
    ggufs = [name for name in names if name.endswith(".gguf")]
    in_directory = _in_directory(names)
    has_index = safetensors.INDEX in in_directory
    is_directory = has_index or any(name.endswith(".safetensors") for name in in_directory)
    if id.tag or pattern or (ggufs and not is_directory):
        parts = choose_gguf(id.repo, ggufs, id.tag, pattern)
        logger.info("%s: %s, of %d GGUF files", id.repo, parts[0], len(ggufs))
        return repository.fetch(parts) / parts[0]
    if not is_directory:
        pickled = any(name.endswith((".bin", ".pt", ".pth")) for name in names)
        why = f"; {safetensors.PICKLES}" if pickled else ""
        raise FileNotFoundError(f"{id.repo!r} has neither GGUF nor safetensors files{why}")
    folder = repository.fetch(in_directory)
    if has_index:
        shards = set(safetensors.shard_names(folder / safetensors.INDEX))
        repository.fetch([*in_directory, *(name for name in names if name in shards)])
    return folder
