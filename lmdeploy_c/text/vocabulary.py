"""What the readers of tokenizer.json and of GGUF metadata give to a `Tokenizer`."""

from __future__ import annotations

from dataclasses import dataclass

from .tokenizers_library import LibraryTokenizer


@dataclass(frozen=True)
class Vocabulary:
    """Tokens, the rules to find them in a text, and what a model's files say about them."""

    tokenizer: LibraryTokenizer
    special: dict[int, str]  # special tokens: id -> text
    bos_id: int | None
    eos_id: int | None
    named: dict[str, str]  # what files call "bos_token", "image_token" and the like -> its text
    before_text: tuple[int, ...]  # ids that are put in front of a text, and behind it
    after_text: tuple[int, ...]
    chat_templates: dict[str, str]  # name -> jinja source; the usual one is "default"
