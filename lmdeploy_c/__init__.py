"""lmdeploy_c: an LLM inference engine in C, with LMDeploy's Python API.

    import lmdeploy_c

    with lmdeploy_c.pipeline() as pipe:
        print(pipe("What is the capital of France?").text)

Importing it is cheap: the engine, NumPy and the tokenizer are loaded when they are used.
"""

import os
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from typing import TYPE_CHECKING, Any

from . import _older_names
from .engine.session import Session
from .messages import (
    GenerationConfig,
    Interrupted,
    PytorchEngineConfig,
    RequestError,
    Response,
    SpeculativeConfig,
    TurbomindEngineConfig,
    VisionConfig,
)
from .model import ChatTemplateConfig
from .pipeline import Pipeline, pipeline
from .planning import Plan, plan
from .tokenizer import Tokenizer
from .version import __version__, version_info

if TYPE_CHECKING:
    from ._C import CheckpointError, Engine, Model, Quantizer, Scheduler, UnsupportedError

__all__ = [
    "ChatTemplateConfig",
    "CheckpointError",
    "Engine",
    "GenerationConfig",
    "Interrupted",
    "Model",
    "Pipeline",
    "Plan",
    "PytorchEngineConfig",
    "Quantizer",
    "RequestError",
    "Response",
    "Scheduler",
    "Session",
    "SpeculativeConfig",
    "Tokenizer",
    "TurbomindEngineConfig",
    "UnsupportedError",
    "VisionConfig",
    "__version__",
    "pipeline",
    "plan",
    "version_info",
]

_older_names.install()

if not any(os.path.exists(os.path.join(__path__[0], "_C" + s)) for s in EXTENSION_SUFFIXES):
    # Python was started at the root of a clone, whose folder of sources hides the installed package
    # with the compiled core: that one is searched too.
    from pkgutil import extend_path

    __path__ = extend_path(__path__, __name__)

_FROM_CORE = ("CheckpointError", "Engine", "Model", "Quantizer", "Scheduler", "UnsupportedError")
_PACKAGES = ("lite", "serve")
_LATER = ("client", "KVTransferConfig", "vl")


def __getattr__(name: str) -> Any:
    if name in _FROM_CORE:
        from . import _C

        return getattr(_C, name)
    if name in _PACKAGES or name in _older_names.MODULES:
        return import_module(f"{__name__}.{name}")
    if name in _LATER:
        raise AttributeError(f"lmdeploy_c.{name} is not part of release {__version__}")
    raise AttributeError(f"module 'lmdeploy_c' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
