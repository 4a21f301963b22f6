#!/usr/bin/env bash
# compressed-tensors 0.20.0 under transformers 5.24.0: an asymmetric pack-quantized model does not load.
#
# llm-compressor 0.14.0.1 (with the compressed-tensors 0.19.0 that it pins) packs the zero points of an asymmetric 4-bit
# linear, eight to a word: [rows / 8, groups]. The environment that wrote such a model loads it. One would expect the next
# compressed-tensors to load it too, for the format is the same and its symmetric twin does load. But the module that
# 0.20.0 makes has unpacked zero points, [rows, groups], and transformers stops at the mismatch. So whoever serves
# asymmetric files of llm-compressor with transformers has to stay with 0.19. Seen:
#   compressed-tensors 0.19.0, transformers 5.17.0: symmetric loads, asymmetric loads
#   compressed-tensors 0.20.0, transformers 5.24.0: symmetric loads, asymmetric weight_zero_point [8, 2] is not [64, 2]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv writer
writer/bin/pip install -q torch==2.13.0 transformers==5.17.0 compressed-tensors==0.19.0 llmcompressor==0.14.0.1
python3 -m venv reader
reader/bin/pip install -q torch==2.13.0 transformers==5.24.0 compressed-tensors==0.20.0 accelerate
cat > write.py <<'PYTHON'
import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128}

torch.manual_seed(0)
LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS)).save_pretrained("floats")
for name in ("symmetric", "asymmetric"):
    codes = {"num_bits": 4, "type": "int", "symmetric": name == "symmetric", "strategy": "group", "group_size": 32}
    groups = {"group_0": {"targets": ["Linear"], "weights": codes}}
    model = LlamaForCausalLM.from_pretrained("floats")
    oneshot(model=model, recipe=[QuantizationModifier(config_groups=groups, ignore=["lm_head"])])
    model.save_pretrained(name, save_compressed=True)
PYTHON
cat > read.py <<'PYTHON'
import contextlib
import io
import logging
import re
from importlib import metadata

import transformers


def load(name):
    """Whether a model loads; else the shapes that transformers reports of zero points."""
    report = io.StringIO()
    logging.getLogger("transformers").addHandler(logging.StreamHandler(report))
    try:
        with contextlib.redirect_stderr(report):
            transformers.AutoModelForCausalLM.from_pretrained(name)
    except RuntimeError as error:
        shapes = re.findall(r"weight_zero_point.*?(\[\d+, \d+\]).*?(\[\d+, \d+\])", report.getvalue() + str(error))
        return "weight_zero_point {} is not {}".format(*shapes[0]) if shapes else repr(error)
    return "loads"


versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("compressed-tensors", "transformers"))
print(f"{versions}: symmetric {load('symmetric')}, asymmetric {load('asymmetric')}")
PYTHON
export TQDM_DISABLE=1
writer/bin/python write.py > /dev/null 2>&1
{ writer/bin/python read.py 2>/dev/null; reader/bin/python read.py 2>/dev/null; } | tee seen
diff seen - <<'SEEN' || { echo "the behaviour has changed"; exit 1; }
compressed-tensors 0.19.0, transformers 5.17.0: symmetric loads, asymmetric loads
compressed-tensors 0.20.0, transformers 5.24.0: symmetric loads, asymmetric weight_zero_point [8, 2] is not [64, 2]
SEEN
