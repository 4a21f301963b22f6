"""What goes into a pipeline and what comes out: configurations and the Response.

Names, order and defaults are LMDeploy's. A field that this release does not serve is marked
`_only`: it is accepted at its default and refused, never ignored, at any other value. This
module imports nothing heavy, so that the command line can read defaults from it.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from .units import parse_size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")

#: Tokens that a KV block may hold: divisors of the 256 positions that attention takes at once.
BLOCK_LENS = (16, 32, 64, 128, 256)

#: Tokens that a sequence may guess in a step.
MAX_DRAFT_TOKENS = 32

__all__ = [
    "GenerationConfig",
    "PytorchEngineConfig",
    "QuantPolicy",
    "Response",
    "ResponseType",
    "SpeculativeConfig",
    "TurbomindEngineConfig",
    "VisionConfig",
]


def unsupported(message: str) -> ValueError:
    """The exception for something known that this release does not serve."""
    from ._C import UnsupportedError  # only when needed: it brings NumPy

    return UnsupportedError(message)


def _only(default: T, *also: T, hint: str = "") -> T:
    """A dataclass field whose only served values are the default and `also`."""
    return field(default=default, metadata={"served": (default, *also), "hint": hint})


def _same(a: object, b: object) -> bool:
    """a == b, but 1 is not True."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


class _Checked:
    """Base of the configurations: `check()` runs when one is made and again before it is used."""

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raises UnsupportedError for a field that is not served, ValueError for a wrong value."""
        for f in fields(cast(Any, self)):
            if "served" not in f.metadata:
                continue
            value, served = getattr(self, f.name), f.metadata["served"]
            if not any(_same(value, s) for s in served):
                hint = f.metadata["hint"]
                raise unsupported(
                    f"{type(self).__name__}.{f.name}={value!r} is not served by this release; "
                    f"served: {', '.join(map(repr, served))}" + (f" ({hint})" if hint else "")
                )

    def _wrong(self, name: str, wanted: str) -> ValueError:
        value = getattr(self, name)
        return ValueError(f"{type(self).__name__}.{name} must be {wanted}, not {value!r}")

    def _check_number(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
            raise self._wrong(name, "a number")
        if not low <= float(value) <= high:
            raise self._wrong(name, f"between {low:g} and {high:g}")

    def _check_int(self, name: str, low: int, optional: bool = False) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
            none = "None or " if optional else ""
            raise self._wrong(name, f"{none}an integer of at least {low}")

    def _check_bool(self, *names: str) -> None:
        for name in names:
            if not isinstance(getattr(self, name), bool):
                raise self._wrong(name, "True or False")

    def _check_list(self, name: str, kind: type, of: str) -> None:
        value = getattr(self, name)
        if value is None:
            return
        is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
        if not is_list or not all(isinstance(v, kind) and not isinstance(v, bool) for v in value):
            raise self._wrong(name, f"None or a list of {of}")


class QuantPolicy(enum.IntEnum):
    """Storage of the KV cache. This release serves NONE (fp16), INT8 and INT4."""

    NONE = 0
    INT4 = 4
    INT8 = 8
    FP8 = 16
    FP8_E5M2 = 17
    TURBO_QUANT = 42


class ResponseType(enum.Enum):
    """`Response.error_code`."""

    SUCCESS = enum.auto()
    FINISH = enum.auto()
    ENGINE_STOP_ERROR = enum.auto()
    SESSION_REPEAT = enum.auto()
    SESSION_NOT_EXIST = enum.auto()
    HANDLER_NOT_EXIST = enum.auto()
    INPUT_LENGTH_ERROR = enum.auto()
    INTERNAL_ENGINE_ERROR = enum.auto()
    CANCEL = enum.auto()
    BAD_REQUEST = enum.auto()  # ours: a parameter, message or template is wrong
    QUEUE_FULL = enum.auto()  # ours: max_waiting_requests wait already


@dataclass
class GenerationConfig(_Checked):
    """How one answer is generated.

    n: answers per prompt (1). max_new_tokens: most tokens of an answer.
    do_sample: False is greedy, whatever temperature, top_k, top_p and min_p say.
    top_p, top_k, min_p, temperature: sampling; top_k=0 switches top_k off, temperature=0 is greedy.
    repetition_penalty: above 1 makes tokens of prompt and answer less likely.
    ignore_eos: do not stop at the model's end tokens nor at the template's stop words.
    random_seed: None draws one; it is reported as `Response.random_seed`.
    stop_words: strings that end the answer wherever they appear, also in the middle of a token;
    the chat template's hold too. bad_words: strings whose tokens are never generated in a row.
    stop_token_ids, bad_token_ids: the same for single tokens.
    min_new_tokens: no end of the answer before so many tokens.
    skip_special_tokens: leave special tokens out of the text.
    logprobs: number of most likely tokens reported per token, beside the chosen one.
    output_logits: "generation" or "all" (prompt too) gives `Response.logits`, [n_rows, vocab_size].
    include_stop_str_in_output: keep the stop word that ended the answer in the text.
    return_ppl: gives `Response.ppl`, the mean cross-entropy of the prompt.
    presence_penalty, frequency_penalty: subtracted from logits of tokens of the answer.
    logit_bias: token id -> value added to its logit.
    priority: -1000 to 1000; each step of it passes up to 64 requests that came before, so that none
    waits for ever. timeout: seconds after which the answer ends as "abort" with what it has.

    Raises ValueError for a value out of range, UnsupportedError for one this release lacks.
    """

    n: int = _only(1, hint="send the prompt several times with different seeds")
    max_new_tokens: int = 512
    do_sample: bool = False
    top_p: float = 1.0
    top_k: int = 50
    min_p: float = 0.0
    temperature: float = 0.8
    repetition_penalty: float = 1.0
    ignore_eos: bool = False
    random_seed: int | None = None
    stop_words: Sequence[str] | None = None
    bad_words: Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    bad_token_ids: Sequence[int] | None = None
    min_new_tokens: int | None = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = _only(True)
    logprobs: int | None = None
    response_format: Mapping[str, Any] | None = _only(None, hint="no constrained decoding yet")
    logits_processors: Sequence[Any] | None = _only(None, hint="use logit_bias or bad_words")
    output_logits: Literal["all", "generation"] | None = None
    output_last_hidden_state: Literal["all", "generation"] | None = _only(None)
    include_stop_str_in_output: bool = False
    return_ppl: bool = False
    with_cache: bool = _only(False)
    preserve_cache: bool = _only(False)
    migration_request: object = _only(None)
    return_routed_experts: bool = _only(False)
    repetition_ngram_size: int = _only(0, hint="use repetition_penalty")
    repetition_ngram_threshold: int = _only(0, hint="use repetition_penalty")
    logprob_start_len: int = _only(-1)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    priority: int = 0
    timeout: float | None = None

    def check(self) -> None:
        super().check()
        self._check_number("priority", -1000, 1000)
        self._check_int("priority", -1000)
        if self.timeout is not None:
            self._check_number("timeout", 1e-9, 1e8)
        self._check_int("max_new_tokens", 0)
        self._check_int("min_new_tokens", 0, optional=True)
        self._check_int("top_k", 0)
        self._check_int("random_seed", 0, optional=True)
        self._check_int("logprobs", 0, optional=True)
        self._check_number("top_p", 0, 1)
        self._check_number("min_p", 0, 1)
        self._check_number("temperature", 0, 2)
        self._check_number("repetition_penalty", 1e-3, 1e3)
        self._check_number("presence_penalty", -100, 100)
        self._check_number("frequency_penalty", -100, 100)
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
        if self.logit_bias is not None and not isinstance(self.logit_bias, Mapping):
            raise self._wrong("logit_bias", "None or a mapping of token id to number")
        if any(not word for word in (*(self.stop_words or ()), *(self.bad_words or ()))):
            raise ValueError("GenerationConfig.stop_words and bad_words: a word must not be empty")


_ONE_DEVICE = "one device"
_CUDA_REFUSED = "no CUDA backend in this build"


#: Bits of the KV cache's codes by quant_policy, and what kv_bits may say.
_POLICY_BITS = {QuantPolicy.NONE: 16, QuantPolicy.INT8: 8, QuantPolicy.INT4: 4}
_KV_BITS = (16, 8, 4)


def _kv_quant_policy() -> int:
    """The field quant_policy, a number as LMDeploy's."""
    return _only(
        0, *(int(p) for p in (QuantPolicy.INT4, QuantPolicy.INT8)), hint="fp16, int4 or int8"
    )


class _EngineConfig(_Checked):
    """The checks that both engine configurations share."""

    device_field = "device"
    cache_max_entry_count: float | int | str | None
    hf_overrides: Mapping[str, Any] | None

    def check(self) -> None:
        super().check()
        device = getattr(self, self.device_field)
        if device == "cuda":
            raise unsupported(
                f"{type(self).__name__}.{self.device_field}='cuda': {_CUDA_REFUSED}; "
                f"served: 'auto', 'cpu'"
            )
        if device not in ("auto", "cpu"):
            raise self._wrong(self.device_field, "'auto', 'cpu' or 'cuda'")
        for name in ("session_len", "max_batch_size", "max_prefill_token_num"):
            self._check_int(name, 1, optional=True)
        self._check_bool("enable_prefix_caching", "enable_metrics")
        if not _is_cache_size(self.cache_max_entry_count):
            raise self._wrong(
                "cache_max_entry_count",
                "None, a fraction of memory between 0 and 1, a number of blocks above 1, "
                "or a size such as '512MB' or '2GB'",
            )
        if self.hf_overrides is not None and not isinstance(self.hf_overrides, Mapping):
            raise self._wrong("hf_overrides", "None or a mapping of config.json's keys")


def _is_cache_size(value: object) -> bool:
    if isinstance(value, str):
        try:
            return parse_size(value) > 0
        except ValueError:
            return False
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value) > 1
    return value is None or (isinstance(value, Real) and 0 < float(value) < 1)


@dataclass
class TurbomindEngineConfig(_EngineConfig):
    """The C engine's configuration.

    session_len: most tokens of one sequence, prompt and answer. None: the model's own length,
    lowered where the KV cache is smaller. max_batch_size: sequences that run at once; None: 64.
    cache_max_entry_count: size of the KV cache. None: on the CPU the smallest of half of the
    available memory (the cgroup's limit respected), max_batch_size sequences of session_len, and
    4 GiB. A number below 1: that fraction of available memory, but never more than the sequences
    can use. An integer above 1: blocks. A string such as "512MB" or "2GB" (powers of 1024): bytes.
    cache_block_seq_len: tokens in a block. max_prefill_token_num: token budget of a step; None: 512
    on the CPU. enable_prefix_caching: prompts that begin like an earlier text find its KV.
    dtype, model_format: what the checkpoint says; "hf" (floats), "awq", "gptq" and "gguf" insist on
    that form.
    download_dir, revision: for model ids that are no path. hf_overrides: replaces keys of
    config.json. enable_metrics: False keeps none for `Pipeline.metrics`.
    device: "auto" or "cpu". num_threads: None: what affinity mask and cgroup quota allow.
    target_step_ms: while answers are written, prompts are read in chunks small enough for steps of
    so many milliseconds, by measured times; 0: no bound but max_prefill_token_num.
    max_waiting_requests: a request that finds so many waiting for a seat is refused (QUEUE_FULL);
    None: no bound.
    quant_policy, kv_bits: storage of the KV cache. quant_policy 0 is fp16, 8 int8, 4 int4 (also
    QuantPolicy's names); kv_bits says the same as 16, 8 or 4, or as a pair for keys and values:
    (8, 4) keeps keys at 8 bits where 4 hurt. Codes have a scale and a minimum in fp16 for each
    token and KV head. kv_bits=None: what quant_policy says.
    fast_activations: weights of 4 bits meet activations of 8 bits instead of 16: faster prefill and
    batches, at about llama.cpp's precision. Never on by itself.

    Raises ValueError for a wrong value, UnsupportedError for one this release does not serve.
    """

    dtype: str = _only("auto")
    model_format: str | None = _only(None, "hf", "awq", "gptq", "gguf")
    gemm_input_dtype: str | None = _only(None)
    tp: int = _only(1, hint=_ONE_DEVICE)
    dp: int = _only(1, hint=_ONE_DEVICE)
    cp: int = _only(1, hint=_ONE_DEVICE)
    ep: int = _only(1, hint=_ONE_DEVICE)
    device_num: int | None = _only(None, hint=_ONE_DEVICE)
    attn_tp_size: int | None = _only(None, hint=_ONE_DEVICE)
    attn_cp_size: int | None = _only(None, hint=_ONE_DEVICE)
    attn_dp_size: int | None = _only(None, hint=_ONE_DEVICE)
    mlp_tp_size: int | None = _only(None, hint=_ONE_DEVICE)
    mlp_dp_size: int | None = _only(None, hint=_ONE_DEVICE)
    outer_dp_size: int | None = _only(None, hint=_ONE_DEVICE)
    nnodes: int = _only(1, hint=_ONE_DEVICE)
    node_rank: int = _only(0, hint=_ONE_DEVICE)
    dist_init_addr: str | None = _only(None, hint=_ONE_DEVICE)
    devices: Sequence[int] | None = _only(None, hint=_ONE_DEVICE)
    session_len: int | None = None
    max_batch_size: int | None = None
    cache_max_entry_count: float | int | str | None = None
    cache_chunk_size: int = _only(-1)
    cache_block_seq_len: int = 64
    enable_prefix_caching: bool = True
    cache_checkpoint_interval: int = _only(4096)
    cache_prompt: str = _only("auto")
    cache_prompt_boundary_skip: int = _only(1)
    cache_generation: str = _only("auto")
    quant_policy: int = _kv_quant_policy()
    rope_scaling_factor: float = _only(0.0, hint="use hf_overrides={'rope_scaling': ...}")
    use_logn_attn: bool = _only(False)
    download_dir: str | None = None
    revision: str | None = None
    max_prefill_token_num: int | None = None
    num_tokens_per_iter: int = _only(0, hint="use max_prefill_token_num")
    max_prefill_iters: int = _only(1, hint="use max_prefill_token_num")
    async_: int = _only(1)
    empty_init: bool = _only(False)
    language_model_only: bool = _only(False)
    communicator: str = _only("nccl", hint=_ONE_DEVICE)
    moe_a2a_backend: str = _only("auto", hint=_ONE_DEVICE)
    hf_overrides: Mapping[str, Any] | None = None
    enable_metrics: bool = True
    device: str = "auto"
    num_threads: int | None = None
    fast_activations: bool = False
    target_step_ms: float = 100.0
    max_waiting_requests: int | None = None
    batch_invariant: bool = _only(False, True, hint="the CPU engine always is")
    kv_bits: int | tuple[int, int] | None = None

    def check(self) -> None:
        super().check()
        if self.cache_block_seq_len not in BLOCK_LENS:
            raise self._wrong("cache_block_seq_len", f"one of {BLOCK_LENS}")
        self._check_int("num_threads", 1, optional=True)
        self._check_int("max_waiting_requests", 1, optional=True)
        self._check_number("target_step_ms", 0, 1e6)
        self.stored_kv_bits()

    def stored_kv_bits(self) -> tuple[int, int]:
        """Bits of keys and of values in the KV cache: what kv_bits or else quant_policy says.

        Raises ValueError where they contradict each other.
        """
        by_policy = _POLICY_BITS[QuantPolicy(self.quant_policy)]
        if self.kv_bits is None:
            return by_policy, by_policy
        bits = self.kv_bits
        pair = tuple(bits) if isinstance(bits, (tuple, list)) else (bits, bits)
        whole = all(isinstance(b, Integral) and b in _KV_BITS for b in pair)
        if not whole or len(pair) != 2 or (16 in pair and pair[0] != pair[1]):
            raise self._wrong(
                "kv_bits", "None, 16, 8, 4, or 8 or 4 for keys and values each, such as (8, 4)"
            )
        if self.quant_policy and pair != (by_policy, by_policy):
            raise ValueError(
                f"TurbomindEngineConfig: kv_bits={bits!r} and quant_policy={self.quant_policy!r} "
                f"({by_policy} bits) contradict each other: leave one of them out"
            )
        return int(pair[0]), int(pair[1])


@dataclass
class PytorchEngineConfig(_EngineConfig):
    """LMDeploy's configuration of its PyTorch engine. Until that engine exists here, it is mapped
    onto the C engine's with one warning: see `to_turbomind`. Fields mean what they mean in
    `TurbomindEngineConfig`; block_size is its cache_block_seq_len, device_type its device.

    Raises ValueError for a wrong value, UnsupportedError for one this release does not serve.
    """

    device_field = "device_type"

    dtype: str = _only("auto")
    tp: int = _only(1, hint=_ONE_DEVICE)
    dp: int = _only(1, hint=_ONE_DEVICE)
    dp_rank: int = _only(0, hint=_ONE_DEVICE)
    ep: int = _only(1, hint=_ONE_DEVICE)
    session_len: int | None = None
    max_batch_size: int | None = None
    attn_tp_size: int | None = _only(None, hint=_ONE_DEVICE)
    mlp_tp_size: int | None = _only(None, hint=_ONE_DEVICE)
    moe_tp_size: int | None = _only(None, hint=_ONE_DEVICE)
    cache_max_entry_count: float | int | str | None = None
    prefill_interval: int = _only(16)
    block_size: int = 64
    kernel_block_size: int = _only(-1)
    num_cpu_blocks: int = _only(0, hint="use cache_max_entry_count")
    num_gpu_blocks: int = _only(0, hint="use cache_max_entry_count")
    adapters: Mapping[str, str] | None = _only(None)
    max_prefill_token_num: int | None = None
    cudagraph_capture_batch_sizes: Sequence[int] | None = _only(None)
    thread_safe: bool = _only(False, True, hint="the engine always is")
    enable_prefix_caching: bool = True
    prefix_cache_state_budget: int = _only(0)
    prefix_cache_decode_state_interval: int = _only(0)
    device_type: str = "auto"
    eager_mode: bool = _only(False, True, hint="the CPU engine always is")
    custom_module_map: Mapping[str, str] | None = _only(None)
    download_dir: str | None = None
    revision: str | None = None
    quant_policy: int = _kv_quant_policy()
    distributed_executor_backend: str | None = _only(None, hint=_ONE_DEVICE)
    empty_init: bool = _only(False)
    enable_microbatch: bool = _only(False)
    enable_eplb: bool = _only(False)
    enable_mp_engine: bool = _only(False)
    mp_engine_backend: str = _only("mp")
    model_format: str | None = _only(None, "hf", "awq", "gptq", "gguf")
    enable_metrics: bool = True
    hf_overrides: Mapping[str, Any] | None = None
    language_model_only: bool = _only(False)
    logprobs_mode: str | None = _only(None)
    enable_return_routed_experts: bool = _only(False)
    enable_transfer_obj_ref: bool = _only(False)
    dllm_block_length: int | None = _only(None)
    dllm_unmasking_strategy: str = _only("low_confidence_dynamic")
    dllm_denoising_steps: int | None = _only(None)
    dllm_confidence_threshold: float = _only(0.85)
    role: str = _only("Hybrid")
    migration_backend: str = _only("DLSlime")
    kv_transfer_config: object = _only(None)
    piecewise_cudagraph_max_tokens: int | None = _only(None)

    def check(self) -> None:
        super().check()
        if self.block_size not in BLOCK_LENS:
            raise self._wrong("block_size", f"one of {BLOCK_LENS}")

    def to_turbomind(self) -> TurbomindEngineConfig:
        """The C engine's configuration: fields of the same name that are set, block_size and
        device_type under their other names."""
        self.check()
        names = {f.name for f in fields(TurbomindEngineConfig)}
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name in names}
        config = TurbomindEngineConfig(**{k: v for k, v in values.items() if v})
        return dataclasses.replace(
            config,
            cache_block_seq_len=self.block_size,
            device=self.device_type,
            enable_prefix_caching=self.enable_prefix_caching,
            enable_metrics=self.enable_metrics,
        )


@dataclass
class VisionConfig(_Checked):
    """The vision encoder's configuration. This release serves text: only the defaults."""

    max_batch_size: int = _only(1)
    thread_safe: bool = _only(False, True, hint="the engine always is")


@dataclass
class SpeculativeConfig(_Checked):
    """Speculative decoding: tokens are guessed, computed together in one step, and kept as far as
    they are what would have come one by one. No answer changes, greedy or sampled, by a bit.

    method: "ngram": guesses are copied from where the last 2 to 4 tokens stood before, in the
    prompt or the answer; no second model. Others (eagle, ...) are not served, nor are model and
    dflash_block_size, which belong to them. num_speculative_tokens: most guesses of a step, 1 to
    32. adaptive: guess fewer, or nothing, where measured steps say that it would not pay, and
    nothing while more than 8 sequences run.

    Requests with penalties, or with bad_words of several tokens, run without guesses.
    Raises ValueError for a wrong value, UnsupportedError for one this release does not serve.
    """

    method: str = _only("ngram")
    model: str = _only("", hint="n-grams need none")
    num_speculative_tokens: int = 7
    dflash_block_size: int | None = _only(None)
    adaptive: bool = True

    def check(self) -> None:
        super().check()
        self._check_int("num_speculative_tokens", 1)
        if self.num_speculative_tokens > MAX_DRAFT_TOKENS:
            raise self._wrong("num_speculative_tokens", f"at most {MAX_DRAFT_TOKENS}")
        self._check_bool("adaptive")


@dataclass
class Response:
    """An answer, or in a stream the next piece of one.

    text: the answer. generate_token_len, input_token_len: tokens of answer (so far) and prompt.
    finish_reason: None while a stream goes on; "stop", "length" (max_new_tokens or session_len was
    reached), "abort" (cancelled, Ctrl-C), "error" (error_code and error_message say why).
    token_ids: the answer's tokens without those that stopped it. logprobs: per token, id -> natural
    log of its probability. logits: fp32 [n_rows, vocab_size], with output_logits.
    cached_tokens: tokens of the prompt that were found in the KV cache.
    index: position of the prompt. random_seed: the seed in use. ppl: with return_ppl.
    """

    text: str
    generate_token_len: int
    input_token_len: int
    finish_reason: Literal["stop", "length", "error", "abort"] | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, float]] | None = None
    logits: NDArray[np.float32] | None = None
    last_hidden_state: NDArray[np.float32] | None = None
    index: int = 0
    routed_experts: NDArray[np.int32] | None = None
    cached_tokens: int = 0
    error_code: ResponseType | None = None
    error_message: str | None = None
    random_seed: int | None = None
    ppl: float | None = None

    def extend(self, other: Response) -> Response:
        """Appends the next piece of the same answer and returns self."""
        self.text += other.text
        self.token_ids = self.token_ids + other.token_ids
        self.generate_token_len = other.generate_token_len
        self.input_token_len = other.input_token_len
        self.finish_reason = other.finish_reason
        self.error_code, self.error_message = other.error_code, other.error_message
        self.index, self.cached_tokens = other.index, other.cached_tokens
        if other.logprobs:
            self.logprobs = (self.logprobs or []) + other.logprobs
        if other.logits is not None:
            if self.logits is None:
                self.logits = other.logits
            else:
                import numpy as np

                self.logits = np.concatenate([self.logits, other.logits])
        if other.random_seed is not None:
            self.random_seed = other.random_seed
        if other.ppl is not None:
            self.ppl = other.ppl
        return self
