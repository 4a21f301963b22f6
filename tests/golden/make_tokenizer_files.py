"""Makes tokenizer_files.json: what transformers makes of the files of small tokenizers.

base: the files of a byte-level tokenizer. cases: by name, what differs from it ("<name>": keys of
<name>.json that are set, null for a file that is not there; "<name>.jinja": a file), and what
transformers' backend of the tokenizers library gives for it.
"""

import json
import os
import tempfile
from pathlib import Path

from golden_common import ROOT
from tokenizers import pre_tokenizers
from transformers import TokenizersBackend

TEXTS = ["a<|turn|>b<think>c", "a  <|im_end|>  b", "<|endoftext|>a <b>c a<b>d", "UP <|im_start|>é"]
NAMES = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def entry(content, special=True, **more):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": content, **flags, "special": special, **more}


def added(first, *entries):
    return [{"id": first + i, **token} for i, token in enumerate(entries)]


def typed(content, **more):
    return {"__type": "AddedToken", **entry(content, **more)}


BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
BYTE_LEVEL = {
    "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True
}  # fmt: skip
BASE = {
    "tokenizer": {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": added(256, *map(entry, NAMES)), "pre_tokenizer": BYTE_LEVEL,
        "post_processor": None, "decoder": BYTE_LEVEL,
        "model": {"type": "BPE", "merges": [], "vocab": {c: i for i, c in enumerate(BYTES)}},
    },
    "tokenizer_config": {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"},
}  # fmt: skip
KNOWN = {str(256 + i): entry(name) for i, name in enumerate(NAMES)}
TURN, THINK = {"259": entry("<|turn|>")}, {"260": entry("<think>", False)}
UNFLAGGED = {"added_tokens": added(256, entry("<|endoftext|>"), entry("<think>", False))}
PAD = {"direction": "Right", "pad_to_multiple_of": None, "pad_id": 256, "pad_type_id": 0,
       "pad_token": "<|endoftext|>"}  # fmt: skip
CUT = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}


def around(before, after):
    """A post-processor that puts these tokens around a text."""
    text, ids = {"Sequence": {"id": "A", "type_id": 0}}, {n: 256 + i for i, n in enumerate(NAMES)}
    put = [{"SpecialToken": {"id": name, "type_id": 0}} for name in before + after]
    single = [*put[: len(before)], text, *put[len(before) :]]
    tokens = {n: {"id": n, "ids": [i], "tokens": [n]} for n, i in ids.items()}
    pair = [text, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}


def config(**keys):
    return {"tokenizer_config": keys}


def decoder(**tokens):
    return config(added_tokens_decoder={**KNOWN, **tokens})


CASES = {
    "as it is": {},
    "no config": {"tokenizer_config": None},
    "truncation": {"tokenizer": {"truncation": CUT}},
    "truncation from the left": {"tokenizer": {"truncation": {**CUT, "direction": "Left"}}},
    "fixed padding": {"tokenizer": {"padding": {**PAD, "strategy": {"Fixed": 64}}}},
    "padding to a multiple": {"tokenizer": {"padding": {
        **PAD, "direction": "Left", "strategy": "BatchLongest", "pad_to_multiple_of": 8}}},
    "added_tokens_decoder": decoder(**TURN, **THINK),
    "ids out of order": decoder(**THINK, **TURN),
    "an id beyond a gap": decoder(**{"300": entry("<|turn|>")}),
    "another text for an id": decoder(**{"257": entry("<|turn|>")}),
    "strips": decoder(**{"258": entry("<|im_end|>", lstrip=True, rstrip=True)}),
    "single word": decoder(**{"259": entry("<b>", single_word=True)}),
    "not special any more": decoder(**{"257": entry("<|im_start|>", False)}),
    "eos not special": decoder(**{"258": entry("<|im_end|>", False)}),
    "a token of the vocabulary": decoder(**{"97": entry("c")}),
    "added_tokens.json": {"added_tokens": {"<think>": 260, "<|turn|>": 259}},
    "added_tokens.json, normalized": {
        "added_tokens": {"<b>": 259}, "tokenizer": {"normalizer": {"type": "Lowercase"}}},
    "added_tokens.json, named": {"added_tokens": {"<think>": 259}, **config(pad_token="<think>")},
    "added_tokens.json, another text": {"added_tokens": {"<think>": 258}},
    "both": {"added_tokens": {"<think>": 259}, **decoder(**TURN)},
    "special_tokens_map.json": {"special_tokens_map": {
        "eos_token": "<|im_start|>", "additional_special_tokens": ["<think>"]}},
    "special_tokens_map.json, an object": {"special_tokens_map": {
        "eos_token": entry("<think>", lstrip=True)}},
    "special_tokens_map.json, names alone": {"tokenizer_config": None, "special_tokens_map": {
        "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}},
    "special_tokens_map.json, overruled": {
        "special_tokens_map": {"eos_token": "<think>"}, **decoder()},
    "special_tokens_map.json, extra": {"special_tokens_map": {
        "extra_special_tokens": {"image_token": "<think>"}}},
    "special_tokens_map.json, additional twice": {
        "special_tokens_map": {"additional_special_tokens": ["<|turn|>"]},
        **config(additional_special_tokens=["<think>"])},
    "special_tokens_map.json, extra twice": {
        "special_tokens_map": {"extra_special_tokens": ["<|turn|>", "<think>"],
                               "additional_special_tokens": ["<b>"]},
        **config(additional_special_tokens=["<think>"])},
    "pad_token": config(pad_token="<think>"),
    "pad_token, an object": config(pad_token=typed("<|turn|>", lstrip=True)),
    "image_token": config(image_token="<think>"),
    "additional_special_tokens": config(additional_special_tokens=["<think>", typed("<|turn|>")]),
    "extra_special_tokens": config(extra_special_tokens=["<think>"]),
    "extra_special_tokens, names": config(extra_special_tokens={"image_token": "<think>"}),
    "extra before additional": config(
        extra_special_tokens=["<think>"], additional_special_tokens=["<|turn|>"]),
    "eos without the flag": {"tokenizer": UNFLAGGED, **config(eos_token="<think>")},
    "extra without the flag": {
        "tokenizer": UNFLAGGED, **config(eos_token="d", extra_special_tokens=["<think>"])},
    "no names": config(bos_token=None, eos_token=None, pad_token=None),
    "add_bos_token": config(add_bos_token=True, add_eos_token=True),
    "around a text": {"tokenizer": {"post_processor": around(NAMES[:2], NAMES[2:])}},
    "bos around a text": {"tokenizer": {"post_processor": around(NAMES[:1], [])}},
    "eos around a text": {"tokenizer": {"post_processor": around([], NAMES[1:])}},
    "template": config(chat_template="config"),
    "templates": config(chat_template=[
        {"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]),
    "templates by name": config(chat_template={"default": "one", "tool_use": "two"}),
    "template file": {**config(chat_template="config"), "chat_template.jinja": "file\n"},
    "template files": {"chat_template.jinja": "file",
                       "additional_chat_templates/tool_use.jinja": "tools",
                       "additional_chat_templates/a.b.jinja": "dots"},
    "template files, none usual": {
        **config(chat_template="config"), "additional_chat_templates/tool_use.jinja": "tools"},
    "template files, two usual": {
        "chat_template.jinja": "file", "additional_chat_templates/default.jinja": "other"},
}  # fmt: skip


def write(case, path):
    """The files of a case, as the tests write them too."""
    for name, keys in {**BASE, **case}.items():
        file = path / (name if name.endswith(".jinja") else name + ".json")
        file.parent.mkdir(exist_ok=True)
        if isinstance(keys, str):
            file.write_text(keys)
        elif keys is not None:
            file.write_text(json.dumps({**BASE.get(name, {}), **keys}))


def expected(path):
    tok = TokenizersBackend.from_pretrained(path)
    tok.clean_up_tokenization_spaces = False
    ids = [tok(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    template = tok.chat_template
    named = tok.special_tokens_map
    if json.loads((path / "tokenizer.json").read_text())["padding"]:
        del named["pad_token"]  # transformers takes it from these settings of a training run
    return {
        "bos_token_id": tok.bos_token_id,
        "eos_token_id": tok.eos_token_id,
        "named_tokens": named,
        "vocab_size": tok.vocab_size,
        "vocab_size_with_added": len(tok.get_vocab()),
        "ids": ids,
        "around": [tok(text)["input_ids"] for text in TEXTS],
        "shown": [tok.decode(i, skip_special_tokens=True) for i in ids],
        "whole": [tok.decode(i, skip_special_tokens=False) for i in ids],
        "chat_templates": {"default": template} if isinstance(template, str) else template or {},
    }


def main():
    os.environ["HF_HUB_OFFLINE"] = "1"
    cases = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as path:
            write(case, Path(path))
            cases[name] = {"files": case, **expected(Path(path))}
    lines = ",\n".join(
        f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in cases.items()
    )
    base = json.dumps(BASE, ensure_ascii=False)
    text = f'{{"texts": {json.dumps(TEXTS, ensure_ascii=False)},\n"base": {base},\n"cases": {{\n'
    (ROOT / "tokenizer_files.json").write_text(text + lines + "\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
