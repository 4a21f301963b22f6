"""The fields of requests that ask for an answer, and the GenerationConfig that they are.

Every field of OpenAI's and of LMDeploy's is in one of these tables; what is in none is unknown, and
a request with it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..engine.text_engine import TextEngine
from ..messages import MAX_CHOICES, ErrorCode, GenerationConfig, limits
from .errors import ApiError
from .schema import (
    Schema,
    any_of,
    any_value,
    fields,
    flag,
    integer,
    list_of,
    mapping,
    number,
    one_of,
    text,
)

#: Larger numbers of tokens are taken as this one: each is cut to what the model's context holds.
_MANY = 2**31 - 1
_PENALTY = limits.MAX_PENALTY
_REPEAT = limits.MAX_REPETITION_PENALTY

STOP = any_of(
    "a text or a list of texts",
    text(min_len=1),
    {**list_of(text(min_len=1)), "maxItems": 64},
    about="Texts that end the answer, of any length, also in the middle of a token.",
)

#: How tokens are chosen, and where an answer ends.
SAMPLING: dict[str, Schema] = {
    "temperature": number(0, limits.MAX_TEMPERATURE, "0 takes the likeliest token."),
    "top_p": number(0, 1, "Samples from the likeliest tokens that have this probability."),
    "top_k": integer(-1, _MANY, "Samples from so many likeliest tokens; 0 and -1: from all."),
    "min_p": number(0, 1, "Leaves out tokens below this share of the likeliest one's probability."),
    "repetition_penalty": number(
        1 / _REPEAT, _REPEAT, "Above 1 makes tokens of prompt and answer less likely."
    ),
    "presence_penalty": number(
        -_PENALTY, _PENALTY, "Taken from the logit of every token of the answer."
    ),
    "frequency_penalty": number(-_PENALTY, _PENALTY, "The same, as often as the answer has it."),
    "logit_bias": {
        **mapping("Token id -> value added to its logit.", number(-1e6, 1e6)),
        "maxProperties": 4096,
    },
    "seed": integer(-(2**63), 2**64 - 1, "Of sampling; without it, one is drawn."),
    "stop": STOP,
    "stop_token_ids": {
        **list_of(integer(0, _MANY), "Tokens that end the answer."),
        "maxItems": 4096,
    },
    "ignore_eos": flag("The model's own end tokens do not end the answer."),
    "min_tokens": integer(0, _MANY, "The answer does not end before it has so many tokens."),
    "min_new_tokens": integer(0, _MANY, "LMDeploy's name of min_tokens."),
    "skip_special_tokens": flag("Leaves special tokens out of the text; the default."),
    "include_stop_str_in_output": flag("Keeps the stop text that ended the answer."),
    "bad_words": {**list_of(text(min_len=1), "Texts that are not generated."), "maxItems": 256},
    "no_repeat_ngram_size": integer(0, _MANY, "No n-gram of so many tokens comes twice; 0: off."),
    "priority": integer(
        -limits.MAX_PRIORITY, limits.MAX_PRIORITY, "Each step of it passes up to 64 requests."
    ),
    "timeout": number(
        limits.MIN_TIMEOUT, limits.MAX_TIMEOUT, "Seconds after which the answer is cut off."
    ),
}

#: What OpenAI's streams are asked for.
STREAMING: dict[str, Schema] = {
    "stream": flag("Answers in events, as tokens come."),
    "stream_options": fields(
        {
            "include_usage": flag("A last event has the usage."),
            "continuous_usage_stats": flag("Every event has the usage so far."),
            "include_obfuscation": flag("Accepted; nothing is padded."),
        }
    ),
}

#: Fields that change nothing here, and are accepted with any value.
WITHOUT_EFFECT: dict[str, Schema] = {
    name: any_value(f"Accepted, without effect: {why}.")
    for name, why in {
        "user": "nothing is kept by user",
        "store": "nothing is stored",
        "metadata": "nothing is stored",
        "service_tier": "there is one",
        "safety_identifier": "nothing is kept by user",
        "prompt_cache_key": "prompts that begin alike share their KV anyway",
        "prompt_cache_options": "prompts that begin alike share their KV anyway",
        "prompt_cache_retention": "KV is kept as long as there is room",
        "moderation": "nothing is moderated",
        "spaces_between_special_tokens": "no space is added around special tokens",
        "media_io_kwargs": "this release serves text only",
        "mm_processor_kwargs": "this release serves text only",
        "use_beam_search": "there is none",
        "cache_salt": "KV is shared by text alone",
        "request_id": "the header X-Request-ID names a request",
    }.items()
}

#: Fields of features that this release does not have: accepted at what switches them off.
SWITCHED_OFF: dict[str, Schema] = {
    name: one_of(*off, None, about="Not served by this release, except at these values.")
    for name, off in {
        "adapter_name": (),
        "repetition_ngram_size": (0,),
        "repetition_ngram_threshold": (0,),
        "return_routed_experts": (False,),
        "with_cache": (False,),
        "preserve_cache": (False,),
        "migration_request": (),
        "image_data": (),
        "length_penalty": (1,),
        "functions": (),
        "function_call": (),
        "web_search_options": (),
    }.items()
}

COMMON: dict[str, Schema] = {
    "model": text("A name that /v1/models lists; without it, the only one."),
    "session_id": integer(-1, _MANY, "Names the request for /abort_request; -1: nothing does."),
    **SAMPLING,
    **WITHOUT_EFFECT,
    **SWITCHED_OFF,
}

N_CHOICES = integer(1, MAX_CHOICES, "Answers to the prompt, which is computed once.")
MAX_TOKENS = integer(0, _MANY, "Most tokens of the answer.")

#: Fields with another name in a GenerationConfig.
_RENAMED = {"seed": "random_seed", "stop": "stop_words", "min_tokens": "min_new_tokens"}
#: What OpenAI's routes do where neither the request nor the model says how to sample.
OPENAI_DEFAULTS: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}


def generation_config(
    body: Mapping[str, Any],
    engine: TextEngine,
    *,
    max_new_tokens: int | None,
    defaults: Mapping[str, Any] = OPENAI_DEFAULTS,
    **others: Any,
) -> GenerationConfig:
    """The configuration that a request's fields are. What the request leaves out is as the model's
    files say, and then as `defaults` do.

    max_new_tokens: None: as many as there is room for. others: fields of the configuration.
    """
    of_model = dict(engine.sampling_defaults)
    greedy = of_model.pop("do_sample", True) is False
    given = {_RENAMED.get(name, name): body[name] for name in SAMPLING if name in body}
    values = {**defaults, **({"temperature": 0.0} if greedy else of_model), **given}
    values["do_sample"] = values["temperature"] > 0
    values["top_k"] = max(values["top_k"], 0)
    session_len = engine.sizes.kv.session_len
    for name in ("min_new_tokens", "no_repeat_ngram_size"):
        if name in values:
            values[name] = min(values[name], session_len)
    if "random_seed" in values:
        values["random_seed"] %= 2**64
    if isinstance(values.get("stop_words"), str):
        values["stop_words"] = [values["stop_words"]]
    if "logit_bias" in values:
        values["logit_bias"] = _bias(values["logit_bias"], engine.vocab_size)
    if max_new_tokens is not None:
        max_new_tokens = min(max_new_tokens, session_len)
    try:
        return GenerationConfig(**values, max_new_tokens=max_new_tokens, **others)
    except ValueError as error:
        raise ApiError(400, str(error)) from None


def _bias(given: Mapping[str, float], vocab_size: int) -> dict[int, float]:
    found = {}
    for name, value in given.items():
        if not (name.isascii() and name.isdigit() and len(name) < 10 and int(name) < vocab_size):
            raise ApiError(
                400,
                f"logit_bias: {name!r:.60} is no token id: they are 0 to {vocab_size - 1}",
                ErrorCode.INVALID_REQUEST.value,
                param="logit_bias",
            )
        found[int(name)] = value
    return found


def check_n_answers(n_prompts: int, n: int, most: int) -> None:
    """ApiError for more answers than one request may ask for."""
    if n_prompts * n > most:
        raise ApiError(
            400, f"{n_prompts} prompts with {n} answers each: one request may have {most} answers"
        )
