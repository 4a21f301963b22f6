"""The files of a tokenizer's directory: what they say together, and what is wrong with them."""

from pathlib import Path
from typing import Any

import pytest
import tokenizers
from conftest import GOLDEN
from tokenizer_dirs import BASE, WANTED, write

from lmdeploy_c import _C
from lmdeploy_c.tokenizer import Tokenizer

TEXTS = WANTED["texts"]


@pytest.mark.parametrize("name", WANTED["cases"])
def test_like_transformers(name: str, tmp_path: Path) -> None:
    case = WANTED["cases"][name]
    tokenizer = Tokenizer(write(tmp_path, **case["files"]))
    for field in ("bos_token_id", "eos_token_id", "named_tokens", "vocab_size_with_added",
                  "vocab_size", "chat_templates"):  # fmt: skip
        assert getattr(tokenizer, field) == case[field], field
    for i, text in enumerate(TEXTS):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == case["ids"][i]
        whole = tokenizer.encode(text)
        starts_with_bos = case["around"][i][:2] == [tokenizer.bos_token_id] * 2
        assert whole == case["around"][i][starts_with_bos:], "one bos is enough"
        assert tokenizer.decode(ids) == case["shown"][i]
        assert tokenizer.decode(ids, skip_special_tokens=False) == case["whole"][i]


def test_a_name_makes_special_whatever_the_flags_say(tmp_path: Path) -> None:
    """Where added_tokens_decoder does not have the token, transformers shows it."""
    flag = {"added_tokens": [{**BASE["tokenizer"]["added_tokens"][0], "special": False}]}
    config = {"eos_token": "<|endoftext|>", "added_tokens_decoder": {}}
    tokenizer = Tokenizer(write(tmp_path, tokenizer=flag, tokenizer_config=config))
    assert tokenizer.decode(tokenizer.encode("x<|endoftext|>y")) == "xy"


def test_an_object_with_a_content_is_a_token(tmp_path: Path) -> None:
    """Files of transformers 4 have them without "__type"."""
    config = {"eos_token": {"content": "<stop>", "lstrip": True}}
    tokenizer = Tokenizer(write(tmp_path, tokenizer_config=config))
    ids = tokenizer.encode("x  <stop>y")
    assert ids[1] == tokenizer.eos_token_id == tokenizer.special_ids["<stop>"]
    assert tokenizer.decode(ids) == "xy"


def test_ids_that_the_library_does_not_follow_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    described = {"300": {"content": "<new>", "special": True}}
    Tokenizer(write(tmp_path, tokenizer_config={"added_tokens_decoder": described}))
    assert "'<new>' is token 259, not 300" in caplog.text


WRONG_FILES = {
    "no tokenizer.json": ({"tokenizer": None}, "has no tokenizer.json"),
    "no JSON": ({"tokenizer_config": "{"}, "tokenizer_config.json.*JSON"),
    "a list": ({"special_tokens_map": "[]"}, "special_tokens_map.json.*object"),
    "no object of tokens": ({"tokenizer_config": {"added_tokens_decoder": [1]}}, "_config.*object"),
    "no id": ({"tokenizer_config": {"added_tokens_decoder": {"x": {"content": "a"}}}}, "'x'"),
    "no token": ({"tokenizer_config": {"added_tokens_decoder": {"7": "a"}}}, "'7'"),
    "a text for an id": ({"added_tokens": {"<x>": "7"}}, "added_tokens.json.*'<x>'"),
    "no model": ({"tokenizer": {"model": None}}, r"tokenizer\.json"),
    "an unknown model": ({"tokenizer": {"model": {"type": "New"}}}, r"tokenizer\.json"),
    "an unknown step": ({"tokenizer": {"pre_tokenizer": {"type": "New"}}}, r"tokenizer\.json"),
    "a wrong pattern": (
        {"tokenizer": {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("},
                                         "behavior": "Isolated", "invert": False}}},
        r"tokenizer\.json"),
    "a table that the library panics at": (
        {"tokenizer": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}},
        r"tokenizer\.json.*charsmap"),
    "a template without its token": (
        {"tokenizer": {"post_processor": {"type": "BertProcessing", "sep": ["x", 5]}}},
        r"tokenizer\.json"),
    "a long token beside it": (
        {"tokenizer_config": {"eos_token": "x" * 4097}}, r"tokenizer\.json.*at most 4096"),
    "a long template": ({"chat_template.jinja": "x" * (1 << 20) + "x"}, r"chat_template\.jinja"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_FILES)
def test_wrong_files_are_named(case: str, tmp_path: Path) -> None:
    files, message = WRONG_FILES[case]
    with pytest.raises(_C.CheckpointError, match=message) as error:
        Tokenizer(write(tmp_path, **files))
    assert str(tmp_path) in str(error.value)


def test_templates_that_are_no_text(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(_C.CheckpointError, match=r"chat_template\.jinja.*UTF-8"):
        Tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "additional_chat_templates").mkdir()
    for i in range(65):
        (tmp_path / "additional_chat_templates" / f"{i}.jinja").write_text("x")
    with pytest.raises(_C.CheckpointError, match="more than 64 templates"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
     "additional_chat_templates/tool_use.jinja", "model.gguf"],
)  # fmt: skip
def test_a_git_lfs_pointer_is_called_one(tmp_path: Path, name: str) -> None:
    path = write(tmp_path) / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n")
    with pytest.raises(_C.CheckpointError, match=f"{name}.*git-lfs pointer.*git lfs pull"):
        Tokenizer(path if path.suffix == ".gguf" else tmp_path)


# ---- errors of the tokenizers library ----


class Library:
    """Stands before the tokenizers library: lists the uses of it, and makes one of them fail."""

    PARTS = ("AddedToken", "Regex", "Tokenizer", "decoders", "models", "normalizers",
             "pre_tokenizers")  # fmt: skip

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: int) -> None:
        self.uses: list[str] = []
        self._fails = fails
        self.tokenizer = tokenizers.Tokenizer
        for part in self.PARTS:
            monkeypatch.setattr(tokenizers, part, Part(self, getattr(tokenizers, part)))

    def use(self, name: str) -> None:
        self.uses.append(name)
        if len(self.uses) - 1 == self._fails:
            raise Exception("the library is broken")


class Part:
    """A class, a module or an object of the library."""

    def __init__(self, library: Library, real: Any) -> None:
        self.__dict__.update(_library=library, _real=real)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._library.use("()")
        made = self._real(*args, **kwargs)
        return Part(self._library, made) if isinstance(made, self._library.tokenizer) else made

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._real, name)
        if callable(value):
            return Part(self._library, value)
        self._library.use(name)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        self._library.use(name)
        setattr(self._real, name, value)


@pytest.mark.parametrize("kind", ["directory", "llama-spm.gguf", "qwen2.gguf"])
def test_errors_of_the_library_name_the_file(kind: str, tmp_path: Path) -> None:
    """Each use of it in turn fails while a tokenizer is opened."""
    new = {"9": {"content": "<new>"}}
    if kind == "directory":
        path = write(tmp_path, tokenizer_config={"added_tokens_decoder": new})
    else:
        path = GOLDEN / "gguf" / kind

    def open_it(fails: int) -> list[str]:
        with pytest.MonkeyPatch.context() as monkeypatch:
            library = Library(monkeypatch, fails)
            Tokenizer(path)
        return library.uses

    uses = open_it(-1)
    assert len(uses) > 10
    for i, name in enumerate(uses):
        with pytest.raises(_C.CheckpointError, match="broken") as error:
            open_it(i)
            pytest.fail(f"use {i}, {name}, was not missed")
        assert str(path) in str(error.value)
