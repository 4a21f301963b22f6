"""The C core: models, engines, requests and the scheduler.

Token ids in, token ids out; NumPy arrays.

Every object may be used from any thread. Blocking calls release the GIL. After ``os.fork`` the
methods of Engine, Request, Poller and Scheduler raise ``RuntimeError`` in the child; only
``Engine.close`` does nothing there, for the child owns nothing.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

_T = TypeVar("_T")

__version__: str

class CheckpointError(ValueError):
    """A model file is truncated, hostile, of another format, or lacks a tensor."""

class UnsupportedError(ValueError):
    """A known architecture, type or option that this project does not serve."""

#: Limits. The sizes of an Engine or a Scheduler, each at least 1: session_len, n_blocks, block_len
#: (a device may serve fewer), max_batch_size, max_prefill_token_num.
MAX_SESSION_LEN: int
MAX_BLOCKS: int
MAX_BLOCK_LEN: int
MAX_BATCH_SIZE: int
MAX_PREFILL_TOKEN_NUM: int
#: Threads of a device.
MAX_THREADS: int
#: Tokens that one sequence may draft in a step: Engine's num_speculative_tokens.
MAX_DRAFT_TOKENS: int
#: Of a request: logprobs; priority, and as much below 0; timeout in seconds.
MAX_LOGPROBS: int
MAX_PRIORITY: int
MAX_TIMEOUT: int
#: Steps that a trace may keep: Engine.trace_start's max_steps.
MAX_TRACE_STEPS: int
#: A number that Engine.submit takes -> (lowest, highest) that it may be: temperature, top_p, min_p,
#: top_k, repetition_penalty, presence_penalty, frequency_penalty, logprobs.
SAMPLING_RANGES: Mapping[str, tuple[float, float]]
#: The name of each `kind` of a trace's events, in the order of their numbers, which is the order in
#: which a request passes them: ("submitted", "started", "first_token", "ended").
TRACE_KINDS: tuple[str, ...]
#: The name of each `finish_reason` of a trace's events, in the order of their numbers, as Output
#: has it: (None, "stop", "length", "error", "abort").
FINISH_REASONS: tuple[FinishReason | None, ...]

#: (name, dtype, shape, path, byte offset in the file, bytes); dtype is a type's name as GGUF writes
#: it, such as "BF16", or "I32" and "I8", the words and bytes of packed weights.
TensorSpec = tuple[str, str, tuple[int, ...], str, int, int]

class Gguf:
    """A GGUF file (version 2 or 3), validated completely before the constructor returns. Tensors
    of types that are not served are listed, too. The file stays open as long as the object lives;
    metadata, tensors and specs are of the moment when it was opened.

    Raises FileNotFoundError, OSError, or CheckpointError naming the field that is wrong.
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
    def specs(self) -> list[TensorSpec]:
        """The tensors as a Model's source, to be joined with those of other files."""
    @property
    def n_bytes(self) -> int:
        """Size of the file in bytes."""
    def dequantize(self, name: str) -> NDArray[np.float32]:
        """The tensor's values in fp32, shape as in `tensors`. Raises KeyError, UnsupportedError;
        CheckpointError where the file has become shorter, OSError where it cannot be read."""

class Model:
    """A model's weights in a backend's layout, with the backend's thread pool.

    config: the normalised dict of `lmdeploy_c.model_config`.
    source: a Gguf, or the tensors of several files. Where config's quant_method is not "none",
    a matrix may be packed: its qweight, qzeros and scales (and g_idx) in place of its weight.
    device: "cpu". num_threads: 1 to MAX_THREADS; None: as many as the affinity mask and the cgroup
    quota allow.
    progress: called as progress(done_bytes, total_bytes) while weights are packed; an exception
    raised by it (KeyboardInterrupt too) stops the load and is passed on.
    blank: matrices have the same sizes and made-up values, which are not read: for timing.
    quantize: "w4" or "w8": the floats of the layers' linears become codes of 4 bits with zeros, or
    of 8 bits, in the largest groups of 128, 64 and 32 that divide the rows of all of them, as
    `Quantizer.quantize` makes them without importance. ValueError for a model that has codes
    already, UnsupportedError where no group divides the rows, CheckpointError for a weight that is
    not finite.
    Raises KeyError for a key that config lacks, TypeError for a value of a wrong type, ValueError
    for a wrong value, CheckpointError or UnsupportedError for what source holds, OSError for a file
    that cannot be read, MemoryError. A file that another program changes meanwhile gives an error,
    or wrong weights.
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
        quantize: str | None = None,
    ) -> None: ...
    @property
    def config(self) -> dict[str, Any]:
        """A copy of the normalised config."""
    @property
    def device(self) -> str: ...
    @property
    def isa(self) -> str:
        """The instruction set in use."""
    @property
    def num_threads(self) -> int: ...
    @property
    def weight_bytes(self) -> int:
        """Bytes of all matrices as the backend keeps them."""

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
    #: As `logprobs`, of the prompt's second token on: with prompt_logprobs, in the output that has
    #: the first token, or the end.
    prompt_logprobs: list[dict[int, float]] | None

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
        """Waits for new output (timeout in seconds; None: forever) and returns it.

        Returns None on a timeout. KeyboardInterrupt is raised at once. RuntimeError after the end.
        """
    def fileno(self) -> int:
        """A descriptor of its own that is readable while output waits. ValueError for a request
        that a Poller has."""
    @property
    def snapshot(self) -> Snapshot | None:
        """What a request with keep_snapshot has left for the next turn; None before its end."""
    session = snapshot  #: The older name.
    def cancel(self) -> None:
        """Ends the request within one step; its last Output has finish_reason "abort"."""

class Poller:
    """Waits for the output of several requests at once, of one engine or several.

    A request in it costs no descriptor. One reader at a time.
    """

    def __init__(self) -> None: ...
    def add(self, request: Request, key: int, /) -> None:
        """Waits for this request too, until it is removed. ValueError for a request that has a
        poller or a descriptor."""
    def remove(self, request: Request, /) -> None:
        """Waits for this request no longer."""
    def wait(self, timeout: float | None = None) -> list[int]:
        """The keys of at most 64 requests that have output, [] on a timeout (in seconds; None:
        forever). A key comes once until its request is read. KeyboardInterrupt is raised at once.
        """
    def fileno(self) -> int:
        """A descriptor that is readable while `wait` would give keys at once, for asyncio's
        add_reader."""

class Engine:
    """Continuous batching over one model, in a thread of its own.

    session_len: most tokens of one sequence, prompt and answer. max_batch_size: slots.
    max_prefill_token_num: the token budget of a step. n_blocks: KV blocks of block_len tokens.
    kv_bits: 16 (fp16), 8 or 4 (codes of kv_encode), a pair of 8 and 4 for keys and values, such as
    (8, 4), or 32 (fp32, for exactness tests).
    fast_activations: weights of 4 bits meet activations of 8 bits per group instead of 16: faster
    prefill and batches, about 1 % more error. Weights of other forms are not touched.
    batch_invariant: a sequence's tokens do not depend on the others of a step, nor on how its
    prompt is cut. The CPU always keeps to that; a GPU is slower with it.
    enable_prefix_caching: texts that begin alike share the KV of their full blocks, of prompts and
    answers alike, until it is evicted; no answer changes by a bit.
    enable_metrics: False keeps no histograms, and `metrics` raises RuntimeError.
    num_speculative_tokens: up to MAX_DRAFT_TOKENS, 0: none. A sequence that decodes may compute so
    many drafts in a step: tokens copied from what followed an earlier occurrence of its last 2 to 4
    tokens. The drafts that are right are kept, and no answer changes by a bit. Requests with
    penalties or bad_words of several tokens draft nothing, others nothing before min_new_tokens.
    adaptive_speculation: drafts fewer, or none, where that gives more tokens a second, by measured
    step times and by how often drafts were right.
    target_step_ms: while sequences decode, prompts are computed in chunks small enough for steps of
    so many milliseconds, by measured times; 0: no bound but max_prefill_token_num.
    max_waiting_requests: a request is refused when so many wait already; 0: no bound.
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
        batch_invariant: bool = False,
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
        no_repeat_ngram_size: int = 0,
        logit_bias: Mapping[int, float] | None = None,
        bad_words: Sequence[Sequence[int]] | None = None,
        stop_words: Sequence[Sequence[int]] | None = None,
        stop_token_ids: Sequence[int] | None = None,
        logprobs: int = 0,
        output_logits: Literal["all", "generation"] | None = None,
        return_ppl: bool = False,
        prompt_logprobs: bool = False,
        random_seed: int | None = None,
        snapshot: Snapshot | None = None,
        keep_snapshot: bool = False,
        leader: Request | None = None,
        priority: int = 0,
        timeout: float = 0.0,
        session: Snapshot | None = None,
        keep_session: bool = False,
    ) -> Request:
        """Queues a request and returns at once. Any thread.

        token_ids: integers, one-dimensional. do_sample: False is greedy, whatever temperature,
        top_k, top_p and min_p say; top_k: 0 is off. no_repeat_ngram_size: no n-gram of so many
        tokens comes twice, the prompt's included; 0: off. Ranges of numbers: SAMPLING_RANGES.
        prompt_logprobs: logprobs of the prompt's tokens, too; its KV is then computed afresh.
        random_seed: 0 to 2**64 - 1; None draws one, which `Request.random_seed` tells.
        stop_token_ids end the answer and are not part of it; so do stop_words, token sequences.
        snapshot: of this engine; its KV serves as far as its text and the prompt agree. A snapshot
        is never used up: two requests may begin with the same. keep_snapshot: `Request.snapshot`
        gives what this request leaves. session, keep_session: the older names of these two.
        leader: an earlier request of this engine. This one waits until that one's prompt is in KV,
        and begins with it as far as the two texts agree, or where that one has ended, with the
        snapshot that it left.
        priority: -MAX_PRIORITY to MAX_PRIORITY; each step of it lets a request pass up to 64 that
        came before, so that none waits for ever. timeout: seconds from the call on, after which the
        request ends as "abort" with what it has; 0: none.

        A wrong value gives a Request whose only Output has finish_reason "error". Raises
        RuntimeError once the engine is closed, TypeError for an argument of a wrong type or name.
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
    import_session = import_snapshot  #: The older name.
    def stats(self) -> dict[str, int | float]:
        """Counters. Requests: n_running (have a slot in the batch), n_waiting (submitted, not ended
        and not running). KV blocks: n_free_blocks, n_active_blocks, n_cached_blocks. n_steps.
        Tokens: n_tokens_prefilled, n_tokens_generated; n_prompt_tokens of the prompts that had a
        slot, n_cached_tokens of these found in KV; n_draft_tokens computed as drafts,
        n_accepted_tokens of these right. n_preempted: times that a request lost its slot. n_allocs:
        allocations that the core has made in this process."""
    def metrics(self) -> dict[str, Any]:
        """What `stats` has, and n_submitted, n_ended, prefix_hit_rate and histograms, all of one
        moment: `Pipeline.metrics` says what they are. Any thread.

        n_submitted is n_running, n_waiting and all of n_ended together; rejected requests count as
        submitted, and as ended by "error". Raises RuntimeError with enable_metrics=False."""
    def trace_start(self, max_steps: int = 65536) -> None:
        """Starts to record the last max_steps steps. ValueError when a trace runs already."""
    def trace_stop(self) -> dict[str, Any]:
        """Ends the trace. start_ns, end_ns: its time, as all times in nanoseconds of
        time.monotonic_ns. n_lost_steps, n_lost_events: what there was no room for.

        steps: column -> int64 [n_steps]: start_ns, end_ns, n_seqs, n_prefilled and n_decoded
        (tokens), budget, n_free_blocks, n_active_blocks, n_cached_blocks, n_running, n_waiting,
        n_preempted. events: column -> int64 [n_events]: at_ns, kind (an index of TRACE_KINDS),
        request_id, n_tokens (by kind: of the prompt; of it found in KV; of the prompt; generated),
        finish_reason (an index of FINISH_REASONS).
        ValueError when no trace runs."""
    def close(self) -> None:
        """Aborts every request, joins the thread, frees KV and scratch. May be called again. Does
        nothing in a forked child."""

class Snapshot:
    """A text, and which part of it the KV cache holds: an unchanging value.

    It reserves no blocks: KV that was evicted is computed again. Made by Request.snapshot,
    Engine.import_snapshot and Scheduler.snapshot.
    """

    @property
    def token_ids(self) -> NDArray[np.int32]:
        """[n] the text, prompt and answer."""
    @property
    def n_computed(self) -> int:
        """How many of the tokens, from the first on, had their KV when the request ended."""
    def export_kv(self) -> tuple[str, int, NDArray[np.uint8]]:
        """(layout, n_computed, kv [n_blocks, block_bytes]): what is left of its KV; n_computed
        positions are covered. Raises RuntimeError when the engine is closed, and for a snapshot of
        a Scheduler, which has no KV."""

class StepPlan(NamedTuple):
    """One step's work as NumPy arrays (int32): n sequences, t tokens in all."""

    plan_id: int
    seq_ids: NDArray[np.int64]  # [n]
    slots: NDArray[np.int32]  # [n] place in the batch
    history_lens: NDArray[np.int32]  # [n] tokens already in KV
    input_lens: NDArray[np.int32]  # [n] tokens of this step
    token_ids: NDArray[np.int32]  # [t]
    positions: NDArray[np.int32]  # [t]
    block_offsets: NDArray[np.int32]  # [n + 1] into block_ids
    block_ids: NDArray[np.int32]
    logits_rows: NDArray[np.int32]  # rows of the step that give a token
    preempted: NDArray[np.int64]  # seq_ids that lost their slot
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
        session: Snapshot | None = None,
    ) -> int:
        """Queues a sequence and returns its seq_id. ValueError when it cannot ever fit.

        snapshot: of this scheduler; its blocks serve as far as the texts agree. priority: each step
        of it passes up to 64 sequences that were added before.
        """
    def set_budget(self, n_tokens: int) -> None:
        """Tokens that each of the next steps may have: 1 to max_prefill_token_num. ValueError."""
    def snapshot(self, seq_id: int) -> Snapshot:
        """The text and the KV of a sequence that has not ended; its blocks stay cached when it
        ends. KeyError."""
    session = snapshot  #: The older name.
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
        """n_running, n_waiting, n_free_blocks, n_active_blocks, n_cached_blocks, n_preempted,
        n_prompt_tokens and n_cached_tokens, as Engine.stats has them."""

#: Older names of the same types.
Session = Snapshot
Plan = StepPlan

def cpu_info() -> dict[str, Any]:
    """features (words), isas (name -> usable here), isa (in use; None with error), error (why
    LMDEPLOY_C_ISA is refused, or None), usable_threads."""

def device_info(device: str = "cpu", num_threads: int | None = None) -> dict[str, Any]:
    """Facts about a device ("auto", "cpu", "cuda" or "cuda:N"), as a Model with the same two
    arguments would find it.

    name, isa, num_threads. runs_ahead: a step may begin while the one before runs. free_bytes,
    total_bytes: of its memory, for this process. What a configuration leaves open: max_batch_size,
    max_prefill_token_num, target_step_ms, and for the KV cache kv_fraction of the free memory, but
    no more than kv_max_bytes (0: no bound).

    Raises ValueError, UnsupportedError for a device that cannot be used, with the reason."""

def gpu_count() -> int:
    """How many GPUs there are; none of them is woken.

    Raises UnsupportedError where there is none: no CUDA library, no driver, no GPU."""

def gpu_info(idx: int) -> dict[str, Any]:
    """What GPU number idx is: name, kernels (the family in use), arch (compute capability, 90 for
    9.0), driver_version (CUDA's, 13000 for 13.0), free_bytes, total_bytes. This wakes the GPU, and
    takes some of its memory until the process ends.

    Raises ValueError for a wrong idx, UnsupportedError for a GPU that cannot be used, MemoryError,
    OSError."""

def engine_bytes(
    config: Mapping[str, Any],
    *,
    session_len: int,
    n_blocks: int,
    max_batch_size: int = 64,
    max_prefill_token_num: int = 512,
    block_len: int = 64,
    kv_bits: int | Sequence[int] = 16,
    enable_prefix_caching: bool = True,
    device: str = "cpu",
    num_threads: int | None = None,
) -> int:
    """Bytes that an Engine of these arguments would allocate besides weights and KV blocks, on a
    model with this config, on the host and the device together. The code that allocates computes
    them. Raises what Model and Engine raise for a wrong value."""

class Quantizer:
    """Turns matrices into codes, on num_threads threads (None: all usable ones). Methods release
    the GIL; calls from several threads take turns. Raises ValueError, MemoryError."""

    def __init__(self, num_threads: int | None = None) -> None: ...
    def quantize(
        self,
        weight: ArrayLike,
        *,
        bits: int = 4,
        group_size: int = 128,
        symmetric: bool = False,
        search: bool = True,
        importance: ArrayLike | None = None,
    ) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.uint8]]:
        """A matrix [n_out, n_in] of fp32 or fp16 as codes [n_out, n_in], a byte each, with a scale
        and a zero for each group of columns [n_out, n_in / group_size]: value = scale * (code -
        zero).

        bits: 2 to 8. group_size: a multiple of 16 that divides n_in; -1: the whole row. symmetric:
        every zero is 2**(bits - 1). search: the grid of a group with the least squared error, each
        column's times its importance [n_in], among 14 widths and 3 zeros around the widest grid,
        with the scale fitted to the codes; importance None: each weight's counts its own square and
        the mean square of its row, and the search is quicker, among 5 widths, with scale and zero
        fitted; search False: from the smallest to the largest
        weight, 0 included. Raises TypeError, and ValueError for a weight that is not finite.
        """

    def add_inputs(self, sums: InputSums, rows: ArrayLike) -> None:
        """Adds rows [n, n_cols] that a linear reads, each of weight 1. Raises TypeError, ValueError
        for a number that is not finite, RuntimeError where the sums are in use."""

    def run_layer(
        self,
        model: Model,
        hidden: ArrayLike,
        lengths: ArrayLike,
        sums: Sequence[InputSums | None] | None = None,
        *,
        from_middle: bool = False,
    ) -> NDArray[np.float32]:
        """Hidden states [n_tokens, hidden] of texts, one after another, after the layer of a model
        that has just one. The texts go through it in steps of many tokens.

        lengths: of the texts, each 1 to 2**16 tokens; they add up to n_tokens. sums: five, to which
        is added what these linears read: q, k and v; o; gate and up; down; and the keys, as
        attention compares them, beside the values, heads in order. A token counts 1, but of o and
        of down 1 over the mean square of its residual stream. from_middle: only the feed-forward
        part is run, and hidden is the residual stream before it. Raises TypeError, ValueError for
        other sizes and for what is not finite, RuntimeError where sums are in use, UnsupportedError
        for a device other than the CPU."""

    def regress(
        self, sums: InputSums, products: ArrayLike, *, damp: float = 0.1
    ) -> NDArray[np.float32]:
        """The weight V [n, n_cols] with the least |Y - V X|^2 + d |V|^2, of the sums' inputs X and
        outputs Y that are known by products = Y X^T [n, n_cols]. d: damp, 0 to 10, times the mean
        of X X^T's diagonal. The result has the same bits on every CPU and for every number of
        threads. Raises as `output_errors`, and ValueError where X X^T + d I is not positive
        definite."""

    def run_pair(
        self,
        original: Model,
        drifted: Model,
        hidden: ArrayLike,
        drifted_hidden: ArrayLike,
        lengths: ArrayLike,
        input: int,
        sums: InputSums,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Texts through one layer of two models of the same shape: the original, and one whose
        hidden states have drifted, because it is being quantised. Adds to sums what a linear of the
        latter reads, with `InputSums.wanted`: of q, k and v, gate and up the original's input; of o
        and down what should be added to the drifted residual stream to make it the original's.

        hidden, drifted_hidden: [n_tokens, hidden]. lengths: as `run_layer`. input: all texts go to
        0, what q, k and v read; then to 1, of o; 2, of gate and up; 3, of down. Tokens are weighted
        as by `run_layer`. sums: have n_wanted = hidden. Returns both models' residual streams, as
        the next input takes them: the original's is that after attention from 1 on, and after the
        layer from 3 on; the drifted that after attention from 2 on. Raises as `run_layer`."""

    def output_errors(self, sums: InputSums, differences: ArrayLike) -> NDArray[np.float64]:
        """What differences [n, n_cols] of a weight's rows change in its outputs on the tokens of
        the sums: for each row d gram d^T, the sum of squares. Raises as add_inputs, and ValueError
        where sums keep no gram."""

    def solve(
        self,
        weight: ArrayLike,
        sums: InputSums,
        *,
        bits: int = 4,
        group_size: int = 128,
        symmetric: bool = False,
        minima: bool = False,
        search: bool = True,
        ordered: bool = True,
        rounds: int = 2,
        shrink: float = 0.25,
        damp: float = 0.01,
        scales: ArrayLike | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[Any]]:
        """A matrix as `quantize` gives it, with codes that change its outputs little: the least
        tr((W - V) H (W - V)^T), H being the gram of the inputs. GPTQ (arXiv 2210.17323), then
        rounds of refitted scales and coordinate descent (arXiv 2309.01885). The result has the same
        bits on every CPU and for every number of threads.

        minima: value = scale * code + min, and the third array holds the fp16 minima. search: as
        for `quantize`, columns weighed by H's diagonal. ordered: columns in the order of what they
        carry, group by group. shrink: the part of H that its diagonal replaces, 0 to 1. damp: times
        the mean of the diagonal, added to it. scales: [n_in] what columns are multiplied by first;
        the inputs are divided by them. progress: is called with the rows that are done; an
        exception of it ends the work. Raises TypeError, ValueError, RuntimeError where the sums are
        in use."""

class InputSums:
    """What a linear reads, summed over tokens. gram: with the products of columns, which are
    n_cols**2 floats. n_wanted: numbers that are wanted of each row, whose products with the row are
    kept.

    n_cols: columns. n_tokens: rows that were added. One call at a time uses an object: RuntimeError
    else. Raises ValueError, MemoryError."""

    def __init__(self, n_cols: int, *, gram: bool = True, n_wanted: int = 0) -> None: ...
    @property
    def n_cols(self) -> int: ...
    @property
    def n_tokens(self) -> int: ...
    @property
    def first_token_mass(self) -> float:
        """The part of the sum of all squares, not weighted, that the first row of each call
        carries: of each text's first token. 0 where nothing was added."""

    def squares(self) -> NDArray[np.float64]:
        """[n_cols] of the weighted rows: the gram's diagonal."""

    def absolute(self) -> NDArray[np.float64]:
        """[n_cols] the sum of |x|; no row is weighted."""

    def least(self) -> NDArray[np.float32]:
        """[n_cols] the smallest x; inf where nothing was added."""

    def most(self) -> NDArray[np.float32]:
        """[n_cols] the largest x; -inf where nothing was added."""

    def largest(self) -> NDArray[np.float32]:
        """[n_cols] the largest |x|; no row is weighted."""

    def gram(self) -> NDArray[np.float32] | None:
        """A copy of the sum of x^T x over the weighted rows, [n_cols, n_cols]; None: not kept."""

    def wanted(self) -> NDArray[np.float32] | None:
        """A copy of the sum of y^T x over the weighted rows, y being what is wanted of x:
        [n_wanted, n_cols]; None: not kept."""

    def in_order(self, order: ArrayLike) -> InputSums:
        """New sums with the columns in another order: the new column i is the old order[i]. order:
        [n_cols], each column once. What was wanted is left out. Raises TypeError, ValueError,
        MemoryError."""

    def shrink(self, other: InputSums) -> float:
        """How much of this gram's off-diagonal is chance, judged by another text's: as
        correlations, (1 - shrink) times this one's are the nearest to the other's. 0 to 1.
        ValueError where one keeps no gram."""

def dequantize(spec: TensorSpec) -> NDArray[np.float32]:
    """The values of a tensor of a file in fp32, exactly as its type has them. Raises OSError, and
    CheckpointError, UnsupportedError for what the spec says."""

def alloc_count() -> int:
    """Allocations the core has made in this process."""

def host_memory() -> dict[str, Any]:
    """Bytes of memory: total_bytes and available_bytes of the machine; the limits
    cgroup_limit_bytes, address_space_limit_bytes (ulimit -v) and data_size_limit_bytes (ulimit -d),
    None where it is not set; usable_bytes: what this process may still use. Zeros where nothing
    says it. bound: what leaves the least of these: "machine", "cgroup", "address space" or
    "data size"."""

def alloc_bytes() -> int:
    """The bytes of these allocations, freed ones included."""

def model_sizes(
    config: Mapping[str, Any],
    source: Gguf | Sequence[TensorSpec],
    *,
    device: str = "cpu",
    quantize: str | None = None,
) -> dict[str, int]:
    """What a Model of these arguments would take. Reads headers and small vectors, allocates no
    weight, and refuses what a Model refuses.

    weight_bytes: of all matrices, as the backend keeps them. read_bytes: those that one decoded
    token reads, which are all but an embedding that is not the lm_head too."""

def read_bandwidth(n_bytes: int, num_threads: int = 0, seconds: float = 0.2) -> float:
    """Bytes a second that num_threads threads (0: all usable ones) read together from a buffer of
    n_bytes, in the best of the passes that fit into `seconds`. MemoryError, ValueError."""

def alloc_fail_after(n: int) -> None:
    """Makes the core's n-th allocation from now fail, once (0: none). For tests of what happens
    then."""

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

def watched(function: Callable[[], _T], seconds: float, text: str) -> _T:
    """function(). A thread waits beside it that needs no GIL, and after so many seconds writes the
    text, once, to file descriptor 2: also where the function never returns to Python. Raises what
    the function raises, and ValueError for other seconds than 0 to a million."""

def kv_encode(
    x: ArrayLike, bits: int
) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16]]:
    """The reference encoding of keys or values: x [n, head_dim] fp32 -> codes [n, head_dim], one a
    byte, scales [n], mins [n]. bits: 8 or 4. A row that is not finite gets NaN. Raises ValueError.
    """

def kv_decode(codes: ArrayLike, scales: ArrayLike, mins: ArrayLike) -> NDArray[np.float32]:
    """scale * code + min in fp32, rounded once: [n, head_dim]. Raises ValueError."""
