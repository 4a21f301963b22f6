"""What a request is refused with: a status, and a body that each family of clients understands."""

from __future__ import annotations

from typing import Any

from ..messages import ErrorCode, Response

#: Seconds after which a client may try again, where that is worth it. The official clients wait as
#: long as they are told, so that it is never long.
RETRY_AFTER = 1

_STATUS = {
    ErrorCode.INVALID_REQUEST: 400,
    ErrorCode.UNAUTHORIZED: 401,
    ErrorCode.MODEL_NOT_FOUND: 404,
    ErrorCode.REQUEST_CONFLICT: 409,
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: 400,
    ErrorCode.UNSUPPORTED_FEATURE: 400,
    ErrorCode.PREPROCESS_FAILED: 400,
    ErrorCode.REQUEST_CANCELLED: 499,
    ErrorCode.ENGINE_UNAVAILABLE: 429,
    ErrorCode.INTERNAL_ERROR: 500,
}
#: OpenAI's type of an error with a status.
_OPENAI_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
#: Anthropic's.
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}


class ApiError(Exception):
    """Why a request is not served.

    status: of HTTP. code: a word for programs. param: the field that is wrong. retry: whether the
    same request may be served a moment later. close: the connection is of no more use.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str = ErrorCode.INVALID_REQUEST.value,
        *,
        param: str | None = None,
        retry: bool = False,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry, self.close = retry, close

    def headers(self) -> list[tuple[bytes, bytes]]:
        found = []
        if self.retry:
            found.append((b"retry-after", str(RETRY_AFTER).encode()))
        if self.status == 401:
            found.append((b"www-authenticate", b"Bearer"))
        if self.close:
            found.append((b"connection", b"close"))
        return found


def failed(response: Response) -> ApiError:
    """The error of an answer with finish_reason "error"."""
    code = ErrorCode(response.error_code or ErrorCode.INTERNAL_ERROR)
    message = response.error_message or "the request failed"
    if code is ErrorCode.CONTEXT_LENGTH_EXCEEDED:
        message = f"this model's maximum context length is exceeded: {message}"
    return ApiError(_STATUS[code], message, code.value, retry=code is ErrorCode.ENGINE_UNAVAILABLE)


def openai_body(error: ApiError, request_id: str) -> dict[str, Any]:
    """OpenAI's `error`, with LMDeploy's fields beside it."""
    kind = _OPENAI_TYPES.get(error.status, "invalid_request_error")
    return {
        "object": "error",
        "message": error.message,
        "type": kind,
        "code": error.status,
        "param": error.param,
        "request_id": request_id,
        "error": {
            "message": error.message,
            "type": kind,
            "param": error.param,
            "code": error.code,
        },
    }


def anthropic_body(error: ApiError, request_id: str) -> dict[str, Any]:
    """Anthropic's."""
    kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error")
    return {
        "type": "error",
        "error": {"type": kind, "message": error.message},
        "request_id": request_id,
    }
