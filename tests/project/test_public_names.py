"""Names that users may have in their programs stay importable, whatever moves inside."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

import lmdeploy_c
from lmdeploy_c import _older_names

LISTED = (Path(__file__).parent / "public_names.txt").read_text().splitlines()
NAMES = [line for line in LISTED if not line.startswith("#")]


@pytest.mark.parametrize("name", NAMES)
def test_the_name_is_importable(name: str) -> None:
    assert pkgutil.resolve_name(name) is not None


def test_the_names_are_importable_in_a_fresh_process() -> None:
    """Nothing that another test imported helps here."""
    code = "import pkgutil, sys; [pkgutil.resolve_name(name) for name in sys.stdin.read().split()]"
    subprocess.run([sys.executable, "-c", code], input="\n".join(NAMES), text=True, check=True)


def test_older_modules_are_attributes_in_a_fresh_process() -> None:
    code = (
        "import lmdeploy_c, sys; [getattr(lmdeploy_c, name) for name in sys.stdin.read().split()]"
    )
    names = "\n".join(_older_names.MODULES)
    subprocess.run([sys.executable, "-c", code], input=names, text=True, check=True)


@pytest.mark.parametrize(("old", "place"), _older_names.MODULES.items())
def test_an_old_module_is_the_new_one(
    old: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"lmdeploy_c.{place}")
    assert importlib.import_module(f"lmdeploy_c.{old}") is module
    assert getattr(lmdeploy_c, old) is module
    monkeypatch.setattr(f"lmdeploy_c.{old}.new_attribute", 1, raising=False)
    assert module.new_attribute == 1
    assert module.__name__ == module.__spec__.name == f"lmdeploy_c.{place}"


def test_a_module_that_never_was_is_an_import_error() -> None:
    with pytest.raises(ModuleNotFoundError, match="lmdeploy_c.nothing"):
        importlib.import_module("lmdeploy_c.nothing")


def test_a_name_that_left_its_module_is_read_and_written_where_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new = (
        importlib.import_module(f"lmdeploy_c.{m}") for m in ("tokenizer", "text.pre_tokenizers")
    )
    assert old.PRE_TOKENIZERS is new.PRE_TOKENIZERS
    monkeypatch.setattr(old, "PRE_TOKENIZERS", {})
    assert new.PRE_TOKENIZERS == {}
    monkeypatch.undo()
    assert new.PRE_TOKENIZERS
    with mock.patch.object(old, "PRE_TOKENIZERS", {}):
        assert new.PRE_TOKENIZERS == {}
    assert new.PRE_TOKENIZERS
    with pytest.raises(AttributeError, match=r"'lmdeploy_c.tokenizer' has no attribute 'nothing'"):
        _ = old.nothing
