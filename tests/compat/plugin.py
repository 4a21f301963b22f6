"""What LMDeploy's tests take from their surroundings: run.py gives this plugin to pytest.

Packages that they import and hardly use (torch for its CUDA, reports, clients of servers) may be
absent. transformers, the oracle of several tests, finds one tokenizer under every name, as there is
no hub.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest

OPTIONAL = ("torch", "allure", "pytest_assume", "openai", "requests", "psutil", "fire")


class Nothing:
    """Whatever is asked of it, it is nothing, and false."""

    def __call__(self, *args: object, **kwargs: object) -> Nothing:
        return self

    def __getattr__(self, name: str) -> Nothing:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __enter__(self) -> Nothing:
        return self

    def __exit__(self, *exc_info: object) -> None: ...

    def __bool__(self) -> bool:
        return False


class Absent(ModuleType):
    """A package that is not installed; all of its names are `Nothing`."""

    __path__ = ()  # as of a package

    def __getattr__(self, name: str) -> Nothing:
        return getattr(Nothing(), name) if name.startswith("__") else Nothing()


class Finder:
    """Finds the absent packages and their modules."""

    absent = tuple(name for name in OPTIONAL if importlib.util.find_spec(name) is None)

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        found = name.partition(".")[0] in cls.absent
        return ModuleSpec(name, cls(), is_package=True) if found else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Absent(spec.name)

    def exec_module(self, module: ModuleType) -> None: ...


def use_one_tokenizer(folder: str) -> None:
    """Makes transformers' AutoTokenizer read this folder, whatever it is asked for."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    class Tokenizer(PreTrainedTokenizerFast):  # type: ignore[misc]
        def encode(self, *args: Any, return_tensors: str | None = None, **kwargs: Any) -> Any:
            arrays = "np" if return_tensors and "torch" in Finder.absent else return_tensors
            return super().encode(*args, return_tensors=arrays, **kwargs)

    AutoTokenizer.from_pretrained = lambda *args, **kwargs: Tokenizer.from_pretrained(folder)


sys.meta_path.append(Finder)  # in processes that the tests spawn too


def pytest_configure() -> None:
    if importlib.util.find_spec("transformers"):
        use_one_tokenizer(os.environ["COMPAT_TOKENIZER"])


@pytest.fixture(scope="session")
def worker_id() -> str:
    """pytest-xdist's name of the only process."""
    return "master"
