"""Errors as OpenAI's clients know them: `{"error": {message, type, param, code}}` under the HTTP status that fits."""

from __future__ import annotations

import math
from typing import Any

from starlette.responses import JSONResponse

from laban.actors.errors import LabanError

_KINDS: dict[str, tuple[int, str, str | None]] = {
    "INVALID_ARGUMENT": (400, "invalid_request_error", None),
    "OUT_OF_RANGE": (400, "invalid_request_error", "context_length_exceeded"),
    "UNIMPLEMENTED": (400, "invalid_request_error", "unsupported_parameter"),
    "UNAUTHENTICATED": (401, "authentication_error", "invalid_api_key"),
    "PERMISSION_DENIED": (403, "permission_error", None),
    "NOT_FOUND": (404, "invalid_request_error", "not_found"),
    "FAILED_PRECONDITION": (400, "invalid_request_error", None),  # 409 would be tried again
    "RESOURCE_EXHAUSTED": (429, "rate_limit_error", "rate_limit_exceeded"),
    "UNAVAILABLE": (503, "server_error", None),
    "DEADLINE_EXCEEDED": (504, "server_error", "timeout"),
}
RETRY_AFTER_S = {429: 2.0, 503: 1.0}
HIDDEN_FIELDS = ("authorization",)  # of headers: no parameters


class Refused(LabanError):
    """With a status, or a code, of HTTP's own."""

    status = "INVALID_ARGUMENT"

    def __init__(
        self, message: str, *, field: str = "", value: object = None, http_status: int = 400, code: str | None = None
    ) -> None:
        self.http_status, self.code = http_status, code
        super().__init__(message, field=field, value=value)


def error_body(error: LabanError) -> dict[str, Any]:
    _, kind, code = _kind(error)
    param = None if error.field in HIDDEN_FIELDS else error.field or None
    return {"error": {"message": str(error), "type": kind, "param": param, "code": code}}


def error_response(error: LabanError) -> JSONResponse:
    status, _, _ = _kind(error)
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    after_s = error.retry_after_s or RETRY_AFTER_S.get(status)
    if after_s is not None:
        headers |= {"Retry-After": str(math.ceil(after_s)), "Retry-After-Ms": str(math.ceil(after_s * 1000))}
    return JSONResponse(error_body(error), status, headers)


def _kind(error: LabanError) -> tuple[int, str, str | None]:
    if isinstance(error, Refused):
        return error.http_status, "invalid_request_error", error.code
    return _KINDS.get(error.status, (500, "server_error", None))
