"""Reads the vocabulary in a GGUF file's metadata (tokenizer.ggml.*), as llama.cpp does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..messages import unsupported
from .end_tokens import known_end_ids
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    import tokenizers

# Values of tokenizer.ggml.token_type.
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
SPECIAL = (UNKNOWN, CONTROL)

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: tokenizer.ggml.pre -> regular expressions, applied one after another: each splits a text so that
#: what it matches stays in one piece (llama.cpp, `llm_tokenizer_bpe`).
PRE_TOKENIZERS = {
    "default": [r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
    "gpt-2": [_GPT2],
    "smollm": [r"\p{N}", _GPT2],
    "llama-bpe": [_LLAMA3 % r"\p{N}{1,3}"],
    "qwen2": [_LLAMA3 % r"\p{N}"],
}
#: Values of tokenizer.ggml.pre whose words are looked up whole before any merge.
IGNORE_MERGES = {"llama-bpe"}
#: Values of tokenizer.ggml.pre with which every text begins with bos.
ADD_BOS = {"llama-bpe"}


def read_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a GGUF file. ValueError, UnsupportedError."""
    model, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not all(isinstance(t, str) for t in tokens or [0]):
        raise ValueError("the GGUF file has no vocabulary: no list tokenizer.ggml.tokens")
    if model == "gpt2":
        pre = pre or "default"
        if not isinstance(pre, str) or pre not in PRE_TOKENIZERS:
            served = ", ".join(PRE_TOKENIZERS)
            raise unsupported(f"tokenizer.ggml.pre {pre!r} is not served; served: {served}")
        tokenizer = _byte_level_bpe(tokens, metadata, pre)
    elif model == "llama":
        tokenizer = _sentencepiece_bpe(tokens, metadata)
    else:
        raise unsupported(f"tokenizer.ggml.model {model!r} is not served; served: gpt2, llama")
    types = [int(t) for t in _per_token(metadata, "token_type", tokens, default=1)]
    for i in known_end_ids(tokens):  # whatever the file says, as llama.cpp
        types[i] = CONTROL
    _add_tokens(tokenizer, tokens, types)
    bos = _token_id(metadata, "bos", len(tokens))
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", model == "llama" or pre in ADD_BOS)
    return Vocabulary(
        tokenizer,
        {i: t for i, (t, kind) in enumerate(zip(tokens, types, strict=True)) if kind in SPECIAL},
        bos_id=bos,
        eos_id=_token_id(metadata, "eos", len(tokens)),
        before_text=(bos,) if add_bos and bos is not None else (),
        after_text=(),
        chat_templates=_chat_templates(metadata),
    )


def _add_tokens(tokenizer: tokenizers.Tokenizer, tokens: list[str], types: list[int]) -> None:
    """Makes control and user-defined tokens tokens of their own wherever a text has them."""
    from tokenizers import AddedToken

    def added(kinds: tuple[int, ...], special: bool) -> list[AddedToken]:
        return [
            AddedToken(token, special=special, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in kinds and token
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


def _unique_vocab(tokens: list[str]) -> dict[str, int]:
    """Token -> id; the first of equal ones."""
    vocab: dict[str, int] = {}
    for i, token in enumerate(tokens):
        vocab.setdefault(token, i)
    return vocab


# ---- GPT-2's kind: characters that stand for bytes, and a list of merges ----


def _byte_level_bpe(
    tokens: list[str], metadata: Mapping[str, Any], pre: str
) -> tokenizers.Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocab = _unique_vocab(tokens)
    merges = []
    listed = metadata.get("tokenizer.ggml.merges", [])
    if not isinstance(listed, list):
        raise ValueError("tokenizer.ggml.merges is no list")
    for merge in listed:
        left, _, right = str(merge).partition(" ")
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise ValueError(f"tokenizer.ggml.merges: {merge!r} names a token that is not there")
        merges.append((left, right))
    model = models.BPE(vocab, merges, ignore_merges=pre in IGNORE_MERGES)
    tokenizer = Tokenizer(model)
    splits = [pre_tokenizers.Split(Regex(regex), "isolated") for regex in PRE_TOKENIZERS[pre]]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


# ---- SentencePiece's kind: "▁" for a space, and a score for each token ----


def _sentencepiece_merges(vocab: dict[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The merges that do what SentencePiece does, which always joins the pair that makes the token
    with the best score: every pair of tokens that make a token, the best token first."""
    found = []
    for token, token_id in vocab.items():
        for i in range(1, len(token)):
            left, right = token[:i], token[i:]
            if left in vocab and right in vocab:
                found.append((-float(scores[token_id]), token_id, vocab[left], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _sentencepiece_bpe(tokens: list[str], metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = _per_token(metadata, "scores", tokens)
    vocab = _unique_vocab(tokens)
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
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence([*steps, *strip])
    return tokenizer
