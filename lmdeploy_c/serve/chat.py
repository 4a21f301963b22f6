"""/v1/chat/completions."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from ..engine.answer import Answer
from ..engine.text_engine import TextEngine
from ..messages import ErrorCode, GenerationConfig, Response, limits
from ..text.prompts import Prompt
from .errors import ApiError
from .exchange import Exchange
from .fields import (
    COMMON,
    MAX_TOKENS,
    N_CHOICES,
    STREAMING,
    generation_config,
)
from .json_text import quote
from .openai_parts import (
    CHAT_LOGPROBS,
    DETAIL_SCHEMA,
    DONE,
    REASON_SCHEMA,
    chat_logprobs,
    completion_schema,
    detail_of,
    event,
    new_id,
    now,
    reason_of,
    usage,
)
from .routing import Route
from .schema import any_of, any_value, fields, flag, integer, list_of, mapping, one_of, text
from .service import Job, Service

MESSAGE = fields(
    {
        "role": text("system, user, assistant, tool or what the model's template knows."),
        "content": any_of(
            "a text or a list of parts",
            text(),
            list_of(fields({"type": text()}, required=("type",), open=True)),
        ),
    },
    required=("role",),
    open=True,
)
MESSAGES = any_of(
    "a list of messages or a text",
    list_of(MESSAGE, min_items=1),
    text(),
    about="The conversation; a text is one message of the user. Fields of a message that are not "
    "listed go to the model's chat template.",
)
#: What a chat template is told.
TEMPLATE_FIELDS = {
    "chat_template_kwargs": mapping("For the chat template."),
    "enable_thinking": flag("For the chat template."),
    "add_generation_prompt": one_of(True, about="The template asks for an answer."),
    "reasoning_effort": one_of(
        "none", "minimal", "low", "medium", "high", about="For the chat template."
    ),
}
#: Tools and structured answers, of which this release has the forms that ask for nothing.
NO_TOOLS = {
    "tools": {**list_of(any_value()), "maxItems": 0, "description": "Not served: none."},
    "tool_choice": one_of("none", "auto", about="Nothing else: there are no tools."),
    "parallel_tool_calls": any_value("Accepted, without effect: there are no tools."),
    "response_format": fields({"type": one_of("text")}, required=("type",)),
    "modalities": list_of(one_of("text")),
    "audio": one_of(None),
    "prediction": any_value("Accepted, without effect: nothing is predicted."),
    "verbosity": one_of("medium"),
}
BODY = fields(
    {
        "messages": MESSAGES,
        **COMMON,
        **STREAMING,
        "n": N_CHOICES,
        "max_tokens": MAX_TOKENS,
        "max_completion_tokens": {**MAX_TOKENS, "description": "Goes before max_tokens."},
        "logprobs": flag("Reports the probability of each token."),
        "top_logprobs": integer(0, limits.MAX_LOGPROBS, "And so many of the likeliest ones."),
        **TEMPLATE_FIELDS,
        "do_preprocess": flag("false: `messages` is a text that goes to the model as it is."),
        "return_token_ids": flag("Each choice has the tokens of its answer."),
        "return_logprob": flag("Each choice has LMDeploy's output_token_logprobs."),
        **NO_TOOLS,
    },
    required=("messages",),
)
ANSWER = completion_schema(
    "chat.completion",
    fields(
        {
            "index": integer(0, 2**31),
            "message": fields(
                {"role": one_of("assistant"), "content": text(), "refusal": one_of(None)},
                required=("role", "content"),
            ),
            "logprobs": CHAT_LOGPROBS,
            "finish_reason": REASON_SCHEMA,
            "finish_detail": DETAIL_SCHEMA,
            "token_ids": list_of(integer(0, 2**31)),
            "output_token_logprobs": list_of(any_value()),
        },
        required=("index", "message", "logprobs", "finish_reason"),
    ),
)


def template_options(body: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords for the chat template."""
    options: dict[str, Any] = dict(body.get("chat_template_kwargs") or {})
    for name in ("enable_thinking", "reasoning_effort"):
        if name in body:
            options[name] = body[name]
    return options


def start_all(
    engine: TextEngine,
    prompt: Prompt,
    config: GenerationConfig,
    *,
    do_preprocess: bool = True,
    options: Mapping[str, Any] | None = None,
) -> list[Answer]:
    """The n answers to a prompt, which is computed once."""
    first = engine.ask(
        prompt,
        config,
        do_preprocess=do_preprocess,
        template_kwargs=options,
        keep_snapshot=config.n > 1,
    )
    return [
        first,
        *(
            engine.ask_again(first, choice, config, do_preprocess=do_preprocess)
            for choice in range(1, config.n)
        ),
    ]


async def chat_completions(service: Service, exchange: Exchange, body: dict[str, Any]) -> None:
    engine = service.engine_of(body.get("model"))
    if "top_logprobs" in body and not body.get("logprobs"):
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    messages, do_preprocess = body["messages"], body.get("do_preprocess", True)
    if not do_preprocess and not isinstance(messages, str):
        raise ApiError(
            400,
            "do_preprocess: false takes `messages` as a text",
            ErrorCode.INVALID_REQUEST.value,
            param="messages",
        )
    wants_logprobs = body.get("logprobs") or body.get("return_logprob")
    config = generation_config(
        body,
        engine,
        max_new_tokens=body.get("max_completion_tokens", body.get("max_tokens")),
        n=body.get("n", 1),
        logprobs=max(body.get("top_logprobs", 0), 1) if wants_logprobs else None,
    )
    options = template_options(body)

    def start() -> list[Answer]:
        return start_all(engine, messages, config, do_preprocess=do_preprocess, options=options)

    async with service.answering(exchange, engine, start, body.get("session_id")) as job:
        chat = _Chat(engine, job, body)
        if body.get("stream"):
            exchange.expect_stream()
            await chat.stream(exchange)
        else:
            responses = await job.responses()
            await exchange.respond_json(chat.whole(responses))


class _Chat:
    """The answer to one request, whole or in events."""

    def __init__(self, engine: TextEngine, job: Job, body: Mapping[str, Any]) -> None:
        self._tokenizer, self._job = engine.tokenizer, job
        self._id, self._created = new_id("chatcmpl"), now()
        self._model = engine.model_name
        self._n_top = body.get("top_logprobs", 0) if body.get("logprobs") else None
        self._wants_ids = body.get("return_token_ids", False)
        self._wants_pairs = body.get("return_logprob", False)
        options = body.get("stream_options") or {}
        self._usage_last = bool(options.get("include_usage"))
        self._usage_always = bool(options.get("continuous_usage_stats"))

    def _extras(self, piece: Response) -> dict[str, Any]:
        """LMDeploy's fields of a choice."""
        found: dict[str, Any] = {}
        if self._wants_ids:
            found["token_ids"] = piece.token_ids
        if self._wants_pairs:
            pairs = zip(piece.token_ids, piece.logprobs or (), strict=False)
            found["output_token_logprobs"] = [
                [max(entry[token_id], -9999.0), token_id] for token_id, entry in pairs
            ]
        return found

    def _logprobs(self, piece: Response) -> dict[str, Any] | None:
        if self._n_top is None:
            return None
        return chat_logprobs(self._tokenizer, piece, self._n_top)

    def whole(self, responses: list[Response]) -> dict[str, Any]:
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": response.text, "refusal": None},
                "logprobs": self._logprobs(response),
                "finish_reason": reason_of(response),
                **detail_of(response),
                **self._extras(response),
            }
            for i, response in enumerate(responses)
        ]
        return {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": choices,
            "usage": usage(self._job),
        }

    async def stream(self, exchange: Exchange) -> None:
        said_roles = False
        head = (
            f'data: {{"id":"{self._id}","object":"chat.completion.chunk",'
            f'"created":{self._created},"model":{quote(self._model)},"choices":['
        ).encode()
        tail = b',"logprobs":null,"finish_reason":null}]' + self._null_usage() + b"}\n\n"
        plain = self._n_top is None and not (self._wants_ids or self._wants_pairs)
        plain = plain and not self._usage_always
        async with contextlib.aclosing(self._job.deltas()) as deltas:
            async for piece in deltas:
                if not said_roles:
                    said_roles = True
                    await exchange.write(self._roles())
                if plain and piece.finish_reason is None:  # nearly every event
                    if piece.text:
                        choice = (
                            f'{{"index":{piece.choice},"delta":{{"content":{quote(piece.text)}}}'
                        )
                        await exchange.write(head + choice.encode("utf-8", "replace") + tail)
                    continue
                await exchange.write(self._event(piece))
        if self._usage_last:
            await exchange.write(event({**self._chunk([]), "usage": usage(self._job)}))
        await exchange.write(DONE)
        await exchange.end()

    def _null_usage(self) -> bytes:
        return b',"usage":null' if self._usage_last else b""

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk: dict[str, Any] = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }
        if self._usage_always:
            chunk["usage"] = usage(self._job)
        elif self._usage_last:
            chunk["usage"] = None
        return chunk

    def _roles(self) -> bytes:
        """The first event: clients want every choice in it, in order."""
        delta = {"role": "assistant", "content": ""}
        return event(
            self._chunk(
                [
                    {"index": i, "delta": delta, "logprobs": None, "finish_reason": None}
                    for i in range(len(self._job.answers))
                ]
            )
        )

    def _event(self, piece: Response) -> bytes:
        return event(
            self._chunk(
                [
                    {
                        "index": piece.choice,
                        "delta": {"content": piece.text} if piece.text else {},
                        "logprobs": self._logprobs(piece) if piece.token_ids else None,
                        "finish_reason": reason_of(piece),
                        **detail_of(piece),
                        **self._extras(piece),
                    }
                ]
            )
        )


ROUTES = [
    Route(
        "POST",
        "/v1/chat/completions",
        chat_completions,
        "Answers a conversation.",
        body=BODY,
        answer=ANSWER,
        streams=True,
    )
]
