"""Older names: modules, and names in modules, that have moved stay importable from their old place.

`import lmdeploy_c.checkpoint` gives the module `lmdeploy_c.files.checkpoint` itself, so that a
change made through either name (monkeypatch.setattr) is seen through both. A name that left a
module for another one is read and written there; `import *` does not bring it. Code that uses the
places of today meets none of this: the finder is the last that an import asks.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_PACKAGE = __name__.rpartition(".")[0]

#: Modules: old name -> place. All names here are below lmdeploy_c.
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

#: A device's own defaults are in its `_C.device_info`; these are the CPU's.
CPU_BATCH_SIZE, CPU_PREFILL_TOKENS = 64, 512

#: Names that have left a module: module of today -> old name -> (place, name).
NAMES = {
    "engine.answer": {
        "Detokenizer": ("text.detokenizer", "IncrementalDetokenizer"),
        "read_ppl": ("engine.scores", "read_ppl"),
        "stop_rules": ("text.stop_words", "stop_rules"),
    },
    "engine.loading": {
        "describe_kv_bits": ("engine.sizes", "describe_kv_bits"),
        "kv_block_bytes": ("engine.sizes", "kv_block_bytes"),
        "warn_of_few_bits": ("engine.sizes", "warn_of_few_bits"),
    },
    "engine.text_engine": {
        "template_kwargs": ("text.chat_template", "template_kwargs"),
    },
    "files.checkpoint": {
        "HUB_FILES": ("files.hub", "DIRECTORY_FILES"),
    },
    "planning": {
        "CPU_BATCH_SIZE": ("_older_names", "CPU_BATCH_SIZE"),
        "CPU_PREFILL_TOKENS": ("_older_names", "CPU_PREFILL_TOKENS"),
        "KV_BITS": ("engine.sizes", "KV_BITS"),
        "MemoryPlan": ("engine.sizes", "Sizes"),
        "plan_memory": ("engine.sizes", "compute_sizes"),
    },
    "tokenizer": {
        "ADD_BOS": ("text.pre_tokenizers", "ADD_BOS"),
        "CONTROL": ("text.gguf_vocab", "CONTROL"),
        "IGNORE_MERGES": ("text.pre_tokenizers", "IGNORE_MERGES"),
        "PRE_TOKENIZERS": ("text.pre_tokenizers", "PRE_TOKENIZERS"),
        "SPECIAL": ("text.gguf_vocab", "SPECIAL"),
        "UNKNOWN": ("text.gguf_vocab", "UNKNOWN"),
        "USER_DEFINED": ("text.gguf_vocab", "USER_DEFINED"),
    },
}


def _module(place: str) -> ModuleType:
    return import_module(f"{_PACKAGE}.{place}")


class _Loader:
    """Puts the module of today in the place of an old name."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        sys.modules[old] = _module(MODULES[old.rpartition(".")[2]])


class _Finder:
    """Finds modules by their old names."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        package, _, old = name.rpartition(".")
        if package != _PACKAGE or old not in MODULES:
            return None
        return ModuleSpec(name, _Loader())  # type: ignore[arg-type]


class _Moved:
    """An attribute that has left a module: reads and writes go to its place."""

    def __init__(self, place: str, name: str) -> None:
        self._place, self._name = place, name

    def __get__(self, module: ModuleType | None, owner: type) -> Any:
        return getattr(_module(self._place), self._name)

    def __set__(self, module: ModuleType, value: Any) -> None:
        setattr(_module(self._place), self._name, value)

    def __delete__(self, module: ModuleType) -> None:
        delattr(_module(self._place), self._name)


def install() -> None:
    """Makes the old names importable. The package calls it once it has loaded its modules."""
    if _Finder not in sys.meta_path:
        sys.meta_path.append(_Finder)
    for module, names in NAMES.items():
        moved = {old: _Moved(place, new) for old, (place, new) in names.items()}
        sys.modules[f"{_PACKAGE}.{module}"].__class__ = type("module", (ModuleType,), moved)
