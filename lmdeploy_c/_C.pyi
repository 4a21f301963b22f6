"""The C core: models, engines, requests and the scheduler.

Token ids in, token ids out; NumPy arrays.

Every object may be used from any thread. Blocking calls release the GIL. After ``os.fork`` the
methods of Engine, Request and Scheduler raise ``RuntimeError`` in the child.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__version__: str

class CheckpointError(ValueError):
    """A model file is truncated, hostile, of another format, or lacks a tensor."""

class UnsupportedError(ValueError):
    """A known architecture, type or option that this project does not serve."""

#: (name, dtype, shape, path, byte offset in the file, bytes); dtype is "F32", "F16", "BF16" or
#: "I32", the words of packed weights.
TensorSpec = tuple[str, str, tuple[int, ...], str, int, int]

class Gguf:
    """A GGUF v3 file, mapped read-only and validated completely before the constructor returns.

    Raises FileNotFoundError, or CheckpointError naming the field that is wrong.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None: ...
    @property
    def path(self) -> str: ...
    @property
    def metadata(self) -> dict[str, Any]:
        """Key -> value. Arrays of strings are lists; arrays of numbers are NumPy arrays."""
    @property
    def tensors(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name -> (type name such as "Q4_1", shape with rows first, as NumPy writes it)."""
    @property
    def n_bytes(self) -> int:
        """Size of the file in bytes."""
    def dequantize(self, name: str) -> NDArray[np.float32]:
        """The tensor's values in fp32, shape as in `tensors`. Raises KeyError, UnsupportedError."""

class Model:
    """A model's weights in a backend's layout, with the backend's thread pool.

    config: the normalised dict of `lmdeploy_c.model_config`.
    source: a Gguf, or the tensors of safetensors files. Where config's quant_method is not "none",
    a matrix may be packed: its qweight, qzeros and scales (and g_idx) in place of its weight.
    device: "cpu". num_threads: None takes the affinity mask and the cgroup quota.
    progress: called as progress(done_bytes, total_bytes) while weights are packed; an exception
    raised by it (KeyboardInterrupt too) stops the load and is passed on.
    blank: matrices are as large, and of made-up values that come from nowhere: for timing.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        source: Gguf | Sequence[TensorSpec],
        *,
        device: str = "cpu",
        num_threads: int | None = None,
        progress: Callable[[int, int], object] | None = None,
        blank: bool = False,
    ) -> None: ...
    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def device(self) -> str: ...
    @property
    def isa(self) -> str: ...
    @property
    def num_threads(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...

FinishReason = Literal["stop", "length", "error", "abort"]

class Output(NamedTuple):
    """What a request has produced since the last read. `finish_reason` ends it."""

    token_ids: list[int]
    logprobs: list[dict[int, float]] | None  # per token: id -> natural log of its probability
    logits: NDArray[np.float32] | None  # [n_rows, vocab_size]
    finish_reason: FinishReason | None
    error_message: str | None
    error_code: str | None  # of an error: "LMD_INVALID", "LMD_BUSY", "LMD_NO_MEMORY", ...
    ppl: float | None  # mean cross-entropy of the prompt, natural log; with return_ppl
    cached_tokens: int  # prompt tokens that were found in the KV cache

class Request:
    """One request in an engine. Dropping the last reference cancels it."""

    @property
    def request_id(self) -> int: ...
    @property
    def random_seed(self) -> int:
        """The seed in use: the one given, or the one drawn."""
    @property
    def input_token_len(self) -> int: ...
    @property
    def done(self) -> bool:
        """True once an Output with a finish_reason has been read."""
    def read(self, timeout: float | None = None) -> Output | None:
        """Waits for new output (timeout in seconds; None: forever) and takes it.

        Returns None on a timeout. KeyboardInterrupt is raised at once. RuntimeError after the end.
        """
    def fileno(self) -> int:
        """A descriptor that is readable while output waits, for asyncio's add_reader."""
    @property
    def snapshot(self) -> Snapshot | None:
        """What an ended request with keep_snapshot has left for the next turn."""
    def cancel(self) -> None:
        """Ends the request within one step; its last Output has finish_reason "abort"."""

class Engine:
    """Continuous batching over one model, in a thread of its own.

    session_len: most tokens of one sequence, prompt and answer. max_batch_size: slots.
    max_prefill_token_num: the token budget of a step. n_blocks: KV blocks of block_len tokens.
    kv_bits: 16 (fp16), 8 or 4 (codes of kv_encode), a pair of 8 and 4 for keys and values, such as
    (8, 4), or 32 (fp32, for exactness tests).
    fast_activations: weights of 4 bits meet activations of 8 bits per group instead of 16: faster
    prefill and batches, about 1 % more error. Weights of other forms are not touched.
    enable_prefix_caching: texts that begin alike share the KV of their full blocks, of prompts and
    answers alike, until it is evicted; no answer changes by a bit.
    enable_metrics: False keeps no histograms, and `metrics` raises RuntimeError.
    num_speculative_tokens: 1 to 32: a sequence that decodes may compute so many guesses in a step,
    copied from where its last 2 to 4 tokens stood before; what is right is taken, and no answer
    changes by a bit. Requests with penalties or bad_words of several tokens draft nothing, others
    nothing before min_new_tokens. adaptive_speculation: guesses fewer, or none, where that gives
    more tokens a second, by measured step times and by how often guesses were right.
    target_step_ms: while sequences decode, prompts come in chunks small enough for steps of so many
    milliseconds, by measured times; 0: no bound but max_prefill_token_num. max_waiting_requests: a
    request that finds so many waiting is refused; 0: no bound.
    Raises ValueError for a wrong value, MemoryError when the pool cannot be allocated.
    """

    def __init__(
        self,
        model: Model,
        *,
        session_len: int,
        n_blocks: int,
        max_batch_size: int = 64,
        max_prefill_token_num: int = 512,
        block_len: int = 64,
        kv_bits: int | Sequence[int] = 16,
        fast_activations: bool = False,
        enable_prefix_caching: bool = True,
        enable_metrics: bool = True,
        num_speculative_tokens: int = 0,
        adaptive_speculation: bool = True,
        target_step_ms: float = 100.0,
        max_waiting_requests: int = 0,
    ) -> None: ...
    def submit(
        self,
        token_ids: ArrayLike,
        *,
        max_new_tokens: int = 512,
        min_new_tokens: int = 0,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        bad_words: Sequence[Sequence[int]] | None = None,
        stop_words: Sequence[Sequence[int]] | None = None,
        stop_token_ids: Sequence[int] | None = None,
        logprobs: int = 0,
        output_logits: Literal["all", "generation"] | None = None,
        return_ppl: bool = False,
        random_seed: int | None = None,
        snapshot: Snapshot | None = None,
        keep_snapshot: bool = False,
        priority: int = 0,
        timeout: float = 0.0,
    ) -> Request:
        """Queues a request and returns at once. Any thread.

        snapshot: of this engine; its KV serves as far as its text and the prompt agree. A snapshot
        is never used up: two requests may begin with the same. keep_snapshot: `Request.snapshot`
        gives what this request leaves. priority: -1000 to 1000; each step of it passes up to 64
        requests that came before, so that nobody waits for ever. timeout: seconds from now on,
        after which the request ends as "abort" with what it has; 0: none.

        stop_token_ids end the answer and are not part of it; so do stop_words, token sequences.
        A wrong argument gives a Request whose only Output has finish_reason "error". Raises
        RuntimeError once the engine is closed, TypeError for an argument of a wrong type.
        """
    def reject(self, message: str, /) -> Request:
        """A request that failed before it could be submitted (its template raised, say).

        Its only Output has finish_reason "error", this message and the code LMD_INVALID. It counts
        as submitted and as ended by "error". Raises RuntimeError once the engine is closed."""
    def import_snapshot(
        self, token_ids: ArrayLike, layout: str, n_computed: int, kv: NDArray[np.uint8], /
    ) -> Snapshot:
        """A snapshot of a text and of what `Snapshot.export_kv` gave, here or in another process.

        kv: [n_blocks, block_bytes]. KV of another layout or size is not taken: the text is then
        computed again. No other request reads KV that came from outside.
        """
    def stats(self) -> dict[str, int | float]:
        """Counters: n_running, n_waiting, n_free_blocks, n_active_blocks, n_cached_blocks, n_steps,
        n_tokens_prefilled, n_tokens_generated, n_draft_tokens (computed as guesses),
        n_accepted_tokens (of them right), n_preempted, n_allocs (allocations of the core)."""
    def metrics(self) -> dict[str, Any]:
        """Counters and histograms of one moment: `Pipeline.metrics` says which. Any thread.

        Rejected requests count as submitted, and as ended by "error"."""
    def trace_start(self, max_steps: int = 65536) -> None:
        """Starts to record the last max_steps steps. ValueError when a trace runs already."""
    def trace_stop(self) -> dict[str, Any]:
        """Ends the trace. start_ns, end_ns: its time, as all times in nanoseconds of
        time.monotonic_ns. n_lost_steps, n_lost_events: what there was no room for.

        steps: column -> int64 [n_steps]: start_ns, end_ns, n_seqs, n_prefilled and n_decoded
        (tokens), budget, n_free_blocks, n_active_blocks, n_cached_blocks, n_running, n_waiting,
        n_preempted. events: column -> int64 [n_events]: at_ns, kind (0 submitted, 1 started,
        2 first token, 3 ended), request_id, n_tokens (of the prompt; of it found in KV; of the
        prompt; generated), finish_reason (0 none, 1 stop, 2 length, 3 error, 4 abort).
        ValueError when no trace runs."""
    def close(self) -> None:
        """Aborts every request, joins the thread, frees KV and scratch. Idempotent."""

class Snapshot:
    """A text and what of it stands in the engine's KV: an unchanging value.

    Its blocks are held by nobody: what was evicted is computed again. Made by Request.snapshot and
    Engine.import_snapshot.
    """

    @property
    def token_ids(self) -> NDArray[np.int32]:
        """[n] the text, prompt and answer."""
    @property
    def n_computed(self) -> int:
        """How many of them, from the first on, had their KV when the request ended."""
    def export_kv(self) -> tuple[str, int, NDArray[np.uint8]]:
        """(layout, n_computed, kv [n_blocks, block_bytes]): what is left of its KV."""

class StepPlan(NamedTuple):
    """One step's work as NumPy arrays (int32): n sequences, t tokens in all."""

    plan_id: int
    seq_ids: NDArray[np.int64]  # [n]
    slots: NDArray[np.int32]  # [n] seat in the batch
    history_lens: NDArray[np.int32]  # [n] tokens already in KV
    input_lens: NDArray[np.int32]  # [n] tokens of this step
    token_ids: NDArray[np.int32]  # [t]
    positions: NDArray[np.int32]  # [t]
    block_offsets: NDArray[np.int32]  # [n + 1] into block_ids
    block_ids: NDArray[np.int32]
    logits_rows: NDArray[np.int32]  # rows of the step that give a token
    preempted: NDArray[np.int64]  # seq_ids that lost their seat
    waiting: list[tuple[int, str]]  # (seq_id, why it waits)
    copies: NDArray[np.int32]  # [n_copies, 2] blocks copied (from, to) before the step writes

class Scheduler:
    """The engine's scheduler by itself: for tests and notebooks, or to drive another executor."""

    def __init__(
        self,
        *,
        n_blocks: int,
        block_len: int = 64,
        max_batch_size: int = 64,
        max_prefill_token_num: int = 512,
        session_len: int = 8192,
        enable_prefix_caching: bool = True,
    ) -> None: ...
    def add(
        self,
        token_ids: ArrayLike,
        *,
        max_new_tokens: int = 512,
        snapshot: Snapshot | None = None,
        priority: int = 0,
    ) -> int:
        """Queues a sequence and returns its seq_id. ValueError when it cannot ever fit.

        snapshot: of this scheduler; its blocks serve as far as the texts agree. priority: each step
        of it passes up to 64 sequences that were added before.
        """
    def set_budget(self, n_tokens: int) -> None:
        """Tokens that each of the next steps may have: 1 to max_prefill_token_num. ValueError."""
    def snapshot(self, seq_id: int) -> Snapshot:
        """What a living sequence has so far; its blocks stay cached when it ends. KeyError."""
    def schedule(self) -> StepPlan | None:
        """The next step's plan; None when nothing can run now. At most one plan may be in flight
        besides the one returned. MemoryError names a sequence that can never proceed."""
    def update(self, plan_id: int, token_ids: ArrayLike) -> list[tuple[int, str]]:
        """Gives one token for each of the plan's logits_rows, in order, and ends the plan.

        A token of -1 says that its row gave none. Returns (seq_id, "length") of the sequences
        that have all their tokens."""
    def cancel(self, seq_id: int) -> None:
        """Ends a sequence; its blocks return once no plan in flight names them. KeyError."""
    def finish(self, seq_id: int) -> None:
        """Ends a sequence as "stop". KeyError."""
    def check(self) -> None:
        """Asserts every invariant of pool and queues; RuntimeError names the broken one."""
    def stats(self) -> dict[str, int]:
        """n_running, n_waiting, n_free_blocks, n_active_blocks, n_cached_blocks, n_preempted."""

#: Older names of the same types.
Session = Snapshot
Plan = StepPlan

def cpu_info() -> dict[str, Any]:
    """features (words), isas (name -> usable here), isa (in use; None with error), error (why
    LMDEPLOY_C_ISA is refused, or None), usable_threads."""

def alloc_count() -> int:
    """Allocations the core has made in this process."""

def alloc_bytes() -> int:
    """The bytes of these allocations, freed ones included."""

def model_sizes(
    config: dict[str, Any], source: Gguf | Sequence[TensorSpec], *, device: str = "cpu"
) -> dict[str, int]:
    """What a Model of these arguments would take. Reads headers and small vectors, allocates no
    weight, and refuses what a Model refuses.

    weight_bytes: of all matrices, as the backend keeps them. read_bytes: those that one decoded
    token reads: all but an embedding that is not the lm_head too."""

def read_bandwidth(n_bytes: int, num_threads: int = 0, seconds: float = 0.2) -> float:
    """Bytes a second that num_threads threads (0: all usable ones) read together from a buffer of
    n_bytes, in the best of the passes that fit into `seconds`. MemoryError, ValueError."""

def alloc_fail_after(n: int) -> None:
    """Makes the core's n-th allocation from now fail, once (0: off). For fault injection."""

def kv_block_bytes(
    n_layer: int,
    n_kv_head: int,
    head_dim: int,
    block_len: int = 64,
    kv_bits: int | Sequence[int] = 16,
    device: str = "cpu",
) -> int:
    """Bytes of one KV block of all layers, as the device's backend stores it; kv_bits as Engine's.

    Raises ValueError, UnsupportedError for a device that this build lacks.
    """

def kv_encode(
    x: ArrayLike, bits: int
) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16]]:
    """The reference encoding of keys or values: x [n, head_dim] fp32 -> codes [n, head_dim], one a
    byte, scales [n], mins [n]. bits: 8 or 4. A row that is not finite gets NaN. Raises ValueError.
    """

def kv_decode(codes: ArrayLike, scales: ArrayLike, mins: ArrayLike) -> NDArray[np.float32]:
    """scale * code + min in fp32, rounded once: [n, head_dim]. Raises ValueError."""
