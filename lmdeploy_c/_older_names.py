"""Older names: modules, and names in modules, that have moved stay importable from their old place.

`import lmdeploy_c.checkpoint` gives the module `lmdeploy_c.files.checkpoint` itself, so that a
change made through either name (monkeypatch.setattr) is seen through both. Code that uses the
places of today never gets here: the finder is the last that Python's import asks.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_PACKAGE = __name__.rpartition(".")[0]

#: Modules: old name -> place, both below lmdeploy_c.
MODULES = {
    "answer": "engine.answer",
    "asking": "engine.text_engine",
    "chat_template": "text.chat_template",
    "check_env": "cli.check_env",
    "checkpoint": "files.checkpoint",
    "decode_time": "engine.decode_time",
    "jinja_sandbox": "text.jinja_sandbox",
    "loading": "engine.loading",
    "model_config": "files.model_config",
    "prompts": "text.prompts",
    "quantization": "files.quantization",
    "safetensors": "files.safetensors",
    "session": "engine.session",
    "session_file": "engine.session_file",
    "stateful": "engine.stateful",
    "trace": "engine.trace",
}


class _Loader:
    """Puts the real module in the place of an old name."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        place = MODULES[old.rpartition(".")[2]]
        sys.modules[old] = import_module(f"{_PACKAGE}.{place}")


class _Finder:
    """Finds modules by their old names."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        package, _, old = name.rpartition(".")
        if package != _PACKAGE or old not in MODULES:
            return None
        return ModuleSpec(name, _Loader())  # type: ignore[arg-type]


def install() -> None:
    """Makes the old names importable. Called once, by the package."""
    sys.meta_path.append(_Finder)
