"""/v1/chat/interactive: LMDeploy's conversations that the server keeps, by session_id."""

from __future__ import annotations

import contextlib
from typing import Any

from ..engine.answer import Answer
from ..engine.session import Session
from ..messages import ErrorCode
from .chat import MESSAGES
from .errors import ApiError
from .exchange import Exchange
from .fields import COMMON, MAX_TOKENS, generation_config
from .openai_parts import DONE, event
from .routing import Route
from .schema import fields, flag, integer, nullable, one_of, text
from .service import Job, Service

#: LMDeploy's, whatever the model's files say.
_DEFAULTS: dict[str, Any] = {
    "temperature": 0.8,
    "top_p": 0.8,
    "top_k": 40,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}

BODY = fields(
    {
        "prompt": {**MESSAGES, "description": "The next turn: a text or messages."},
        **COMMON,
        "session_id": integer(
            -1, 2**31 - 1, "The conversation; -1: none. It belongs to the API key."
        ),
        "interactive_mode": flag("Keeps the conversation after this turn; false ends it."),
        "cancel": flag("Ends the conversation's running answer, and asks nothing."),
        "request_output_len": {**MAX_TOKENS, "minimum": 1},
        "stream": flag("Answers in events, each with the answer's next piece."),
        "image_url": one_of(None),
    }
)
ANSWER = fields(
    {
        "text": text(),
        "tokens": integer(0, 2**53),
        "input_tokens": integer(0, 2**53),
        "history_tokens": integer(0, 2**53),
        "finish_reason": nullable(one_of("stop", "length")),
    },
    required=("text", "tokens", "input_tokens", "history_tokens", "finish_reason"),
)


async def chat_interactive(service: Service, exchange: Exchange, body: dict[str, Any]) -> None:
    number, key = body.get("session_id", -1), exchange.key
    if body.get("cancel"):
        await _cancel(service, exchange, number)
        return
    if "prompt" not in body:
        raise ApiError(400, "prompt is missing", param="prompt")
    keep = body.get("interactive_mode", False)
    if number == -1 and keep:
        raise ApiError(400, "interactive_mode needs a session_id", param="session_id")
    engine = service.engine_of(body.get("model"))
    given = {name: value for name, value in body.items() if name in COMMON}
    config = generation_config(
        {**_DEFAULTS, **given}, engine, max_new_tokens=body.get("request_output_len")
    )
    known = service.sessions
    session = Session(engine) if number == -1 else known.find_or_begin(key, number)
    if not keep:
        known.forget(key, number)
    n_history = len(session.token_ids)

    def start() -> list[Answer]:
        try:
            return [session.start(body["prompt"], config)]
        except RuntimeError as error:
            raise ApiError(409, str(error), ErrorCode.REQUEST_CONFLICT.value) from None

    async with service.answering(exchange, engine, start, number) as job:
        if not body.get("stream"):
            (response,) = await job.responses()
            await exchange.respond_json(_shown(job, n_history, response.text))
            return
        exchange.expect_stream()
        async with contextlib.aclosing(job.deltas()) as deltas:
            async for piece in deltas:
                if piece.text or piece.finish_reason:
                    await exchange.write(event(_shown(job, n_history, piece.text)))
        await exchange.write(DONE)
        await exchange.end()


async def _cancel(service: Service, exchange: Exchange, number: int) -> None:
    session = service.sessions.find(exchange.key, number)
    if session is None:
        raise ApiError(
            404, f"session {number} does not exist", "session_not_found", param="session_id"
        )
    session.abort()
    nothing = {"text": "", "tokens": 0, "input_tokens": 0, "finish_reason": None}
    await exchange.respond_json({**nothing, "history_tokens": len(session.token_ids)})


def _shown(job: Job, n_history: int, text: str) -> dict[str, Any]:
    """A piece of the answer. input_tokens: of this turn alone."""
    (answer,) = job.answers
    so_far = answer.response
    reason = "length" if so_far.finish_reason == "abort" else so_far.finish_reason
    return {
        "text": text,
        "tokens": so_far.generate_token_len,
        "input_tokens": max(so_far.input_token_len - n_history, 0),
        "history_tokens": n_history,
        "finish_reason": reason,
    }


ROUTES = [
    Route(
        "POST",
        "/v1/chat/interactive",
        chat_interactive,
        "One turn of a conversation that the server keeps.",
        body=BODY,
        answer=ANSWER,
        streams=True,
    )
]
