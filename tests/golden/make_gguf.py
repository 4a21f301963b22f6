"""Makes gguf/: tiny GGUF files of several architectures, quantisations and vocabularies.

<name>.gguf, <name>.npz (the fields of models/*/golden.npz) and <name>.tokens.json. The weights
of the oracle are what the gguf package dequantises from the finished file, put back into Hugging
Face's row order, run by transformers in fp32; token ids are llama.cpp's. Types that the
package cannot quantise are random valid blocks. types.gguf holds one tensor of every type. The
files of SHAPES and of ONE_TYPE have the vocabulary of another file, without token ids.
"""

import json
import shutil

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Q
from gguf.quants import dequantize, quantize
from gguf_vocabs import TEMPLATE, all_strings, bpe_vocab, spm_vocab
from gguf_weights import permute, read_weights
from golden_common import (
    ROOT,
    Init,
    check_fields,
    clear_prompts,
    golden_fields,
    logits_of,
    model_with,
)
from llama_cpp import Llama
from make_tiny_models import TILED, make_weights, shape
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

OUT = ROOT / "gguf"
CONTEXT_LEN = 256
# What is drawn and kept of a model; TILED for those of SHAPES.
DRAWN = {
    "n_ids": 80,
    "prompt_lens": [12, 1, 66],
    "positions": [0, 1, 15, 16, 63, 64, 65, 77, 78, 79],
}
# Types that the gguf package does not quantise: values and bytes of a block, offsets of fp16
# scales (d, dmin), and the size of d that gives weights near 1
K_BLOCKS = {
    Q.Q2_K: (256, 84, (80, 82), 0.06),
    Q.Q3_K: (256, 110, (108,), 0.018),
    Q.Q4_K: (256, 144, (0, 2), 0.006),
    Q.Q5_K: (256, 176, (0, 2), 0.003),
    Q.Q6_K: (256, 210, (208,), 0.0008),
    Q.IQ4_NL: (32, 18, (0,), 0.015),
    Q.IQ4_XS: (256, 136, (0,), 0.0008),
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

# types: by the GGUF tensor's name, without "blk.N." and ".weight", or by "LAYER.name"; "*" else.
FILES = {
    "llama-float": {
        "pre": "llama-bpe",
        "add_bos": True,
        "types": {
            "*": Q.F16,
            "0.attn_q": Q.F32,
            "0.ffn_gate": Q.BF16,
            "1.attn_k": Q.BF16,
            "1.attn_output": Q.F32,
            "1.ffn_down": Q.BF16,
            "output": Q.BF16,
        },
        "tied": False,
    },
    "llama-q8_0": {"pre": "default", "types": {"*": Q.Q8_0}, "tied": False},
    "llama-q4_0": {"pre": "gpt-2", "types": {"*": Q.Q4_0, "output": Q.Q8_0}, "tied": False},
    "llama-q4_1": {"pre": "smollm", "types": {"*": Q.Q4_1, "token_embd": Q.Q8_0}},
    "llama-kmix": {
        "pre": "smollm",
        "types": {
            "*": Q.Q4_0,
            "token_embd": Q.F16,
            "attn_k": Q.Q4_1,
            "attn_v": Q.Q8_0,
            "ffn_up": Q.Q4_1,
            "0.ffn_down": Q.Q4_K,
            "1.ffn_down": Q.Q5_K,
            "2.ffn_down": Q.Q6_K,
        },
        "keys": {"num_hidden_layers": 3, "intermediate_size": 256},
    },
    "llama-ropefreqs": {
        "pre": "llama-bpe",
        "add_bos": True,
        "types": {"*": Q.Q8_0},
        "keys": {"rope_theta": 500000.0},
        "rope": LLAMA3_ROPE,
    },
    "llama-spm": {"pre": None, "add_bos": True, "types": {"*": Q.Q4_0, "token_embd": Q.Q8_0}},
    "qwen2": {"arch": "qwen2", "pre": "qwen2", "types": {"*": Q.F16, "token_embd": Q.Q8_0}},
    "qwen3": {
        "arch": "qwen3",
        "pre": "qwen2",
        "types": {"*": Q.Q8_0, "token_embd": Q.F16},
        "keys": {"head_dim": 64, "rope_theta": 1000000.0},
    },
}
SHAPES = {
    "llama-q4_1-hd64-gqa4": {
        "types": {"*": Q.Q4_1, "token_embd": Q.Q8_0},
        "keys": shape(2, 128, 160, 4, 1, 64),
    },
    "llama-q4_0-hd128-gqa1": {
        "types": {"*": Q.Q4_0, "output": Q.Q8_0},
        "tied": False,
        "keys": shape(1, 160, 160, 2, 2, 128),
    },
    "qwen3-q8_0-hd64-gqa7": {
        "arch": "qwen3",
        "types": {"*": Q.Q8_0},
        "keys": shape(1, 128, 128, 7, 1, 64),
    },
}
# One type for embedding and matrices; but matrices whose rows are no multiples of 256 have another,
# as llama.cpp's quantiser does it.
ROWS_OF_256 = {
    "num_hidden_layers": 1,
    "hidden_size": 256,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
ONE_TYPE = {
    "llama-q5_0": {"types": {"*": Q.Q5_0}},
    "llama-q5_1": {"types": {"*": Q.Q5_1}},
    "llama-iq4_nl": {"types": {"*": Q.IQ4_NL}},
    "llama-q2_k": {
        "types": {"*": Q.Q2_K, "attn_output": Q.Q4_0, "ffn_down": Q.Q4_0},
        "keys": ROWS_OF_256,
    },
    "llama-q3_k": {
        "types": {"*": Q.Q3_K, "attn_output": Q.IQ4_NL, "ffn_down": Q.IQ4_NL},
        "keys": ROWS_OF_256,
    },
    "llama-iq4_xs": {
        "types": {"*": Q.IQ4_XS, "attn_output": Q.IQ4_NL, "ffn_down": Q.Q5_0},
        "keys": ROWS_OF_256,
    },
}
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def random_blocks(rng, rows, cols, qtype):
    """Random bytes with positive fp16 scales: every bit of a block's layout is exercised."""
    length, size, scale_offsets, d = K_BLOCKS[qtype]
    blocks = rng.integers(0, 256, size=(rows * cols // length, size), dtype=np.uint8)
    for n, offset in enumerate(scale_offsets):
        # dmin * min cancels the mean of d * scale * q
        unit = d * (rng.uniform(0.6, 1.4, len(blocks)))
        mean_q = {Q.Q2_K: 1.5, Q.Q4_K: 7.5, Q.Q5_K: 15.5}.get(qtype, 1)
        blocks[:, offset : offset + 2] = (
            (unit * (mean_q if n else 1)).astype("<f2").view(np.uint8).reshape(-1, 2)
        )
    return blocks.reshape(rows, -1)


def scaled_blocks(rng, w, qtype):
    """Random blocks whose weights have about the spread of w."""
    raw = random_blocks(rng, *w.shape, qtype)
    _, size, scale_offsets, _ = K_BLOCKS[qtype]
    gain = w.std() / dequantize(raw, qtype).std()
    blocks = raw.reshape(-1, size)
    for offset in scale_offsets:
        d = blocks[:, offset : offset + 2].copy().view("<f2").astype(np.float32) * gain
        blocks[:, offset : offset + 2] = d.astype("<f2").view(np.uint8)
    return blocks.reshape(w.shape[0], -1)


def gguf_name(name):
    """Returns GGUF's name and the layer's number as a string, or None."""
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, layer, rest = stem.split(".", 3)
        return f"blk.{layer}.{GGUF_NAMES[rest]}.{kind}", layer
    return f"{GGUF_NAMES[stem]}.{kind}", None


def write_header(writer, spec, config, vocab):
    head_dim = config["head_dim"]
    writer.add_name("tiny " + config["model_type"])
    writer.add_context_length(CONTEXT_LEN)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    if head_dim != config["hidden_size"] // config["num_attention_heads"]:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    if config["model_type"] == "llama":
        writer.add_rope_dimension_count(head_dim)
        writer.add_vocab_size(config["vocab_size"])
    if spec["pre"] is None:
        tokens, scores, types, _ = vocab
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_scores(scores)
        writer.add_token_types(types)
        writer.add_unk_token_id(0)
    else:
        tokens, merges, types = vocab
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(spec["pre"])
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_token_merges(merges)
        writer.add_chat_template(TEMPLATE)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(spec.get("add_bos", False))


def write_gguf(path, spec, config, weights, vocab, seed):
    rng = np.random.Generator(np.random.PCG64(seed))
    arch = config["model_type"]
    writer = gguf.GGUFWriter(path, arch)
    write_header(writer, spec, config, vocab)
    if "rope" in spec:
        writer.add_tensor("rope_freqs.weight", rope_factors(config))
    for hf, w in weights.items():
        name, layer = gguf_name(hf)
        w, short = w.numpy(), name.removeprefix(f"blk.{layer}.").removesuffix(".weight")
        if arch == "llama" and short in ("attn_q", "attn_k"):
            n_head = config["num_attention_heads" if short == "attn_q" else "num_key_value_heads"]
            w = permute(w, n_head)
        types = spec["types"]
        qtype = types.get(f"{layer}.{short}", types.get(short, types["*"]))
        if w.ndim == 1:
            qtype = Q.F32
        data = scaled_blocks(rng, w, qtype) if qtype in K_BLOCKS else quantize(w, qtype)
        writer.add_tensor(name, data, raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rope_factors(config):
    """llama.cpp's factors: it divides the plain frequencies by them."""
    rope = {**LLAMA3_ROPE, "rope_theta": config["rope_theta"]}
    scaled = AutoConfig.for_model(**{**config, "rope_scaling": rope})
    inv_freq, _ = ROPE_INIT_FUNCTIONS["llama3"](scaled, "cpu")
    dim = config["head_dim"]
    plain = config["rope_theta"] ** (-np.arange(0, dim, 2) / dim)
    return (plain / inv_freq.numpy()).astype(np.float32)


def load_oracle(path, spec, config):
    rope = {"rope_scaling": dict(spec["rope"])} if "rope" in spec else {}
    weights = read_weights(
        gguf.GGUFReader(path),
        config["num_attention_heads"],
        config["num_key_value_heads"],
        config["model_type"] == "llama",
    )
    return model_with({**config, **rope}, weights)


def compare_with_llama_cpp(path, model, ids):
    """llama.cpp rounds activations of quantised layers, so this is a check of structure."""
    other = Llama(
        model_path=str(path), n_ctx=CONTEXT_LEN, logits_all=True, n_threads=1, verbose=False
    )
    other.eval([int(i) for i in ids])
    theirs, ours = np.array(other.scores[: len(ids)]), logits_of(model, ids)
    error = np.sqrt(((theirs - ours) ** 2).mean()) / ours.std()
    assert error < 0.1, (path.name, error)
    return error


def make_tokens_json(path, spec, vocab):
    """ids: special tokens in the text are recognised; plain_ids: not, where that differs."""
    llama = Llama(model_path=str(path), vocab_only=True, verbose=False)
    rows, differ = [], []
    for text in all_strings():
        ids, plain_ids = (
            llama.tokenize(text.encode(), add_bos=False, special=special)
            for special in (True, False)
        )
        row = {"text": text, "ids": ids}
        if plain_ids != ids:
            row["plain_ids"] = plain_ids
        if spec["pre"] is None and vocab[3].encode(text) != plain_ids:
            differ.append(text)
        rows.append(row)
    bos = llama.tokenize(b"The sea", add_bos=True, special=True)
    lines = ",\n".join(json.dumps(r, ensure_ascii=True) for r in rows)
    path.with_suffix(".tokens.json").write_text(
        f'{{"with_bos": {{"text": "The sea", "ids": {bos}}},\n"strings": [\n{lines}\n]}}\n'
    )
    if differ:
        print(f"{path.name}: sentencepiece splits {len(differ)} strings otherwise: {differ}")


def make_file(name, spec, seed):
    vocab = spm_vocab() if spec["pre"] is None else bpe_vocab()
    config = {
        "model_type": spec.get("arch", "llama"),
        "vocab_size": len(vocab[0]),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": CONTEXT_LEN,
        "rope_theta": 10000.0,
        "tie_word_embeddings": spec.get("tied", True),
        **spec.get("keys", {}),
    }
    path = OUT / f"{name}.gguf"
    write_gguf(path, spec, config, make_weights(config, seed), vocab, seed)
    model = load_oracle(path, spec, config)
    drawn = TILED if name in SHAPES else DRAWN
    prompt_lens, positions = drawn["prompt_lens"], np.array(drawn["positions"], np.int32)
    ids = clear_prompts(model, 2000 + seed, drawn["n_ids"], config["vocab_size"], prompt_lens)
    fields = golden_fields(model, ids, prompt_lens, CONTEXT_LEN, positions)
    check_fields(name, fields)
    np.savez_compressed(OUT / f"{name}.npz", **fields)
    if name in FILES:
        make_tokens_json(path, spec, vocab)
    error = compare_with_llama_cpp(path, model, ids)
    print(
        f"{name}: {path.stat().st_size} bytes, min gap "
        f"{fields['prompt_greedy_gaps'].min():.3g}, llama.cpp's logits differ by {error:.2g}"
    )


def make_types():
    """One [3, 512] tensor of each type, and what it dequantises to."""
    init, writer, out = Init(99), gguf.GGUFWriter(OUT / "types.gguf", "llama"), {}
    for qtype in (Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, *K_BLOCKS):
        w = init.linear(3, 512, 10.0).numpy()
        w[1, 32:64] = 0  # a block of zeros
        if qtype in K_BLOCKS:
            data = random_blocks(init.rng, 3, 512, qtype)
            for n, offset in enumerate(K_BLOCKS[qtype][2]):  # subnormal, zero and negative scales
                raw = data.reshape(-1, K_BLOCKS[qtype][1])[:, offset : offset + 2]
                raw[0] = np.array([6e-8 * (3 + n)], "<f2").view(np.uint8)
                raw[3] = 0
                raw[5, 1] |= 0x80
        else:
            data = quantize(w, qtype)
        writer.add_tensor(qtype.name, data, raw_dtype=qtype)
        out[qtype.name] = dequantize(data, qtype).astype(np.float32)
        assert np.isfinite(out[qtype.name]).all()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for t in gguf.GGUFReader(OUT / "types.gguf").tensors:
        assert np.array_equal(dequantize(t.data, t.tensor_type), out[t.name])
    np.savez_compressed(OUT / "types.npz", **out)


def main(only=None):
    """Makes all files, or one."""
    others = {n: {"pre": "smollm", **spec} for n, spec in {**SHAPES, **ONE_TYPE}.items()}
    specs = {**FILES, **others}
    if only is None:
        shutil.rmtree(OUT, ignore_errors=True)
        OUT.mkdir()
        make_types()
    for name in specs if only is None else [only]:
        make_file(name, specs[name], 101 + list(specs).index(name))
