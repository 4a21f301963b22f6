"""Texts and tokens: /tokenize, /detokenize, /tokenizer_info (vLLM's shapes), /v1/encode and
/get_ppl (LMDeploy's), and /v1/messages/count_tokens' counting.
"""

from __future__ import annotations

from typing import Any

from ..engine.event_loop import output_event
from ..engine.text_engine import PromptTooLong, TextEngine
from ..messages import ErrorCode
from .chat import MESSAGES, TEMPLATE_FIELDS, template_options
from .completions import PROMPT, prompts_of
from .errors import ApiError
from .exchange import Exchange
from .fields import check_n_answers
from .routing import Route
from .schema import any_of, any_value, fields, flag, integer, list_of, mapping, number, text
from .service import Service

_MODEL = text("A name that /v1/models lists; without it, the only one.")
_IDS = list_of(integer(0, 2**31 - 1))
_COUNT = integer(0, 2**53)

TOKENIZE = fields(
    {
        "model": _MODEL,
        "prompt": text("A text, tokenised as it is."),
        "messages": MESSAGES,
        "add_special_tokens": flag("Puts around a text what the model wants; the default."),
        "return_token_strs": flag("The answer has the tokens' texts, too."),
        **TEMPLATE_FIELDS,
    }
)
TOKENIZED = fields(
    {"count": _COUNT, "max_model_len": _COUNT, "tokens": _IDS, "token_strs": list_of(text())},
    required=("count", "max_model_len", "tokens"),
)
DETOKENIZE = fields({"model": _MODEL, "tokens": _IDS}, required=("tokens",))
ENCODE = fields(
    {
        "input": any_of("a text or a list of texts", text(), list_of(text(), min_items=1)),
        "model": _MODEL,
        "do_preprocess": flag("Renders the chat template around each text."),
        "add_bos": flag("Begins with the model's first token; the default."),
    },
    required=("input",),
)
ENCODED = fields(
    {
        "input_ids": any_of("tokens", _IDS, list_of(_IDS)),
        "length": any_of("their number", _COUNT, list_of(_COUNT)),
    },
    required=("input_ids", "length"),
)
PPL = fields({"input": PROMPT, "model": _MODEL}, required=("input",))


async def tokenize(service: Service, exchange: Exchange, body: dict[str, Any]) -> None:
    engine = service.engine_of(body.get("model"))
    if ("prompt" in body) == ("messages" in body):
        raise ApiError(400, "one of prompt and messages is needed", param="prompt")

    def work() -> list[int]:
        if "messages" in body:
            return conversation_ids(engine, body["messages"], template_options(body))
        return engine.tokenizer.encode(
            body["prompt"], add_special_tokens=body.get("add_special_tokens", True)
        )

    ids = await service.in_thread(work)
    found = {"count": len(ids), "max_model_len": engine.sizes.kv.session_len, "tokens": ids}
    if body.get("return_token_strs"):
        shown = [engine.tokenizer.token_bytes(i).decode("utf-8", "replace") for i in ids]
        found["token_strs"] = shown
    await exchange.respond_json(found)


def conversation_ids(engine: TextEngine, messages: Any, options: dict[str, Any]) -> list[int]:
    """The tokens that a conversation is to the model. ApiError 400."""
    try:
        ask = engine.render(messages, True, options)
    except Exception as error:  # a template may raise anything
        raise ApiError(
            400, str(error) or type(error).__name__, ErrorCode.PREPROCESS_FAILED.value
        ) from None
    return encoded(engine, ask, add_bos=engine.adds_bos(do_preprocess=True))


def encoded(engine: TextEngine, text: str, **options: Any) -> list[int]:
    """The tokens of a prompt. ApiError 400 for one that is too long."""
    try:
        return engine.encode(text, **options)
    except PromptTooLong as error:
        raise ApiError(400, str(error), ErrorCode.CONTEXT_LENGTH_EXCEEDED.value) from None


async def detokenize(service: Service, exchange: Exchange, body: dict[str, Any]) -> None:
    tokenizer = service.engine_of(body.get("model")).tokenizer
    ids = body["tokens"]
    text = await service.in_thread(lambda: tokenizer.decode(ids, skip_special_tokens=False))
    await exchange.respond_json({"prompt": text})


async def tokenizer_info(service: Service, exchange: Exchange, body: dict[str, Any]) -> None:
    tokenizer = service.engine.tokenizer
    templates = tokenizer.chat_templates
    await exchange.respond_json(
        {
            "tokenizer_class": type(tokenizer).__name__,
            "bos_token": tokenizer.bos_token,
            "eos_token": tokenizer.eos_token,
            "pad_token": tokenizer.named_tokens.get("pad_token"),
            "chat_template": templates.get("default"),
        }
    )


async def encode(service: Service, exchange: Exchange, body: dict[str, Any]) -> None:
    engine, given = service.engine_of(body.get("model")), body["input"]

    def one(text: str) -> list[int]:
        if body.get("do_preprocess"):
            return conversation_ids(engine, text, {})
        return engine.tokenizer.encode(text, add_bos=body.get("add_bos", True))

    if isinstance(given, str):
        ids = await service.in_thread(lambda: one(given))
        await exchange.respond_json({"input_ids": ids, "length": len(ids)})
    else:
        lists = await service.in_thread(lambda: [one(text) for text in given])
        await exchange.respond_json({"input_ids": lists, "length": list(map(len, lists))})


async def get_ppl(service: Service, exchange: Exchange, body: dict[str, Any]) -> None:
    """LMDeploy's: the mean cross-entropy, not its exponential."""
    engine, prompts = service.engine_of(body.get("model")), prompts_of(body["input"])
    check_n_answers(len(prompts), 1, service.config.max_answers)

    def tokens() -> list[list[int]]:
        return [encoded(engine, item) if isinstance(item, str) else item for item in prompts]

    batch = await service.in_thread(tokens)
    requests = []
    try:
        for ids in batch:
            requests.append(engine.core.submit(ids, max_new_tokens=0, return_ppl=True))
        found = [await _ppl(request) for request in requests]
    finally:
        for request in requests:
            request.cancel()
    await exchange.respond_json({"ppl": found})


async def _ppl(request: Any) -> float:
    with output_event(request) as ready:
        while True:
            await ready.wait()
            ready.clear()
            output = request.read(0)
            if output is None or output.finish_reason is None:
                continue
            if output.ppl is None:
                raise ApiError(400, output.error_message or "the request was aborted")
            return float(output.ppl)


_TEXT = text()
ROUTES = [
    Route("POST", "/tokenize", tokenize, "The tokens of a text.", TOKENIZE, TOKENIZED),
    Route(
        "POST",
        "/detokenize",
        detokenize,
        "The text of tokens.",
        DETOKENIZE,
        fields({"prompt": _TEXT}, required=("prompt",)),
    ),
    Route(
        "GET",
        "/tokenizer_info",
        tokenizer_info,
        "The tokenizer's special tokens and chat template.",
        answer=mapping("", any_value()),
    ),
    Route("POST", "/v1/encode", encode, "LMDeploy's way to tokenise.", ENCODE, ENCODED),
    Route(
        "POST",
        "/get_ppl",
        get_ppl,
        "The mean cross-entropy of texts.",
        PPL,
        fields({"ppl": list_of(number(-1e9, 1e9))}, required=("ppl",)),
    ),
]
