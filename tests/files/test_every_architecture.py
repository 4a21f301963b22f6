"""Every architecture of the Python list is the C core's, and has a golden model; and the other way.

A new one needs its name in `model_config.py`, its tensor names in csrc/model/arch_*.c, and a model
in tests/golden.
"""

import json
import re
from pathlib import Path

import pytest

from lmdeploy_c import _C
from lmdeploy_c.files import model_config
from lmdeploy_c.files.checkpoint import open_checkpoint
from lmdeploy_c.files.model_config import ARCHITECTURES, GGUF_ARCHITECTURES

GOLDEN = Path(__file__).parents[1] / "golden"
HF = json.loads((GOLDEN / "models" / "llama-mha" / "config.json").read_text())
#: InternLM3 is held to a golden Llama of equal weights (tests/core/test_golden.py), and GGUF files
#: of InternLM2 have Llama's tensor names.
BY_OTHERS, FILES_BY_OTHERS = {"internlm3"}, {"internlm2"}


def load_nothing(arch: str) -> None:
    """Loads a model of this architecture from no tensors."""
    config = {**model_config.from_hf(HF), "arch": arch, "tie_embeddings": True}
    _C.Model(config, [])


@pytest.mark.parametrize("arch", sorted({*ARCHITECTURES.values(), *GGUF_ARCHITECTURES}))
def test_the_core_knows_it(arch: str) -> None:
    """It misses the first tensor, and no architecture."""
    with pytest.raises(_C.CheckpointError, match=f'tensor .* architecture "{arch}" needs'):
        load_nothing(arch)


def test_the_list_of_the_core_is_that_of_python() -> None:
    with pytest.raises(_C.UnsupportedError, match='"none" is not served') as caught:
        load_nothing("none")
    served = re.search(r"served: (.*)", str(caught.value))
    assert served and set(served[1].split(", ")) == set(ARCHITECTURES.values())
    assert set(GGUF_ARCHITECTURES) <= set(ARCHITECTURES.values())


def test_every_architecture_has_a_golden_model() -> None:
    directories = [path.parent for path in GOLDEN.glob("models/*/golden.npz")]
    files = [path.with_suffix(".gguf") for path in GOLDEN.glob("gguf/*.npz")]
    by_name = {model_config.arch_of(json.loads((d / "config.json").read_text()))
               for d in directories}  # fmt: skip
    assert by_name | BY_OTHERS == set(ARCHITECTURES.values())
    of_files = {open_checkpoint(file).config["arch"] for file in files if file.stem != "types"}
    assert of_files | FILES_BY_OTHERS == set(GGUF_ARCHITECTURES)
