"""The one door to the tokenizers library: what goes in was checked, what goes wrong is ours.

The library raises Exception itself, panics (a panic is no Exception), and aborts the process where
it cannot panic. Here every use of it stands in `_guarded`, and nowhere else may one stand
(`tests/project/test_one_door.py`). It holds the GIL while it works: other threads, and Ctrl-C,
wait for the text at hand, whose size is bounded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from .token_bounds import TokenBound
from .tokenizer_json import checked_added_tokens, checked_model, checked_part, growth, slowness

#: Bytes of a text: a million tokens and more. Of what a normaliser may make of it; tokens take some
#: hundred bytes of memory for each.
MAX_TEXT_BYTES, MAX_NORMALIZED_BYTES = 16 << 20, 64 << 20
MAX_LOOKS = 1 << 28  # at bytes of a text, by a model that tries every token or part of a word there
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_MAX_ID = 1 << 32  # the library's ids have 32 bits


class _guarded:
    """Makes an error of the library, which raises Exception itself and in some places panics, a
    ValueError that begins with `what`."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is Exception or (kind is not None and _is_panic(kind)):
            raise ValueError(f"{self._what}: {error}") from None


def _is_panic(kind: type[BaseException]) -> bool:
    """The type of a panic cannot be imported: no module has it."""
    return kind.__name__ == "PanicException" and kind.__module__ == "pyo3_runtime"


class LibraryTokenizer:
    """A tokenizer of the library, made from the parts of a tokenizer.json. Any thread.

    parts: "model", and the steps "normalizer", "pre_tokenizer", "post_processor" and "decoder",
    which may be missing. added_tokens: objects with the content and the flags of added tokens; they
    get the ids that the model has for them, new ones the ids that follow.

    Every method raises ValueError for what the library refuses. Attributes: steps, as checked;
    max_text_bytes: of a text, for `encode`.
    """

    def __init__(self, parts: Mapping[str, Any], added_tokens: Any) -> None:
        model = checked_model(parts.get("model"))
        steps = {name: checked_part(name, parts.get(name)) for name in _PARTS}
        growth("decoder", steps["decoder"])
        factor = growth("normalizer", steps["normalizer"])
        self.steps = steps
        self.max_text_bytes = min(
            MAX_TEXT_BYTES, MAX_NORMALIZED_BYTES // factor, MAX_LOOKS // slowness(model)
        )
        self._bound = TokenBound(model, steps, factor)
        with _guarded("the tokenizers library refuses it"):
            import tokenizers

            empty = {"type": "BPE", "vocab": {}, "merges": []}
            text = json.dumps({"version": "1.0", "added_tokens": [], **steps, "model": empty})
            self._real = tokenizers.Tokenizer.from_str(text)
        self._set_model(model)
        self.add_tokens(added_tokens)

    def _set_model(self, model: Mapping[str, Any]) -> None:
        fields = {name: value for name, value in model.items() if name not in ("type", "merges")}
        large = (fields.pop("vocab"), *([model["merges"]] if "merges" in model else []))
        try:
            with _guarded("the tokenizers library refuses its vocabulary"):
                from tokenizers import models

                self._real.model = getattr(models, model["type"])(*large, **fields)
        except (OverflowError, TypeError) as error:  # a value of another kind, or out of range
            raise ValueError(f"the tokenizers library refuses its vocabulary: {error}") from None

    # ---- text and ids ----

    def encode(self, text: str) -> list[int]:
        """The ids of a text alone. Both halves of a surrogate pair are its character, and a half
        alone is U+FFFD. TypeError for what is no text."""
        if not isinstance(text, str):
            raise TypeError(f"a text must be a str, not {type(text).__name__}")
        try:
            n_bytes = len(text.encode())
        except UnicodeEncodeError:
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
            n_bytes = len(text.encode())
        if n_bytes > self.max_text_bytes:
            raise ValueError(
                f"a text of {n_bytes} bytes, of which this tokenizer takes {self.max_text_bytes} "
                "at once"
            )
        with _guarded("the tokenizer cannot read the text"):
            ids: list[int] = self._real.encode(text, add_special_tokens=False).ids
        return ids

    def pieces(self, text: str) -> list[str]:
        """What the pre-tokenizer cuts a text into, in the characters of the vocabulary."""
        with _guarded("the tokenizer cannot read the text"):
            cut = self._real.pre_tokenizer
            return [text] if cut is None else [piece for piece, _ in cut.pre_tokenize_str(text)]

    def fewest_tokens(self, text: str) -> int:
        """Tokens that a text has at least, found without tokenising it; 0 where that is open."""
        return self._bound.fewest_tokens(text)

    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids that the post-processor puts in front of a text, and behind it."""
        with _guarded("the tokenizer cannot read the text"):
            found = self._real.encode("a", add_special_tokens=True)
            ids, mask = found.ids, found.special_tokens_mask
        of_text = [i for i, is_put in enumerate(mask) if not is_put]
        if not of_text:
            return tuple(ids), ()
        return tuple(ids[: of_text[0]]), tuple(ids[of_text[-1] + 1 :])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; those that the vocabulary does not have become nothing."""
        known = [i for i in ids if 0 <= i < _MAX_ID]
        with _guarded("the tokenizer cannot show the ids"):
            text: str = self._real.decode(known, skip_special_tokens=False)
        return text

    # ---- tokens ----

    def id_of(self, token: str) -> int | None:
        with _guarded("the tokenizer cannot find a token"):
            found: int | None = self._real.token_to_id(token)
        return found

    def token_of(self, token_id: int) -> str | None:
        if not 0 <= token_id < _MAX_ID:
            return None
        with _guarded("the tokenizer cannot find a token"):
            found: str | None = self._real.id_to_token(token_id)
        return found

    def vocabulary(self, *, with_added_tokens: bool) -> dict[str, int]:
        """Token -> id."""
        with _guarded("the tokenizer cannot list its tokens"):
            found: dict[str, int] = self._real.get_vocab(with_added_tokens=with_added_tokens)
        return found

    def size(self, *, with_added_tokens: bool) -> int:
        with _guarded("the tokenizer cannot count its tokens"):
            return int(self._real.get_vocab_size(with_added_tokens=with_added_tokens))

    def added_tokens(self) -> dict[int, dict[str, Any]]:
        """The added tokens by their ids, as objects like those of `add_tokens`."""
        with _guarded("the tokenizer cannot list its tokens"):
            return {
                token_id: {"content": token.content, "special": token.special,
                           "single_word": token.single_word, "lstrip": token.lstrip,
                           "rstrip": token.rstrip, "normalized": token.normalized}
                for token_id, token in self._real.get_added_tokens_decoder().items()
            }  # fmt: skip

    def add_tokens(self, tokens: Any) -> None:
        """Makes texts tokens of their own wherever they stand: a list of objects with content and
        flags, or None."""
        tokens = checked_added_tokens(tokens)
        with _guarded("the tokenizers library refuses an added token"):
            from tokenizers import AddedToken

            self._real.add_tokens([AddedToken(**token) for token in tokens])
        self._bound.add(tokens)

    # ---- rules ----

    def rules(self) -> str:
        """All of it as JSON: equal texts make equal tokens."""
        with _guarded("the tokenizer cannot be written"):
            text: str = self._real.to_str()
        return text

    def without_special_tokens(self) -> LibraryTokenizer:
        """A copy that reads special tokens in a text as ordinary characters."""
        copy = LibraryTokenizer.__new__(LibraryTokenizer)
        copy.steps, copy.max_text_bytes = self.steps, self.max_text_bytes
        copy._bound = self._bound
        with _guarded("the tokenizer cannot be copied"):
            import tokenizers

            copy._real = tokenizers.Tokenizer.from_str(self._real.to_str())
            copy._real.encode_special_tokens = True
        return copy
