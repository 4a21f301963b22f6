"""The models that the quantizer is measured on, what they are calibrated by and compared on."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from common import ROOT

from lmdeploy_c.lite import Comparison
from lmdeploy_c.lite.documents import Dataset

GOLDEN = ROOT / "tests" / "golden"
LIBRARY = Path(sysconfig.get_path("stdlib"))
HELD_OUT = ("LICENSE.txt", "heapq.py", "textwrap.py")
HELD_OUT_CHARS = 9000  # of each
#: What is read to calibrate by texts of the kinds of HELD_OUT, and how many characters of it.
SIMILAR = {"pydoc_data/topics.py": 160_000, "argparse.py": 40_000, "ast.py": 40_000,
           "difflib.py": 40_000, "statistics.py": 40_000}  # fmt: skip
WINDOWS, LENGTH = 24, 512  # of the calibration
MODELS = ("embedded", "trained")


@dataclass(frozen=True)
class Model:
    """held_out: gives the text to compare it with the original on; calibrations: name -> gives
    what to calibrate by."""

    path: str | None
    held_out: Callable[[], str]
    calibrations: Mapping[str, Callable[[], Dataset]]


def library_text() -> list[str]:
    parts = ((LIBRARY / name).read_text("utf-8")[:n] for name, n in SIMILAR.items())
    return ["\n".join(parts)]


def held_out() -> str:
    return "\n".join((LIBRARY / name).read_text("utf-8")[:HELD_OUT_CHARS] for name in HELD_OUT)


def model_of(name: str) -> Model:
    """ "builtin" of the trained model is what it learnt from: the rest of it is held out."""
    if name == "trained":
        sys.path.insert(0, str(GOLDEN))
        from trained_texts import texts

        seen, unseen = texts()
        return Model(
            str(GOLDEN / "trained"),
            lambda: "\n\n".join(unseen),
            {"builtin": lambda: seen, "library": library_text},
        )
    path = None if name == "embedded" else name
    return Model(path, held_out, {"builtin": lambda: "builtin", "library": library_text})


def quality(found: Comparison) -> dict[str, object]:
    """A row's columns. The rise is a part of the original's cross-entropy."""
    before = found.reference.cross_entropy.value
    return {
        "tokens": found.reference.n_tokens,
        "kl": found.kl.value,
        "kl_half_width": found.kl.half_width,
        "same_top": found.same_top.value,
        "cross_entropy": before,
        "rise": found.rise.value / before,
        "rise_half_width": found.rise.half_width / before,
    }
