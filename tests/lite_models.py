"""What the tests of the quantizer ask of a model that it wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from conftest import exact_kv_bits, load_model, make_engine, read_all
from numpy.typing import NDArray


def logits_of(path: Path) -> NDArray[np.float32]:
    """Behind each of 40 tokens, the same every time: [40, vocab_size]."""
    ids = np.random.default_rng(7).integers(0, 64, 40)
    engine = make_engine(load_model(path), kv_bits=exact_kv_bits())
    logits = read_all(engine.submit(ids, max_new_tokens=0, output_logits="all")).logits
    engine.close()
    assert logits is not None
    return logits
