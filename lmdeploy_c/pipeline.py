"""The pipeline: prompts in, Responses out. Text becomes tokens here; the C engine does the rest.

Every method may be called from any thread, also inside a running event loop: the synchronous ones
wait in C with the GIL released and never touch asyncio.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from .engine.answer import Answer, Failed, interleave, read_ppl, whole
from .engine.loading import (
    EngineConfig,
    check_model_format,
    engine_config,
    load_model,
    make_chat_template,
    set_log_level,
    start_engine,
)
from .engine.session import Session
from .engine.sizes import compute_sizes
from .engine.stateful import NumberedSessions
from .engine.text_engine import Asker, ModelText, template_kwargs
from .engine.trace import recording
from .files.checkpoint import Checkpoint, fingerprint, open_checkpoint, resolve_model
from .messages import (
    GenerationConfig,
    Response,
    ResponseType,
    SpeculativeConfig,
    TurbomindEngineConfig,
    VisionConfig,
    unsupported,
)
from .planning import Plan, plan_of
from .progress import prompt_bar
from .text.chat_template import ChatTemplateConfig
from .text.prompts import Prompt, parse_prompts, per_prompt
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from ._C import Engine

#: One prompt: a text, or a conversation.
OnePrompt = str | Sequence[Mapping[str, Any]]
#: One configuration for all prompts, or a list with one for each.
GenConfigs = GenerationConfig | list[GenerationConfig] | None


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
            if not isinstance(speculative_config, SpeculativeConfig):
                raise TypeError(
                    f"speculative_config: a SpeculativeConfig, "
                    f"not {type(speculative_config).__name__}"
                )
            speculative_config.check()
        self.speculative_config = speculative_config
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
        self._numbered = NumberedSessions()
        self._load(config, checkpoint)

    def _load(self, config: TurbomindEngineConfig, checkpoint: Checkpoint) -> None:
        """Sizes everything, says so, then loads the weights and starts the engine."""
        sizes = compute_sizes(config, checkpoint)
        kv = sizes.kv
        model = load_model(config, checkpoint)
        engine = start_engine(model, config, sizes, self.speculative_config)
        self._core: Engine | None = engine
        self._kv_tags = {
            "model": fingerprint(checkpoint),
            "device": f"{model.device} {model.isa}",
            "rope_len": kv.session_len if checkpoint.config["rope_type"] == "dynamic" else None,
            "block_len": kv.block_len,
            "kv_bits": list(sizes.kv_bits),
            "fast_activations": config.fast_activations,
        }
        self._finalizer = weakref.finalize(self, engine.close)
        self.backend_config = dataclasses.replace(
            config,
            device=model.device,
            num_threads=model.num_threads,
            session_len=kv.session_len,
            max_batch_size=sizes.max_batch_size,
            max_prefill_token_num=sizes.max_prefill_token_num,
            cache_max_entry_count=kv.n_blocks,
        )
        self.plan: Plan = plan_of(
            sizes,
            model=checkpoint.path,
            arch=checkpoint.config["arch"],
            device=model.device,
            isa=model.isa,
            num_threads=model.num_threads,
        )

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
        kwargs: for the chat template (tools, enable_thinking, chat_template_kwargs, ...), or for
        one prompt LMDeploy's session_id, sequence_start, sequence_end and step (`stateful`).

        Ctrl-C ends the call early: it returns what there is, with finish_reason "abort". A second
        one raises KeyboardInterrupt.
        """
        items, single = parse_prompts(prompts)
        turn = self._numbered_turn(items, gen_config, do_preprocess, adapter_name, kwargs)
        if turn is not None:
            *_, response = whole(turn)
            return response
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
        turn = self._numbered_turn(items, gen_config, do_preprocess, adapter_name, kwargs)
        if turn is not None:
            return turn if stream_response else whole(turn)
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
        session: Session | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[Response]:
        """Answers one prompt in an event loop: `async for piece in pipe.generate(prompt)`.

        Arguments as for `infer`; with a session it is that one's next turn. Many may run at once;
        they share the engine's batch. Leaving the iteration, or cancelling its task, cancels the
        request.
        """
        import asyncio  # takes 40 ms, and who gets here has it

        items, single = parse_prompts(prompt)
        if not single:
            raise TypeError("generate answers one prompt; start it once for each")
        try:
            numbered = self._numbered.take(self, kwargs)
        except LookupError as e:
            yield Failed(str(e), code=ResponseType.SESSION_NOT_EXIST).response
            return
        session = numbered.session if numbered else session
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        ask = self._asker(items, gen_config, do_preprocess, adapter_name, kwargs, session)
        try:
            with self._turn(items[0], ask, session) as answer:
                if isinstance(answer, Failed):
                    yield answer.response
                    return
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
        finally:
            if numbered:
                self._numbered.leave(numbered)
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
        config = session.gen_config
        ask = self._asker(items, config, do_preprocess, adapter_name, kwargs, session)

        def deltas() -> Iterator[Response]:
            with self._turn(items[0], ask, session) as answer:
                yield from interleave(lambda _: answer, 1)

        if stream_response:
            return deltas()
        # An interrupt ends the turn, and the session has what there is.
        with contextlib.suppress(KeyboardInterrupt):
            for _ in deltas():
                pass
        return session

    def load_session(self, path: str | Path) -> Session:
        """A conversation that `Session.save` wrote, here or in an earlier process.

        It goes on where it was. KV that was saved with it serves if model, device, instruction set
        and KV cache are the same; otherwise the text is computed again by the next turn. Nobody
        but this session reads KV from a file. Raises OSError, and ValueError for a file that is
        damaged, no session's, or another tokenizer's.
        """
        from .engine import session_file

        return session_file.read(self, Path(path))

    def session_tags(self) -> dict[str, Any]:
        """What KV depends on, as a file of a session says it."""
        return {"tokenizer": self.tokenizer.fingerprint(), **self._kv_tags}

    def import_snapshot(self, token_ids: Any, layout: str, n_computed: int, kv: Any) -> Any:
        """`_C.Engine.import_snapshot`, for `session_file`."""
        return self._engine().import_snapshot(token_ids, layout, n_computed, kv)

    @contextlib.contextmanager
    def _turn(
        self, prompt: Prompt, ask: Asker, session: Session | None
    ) -> Iterator[Answer | Failed]:
        """Asks one prompt, with a session as its next turn; what still runs in the end is
        cancelled."""
        answer = None
        if session is not None:
            session.begin(prompt)
        try:
            answer = ask(0)
            if session is not None:
                session.running(answer)
            yield answer
        finally:
            if answer is not None and not answer.done:
                answer.cancel()
            if session is not None:
                session.end(answer)

    def _numbered_turn(
        self,
        items: list[Prompt],
        gen_config: GenConfigs,
        do_preprocess: bool,
        adapter_name: str | None,
        kwargs: Mapping[str, Any],
    ) -> Iterator[Response] | None:
        """The deltas of a request with LMDeploy's older keywords for sessions; None without."""
        try:
            numbered = self._numbered.take(self, kwargs)
        except LookupError as e:
            return iter([Failed(str(e), code=ResponseType.SESSION_NOT_EXIST).response])
        if numbered is None:
            return None
        if len(items) != 1:
            raise ValueError("session_id takes one prompt; ask each by itself")
        session = numbered.session
        ask = self._asker(items, gen_config, do_preprocess, adapter_name, kwargs, session)

        def deltas() -> Iterator[Response]:
            try:
                with self._turn(items[0], ask, session) as answer:
                    yield from interleave(lambda _: answer, 1)
            finally:
                self._numbered.leave(numbered)

        return deltas()

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
        return [read_ppl(request) for request in requests]

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

    def metrics(self) -> dict[str, Any]:
        """What the engine has counted and timed, at one moment between two steps.

        n_submitted: requests so far; of them n_running have a seat in the batch, n_waiting have
        none yet, and n_ended counts the others by finish_reason. n_free_blocks, n_active_blocks,
        n_cached_blocks: of the KV cache. n_steps. n_tokens_prefilled, n_tokens_generated: computed.
        n_prompt_tokens, n_cached_tokens: tokens of prompts, and those found in the KV cache;
        prefix_hit_rate: their ratio. n_preempted: times that a request has lost its seat.
        histograms: name -> {"bounds", "counts", "count", "sum"}; counts[i] values were above
        bounds[i - 1] and at most bounds[i], the last one counts the rest. Names that end in
        _seconds are seconds, others tokens: time_to_first_token_seconds, inter_token_seconds,
        step_seconds, step_tokens, queue_seconds, prefill_seconds, decode_seconds,
        inference_seconds, request_seconds, prompt_tokens, generated_tokens, cached_tokens,
        cache_hit_ratio (0 to 1).

        A prompt that was refused before it reached the engine (a template that failed) is not
        counted. `lmdeploy_c.metrics` has them for Prometheus. Raises RuntimeError when
        enable_metrics is False.
        """
        return self._engine().metrics()

    def trace(
        self, path: str | Path, max_steps: int = 1 << 16
    ) -> contextlib.AbstractContextManager[None]:
        """Records what the engine does, and writes it in Chrome's trace format:

            with pipe.trace("trace.json"):
                pipe(prompts)

        The file opens in chrome://tracing and ui.perfetto.dev. It is written when the context ends,
        and holds the last max_steps steps (about 100 bytes of memory each, and 160 for events of
        requests). One trace at a time: a second one raises ValueError.
        """
        return recording(self._engine(), path, max_steps)

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
        session: Session | None = None,
    ) -> Asker:
        """Checks a call's arguments; the result asks the i-th prompt."""
        self._engine()
        configs = per_prompt(gen_config or GenerationConfig(), len(prompts), "gen_config")
        for config in configs:
            if not isinstance(config, GenerationConfig):
                raise TypeError(f"gen_config: a GenerationConfig, not {type(config).__name__}")
        if adapter_name is not None:
            raise unsupported(f"adapter_name={adapter_name!r}: this release has no LoRA adapters")
        text = ModelText(
            self.tokenizer,
            self.chat_template,
            self._end_ids,
            self.backend_config.session_len or 0,
            self._max_log_len,
        )
        options = template_kwargs(kwargs)
        return Asker(self._engine, text, prompts, configs, do_preprocess, options, session)


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
    effect: code that comes with a model is never run. speculative_config: None: every token is
    computed by itself. allowed_media_domains: refused unless None. kwargs: model_name (a name to
    show), vision_config (its defaults).

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
