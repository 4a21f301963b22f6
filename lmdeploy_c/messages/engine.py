"""How a model is loaded and its engine sized: the configurations of the engines."""

from __future__ import annotations

import dataclasses
import enum
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from ..units import parse_size
from .checks import Checked, only
from .limits import BLOCK_LENS, MAX_DRAFT_TOKENS, MAX_TARGET_STEP_MS

_ONE_DEVICE = "one device"
#: "cuda:1" is the second GPU.
_DEVICES = re.compile(r"auto|cpu|cuda(:\d{1,3})?")


class QuantPolicy(enum.IntEnum):
    """Storage of the KV cache. This release serves NONE (fp16), INT8 and INT4."""

    NONE = 0
    INT4 = 4
    INT8 = 8
    FP8 = 16
    FP8_E5M2 = 17
    TURBO_QUANT = 42


#: quant_policy -> bits of the values in the KV cache, and the bits that kv_bits may name.
_POLICY_BITS = {QuantPolicy.NONE: 16, QuantPolicy.INT8: 8, QuantPolicy.INT4: 4}
_KV_BITS = (16, 8, 4)


def _quant_policy() -> int:
    """The field quant_policy, a number as LMDeploy's."""
    return only(0, int(QuantPolicy.INT4), int(QuantPolicy.INT8), hint="fp16, int4 or int8")


class _EngineConfig(Checked):
    """The checks that both engine configurations share."""

    device_field = "device"
    cache_max_entry_count: float | int | str | None
    download_dir: str | None
    revision: str | None
    hf_overrides: Mapping[str, Any] | None

    def check(self) -> None:
        super().check()
        device = getattr(self, self.device_field)
        if not isinstance(device, str) or not _DEVICES.fullmatch(device):
            raise self._wrong(self.device_field, "'auto', 'cpu', 'cuda' or 'cuda:N'")
        for name in ("session_len", "max_batch_size", "max_prefill_token_num"):
            self._check_int(name, 1, optional=True)
        self._check_bool("enable_prefix_caching", "enable_metrics")
        if not _is_cache_size(self.cache_max_entry_count):
            raise self._wrong(
                "cache_max_entry_count",
                "None, a fraction of memory between 0 and 1, a number of blocks, "
                "or a size such as '512MB' or '2GB'",
            )
        if not isinstance(self.download_dir, (str, os.PathLike, type(None))):
            raise self._wrong("download_dir", "None or a folder")
        if not isinstance(self.revision, (str, type(None))):
            raise self._wrong("revision", "None or the name of a version")
        if self.hf_overrides is not None and not isinstance(self.hf_overrides, Mapping):
            raise self._wrong("hf_overrides", "None or a mapping of config.json's keys")


def _is_cache_size(value: object) -> bool:
    if isinstance(value, str):
        try:
            return parse_size(value) > 0
        except ValueError:
            return False
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value) >= 1
    return value is None or (isinstance(value, Real) and 0 < float(value) < 1)


@dataclass
class TurbomindEngineConfig(_EngineConfig):
    """The C engine's configuration. Names and order are LMDeploy's; the README lists defaults that
    differ from LMDeploy's.

    Raises ValueError for a wrong value, UnsupportedError for one this release does not serve.

    Attributes:
        model_format: None takes what the checkpoint has; "hf" (floats), "awq", "gptq" and "gguf"
            insist on that form.
        session_len: most tokens of one sequence, prompt and answer. None: the model's own length,
            lowered where the KV cache is smaller.
        max_batch_size: sequences that run at once. None: as the device has it, 64 on the CPU, 256
            on a GPU.
        cache_max_entry_count: size of the KV cache. A number below 1: that fraction of the device's
            available memory, but never more than the sequences can use. An integer: blocks.
            A string such as "512MB" or "2GB" (powers of 1024): bytes. None: on the CPU the smallest
            of half of the available memory (the cgroup's limit respected), max_batch_size sequences
            of session_len, and 4 GiB; on a GPU four fifths of what the model leaves free, but never
            more than these sequences. On the CPU it is reserved at the load, and takes memory as it
            is filled: a process that answers little stays small.
        cache_block_seq_len: tokens in a block of the KV cache: 16, 32, 64, 128 or 256.
        enable_prefix_caching: prompts that begin like an earlier text find its KV.
        quant_policy: storage of the KV cache: 0 is fp16, 8 int8, 4 int4 (also QuantPolicy's names).
        download_dir: where models given by an id are downloaded to.
        revision: the version of a model given by an id: a branch, a tag or a commit.
        max_prefill_token_num: token budget of a step. None: as the device has it, 512 on the CPU,
            8192 on a GPU.
        hf_overrides: replaces keys of config.json.
        enable_metrics: False keeps none for `Pipeline.metrics`.
        device: "cpu", "cuda" (the first GPU), "cuda:1" (the second one), or "auto": the first GPU
            that can be used, where it serves the model and has the memory for it, or else the CPU.
            A GPU that is named and cannot be used is refused when a model is loaded, with the
            reason.
        num_threads: of the host: on the CPU they compute, for a GPU they pack the weights. None
            takes what the affinity mask and the cgroup's quota allow.
        fast_activations: weights of 4 bits are multiplied by activations of 8 bits instead of 16:
            faster prefill and batches, at about llama.cpp's precision. Never on by itself.
        target_step_ms: while answers are written, prompts are read in chunks small enough for steps
            of so many milliseconds, by measured times. 0: no bound but max_prefill_token_num.
            None: 100.
        batch_invariant: a sequence's tokens do not depend on the others that run with it. The CPU
            always keeps to that; a GPU is slower with it.
        max_waiting_requests: a request that finds so many waiting is refused, with error_code
            "engine_unavailable". None: no bound.
        kv_bits: what quant_policy says as 16, 8 or 4, or as a pair for keys and values: (8, 4)
            keeps keys at 8 bits where 4 bits hurt. None: as quant_policy. Codes of 8 and 4 bits
            have a scale and a minimum in fp16 for each token and KV head.
        filename: which GGUF file of a repository or a folder: its name, or a pattern such as
            "*q8_0.gguf". Of a model in parts any part. None: the only one, or of a repository
            Q4_K_M, else the nearest to it.
        quantize: "w4" or "w8" makes codes of 4 or 8 bits of the floats of the layers' linears while
            they are loaded, without calibration; embedding, norms and lm_head stay as they are.
            Groups are the largest of 128, 64 and 32 that divide the rows of all linears. None: as
            the checkpoint has them.
        others: LMDeploy's; accepted at their defaults and refused, never ignored, otherwise.
    """

    dtype: str = only("auto")
    model_format: str | None = only(None, "hf", "awq", "gptq", "gguf")
    gemm_input_dtype: str | None = only(None)
    tp: int = only(1, hint=_ONE_DEVICE)  # devices that share each layer
    dp: int = only(1, hint=_ONE_DEVICE)  # devices that have a model each
    cp: int = only(1, hint=_ONE_DEVICE)  # devices that share the context
    ep: int = only(1, hint=_ONE_DEVICE)  # devices that share the experts
    device_num: int | None = only(None, hint=_ONE_DEVICE)
    attn_tp_size: int | None = only(None, hint=_ONE_DEVICE)
    attn_cp_size: int | None = only(None, hint=_ONE_DEVICE)
    attn_dp_size: int | None = only(None, hint=_ONE_DEVICE)
    mlp_tp_size: int | None = only(None, hint=_ONE_DEVICE)
    mlp_dp_size: int | None = only(None, hint=_ONE_DEVICE)
    outer_dp_size: int | None = only(None, hint=_ONE_DEVICE)
    nnodes: int = only(1, hint=_ONE_DEVICE)
    node_rank: int = only(0, hint=_ONE_DEVICE)
    dist_init_addr: str | None = only(None, hint=_ONE_DEVICE)
    devices: Sequence[int] | None = only(None, hint=_ONE_DEVICE)
    session_len: int | None = None
    max_batch_size: int | None = None
    cache_max_entry_count: float | int | str | None = None
    cache_chunk_size: int = only(-1)  # blocks allocated at a time; here all at once
    cache_block_seq_len: int = 64
    enable_prefix_caching: bool = True
    cache_checkpoint_interval: int = only(4096)  # of models with a state beside the KV cache
    cache_prompt: str = only("auto")  # which states of a prompt such a model keeps
    cache_prompt_boundary_skip: int = only(1)
    cache_generation: str = only("auto")  # and which of an answer
    quant_policy: int = _quant_policy()
    rope_scaling_factor: float = only(0.0, hint="use hf_overrides={'rope_scaling': ...}")
    use_logn_attn: bool = only(False)
    download_dir: str | None = None
    revision: str | None = None
    max_prefill_token_num: int | None = None
    num_tokens_per_iter: int = only(0, hint="use max_prefill_token_num")
    max_prefill_iters: int = only(1, hint="use max_prefill_token_num")
    async_: int = only(1)
    empty_init: bool = only(False)  # weights that are set later
    language_model_only: bool = only(False)  # without the vision encoder; there is none
    communicator: str = only("nccl", hint=_ONE_DEVICE)
    moe_a2a_backend: str = only("auto", hint=_ONE_DEVICE)
    hf_overrides: Mapping[str, Any] | None = None
    enable_metrics: bool = True
    device: str = "auto"
    num_threads: int | None = None
    fast_activations: bool = False
    target_step_ms: float | None = None
    max_waiting_requests: int | None = None
    batch_invariant: bool = False
    kv_bits: int | tuple[int, int] | None = None
    filename: str | None = None
    quantize: str | None = only(None, "w4", "w8")

    def check(self) -> None:
        super().check()
        if self.cache_block_seq_len not in BLOCK_LENS:
            raise self._wrong("cache_block_seq_len", f"one of {BLOCK_LENS}")
        self._check_bool("fast_activations", "batch_invariant")
        self._check_int("num_threads", 1, optional=True)
        if self.filename is not None and not isinstance(self.filename, str):
            raise self._wrong("filename", "None or the name of a GGUF file")
        self._check_int("max_waiting_requests", 1, optional=True)
        if self.target_step_ms is not None:
            self._check_number("target_step_ms", 0, MAX_TARGET_STEP_MS)
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
    """LMDeploy's configuration of its PyTorch engine. This release has no such engine: it maps the
    configuration onto the C engine's, with one warning (see `to_turbomind`).

    Raises ValueError for a wrong value, UnsupportedError for one this release does not serve.

    Attributes:
        block_size: cache_block_seq_len of `TurbomindEngineConfig`.
        device_type: device of `TurbomindEngineConfig`.
        session_len, max_batch_size, cache_max_entry_count, max_prefill_token_num,
        enable_prefix_caching, download_dir, revision, quant_policy, model_format, enable_metrics,
        hf_overrides: as in `TurbomindEngineConfig`.
        others: LMDeploy's; accepted at their defaults and refused, never ignored, otherwise.
    """

    device_field = "device_type"

    dtype: str = only("auto")
    tp: int = only(1, hint=_ONE_DEVICE)  # devices that share each layer
    dp: int = only(1, hint=_ONE_DEVICE)  # devices that have a model each
    dp_rank: int = only(0, hint=_ONE_DEVICE)
    ep: int = only(1, hint=_ONE_DEVICE)  # devices that share the experts
    session_len: int | None = None
    max_batch_size: int | None = None
    attn_tp_size: int | None = only(None, hint=_ONE_DEVICE)
    mlp_tp_size: int | None = only(None, hint=_ONE_DEVICE)
    moe_tp_size: int | None = only(None, hint=_ONE_DEVICE)
    cache_max_entry_count: float | int | str | None = None
    prefill_interval: int = only(16)  # steps between two prefills; here they share steps
    block_size: int = 64
    kernel_block_size: int = only(-1)
    num_cpu_blocks: int = only(0, hint="use cache_max_entry_count")
    num_gpu_blocks: int = only(0, hint="use cache_max_entry_count")
    adapters: Mapping[str, str] | None = only(None)  # LoRA: name -> path
    max_prefill_token_num: int | None = None
    cudagraph_capture_batch_sizes: Sequence[int] | None = only(None)
    thread_safe: bool = only(False, True, hint="the engine always is")
    enable_prefix_caching: bool = True
    prefix_cache_state_budget: int = only(0)  # of models with a state beside the KV cache
    prefix_cache_decode_state_interval: int = only(0)
    device_type: str = "auto"
    eager_mode: bool = only(False, True, hint="the CPU engine always is")
    custom_module_map: Mapping[str, str] | None = only(None)
    download_dir: str | None = None
    revision: str | None = None
    quant_policy: int = _quant_policy()
    distributed_executor_backend: str | None = only(None, hint=_ONE_DEVICE)
    empty_init: bool = only(False)  # weights that are set later
    enable_microbatch: bool = only(False)
    enable_eplb: bool = only(False)  # moves experts between devices
    enable_mp_engine: bool = only(False)  # an engine in a process of its own
    mp_engine_backend: str = only("mp")
    model_format: str | None = only(None, "hf", "awq", "gptq", "gguf")
    enable_metrics: bool = True
    hf_overrides: Mapping[str, Any] | None = None
    language_model_only: bool = only(False)  # without the vision encoder; there is none
    logprobs_mode: str | None = only(None)
    enable_return_routed_experts: bool = only(False)  # of mixtures of experts
    enable_transfer_obj_ref: bool = only(False)
    dllm_block_length: int | None = only(None)  # of diffusion models, as the next three
    dllm_unmasking_strategy: str = only("low_confidence_dynamic")
    dllm_denoising_steps: int | None = only(None)
    dllm_confidence_threshold: float = only(0.85)
    role: str = only("Hybrid")  # of disaggregated serving, as the next two
    migration_backend: str = only("DLSlime")
    kv_transfer_config: object = only(None)
    piecewise_cudagraph_max_tokens: int | None = only(None)

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
class VisionConfig(Checked):
    """The vision encoder's configuration. This release serves text: only the defaults."""

    max_batch_size: int = only(1)
    thread_safe: bool = only(False, True, hint="the engine always is")


@dataclass
class SpeculativeConfig(Checked):
    """Speculative decoding: draft tokens are computed together in one step, and kept as far as they
    are the tokens that would have come one by one. No answer changes, greedy or sampled, by a bit.

    Requests with penalties, or with bad_words of several tokens, run without drafts.
    Raises ValueError for a wrong value, UnsupportedError for one this release does not serve.

    Attributes:
        method: "ngram": drafts continue the text as it went on where the last 2 to 4 tokens were
            before, in the prompt or the answer; no second model. Others (eagle, ...) are refused.
        model: of other methods; "" alone.
        num_speculative_tokens: most draft tokens of a sequence in a step, 1 to 32.
        dflash_block_size: of another method; None alone.
        adaptive: drafts fewer tokens, or none, where measured steps say that more would not pay,
            and none while more than 8 sequences run.
    """

    method: str = only("ngram")
    model: str = only("", hint="n-grams need none")
    num_speculative_tokens: int = 7
    dflash_block_size: int | None = only(None)
    adaptive: bool = True

    def check(self) -> None:
        super().check()
        self._check_int("num_speculative_tokens", 1)
        if self.num_speculative_tokens > MAX_DRAFT_TOKENS:
            raise self._wrong("num_speculative_tokens", f"at most {MAX_DRAFT_TOKENS}")
        self._check_bool("adaptive")
