"""Reads the vocabulary in a GGUF file's metadata (tokenizer.ggml.*), as llama.cpp does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..messages import unsupported
from .end_tokens import known_end_ids
from .pre_tokenizers import PreTokenizer, pre_tokenizer_named
from .tokenizers_library import LibraryTokenizer
from .vocabulary import Vocabulary

# Values of tokenizer.ggml.token_type.
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
SPECIAL = (UNKNOWN, CONTROL)

#: Texts of tokens around the parts of a file that is to be completed.
COMPLETION = {
    "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<fim-prefix>", "<fim-suffix>",
    "<fim-middle>", "<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<｜fim▁begin｜>",
    "<｜fim▁hole｜>", "<｜fim▁end｜>", "<PRE>", "<SUF>", "<MID>", "▁<PRE>", "▁<SUF>", "▁<MID>",
    "<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>", "<|prefix|>", "<|suffix|>",
    "<|middle|>",
}  # fmt: skip

#: Values of tokenizer.ggml.model that llama.cpp knows and that are not served: what they are.
OTHER_MODELS = {
    "bert": "WordPiece",
    "t5": "unigram",
    "rwkv": "RWKV's greedy tokens",
    "plamo2": "PLaMo 2's unigram",
    "whitespace": "words without the spaces between them",
    "hybriddna": "words and DNA",
    "none": "no vocabulary",
    "no_vocab": "no vocabulary",
}
#: Most characters of a token of SentencePiece's kind: finding the merges that lead to it takes
#: time that grows with their square. Real ones have at most a few dozen.
MAX_CHARACTERS = 512
#: Of all tokens, the squares of their characters: known vocabularies have a tenth of it.
MAX_SQUARES = 1 << 29
#: The ids of that kind's tokens where a file does not name them, or names ids beyond its own.
USUAL_IDS = {"unknown": 0, "bos": 1, "eos": 2}


def read_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a GGUF file. ValueError, UnsupportedError."""
    model = metadata.get("tokenizer.ggml.model")
    if model is None:
        raise ValueError("the GGUF file has no vocabulary: no tokenizer.ggml.model")
    if model in ("gpt2", "gemma4"):
        name = model if model == "gemma4" else metadata.get("tokenizer.ggml.pre")
        pre = pre_tokenizer_named(name)
        tokens, add_bos = _tokens(metadata), pre.add_bos
        parts = _listed_bpe(tokens, metadata, pre)
    elif model == "llama":
        tokens, add_bos = _tokens(metadata), True
        parts = _sentencepiece_bpe(tokens, metadata)
    else:
        what = OTHER_MODELS.get(model) if isinstance(model, str) else None
        raise unsupported(
            f"tokenizer.ggml.model {model!r}{f' ({what})' if what else ''} is not served; served: "
            "gpt2 (byte-level BPE), llama (SentencePiece's BPE), gemma4"
        )
    types = [int(t) for t in _per_token(metadata, "token_type", tokens, default=1)]
    around_parts = {i for i, text in enumerate(tokens) if text in COMPLETION}
    for i in known_end_ids(tokens) | around_parts:  # whatever the file says, as llama.cpp
        types[i] = CONTROL
    tokenizer = _make_tokenizer(parts, _added_tokens(tokens, types))
    usual = USUAL_IDS if model == "llama" else {}
    bos, eos = (_token_id(metadata, n, len(tokens), usual.get(n)) for n in ("bos", "eos"))
    named = {"bos_token": bos, "eos_token": eos}
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", add_bos)
    return Vocabulary(
        tokenizer,
        {i: t for i, (t, kind) in enumerate(zip(tokens, types, strict=True)) if kind in SPECIAL},
        bos_id=bos,
        eos_id=eos,
        named={name: tokens[i] for name, i in named.items() if i is not None},
        before_text=(bos,) if add_bos and bos is not None else (),
        after_text=(),
        chat_templates=_chat_templates(metadata),
    )


def _texts(metadata: Mapping[str, Any], name: str) -> list[str]:
    listed = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(listed, list) or not set(map(type, listed)) <= {str}:
        raise ValueError(f"tokenizer.ggml.{name} is no list of texts")
    return listed


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    """All different: empty ones get llama.cpp's name for them."""
    tokens = _texts(metadata, "tokens")
    if not tokens:
        raise ValueError("the GGUF file has no vocabulary: tokenizer.ggml.tokens is empty")
    if "" in tokens:
        tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
    if len(set(tokens)) < len(tokens):
        first: dict[str, int] = {}
        for i, token in enumerate(tokens):
            if first.setdefault(token, i) != i:
                raise ValueError(
                    f"tokenizer.ggml.tokens: tokens {first[token]} and {i} are both {token!r}; "
                    "convert the model again"
                )
    return tokens


def _added_tokens(tokens: list[str], types: list[int]) -> list[dict[str, Any]]:
    """Control and user-defined tokens, which are tokens of their own wherever a text has them."""

    def added(kinds: tuple[int, ...], special: bool) -> list[dict[str, Any]]:
        return [
            {"content": token, "special": special, "normalized": False}
            for token, kind in zip(tokens, types, strict=True)
            if kind in kinds
        ]

    return [*added(SPECIAL, True), *added((USER_DEFINED,), False)]


def _token_id(
    metadata: Mapping[str, Any], name: str, n_tokens: int, usual: int | None = None
) -> int | None:
    ids = (metadata.get(f"tokenizer.ggml.{name}_token_id"), usual)
    return next((i for i in ids if isinstance(i, int) and 0 <= i < n_tokens), None)


def _per_token(
    metadata: Mapping[str, Any], name: str, tokens: list[str], default: int | None = None
) -> Sequence[float]:
    """One number for each token. ValueError where they are missing and there is no default."""
    values: Any = metadata.get(f"tokenizer.ggml.{name}")
    if values is None and default is not None:
        return [default] * len(tokens)
    if isinstance(values, (str, Mapping)) or not hasattr(values, "__len__"):
        values = []
    if len(values) != len(tokens):
        raise ValueError(f"tokenizer.ggml.{name}: the vocabulary needs one number for each token")
    return list(values)


def _chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    key = "tokenizer.chat_template"
    templates = {"default": metadata[key]} if isinstance(metadata.get(key), str) else {}
    for name, value in metadata.items():
        if name.startswith(key + ".") and isinstance(value, str):
            templates[name.removeprefix(key + ".")] = value
    return templates


def _adds_space_prefix(metadata: Mapping[str, Any]) -> bool:
    return bool(metadata.get("tokenizer.ggml.add_space_prefix", True))


def _make_tokenizer(
    parts: Mapping[str, Any], added_tokens: list[dict[str, Any]]
) -> LibraryTokenizer:
    """ValueError for tokens and merges that cannot be used, by the first of them."""
    try:
        return LibraryTokenizer(parts, added_tokens)
    except ValueError as error:
        vocab, merges = parts["model"]["vocab"], parts["model"]["merges"]
        for token, i in vocab.items():
            if token.encode("utf-8", "replace").decode() != token:
                raise ValueError(f"tokenizer.ggml.tokens: token {i} is no UTF-8") from None
        for left, right in merges:
            for token in (left, right, left + right):
                if token not in vocab:
                    raise ValueError(
                        f"tokenizer.ggml.merges: {left + ' ' + right!r} names {token!r}, which is "
                        "no token; convert the model again"
                    ) from None
        raise ValueError(f"the GGUF file's vocabulary: {error}") from None


# ---- with a list of merges: GPT-2's kind, where characters stand for bytes, and Gemma 4's ----


def _merges(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    if "tokenizer.ggml.merges" not in metadata:  # the format has no empty lists
        return []
    listed = dict.fromkeys(_texts(metadata, "merges"))  # of equal merges the first counts
    return [(left, right) for left, _, right in (merge.partition(" ") for merge in listed)]


def _listed_bpe(
    tokens: list[str], metadata: Mapping[str, Any], pre: PreTokenizer
) -> dict[str, Any]:
    model = {
        "type": "BPE",
        "vocab": {token: i for i, token in enumerate(tokens)},
        "merges": _merges(metadata),
        "ignore_merges": pre.ignore_merges,
        "byte_fallback": not pre.byte_level,
    }
    if pre.byte_level:
        flags = {"add_prefix_space": True, "trim_offsets": True, "use_regex": True}
        decoder = {"type": "ByteLevel", **flags}
        normalizer = None
    else:
        decoder = {"type": "Sequence", "decoders": _sentencepiece_decoders()}
        normalizer = _replace(" ", "▁")
    return {"model": model, "normalizer": normalizer, "pre_tokenizer": pre.steps(),
            "decoder": decoder}  # fmt: skip


# ---- SentencePiece's kind: "▁" for a space, and a score for each token ----


def _sentencepiece_merges(vocab: dict[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The merges that do what SentencePiece does, which always joins the pair that makes the token
    with the best score: every pair of tokens that make a token, the best token first."""
    longest = max(vocab, key=len)
    if len(longest) > MAX_CHARACTERS:
        raise ValueError(
            f"tokenizer.ggml.tokens: token {vocab[longest]} has {len(longest)} characters, more "
            f"than {MAX_CHARACTERS}; the file is damaged, or not of SentencePiece's kind"
        )
    at_most = len(vocab) * len(longest) ** 2
    if at_most > MAX_SQUARES and sum(len(token) ** 2 for token in vocab) > MAX_SQUARES:
        raise ValueError(
            f"tokenizer.ggml.tokens: {len(vocab)} tokens of up to {len(longest)} characters are "
            "more than any vocabulary of SentencePiece's kind has; the file is damaged"
        )
    found = []
    for token, token_id in vocab.items():
        for i in range(1, len(token)):
            left = token[:i]
            if left in vocab:
                right = token[i:]
                if right in vocab:
                    found.append((-float(scores[token_id]), token_id, vocab[left], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _sentencepiece_bpe(tokens: list[str], metadata: Mapping[str, Any]) -> dict[str, Any]:
    scores = _per_token(metadata, "scores", tokens)
    unknown = _token_id(metadata, "unknown", len(tokens), USUAL_IDS["unknown"])
    vocab = {token: i for i, token in enumerate(tokens)}
    model = {
        "type": "BPE",
        "vocab": vocab,
        "merges": _sentencepiece_merges(vocab, scores),
        "unk_token": None if unknown is None else tokens[unknown],
        "fuse_unk": True,
        "byte_fallback": True,
    }
    prefix = _adds_space_prefix(metadata)
    marks = [{"type": "Prepend", "prepend": "▁"}] if prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return {
        "model": model,
        "normalizer": {"type": "Sequence", "normalizers": [*marks, _replace(" ", "▁")]},
        "decoder": {"type": "Sequence", "decoders": [*_sentencepiece_decoders(), *strip]},
    }


def _replace(text: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": text}, "content": content}


def _sentencepiece_decoders() -> list[dict[str, Any]]:
    return [_replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
