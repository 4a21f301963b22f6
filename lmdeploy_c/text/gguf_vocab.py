"""Reads the vocabulary in a GGUF file's metadata (tokenizer.ggml.*), as llama.cpp does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..messages import unsupported
from .end_tokens import known_end_ids
from .pre_tokenizers import PreTokenizer, pre_tokenizer_named
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    import tokenizers

# Values of tokenizer.ggml.token_type.
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
SPECIAL = (UNKNOWN, CONTROL)

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


def read_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a GGUF file. ValueError, UnsupportedError."""
    model = metadata.get("tokenizer.ggml.model")
    if model in ("gpt2", "gemma4"):
        name = model if model == "gemma4" else metadata.get("tokenizer.ggml.pre")
        pre = pre_tokenizer_named(name)
        tokens, add_bos = _tokens(metadata), pre.add_bos
        tokenizer = _listed_bpe(tokens, metadata, pre)
    elif model == "llama":
        tokens, add_bos = _tokens(metadata), True
        tokenizer = _sentencepiece_bpe(tokens, metadata)
    else:
        what = OTHER_MODELS.get(model) if isinstance(model, str) else None
        raise unsupported(
            f"tokenizer.ggml.model {model!r}{f' ({what})' if what else ''} is not served; served: "
            "gpt2 (byte-level BPE), llama (SentencePiece's BPE), gemma4"
        )
    types = [int(t) for t in _per_token(metadata, "token_type", tokens, default=1)]
    for i in known_end_ids(tokens):  # whatever the file says, as llama.cpp
        types[i] = CONTROL
    _add_tokens(tokenizer, tokens, types)
    bos = _token_id(metadata, "bos", len(tokens))
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", add_bos)
    return Vocabulary(
        tokenizer,
        {i: t for i, (t, kind) in enumerate(zip(tokens, types, strict=True)) if kind in SPECIAL},
        bos_id=bos,
        eos_id=_token_id(metadata, "eos", len(tokens)),
        before_text=(bos,) if add_bos and bos is not None else (),
        after_text=(),
        chat_templates=_chat_templates(metadata),
    )


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    """All different: empty ones get llama.cpp's name for them."""
    listed = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(listed, list) or not all(isinstance(t, str) for t in listed or [0]):
        raise ValueError("the GGUF file has no vocabulary: no list tokenizer.ggml.tokens")
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(listed)]
    if len(set(tokens)) < len(tokens):
        first: dict[str, int] = {}
        for i, token in enumerate(tokens):
            if first.setdefault(token, i) != i:
                raise ValueError(
                    f"tokenizer.ggml.tokens: tokens {first[token]} and {i} are both {token!r}; "
                    "convert the model again"
                )
    return tokens


def _add_tokens(tokenizer: tokenizers.Tokenizer, tokens: list[str], types: list[int]) -> None:
    """Makes control and user-defined tokens tokens of their own wherever a text has them."""
    from tokenizers import AddedToken

    def added(kinds: tuple[int, ...], special: bool) -> list[AddedToken]:
        return [
            AddedToken(token, special=special, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in kinds
        ]

    tokenizer.add_special_tokens(added(SPECIAL, True))
    tokenizer.add_tokens(added((USER_DEFINED,), False))


def _token_id(metadata: Mapping[str, Any], name: str, n_tokens: int) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{name}_token_id")
    return value if isinstance(value, int) and 0 <= value < n_tokens else None


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


# ---- with a list of merges: GPT-2's kind, where characters stand for bytes, and Gemma 4's ----


def _merges(metadata: Mapping[str, Any], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    listed = metadata.get("tokenizer.ggml.merges", [])
    if not isinstance(listed, list) or not all(isinstance(merge, str) for merge in listed):
        raise ValueError("tokenizer.ggml.merges is no list of texts")
    merges = []
    for merge in dict.fromkeys(listed):  # of equal merges the first counts
        space = merge.find(" ", 1)
        left, right = merge[:space], merge[space + 1 :]
        if space < 0 or left not in vocab or right not in vocab or left + right not in vocab:
            raise ValueError(f"tokenizer.ggml.merges: {merge!r} names a token that is not there")
        merges.append((left, right))
    return merges


def _listed_bpe(
    tokens: list[str], metadata: Mapping[str, Any], pre: PreTokenizer
) -> tokenizers.Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocab = {token: i for i, token in enumerate(tokens)}
    model = models.BPE(
        vocab,
        _merges(metadata, vocab),
        ignore_merges=pre.ignore_merges,
        byte_fallback=not pre.byte_level,
    )
    tokenizer = Tokenizer(model)
    steps: list[Any] = [pre_tokenizers.Split(Regex(split), "isolated") for split in pre.splits]
    if pre.byte_level:
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.decoder = decoders.Sequence(_sentencepiece_decoders())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return tokenizer


# ---- SentencePiece's kind: "▁" for a space, and a score for each token ----


def _sentencepiece_merges(vocab: dict[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The merges that do what SentencePiece does, which always joins the pair that makes the token
    with the best score: every pair of tokens that make a token, the best token first."""
    found = []
    for token, token_id in vocab.items():
        if len(token) > MAX_CHARACTERS:
            raise ValueError(
                f"tokenizer.ggml.tokens: token {token_id} has {len(token)} characters, more than "
                f"{MAX_CHARACTERS}; the file is damaged, or not of SentencePiece's kind"
            )
        for i in range(1, len(token)):
            left, right = token[:i], token[i:]
            if left in vocab and right in vocab:
                found.append((-float(scores[token_id]), token_id, vocab[left], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _sentencepiece_bpe(tokens: list[str], metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = _per_token(metadata, "scores", tokens)
    vocab = {token: i for i, token in enumerate(tokens)}
    unknown = _token_id(metadata, "unknown", len(tokens))
    model = models.BPE(
        vocab,
        _sentencepiece_merges(vocab, scores),
        unk_token=None if unknown is None else tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    prefix = _adds_space_prefix(metadata)
    marks: list[normalizers.Normalizer] = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*marks, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence([*_sentencepiece_decoders(), *strip])
    return tokenizer


def _sentencepiece_decoders() -> list[Any]:
    from tokenizers import decoders

    return [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
