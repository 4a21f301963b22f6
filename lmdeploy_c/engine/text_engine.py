"""One call's prompts become requests of the engine, each by its index.

Whatever is wrong with a prompt, or with its configuration, becomes its answer. What raises is an
engine that is closed or has no memory left.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..messages import GenerationConfig
from ..text.chat_template import ChatTemplate
from ..text.prompts import Prompt, as_messages
from ..text.stop_words import stop_rules
from ..tokenizer import Tokenizer
from .answer import Answer, Failed
from .session import Session
from .stateful import KEYWORDS as STATEFUL_KEYWORDS

if TYPE_CHECKING:
    from .._C import Engine

logger = logging.getLogger("lmdeploy_c")

#: Keywords that go to the chat template.
_TEMPLATE_KEYWORDS = ("tools", "enable_thinking", "reasoning_effort", "add_generation_prompt")


@dataclasses.dataclass(frozen=True)
class ModelText:
    """What of a model makes tokens of prompts and text of answers.

    end_ids: tokens that end an answer. session_len: most tokens of prompt and answer together.
    max_log_len: most characters of a prompt in the log; None: all.
    """

    tokenizer: Tokenizer
    chat_template: ChatTemplate
    end_ids: list[int]
    session_len: int
    max_log_len: int | None


@dataclasses.dataclass(frozen=True)
class Asker:
    """The prompts of one call, with a configuration for each; calling it asks the i-th one.

    engine: gives the pipeline's, or says that it is closed; keeps the pipeline while it is held.
    do_preprocess: prompts go through the chat template, with template_kwargs. session: the one
    whose next turn the only prompt is.
    """

    engine: Callable[[], Engine]
    text: ModelText
    prompts: list[Prompt]
    configs: list[GenerationConfig]
    do_preprocess: bool
    template_kwargs: Mapping[str, Any]
    session: Session | None

    def __call__(self, i: int) -> Answer | Failed:
        engine, config, tokenizer = self.engine(), self.configs[i], self.text.tokenizer
        try:
            config.check()
            ids = self._encode(i)
            words = self.text.chat_template.stop_words if self.do_preprocess else []
            matcher, stop_ids = stop_rules(config, words, tokenizer.special_ids, self.text.end_ids)
            parameters = _parameters(config, tokenizer)
            detokenizer = tokenizer.detokenizer(
                config.skip_special_tokens, config.spaces_between_special_tokens
            )
        except Exception as e:  # a template may raise anything
            return Failed(str(e) or type(e).__name__, i)
        try:
            request = engine.submit(
                ids,
                stop_token_ids=stop_ids,
                snapshot=self.session.kept() if self.session else None,
                keep_snapshot=self.session is not None,
                **parameters,
            )
        except (OverflowError, TypeError, ValueError) as e:
            return Failed(str(e), i)
        return Answer(
            request,
            detokenizer,
            matcher,
            index=i,
            input_ids=ids,
            too_long=len(ids) >= self.text.session_len,
            skip_special_tokens=config.skip_special_tokens,
        )

    def _encode(self, i: int) -> list[int]:
        prompt, session = self.prompts[i], self.session
        if self.do_preprocess:
            template = self.text.chat_template
            messages = session.messages(prompt) if session else prompt
            text = template.messages2prompt(as_messages(messages), **self.template_kwargs)
            add_bos = not template.adds_bos
        elif isinstance(prompt, str):
            text, add_bos = session.text_so_far() + prompt if session else prompt, True
        else:
            raise ValueError("do_preprocess=False takes a text; a conversation needs the template")
        logger.debug("prompt %d: %r", i, text[: self.text.max_log_len])
        if session:
            return session.encode(text, add_bos)
        return self.text.tokenizer.encode(text, add_bos=add_bos)


def template_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a call that are the chat template's. TypeError for one that nobody knows."""
    found: dict[str, Any] = {}
    for name, value in kwargs.items():
        if name == "chat_template_kwargs":
            found.update(value or {})
        elif name in _TEMPLATE_KEYWORDS:
            found[name] = value
        elif name not in STATEFUL_KEYWORDS:
            raise TypeError(f"unknown keyword {name!r}")
    return found


def _parameters(config: GenerationConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """The keywords of Engine.submit, but for what stops it."""
    bad: set[tuple[int, ...]] = {(int(i),) for i in config.bad_token_ids or ()}
    for word in config.bad_words or ():
        for variant in (word, " " + word):
            bad.add(tuple(tokenizer.token_ids_of(variant)))
    bias = config.logit_bias or {}
    return {
        "max_new_tokens": config.max_new_tokens,
        "min_new_tokens": config.min_new_tokens or 0,
        "do_sample": config.do_sample and config.temperature > 0,
        "temperature": config.temperature or 1.0,
        "top_k": config.top_k,
        "top_p": config.top_p,
        "min_p": config.min_p,
        "repetition_penalty": config.repetition_penalty,
        "presence_penalty": config.presence_penalty,
        "frequency_penalty": config.frequency_penalty,
        "logit_bias": {int(k): float(v) for k, v in bias.items()} or None,
        "bad_words": sorted(w for w in bad if w) or None,
        "logprobs": config.logprobs or 0,
        "output_logits": config.output_logits,
        "return_ppl": config.return_ppl,
        "random_seed": config.random_seed,
        "priority": config.priority,
        "timeout": config.timeout or 0.0,
    }
