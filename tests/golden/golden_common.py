"""What every golden maker shares: seeds, the fp32 forward pass of transformers, greedy decoding.

The oracle is PyTorch with transformers, in fp32, with eager attention and without a KV cache.
Nothing here may import lmdeploy_c: golden data that the engine wrote proves nothing.
"""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = Path(__file__).resolve().parent
GREEDY_LEN = 24


def setup_torch():
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)


class Init:
    """Random weights from one seeded generator; numpy's PCG64 is stable between versions."""

    def __init__(self, seed):
        self.rng = np.random.Generator(np.random.PCG64(seed))

    def linear(self, out_dim, in_dim, gain=1.0):
        w = self.rng.standard_normal((out_dim, in_dim), dtype=np.float32)
        return torch.from_numpy(w * np.float32(gain / np.sqrt(in_dim)))

    def norm(self, dim):
        return torch.from_numpy((1 + 0.25 * self.rng.standard_normal(dim)).astype(np.float32))

    def bias(self, dim, std=0.3):
        return torch.from_numpy((std * self.rng.standard_normal(dim)).astype(np.float32))

    def ids(self, n, vocab_size, first=3):
        return self.rng.integers(first, vocab_size, size=n).astype(np.int32)


def write_json(path, value, indent=2):
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    Path(path).write_text(text + "\n", encoding="utf-8")


def model_with(config, weights):
    """Makes transformers' model of a config.json's keys, with weights under its own names."""
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**config), attn_implementation="eager", dtype=torch.float32
    )
    weights = {name: w.float() for name, w in weights.items()}
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    model.load_state_dict(weights)
    return model.eval()


def logits_of(model, ids):
    """Runs the whole sequence at once. Returns float32 [n_ids, vocab_size]."""
    batch = torch.tensor([list(map(int, ids))])
    return model(batch, use_cache=False).logits[0].float().numpy()


def greedy(model, prompt_ids, n, stop_ids=(), min_gap=0.0):
    """Decodes n tokens without a cache. Returns ids, and the gap top1 - top2 at each step.

    A token in stop_ids ends the answer and is its last id; so does one whose gap is below min_gap.
    """
    ids = [int(i) for i in prompt_ids]
    out, gaps = [], []
    for _ in range(n):
        row = logits_of(model, ids)[-1]
        second, best = np.partition(row, -2)[-2:]
        token = int(row.argmax())
        ids.append(token)
        out.append(token)
        gaps.append(best - second)
        if token in stop_ids or gaps[-1] < min_gap:
            break
    return np.array(out, np.int32), np.array(gaps, np.float32)


def sample_positions(n, extra=()):
    """Positions worth comparing: the first ones, both sides of 16, 64, 128, and the last ones."""
    wanted = {0, 1, 2, 3, 14, 15, 16, 17, 31, 32, 47, 48, 62, 63, 64, 65, 66, 127, 128}
    wanted |= set(extra) | set(range(n - 8, n))
    return np.array(sorted(p for p in wanted if 0 <= p < n), np.int32)


def golden_fields(model, ids, prompt_lens, session_len, positions=None):
    """Makes the fields that every model's golden.npz has."""
    if positions is None:
        positions = sample_positions(len(ids))
    rows = [greedy(model, ids[:n], GREEDY_LEN) for n in prompt_lens]
    rotary = model.model.rotary_emb
    return {
        "input_ids": np.asarray(ids, np.int32),
        "logit_positions": positions,
        "logits": logits_of(model, ids)[positions].astype(np.float32),
        "greedy_prompt_len": np.int32(prompt_lens[0]),
        "greedy_ids": rows[0][0],
        "greedy_gaps": rows[0][1],
        "prompt_lens": np.array(prompt_lens, np.int32),
        "prompt_greedy_ids": np.stack([r[0] for r in rows]),
        "prompt_greedy_gaps": np.stack([r[1] for r in rows]),
        "session_len": np.int32(session_len),
        "inv_freq": rotary.inv_freq.float().numpy(),
        "attention_scaling": np.float32(rotary.attention_scaling),
    }


def clear_prompts(model, seed, n_ids, vocab_size, prompt_lens, first=3, min_gap=0.06, tries=2000):
    """Draws input ids until every prompt's answer is varied and no step of it near a tie.

    A near-tie would excuse an engine from every token after it.
    """
    init = Init(seed)

    def clear(prompt):
        answer, gaps = greedy(model, prompt, GREEDY_LEN, min_gap=min_gap)
        return gaps.min() >= min_gap and len(np.unique(answer)) >= 4

    for _ in range(tries):
        ids = init.ids(n_ids, vocab_size, first)
        if all(clear(ids[:n]) for n in prompt_lens):
            return ids
    raise RuntimeError(f"no clear prompts in {tries} draws: change the seed")


def check_fields(name, fields):
    """Refuses a golden that would prove little: constant, non-finite or monotonous."""
    logits, ids = fields["logits"], fields["prompt_greedy_ids"]
    assert np.isfinite(logits).all(), name
    assert logits.std() > 0.5, (name, logits.std())
    assert len(np.unique(ids)) >= 8, (name, ids)
