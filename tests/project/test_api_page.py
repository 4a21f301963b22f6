"""docs/api.md is what `make docs` makes of the docstrings, and has every public name."""

import importlib.util
import types
from pathlib import Path

import pytest

import lmdeploy_c

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def maker() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("make_api", DOCS / "make_api.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_fresh(maker: types.ModuleType) -> None:
    assert maker.PAGE.read_text() == maker.page(), "make docs"


def test_every_public_name_is_there(maker: types.ModuleType) -> None:
    listed = [name for names in maker.SECTIONS.values() for name in names]
    lite = [f"lite.{name}" for name in lmdeploy_c.lite.__all__]
    serve = [f"serve.{name}" for name in lmdeploy_c.serve.__all__]
    expected = [*lmdeploy_c.__all__, *lite, *serve]
    assert sorted([*listed, "__version__", "version_info"]) == sorted(expected)


def test_every_attribute_of_a_configuration_is_told(maker: types.ModuleType) -> None:
    page = maker.page()
    for name in ("max_new_tokens: int | None = 512", "top_p: float = 1.0", "filename: str | None"):
        assert f"`{name}" in page, name
    assert "the softmax of the model's" in " ".join(page.split())
