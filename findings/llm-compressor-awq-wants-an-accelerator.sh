#!/usr/bin/env bash
# llm-compressor 0.14.0.1: AWQModifier ends with an error on a machine without a GPU.
#
# Rounding, GPTQ and the calibration before them run on a CPU with torch 2.13.0, where this package installs. One would
# expect the same of AWQ, of which nothing asks for a GPU. But before its search it pins the inputs that it has kept, for
# copies to an accelerator, and torch refuses to pin memory where there is none. Nothing in the recipe turns that off. So
# whoever quantises on a CPU gets no AWQ model; with torch.Tensor.pin_memory replaced by a function that returns its tensor
# the same recipe works. Seen:
#   llmcompressor 0.14.0.1, torch 2.13.0: GPTQ works, AWQ Cannot access accelerator device when none is available.
#   with pin_memory replaced: AWQ works
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv tools
tools/bin/pip install -q torch==2.13.0 transformers==5.17.0 compressed-tensors==0.19.0 llmcompressor==0.14.0.1
cat > quantise.py <<'PYTHON'
from importlib import metadata

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SIZES = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128}
CODES = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32}
GROUPS = {"config_groups": {"group_0": {"targets": ["Linear"], "weights": CODES}}, "ignore": ["lm_head"]}

CALIBRATION = {
    "processor": PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))),
    "num_calibration_samples": 4,
    "max_seq_length": 64,
}


def outcome(*recipe):
    torch.manual_seed(0)
    ids = torch.randint(3, 300, (4, 64))
    data = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": (ids > 0).long().tolist()})
    LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS)).save_pretrained("floats")
    model = LlamaForCausalLM.from_pretrained("floats")
    try:
        oneshot(model=model, dataset=data, recipe=[*recipe], **CALIBRATION)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return "works"


names = ("llmcompressor", "torch")
versions = ", ".join(f"{name} {metadata.version(name).split('+')[0]}" for name in names)
awq = AWQModifier(), QuantizationModifier(**GROUPS)
print(f"{versions}: GPTQ {outcome(GPTQModifier(**GROUPS))}, AWQ {outcome(*awq)}")
torch.Tensor.pin_memory = lambda tensor: tensor
awq = AWQModifier(), QuantizationModifier(**GROUPS)
print(f"with pin_memory replaced: AWQ {outcome(*awq)}")
PYTHON
export TQDM_DISABLE=1 CUDA_VISIBLE_DEVICES=
tools/bin/python quantise.py 2>/dev/null | grep -E "^(llmcompressor|with) .*AWQ" | tee seen
diff seen - <<'SEEN' || { echo "the behaviour has changed"; exit 1; }
llmcompressor 0.14.0.1, torch 2.13.0: GPTQ works, AWQ Cannot access accelerator device when none is available.
with pin_memory replaced: AWQ works
SEEN
