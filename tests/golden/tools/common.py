"""What the tools' scripts share: a tiny Llama, and the record of what a tool makes of its files.

Each script runs in its tool's own environment (`run.py`), and knows `write FOLDER`, which
quantises the tiny Llama, and `read FOLDER`, which decodes directories of ours.
"""

import hashlib
import json
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB = 32
N_IDS = 40  # whose logits are recorded


def write_base(folder):
    """A Llama of random fp16 weights, and a tokenizer, which some tools want to see."""
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=32, max_position_embeddings=128,
        initializer_range=0.15, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).half().save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="w1", eos_token="w2", pad_token="w2", unk_token="w0"
    )
    fast.save_pretrained(folder)
    return Path(folder)


def calibration():
    """Token ids [16, 64]."""
    return torch.randint(3, VOCAB, (16, 64), generator=torch.Generator().manual_seed(1))


def modules(folder, suffixes):
    """Module -> suffix -> tensor, of the modules that have the first of the suffixes."""
    found = {}
    for name, tensor in load_file(Path(folder) / "model.safetensors").items():
        module, _, suffix = name.rpartition(".")
        if suffix in suffixes:
            found.setdefault(module, {})[suffix] = tensor
    return {module: tensors for module, tensors in found.items() if suffixes[0] in tensors}


def settings(folder):
    return json.loads((Path(folder) / "config.json").read_text())["quantization_config"]


def logits_of(folder, values):
    """Logits of the dense model, in fp32, with these values as its linears."""
    config = LlamaConfig.from_pretrained(folder)
    del config.quantization_config
    model = LlamaForCausalLM(config).float().eval()
    stored = load_file(Path(folder) / "model.safetensors")
    floats = {
        name: t.float() for name, t in stored.items() if t.dtype in (torch.float16, torch.bfloat16)
    }
    wanted = model.state_dict()
    weights = {name: values.get(name, floats.get(name)) for name in wanted}
    model.load_state_dict(weights)
    ids = torch.randint(0, VOCAB, (1, N_IDS), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return ids[0].numpy().astype(np.int32), model(ids).logits[0].numpy()


def copy_config(made, folder):
    """But for a temporary path, another one each time, that gptqmodel notes."""
    config = json.loads((made / "config.json").read_text())
    config["quantization_config"].get("meta", {}).pop("offload_to_disk_path", None)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def checksum(values):
    """Of fp32 values, none of them -0."""
    return hashlib.sha256((values.contiguous() + 0.0).numpy().tobytes()).hexdigest()


def record(made, folder, values, tools):
    """Keeps what a tool wrote, the checksums of the values that it reads there, and logits."""
    folder.mkdir(parents=True, exist_ok=True)
    copy_config(made, folder)
    shutil.copyfile(made / "model.safetensors", folder / "model.safetensors")
    ids, logits = logits_of(made, values)
    np.savez_compressed(folder / "golden.npz", input_ids=ids, logits=logits)
    sums = {name: checksum(value) for name, value in sorted(values.items())}
    made_by = {tool: version(tool) for tool in (*tools, "transformers", "torch")}
    text = json.dumps({"made_by": made_by, "sha256_of_fp32_values": sums}, indent=1)
    (folder / "values.json").write_text(text + "\n")
    print(f"wrote {folder.name}: {len(values)} matrices")


def logits_as_loaded(folder, load, values):
    """How far the logits of a model that a tool loads by itself are from those of its values."""
    ids, expected = logits_of(folder, values)
    try:
        model = load(folder)
    except Exception as error:  # whatever a tool raises where it does not load a directory
        return f"not loaded: {type(error).__name__}"
    with torch.no_grad():
        got = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].float().numpy()
    return f"logits within {np.abs(got - expected).max() / np.abs(expected).max():.1g}"


def main(write, decode, load):
    """write(folder, base); decode(folder) -> name -> values [n_out, n_in], or None; load(folder)
    -> a model of transformers'."""
    torch.set_num_threads(2)
    command, folder = sys.argv[1], Path(sys.argv[2])
    if command == "write":
        return write(folder, write_base(folder.parent / f"base-{Path(sys.argv[0]).stem}"))
    for each in sorted(path for path in folder.iterdir() if path.is_dir()):
        values = decode(each)
        if values is not None:
            arrays = {name: value.float().contiguous().numpy() for name, value in values.items()}
            said = logits_as_loaded(each, load, values)
            (each / f"{Path(sys.argv[0]).stem}.txt").write_text(said)
            np.savez(each / f"{Path(sys.argv[0]).stem}.npz", **arrays)


if __name__ == "__main__":
    write_base(sys.argv[2])
