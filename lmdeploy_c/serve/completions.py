"""/v1/completions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..engine.answer import Answer
from ..engine.text_engine import TextEngine
from ..messages import MAX_CHOICES, GenerationConfig, Response, limits
from .errors import ApiError
from .exchange import Exchange
from .fields import (
    COMMON,
    MAX_TOKENS,
    N_CHOICES,
    STREAMING,
    check_n_answers,
    generation_config,
)
from .openai_parts import (
    DETAIL_SCHEMA,
    DONE,
    REASON_SCHEMA,
    TextLogprobs,
    completion_schema,
    detail_of,
    event,
    new_id,
    now,
    reason_of,
    usage,
)
from .routing import Route
from .schema import any_of, any_value, fields, flag, integer, list_of, nullable, one_of, text
from .service import Job, Service

#: OpenAI's own default.
_MAX_TOKENS = 16

TOKEN_IDS = list_of(integer(0, 2**31 - 1), min_items=1)
PROMPT = any_of(
    "a text, a list of token ids, or a list of either",
    text(),
    TOKEN_IDS,
    list_of(text(), min_items=1),
    list_of(TOKEN_IDS, min_items=1),
    about="A text goes to the model as it is, without a chat template.",
)
BODY = fields(
    {
        "prompt": PROMPT,
        **COMMON,
        **STREAMING,
        "n": N_CHOICES,
        "best_of": integer(1, MAX_CHOICES, "Answers of which the n likeliest are given."),
        "max_tokens": {**MAX_TOKENS, "description": f"Default: {_MAX_TOKENS}."},
        "max_completion_tokens": {**MAX_TOKENS, "description": "Goes before max_tokens."},
        "logprobs": integer(
            0, limits.MAX_LOGPROBS, "Reports each token's probability and so many likeliest ones."
        ),
        "echo": flag("Each choice begins with the prompt, and its tokens' probabilities."),
        "suffix": one_of("", about="Not served by this release, except empty."),
        "return_token_ids": flag("Each choice has the tokens of its answer."),
    },
    required=("prompt",),
)
LOGPROBS = nullable(
    fields(
        {
            "tokens": list_of(text()),
            "token_logprobs": list_of(any_value()),
            "top_logprobs": list_of(any_value()),
            "text_offset": list_of(integer(0, 2**53)),
        },
        required=("tokens", "token_logprobs", "text_offset"),
    )
)
ANSWER = completion_schema(
    "text_completion",
    fields(
        {
            "index": integer(0, 2**31),
            "text": text(),
            "logprobs": LOGPROBS,
            "finish_reason": REASON_SCHEMA,
            "finish_detail": DETAIL_SCHEMA,
            "token_ids": list_of(integer(0, 2**31)),
        },
        required=("index", "text", "logprobs", "finish_reason"),
    ),
)

Prompt = str | list[int]


def prompts_of(value: Any) -> list[Prompt]:
    """The prompts of a request, each a text or token ids."""
    if isinstance(value, str):
        return [value]
    return [value] if isinstance(value[0], int) else list(value)


def starter(
    engine: TextEngine,
    prompts: Sequence[Prompt],
    config: GenerationConfig,
    prompt_logprobs: bool = False,
) -> Callable[[], list[Answer]]:
    """What starts the answers to prompts that no template renders: n to each, in order.
    prompt_logprobs: the first to each has them."""

    def first(i: int) -> Answer:
        prompt = prompts[i]
        options: dict[str, Any] = {
            "keep_snapshot": config.n > 1,
            "prompt_logprobs": prompt_logprobs,
            "index": i,
        }
        if isinstance(prompt, str):
            return engine.ask(prompt, config, do_preprocess=False, **options)
        return engine.submit(prompt, config, **options)

    def start() -> list[Answer]:
        found = []
        for i in range(len(prompts)):
            found.append(first(i))
            for choice in range(1, config.n):
                again = engine.ask_again(found[-choice], choice, config, do_preprocess=False)
                found.append(again)
        return found

    return start


async def completions(service: Service, exchange: Exchange, body: dict[str, Any]) -> None:
    engine = service.engine_of(body.get("model"))
    n, best_of = body.get("n", 1), body.get("best_of", body.get("n", 1))
    if best_of < n:
        raise ApiError(400, f"best_of: at least n, which is {n}, not {best_of}", param="best_of")
    if best_of > n and body.get("stream"):
        raise ApiError(400, "best_of: above n it cannot be streamed", param="best_of")
    prompts = prompts_of(body["prompt"])
    check_n_answers(len(prompts), best_of, service.config.max_answers)
    max_tokens = body.get("max_completion_tokens", body.get("max_tokens", _MAX_TOKENS))
    n_top, echo = body.get("logprobs"), body.get("echo", False)
    if echo and n_top is not None and body.get("stream"):
        raise ApiError(400, "echo: with logprobs it cannot be streamed", param="echo")
    scores = echo and (n_top is not None or max_tokens == 0)
    if max_tokens == 0 and best_of > 1:
        raise ApiError(400, "n: without new tokens there is one answer", param="n")
    config = generation_config(
        body,
        engine,
        max_new_tokens=max_tokens,
        n=best_of,
        logprobs=max(n_top or 0, 1) if n_top is not None or scores or best_of > n else None,
    )
    if scores and max_tokens == 1:
        # Who asks for scores wants the one token that follows, also where it ends the answer.
        config.ignore_eos = True
    start = starter(engine, prompts, config, scores)
    async with service.answering(exchange, engine, start, body.get("session_id")) as job:
        text = _Completion(engine, job, body, best_of)
        if body.get("stream"):
            exchange.expect_stream()
            await text.stream(exchange)
        else:
            responses = await job.responses()
            await exchange.respond_json(text.whole(responses, n))


def _likelihood(response: Response) -> float:
    """Mean log-probability of an answer's tokens."""
    pairs = list(zip(response.token_ids, response.logprobs or (), strict=False))
    return sum(entry[token_id] for token_id, entry in pairs) / max(len(pairs), 1)


class _Completion:
    """The answers to one request, whole or in events."""

    def __init__(self, engine: TextEngine, job: Job, body: Mapping[str, Any], n_each: int) -> None:
        self._engine, self._job, self._n_each = engine, job, n_each
        self._id, self._created = new_id("cmpl"), now()
        self._n_top: int | None = body.get("logprobs")
        self._wants_ids = body.get("return_token_ids", False)
        self._echoes = body.get("echo", False)
        options = body.get("stream_options") or {}
        self._usage_last = bool(options.get("include_usage"))
        self._usage_always = bool(options.get("continuous_usage_stats"))

    def _head(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._engine.model_name,
        }

    def _echo(self, i: int) -> str:
        """The i-th prompt, as it was sent."""
        answer = self._job.answers[i * self._n_each]
        if answer.prompt_text:
            return answer.prompt_text
        return self._engine.tokenizer.decode(answer.input_ids, skip_special_tokens=False)

    def _choice(self, index: int, piece: Response, logprobs: TextLogprobs | None) -> dict[str, Any]:
        found, ids = None, piece.token_ids
        if logprobs is not None:
            entries: list[Mapping[int, float] | None] = [*(piece.logprobs or [])]
            if self._echoes:
                first = self._job.answers[piece.index * self._n_each]
                ids = [*first.input_ids, *ids]
                entries = [None, *(first.prompt_logprobs or []), *entries]
            found = logprobs.add(ids, entries) if ids else None
        return {
            "index": index,
            "text": piece.text,
            "logprobs": found,
            "finish_reason": reason_of(piece),
            **detail_of(piece),
            **({"token_ids": piece.token_ids} if self._wants_ids else {}),
        }

    def _new_logprobs(self) -> TextLogprobs | None:
        return None if self._n_top is None else TextLogprobs(self._engine, self._n_top)

    def whole(self, responses: list[Response], n: int) -> dict[str, Any]:
        """n: answers that are given to each prompt, the likeliest of those there are."""
        choices: list[dict[str, Any]] = []
        for i in range(0, len(responses), self._n_each):
            answers = responses[i : i + self._n_each]
            if n < self._n_each:
                answers = sorted(answers, key=_likelihood, reverse=True)[:n]
            for answer in answers:
                choice = self._choice(len(choices), answer, self._new_logprobs())
                if self._echoes:
                    choice["text"] = self._echo(i // self._n_each) + choice["text"]
                choices.append(choice)
        return {**self._head(), "choices": choices, "usage": usage(self._job)}

    async def stream(self, exchange: Exchange) -> None:
        logprobs = [self._new_logprobs() for _ in self._job.answers]
        echoed: set[int] = set()
        async with contextlib.aclosing(self._job.deltas()) as deltas:
            async for piece in deltas:
                if not (piece.text or piece.finish_reason or self._wants_ids or self._n_top):
                    continue
                index = piece.index * self._n_each + piece.choice
                choice = self._choice(index, piece, logprobs[index])
                if self._echoes and index not in echoed:
                    echoed.add(index)
                    choice["text"] = self._echo(piece.index) + choice["text"]
                chunk = {**self._head(), "choices": [choice]}
                if self._usage_always:
                    chunk["usage"] = usage(self._job)
                elif self._usage_last:
                    chunk["usage"] = None
                await exchange.write(event(chunk))
        if self._usage_last:
            chunk = {**self._head(), "choices": [], "usage": usage(self._job)}
            await exchange.write(event(chunk))
        await exchange.write(DONE)
        await exchange.end()


ROUTES = [
    Route(
        "POST",
        "/v1/completions",
        completions,
        "Goes on with texts.",
        body=BODY,
        answer=ANSWER,
        streams=True,
    )
]
