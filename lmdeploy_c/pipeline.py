"""The pipeline: prompts in, Responses out. LMDeploy's calls on a `TextEngine`.

Every method may be called from any thread, also inside a running event loop: the synchronous ones
wait in C with the GIL released and never touch asyncio.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from .engine.answer import Answer, gather, interleave, whole
from .engine.calls import check_adapter, check_session, make_call
from .engine.choices import generate, with_choices
from .engine.loading import EngineConfig, set_log_level
from .engine.scores import TextOrIds, cross_entropies
from .engine.session import Session
from .engine.stateful import NumberedSessions
from .engine.text_engine import TextEngine
from .messages import (
    GenerationConfig,
    Interrupted,
    Response,
    SpeculativeConfig,
    TurbomindEngineConfig,
    VisionConfig,
    check_flag,
    refuse_unknown,
    unsupported,
    wrong_type,
)
from .output_cache import NotKept
from .planning import Plan, plan_of
from .progress import prompt_bar
from .text.chat_template import ChatTemplate, ChatTemplateConfig
from .text.prompts import parse_prompts, per_prompt
from .tokenizer import Tokenizer
from .units import format_size

if TYPE_CHECKING:
    from .metrics import Metrics
    from .serve.server import Server

#: One prompt: a text, or a conversation.
OnePrompt = str | Sequence[Mapping[str, Any]]
#: Any number of prompts: one, or a list of them.
Prompts = OnePrompt | list[Any]
#: One configuration for all prompts, or a list with one for each.
GenConfigs = GenerationConfig | list[GenerationConfig] | None


class Pipeline(NotKept):
    """A model, ready to answer. `pipeline()` documents the arguments.

    A bad request never raises: its Response has finish_reason "error" and an error_message, which
    the logger "lmdeploy_c.requests" warns of, and `Response.raise_for_error` raises it. Wrong
    arguments of a call (a prompt that is no prompt, a configuration's field) raise TypeError or
    ValueError; calls after `close` raise RuntimeError.

    Attributes:
        engine: the `TextEngine`, which answers.
        plan: what was loaded and how large it is: a `Plan`, which also is a mapping.
        speculative_config: as given.
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
        **kwargs: Any,
    ) -> None:
        for name, value in kwargs.items():
            refuse_unknown("pipeline()", name, value, [*inspect.signature(Pipeline).parameters])
        set_log_level(log_level)
        if allowed_media_domains is not None:
            raise unsupported("allowed_media_domains: this release serves text only")
        if vision_config is not None:
            if not isinstance(vision_config, VisionConfig):
                raise wrong_type("vision_config", "a VisionConfig", vision_config)
            vision_config.check()
        self.speculative_config = speculative_config
        self.engine = engine = TextEngine(
            model_path,
            backend_config,
            chat_template_config,
            speculative_config,
            model_name=model_name,
            max_log_len=max_log_len,
        )
        self.plan: Plan = plan_of(engine.sizes, model=engine.model_path, arch=engine.arch)
        self._numbered = NumberedSessions(engine)

    @property
    def tokenizer(self) -> Tokenizer:
        return self.engine.tokenizer

    @property
    def chat_template(self) -> ChatTemplate:
        """What renders conversations."""
        return self.engine.chat_template

    @property
    def backend_config(self) -> TurbomindEngineConfig:
        """The configuration with every automatic value filled in."""
        return self.engine.backend_config

    @property
    def model_name(self) -> str:
        """The name given, or that of the model's files."""
        return self.engine.model_name

    @property
    def async_engine(self) -> Pipeline:
        """LMDeploy's name for what has `generate`, `tokenizer` and `backend_config`."""
        return self

    # ---- asking ----

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
        one prompt LMDeploy's session_id, sequence_start, sequence_end and step (`stateful`). Others
        are warned of once and ignored, as in LMDeploy. With GenerationConfig.n > 1 the prompt is
        computed once, and its Response has all answers in `choices`.

        Ctrl-C, or a notebook's stop, raises `Interrupted`, a KeyboardInterrupt whose `responses`
        are the answers as far as they came.
        """
        items, single = parse_prompts(prompts)
        check_flag("use_tqdm", use_tqdm, optional=True)
        call = make_call(self._numbered, items, gen_config, do_preprocess, adapter_name, kwargs)
        with prompt_bar(use_tqdm, call.n_answers) as advance:
            answers, interrupted = gather(call.start, call.n_answers, advance)
        for answer, place in zip(answers, call.places, strict=True):
            answer.index, answer.choice = place  # one that was never begun too
        responses = list(with_choices(answers, call.n_choices))
        if interrupted:
            raise Interrupted(responses)
        return responses[0] if single else responses

    def batch_infer(self, *args: Any, **kwargs: Any) -> Any:
        """The old name of `infer`."""
        warnings.warn("batch_infer is now called infer", DeprecationWarning, stacklevel=2)
        return self.infer(*args, **kwargs)

    def stream_infer(
        self,
        prompts: Prompts,
        sessions: Session | list[Session] | None = None,
        gen_config: GenConfigs = None,
        do_preprocess: bool = True,
        adapter_name: str | None = None,
        stream_response: bool = True,
        **kwargs: Any,
    ) -> Generator[Response, None, None]:
        """Yields pieces of the answers as they come; `index` says of which prompt, and with n > 1
        `choice` of which of its answers. The last piece of each has a finish_reason alone.

        Arguments as for `infer`. sessions: one for each prompt, whose `abort` ends the answer.
        stream_response: False yields each answer as one piece, when it is complete. Ending the
        iteration early cancels what is still running; so does Ctrl-C, which raises `Interrupted`.
        """
        items, _ = parse_prompts(prompts)
        call = make_call(self._numbered, items, gen_config, do_preprocess, adapter_name, kwargs)
        check_flag("stream_response", stream_response)
        owners = per_prompt(sessions, len(items), "sessions")
        for owner in owners:
            check_session("sessions", owner)
        if sessions is not None and call.n_answers > len(items):
            raise ValueError("sessions: each ends one answer, so that n > 1 goes without them")

        def start_watched(k: int) -> Answer:
            answer = call.start(k)
            owner = owners[call.places[k][0]]
            if owner is not None:
                owner.watch(answer)
            return answer

        deltas = interleave(start_watched, call.n_answers)
        return deltas if stream_response else with_choices(whole(deltas), call.n_choices)

    def generate(
        self,
        prompt: OnePrompt,
        gen_config: GenerationConfig | None = None,
        do_preprocess: bool = True,
        adapter_name: str | None = None,
        stream_response: bool = True,
        session: Session | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[Response, None]:
        """Answers one prompt in an event loop: `async for piece in pipe.generate(prompt)`.

        Arguments as for `infer`. session: the prompt is its next turn. Many calls may run at once,
        and share the engine's batch. Leaving the iteration, or cancelling its task, cancels the
        request.
        """
        items, single = parse_prompts(prompt)
        if not single:
            raise TypeError("generate answers one prompt; start it once for each")
        check_flag("stream_response", stream_response)
        check_session("session", session, self.engine)
        call = make_call(
            self._numbered, items, gen_config, do_preprocess, adapter_name, kwargs, session
        )
        return generate(call, stream_response)

    # ---- conversations ----

    def session(self, gen_config: GenerationConfig | None = None) -> Session:
        """A new, empty conversation."""
        return Session(self.engine, gen_config)

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
    ) -> Generator[Response, None, None]: ...
    def chat(
        self,
        prompt: Any,
        session: Session | None = None,
        gen_config: GenerationConfig | None = None,
        stream_response: bool = False,
        adapter_name: str | None = None,
        do_preprocess: bool = True,
        **kwargs: Any,
    ) -> Session | Generator[Response, None, None]:
        """One turn of a conversation; without a session, the first of a new one.

        Returns the session, whose `response` is the answer; with stream_response an iterator of
        Response deltas, which updates the session when it ends. gen_config holds for later turns
        too. A turn that fails is not kept in the history; one that is cut off is kept as far as it
        came; Ctrl-C cuts it off and raises `Interrupted`. Raises ValueError for a gen_config with
        n > 1.
        """
        check_adapter(adapter_name)
        check_session("session", session, self.engine)
        session = self.session() if session is None else session
        answer = session(prompt, gen_config, stream_response, do_preprocess, **kwargs)
        return session if isinstance(answer, Response) else answer

    def load_session(self, path: str | Path) -> Session:
        """A conversation that `Session.save` wrote, here or in an earlier process.

        It goes on where it was. KV that was saved with it is used if model, device, instruction set
        and KV cache are the same; otherwise the next turn computes the text again. No other session
        reads KV from a file. Raises OSError, and ValueError for a file that is damaged, holds no
        session, or was saved with another tokenizer.
        """
        return Session.load(self.engine, path)

    # ---- scores ----

    def get_ppl(self, input_ids: TextOrIds | Sequence[TextOrIds]) -> list[float]:
        """The mean cross-entropy (natural log, not exponentiated) of each text's tokens.

        input_ids: token ids, as a list or an integer array (NumPy's, or any with `tolist`); a text,
        which gets the model's first token where the model has one; or a list of either. An array of
        two dimensions is a list of its rows. A single text or list gives a list of one number.
        Ctrl-C raises `Interrupted`. Raises ValueError for fewer than 2 tokens, more than
        session_len, or an id out of range, TypeError for anything else.
        """
        return cross_entropies(self.engine, input_ids)

    def get_reward_score(self, input_ids: list[int] | list[list[int]]) -> list[float]:
        """Refused: this release serves no reward model."""
        raise unsupported("get_reward_score needs a reward model; this release serves none")

    # ---- over HTTP ----

    def serve(self, port: int = 23333, **options: Any) -> Server:
        """Answers over HTTP too, in a thread of its own: OpenAI's, Anthropic's and LMDeploy's
        routes, on the same weights. `url` of what is returned is where; its `stop` ends it, and so
        does leaving it as a context manager. port: 0 takes a free one. options: fields of
        `lmdeploy_c.serve.config.ServeConfig`.

        Raises ImportError where `pip install lmdeploy_c[serve]` is missing, OSError for an address
        that cannot be had, ValueError and TypeError for wrong options.
        """
        from .serve.config import ServeConfig
        from .serve.server import Server

        return Server(self.engine, ServeConfig(port=port, **options)).start()

    # ---- life ----

    def close(self) -> None:
        """Aborts what runs and frees the model's memory. Idempotent."""
        self.engine.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def stats(self) -> dict[str, int | float]:
        """The engine's counters: see `_C.Engine.stats`."""
        return self.engine.stats()

    def metrics(self) -> Metrics:
        """What the engine has counted and timed, at one moment between two steps: a dict, which
        prints as a summary.

        n_submitted: requests so far; of them n_running have a slot in the batch, n_waiting have
        none yet, and n_ended counts the others by finish_reason. n_free_blocks, n_active_blocks,
        n_cached_blocks: of the KV cache. n_steps: of the engine. n_tokens_prefilled,
        n_tokens_generated: tokens of prompts and answers that were computed.
        n_prompt_tokens, n_cached_tokens: tokens of prompts, and those found in the KV cache;
        prefix_hit_rate: their ratio. n_draft_tokens: tokens computed as drafts;
        n_accepted_tokens: those of them that were right. n_allocs: allocations of the core, in this
        process. n_preempted: times that a request has lost its slot.
        histograms: name -> {"bounds", "counts", "count", "sum"}; counts[i] values were above
        bounds[i - 1] and at most bounds[i], the last one counts the rest. Names that end in
        _seconds are seconds, others tokens: time_to_first_token_seconds, inter_token_seconds,
        step_seconds, step_tokens, queue_seconds, prefill_seconds, decode_seconds,
        inference_seconds, request_seconds, prompt_tokens, generated_tokens, cached_tokens,
        cache_hit_ratio (0 to 1).

        A prompt that could not be asked (its template failed, say) counts as submitted and as ended
        by "error". `lmdeploy_c.metrics` has the numbers for Prometheus. Raises RuntimeError when
        enable_metrics is False.
        """
        from .metrics import Metrics

        return Metrics(self.engine.metrics())

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
        return self.engine.trace(path, max_steps)

    def __repr__(self) -> str:
        plan, engine = self.plan, self.engine
        try:
            stats = engine.stats()
        except RuntimeError:
            return f"<Pipeline {self.model_name}, closed>"
        return (
            f"<Pipeline {self.model_name}: {engine.arch} on {plan.device} ({engine.isa}), "
            f"{engine.num_threads} threads\n"
            f"  weights {format_size(plan.weight_bytes)}, KV cache {format_size(plan.kv_bytes)} of "
            f"{plan.kv_tokens} tokens, {plan.session_len} tokens of context\n"
            f"  {stats['n_running']} requests running, {stats['n_waiting']} waiting>"
        )


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
    show), vision_config (its defaults). Others are warned of and ignored, as in LMDeploy.

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
