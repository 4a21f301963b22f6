"""What comes out of a pipeline: answers, whole or in pieces."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Characters of a value, at most, that the repr of a Response shows.
_SHOWN_CHARS = 500


class ErrorCode(str, enum.Enum):
    """LMDeploy's error codes, the values of `Response.error_code`, which are texts. Those without a
    comment are a server's, and none of them comes from a pipeline."""

    INVALID_REQUEST = "invalid_request"  # a parameter or a message is wrong
    UNAUTHORIZED = "unauthorized"
    MODEL_NOT_FOUND = "model_not_found"
    REQUEST_CONFLICT = "request_conflict"  # a session that does not exist, or is busy
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"  # the prompt leaves no room for an answer
    UNSUPPORTED_FEATURE = "unsupported_feature"  # known, and not served by this release
    PREPROCESS_FAILED = "preprocess_failed"  # the chat template or the tokenizer failed
    REQUEST_CANCELLED = "request_cancelled"
    ENGINE_UNAVAILABLE = "engine_unavailable"  # max_waiting_requests were waiting
    INTERNAL_ERROR = "internal_error"  # no memory is left, or a fault of this project


class ResponseType(enum.Enum):
    """LMDeploy's states of a request in its engines. Nothing here gives them: a Response has an
    `ErrorCode`."""

    SUCCESS = enum.auto()
    FINISH = enum.auto()
    ENGINE_STOP_ERROR = enum.auto()
    SESSION_REPEAT = enum.auto()
    SESSION_NOT_EXIST = enum.auto()
    HANDLER_NOT_EXIST = enum.auto()
    INPUT_LENGTH_ERROR = enum.auto()
    INTERNAL_ENGINE_ERROR = enum.auto()
    CANCEL = enum.auto()
    PREFIX_CACHE_CONFLICT = enum.auto()
    NO_QUEUE = enum.auto()
    NOT_SUPPORTED = enum.auto()
    OUT_OF_MEMORY = enum.auto()


@dataclass(repr=False)
class Response:
    """An answer, or in a stream the next piece of one. The last piece of a stream has a
    finish_reason and nothing else that is new, as in LMDeploy.

    Printing it shows LMDeploy's fields, a line each, and of the others those that are set.

    Attributes:
        text: of the answer, or of the piece.
        generate_token_len: tokens of the answer, in a stream those so far.
        input_token_len: tokens of the prompt.
        finish_reason: None while a stream goes on; "stop"; "length" (max_new_tokens or session_len
            was reached); "abort" (cancelled, Ctrl-C, timeout); "error".
        token_ids: the answer's tokens, without those that stopped it.
        logprobs: for each token, id -> natural log of its probability: the softmax of the model's
            raw logits, before temperature, penalties, logit_bias, bans, top_k, top_p and min_p.
        logits: fp32 [n_rows, vocab_size], with output_logits; contiguous and writable, so that
            `torch.from_numpy` takes it without a copy (see `to_torch`).
        index: position of the prompt among those of the call.
        cached_tokens: tokens of the prompt that were found in the KV cache.
        error_code, error_message: what went wrong, with finish_reason "error"; error_code is a
            value of `ErrorCode`, a text.
        random_seed: the seed in use.
        ppl: mean cross-entropy of the prompt (natural log), with return_ppl.
        choice: in a stream with GenerationConfig.n > 1, which of the prompt's answers it is of.
        choices: with GenerationConfig.n > 1, all n answers, and the other attributes are those of
            the first of them; else empty, and in a stream too.
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
    error_code: str | None = None
    error_message: str | None = None
    random_seed: int | None = None
    ppl: float | None = None
    choice: int = 0
    choices: list[Response] = field(default_factory=list)

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

    def pieces(self) -> list[Response]:
        """What a stream shows for this piece: where it ends an answer and has content too, the
        content and then the end. token_ids of the end are empty, its logprobs and logits None."""
        if self.finish_reason is None or not (self.text or self.token_ids):
            return [self]
        content = dataclasses.replace(self, finish_reason=None)
        end = dataclasses.replace(self, text="", token_ids=[], logprobs=None, logits=None)
        return [content, end]

    def raise_for_error(self) -> Response:
        """Returns the Response itself, unless it or one of its choices has finish_reason "error":
        then raises `RequestError`, so that `pipe(prompt).raise_for_error().text` is an answer."""
        for answer in (self, *self.choices):
            if answer.finish_reason == "error":
                raise RequestError(answer)
        return self

    def to_torch(self) -> Any:
        """A copy of the Response whose logits, and those of its choices, are torch tensors as in
        LMDeploy. They share the arrays' memory. Raises ImportError where torch is missing."""
        torch = import_module("torch")
        logits = None if self.logits is None else torch.from_numpy(self.logits)
        choices = [choice.to_torch() for choice in self.choices]
        return dataclasses.replace(self, logits=logits, choices=choices)

    def __str__(self) -> str:
        return "\n".join(f"{name}={value}" for name, value in self._lines(self.text))

    def __repr__(self) -> str:
        """As `str`, but it fits a terminal: of a long value the middle is left out."""
        return "\n".join(f"{name}={_short(v)}" for name, v in self._lines(repr(self.text)))

    def _lines(self, text: str) -> list[tuple[str, str]]:
        """(name, value as text): LMDeploy's lines in its order, then what is set of the others."""
        lines = [("text", text)]
        for name in ("input_token_len", "generate_token_len"):
            lines.append((name, str(getattr(self, name))))
        lines.append(("finish_reason", f'"{self.finish_reason}"'))
        for name in ("token_ids", "logprobs"):
            lines.append((name, str(getattr(self, name))))
        for name in ("logits", "last_hidden_state", "routed_experts"):
            value = getattr(self, name)
            if value is not None:
                lines.append((f"{name}.shape", str(value.shape)))
            lines.append((name, str(value)))
        for name in ("error_code", "error_message", "ppl"):
            if getattr(self, name) is not None:
                lines.append((name, str(getattr(self, name))))
        if self.choices:
            lines.append(("choices", str([choice.text for choice in self.choices])))
        return lines


class RequestError(RuntimeError):
    """A request has failed: what `Response.raise_for_error` raises.

    Attributes:
        response: its Response. code, message: the error_code and error_message of that.
    """

    def __init__(self, response: Response) -> None:
        self.response = response
        self.code, self.message = response.error_code, response.error_message
        super().__init__(f"request {response.index} failed ({self.code}): {self.message}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.response,)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or a notebook's stop, has ended a call. Its requests are cancelled, a session keeps
    its turn as far as it came, and the pipeline goes on. Every `except KeyboardInterrupt` sees it.

    Attributes:
        responses: what the call has not given any more. Of a call that returns answers: one for
            each prompt, in order, as far as it came, with finish_reason "abort" unless it was
            complete. Of a stream: the answers that were being written. Of `get_ppl`: those whose
            ppl is known.
    """

    def __init__(self, responses: Sequence[Response] = ()) -> None:
        super().__init__("interrupted: the answers so far are in `responses` of this exception")
        self.responses = list(responses)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.responses,)


def _short(value: str) -> str:
    if len(value) <= _SHOWN_CHARS:
        return value
    half = _SHOWN_CHARS // 2
    return f"{value[:half]} ... {value[-half:]} ({len(value)} characters)"
