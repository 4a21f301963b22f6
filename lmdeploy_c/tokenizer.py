"""Text to token ids and back: LMDeploy's `Tokenizer`, of a tokenizer.json or a GGUF file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import safetensors
from .text.detokenizer import (
    ByteDetokenizer,
    IncrementalDetokenizer,
    WindowDetokenizer,
    spelling_of,
)
from .text.gguf_vocab import read_vocabulary
from .text.vocabulary import Vocabulary

if TYPE_CHECKING:
    import tokenizers


class Tokenizer:
    """LMDeploy's tokenizer. Any thread.

    Tokenizer(model_path) reads a Hugging Face directory or a GGUF file;
    `from_gguf(metadata)` takes metadata that was read before.
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
            self._set_up(_read_directory(path))
        else:
            from ._C import Gguf

            self._set_up(read_vocabulary(Gguf(path).metadata))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        self = cls.__new__(cls)
        self._set_up(read_vocabulary(metadata))
        return self

    def _set_up(self, vocabulary: Vocabulary) -> None:
        tokenizer, bos, eos = vocabulary.tokenizer, vocabulary.bos_id, vocabulary.eos_id
        self._tokenizer = tokenizer
        self._plain_tokenizer: tokenizers.Tokenizer | None = None
        self._spelling = spelling_of(tokenizer)
        self._add_bos, self._space_prefix = vocabulary.add_bos, vocabulary.space_prefix
        self.vocab_size = tokenizer.get_vocab_size()
        self.special_tokens = vocabulary.special
        self.special_ids = {text: token_id for token_id, text in vocabulary.special.items()}
        self.bos_token_id, self.eos_token_id = bos, eos
        self.bos_token = None if bos is None else tokenizer.id_to_token(bos)
        self.eos_token = None if eos is None else tokenizer.id_to_token(eos)
        self.chat_templates = vocabulary.chat_templates

    def encode(self, text: str, add_bos: bool = True, add_special_tokens: bool = True) -> list[int]:
        """Token ids. add_bos: put in front what the model wants (nothing for many models, and
        never a second bos). add_special_tokens: read special tokens written in the text."""
        if "\0" not in text:
            text = text.encode("utf-8", "replace").decode()  # lone surrogates become "?"
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
        """Text of tokens as they come. spaces_between_special_tokens: accepted, and without
        effect: no space is ever added around special tokens."""
        del spaces_between_special_tokens
        if self._spelling is None:
            return WindowDetokenizer(self, skip_special_tokens)
        return ByteDetokenizer(self._spelling, self.special_tokens if skip_special_tokens else ())

    def token_ids_of(self, text: str) -> list[int]:
        """The ids of a stop or bad word as it is spelled inside a text: without bos and without the
        space that the vocabulary puts before a text. Special tokens are known."""
        ids = self.encode(text, add_bos=False)
        if self._space_prefix and not text.startswith(" "):
            # The space goes to the first piece of a text: a line break in front takes it.
            before = self.encode("\n", add_bos=False)
            joined = self.encode("\n" + text, add_bos=False)
            if joined[: len(before)] == before:
                ids = joined[len(before) :]
        return ids

    def fingerprint(self) -> str:
        """A checksum of vocabulary and rules: tokenizers with the same checksum make the same
        tokens of a text."""
        rules = [self._tokenizer.to_str(), repr(sorted(self.special_tokens.items()))]
        return hashlib.blake2b("\0".join(rules).encode(), digest_size=16).hexdigest()

    def _plain(self) -> tokenizers.Tokenizer:
        """The tokenizer that reads special tokens in a text as ordinary characters."""
        if self._plain_tokenizer is None:
            import tokenizers

            plain = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
            plain.encode_special_tokens = True
            self._plain_tokenizer = plain
        return self._plain_tokenizer


# ---- Hugging Face ----


def _read_directory(path: Path) -> Vocabulary:
    import tokenizers

    file = path / "tokenizer.json"
    if not file.is_file():
        raise safetensors.bad_file(path, "it has no tokenizer.json")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises Exception itself
        raise safetensors.bad_file(file, str(error)) from None
    config_path = path / "tokenizer_config.json"
    config = safetensors.read_json(config_path) if config_path.is_file() else {}
    added = tokenizer.get_added_tokens_decoder()
    probe = tokenizer.encode("a", add_special_tokens=True).ids
    bos, eos = _token_text(config.get("bos_token")), _token_text(config.get("eos_token"))
    bos_id = None if bos is None else tokenizer.token_to_id(bos)
    return Vocabulary(
        tokenizer,
        {i: token.content for i, token in added.items() if token.special},
        bos_id=bos_id,
        eos_id=None if eos is None else tokenizer.token_to_id(eos),
        add_bos=bos_id is not None and probe[:1] == [bos_id],
        chat_templates=_chat_templates(path, config),
    )


def _token_text(token: Any) -> str | None:
    """A token in tokenizer_config.json: a text, or an object with "content"."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _chat_templates(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
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
