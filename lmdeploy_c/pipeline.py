"""The pipeline: prompts in, Responses out. Text becomes tokens here; the C engine does the rest.

Every method may be called from any thread, also inside a running event loop: the synchronous ones
wait in C with the GIL released and never touch asyncio.
"""

from __future__ import annotations

import dataclasses
import logging
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from .answer import Answer, Failed, interleave, stop_rules, whole
from .chat_template import ChatTemplateConfig
from .checkpoint import Checkpoint, open_checkpoint, resolve_model
from .loading import (
    EngineConfig,
    check_model_format,
    engine_config,
    make_chat_template,
    plan_kv_cache,
    set_log_level,
    warn_of_slow_kernels,
)
from .messages import (
    GenerationConfig,
    Response,
    SpeculativeConfig,
    TurbomindEngineConfig,
    VisionConfig,
    unsupported,
)
from .progress import loading_progress, prompt_bar
from .prompts import Prompt, as_messages, parse_prompts, per_prompt
from .session import Session
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from ._C import Engine, Request

logger = logging.getLogger("lmdeploy_c")

#: One prompt: a text, or a conversation.
OnePrompt = str | Sequence[Mapping[str, Any]]
#: One configuration for all prompts, or a list with one for each.
GenConfigs = GenerationConfig | list[GenerationConfig] | None
#: Asks the i-th prompt of a call.
Asker = Callable[[int], Answer | Failed]

#: Seats of the batch and the token budget of a step, on the CPU.
CPU_BATCH_SIZE = 64
CPU_PREFILL_TOKENS = 512

#: Keywords of LMDeploy's stateful engine, with the value that means a stateless request.
_STATELESS = {"sequence_start": True, "sequence_end": True, "step": 0}
#: Keywords that go to the chat template.
_TEMPLATE_KEYWORDS = ("tools", "enable_thinking", "reasoning_effort", "add_generation_prompt")


class Pipeline:
    """A model, ready to answer. `pipeline()` documents the arguments.

    tokenizer: the model's. chat_template: what renders conversations. backend_config: the
    configuration with every automatic value filled in. plan: what was loaded and how large it is.
    model_name: the name given, or the file's.

    A bad request never raises: its Response has finish_reason "error" and an error_message. Wrong
    arguments of a call (a prompt that is no prompt, an unknown keyword) raise TypeError or
    ValueError; calls after `close` raise RuntimeError.
    """

    def __init__(
        self,
        model_path: str | Path | None = None,
        backend_config: EngineConfig | None = None,
        chat_template_config: ChatTemplateConfig | None = None,
        log_level: str = "WARNING",
        max_log_len: int | None = None,
        trust_remote_code: bool = False,
        speculative_config: SpeculativeConfig | None = None,
        allowed_media_domains: Sequence[str] | None = None,
        *,
        model_name: str | None = None,
        vision_config: VisionConfig | None = None,
    ) -> None:
        set_log_level(log_level)
        if speculative_config is not None:
            raise unsupported("speculative_config: this release has no speculative decoding")
        if allowed_media_domains is not None:
            raise unsupported("allowed_media_domains: this release serves text only")
        if vision_config is not None:
            vision_config.check()
        config = engine_config(backend_config)
        path = resolve_model(model_path, config.revision, config.download_dir)
        checkpoint = open_checkpoint(path, config.hf_overrides)
        check_model_format(config, checkpoint)
        self.model_name = model_name or path.stem
        self.tokenizer = (
            Tokenizer.from_gguf(checkpoint.metadata)
            if checkpoint.metadata
            else Tokenizer(checkpoint.path)
        )
        self.chat_template = make_chat_template(chat_template_config, self.tokenizer)
        self._max_log_len = max_log_len
        self._end_ids = list(checkpoint.eos_token_ids)
        self._special_ids = {text: i for i, text in self.tokenizer.special_tokens.items()}
        self._load(config, checkpoint)

    def _load(self, config: TurbomindEngineConfig, checkpoint: Checkpoint) -> None:
        """Sizes everything, says so, then loads the weights and starts the engine."""
        from . import _C

        batch_size = config.max_batch_size or CPU_BATCH_SIZE
        prefill_tokens = config.max_prefill_token_num or CPU_PREFILL_TOKENS
        size = plan_kv_cache(config, checkpoint, batch_size)
        with loading_progress() as progress:
            model = _C.Model(
                checkpoint.config,
                checkpoint.source,
                device="cpu",
                num_threads=config.num_threads,
                progress=progress,
            )
        warn_of_slow_kernels(model.isa)
        engine = _C.Engine(
            model,
            session_len=size.session_len,
            n_blocks=size.n_blocks,
            fast_activations=config.fast_activations,
            enable_prefix_caching=config.enable_prefix_caching,
            max_batch_size=batch_size,
            max_prefill_token_num=prefill_tokens,
            block_len=size.block_len,
            kv_bits=config.stored_kv_bits(),
        )
        self._core: Engine | None = engine
        self._finalizer = weakref.finalize(self, engine.close)
        self.backend_config = dataclasses.replace(
            config,
            device=model.device,
            num_threads=model.num_threads,
            session_len=size.session_len,
            max_batch_size=batch_size,
            max_prefill_token_num=prefill_tokens,
            cache_max_entry_count=size.n_blocks,
        )
        self.plan: dict[str, Any] = {
            "model": str(checkpoint.path),
            "device": model.device,
            "isa": model.isa,
            "num_threads": model.num_threads,
            "weight_bytes": model.weight_bytes,
            "kv_bytes": size.n_bytes,
            "kv_blocks": size.n_blocks,
            "kv_block_len": size.block_len,
            "kv_bits": config.stored_kv_bits(),
            "kv_bytes_per_token": size.block_bytes / size.block_len,
            "session_len": size.session_len,
            "max_batch_size": batch_size,
            "max_prefill_token_num": prefill_tokens,
        }

    # Asking

    @overload
    def __call__(
        self, prompts: OnePrompt, gen_config: GenerationConfig | None = None, **kwargs: Any
    ) -> Response: ...
    @overload
    def __call__(
        self, prompts: list[Any], gen_config: GenConfigs = None, **kwargs: Any
    ) -> list[Response]: ...
    def __call__(self, prompts: Any, gen_config: GenConfigs = None, **kwargs: Any) -> Any:
        """The same as `infer`."""
        return self.infer(prompts, gen_config, **kwargs)

    @overload
    def infer(
        self,
        prompts: OnePrompt,
        gen_config: GenerationConfig | None = None,
        do_preprocess: bool = True,
        adapter_name: str | None = None,
        use_tqdm: bool | None = None,
        **kwargs: Any,
    ) -> Response: ...
    @overload
    def infer(
        self,
        prompts: list[Any],
        gen_config: GenConfigs = None,
        do_preprocess: bool = True,
        adapter_name: str | None = None,
        use_tqdm: bool | None = None,
        **kwargs: Any,
    ) -> list[Response]: ...
    def infer(
        self,
        prompts: Any,
        gen_config: GenConfigs = None,
        do_preprocess: bool = True,
        adapter_name: str | None = None,
        use_tqdm: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Answers one prompt with a Response, or a list of prompts with a list, in order.

        prompts: a text, a conversation (list of dicts with "role" and "content"), or a list of
        either. gen_config: one for all, or a list with one for each.
        do_preprocess: False takes texts as they are, without the chat template.
        use_tqdm: a progress bar; None: for more than 8 prompts on a terminal or in a notebook.
        kwargs: for the chat template (tools, enable_thinking, chat_template_kwargs, ...).

        Ctrl-C ends the call early: it returns what there is, with finish_reason "abort". A second
        one raises KeyboardInterrupt.
        """
        items, single = parse_prompts(prompts)
        ask = self._asker(items, gen_config, do_preprocess, adapter_name, kwargs)
        answers: list[Answer | Failed] = []
        try:
            with prompt_bar(use_tqdm, len(items)) as advance:
                for i in range(len(items)):
                    answers.append(ask(i))
                for answer in answers:
                    answer.read_all()
                    advance()
        except KeyboardInterrupt:
            for answer in answers:
                answer.cancel()
        responses = [answer.read_all() for answer in answers]
        for i in range(len(responses), len(items)):
            responses.append(Response("", 0, 0, finish_reason="abort", index=i))
        return responses[0] if single else responses

    def batch_infer(self, *args: Any, **kwargs: Any) -> Any:
        """The old name of `infer`."""
        warnings.warn("batch_infer is now called infer", DeprecationWarning, stacklevel=2)
        return self.infer(*args, **kwargs)

    def stream_infer(
        self,
        prompts: Any,
        sessions: Session | list[Session] | None = None,
        gen_config: GenConfigs = None,
        do_preprocess: bool = True,
        adapter_name: str | None = None,
        stream_response: bool = True,
        **kwargs: Any,
    ) -> Iterator[Response]:
        """Yields pieces of the answers as they come, `index` naming the prompt of each.

        Arguments as for `infer`; a session given for a prompt can abort its answer. With
        stream_response=False each answer comes as one piece, when it is complete. Ending the
        iteration early, or Ctrl-C, cancels what is still running.
        """
        items, _ = parse_prompts(prompts)
        ask = self._asker(items, gen_config, do_preprocess, adapter_name, kwargs)
        owners = per_prompt(sessions, len(items), "sessions")

        def start(i: int) -> Answer | Failed:
            answer = ask(i)
            if owners[i] is not None:
                owners[i].running(answer)
            return answer

        deltas = interleave(start, len(items))
        return deltas if stream_response else whole(deltas)

    async def generate(
        self,
        prompt: Any,
        gen_config: GenerationConfig | None = None,
        do_preprocess: bool = True,
        adapter_name: str | None = None,
        stream_response: bool = True,
        **kwargs: Any,
    ) -> AsyncIterator[Response]:
        """Answers one prompt in an event loop: `async for piece in pipe.generate(prompt)`.

        Arguments as for `infer`. Many may run at once; they share the engine's batch. Leaving the
        iteration, or cancelling its task, cancels the request.
        """
        import asyncio  # takes 40 ms, and who gets here has it

        items, single = parse_prompts(prompt)
        if not single:
            raise TypeError("generate answers one prompt; start it once for each")
        answer = self._asker(items, gen_config, do_preprocess, adapter_name, kwargs)(0)
        if isinstance(answer, Failed):
            yield answer.response
            return
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        fd = answer.request.fileno()
        loop.add_reader(fd, ready.set)
        try:
            while not answer.done:
                await ready.wait()
                ready.clear()
                delta = answer.read(timeout=0)
                if delta is not None and stream_response:
                    yield delta
        finally:
            loop.remove_reader(fd)
            answer.cancel()
        if not stream_response:
            yield answer.response

    # Conversations

    def session(self, gen_config: GenerationConfig | None = None) -> Session:
        """A new, empty conversation."""
        return Session(self, gen_config)

    @overload
    def chat(
        self,
        prompt: OnePrompt,
        session: Session | None = None,
        gen_config: GenerationConfig | None = None,
        stream_response: Literal[False] = False,
        **kwargs: Any,
    ) -> Session: ...
    @overload
    def chat(
        self,
        prompt: OnePrompt,
        session: Session | None = None,
        gen_config: GenerationConfig | None = None,
        *,
        stream_response: Literal[True],
        **kwargs: Any,
    ) -> Iterator[Response]: ...
    def chat(
        self,
        prompt: Any,
        session: Session | None = None,
        gen_config: GenerationConfig | None = None,
        stream_response: bool = False,
        adapter_name: str | None = None,
        do_preprocess: bool = True,
        **kwargs: Any,
    ) -> Session | Iterator[Response]:
        """One turn of a conversation; without a session, the first of a new one.

        Returns the session, whose `response` is the answer; with stream_response an iterator of
        Response deltas, which updates the session when it ends. A turn that fails is not kept in
        the history; one that is cut off, by Ctrl-C too, is kept as far as it came.
        """
        items, single = parse_prompts(prompt)
        if not single:
            raise TypeError("chat takes one prompt: a text, or the messages of one turn")
        session = self.session() if session is None else session
        session.gen_config = gen_config or session.gen_config
        ask = self._asker(items, session.gen_config, do_preprocess, adapter_name, kwargs)

        def turn() -> Iterator[Response]:
            session.begin(items[0])
            answer = None
            try:
                if do_preprocess:
                    items[0] = session.messages(items[0])  # complete only now that it is our turn
                answer = ask(0)
                session.running(answer)
                yield from interleave(lambda _: answer, 1)
            finally:
                if answer is not None and not answer.done:
                    answer.cancel()
                session.end(answer)

        if stream_response:
            return turn()
        try:
            for _ in turn():
                pass
        except KeyboardInterrupt:
            pass  # the turn has ended and the session has what there is
        return session

    # Scores

    def get_ppl(self, input_ids: list[int] | list[list[int]]) -> list[float]:
        """The mean cross-entropy (natural log, not exponentiated) of each list of token ids.

        Raises ValueError for fewer than 2 tokens, more than session_len, or an id out of range.
        """
        if not isinstance(input_ids, list) or not input_ids:
            raise TypeError("get_ppl takes a list of token ids, or a list of such lists")
        batch: Any = input_ids if isinstance(input_ids[0], (list, tuple)) else [input_ids]
        for ids in batch:
            if len(ids) < 2:
                raise ValueError(f"get_ppl needs at least 2 tokens, not {len(ids)}")
        engine = self._engine()
        requests = [engine.submit(ids, max_new_tokens=0, return_ppl=True) for ids in batch]
        return [_read_ppl(request) for request in requests]

    def get_reward_score(self, input_ids: list[int] | list[list[int]]) -> list[float]:
        """Refused: this release serves no reward model."""
        raise unsupported("get_reward_score needs a reward model; this release serves none")

    # Life

    def close(self) -> None:
        """Aborts what runs and frees the model's memory. Idempotent."""
        self._core = None
        self._finalizer()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def async_engine(self) -> Pipeline:
        """LMDeploy's name for what has `generate`, `tokenizer` and `backend_config`."""
        return self

    def stats(self) -> dict[str, int | float]:
        """The engine's counters: see `_C.Engine.stats`."""
        return self._engine().stats()

    def _engine(self) -> Engine:
        if self._core is None:
            raise RuntimeError("this pipeline is closed")
        return self._core

    def _asker(
        self,
        prompts: list[Prompt],
        gen_config: GenConfigs,
        do_preprocess: bool,
        adapter_name: str | None,
        kwargs: Mapping[str, Any],
    ) -> Asker:
        """Checks a call's arguments; the result asks the i-th prompt."""
        self._engine()
        configs = per_prompt(gen_config or GenerationConfig(), len(prompts), "gen_config")
        for config in configs:
            if not isinstance(config, GenerationConfig):
                raise TypeError(f"gen_config: a GenerationConfig, not {type(config).__name__}")
        if adapter_name is not None:
            raise unsupported(f"adapter_name={adapter_name!r}: this release has no LoRA adapters")
        template_kwargs = _template_kwargs(kwargs)

        def ask(i: int) -> Answer | Failed:
            return self._ask(i, prompts[i], configs[i], do_preprocess, template_kwargs)

        return ask

    def _ask(
        self,
        index: int,
        prompt: Prompt,
        config: GenerationConfig,
        do_preprocess: bool,
        template_kwargs: Mapping[str, Any],
    ) -> Answer | Failed:
        """Submits one prompt. Whatever is wrong with it becomes its answer."""
        engine = self._engine()
        try:
            config.check()
            ids = self._encode(index, prompt, do_preprocess, template_kwargs)
            template_words = self.chat_template.stop_words if do_preprocess else []
            matcher, stop_ids = stop_rules(config, template_words, self._special_ids, self._end_ids)
            parameters = self._parameters(config)
            detokenizer = self.tokenizer.detokenizer(
                config.skip_special_tokens, config.spaces_between_special_tokens
            )
        except Exception as e:  # a template may raise anything
            return Failed(str(e) or type(e).__name__, index)
        try:
            request = engine.submit(ids, stop_token_ids=stop_ids, **parameters)
        except (OverflowError, TypeError, ValueError) as e:
            return Failed(str(e), index)
        too_long = len(ids) >= (self.backend_config.session_len or 0)
        return Answer(request, detokenizer, matcher, index=index, input_ids=ids, too_long=too_long)

    def _encode(
        self, index: int, prompt: Prompt, do_preprocess: bool, template_kwargs: Mapping[str, Any]
    ) -> list[int]:
        if do_preprocess:
            template = self.chat_template
            text = template.messages2prompt(as_messages(prompt), **template_kwargs)
            add_bos = not template.adds_bos
        elif isinstance(prompt, str):
            text, add_bos = prompt, True
        else:
            raise ValueError("do_preprocess=False takes a text; a conversation needs the template")
        logger.debug("prompt %d: %r", index, text[: self._max_log_len])
        return self.tokenizer.encode(text, add_bos=add_bos)

    def _parameters(self, config: GenerationConfig) -> dict[str, Any]:
        """The keywords of Engine.submit, but for what stops it."""
        bad: set[tuple[int, ...]] = {(int(i),) for i in config.bad_token_ids or ()}
        for word in config.bad_words or ():
            for variant in (word, " " + word):
                bad.add(tuple(self.tokenizer.token_ids_of(variant)))
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
        }


def _read_ppl(request: Request) -> float:
    while True:
        output = request.read()
        if output is None or output.finish_reason is None:
            continue
        if output.ppl is None:
            raise ValueError(output.error_message or "the request was aborted")
        return output.ppl


def _template_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a call that are the chat template's. Refuses those of stateful engines."""
    found: dict[str, Any] = {}
    for name, value in kwargs.items():
        if name in _STATELESS:
            if value != _STATELESS[name]:
                raise unsupported(
                    f"{name}={value!r}: this release keeps no state between requests; "
                    f"use Pipeline.chat with a session"
                )
        elif name == "chat_template_kwargs":
            found.update(value or {})
        elif name in _TEMPLATE_KEYWORDS:
            found[name] = value
        else:
            raise TypeError(f"unknown keyword {name!r}")
    return found


def pipeline(
    model_path: str | Path | None = None,
    backend_config: EngineConfig | None = None,
    chat_template_config: ChatTemplateConfig | None = None,
    log_level: str = "WARNING",
    max_log_len: int | None = None,
    trust_remote_code: bool = False,
    speculative_config: SpeculativeConfig | None = None,
    allowed_media_domains: Sequence[str] | None = None,
    **kwargs: Any,
) -> Pipeline:
    """Loads a model and returns a `Pipeline`.

    model_path: a GGUF file, a Hugging Face directory, or a model id; None: the embedded default.
    backend_config: the engine's configuration. chat_template_config: None takes the model's own.
    log_level: of the logger "lmdeploy_c"; INFO reports the KV cache's size before loading.
    max_log_len: most characters of a prompt in the log. trust_remote_code: accepted, and without
    effect: code that comes with a model is never run. speculative_config, allowed_media_domains:
    refused unless None. kwargs: model_name (a name to show), vision_config (its defaults).

    Raises FileNotFoundError, CheckpointError, UnsupportedError or ValueError with what is wrong.
    """
    return Pipeline(
        model_path,
        backend_config,
        chat_template_config,
        log_level,
        max_log_len,
        trust_remote_code,
        speculative_config,
        allowed_media_domains,
        **kwargs,
    )
