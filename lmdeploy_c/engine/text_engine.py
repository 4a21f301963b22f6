"""A loaded model with text in and answers out: what pipeline, sessions and servers stand on.

Whatever is wrong with a prompt, or with its configuration, becomes its answer. Only an engine that
is closed, or that has no memory left, raises. Must not know: sessions, pipelines.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.checkpoint import Checkpoint, fingerprint
from ..files.sampling_defaults import sampling_defaults
from ..messages import (
    ErrorCode,
    GenerationConfig,
    SpeculativeConfig,
    wrong_type,
)
from ..text.chat_template import ChatTemplateConfig
from ..text.end_tokens import end_token_ids, known_end_ids
from ..text.prompts import Message, Prompt, as_messages, as_turn, per_prompt
from ..text.stop_words import StopMatcher, stop_rules
from ..tokenizer import Tokenizer
from .answer import Answer
from .device_choice import choose_device
from .loading import (
    EngineConfig,
    check_chat_template_config,
    check_speculative_config,
    engine_config,
    load_model,
    make_chat_template,
    make_tokenizer,
    open_model,
    start_engine,
)
from .trace import recording

if TYPE_CHECKING:
    from .._C import Engine, Request, Snapshot

logger = logging.getLogger("lmdeploy_c")


@dataclass(frozen=True)
class History:
    """What a prompt goes on from: the turns of a conversation, as a `Session` brings them."""

    messages: Sequence[Message] = ()
    #: The tokens in which the turns were read and written.
    token_ids: Sequence[int] = ()
    #: The text of these tokens; None where it is not known.
    text: str | None = None
    #: Their KV, as far as the engine still has it.
    snapshot: Snapshot | None = None


NO_HISTORY = History()


class PromptTooLong(ValueError):
    """A prompt that leaves no room for an answer, told by its bytes."""


class TextEngine:
    """A model that answers. Any thread.

    The arguments are those of `pipeline`, which says also what is raised.

    Attributes:
        model_path, model_name: the model's files, and the name given or the files'.
        arch: the model's architecture. isa, num_threads: of the device that runs it.
        tokenizer, chat_template: the model's. vocab_size: the model's, which bounds every id.
        end_token_ids: the tokens that end an answer.
        backend_config: the configuration with every automatic value filled in.
        sizes: what the engine holds.
        sampling_defaults: fields of a GenerationConfig that the model's files name. Nothing here
            uses them: like LMDeploy's, a pipeline's defaults are GenerationConfig's.
    """

    def __init__(
        self,
        model_path: str | Path | None = None,
        backend_config: EngineConfig | None = None,
        chat_template_config: ChatTemplateConfig | None = None,
        speculative_config: SpeculativeConfig | None = None,
        *,
        model_name: str | None = None,
        max_log_len: int | None = None,
    ) -> None:
        check_speculative_config(speculative_config)
        check_chat_template_config(chat_template_config)
        if not isinstance(max_log_len, (int, type(None))):
            raise wrong_type("max_log_len", "None or a number of characters", max_log_len)
        if not isinstance(model_name, (str, type(None))):
            raise wrong_type("model_name", "None or a text", model_name)
        config = engine_config(backend_config)
        checkpoint = open_model(model_path, config)
        self.model_path = checkpoint.path
        self.model_name = model_name or checkpoint.path.stem
        self.arch: str = checkpoint.config["arch"]
        self.vocab_size: int = checkpoint.config["vocab_size"]
        self.tokenizer = make_tokenizer(checkpoint)
        self.chat_template = make_chat_template(chat_template_config, self.tokenizer)
        self._max_log_len = max_log_len
        known = known_end_ids(checkpoint.metadata.get("tokenizer.ggml.tokens", ()))
        self._named_end_ids = {*checkpoint.eos_token_ids, *known}
        self.sampling_defaults = sampling_defaults(checkpoint)
        self._is_gguf = bool(checkpoint.metadata)
        config, self.sizes = choose_device(config, checkpoint)
        sizes = self.sizes
        model = load_model(config, checkpoint)
        self.isa, self.num_threads = model.isa, model.num_threads
        core = start_engine(model, config, sizes, speculative_config)
        self._core: Engine | None = core
        self._finalizer = weakref.finalize(self, core.close)
        self.backend_config = dataclasses.replace(
            config,
            num_threads=model.num_threads,
            session_len=sizes.kv.session_len,
            max_batch_size=sizes.max_batch_size,
            max_prefill_token_num=sizes.max_prefill_token_num,
            target_step_ms=sizes.target_step_ms,
            cache_max_entry_count=sizes.kv.n_blocks,
        )
        self._kv_tags = self._make_kv_tags(checkpoint)

    def _make_kv_tags(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config, device, kv = self.backend_config, self.sizes.device, self.sizes.kv
        return {
            "model": fingerprint(checkpoint),
            "device": f"{device.kind} {self.isa}",
            "rope_len": kv.session_len if checkpoint.config["rope_type"] == "dynamic" else None,
            "block_len": kv.block_len,
            "kv_bits": list(self.sizes.kv_bits),
            "fast_activations": config.fast_activations,
            "quantize": config.quantize,
        }

    @functools.cached_property
    def end_token_ids(self) -> list[int]:
        """The tokens that end an answer. Found when first needed: a template is rendered for it."""
        return end_token_ids(
            self._named_end_ids, self.tokenizer, self.chat_template, self.vocab_size
        )

    # ---- from a prompt to its answer ----

    def ask(
        self,
        prompt: Prompt,
        config: GenerationConfig | None = None,
        *,
        do_preprocess: bool = True,
        template_kwargs: Mapping[str, Any] | None = None,
        history: History = NO_HISTORY,
        keep_snapshot: bool = False,
        prompt_logprobs: bool = False,
        index: int = 0,
    ) -> Answer:
        """Starts the answer to a prompt: `render`, `encode` and `submit` in one.

        do_preprocess: False takes a text as it is, without the chat template. template_kwargs: for
        the chat template. history: the turns before. keep_snapshot, prompt_logprobs, index: see
        `submit`.
        """
        try:
            text = self.render(prompt, do_preprocess, template_kwargs, history)
            logger.debug("prompt %d: %r", index, text[: self._max_log_len])
            ids = self.encode(text, add_bos=self.adds_bos(do_preprocess), history=history)
        except Exception as e:  # a template may raise anything
            return self.reject(str(e) or type(e).__name__, index=index, code=_code_of(e))
        return self.submit(
            ids,
            config,
            stop_words=(self.chat_template.stop_words or ()) if do_preprocess else (),
            snapshot=history.snapshot,
            keep_snapshot=keep_snapshot,
            prompt_logprobs=prompt_logprobs,
            index=index,
            prompt_text=text,
        )

    def ask_again(
        self,
        first: Answer,
        choice: int,
        config: GenerationConfig | None = None,
        *,
        do_preprocess: bool = True,
    ) -> Answer:
        """Starts another answer to the prompt of `first`: number `choice`, with a seed of its own.
        It begins with the KV of that prompt, which is not computed again if `first` was asked with
        keep_snapshot. The other arguments are those of `first`."""
        index, message = first.response.index, first.error_message
        if message is not None and first.error_code is not None:  # it could not be asked
            return self.reject(message, index=index, choice=choice, code=first.error_code)
        return self.submit(
            first.input_ids,
            config,
            stop_words=(self.chat_template.stop_words or ()) if do_preprocess else (),
            leader=first.request,
            index=index,
            choice=choice,
            prompt_text=first.prompt_text,
        )

    def render(
        self,
        prompt: Prompt,
        do_preprocess: bool = True,
        template_kwargs: Mapping[str, Any] | None = None,
        history: History = NO_HISTORY,
    ) -> str:
        """The text of the history and the prompt; arguments as for `ask`. Raises ValueError, and
        whatever a template raises."""
        if do_preprocess:
            messages: Prompt = [*history.messages, *as_turn(prompt)]
            if not self.chat_template.normalizes:
                messages = as_messages(messages)
            return self.chat_template.messages2prompt(messages, **(template_kwargs or {}))
        if not isinstance(prompt, str):
            raise ValueError("do_preprocess=False takes a text; a conversation needs the template")
        return self.text_of(history) + prompt

    def adds_bos(self, do_preprocess: bool) -> bool:
        """Whether a prompt begins with the model's first token, where the model wants one. What a
        GGUF file says of it holds for rendered chats too, as in llama.cpp; with a Hugging Face
        tokenizer the chat template alone decides, as in transformers."""
        return self._is_gguf or not do_preprocess or not self.chat_template.adds_bos

    def text_of(self, history: History) -> str:
        """The text of a history's tokens."""
        if history.text is not None:
            return history.text
        return self.tokenizer.decode(history.token_ids, skip_special_tokens=False)

    def encode(
        self, text: str, *, add_bos: bool = True, history: History = NO_HISTORY
    ) -> list[int]:
        """The tokens of a text. Where it goes on from the history's text, they are the history's
        tokens and new ones for the rest. PromptTooLong for a text that cannot fit, before it is
        tokenised."""
        tokenizer, before = self.tokenizer, history.text
        goes_on = before is not None and text.startswith(before)
        rest = text[len(before or "") :] if goes_on else text
        fewest, session_len = tokenizer.fewest_tokens(rest), self.sizes.kv.session_len
        if fewest >= session_len:
            raise PromptTooLong(
                f"the prompt has at least {fewest} tokens, session_len is {session_len}; shorten "
                "the prompt or raise session_len"
            )
        if goes_on:
            ids = [*history.token_ids, *tokenizer.encode(rest, add_special_tokens=False)]
            so_far = tokenizer.decode(history.token_ids, skip_special_tokens=False)
            if tokenizer.decode(ids, skip_special_tokens=False) == so_far + rest:
                return ids
        return tokenizer.encode(text, add_special_tokens=add_bos)

    def submit(
        self,
        ids: Sequence[int],
        config: GenerationConfig | None = None,
        *,
        stop_words: Sequence[str] = (),
        snapshot: Snapshot | None = None,
        keep_snapshot: bool = False,
        prompt_logprobs: bool = False,
        leader: Request | None = None,
        index: int = 0,
        choice: int = 0,
        prompt_text: str = "",
    ) -> Answer:
        """Starts the answer to a prompt's tokens.

        config: None takes the defaults. stop_words: the chat template's. snapshot: KV that is used
        as far as its text and ids agree. keep_snapshot: the request leaves a snapshot of its own.
        prompt_logprobs: `Answer.prompt_logprobs` has what config.logprobs asks for of the prompt.
        leader: see `_C.Engine.submit`. choice: is added to the seed that config gives. index,
        choice, prompt_text: for the Answer.
        """
        n_ids, session_len = len(ids), self.sizes.kv.session_len
        core, config, tokenizer = self.core, config or GenerationConfig(), self.tokenizer
        try:
            config.check()
            matcher, stop_ids = stop_rules(
                config, stop_words, tokenizer, self.end_token_ids, self.vocab_size
            )
            parameters = _parameters(config, tokenizer, choice, max(session_len - n_ids, 1))
        except Exception as e:  # a configuration may hold anything
            message, code = str(e) or type(e).__name__, _code_of(e)
            return self.reject(message, index=index, choice=choice, code=code)
        try:
            request = core.submit(
                ids,
                stop_token_ids=stop_ids,
                snapshot=snapshot,
                keep_snapshot=keep_snapshot,
                prompt_logprobs=prompt_logprobs,
                leader=leader,
                **parameters,
            )
        except (OverflowError, TypeError, ValueError) as e:
            return self.reject(str(e), index=index, choice=choice)
        too_long = n_ids >= session_len
        return Answer(
            request,
            tokenizer.detokenizer(config.skip_special_tokens, before=ids),
            matcher,
            index=index,
            choice=choice,
            input_ids=ids,
            prompt_text=prompt_text,
            error_code=ErrorCode.CONTEXT_LENGTH_EXCEEDED if too_long else None,
            skip_special_tokens=config.skip_special_tokens,
        )

    def reject(
        self,
        message: str,
        *,
        index: int = 0,
        choice: int = 0,
        code: ErrorCode = ErrorCode.INVALID_REQUEST,
    ) -> Answer:
        """The answer to a prompt that could not be asked: an error with this message and code. The
        engine counts it like any other request."""
        request = self.core.reject(message.encode("utf-8", "replace").decode())
        answer = Answer(
            request,
            self.tokenizer.detokenizer(),
            StopMatcher(),
            index=index,
            choice=choice,
            error_code=code,
            error_message=message,
        )
        answer.response.random_seed = None  # it has none
        return answer

    # ---- KV that outlives a request ----

    def session_tags(self) -> dict[str, Any]:
        """What tokens and KV depend on: KV of an engine with other tags is of no use here."""
        return {"tokenizer": self.tokenizer.fingerprint(), **self._kv_tags}

    def import_snapshot(self, token_ids: Any, layout: str, n_computed: int, kv: Any) -> Snapshot:
        """`_C.Engine.import_snapshot`."""
        return self.core.import_snapshot(token_ids, layout, n_computed, kv)

    # ---- numbers ----

    def stats(self) -> dict[str, int | float]:
        """The engine's counters: see `_C.Engine.stats`."""
        return self.core.stats()

    def metrics(self) -> dict[str, Any]:
        """What the engine has counted and timed: `Pipeline.metrics` describes it."""
        return self.core.metrics()

    def trace(
        self, path: str | Path, max_steps: int = 1 << 16
    ) -> contextlib.AbstractContextManager[None]:
        """Records what the engine does: `Pipeline.trace` describes it."""
        return recording(self.core, path, max_steps)

    # ---- life ----

    @property
    def core(self) -> Engine:
        """The C engine. Raises RuntimeError once this engine is closed."""
        if self._core is None:
            raise RuntimeError("this pipeline is closed")
        return self._core

    def close(self) -> None:
        """Aborts what runs and frees the model's memory. Idempotent."""
        self._core = None
        self._finalizer()


def check_gen_configs(
    gen_config: GenerationConfig | list[GenerationConfig] | None, n_prompts: int
) -> list[GenerationConfig | None]:
    """A configuration for each prompt: one for all, or a list. TypeError, ValueError."""
    configs = per_prompt(gen_config, n_prompts, "gen_config")
    for config in configs:
        if config is not None and not isinstance(config, GenerationConfig):
            hint = " (several prompts are one list)" if isinstance(config, str) else ""
            raise wrong_type("gen_config", f"a GenerationConfig{hint}", config)
    return configs


def _code_of(error: Exception) -> ErrorCode:
    """What a prompt's Response says where this error is why it was not asked."""
    from .._C import UnsupportedError
    from ..text.jinja_sandbox import ChatTemplateError

    if isinstance(error, UnsupportedError):
        return ErrorCode.UNSUPPORTED_FEATURE
    if isinstance(error, PromptTooLong):
        return ErrorCode.CONTEXT_LENGTH_EXCEEDED
    wrong_argument = isinstance(error, (TypeError, ValueError))
    if wrong_argument and not isinstance(error, ChatTemplateError):
        return ErrorCode.INVALID_REQUEST
    return ErrorCode.PREPROCESS_FAILED


def _parameters(
    config: GenerationConfig, tokenizer: Tokenizer, choice: int, n_left: int
) -> dict[str, Any]:
    """The keywords of Engine.submit, but for what stops it. choice: see `submit`. n_left: tokens
    that an answer may have at most."""
    bad: set[tuple[int, ...]] = {(int(i),) for i in config.bad_token_ids or ()}
    for word in config.bad_words or ():
        for variant in (word, " " + word):
            bad.add(tuple(tokenizer.token_ids_of(variant)))
    bias = config.logit_bias or {}
    options = config.core_options()
    options.setdefault("max_new_tokens", n_left)
    if config.random_seed is not None and choice:  # that of the first is the core's to check
        options["random_seed"] = (config.random_seed + choice) % 2**64
    return {
        **options,
        "do_sample": config.do_sample and config.temperature > 0,
        "temperature": config.temperature or 1.0,
        "logit_bias": {int(k): float(v) for k, v in bias.items()} or None,
        "bad_words": sorted(w for w in bad if w) or None,
    }
