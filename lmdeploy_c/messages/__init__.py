"""What goes into a pipeline and what comes out: configurations and the Response.

Names, order and defaults are LMDeploy's. A field that this release does not serve is marked `only`:
it is accepted at its default and refused, never ignored, at any other value. Nothing heavy is
imported, so that the command line can read defaults from here.

generation.py has the options of one answer, engine.py those of a loaded model, response.py answers
and error codes, limits.py the bounds of values, checks.py what the configurations share,
arguments.py what is said of wrong arguments of a call.
"""

from .arguments import check_flag, refuse_unknown, wrong_type
from .checks import Named, nearest, unsupported
from .engine import (
    PytorchEngineConfig,
    QuantPolicy,
    SpeculativeConfig,
    TurbomindEngineConfig,
    VisionConfig,
)
from .generation import GenerationConfig
from .limits import BLOCK_LENS, MAX_CHOICES, MAX_DRAFT_TOKENS
from .response import ErrorCode, Interrupted, RequestError, Response, ResponseType

__all__ = [
    "BLOCK_LENS",
    "MAX_CHOICES",
    "MAX_DRAFT_TOKENS",
    "ErrorCode",
    "GenerationConfig",
    "Interrupted",
    "Named",
    "PytorchEngineConfig",
    "QuantPolicy",
    "RequestError",
    "Response",
    "ResponseType",
    "SpeculativeConfig",
    "TurbomindEngineConfig",
    "VisionConfig",
    "check_flag",
    "nearest",
    "refuse_unknown",
    "unsupported",
    "wrong_type",
]
