"""Text to token ids and back: tokenizer.json, or a vocabulary from GGUF metadata."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .files import safetensors
from .messages import unsupported

if TYPE_CHECKING:
    import tokenizers

# GGUF's tokenizer.ggml.token_type
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
SPECIAL = (UNKNOWN, CONTROL)

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: tokenizer.ggml.pre -> the splits done one after another, each keeping what it matches together
#: (llama.cpp, `llm_tokenizer_bpe`).
PRE_TOKENIZERS = {
    "default": [r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
    "gpt-2": [_GPT2],
    "smollm": [r"\p{N}", _GPT2],
    "llama-bpe": [_LLAMA3 % r"\p{N}{1,3}"],
    "qwen2": [_LLAMA3 % r"\p{N}"],
}
#: Those that take a word of the vocabulary whole, and those that begin every text with bos.
IGNORE_MERGES = ADD_BOS = {"llama-bpe"}


class Tokenizer:
    """LMDeploy's tokenizer. Any thread.

    Tokenizer(model_path) reads a Hugging Face directory or a GGUF file;
    `from_gguf(metadata)` takes metadata that is already there.
    Attributes: vocab_size, bos_token_id, eos_token_id, bos_token, eos_token (None for none),
    chat_templates (name -> jinja source; the usual one is "default"), special_tokens (id -> text),
    special_ids (text -> id).

    Raises FileNotFoundError, CheckpointError, and UnsupportedError for a vocabulary that is not
    served, by name.
    """

    vocab_size: int
    bos_token_id: int | None
    eos_token_id: int | None
    bos_token: str | None
    eos_token: str | None
    chat_templates: dict[str, str]
    special_tokens: dict[int, str]
    special_ids: dict[str, int]

    def __init__(self, model_path: str | Path) -> None:
        path = Path(model_path)
        if path.is_dir():
            self._read_directory(path)
        else:
            from ._C import Gguf

            self._read_gguf(Gguf(path).metadata)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        self = cls.__new__(cls)
        self._read_gguf(metadata)
        return self

    def encode(self, text: str, add_bos: bool = True, add_special_tokens: bool = True) -> list[int]:
        """Token ids. add_bos: put in front what the model wants (nothing for many models, and
        never a second bos). add_special_tokens: read special tokens written in the text."""
        if "\0" not in text:
            text = text.encode("utf-8", "replace").decode()  # lone surrogates are no text
        tokenizer = self._tokenizer if add_special_tokens else self._plain()
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        if add_bos and self._add_bos and self.bos_token_id is not None:
            ids = ids if ids[:1] == [self.bos_token_id] else [self.bos_token_id, *ids]
        return ids

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": self.encode(text)}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of ids. Bytes that are no UTF-8 become U+FFFD."""
        if self._spelling is None:
            text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
            return text
        detokenizer = self.detokenizer(skip_special_tokens)
        return detokenizer.add(ids) + detokenizer.finish()

    def detokenizer(
        self, skip_special_tokens: bool = True, spaces_between_special_tokens: bool = True
    ) -> IncrementalDetokenizer:
        """Text of tokens as they come. Special tokens are never joined by extra spaces."""
        del spaces_between_special_tokens
        if self._spelling is None:
            return WindowDetokenizer(self, skip_special_tokens)
        return ByteDetokenizer(self._spelling, self.special_tokens if skip_special_tokens else ())

    def token_ids_of(self, text: str) -> list[int]:
        """The ids of a stop or bad word: no bos, no leading space added, special tokens known."""
        ids = self.encode(text, add_bos=False)
        if self._space_prefix and not text.startswith(" "):
            # The space that this vocabulary puts before a text belongs to the first piece; a second
            # encoding behind a neighbour shows the word as it stands inside a text.
            before = self.encode("\n", add_bos=False)
            joined = self.encode("\n" + text, add_bos=False)
            if joined[: len(before)] == before:
                ids = joined[len(before) :]
        return ids

    def fingerprint(self) -> str:
        """A checksum of vocabulary and rules: who has the same reads the same tokens."""
        rules = [self._tokenizer.to_str(), repr(sorted(self.special_tokens.items()))]
        return hashlib.blake2b("\0".join(rules).encode(), digest_size=16).hexdigest()

    # ---- Hugging Face ----

    def _read_directory(self, path: Path) -> None:
        import tokenizers

        file = path / "tokenizer.json"
        if not file.is_file():
            raise safetensors.bad_file(path, "it has no tokenizer.json")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises Exception itself
            raise safetensors.bad_file(file, str(error)) from None
        config_path = path / "tokenizer_config.json"
        config = safetensors.read_json(config_path) if config_path.is_file() else {}
        added = self._tokenizer.get_added_tokens_decoder()
        special = {i: token.content for i, token in added.items() if token.special}
        probe = self._tokenizer.encode("a", add_special_tokens=True).ids
        bos = _token_text(config.get("bos_token"))
        bos_id = None if bos is None else self._tokenizer.token_to_id(bos)
        eos = _token_text(config.get("eos_token"))
        self._set_up(
            special,
            bos_id=bos_id,
            eos_id=None if eos is None else self._tokenizer.token_to_id(eos),
            add_bos=bos_id is not None and probe[:1] == [bos_id],
            chat_templates=_hf_chat_templates(path, config),
        )

    # ---- GGUF ----

    def _read_gguf(self, metadata: Mapping[str, Any]) -> None:
        model, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
        tokens = metadata.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, list) or not all(isinstance(t, str) for t in tokens or [0]):
            raise ValueError("the GGUF file has no vocabulary: no list tokenizer.ggml.tokens")
        if model == "gpt2":
            pre = pre or "default"
            if not isinstance(pre, str) or pre not in PRE_TOKENIZERS:
                served = ", ".join(PRE_TOKENIZERS)
                raise unsupported(f"tokenizer.ggml.pre {pre!r} is not served; served: {served}")
            self._tokenizer = _byte_level_bpe(tokens, metadata, pre)
        elif model == "llama":
            self._tokenizer = _sentencepiece_bpe(tokens, metadata)
        else:
            raise unsupported(f"tokenizer.ggml.model {model!r} is not served; served: gpt2, llama")
        types = [int(t) for t in _per_token(metadata, "token_type", tokens, default=1)]
        special = {i: t for i, (t, kind) in enumerate(zip(tokens, types)) if kind in SPECIAL}  # noqa: B905
        self._add_tokens(tokens, types)
        self._set_up(
            special,
            bos_id=_token_id(metadata, "bos", len(tokens)),
            eos_id=_token_id(metadata, "eos", len(tokens)),
            add_bos=metadata.get(
                "tokenizer.ggml.add_bos_token", model == "llama" or pre in ADD_BOS
            ),
            chat_templates=_gguf_chat_templates(metadata),
            space_prefix=model == "llama" and _adds_space_prefix(metadata),
        )

    def _add_tokens(self, tokens: list[str], types: list[int]) -> None:
        """Makes control and user-defined tokens known as wholes."""
        from tokenizers import AddedToken

        def added(kinds: tuple[int, ...], special: bool) -> list[AddedToken]:
            return [
                AddedToken(token, special=special, normalized=False)
                for token, kind in zip(tokens, types)  # noqa: B905
                if kind in kinds and token
            ]

        self._tokenizer.add_special_tokens(added(SPECIAL, True))
        self._tokenizer.add_tokens(added((USER_DEFINED,), False))

    def _set_up(
        self,
        special: dict[int, str],
        *,
        bos_id: int | None,
        eos_id: int | None,
        add_bos: bool,
        chat_templates: dict[str, str],
        space_prefix: bool = False,
    ) -> None:
        self._plain_tokenizer: tokenizers.Tokenizer | None = None
        self._spelling = _spelling_of(self._tokenizer)
        self._add_bos, self._space_prefix = bool(add_bos), space_prefix
        self.vocab_size = self._tokenizer.get_vocab_size()
        self.special_tokens = special
        self.special_ids = {text: token_id for token_id, text in special.items()}
        self.bos_token_id, self.eos_token_id = bos_id, eos_id
        self.bos_token = None if bos_id is None else self._tokenizer.id_to_token(bos_id)
        self.eos_token = None if eos_id is None else self._tokenizer.id_to_token(eos_id)
        self.chat_templates = chat_templates

    def _plain(self) -> tokenizers.Tokenizer:
        """The tokenizer that takes special tokens in a text for mere text."""
        if self._plain_tokenizer is None:
            import tokenizers

            plain = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
            plain.encode_special_tokens = True
            self._plain_tokenizer = plain
        return self._plain_tokenizer


class IncrementalDetokenizer(Protocol):
    """Text of tokens as they come; never half a character. One thread at a time."""

    def add(self, ids: Sequence[int]) -> str:
        """What is certain of the text so far and was not returned yet."""
        ...

    def finish(self) -> str:
        """The rest."""
        ...


class ByteDetokenizer:
    """For vocabularies whose tokens are spelled in bytes: exact, and linear in the answer."""

    def __init__(self, spelling: _Spelling, skipped: Container[int]) -> None:
        self._spelling, self._skipped = spelling, skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = spelling.strips_space

    def add(self, ids: Sequence[int]) -> str:
        spelled = b"".join(self._spelling.bytes_of(i) for i in ids if i not in self._skipped)
        return self._shown(self._decoder.decode(spelled))

    def finish(self) -> str:
        return self._shown(self._decoder.decode(b"", final=True))

    def _shown(self, text: str) -> str:
        if self._at_start and text:
            self._at_start = False
            return text.removeprefix(" ")
        return text


class WindowDetokenizer:
    """For other vocabularies: a few tokens before the new ones are decoded with them, since what a
    token looks like may depend on those before it. The cost of a token stays bounded."""

    #: U+FFFD at the end of a text that may still become a character: at most so many.
    MAX_UNFINISHED = 3
    MAX_WINDOW = 64  # tokens; only bytes that never become text reach it

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._window: list[int] = []
        self._n_context = 0  # tokens at the window's start whose text was shown long ago
        self._n_shown = 0  # characters of the window's text that were shown

    def add(self, ids: Sequence[int]) -> str:
        out = []
        for token_id in ids:
            if self._skip and token_id in self._tokenizer.special_tokens:
                continue
            self._window.append(token_id)
            text = self._tokenizer.decode(self._window, self._skip)
            certain = text
            for _ in range(self.MAX_UNFINISHED):
                certain = certain.removesuffix("\ufffd")
            if len(certain) > self._n_shown:
                out.append(certain[self._n_shown :])
                self._n_shown = len(certain)
            if certain == text or len(self._window) > self.MAX_WINDOW:
                self._move_on()
        return "".join(out)

    def finish(self) -> str:
        text = self._tokenizer.decode(self._window, self._skip)
        rest = text[self._n_shown :]
        self._n_shown = len(text)
        return rest

    def _move_on(self) -> None:
        """Keeps the newest tokens that show something as context for those to come."""
        newest = self._window[self._n_context :]
        n_shown = len(self._tokenizer.decode(newest, self._skip))
        if n_shown or len(self._window) > self.MAX_WINDOW:
            self._window, self._n_context, self._n_shown = newest, len(newest), n_shown


# ---- how tokens are spelled ----


def _gpt2_bytes() -> dict[str, int]:
    """The characters that stand for bytes in byte-level vocabularies (GPT-2's encoder.py)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


class _Spelling:
    """The bytes of each token, found when first used.

    byte_level: characters stand for bytes; otherwise "▁" is a space and "<0xNN>" a byte.
    """

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, *, byte_level: bool, strips_space: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._literal = {i: t.content for i, t in tokenizer.get_added_tokens_decoder().items()}
        self._characters = _gpt2_bytes() if byte_level else None
        self._known: dict[int, bytes] = {}
        self.strips_space = strips_space

    def bytes_of(self, token_id: int) -> bytes:
        """b"" for an id that the vocabulary does not have."""
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._spell(token_id)
        return known

    def _spell(self, token_id: int) -> bytes:
        token = self._literal.get(token_id)
        if token is not None:
            return token.encode("utf-8", "replace")
        token = self._tokenizer.id_to_token(token_id) if token_id >= 0 else None
        if token is None:
            return b""
        if self._characters is None:
            if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                return bytes([int(token[3:5], 16)])
            return token.replace("▁", " ").encode("utf-8", "replace")
        spelled = bytearray()
        for c in token:
            byte = self._characters.get(c)
            spelled += c.encode("utf-8", "replace") if byte is None else bytes([byte])
        return bytes(spelled)


def _spelling_of(tokenizer: tokenizers.Tokenizer) -> _Spelling | None:
    """None where the tokenizer's decoder is neither byte-level nor SentencePiece's."""
    decoder = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder else {}
    steps = decoder.get("decoders", [decoder])
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return _Spelling(tokenizer, byte_level=True, strips_space=False)
    if kinds == ["ByteFallback", "Metaspace"] and steps[1].get("replacement") == "▁":
        strips_space = steps[1].get("prepend_scheme") != "never"
        return _Spelling(tokenizer, byte_level=False, strips_space=strips_space)
    if kinds[:3] == ["Replace", "ByteFallback", "Fuse"] and kinds[3:] in ([], ["Strip"]):
        return _Spelling(tokenizer, byte_level=False, strips_space=kinds[3:] == ["Strip"])
    return None


# ---- pieces of a vocabulary ----


def _token_text(token: Any) -> str | None:
    """A token in tokenizer_config.json: a text, or an object with "content"."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


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


def _hf_chat_templates(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    file = path / "chat_template.jinja"
    if file.is_file():
        return {"default": file.read_text(encoding="utf-8")}
    template = config.get("chat_template")
    if isinstance(template, str):
        return {"default": template}
    if isinstance(template, list):
        return {
            item["name"]: item["template"]
            for item in template
            if isinstance(item, dict)
            and isinstance(item.get("name"), str)
            and isinstance(item.get("template"), str)
        }
    return {}


def _gguf_chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
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


def _sentencepiece_merges(vocab: dict[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """SentencePiece joins the pair whose whole has the best score; a list of merges does the same
    when it holds every pair of tokens that make a token, the best whole first."""
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
