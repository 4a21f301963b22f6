"""What the answers of OpenAI's two routes have in common: ids, usage, reasons, probabilities."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from ..engine.text_engine import TextEngine
from ..messages import Response
from ..tokenizer import Tokenizer
from .json_text import dump
from .schema import Schema, any_value, fields, integer, list_of, nullable, number, one_of, text
from .service import Job

#: Ends a stream of events.
DONE = b"data: [DONE]\n\n"


def new_id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"


def event(value: Any) -> bytes:
    """A value as one event of a stream."""
    return b"data: " + dump(value) + b"\n\n"


# ---- the end of an answer ----


def reason_of(response: Response) -> str | None:
    """OpenAI's clients know "stop" and "length"; an answer that was cut off is one of the latter,
    and `detail_of` says so."""
    return "length" if response.finish_reason == "abort" else response.finish_reason


def detail_of(response: Response) -> dict[str, str]:
    """A field of a choice, beside OpenAI's: LMDeploy's reason where OpenAI has none."""
    return {"finish_detail": "abort"} if response.finish_reason == "abort" else {}


def usage(job: Job) -> dict[str, Any]:
    n_prompt, n_cached, n_generated = job.count()
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_generated,
        "total_tokens": n_prompt + n_generated,
        "prompt_tokens_details": {"cached_tokens": n_cached},
    }


# ---- probabilities ----


def chosen_logprob(entry: Mapping[int, float], token_id: int) -> float:
    """JSON has no minus infinity: a token that cannot be has OpenAI's -9999."""
    return max(entry[token_id], -9999.0)


def most_likely(entry: Mapping[int, float], n: int) -> list[tuple[int, float]]:
    """The n likeliest tokens."""
    best = sorted(entry.items(), key=lambda item: (-item[1], item[0]))[:n]
    return [(token_id, max(value, -9999.0)) for token_id, value in best]


def chat_logprobs(
    tokenizer: Tokenizer, piece: Response, n_top: int
) -> dict[str, list[dict[str, Any]] | None]:
    """A choice's `logprobs`, for the tokens of a piece of its answer."""

    def shown(token_id: int, value: float) -> dict[str, Any]:
        spelled = tokenizer.token_bytes(token_id)
        text = spelled.decode("utf-8", "replace")
        return {"token": text, "logprob": value, "bytes": list(spelled)}

    content = []
    for token_id, entry in zip(piece.token_ids, piece.logprobs or (), strict=False):
        top = [shown(*item) for item in most_likely(entry, n_top)]
        chosen = shown(token_id, chosen_logprob(entry, token_id))
        content.append({**chosen, "top_logprobs": top})
    return {"content": content, "refusal": None}


class TextLogprobs:
    """`logprobs` of a text completion's choice, in pieces. Offsets count characters of its text."""

    def __init__(self, engine: TextEngine, n_top: int, offset: int = 0) -> None:
        self._tokenizer, self._n_top, self._offset = engine.tokenizer, n_top, offset

    def add(
        self, token_ids: Sequence[int], entries: Sequence[Mapping[int, float] | None]
    ) -> dict[str, Any]:
        """entries: None for a token that nothing comes before."""
        tokens = [self._text(token_id) for token_id in token_ids]
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token)
        chosen, top = [], []
        for token_id, entry in zip(token_ids, entries, strict=True):
            chosen.append(None if entry is None else chosen_logprob(entry, token_id))
            top.append(None if entry is None else self._top(entry))
        return {
            "tokens": tokens,
            "token_logprobs": chosen,
            "top_logprobs": top if self._n_top else None,
            "text_offset": offsets,
        }

    def _text(self, token_id: int) -> str:
        spelled = self._tokenizer.token_bytes(token_id)
        try:
            return spelled.decode()
        except UnicodeDecodeError:  # a part of a character
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)

    def _top(self, entry: Mapping[int, float]) -> dict[str, float]:
        found: dict[str, float] = {}
        for token_id, value in most_likely(entry, self._n_top):
            found.setdefault(self._text(token_id), value)
        return found


# ---- schemas of answers ----

USAGE_SCHEMA: Schema = fields(
    {
        "prompt_tokens": integer(0, 2**53),
        "completion_tokens": integer(0, 2**53),
        "total_tokens": integer(0, 2**53),
        "prompt_tokens_details": fields({"cached_tokens": integer(0, 2**53)}),
    },
    required=("prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"),
)
REASON_SCHEMA: Schema = one_of("stop", "length")
DETAIL_SCHEMA: Schema = one_of("abort", about="The answer was cut off: aborted, or out of time.")


def completion_schema(kind: str, choice: Schema) -> Schema:
    """The answer of a route that does not stream."""
    properties = {
        "id": text(),
        "object": one_of(kind),
        "created": integer(0, 2**53),
        "model": text(),
        "choices": list_of(choice, min_items=1),
        "usage": USAGE_SCHEMA,
    }
    return fields({**properties, "system_fingerprint": any_value()}, required=tuple(properties))


CHAT_TOKEN: Schema = fields(
    {"token": text(), "logprob": number(-9999, 0), "bytes": list_of(integer(0, 255))},
    required=("token", "logprob", "bytes"),
    open=True,
)
CHAT_LOGPROBS: Schema = nullable(
    fields({"content": list_of(CHAT_TOKEN), "refusal": one_of(None)}, required=("content",))
)


def now() -> int:
    return int(time.time())
