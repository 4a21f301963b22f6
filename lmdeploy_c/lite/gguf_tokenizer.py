"""The tokenizer of a directory as the metadata of a GGUF file: tokenizer.ggml.* and chat templates.

llama.cpp has two kinds of merged vocabularies that are made here: byte-level BPE, with a name for
the way in which a text is cut into words, and SentencePiece's BPE, with a score for each token.
What is made is read back, and must make the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..messages import unsupported
from ..text.gguf_vocab import CONTROL, UNKNOWN, USER_DEFINED, read_vocabulary
from ..text.pre_tokenizer_names import PROBES, name_of
from ..tokenizer import Tokenizer

#: Values of tokenizer.ggml.token_type beside those of `gguf_vocab`.
NORMAL, UNUSED, BYTE = 1, 5, 6
#: What files call a token -> tokenizer.ggml.<name>_token_id.
NAMES = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "sep_token": "seperator",  # llama.cpp's spelling
    "pad_token": "padding",
    "mask_token": "mask",
}
#: Names for further tokens that end an answer.
ENDS = ("eot", "eom")
_LEAST_SCORE = -1e6  # of a token that no merge makes
_TOGETHER = 64  # tokens that are compared in one text
_PREFIX = "tokenizer.ggml."

Metadata = dict[str, Any]


def _kind(parts: Mapping[str, Any]) -> str:
    """tokenizer.ggml.model. UnsupportedError."""
    model, normalizer = parts["model"], parts.get("normalizer") or {}
    decoder = parts.get("decoder") or {}
    plain = not any(model.get(k) for k in ("continuing_subword_prefix", "end_of_word_suffix"))
    if model["type"] == "BPE" and plain:
        if decoder.get("type") == "ByteLevel" and normalizer.get("type") in (None, "NFC"):
            return "gpt2"
        if model.get("byte_fallback"):
            return "llama"
    raise unsupported(
        "a GGUF file cannot have this tokenizer: llama.cpp's kinds are byte-level BPE without a "
        f"normaliser and SentencePiece's BPE; here are model {model['type']}, normaliser "
        f"{normalizer.get('type')}, decoder {decoder.get('type')}"
    )


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
    return [(left, right) for left, right in pairs]


def _tokens(parts: Mapping[str, Any], kind: str, n_vocab: int) -> tuple[list[str], list[int]]:
    """The text and the type of each token; ids that the tokenizer does not use get names that no
    text has. Added tokens for which the model has no row are left out."""
    model, added = parts["model"], {t["id"]: t for t in parts.get("added_tokens") or ()}
    of_id = {i: token for token, i in model["vocab"].items()}
    if max(of_id, default=0) >= n_vocab:
        raise unsupported(
            f"the tokenizer has token {max(of_id)}, but the model's vocabulary has {n_vocab}"
        )
    texts, types = [], []
    for i in range(n_vocab):
        token = added.get(i)
        text = token["content"] if token else of_id.get(i, f"[PAD{i}]")
        if token:
            found = CONTROL if token["special"] else USER_DEFINED
        elif i not in of_id:
            found = UNUSED
        else:
            is_byte = kind == "llama" and len(text) == 6 and text.startswith("<0x")
            found = BYTE if is_byte else NORMAL
        is_unknown = kind == "llama" and text == model.get("unk_token")
        texts.append(text)
        types.append(UNKNOWN if is_unknown else found)
    return texts, types


def _scores(tokens: Sequence[str], merges: Sequence[tuple[str, str]]) -> np.ndarray[Any, Any]:
    """SentencePiece joins the pair that makes the token with the best score: the first one that
    the list of merges makes."""
    rank: dict[str, int] = {}
    for left, right in merges:
        rank.setdefault(left + right, len(rank))
    return np.array([-rank[t] if t in rank else _LEAST_SCORE for t in tokens], np.float32)


def _vocabulary(tokenizer: Tokenizer, n_vocab: int) -> Metadata:
    parts = tokenizer.rules()
    kind = _kind(parts)
    merges = _merges(parts["model"])
    tokens, types = _tokens(parts, kind, n_vocab)
    found: Metadata = {"model": kind}
    if kind == "gpt2":
        name = name_of(parts)
        if name is None:
            raise unsupported(
                "llama.cpp has no name for the way in which this tokenizer.json cuts a text into "
                "words (its pre_tokenizer), so that a GGUF file of it would make other tokens"
            )
        found["pre"] = name
    else:
        found["pre"] = "default"
    found |= {"tokens": tokens, "token_type": np.array(types, np.int32)}
    if kind == "gpt2":
        found["merges"] = [f"{left} {right}" for left, right in merges]
    else:
        found["scores"] = _scores(tokens, merges)
    return found


def _ids(tokenizer: Tokenizer, n_vocab: int, bos: int | None, ends: Sequence[int]) -> Metadata:
    """The tokens that have a name. bos, ends: what the configuration says."""
    vocab = tokenizer.get_vocab()
    ids = {NAMES[k]: vocab.get(text) for k, text in tokenizer.named_tokens.items() if k in NAMES}
    named = {name: i for name, i in ids.items() if i is not None and i < n_vocab}
    if bos is not None:
        named.setdefault("bos", bos)
    if ends:
        named.setdefault("eos", ends[0])
    others = [i for i in ends if i != named.get("eos") and i < n_vocab]
    named |= dict(zip(ENDS, others, strict=False))
    return {f"{name}_token_id": i for name, i in named.items()}


def _around(tokenizer: Tokenizer, ids: Metadata) -> Metadata:
    """What is put around a text; a token there is bos or eos, if no other is. UnsupportedError."""
    before, after = tokenizer.before_text, tokenizer.after_text
    for name, around in (("bos_token_id", before), ("eos_token_id", after)):
        if len(around) == 1:
            ids.setdefault(name, around[0])
        if around not in ((), (ids.get(name),)):
            raise unsupported(
                f"the tokenizer puts tokens {before} before a text and {after} behind it; a GGUF "
                "file can have bos before and eos behind"
            )
    return {**ids, "add_bos_token": bool(before), "add_eos_token": bool(after)}


def _templates(templates: Mapping[str, str]) -> Metadata:
    key = "tokenizer.chat_template"
    others = [name for name in templates if name != "default"]
    found: Metadata = {f"{key}s": others} if others else {}
    found |= {f"{key}.{name}": templates[name] for name in others}
    if "default" in templates:
        found[key] = templates["default"]
    return found


def _texts(metadata: Metadata, tokenizer: Tokenizer) -> Iterator[str]:
    """What both shall read alike. Of SentencePiece's kind all tokens, since scores are made up."""
    yield from PROBES
    if metadata[f"{_PREFIX}model"] == "llama":
        for i in range(0, len(metadata[f"{_PREFIX}tokens"]), _TOGETHER):
            yield tokenizer.decode(range(i, i + _TOGETHER))


def _first_other(metadata: Metadata, tokenizer: Tokenizer) -> str | None:
    """A text of which a reader of the metadata makes other tokens than the tokenizer."""
    found = read_vocabulary(metadata).tokenizer
    for text in _texts(metadata, tokenizer):
        if found.encode(text) != tokenizer.encode(text, False, False):
            return text
    return None


def of_tokenizer(
    tokenizer: Tokenizer, n_vocab: int, bos: int | None, ends: Sequence[int]
) -> Metadata:
    """The metadata of a tokenizer of a directory.

    n_vocab: tokens that the model has. bos, ends: ids that the configuration calls bos and ends of
    an answer. Raises UnsupportedError for a tokenizer that llama.cpp has no way to express.
    """
    values = _vocabulary(tokenizer, n_vocab)
    values |= _around(tokenizer, _ids(tokenizer, n_vocab, bos, ends))
    prefixes: list[Metadata] = [{"add_space_prefix": x} for x in (True, False)]
    text: str | None = None
    for more in [{}] if values["model"] == "gpt2" else prefixes:
        named = {f"{_PREFIX}{key}": value for key, value in {**values, **more}.items()}
        text = _first_other(named, tokenizer)
        if text is None:
            return {**named, **_templates(tokenizer.chat_templates)}
    raise unsupported(
        "a GGUF file cannot have this tokenizer: llama.cpp would make other tokens of "
        f"{text!r:.200}"
    )
