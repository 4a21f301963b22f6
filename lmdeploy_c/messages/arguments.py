"""Wrong arguments of calls: what was wanted, and where a thing belongs that was given elsewhere."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import fields

from .checks import nearest
from .engine import PytorchEngineConfig, TurbomindEngineConfig
from .generation import GenerationConfig

#: The type of a value -> the argument that takes it.
_PLACES = {
    "ChatTemplateConfig": "chat_template_config of pipeline()",
    "GenerationConfig": "gen_config of a call",
    "PytorchEngineConfig": "backend_config of pipeline()",
    "Session": "session of chat() and generate()",
    "SpeculativeConfig": "speculative_config of pipeline()",
    "TurbomindEngineConfig": "backend_config of pipeline()",
    "VisionConfig": "vision_config of pipeline()",
}
#: Configurations whose fields are no keywords of a call, and how a call takes them.
_HOMES = (
    (GenerationConfig, "pipe(prompts, gen_config=GenerationConfig({}))"),
    (TurbomindEngineConfig, "pipeline(model, backend_config=TurbomindEngineConfig({}))"),
    (PytorchEngineConfig, "pipeline(model, backend_config=PytorchEngineConfig({}))"),
)


def wrong_type(name: str, wanted: str, value: object) -> TypeError:
    """The exception for an argument that is something else than `wanted`."""
    kind = type(value).__name__
    found = f"{value!r:.60}" if isinstance(value, (str, int, float)) else kind
    place = _PLACES.get(kind)
    hint = f"; a {kind} is {place}" if place else ""
    return TypeError(f"{name}: {wanted}, not {found}{hint}")


def check_flag(name: str, value: object, optional: bool = False) -> None:
    """TypeError for what is not True or False."""
    if not isinstance(value, bool) and not (optional and value is None):
        raise wrong_type(name, "None, True or False" if optional else "True or False", value)


def refuse_unknown(call: str, name: str, value: object, known: Sequence[str]) -> None:
    """A keyword that a call does not know: TypeError where it is a field of a configuration; any
    other is ignored as in LMDeploy, with one warning for each. known: keywords of the call."""
    for config, use in _HOMES:
        if name in (f.name for f in fields(config)):
            where = use.format(f"{name}={value!r:.60}")
            raise TypeError(f"{name!r} is no keyword of {call} but a field of a config: {where}")
    others = [f.name for config, _ in _HOMES for f in fields(config)]
    hint = nearest(name, [*known, *others]) or (
        ": options of an answer belong into gen_config, those of the engine into backend_config"
    )
    warnings.warn(f"{call} ignores the unknown keyword {name!r}{hint}", stacklevel=2)
