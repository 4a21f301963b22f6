"""/generate: LMDeploy's plain route, in SGLang's form."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from ..messages import Response
from .completions import TOKEN_IDS, starter
from .errors import ApiError
from .exchange import Exchange
from .fields import COMMON, MAX_TOKENS, generation_config
from .openai_parts import DONE, event
from .routing import Route
from .schema import any_value, fields, flag, integer, list_of, nullable, text
from .service import Service

#: The route's own defaults, whatever the model's files say.
_DEFAULTS: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}
_MAX_TOKENS = 128

BODY = fields(
    {
        "prompt": text("Goes to the model as it is."),
        "input_ids": {**TOKEN_IDS, "description": "Tokens, in place of the prompt."},
        **COMMON,
        "max_tokens": {**MAX_TOKENS, "description": f"Default: {_MAX_TOKENS}."},
        "stream": flag("Answers in events, each with the answer's next piece."),
        "return_logprob": flag("meta_info has (log-probability, token id) of each token."),
    }
)
ANSWER = fields(
    {
        "text": text(),
        "output_ids": list_of(integer(0, 2**31)),
        "meta_info": fields(
            {
                "prompt_tokens": integer(0, 2**53),
                "completion_tokens": integer(0, 2**53),
                "finish_reason": nullable(
                    fields({"type": text(), "length": integer(0, 2**53)}, required=("type",))
                ),
                "output_token_logprobs": list_of(any_value()),
            },
            required=("prompt_tokens", "completion_tokens", "finish_reason"),
        ),
    },
    required=("text", "output_ids", "meta_info"),
)


async def generate(service: Service, exchange: Exchange, body: dict[str, Any]) -> None:
    if ("prompt" in body) == ("input_ids" in body):
        raise ApiError(400, "one of prompt and input_ids is needed", param="prompt")
    engine, wants_pairs = service.engine_of(body.get("model")), body.get("return_logprob", False)
    given = {name: value for name, value in body.items() if name in COMMON}
    config = generation_config(
        {**_DEFAULTS, **given},
        engine,
        max_new_tokens=body.get("max_tokens", _MAX_TOKENS),
        logprobs=1 if wants_pairs else None,
    )
    prompt = body["prompt"] if "prompt" in body else body["input_ids"]
    start = starter(engine, [prompt], config)
    async with service.answering(exchange, engine, start, body.get("session_id")) as job:
        if not body.get("stream"):
            (response,) = await job.responses()
            await exchange.respond_json(_shown(response, wants_pairs))
            return
        exchange.expect_stream()
        async with contextlib.aclosing(job.deltas()) as deltas:
            async for piece in deltas:
                await exchange.write(event(_shown(piece, wants_pairs)))
        await exchange.write(DONE)
        await exchange.end()


def _shown(piece: Response, wants_pairs: bool) -> dict[str, Any]:
    reason: Mapping[str, Any] | None = None
    if piece.finish_reason is not None:
        at = {"length": piece.generate_token_len} if piece.finish_reason == "length" else {}
        reason = {"type": piece.finish_reason, **at}
    info: dict[str, Any] = {
        "prompt_tokens": piece.input_token_len,
        "completion_tokens": piece.generate_token_len,
        "finish_reason": reason,
    }
    if wants_pairs:
        pairs = zip(piece.token_ids, piece.logprobs or (), strict=False)
        info["output_token_logprobs"] = [
            [max(entry[token_id], -9999.0), token_id] for token_id, entry in pairs
        ]
    return {"text": piece.text, "output_ids": piece.token_ids, "meta_info": info}


ROUTES = [
    Route(
        "POST",
        "/generate",
        generate,
        "Goes on with a text or with tokens.",
        body=BODY,
        answer=ANSWER,
        streams=True,
    )
]
