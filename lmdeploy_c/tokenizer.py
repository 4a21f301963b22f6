"""Text to token ids and back: LMDeploy's `Tokenizer`, of a model's directory or GGUF file."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import gguf_parts, safetensors
from .text.detokenizer import (
    ByteDetokenizer,
    DetokenizeState,
    IncrementalDetokenizer,
    WindowDetokenizer,
    spelling_of,
)
from .text.gguf_vocab import read_vocabulary
from .text.tokenizers_library import LibraryTokenizer
from .text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from .files.tokenizer_files import Token, TokenizerFiles

logger = logging.getLogger("lmdeploy_c")

#: Most tokens that stand for one stop word in `indexes_containing_token` (LMDeploy 0.18).
MAX_INDEXES = 5


class Tokenizer:
    """LMDeploy's tokenizer, with the methods of LMDeploy 0.18. Any thread.

    Tokenizer(model_path) reads a Hugging Face directory or a GGUF file;
    `from_gguf(metadata)` takes metadata that was read before. trust_remote_code is accepted and
    without effect: no code of a model is ever run.

    A directory's tokenizer.json is followed as it is, except that truncation, padding and dropout
    are off and that the files beside it add to its tokens, as in transformers 5.23.

    Attributes: vocab_size (without added tokens; vocab_size_with_added counts all),
    bos_token_id, eos_token_id, bos_token, eos_token (None for none), named_tokens (these two and
    others that a directory's files name, such as "pad_token" -> its text), before_text and
    after_text (the ids that `encode` puts in front of a text and behind it), chat_templates (name
    -> jinja source; the usual one is "default"), special_tokens (id -> text), special_ids (text ->
    id).

    Raises FileNotFoundError, CheckpointError, and UnsupportedError for a vocabulary that is not
    served, by name.
    """

    vocab_size: int
    vocab_size_with_added: int
    bos_token_id: int | None
    eos_token_id: int | None
    bos_token: str | None
    eos_token: str | None
    named_tokens: dict[str, str]
    before_text: tuple[int, ...]
    after_text: tuple[int, ...]
    chat_templates: dict[str, str]
    special_tokens: dict[int, str]
    special_ids: dict[str, int]

    def __init__(self, model_path: str | Path, trust_remote_code: bool = False) -> None:
        del trust_remote_code
        path = Path(model_path)
        if path.is_dir():
            from .files.tokenizer_files import read_tokenizer_files  # GGUF files need it not

            name = "tokenizer.json" if (path / "tokenizer.json").is_file() else "tokenizer.model"
            with _reading(path / name):
                self._set_up(_vocabulary(read_tokenizer_files(path)))
        else:
            first = gguf_parts.open_parts(path, metadata_only=True)[0]
            with _reading(path):
                self._set_up(read_vocabulary(first.metadata))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], path: str | Path = "GGUF") -> Tokenizer:
        """path: the file that errors name."""
        self = cls.__new__(cls)
        with _reading(Path(path)):
            self._set_up(read_vocabulary(metadata))
        return self

    def _set_up(self, vocabulary: Vocabulary) -> None:
        tokenizer, bos, eos = vocabulary.tokenizer, vocabulary.bos_id, vocabulary.eos_id
        self._tokenizer = tokenizer
        self._plain_tokenizer: LibraryTokenizer | None = None
        self._spelling = spelling_of(tokenizer)
        self.vocab_size = tokenizer.size(with_added_tokens=False)
        self.vocab_size_with_added = tokenizer.size(with_added_tokens=True)
        self.special_tokens = vocabulary.special
        self.special_ids = {text: token_id for token_id, text in vocabulary.special.items()}
        self.bos_token_id, self.eos_token_id = bos, eos
        self.bos_token = None if bos is None else tokenizer.token_of(bos)
        self.eos_token = None if eos is None else tokenizer.token_of(eos)
        self.named_tokens = vocabulary.named
        self.before_text, self.after_text = vocabulary.before_text, vocabulary.after_text
        self.chat_templates = vocabulary.chat_templates

    # ---- text to ids ----

    def encode(
        self,
        s: str,
        add_bos: bool = True,
        add_special_tokens: bool = True,
        *,
        split_special_tokens: bool = False,
    ) -> list[int]:
        """Token ids of a text.

        add_special_tokens: put around it what the model wants (`before_text`, `after_text`; nothing
        for many models), and never a second bos. add_bos: False leaves the bos out of that, for a
        text that goes on; one that is written in the text stays.
        split_special_tokens: read special tokens in the text as ordinary characters; the name is
        that of transformers.

        Both halves of a surrogate pair are its character, and a half alone is U+FFFD. ValueError
        for a text that the vocabulary cannot spell, and for one of more than 16 MiB (less where the
        tokenizer's rules are slow or make much of it).
        """
        tokenizer = self._plain() if split_special_tokens else self._tokenizer
        ids = tokenizer.encode(s)
        before = self.before_text
        if not add_special_tokens or not (before or self.after_text):
            return ids
        if before and before[0] == self.bos_token_id:
            is_there = len(before) == 1 and ids[:1] == [before[0]]
            before = before[1:] if is_there or not add_bos else before
        return [*before, *ids, *self.after_text]

    def fewest_tokens(self, s: str) -> int:
        """Tokens that a text has at least, without what is put around it: a bound that costs next
        to nothing, and 0 where nothing is certain."""
        return self._tokenizer.fewest_tokens(s)

    def __call__(self, s: str | Sequence[str]) -> Encoding:
        """The ids of a text, or of several, with nothing put around them."""
        if isinstance(s, str):
            ids = self.encode(s, add_special_tokens=False)
            return Encoding(input_ids=ids, attention_mask=[1] * len(ids))
        lists = [self.encode(text, add_special_tokens=False) for text in s]
        return Encoding(input_ids=lists, attention_mask=[[1] * len(ids) for ids in lists])

    def token_ids_of(self, text: str) -> list[int]:
        """The ids of a stop or bad word as it is spelled inside a text: with nothing around it and
        without the space that a vocabulary may put before a text. Special tokens are known."""
        if self._spelling is None or self._spelling.strips_space:
            # The space goes to the first piece of a text: a character in front takes it, unless it
            # becomes one token with the word.
            for front in "\n0":
                before = self.encode(front, add_special_tokens=False)
                joined = self.encode(front + text, add_special_tokens=False)
                if joined[: len(before)] == before:
                    return joined[len(before) :]
        return self.encode(text, add_special_tokens=False)

    def _plain(self) -> LibraryTokenizer:
        """The tokenizer that reads special tokens in a text as ordinary characters."""
        if self._plain_tokenizer is None:
            self._plain_tokenizer = self._tokenizer.without_special_tokens()
        return self._plain_tokenizer

    # ---- ids to text ----

    def decode(
        self, t: Sequence[int], offset: int | None = None, skip_special_tokens: bool = True
    ) -> str:
        """The text of ids. Bytes that are no UTF-8 become U+FFFD; ids that the vocabulary does not
        have, as a padded one's, become nothing.

        offset: gives the text of t[offset:], as it goes on from the text of the ids before: the
        space that it begins with is kept.
        """
        n = offset or 0
        detokenizer = self.detokenizer(skip_special_tokens, before=t[:n])
        if isinstance(detokenizer, WindowDetokenizer) and not n:
            skipped = self.special_tokens if skip_special_tokens else ()
            return self._tokenizer.decode(i for i in t if i not in skipped)
        return detokenizer.add(t[n:]) + detokenizer.finish()

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a token inside a text, which may be a part of a character; b"" for an id
        that the vocabulary does not have."""
        if self._spelling is None:
            return self._tokenizer.decode([token_id]).encode("utf-8", "replace")
        return self._spelling.bytes_of(token_id)

    def detokenizer(
        self,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        *,
        before: Sequence[int] = (),
    ) -> IncrementalDetokenizer:
        """Text of tokens as they come.

        spaces_between_special_tokens: accepted, and without effect: no space is ever added around
        special tokens. before: the ids that the text goes on from, as an answer does from its
        prompt: what is given is decode(before + ids) without decode(before).
        """
        del spaces_between_special_tokens
        skipped = self.special_tokens if skip_special_tokens else ()
        if self._spelling is None:
            return WindowDetokenizer(self._tokenizer.decode, skipped, before)
        return ByteDetokenizer(self._spelling, skipped, before)

    def detokenize_incrementally(
        self,
        all_input_ids: Sequence[int],
        state: DetokenizeState,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> tuple[str, DetokenizeState]:
        """The text that has become certain since the last call, and the state for the next one.

        all_input_ids: the prompt's ids and all of the answer's so far; a new state's ids_offset is
        the length of the prompt. A text that ends in U+FFFD is held back, as in LMDeploy: use
        `detokenizer`, which has an end.
        """
        del spaces_between_special_tokens
        seen, tokens, begin, read = state.as_tuple()
        if tokens is None:
            tokens, read, new = [], seen, all_input_ids
        else:
            new = all_input_ids[seen:]
        names = (self._tokenizer.token_of(i) for i in new)
        tokens = [*tokens, *(name for name in names if name is not None)]
        shown = self.decode(all_input_ids[begin:read], None, skip_special_tokens)
        text = self.decode(all_input_ids[begin:], None, skip_special_tokens)
        n_ids = len(all_input_ids)
        if len(text) <= len(shown) or text.endswith("\ufffd"):
            return "", DetokenizeState(n_ids, tokens, begin, read)
        # The new ids are enough context once they have a text of their own.
        begin = read if self.decode(all_input_ids[read:], None, skip_special_tokens) else begin
        return text[len(shown) :], DetokenizeState(n_ids, tokens, begin, n_ids)

    # ---- the vocabulary ----

    @property
    def model(self) -> Tokenizer:
        """Itself: what LMDeploy wraps twice is one object here."""
        return self

    def get_vocab(self) -> dict[str, int]:
        """Token -> id, added tokens too, as the vocabulary spells them."""
        return self._tokenizer.vocabulary(with_added_tokens=True)

    @cached_property
    def prefix_space_tokens(self) -> set[int]:
        """The ids of tokens that begin with SentencePiece's space."""
        vocab = self._tokenizer.vocabulary(with_added_tokens=False)
        return {token_id for token, token_id in vocab.items() if token.startswith("▁")}

    @cached_property
    def _texts(self) -> list[str]:
        """The text of each id alone, inside a text; added tokens are left out."""
        if self._spelling is None:
            return [self._tokenizer.decode([i]) for i in range(self.vocab_size)]
        return [
            self._spelling.bytes_of(i).decode("utf-8", "replace") for i in range(self.vocab_size)
        ]

    def indexes_containing_token(self, token: str) -> list[int]:
        """The ids whose text holds a stop word; of more than MAX_INDEXES, those that are the word
        itself. [] for a word of several tokens, which no id stands for."""
        own = self.token_ids_of(token)
        if len(own) > 1:
            logger.warning("the stop word %r is %d tokens and not one", token, len(own))
            return []
        found = [i for i, text in enumerate(self._texts) if token in text]
        if len(found) > MAX_INDEXES:
            found = [i for i in found if self._texts[i] == token][:MAX_INDEXES]
        return found or own

    def rules(self) -> dict[str, Any]:
        """The vocabulary and its rules, as a tokenizer.json has them."""
        rules: dict[str, Any] = json.loads(self._tokenizer.rules())
        return rules

    def save(self, path: str | Path) -> None:
        """Writes the vocabulary and its rules as a tokenizer.json, which puts around a text what
        `encode` does. Raises OSError."""
        rules = self.rules()
        if self.before_text or self.after_text:
            rules["post_processor"] = self._post_processor()
        Path(path).write_text(json.dumps(rules, ensure_ascii=False, indent=2), encoding="utf-8")

    def _post_processor(self) -> dict[str, Any]:
        """What puts before_text and after_text around a text, as tokenizer.json has it."""
        tokens = {i: self._tokenizer.token_of(i) for i in (*self.before_text, *self.after_text)}

        def pieces(ids: Sequence[int]) -> list[dict[str, Any]]:
            return [{"SpecialToken": {"id": tokens[i], "type_id": 0}} for i in ids]

        def text(name: str) -> list[dict[str, Any]]:
            return [{"Sequence": {"id": name, "type_id": 0}}]

        before, after = pieces(self.before_text), pieces(self.after_text)
        return {
            "type": "TemplateProcessing",
            "single": [*before, *text("A"), *after],
            "pair": [*before, *text("A"), *text("B"), *after],
            "special_tokens": {
                token: {"id": token, "ids": [i], "tokens": [token]} for i, token in tokens.items()
            },
        }

    def fingerprint(self) -> str:
        """A checksum of vocabulary and rules: tokenizers with the same checksum make the same
        tokens of a text."""
        rules = [self._tokenizer.rules(), repr(sorted(self.special_tokens.items()))]
        return hashlib.blake2b("\0".join(rules).encode(), digest_size=16).hexdigest()


#: LMDeploy's name for what is inside its Tokenizer.
HuggingFaceTokenizer = Tokenizer


class Encoding(dict[str, Any]):
    """What a call of a tokenizer gives: input_ids and attention_mask, as keys and as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Makes an error in a file's contents one of this file: a CheckpointError. The collector of
    garbage rests meanwhile: it would walk again and again over a large vocabulary, which has no
    cycles."""
    from ._C import CheckpointError, UnsupportedError

    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    except (CheckpointError, UnsupportedError, OSError, MemoryError):
        raise
    except Exception as error:
        raise safetensors.bad_file(path, str(error)) from None
    finally:
        if collects:
            gc.enable()


# ---- Hugging Face ----


def _vocabulary(files: TokenizerFiles) -> Vocabulary:
    """tokenizer.json or tokenizer.model, with what the files beside it add. ValueError."""
    named = {name: token.content for name, token in files.named.items()}
    if files.rules.suffix == ".model":
        metadata = _sentencepiece_model(files)
        tokenizer = read_vocabulary(metadata).tokenizer
        named = {**_named_in(metadata), **named}
    else:
        tokenizer = LibraryTokenizer(files.parts, files.parts.get("added_tokens"))
    own = _own_tokens(tokenizer)
    new = _new_tokens(files, own)
    if new:
        tokenizer.add_tokens([dataclasses.asdict(token) for token in new])
        own = _own_tokens(tokenizer)
        _warn_of_other_ids(files, tokenizer)
    ids = {name: tokenizer.id_of(text) for name, text in named.items()}
    before, after = _around(files, tokenizer, ids)
    return Vocabulary(
        tokenizer,
        {i: token.content for i, token in own.items() if token.special},
        bos_id=ids.get("bos_token"),
        eos_id=ids.get("eos_token"),
        named=named,
        before_text=before,
        after_text=after,
        chat_templates=files.chat_templates,
    )


def _sentencepiece_model(files: TokenizerFiles) -> dict[str, Any]:
    from .files import sentencepiece_model

    named = {i: (t.content, t.special) for i, t in (files.older | files.described).items()}
    return sentencepiece_model.read(files.rules, named)


def _named_in(metadata: Mapping[str, Any]) -> dict[str, str]:
    ids = {name: metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    tokens = metadata["tokenizer.ggml.tokens"]
    return {f"{name}_token": tokens[i] for name, i in ids.items() if i is not None}


def _around(
    files: TokenizerFiles, tokenizer: LibraryTokenizer, ids: Mapping[str, int | None]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that are put in front of a text, and behind it."""
    if files.rules.suffix != ".model":
        return tokenizer.around()
    bos, eos = ids.get("bos_token"), ids.get("eos_token")
    before = (bos,) if files.adds_bos and bos is not None else ()
    after = (eos,) if files.adds_eos and eos is not None else ()
    return before, after


def _own_tokens(tokenizer: LibraryTokenizer) -> dict[int, Token]:
    from .files.tokenizer_files import Token

    return {token_id: Token(**token) for token_id, token in tokenizer.added_tokens().items()}


def _new_tokens(files: TokenizerFiles, own: Mapping[int, Token]) -> list[Token]:
    """The tokens that tokenizer.json lacks, or has with other properties, in the order of their
    ids. A token is special where either says so, and where it has a name."""
    known = list(own.values())
    older = [token for i, token in files.older.items() if i not in own]
    described, named, extra = files.described.values(), files.named.values(), files.extra
    of = {t.content: t for t in (*extra, *named, *older, *known, *described)}  # the last one counts
    special = {t.content for t in named} | {t.content for t in known if t.special}
    order = dict.fromkeys(t.content for t in (*known, *older, *described, *named, *extra))
    tokens = [dataclasses.replace(of[c], special=of[c].special or c in special) for c in order]
    as_it_is = set(known)
    return [token for token in tokens if token not in as_it_is]


def _warn_of_other_ids(files: TokenizerFiles, tokenizer: LibraryTokenizer) -> None:
    """The library gives new tokens the ids that follow, whatever the files say."""
    for said, token in (files.older | files.described).items():
        token_id = tokenizer.id_of(token.content)
        if token_id != said:
            logger.warning(
                "%s: %r is token %s, not %d as the files beside it say",
                *(files.rules, token.content, token_id, said),
            )
