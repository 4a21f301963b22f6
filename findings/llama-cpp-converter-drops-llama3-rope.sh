#!/usr/bin/env bash
# llama.cpp's convert_hf_to_gguf.py, as llama-cpp-python 0.3.36 ships it: a Qwen loses its llama3 RoPE scaling.
#
# transformers 5.23.0 applies "rope_type": "llama3" in a Qwen2 and a Qwen3 as it does in a Llama. One would expect the
# converter to write it into the GGUF, to refuse, or to warn as it does for a rope_type that it does not know. It writes
# the tensor rope_freqs.weight for a Llama. For both Qwens it exits with 0 and no warning, and the file is byte for byte
# that of the same model without the scaling, while yarn is kept. No program that serves the file can compute what the
# model computes: in the tiny random models below, the scaling moves transformers' logits by about their norm. Seen:
#   llama llama3: logits move by 123%, the file tells rope_freqs.weight, identical without it False
#   qwen2 llama3: logits move by 128%, the file tells nothing, identical without it True
#   qwen3 llama3: logits move by 93%, the file tells nothing, identical without it True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 transformers==5.23.0 gguf==0.19.0 sentencepiece==0.2.3
venv/bin/pip download -q --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36
source=llama_cpp_python-0.3.36/vendor/llama.cpp
tar xzf llama_cpp_python-0.3.36.tar.gz $source/convert_hf_to_gguf.py $source/conversion $source/gguf-py
mv $source/* .
HF_HUB_OFFLINE=1 TQDM_DISABLE=1 venv/bin/python - <<'PYTHON'
import pathlib
import subprocess
import sys

import gguf
import sentencepiece
import torch
import transformers

SCALED = {"factor": 8.0, "original_max_position_embeddings": 64}
SCALINGS = {"default": {}, "llama3": {**SCALED, "low_freq_factor": 1.0, "high_freq_factor": 4.0}, "yarn": SCALED}
SIZES = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 32}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512}


def convert(kind, scaling):
    """What transformers computes, the GGUF's bytes, its names that speak of a scaling, and whether a warning came."""
    rope = {"rope_type": scaling, "rope_theta": 10000.0, **SCALINGS[scaling]}
    config = transformers.AutoConfig.for_model(kind, **SIZES, **HEADS, rope_parameters=rope)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.3)
    model.save_pretrained("model")
    pathlib.Path("model/tokenizer.model").write_bytes(pathlib.Path("words.model").read_bytes())
    command = [sys.executable, "convert_hf_to_gguf.py", "model", "--outfile", "model.gguf", "--outtype", "f32"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    file = gguf.GGUFReader("model.gguf")
    names = [n for n in [*file.fields, *(t.name for t in file.tensors)] if "rope.scaling" in n or "rope_freqs" in n]
    with torch.no_grad():
        logits = model(torch.arange(3, 300)[None]).logits
    return logits, pathlib.Path("model.gguf").read_bytes(), names, "WARNING" in done.stderr


text = iter(["the cat sat on the mat and the dog sat on the log"])
how = {"vocab_size": 300, "model_type": "bpe", "byte_fallback": True, "hard_vocab_limit": False, "minloglevel": 2}
sentencepiece.SentencePieceTrainer.train(sentence_iterator=text, model_prefix="words", **how)
print("llama-cpp-python 0.3.36, transformers", transformers.__version__)
for kind in ("llama", "qwen2", "qwen3"):
    plain, plain_file, _, _ = convert(kind, "default")
    for scaling in ("llama3", "yarn"):
        logits, file, names, warned = convert(kind, scaling)
        moved = (logits - plain).norm() / plain.norm()
        same = file == plain_file
        print(f"{kind} {scaling}: logits move by {moved:.0%}, ", end="")
        print(f"the file tells {', '.join(names) or 'nothing'}, identical without it {same}")
        dropped = kind != "llama" and scaling == "llama3"
        assert moved > 0.5 and not warned and same == dropped and (names == []) == dropped, "the scaling is kept now"
print("as described")
PYTHON
