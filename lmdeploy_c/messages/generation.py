"""How one answer is generated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any, Literal, Protocol

from . import limits
from .checks import Checked, WrongValue, core, only

_PENALTY = "use repetition_penalty"


def _is_bias(value: object) -> bool:
    """Whether the core can have it: int(id) and float(bias) of each item."""
    try:
        return isinstance(value, Mapping) and all(
            int(k) == float(k) and not math.isnan(float(v)) for k, v in value.items()
        )
    except (OverflowError, TypeError, ValueError):
        return False


class TokenSearch(Protocol):
    """A tokenizer, as far as a configuration needs one."""

    def indexes_containing_token(self, token: str) -> list[int]:
        """The tokens whose text contains this one."""


@dataclass
class GenerationConfig(Checked):
    """How one answer is generated. Names, order and defaults are LMDeploy's.

    Raises ValueError for a value out of range, UnsupportedError for one this release lacks.

    Attributes:
        n: answers to the prompt, 1 to 128, which is computed once for all of them: see
            `Response.choices`. Their seeds are random_seed, random_seed + 1 and so on, or drawn.
            Without do_sample they are all alike.
        max_new_tokens: most tokens of the answer; None: as many as the context has room for.
        do_sample: False takes the likeliest token, whatever temperature, top_k, top_p and min_p.
        top_p: samples from the likeliest tokens that together have this probability; 1: from all.
        top_k: samples from so many likeliest tokens; 0: from all.
        min_p: leaves out tokens below this share of the likeliest one's probability.
        temperature: of sampling, 0 to 2; 0 takes the likeliest token.
        repetition_penalty: above 1 makes tokens of prompt and answer less likely.
        ignore_eos: neither the model's end tokens nor the template's stop words end the answer.
        random_seed: of sampling; None draws one, which `Response.random_seed` reports.
        stop_words: strings that end the answer wherever they appear, also in the middle of a token.
            The chat template's stop words hold too.
        bad_words: strings whose tokens are never generated in a row.
        stop_token_ids: tokens that end the answer.
        bad_token_ids: tokens that are never generated.
        min_new_tokens: the answer does not end before it has so many tokens.
        skip_special_tokens: leaves special tokens out of the text.
        logprobs: for each token, reports so many of the likeliest tokens beside the chosen one, by
            the model's own probabilities (`Response.logprobs`).
        output_logits: "generation" or "all" (also the prompt's) gives `Response.logits`.
        include_stop_str_in_output: keeps the stop word that ended the answer in the text.
        return_ppl: gives `Response.ppl`, the mean cross-entropy of the prompt.
        presence_penalty: subtracted from the logit of every token that the answer has.
        frequency_penalty: the same, as often as the answer has the token.
        no_repeat_ngram_size: no n-gram of so many tokens comes twice, the prompt's included, as in
            transformers; 0: off.
        logit_bias: token id -> value added to its logit.
        priority: -1000 to 1000. Each step of it passes up to 64 requests that came before; none
            waits for ever.
        timeout: seconds after which the answer ends as "abort" with what it has; None: never.
        others: LMDeploy's; accepted at their defaults and refused, never ignored, otherwise.
    """

    n: int = 1
    max_new_tokens: int | None = core(512)
    do_sample: bool = False
    top_p: float = core(1.0)
    top_k: int = core(50)
    min_p: float = core(0.0)
    temperature: float = 0.8
    repetition_penalty: float = core(1.0)
    ignore_eos: bool = False
    random_seed: int | None = core(None)
    stop_words: Sequence[str] | None = None
    bad_words: Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    bad_token_ids: Sequence[int] | None = None
    min_new_tokens: int | None = core(None)
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = only(True)
    logprobs: int | None = core(None)
    response_format: Mapping[str, Any] | None = only(None, hint="no constrained decoding yet")
    logits_processors: Sequence[Any] | None = only(None, hint="use logit_bias or bad_words")
    output_logits: Literal["all", "generation"] | None = core(None)
    output_last_hidden_state: Literal["all", "generation"] | None = only(None)
    include_stop_str_in_output: bool = False
    return_ppl: bool = core(False)
    with_cache: bool = only(False)  # of disaggregated serving, as the next two
    preserve_cache: bool = only(False)
    migration_request: object = only(None)
    return_routed_experts: bool = only(False)  # of mixtures of experts
    repetition_ngram_size: int = only(0, hint=_PENALTY)  # ends an answer that repeats n-grams
    repetition_ngram_threshold: int = only(0, hint=_PENALTY)  # as often as this
    logprob_start_len: int = only(-1)  # logprobs of the prompt from this token on
    presence_penalty: float = core(0.0)
    frequency_penalty: float = core(0.0)
    no_repeat_ngram_size: int = core(0)
    logit_bias: Mapping[int, float] | None = None
    priority: int = core(0)
    timeout: float | None = core(None)

    def core_options(self) -> dict[str, Any]:
        """The fields that the C core has under the same name, but those that are None."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.metadata.get("core")}
        return {name: value for name, value in named.items() if value is not None}

    def convert_stop_bad_words_to_ids(self, tokenizer: TokenSearch) -> None:
        """Adds to stop_token_ids and bad_token_ids every token whose text contains a stop word or
        bad word, as LMDeploy has it. The words stay: a pipeline needs no such conversion."""
        for words, ids in (("stop_words", "stop_token_ids"), ("bad_words", "bad_token_ids")):
            found = set(getattr(self, ids) or ())
            for word in getattr(self, words) or ():
                found.update(tokenizer.indexes_containing_token(word))
            setattr(self, ids, sorted(found) or None)

    def update_from_hf_gen_cfg(
        self, generation_config: Mapping[str, Any], tokenizer_eos_token_id: int | None
    ) -> None:
        """Adds to stop_token_ids the end tokens of a model's generation_config.json and of its
        tokenizer, as LMDeploy has it. A pipeline knows its model's without this."""
        found = set(self.stop_token_ids or ())
        if tokenizer_eos_token_id is not None:
            found.add(tokenizer_eos_token_id)
        ends = generation_config.get("eos_token_id")
        if ends is not None:
            found.update([ends] if isinstance(ends, int) else ends)
        self.stop_token_ids = sorted(found)

    def check(self) -> None:
        self._switch_off_repetition_ngrams()
        super().check()
        self._check_ranges()
        self._check_bool(
            "do_sample",
            "ignore_eos",
            "skip_special_tokens",
            "include_stop_str_in_output",
            "return_ppl",
        )
        self._check_list("stop_words", str, "strings")
        self._check_list("bad_words", str, "strings")
        self._check_list("stop_token_ids", Integral, "token ids")
        self._check_list("bad_token_ids", Integral, "token ids")
        if self.output_logits not in (None, "all", "generation"):
            raise self._wrong("output_logits", "None, 'all' or 'generation'")
        if self.logit_bias is not None and not _is_bias(self.logit_bias):
            raise self._wrong("logit_bias", "None or a mapping of token id to number")
        if any(not word for word in (*(self.stop_words or ()), *(self.bad_words or ()))):
            raise WrongValue("GenerationConfig.stop_words and bad_words: a word must not be empty")

    def _switch_off_repetition_ngrams(self) -> None:
        """As LMDeploy: of repetition_ngram_size and repetition_ngram_threshold, one that is 0 or
        less switches both off."""
        both = (self.repetition_ngram_size, self.repetition_ngram_threshold)
        if all(isinstance(value, Integral) for value in both) and min(both) <= 0:
            self.repetition_ngram_size = self.repetition_ngram_threshold = 0

    def _check_ranges(self) -> None:
        self._check_number("priority", -limits.MAX_PRIORITY, limits.MAX_PRIORITY)
        self._check_int("priority", -limits.MAX_PRIORITY)
        if self.timeout is not None:
            self._check_number("timeout", limits.MIN_TIMEOUT, limits.MAX_TIMEOUT)
        self._check_int("n", 1)
        self._check_number("n", 1, limits.MAX_CHOICES)
        self._check_int("max_new_tokens", 0, optional=True)
        self._check_int("min_new_tokens", 0, optional=True)
        self._check_int("top_k", 0)
        self._check_int("random_seed", 0, optional=True)
        self._check_int("logprobs", 0, optional=True)
        if self.logprobs is not None:
            self._check_number("logprobs", 0, limits.MAX_LOGPROBS)
        self._check_int("no_repeat_ngram_size", 0)
        self._check_number("top_p", 0, 1)
        self._check_number("min_p", 0, 1)
        self._check_number("temperature", 0, limits.MAX_TEMPERATURE)
        factor = limits.MAX_REPETITION_PENALTY
        self._check_number("repetition_penalty", 1 / factor, factor)
        self._check_number("presence_penalty", -limits.MAX_PENALTY, limits.MAX_PENALTY)
        self._check_number("frequency_penalty", -limits.MAX_PENALTY, limits.MAX_PENALTY)
