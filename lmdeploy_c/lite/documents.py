"""Documents for calibration, of a name, a file or a list. What files hold is untrusted.

A document is a text, or the messages of a conversation. Nothing is downloaded, and no code and no
pickle of a data set is run.
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..messages import wrong_type
from ..text.conversation import normalize

#: A text, or messages in the one form that `text.conversation` describes.
Document = str | list[dict[str, Any]]
#: What a caller may name: a name or a path, or the documents themselves.
Dataset = str | Path | Sequence[str | Mapping[str, Any]]

BUILT_IN = Path(__file__).parent / "data" / "builtin.jsonl"
#: LMDeploy's names of data sets, which it downloads.
NAMES = ("wikitext2", "c4", "pileval", "gsm8k", "neuralmagic_calibration", "open-platypus",
         "openwebtext")  # fmt: skip
SUFFIXES = (".jsonl", ".json", ".txt")
MAX_BYTES = 4 << 20  # of a file that are read: ten times what calibration uses
#: Fields of an object that are a question and its answer.
_PAIRS = (("question", "answer"), ("instruction", "output"))
#: ShareGPT's words for who speaks.
_ROLES = {"human": "user", "gpt": "assistant"}


def documents(dataset: Dataset) -> list[Document]:
    """The documents of a data set.

    dataset: "builtin", the text that comes with the package; one of LMDeploy's names, of which
    there is a copy in Hugging Face's cache (`local_copy`); a file; or a list of texts and objects.
    A .jsonl file has a document in each line, a .json file a list of them, any other file is one
    text. A document in JSON is a text or an object: with "text"; with "messages" or "conversations"
    in OpenAI's form or ShareGPT's; or with "question" and "answer", or "instruction" and "output".
    Of a file over MAX_BYTES the beginning is read.

    FileNotFoundError; TypeError for what is no data set; ValueError for what is no text in UTF-8,
    no JSON or no document, by its line or item, and where there is no text at all.
    """
    if isinstance(dataset, (list, tuple)):
        found, name = [_document(item, f"item {i}") for i, item in enumerate(dataset)], "the list"
    elif isinstance(dataset, (str, Path)):
        path = _path(dataset)
        found, name = _documents_of(path), str(path)
    else:
        raise wrong_type("calib_dataset", "a name, a file or a list of texts", dataset)
    if not any(not isinstance(document, str) or document.strip() for document in found):
        raise ValueError(f"the calibration data are empty: {name} has no text")
    return found


def local_copy(name: str) -> Path:
    """Where a copy of one of LMDeploy's data sets is looked for: NAME.jsonl, NAME.json or NAME.txt
    in $HF_HOME/datasets. FileNotFoundError."""
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    folder = Path(home) / "datasets"
    for suffix in SUFFIXES:
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}"
    raise FileNotFoundError(
        f"data sets are not downloaded, and there is no copy of {name}: put it there as "
        f"{folder / name}.jsonl (or .json, .txt), or give --calib-dataset (calib_dataset) a file"
    )


def _path(dataset: str | Path) -> Path:
    if dataset == "builtin":
        return BUILT_IN
    if dataset in NAMES:
        return local_copy(str(dataset))
    path = Path(dataset)
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(path)!r} is no file: --calib-dataset (calib_dataset) is builtin, self, a .txt, "
            ".jsonl or .json file on this machine, or one of LMDeploy's names; data sets are not "
            "downloaded"
        )
    return path


# ---- files ----


def _read(path: Path) -> tuple[str, bool]:
    """A file's text, and whether it is all of it."""
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    is_whole = len(data) <= MAX_BYTES
    data = data[:MAX_BYTES]
    why = f"byte {data.index(0)} is NUL" if 0 in data else ""
    try:
        # What a cut leaves of a last character is dropped.
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(data, final=is_whole)
    except UnicodeDecodeError as error:
        why = why or f"byte {error.start} is no part of a character"
    if why:
        raise ValueError(
            f"{path} is no text in UTF-8: {why}. Data sets in other forms, such as parquet, are to "
            "be written as .jsonl"
        )
    return text, is_whole


def _documents_of(path: Path) -> list[Document]:
    text, is_whole = _read(path)
    if path.suffix == ".jsonl":
        lines = text.split("\n")
        lines = lines if is_whole else lines[:-1]
        return [
            _document(_parsed(line, f"{path}, line {i}"), f"{path}, line {i}")
            for i, line in enumerate(lines, 1)
            if line.strip()
        ]
    if path.suffix != ".json":
        return [text]
    if not is_whole:
        raise ValueError(
            f"{path} has more than {MAX_BYTES >> 20} MiB: write a document a line into a .jsonl "
            "file, of which the beginning is read"
        )
    items = _parsed(text, str(path))
    if not isinstance(items, list):
        raise ValueError(f"{path} must be a list of documents, not {_kind(items)}")
    return [_document(item, f"{path}, item {i}") for i, item in enumerate(items)]


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{where}: the JSON is nested too deep") from None
    except ValueError as error:
        raise ValueError(f"{where}: no JSON: {error}") from None


# ---- documents ----


def _kind(value: object) -> str:
    return f"an object with {sorted(map(str, value))}"[:200] if isinstance(value, Mapping) else (
        type(value).__name__
    )  # fmt: skip


def _document(value: object, where: str) -> Document:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        text, messages = value.get("text"), value.get("messages", value.get("conversations"))
        if isinstance(text, str):
            return text
        if isinstance(messages, (list, tuple)) and messages:
            return [_message(message, where) for message in messages]
        for question, answer in _PAIRS:
            if isinstance(value.get(question), str) and isinstance(value.get(answer), str):
                return [
                    {"role": "user", "content": value[question]},
                    {"role": "assistant", "content": value[answer]},
                ]
    raise ValueError(
        f"{where} is no document: a text, or an object with 'text', 'messages' or 'conversations' "
        f"is needed, not {_kind(value)}"
    )


def _message(value: object, where: str) -> dict[str, Any]:
    """A message in OpenAI's form or ShareGPT's, in the one form."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: a message must be an object, not {_kind(value)}")
    if "role" not in value and isinstance(value.get("from"), str):
        value = {"role": _ROLES.get(value["from"], value["from"]), "content": value.get("value")}
    try:
        return normalize(value)
    except RecursionError:
        raise ValueError(f"{where}: a message is nested too deep") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
