"""What a tokenizer.json may say: the parts of a tokenizer as JSON, checked before the tokenizers
library sees them.

The library trusts what it reads: sizes, ids, depths and expressions are bounded here, and fields
that it does not know, and those of training, never reach it. Raises ValueError for what is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from .charsmap import checked_table, longest_text
from .patterns import check_pattern, matches_nothing

Json = Mapping[str, Any]

MAX_TOKENS = 1 << 24  # and ids are below it
MAX_TOKEN = 4096  # characters; a row of spaces or dashes is the longest in known ones
MAX_STEPS = 64  # of each part; known ones have up to ten
MAX_DEPTH = 4  # of steps in a Sequence
MAX_TEXT = 128  # characters of a step's texts: "▁", "##", "</w>"
MAX_COUNT = 1024  # characters that a step cuts off or together
MAX_PIECES = 64  # of a template
#: Characters of a word for WordPiece, which takes time that grows with their square; BERT has 100.
MAX_WORD = 1024
#: How many bytes a normaliser or a decoder may make of one. ALBERT's normaliser makes up to 726,
#: in theory; what decoders make is made for every token.
MAX_GROWTH = {"normalizer": 4096, "decoder": 16}
_BEHAVIORS = ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
_SCHEMES = ("first", "never", "always")
#: UTF-8 bytes for one, at most, of what Unicode makes of a text.
_GROWTH = {"NFC": 3, "NFD": 3, "NFKC": 11, "NFKD": 11, "Lowercase": 2, "BertNormalizer": 9,
           "ByteLevel": 2}  # fmt: skip


#: Expressions of known models (DeepSeek's) whose time grows with the square of a row of spaces ->
#: the same matches in linear time: none of them begins inside a row.
_LINEAR = {r"\s+$": r"(?<!\s)\s+$"}


# ---- fields ----


def _flag(value: Any) -> Any:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {value!r:.40}")
    return value


def _text(value: Any) -> Any:
    if not isinstance(value, str) or len(value) > MAX_TEXT or not _is_unicode(value):
        raise ValueError(f"must be a text of at most {MAX_TEXT} characters, not {value!r:.40}")
    return value


def _is_unicode(text: str) -> bool:
    """Whether a text has no surrogates, which the library does not take."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _character(value: Any) -> Any:
    if not isinstance(value, str) or len(value) != 1:
        raise ValueError(f"must be a character, not {value!r:.40}")
    return value


def _number(least: int, most: int) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"must be {least} to {most}, not {value!r:.40}")
        return value

    return check


def _choice(*names: str) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value not in names:
            raise ValueError(f"must be one of {', '.join(names)}, not {value!r:.40}")
        return value

    return check


def _pattern(value: Any) -> Any:
    """{"String": text} or {"Regex": expression}."""
    if not isinstance(value, Mapping) or len(value) != 1:
        raise ValueError(f'must have "String" or "Regex", not {value!r:.40}')
    ((kind, text),) = value.items()
    is_text = isinstance(text, str) and text and _is_unicode(text)
    if kind not in ("String", "Regex") or not is_text:
        raise ValueError(f'must have a text as "String" or "Regex", not {value!r:.40}')
    if kind == "Regex":
        check_pattern(text)
        return {kind: _LINEAR.get(text, text)}
    return {kind: _text(text)}


def _pattern_of_text(value: Any) -> Any:
    """One that finds at least a character each time."""
    checked = _pattern(value)
    if matches_nothing(checked.get("Regex", "a")):
        raise ValueError(f"must not match between two characters: {value!r:.40}")
    return checked


def _pair(value: Any) -> Any:
    """A token and its id."""
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"must be a token and its id, not {value!r:.40}")
    return [_content(value[0]), _id(value[1])]


def _content(value: Any) -> Any:
    if not isinstance(value, str) or len(value) > MAX_TOKEN or not _is_unicode(value):
        raise ValueError(f"a token must have at most {MAX_TOKEN} characters, not {value!r:.40}")
    return value


def _list(value: Any, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"must be a list of at most {most}, not {value!r:.40}")
    return value


def _template(value: Any) -> Any:
    pieces = []
    for piece in _list(value, MAX_PIECES):
        if not isinstance(piece, Mapping) or len(piece) != 1:
            raise ValueError(f"a template has no piece {piece!r:.40}")
        ((kind, of),) = piece.items()
        name = _content if kind == "SpecialToken" else _choice("A", "B")
        if kind not in ("SpecialToken", "Sequence") or not isinstance(of, Mapping):
            raise ValueError(f"a template has no piece {piece!r:.40}")
        pieces.append({kind: {"id": name(of.get("id")), "type_id": _id(of.get("type_id"))}})
    return pieces


def _special_tokens(value: Any) -> Any:
    if not isinstance(value, Mapping) or len(value) > MAX_PIECES:
        raise ValueError(f"must be an object of at most {MAX_PIECES} tokens")
    checked = {}
    for name, token in value.items():
        if not isinstance(token, Mapping):
            raise ValueError(f"{name!r:.40} must be an object")
        ids, tokens = (_list(token.get(key), MAX_PIECES) for key in ("ids", "tokens"))
        checked[_content(name)] = {
            "id": _content(token.get("id")),
            "ids": [_id(i) for i in ids],
            "tokens": [_content(text) for text in tokens],
        }
    return checked


_id = _number(0, MAX_TOKENS - 1)
_SIZE = _number(0, MAX_COUNT)
_NOTHING = _number(0, 0)  # the library fails on an empty token, and no known file has more
_BYTE_LEVEL = {"add_prefix_space": _flag, "trim_offsets": _flag, "use_regex": _flag}
_METASPACE = {"replacement": _character, "prepend_scheme": _choice(*_SCHEMES), "split": _flag,
              "add_prefix_space": _flag, "str_rep": _text}  # fmt: skip
_REPLACE = {"pattern": _pattern_of_text, "content": _text}
#: A part of a tokenizer -> the kinds of its steps -> their fields. Those of Sequence are steps.
STEPS: dict[str, dict[str, Any]] = {
    "normalizer": {
        "Sequence": "normalizers",
        "BertNormalizer": {"clean_text": _flag, "handle_chinese_chars": _flag,
                           "strip_accents": _flag, "lowercase": _flag},
        "Strip": {"strip_left": _flag, "strip_right": _flag},
        **{kind: {} for kind in ("StripAccents", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Nmt",
                                 "ByteLevel")},
        "Precompiled": {"precompiled_charsmap": checked_table},
        "Replace": _REPLACE,
        "Prepend": {"prepend": _text},
    },
    "pre_tokenizer": {
        "Sequence": "pretokenizers",
        **{kind: {} for kind in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit",
                                 "UnicodeScripts")},
        "ByteLevel": _BYTE_LEVEL,
        "CharDelimiterSplit": {"delimiter": _character},
        "Metaspace": _METASPACE,
        "Split": {"pattern": _pattern, "behavior": _choice(*_BEHAVIORS), "invert": _flag},
        "Punctuation": {"behavior": _choice(*_BEHAVIORS)},
        "Digits": {"individual_digits": _flag},
        "FixedLength": {"length": _number(1, MAX_COUNT)},
    },
    "post_processor": {
        "Sequence": "processors",
        "ByteLevel": _BYTE_LEVEL,
        "BertProcessing": {"sep": _pair, "cls": _pair},
        "RobertaProcessing": {"sep": _pair, "cls": _pair, "trim_offsets": _flag,
                              "add_prefix_space": _flag},
        "TemplateProcessing": {"single": _template, "pair": _template,
                               "special_tokens": _special_tokens},
    },
    "decoder": {
        "Sequence": "decoders",
        **{kind: {} for kind in ("ByteFallback", "Fuse")},
        "ByteLevel": _BYTE_LEVEL,
        "BPEDecoder": {"suffix": _text},
        "WordPiece": {"prefix": _text, "cleanup": _flag},
        "Metaspace": _METASPACE,
        "CTC": {"pad_token": _text, "word_delimiter_token": _text, "cleanup": _flag},
        "Replace": _REPLACE,
        "Strip": {"content": _character, "start": _SIZE, "stop": _NOTHING},
    },
}  # fmt: skip


# ---- steps ----


def checked_part(name: str, part: Any) -> dict[str, Any] | None:
    """A part of a tokenizer with the fields that are known alone; None for none.

    name: "normalizer", "pre_tokenizer", "post_processor" or "decoder".
    """
    return None if part is None else _checked_step(name, part, 0)


def _checked_step(name: str, step: Any, depth: int) -> dict[str, Any]:
    kinds = STEPS[name]
    kind = step.get("type") if isinstance(step, Mapping) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"{name}: {kind!r:.40} is not served; served: {', '.join(kinds)}")
    fields = kinds[kind]
    if kind != "Sequence":
        checked = {"type": kind, **_checked_fields(f"{name} {kind}", step, fields)}
        if kind == "TemplateProcessing":
            _check_template_tokens(checked)
        return checked
    inner = step.get(fields)
    if not isinstance(inner, list) or len(inner) > MAX_STEPS or depth == MAX_DEPTH:
        raise ValueError(
            f"{name} Sequence: {fields} must be a list of at most {MAX_STEPS} steps, and sequences "
            f"at most {MAX_DEPTH} deep"
        )
    return {"type": kind, fields: [_checked_step(name, each, depth + 1) for each in inner]}


def _checked_fields(where: str, step: Json, fields: Mapping[str, Any]) -> dict[str, Any]:
    checked = {}
    for field, check in fields.items():
        if step.get(field) is not None:
            try:
                checked[field] = check(step[field])
            except ValueError as error:
                raise ValueError(f"{where}: {field} {error}") from None
    return checked


def _check_template_tokens(step: Json) -> None:
    known = step.get("special_tokens", {})
    for piece in (*step.get("single", ()), *step.get("pair", ())):
        token = piece.get("SpecialToken")
        if token and token["id"] not in known:
            raise ValueError(f"post_processor: special_tokens has no {token['id']!r:.40}")


def steps_of(name: str, part: Json | None) -> Iterator[Json]:
    """The steps of a checked part, those of its sequences in their order."""
    if part is None:
        return
    if part["type"] != "Sequence":
        yield part
        return
    for step in part[STEPS[name]["Sequence"]]:
        yield from steps_of(name, step)


def growth(name: str, part: Json | None) -> int:
    """How many bytes a checked normaliser or decoder makes of one byte, at most. ValueError for
    more than MAX_GROWTH."""
    factor, most = 1, MAX_GROWTH[name]
    for step in steps_of(name, part):
        factor *= _growth_of(step)
        if factor > most:
            raise ValueError(f"{name}: it makes more than {most} bytes of one")
    return factor


def _growth_of(step: Json) -> int:
    if step["type"] == "Replace":
        n_bytes = len(step.get("content", "").encode("utf-8", "replace"))
        found = step.get("pattern", {}).get("String", "a")  # an expression finds a byte at least
        return max(-(-n_bytes // len(found.encode("utf-8", "replace"))), 1)
    if step["type"] == "Precompiled":
        return longest_text(step.get("precompiled_charsmap", ""))
    return _GROWTH.get(step["type"], 1)


# ---- models ----


def checked_model(model: Any) -> dict[str, Any]:
    """A model with the fields that are known alone, and with pairs as tuples."""
    if not isinstance(model, Mapping):
        raise ValueError("it has no model")
    kind = model.get("type") or _kind_of(model)
    if not isinstance(kind, str) or kind not in _MODELS:
        raise ValueError(f"model {kind!r:.40} is not served; served: {', '.join(_MODELS)}")
    fields, check = _MODELS[kind]
    checked = {"type": kind, **_checked_fields(f"model {kind}", model, fields)}
    check(model, checked)
    return checked


def _kind_of(model: Json) -> str:
    """Of a file that was written before models had types."""
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    if "merges" in model:
        return "BPE"
    return "WordPiece" if "max_input_chars_per_word" in model else "WordLevel"


def _check_vocab(model: Json, checked: dict[str, Any]) -> None:
    """Token -> id."""
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or len(vocab) > MAX_TOKENS:
        raise ValueError(f"model: vocab must be an object of at most {MAX_TOKENS} tokens")
    try:
        last = max(vocab.values(), default=0)
    except TypeError:
        last = None
    if type(last) is not int or last >= MAX_TOKENS:  # the library refuses others that are no ids
        raise ValueError(f"model: vocab must give each token an id below {MAX_TOKENS}")
    _check_lengths(vocab)
    checked["vocab"] = vocab


def _check_lengths(tokens: Iterable[str]) -> None:
    if max(map(len, tokens), default=0) > MAX_TOKEN:
        longest = max(tokens, key=len)
        raise ValueError(
            f"model: a token of {len(longest)} characters, {longest!r:.40}; at most {MAX_TOKEN}"
        )


def _check_bpe(model: Json, checked: dict[str, Any]) -> None:
    _check_vocab(model, checked)
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise ValueError("model: merges must be a list")
    kinds = set(map(type, merges))
    if kinds == {str}:  # as older files have them
        version = merges[0].startswith("#version")
        merges = [tuple(merge.split(" ")) for merge in merges[version:]]
    elif kinds == {list}:
        merges = list(map(tuple, merges))
    elif not kinds <= {tuple}:
        merges = [()]
    if not set(map(len, merges)) <= {2}:
        raise ValueError("model: merges must be pairs of tokens")
    prefix = checked.get("continuing_subword_prefix")
    if prefix and not all(str(right).startswith(prefix) for _, right in merges):
        raise ValueError(f"model: merges must join what begins with {prefix!r}")
    checked["merges"] = merges


def _check_unigram(model: Json, checked: dict[str, Any]) -> None:
    vocab = model.get("vocab")
    if not isinstance(vocab, list) or not 0 < len(vocab) <= MAX_TOKENS:
        raise ValueError(f"model: vocab must be a list of 1 to {MAX_TOKENS} tokens")
    if not set(map(type, vocab)) <= {list, tuple} or not set(map(len, vocab)) <= {2}:
        raise ValueError("model: vocab must be pairs of a token and its score")
    tokens, scores = zip(*vocab, strict=True)
    if not set(map(type, tokens)) <= {str} or not set(map(type, scores)) <= {int, float}:
        raise ValueError("model: vocab must be pairs of a token and its score")
    _check_lengths(tokens)
    try:
        scores = tuple(map(float, scores))
    except OverflowError:
        scores = (math.inf,)
    if not all(map(math.isfinite, scores)):
        raise ValueError("model: scores must be finite")
    if checked.get("unk_id", 0) >= len(vocab):
        raise ValueError(f"model: unk_id {checked['unk_id']} is no token's")
    checked["vocab"] = list(zip(tokens, scores, strict=True))


#: A kind of model -> its small fields, and what checks its large ones. dropout, which makes the
#: tokens of a text a matter of chance, is for training.
_MODELS: dict[str, tuple[dict[str, Any], Callable[[Json, dict[str, Any]], None]]] = {
    "BPE": (
        {"unk_token": _content, "continuing_subword_prefix": _text, "end_of_word_suffix": _text,
         "fuse_unk": _flag, "byte_fallback": _flag, "ignore_merges": _flag},
        _check_bpe,
    ),
    "Unigram": ({"unk_id": _id, "byte_fallback": _flag}, _check_unigram),
    "WordPiece": (
        {"unk_token": _content, "continuing_subword_prefix": _text,
         "max_input_chars_per_word": _number(0, MAX_WORD)},
        _check_vocab,
    ),
    "WordLevel": ({"unk_token": _content}, _check_vocab),
}  # fmt: skip


def slowness(model: Json) -> int:
    """How often a checked model may look at a byte of a text while it looks for tokens."""
    if model["type"] == "Unigram":
        return max(len(token) for token, _ in model["vocab"])
    if model["type"] == "WordPiece":
        return max(int(model.get("max_input_chars_per_word", 100)), 1)
    return 1


# ---- added tokens ----

_TOKEN_FLAGS = ("special", "single_word", "lstrip", "rstrip", "normalized")


def checked_added_tokens(tokens: Any) -> list[dict[str, Any]]:
    """Their fields without ids, which the library gives anew."""
    if tokens is None:
        return []
    if not isinstance(tokens, list) or len(tokens) > MAX_TOKENS:
        raise ValueError(f"added_tokens must be a list of at most {MAX_TOKENS}")
    checked = []
    for token in tokens:
        if not isinstance(token, Mapping):
            raise ValueError(f"added_tokens: {token!r:.40} must be an object")
        flags = {name: _flag(token.get(name, name == "normalized")) for name in _TOKEN_FLAGS}
        checked.append({"content": _content(token.get("content")), **flags})
    return checked
