"""lmdeploy_c under the name `lmdeploy`: run.py copies this file to a package of that name.

Modules and names that lmdeploy_c lacks can be imported, so that a test file is collected; a test
that uses one fails and says which. Every model id stands for one model, for there is no hub.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import lmdeploy_c
from lmdeploy_c.files import hub
from lmdeploy_c.messages import ErrorCode

#: Modules that both have.
SHARED = ("messages", "model", "pipeline", "tokenizer", "version")


class Missing:
    """A name of LMDeploy's own: calling it, or asking for what it has, fails."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *args: object, **kwargs: object) -> Any:
        raise NotImplementedError(f"{self._name} is LMDeploy's own")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self()


class OwnModule(ModuleType):
    """A module of LMDeploy's own; every name can be imported from it."""

    __path__ = ()  # as of a package

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Missing(f"{self.__name__}.{name}")


class Finder:
    """Finds every module below `lmdeploy` that is not there yet."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, Finder(), is_package=True) if name.startswith("lmdeploy.") else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return OwnModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        for name, value in KNOWN.get(module.__name__, {}).items():
            setattr(module, name, value)


def model_of_the_hub(*args: object, **kwargs: object) -> Path:
    return Path(os.environ["COMPAT_MODEL"])


def generation_config(*args: object, **kwargs: object) -> dict[str, Any]:
    return {"eos_token_id": lmdeploy_c.Tokenizer(model_of_the_hub()).eos_token_id}


_read_tokenizer = lmdeploy_c.Tokenizer.__init__


def read_tokenizer(self: Any, model_path: str, *args: Any, **kwargs: Any) -> None:
    path = model_path if Path(model_path).exists() else model_of_the_hub()
    _read_tokenizer(self, path, *args, **kwargs)


#: What is found elsewhere here, or follows from that model.
KNOWN: dict[str, dict[str, Any]] = {
    "lmdeploy.serve.core.exceptions": {"ErrorCode": ErrorCode},
    "lmdeploy.utils": {"get_hf_gen_cfg": generation_config, "is_bf16_supported": lambda: True},
}

hub.download = model_of_the_hub
lmdeploy_c.Tokenizer.__init__ = read_tokenizer  # type: ignore[method-assign,assignment]
sys.meta_path.append(Finder)
for _name in SHARED:
    _module = import_module(f"lmdeploy_c.{_name}")
    if not hasattr(_module, "__getattr__"):  # a name that the module lacks can be imported too
        _module.__getattr__ = OwnModule(f"lmdeploy.{_name}").__getattr__  # type: ignore[method-assign]
    sys.modules[f"lmdeploy.{_name}"] = _module


def __getattr__(name: str) -> Any:
    return getattr(lmdeploy_c, name)
