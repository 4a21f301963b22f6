"""What a Hugging Face directory says of its tokenizer: tokenizer.json (tokenizer.model, where there
is no other), tokens and templates.

tokenizer_config.json, special_tokens_map.json, added_tokens.json, chat_template.jinja and
additional_chat_templates/ overrule one another as in transformers 5.23. Must not know: the
tokenizers library.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import safetensors

#: Names that every tokenizer may give to a token, in the order in which new ones get their ids.
STANDARD_NAMES = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"
)  # fmt: skip
MAX_TEMPLATE_BYTES = 1 << 20
MAX_TOKENIZER_BYTES = 100 << 20  # of tokenizer.json; known ones reach 35 MB
MAX_CONFIG_BYTES = 16 << 20  # of each file beside it; known ones reach 2 MB, by their added tokens
MAX_TEMPLATES = 64


@dataclass(frozen=True)
class Token:
    """A text that is one token wherever it stands; the fields are those of an `added_tokens` entry
    of tokenizer.json, which are also those of `tokenizers.AddedToken`."""

    content: str
    special: bool = True  # left out of answers, unless these are to show special tokens
    single_word: bool = False
    lstrip: bool = False  # the token takes the spaces before it; rstrip: those behind it
    rstrip: bool = False
    normalized: bool = False


@dataclass(frozen=True)
class TokenizerFiles:
    """tokenizer.json, and all that is said beside it."""

    rules: Path  # tokenizer.json, or else tokenizer.model
    parts: dict[str, Any]  # what tokenizer.json says
    described: dict[int, Token]  # id -> token: new ones, and known ones with other properties
    older: dict[int, Token]  # the same of added_tokens.json, which tokenizer.json overrules
    named: dict[str, Token]  # "eos_token", "image_token", ... -> token
    extra: list[Token]  # special tokens without a name
    chat_templates: dict[str, str]  # name -> jinja source; the usual one is "default"
    adds_bos: bool  # what tokenizer.model does not say itself
    adds_eos: bool


def read_tokenizer_files(path: Path) -> TokenizerFiles:
    """Reads a directory. CheckpointError."""
    candidates = [path / "tokenizer.json", path / "tokenizer.model"]
    rules = next((file for file in candidates if file.is_file()), None)
    if rules is None:
        raise safetensors.bad_file(path, "it has no tokenizer.json and no tokenizer.model")
    safetensors.check_no_pointer(rules)
    parts = _read_parts(rules) if rules.suffix == ".json" else {}
    config_path = path / "tokenizer_config.json"
    config = _read_json(config_path)
    templates = _chat_templates(path, config)
    adds = config.get("add_bos_token") is not False, config.get("add_eos_token") is True
    if "added_tokens_decoder" in config:
        described = _described(config_path, config["added_tokens_decoder"])
        named, extra = _named(config), _extra(config, {})
        return TokenizerFiles(rules, parts, described, {}, named, extra, templates, *adds)
    older_names = _read_json(path / "special_tokens_map.json")
    named, extra = _named({**config, **older_names}), _extra(config, older_names)
    older = _older(path / "added_tokens.json", named, extra)
    return TokenizerFiles(rules, parts, {}, older, named, extra, templates, *adds)


def _read_parts(path: Path) -> dict[str, Any]:
    """tokenizer.json's object. Of equal keys the last one counts, as in the tokenizers library:
    looking for them in a large vocabulary would take as long as reading it. CheckpointError."""
    content = safetensors.read_bounded(path, MAX_TOKENIZER_BYTES)
    try:
        parts = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise safetensors.bad_file(path, f"its JSON is wrong: {error}") from None
    if not isinstance(parts, dict):
        raise safetensors.bad_file(path, f"its JSON must be an object, not {type(parts).__name__}")
    return parts


def _read_json(path: Path) -> dict[str, Any]:
    """The file's object, or {} where there is no file."""
    return safetensors.read_json(path, MAX_CONFIG_BYTES) if path.is_file() else {}


# ---- tokens ----


def _token(value: Any) -> Token | None:
    """A token in JSON: its text, or an object with "content". None for anything else."""
    if isinstance(value, str):
        return Token(value)
    if not isinstance(value, Mapping) or not isinstance(value.get("content"), str):
        return None
    special = bool(value.get("special", True))
    return Token(
        value["content"],
        special,
        single_word=bool(value.get("single_word")),
        lstrip=bool(value.get("lstrip")),
        rstrip=bool(value.get("rstrip")),
        normalized=bool(value.get("normalized", not special)),
    )


def _described(path: Path, entries: Any) -> dict[int, Token]:
    """added_tokens_decoder of tokenizer_config.json."""
    if not isinstance(entries, Mapping):
        raise safetensors.bad_file(path, "added_tokens_decoder must be an object")
    found = {}
    for key, value in entries.items():
        token = _token({"special": False, **value} if isinstance(value, Mapping) else None)
        if token is None or not key.isascii() or not key.isdigit():
            raise safetensors.bad_file(
                path, f"added_tokens_decoder: {key!r} must be an id, with a token's object"
            )
        found[int(key)] = token
    return dict(sorted(found.items()))


def _older(path: Path, named: Mapping[str, Token], extra: list[Token]) -> dict[int, Token]:
    """added_tokens.json: text -> id. The tokens that have a name are special."""
    special = {token.content for token in (*named.values(), *extra)}
    found = {}
    for text, token_id in _read_json(path).items():
        if isinstance(token_id, bool) or not isinstance(token_id, int):
            raise safetensors.bad_file(path, f"{text!r} must have an id, not {token_id!r}")
        found[token_id] = Token(text, text in special, normalized=text not in special)
    return dict(sorted(found.items()))


def _named(names: Mapping[str, Any]) -> dict[str, Token]:
    """The tokens that have a name: bos_token, image_token, and the like."""
    others = [name for name in names if name.endswith("_token") and name not in STANDARD_NAMES]
    extra = names.get("extra_special_tokens")
    values = {name: names.get(name) for name in (*STANDARD_NAMES, *others)}
    values |= extra if isinstance(extra, Mapping) else {}
    tokens = {name: _token(value) for name, value in values.items()}
    return {name: token for name, token in tokens.items() if token is not None}


def _extra(config: Mapping[str, Any], older: Mapping[str, Any]) -> list[Token]:
    """The special tokens that are listed without a name: those of tokenizer_config.json and those
    that special_tokens_map.json calls extra; where neither has a list, those that it calls
    additional."""

    def listed(names: Mapping[str, Any], kind: str) -> list[Any] | None:
        values = names.get(f"{kind}_special_tokens")
        return values if isinstance(values, list) else None

    own, more = listed(config, "extra") or listed(config, "additional"), listed(older, "extra")
    if own is None and more is None:
        own = listed(older, "additional")
    return [token for token in map(_token, [*(own or ()), *(more or ())]) if token is not None]


# ---- chat templates ----


def _chat_templates(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The templates in files of their own; where there are none, those in tokenizer_config.json."""
    templates = dict(_template_files(path))
    if templates:
        return templates
    listed = config.get("chat_template")
    if isinstance(listed, str):
        return {"default": listed}
    if isinstance(listed, Mapping):
        listed = [{"name": name, "template": source} for name, source in listed.items()]
    return {
        item["name"]: item["template"]
        for item in (listed if isinstance(listed, list) else ())
        if isinstance(item, Mapping)
        and isinstance(item.get("name"), str)
        and isinstance(item.get("template"), str)
    }


def _template_files(path: Path) -> Iterator[tuple[str, str]]:
    usual, others = path / "chat_template.jinja", path / "additional_chat_templates"
    if usual.is_file():
        yield "default", _read_template(usual)
    for i, file in enumerate(sorted(others.glob("*.jinja"))):
        if i == MAX_TEMPLATES:
            raise safetensors.bad_file(others, f"more than {MAX_TEMPLATES} templates")
        yield file.stem, _read_template(file)


def _read_template(path: Path) -> str:
    try:
        return safetensors.read_bounded(path, MAX_TEMPLATE_BYTES).decode()
    except UnicodeDecodeError as error:
        raise safetensors.bad_file(path, f"it is no UTF-8 text: {error}") from None
