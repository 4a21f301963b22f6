"""Makes trained/: a small Llama in plain fp32 that has learnt from lmdeploy_c's calibration text.

Benchmarks quantise it. Random weights will not do for that: what quantising them breaks is no
skill. training.json has its cross-entropies, also of the last eighth of each document, which is
held out, and of a sample of these.
"""

import math
import shutil

import numpy as np
import torch
from golden_common import ROOT, write_json
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from trained_texts import texts
from transformers import LlamaConfig, LlamaForCausalLM

FOLDER = ROOT / "trained"
SPECIAL = ("<s>", "</s>")
CONFIG = {
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
STEPS, WARM_UP, BATCH, LENGTH = 1000, 30, 8, 256
RATE, DECAY = 3e-3, 0.1
SAMPLE = 600  # characters whose cross-entropy is kept


def make_tokenizer(seen):
    """Byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"], special_tokens=list(SPECIAL), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(seen, trainer)
    return tokenizer


def joined(tokenizer, parts):
    """Token ids, an end token behind each text."""
    rows = [[*tokenizer.encode(part).ids, CONFIG["eos_token_id"]] for part in parts]
    return torch.tensor([i for row in rows for i in row])


def cross_entropy(model, ids):
    """In nats a token, of whole windows."""
    windows = ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)
    return float(np.mean([float(model(w[None], labels=w[None]).loss) for w in windows]))


def unigram(seen, held_out):
    """The cross-entropy of a guess that knows how frequent each token is, none never."""
    counts = torch.bincount(seen, minlength=CONFIG["vocab_size"]) + 1
    return float(-(counts / counts.sum()).log()[held_out].mean())


def train(model, ids):
    rng = np.random.Generator(np.random.PCG64(7))
    optimizer = torch.optim.AdamW(model.parameters(), RATE, (0.9, 0.95), weight_decay=DECAY)
    for step in range(STEPS):
        rise, fall = (step + 1) / WARM_UP, 0.5 + 0.5 * math.cos(math.pi * step / STEPS)
        optimizer.param_groups[0]["lr"] = RATE * min(rise, fall)
        starts = rng.integers(0, len(ids) - LENGTH, BATCH)
        batch = torch.stack([ids[i : i + LENGTH] for i in starts])
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: {loss.item():.3f} nats", flush=True)


def main():
    torch.manual_seed(7)
    seen_texts, held_out_texts = texts()
    tokenizer = make_tokenizer(seen_texts)
    seen, held_out = joined(tokenizer, seen_texts), joined(tokenizer, held_out_texts)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).train()
    with torch.enable_grad():
        train(model, seen)
    model.eval()
    result = {
        "tokens": {"seen": len(seen), "held_out": len(held_out)},
        "cross_entropy": {
            "seen": round(cross_entropy(model, seen), 3),
            "held_out": round(cross_entropy(model, held_out), 3),
            "held_out_by_frequency": round(unigram(seen, held_out), 3),
        },
    }
    text = max(held_out_texts, key=len)[:SAMPLE]
    ids = torch.tensor([tokenizer.encode(text).ids])
    sample = {"text": text, "cross_entropy": round(float(model(ids, labels=ids).loss), 5)}
    print(result)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    weights = {name: w.contiguous() for name, w in model.state_dict().items()}
    del weights["lm_head.weight"]  # tied
    save_file(weights, FOLDER / "model.safetensors", metadata={"format": "pt"})
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **CONFIG}
    write_json(FOLDER / "config.json", {**config, "hidden_act": "silu", "torch_dtype": "float32"})
    tokenizer.save(str(FOLDER / "tokenizer.json"), pretty=False)
    bos, eos = SPECIAL
    write_json(
        FOLDER / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos},
    )
    write_json(FOLDER / "training.json", {**result, "sample": sample})


if __name__ == "__main__":
    main()
