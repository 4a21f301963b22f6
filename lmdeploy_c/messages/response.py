"""What comes out of a pipeline: answers, whole or in pieces."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Characters of a text, at most, that the repr of a Response shows.
_SHOWN_CHARS = 500


class ResponseType(enum.Enum):
    """`Response.error_code`. All but the last two are LMDeploy's."""

    SUCCESS = enum.auto()
    FINISH = enum.auto()
    ENGINE_STOP_ERROR = enum.auto()
    SESSION_REPEAT = enum.auto()
    SESSION_NOT_EXIST = enum.auto()
    HANDLER_NOT_EXIST = enum.auto()
    INPUT_LENGTH_ERROR = enum.auto()
    INTERNAL_ENGINE_ERROR = enum.auto()
    CANCEL = enum.auto()
    BAD_REQUEST = enum.auto()  # a parameter, a message or the template is wrong
    QUEUE_FULL = enum.auto()  # max_waiting_requests were waiting


@dataclass(repr=False)
class Response:
    """An answer, or in a stream the next piece of one.

    Attributes:
        text: of the answer, or of the piece.
        generate_token_len: tokens of the answer, in a stream those so far.
        input_token_len: tokens of the prompt.
        finish_reason: None while a stream goes on; "stop"; "length" (max_new_tokens or session_len
            was reached); "abort" (cancelled, Ctrl-C, timeout); "error".
        token_ids: the answer's tokens, without those that stopped it.
        logprobs: for each token, id -> natural log of its probability.
        logits: fp32 [n_rows, vocab_size], with output_logits.
        index: position of the prompt among those of the call.
        cached_tokens: tokens of the prompt that were found in the KV cache.
        error_code, error_message: what went wrong, with finish_reason "error".
        random_seed: the seed in use.
        ppl: mean cross-entropy of the prompt (natural log), with return_ppl.
        last_hidden_state, routed_experts: LMDeploy's; always None.
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

    def __repr__(self) -> str:
        """Fits a terminal: of a long text the middle is left out, of lists and arrays all but
        their sizes, and fields that are None."""
        shown = (f"{f.name}={_short(getattr(self, f.name))}" for f in fields(self)
                 if getattr(self, f.name) is not None)  # fmt: skip
        return f"Response({', '.join(shown)})"


def _short(value: object) -> str:
    if isinstance(value, str) and len(value) > _SHOWN_CHARS:
        half = _SHOWN_CHARS // 2
        return f"{value[:half]!r}...{value[-half:]!r} ({len(value)} characters)"
    if isinstance(value, list):
        return f"<{len(value)} tokens>"
    if hasattr(value, "shape"):
        return f"<{value.dtype} {list(value.shape)}>"  # type: ignore[attr-defined]
    return value.name if isinstance(value, enum.Enum) else repr(value)
