"""/v1/messages and /v1/messages/count_tokens: Anthropic's routes."""

from __future__ import annotations

import contextlib
import uuid
from typing import Any

from ..engine.answer import Answer
from ..engine.text_engine import TextEngine
from ..messages import Response
from .chat import start_all
from .exchange import Exchange
from .fields import MAX_TOKENS, SAMPLING, generation_config
from .json_text import dump
from .routing import Route
from .schema import (
    any_of,
    any_value,
    fields,
    flag,
    integer,
    list_of,
    mapping,
    nullable,
    one_of,
    text,
)
from .service import Job, Service
from .tokens import conversation_ids

_BLOCK = fields({"type": text()}, required=("type",), open=True)
_CONTENT = any_of("a text or a list of content blocks", text(), list_of(_BLOCK))
_CONVERSATION = {
    "messages": list_of(
        fields(
            {"role": one_of("user", "assistant", "system"), "content": _CONTENT},
            required=("role", "content"),
        ),
        min_items=1,
    ),
    "system": {**_CONTENT, "description": "Goes before the messages."},
    "model": text("A name that /v1/models lists; without it, the only one."),
    "tools": {**list_of(any_value()), "maxItems": 0, "description": "Not served: none."},
    "tool_choice": fields({"type": one_of("auto", "none")}, required=("type",), open=True),
    "thinking": fields({"type": one_of("disabled", "adaptive")}, required=("type",), open=True),
    "cache_control": any_value("Accepted, without effect: equal beginnings share KV anyway."),
    "output_config": fields(
        {"effort": any_value("Accepted, without effect."), "format": one_of(None)},
    ),
}
#: Anthropic's fields that change nothing here.
_WITHOUT_EFFECT = {
    name: any_value("Accepted, without effect.")
    for name in (
        "metadata",
        "service_tier",
        "speed",
        "inference_geo",
        "diagnostics",
        "user_profile_id",
        "workspace_id",
        "betas",
        "context_management",
    )
}
BODY = fields(
    {
        **_CONVERSATION,
        **_WITHOUT_EFFECT,
        **{name: schema for name, schema in SAMPLING.items() if name != "stop"},
        "container": one_of(None),
        "max_tokens": {**MAX_TOKENS, "minimum": 1},
        "stop_sequences": {
            **list_of(text(min_len=1), "Texts that end the answer."),
            "maxItems": 64,
        },
        "stream": flag("Answers in events, as tokens come."),
    },
    required=("messages", "max_tokens"),
)
COUNT_BODY = fields({**_CONVERSATION, **_WITHOUT_EFFECT}, required=("messages",))

_NUMBER = integer(0, 2**53)
ANSWER = fields(
    {
        "id": text(),
        "type": one_of("message"),
        "role": one_of("assistant"),
        "model": text(),
        "content": list_of(
            fields({"type": one_of("text"), "text": text()}, required=("type", "text")),
            min_items=1,
        ),
        "stop_reason": one_of("end_turn", "max_tokens", "stop_sequence"),
        "stop_sequence": nullable(text()),
        "usage": mapping("", _NUMBER),
    },
    required=("id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage"),
)


def named_event(name: str, value: Any) -> bytes:
    """An event as Anthropic's clients read them: by its name."""
    return f"event: {name}\ndata: ".encode() + dump(value) + b"\n\n"


def conversation_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages in OpenAI's form. Blocks of text have it already; others are refused where a
    conversation is read."""
    system = body.get("system")
    first = [] if not system else [{"role": "system", "content": _bare(system)}]
    return [*first, *({**m, "content": _bare(m["content"])} for m in body["messages"])]


def _bare(content: Any) -> Any:
    """Blocks without Anthropic's notes on them."""
    if isinstance(content, str):
        return content
    notes = ("cache_control", "citations")
    return [{k: v for k, v in block.items() if k not in notes} for block in content]


async def messages(service: Service, exchange: Exchange, body: dict[str, Any]) -> None:
    engine = service.engine_of(body.get("model"))
    stops = body.pop("stop_sequences", [])
    config = generation_config(
        {**body, "stop": stops} if stops else body, engine, max_new_tokens=body["max_tokens"]
    )
    conversation = conversation_of(body)

    def start() -> list[Answer]:
        return start_all(engine, conversation, config)

    async with service.answering(exchange, engine, start) as job:
        message = _Message(engine, job, stops)
        if body.get("stream"):
            exchange.expect_stream()
            await message.stream(exchange)
        else:
            (response,) = await job.responses()
            await exchange.respond_json(message.whole(response))


class _Message:
    """The answer to one request, whole or in events."""

    def __init__(self, engine: TextEngine, job: Job, stops: list[str]) -> None:
        self._job, self._stops = job, stops
        self._head = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": engine.model_name,
        }

    def _usage(self) -> dict[str, int]:
        """Anthropic counts tokens that were found in the cache apart from the others."""
        n_prompt, n_cached, n_generated = self._job.count()
        return {
            "input_tokens": n_prompt - n_cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": n_cached,
            "output_tokens": n_generated,
        }

    def _end(self) -> dict[str, str | None]:
        """stop_reason and stop_sequence."""
        (answer,) = self._job.answers
        if answer.response.finish_reason != "stop":
            return {"stop_reason": "max_tokens", "stop_sequence": None}
        if answer.stop_word in self._stops:
            return {"stop_reason": "stop_sequence", "stop_sequence": answer.stop_word}
        return {"stop_reason": "end_turn", "stop_sequence": None}

    def whole(self, response: Response) -> dict[str, Any]:
        content = [{"type": "text", "text": response.text}]
        return {**self._head, "content": content, **self._end(), "usage": self._usage()}

    def _beginning(self) -> bytes:
        start: dict[str, Any] = {
            **self._head,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {**self._usage(), "output_tokens": 0},
        }
        block = {"type": "text", "text": ""}
        return named_event(
            "message_start", {"type": "message_start", "message": start}
        ) + named_event(
            "content_block_start",
            {"type": "content_block_start", "index": 0, "content_block": block},
        )

    async def stream(self, exchange: Exchange) -> None:
        begun = False
        async with contextlib.aclosing(self._job.deltas()) as deltas:
            async for piece in deltas:
                if not begun:
                    begun = True
                    await exchange.write(self._beginning())
                if piece.text:
                    await exchange.write(
                        named_event(
                            "content_block_delta",
                            {
                                "type": "content_block_delta",
                                "index": 0,
                                "delta": {"type": "text_delta", "text": piece.text},
                            },
                        )
                    )
        ends: tuple[tuple[str, dict[str, Any]], ...] = (
            ("content_block_stop", {"index": 0}),
            ("message_delta", {"delta": self._end(), "usage": self._usage()}),
            ("message_stop", {}),
        )
        for name, value in ends:
            await exchange.write(named_event(name, {"type": name, **value}))
        await exchange.end()


async def count_tokens(service: Service, exchange: Exchange, body: dict[str, Any]) -> None:
    engine, conversation = service.engine_of(body.get("model")), conversation_of(body)
    ids = await service.in_thread(lambda: conversation_ids(engine, conversation, {}))
    await exchange.respond_json({"input_tokens": len(ids)})


ROUTES = [
    Route(
        "POST",
        "/v1/messages",
        messages,
        "Answers a conversation in Anthropic's form.",
        body=BODY,
        answer=ANSWER,
        streams=True,
        errors="anthropic",
    ),
    Route(
        "POST",
        "/v1/messages/count_tokens",
        count_tokens,
        "The number of tokens that a conversation is.",
        body=COUNT_BODY,
        answer=fields({"input_tokens": _NUMBER}, required=("input_tokens",)),
        errors="anthropic",
    ),
]
