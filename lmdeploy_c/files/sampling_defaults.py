"""How a model's files say that it is sampled from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..messages import GenerationConfig

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

logger = logging.getLogger("lmdeploy_c")

#: Fields of a GenerationConfig -> their names in GGUF metadata, after "general.sampling.".
GGUF_NAMES = {
    "temperature": "temp",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}


def sampling_defaults(checkpoint: Checkpoint) -> dict[str, Any]:
    """Fields of a GenerationConfig that generation_config.json, or GGUF metadata, names: do_sample,
    temperature, top_p, top_k, min_p, repetition_penalty. Values that are none are left out, with a
    warning."""
    named = _of_gguf(checkpoint.metadata) or checkpoint.generation_config
    found = {}
    for name in ("do_sample", *GGUF_NAMES):
        value = named.get(name)
        if value is None:
            continue
        try:
            GenerationConfig(**{name: value})
        except ValueError as error:
            logger.warning("%s: of its own defaults: %s", checkpoint.path.name, error)
        else:
            found[name] = value
    return found


def _of_gguf(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A file that says how to sample says that it is sampled from."""
    values = {name: metadata.get(f"general.sampling.{key}") for name, key in GGUF_NAMES.items()}
    named = {name: value for name, value in values.items() if value is not None}
    return {"do_sample": True, **named} if named.keys() - {"repetition_penalty"} else named
