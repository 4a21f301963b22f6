"""One rival of quantizer_rivals.py at work: quantises a model, and says what that took.

    python quantize.py NAME MODEL TOKENS OUT BITS GROUP_SIZE

Runs in the rival's own environment, alone in its process. TOKENS is an .npy of windows [n, 512].
Of it lmdeploy_c reads the .json beside it, the texts whose tokens these are. The last line is
JSON: seconds and processor seconds of the whole process, imports and writing included, and its
peak memory.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np


def auto_round(model: str, tokens: Any, out: str, bits: int, group_size: int) -> None:
    import torch
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = torch.tensor(tokens)
    tuner = AutoRound(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        AutoTokenizer.from_pretrained(model),
        bits=bits, group_size=group_size, sym=False, nsamples=len(ids), seqlen=ids.shape[1],
        batch_size=8, dataset=list(ids[:, None]),
    )  # fmt: skip
    tuner.quantize_and_save(out, format="auto_awq" if bits == 4 else "auto_round")


def llm_compressor_awq(model: str, tokens: Any, out: str, bits: int, group_size: int) -> None:
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # It pins its caches for the copy to an accelerator, and where there is none that is an error.
    torch.Tensor.pin_memory = lambda tensor: tensor
    weights = {"num_bits": bits, "type": "int", "symmetric": False, "strategy": "group",
               "group_size": group_size}  # fmt: skip
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    data = Dataset.from_dict(
        {"input_ids": tokens.tolist(), "attention_mask": np.ones_like(tokens).tolist()}
    )
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    oneshot(
        model=loaded, dataset=data, num_calibration_samples=len(tokens),
        max_seq_length=tokens.shape[1],
        recipe=[AWQModifier(), QuantizationModifier(config_groups=groups, ignore=["lm_head"])],
    )  # fmt: skip
    loaded.save_pretrained(out, save_compressed=True)
    AutoTokenizer.from_pretrained(model).save_pretrained(out)


def ours(method: str, model: str, tokens: Any, out: str, bits: int, group_size: int) -> None:
    """Without the comparison at the end, which no other tool makes."""
    from lmdeploy_c import lite

    lite.quantize(
        model, out, method=method, w_bits=bits, w_group_size=group_size, evaluate=False,
        calib_dataset=json.loads(Path(sys.argv[3]).with_suffix(".json").read_text()),
        calib_samples=len(tokens), calib_seqlen=tokens.shape[1],
        num_threads=int(os.environ["OMP_NUM_THREADS"]),
    )  # fmt: skip


NAMES: dict[str, Callable[[str, Any, str, int, int], None]] = {
    "auto_awq": partial(ours, "awq"),
    "auto_awq --search-scale": partial(ours, "awq-searched"),
    "best": partial(ours, "best"),
    "llm-compressor's AWQ": llm_compressor_awq,
    "AutoRound": auto_round,
}


def peak_memory() -> int:
    """Bytes: of this program, and not of the one that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def main() -> None:
    name, model, tokens, out = sys.argv[1:5]
    bits, group_size = map(int, sys.argv[5:7])
    began = time.monotonic()
    NAMES[name](model, np.load(tokens), out, bits, group_size)
    print()
    print(json.dumps({
        "seconds": time.monotonic() - began,
        "processor_seconds": sum(os.times()[:4]),
        "peak_memory": peak_memory(),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
