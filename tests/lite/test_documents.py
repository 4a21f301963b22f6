"""Calibration data by name, file and list: the forms they come in, and files that are no such."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from lmdeploy_c.lite import documents as module
from lmdeploy_c.lite.documents import BUILT_IN, MAX_BYTES, NAMES, documents

QUESTION = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
#: A line of a .jsonl file -> the document that it is.
FORMS: list[tuple[Any, Any]] = [
    ("a text", "a text"),
    ({"text": "a text", "meta": {"set": "c4"}}, "a text"),
    ({"messages": QUESTION}, QUESTION),
    ({"conversations": QUESTION}, QUESTION),
    (
        {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
        QUESTION,
    ),
    (
        {"id": 1, "conversations": [{"from": "system", "value": "Count."}]},
        [{"role": "system", "content": "Count."}],
    ),
    ({"question": "2 + 2?", "answer": "4"}, QUESTION),
    ({"instruction": "2 + 2?", "input": "", "output": "4"}, QUESTION),
]


@pytest.mark.parametrize(("line", "wanted"), FORMS)
def test_forms(tmp_path: Path, line: Any, wanted: Any) -> None:
    (tmp_path / "set.jsonl").write_text(f"{json.dumps(line)}\n\n{json.dumps(line)}")
    (tmp_path / "set.json").write_text(json.dumps([line, line]))
    for dataset in (tmp_path / "set.jsonl", str(tmp_path / "set.json"), [line, line], (line, line)):
        assert documents(dataset) == [wanted, wanted]


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    for name in ("book.txt", "README", "module.py"):
        (tmp_path / name).write_text("\ufeffa\n\nb €\n", encoding="utf-8")
        assert documents(tmp_path / name) == ["a\n\nb €\n"]


def test_names_of_lmdeploy_are_looked_for(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").mkdir()
    for name in NAMES:
        with pytest.raises(FileNotFoundError, match=rf"not downloaded.*{name}.jsonl.*calib-datas"):
            documents(name)
    for suffix, text in ((".txt", "c"), (".json", '["b"]'), (".jsonl", '{"text": "a"}\n')):
        (tmp_path / "datasets" / f"c4{suffix}").write_text(text)
    found = []
    for suffix in module.SUFFIXES:
        found += documents("c4")
        (tmp_path / "datasets" / f"c4{suffix}").unlink()
    assert found == ["a", "b", "c"]


#: A file's name and bytes -> what is said of it.
WRONG: list[tuple[str, bytes, str]] = [
    ("a.txt", b"caf\xe9 au lait", "no text in UTF-8: byte 3 is no part of a character"),
    ("a.txt", "utf-16".encode("utf-16"), "no text in UTF-8: byte 3 is NUL"),
    ("a.parquet", b"PAR1\x00\x01", "byte 4 is NUL.*such as parquet, are to be written as .jsonl"),
    ("a.txt", b"ends in half a \xe2\x82", "byte 15"),
    ("a.txt", b"", "are empty"),
    ("a.txt", b" \n\t\n", "are empty"),
    ("a.jsonl", b"\n\n", "are empty"),
    ("a.jsonl", b'{"text": ""}\n', "are empty"),
    ("a.json", b"[]", "are empty"),
    ("a.jsonl", b'{"text": "a"}\n{"text": "b"\n', "a.jsonl, line 2: no JSON"),
    ("a.jsonl", b'{"text": 1}\n', r"line 1 is no document: .* not an object with \['text'\]"),
    ("a.jsonl", b'{"messages": []}\n', "line 1 is no document"),
    ("a.jsonl", b"[]\n", "line 1 is no document: .*not list"),
    ("a.jsonl", b"null\n", "not NoneType"),
    ("a.jsonl", b'{"messages": ["hi"]}\n', "line 1: a message must be an object, not str"),
    ("a.jsonl", b'{"messages": [{"content": "hi"}]}\n', "line 1: a message needs a 'role'"),
    ("a.jsonl", b'{"messages": [{"role": "user"}]}\n', "line 1: a message needs a 'content'"),
    ("a.jsonl", b'{"conversations": [{"from": "human"}]}\n', "line 1: a message needs a 'content'"),
    ("a.jsonl", b"[" * 200_000, "line 1: the JSON is nested too deep"),
    ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "line 1: no JSON"),
    ("a.json", b'{"text": "a"}', "must be a list of documents, not an object"),
    ("a.json", b"[1]", "a.json, item 0 is no document"),
    ("a.json", b"[" + b" " * MAX_BYTES + b"]", "more than 4 MiB: write a document a line"),
]


@pytest.mark.parametrize(("name", "data", "said"), WRONG)
def test_wrong_files(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=said):
        documents(tmp_path / name)


@pytest.mark.parametrize("depth", [2000, 200_000])
def test_messages_that_are_nested_deep(tmp_path: Path, depth: int) -> None:
    """Some of these are too deep for JSON, and some for the walk through a message."""
    message = '{"role": "user", "content": "a", "x": ' + "[" * depth + "]" * depth + "}"
    (tmp_path / "a.jsonl").write_text(f'{{"messages": [{message}]}}')
    with pytest.raises(ValueError, match=r"a.jsonl, line 1: .*nested too deep"):
        documents(tmp_path / "a.jsonl")


def test_what_is_no_data_set(tmp_path: Path) -> None:
    for wrong in (None, 3, b"a.txt", {"text": "a"}):
        with pytest.raises(TypeError, match="calib_dataset"):
            documents(wrong)  # type: ignore[arg-type]
    for missing in (tmp_path, tmp_path / "none.txt", "no-such-name", "/dev/zero"):
        with pytest.raises(FileNotFoundError, match="data sets are not downloaded"):
            documents(missing)
    for empty in ([], [""], ["", {"text": " "}]):
        with pytest.raises(ValueError, match="the list has no text"):
            documents(empty)
    with pytest.raises(ValueError, match="item 1 is no document"):
        documents(["a", 2])  # type: ignore[list-item]


def test_the_beginning_of_a_huge_file_is_read(tmp_path: Path) -> None:
    """Neither the line nor the character that the bound cuts is an error."""
    line = json.dumps({"text": "naïve €" * 1000}, ensure_ascii=False).encode() + b"\n"
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.write(line * (MAX_BYTES // len(line) + 1))
        file.truncate(1 << 40)  # a sparse file: no reader may ask for all of it
    assert documents(tmp_path / "a.jsonl") == ["naïve €" * 1000] * (MAX_BYTES // len(line))
    for shift in range(3):
        (tmp_path / "a.txt").write_bytes(b"x" * shift + "€".encode() * (MAX_BYTES // 3 + 9))
        [text] = documents(tmp_path / "a.txt")
        assert isinstance(text, str) and len(text.encode()) in range(MAX_BYTES - 2, MAX_BYTES + 1)


def test_mutants_of_a_file_raise_nothing_else(tmp_path: Path) -> None:
    rng, path = random.Random(5), tmp_path / "a.jsonl"
    whole = "\n".join(json.dumps(line) for line, _ in FORMS).encode()
    refused = 0
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(data))
            data[at : at + rng.randrange(3)] = rng.choice([b"", b'"', b"[", b"{", b"\xff", b"0"])
        path.write_bytes(data)
        try:
            documents(path)
        except ValueError:
            refused += 1
    assert 500 < refused < 2000


# ---- the text that comes with the package ----


def test_the_built_in_text() -> None:
    """Every piece has a source that is stated, and no text of a licence is among them."""
    data = BUILT_IN.read_text("utf-8")
    assert len(data.encode()) > 120_000
    lines = [json.loads(line) for line in data.splitlines()]
    assert all(line.keys() in ({"source", "text"}, {"source", "messages"}) for line in lines)
    readme = (BUILT_IN.parent / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| ([a-z-]+) \|", readme, re.M)
    assert sorted(rows) == sorted({"source", *(line["source"] for line in lines)})
    counted = [sum(line["source"] == "own" and kind in line for line in lines)
               for kind in ("text", "messages")]  # fmt: skip
    assert "| own | {} texts, {} conversations".format(*counted) in readme
    licence = r"Gutenberg|Copyright|WARRANT|General Public License|Permission is hereby|Licensed"
    assert not re.search(licence, data)
    assert len(documents("builtin")) == len(lines)


@pytest.mark.parametrize("script", ["一-鿿", "぀-ヿ", "가-힯", "؀-ۿ", "Ѐ-ӿ", "ऀ-ॿ", "ß", "ř"])
def test_scripts_of_the_built_in_text(script: str) -> None:
    assert len(re.findall(f"[{script}]", BUILT_IN.read_text("utf-8"))) > 15
