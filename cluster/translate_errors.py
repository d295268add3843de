"""Errors to google.rpc.Status and back: the one place that knows both."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from laban.actors import errors
from laban.actors.errors import LabanError, of_status, shorten
from laban.cluster.workflow.diagnostics import Diagnostic, WorkflowErrors
from laban.proto import laban_pb2 as pb

DOMAIN = "laban"
STATUS_KEY = "grpc-status-details-bin"
RETRY_AFTER_S = {"UNAVAILABLE": 1, "RESOURCE_EXHAUSTED": 2}

# gRPC's metadata may have 8 KiB in all, with the message percent-encoded and the details in base64.
MAX_MESSAGE_CHARS = 300
MAX_TEXT_CHARS = 150
MAX_DETAIL_BYTES = 2_400

_KINDS: dict[str, type[LabanError]] = {
    re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).upper(): kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, LabanError)
}
_REASONS = {kind: reason for reason, kind in _KINDS.items()}


class Shown(str):
    """A value that came as it was shown, not as it was: `repr` is the text itself."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def error_to_status(error: LabanError) -> Status:
    """The status of a failed call: code, message and details, small enough for gRPC's metadata."""
    code = _code_of(error.status)
    status = Status(code=code.value[0], message=_cut(_summary(error), MAX_MESSAGE_CHARS))
    diagnosed = isinstance(error, WorkflowErrors)  # then what matters is in the diagnostics
    room = MAX_TEXT_CHARS if diagnosed else MAX_MESSAGE_CHARS
    metadata = {"message": _cut(error.message, room), "field": _cut(error.field), "value": _value_text(error.value)}
    reason = next((_REASONS[kind] for kind in type(error).__mro__ if kind in _REASONS), "LABAN_ERROR")
    details: list[Message] = [
        ErrorInfo(reason=reason, domain=DOMAIN, metadata={key: text for key, text in metadata.items() if text})
    ]
    delay_s = error.retry_after_s or RETRY_AFTER_S.get(error.status)
    if delay_s is not None:
        delay = Duration()
        delay.FromMilliseconds(math.ceil(delay_s * 1000))
        details.append(RetryInfo(retry_delay=delay))
    if isinstance(error, WorkflowErrors):
        details += _diagnostic_details(error.diagnostics)
    elif error.field:
        found = ((each.field, str(LabanError(each.message, value=each.value))) for each in (error, *error.others))
        details.append(_bad_request(found, room if not error.others else MAX_TEXT_CHARS))
    status.details.extend(_packed(details))
    return status


def error_from_status(code: grpc.StatusCode, message: str, trailing: Iterable[tuple[str, Any]] | None) -> LabanError:
    """The error that a failed call's code, message and trailing metadata stand for."""
    for key, value in trailing or ():
        if key == STATUS_KEY:
            try:
                rebuilt = _rebuild(Status.FromString(value))
            except DecodeError:
                break
            if rebuilt is not None:
                return rebuilt
    error = of_status(code.name)(message or code.name)
    if error.status != code.name:
        error.status = code.name
    return error


def trailing_metadata(status: Status) -> tuple[tuple[str, bytes], ...]:
    return ((STATUS_KEY, status.SerializeToString()),)


def _code_of(name: str) -> grpc.StatusCode:
    return grpc.StatusCode[name] if name in grpc.StatusCode.__members__ else grpc.StatusCode.INTERNAL


def _summary(error: LabanError) -> str:
    if not isinstance(error, WorkflowErrors):
        return str(error) + (f" (and {len(error.others)} more)" if error.others else "")
    found = [diagnostic for diagnostic in error.diagnostics if diagnostic.severity == "error"]
    return str(found[0]) + (f" (and {len(found) - 1} more)" if len(found) > 1 else "")


def _cut(text: str, limit: int = MAX_TEXT_CHARS) -> str:
    """`text` in at most `limit` characters and twice as many bytes, cut in the middle. `limit` is 40 or more."""
    if len(text) > limit:
        text = f"{text[: limit * 2 // 3]} ... {text[-(limit // 4) :]}"
    data = text.encode("utf-8", "replace")
    if len(data) > 2 * limit:
        data = data[: limit * 4 // 3] + b" ... " + data[-(limit // 2) :]
    return data.decode("utf-8", "ignore")


def _value_text(value: object) -> str:
    """The value as JSON where that is short, as it is shown otherwise; "" for none."""
    if value is None:
        return ""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = ""
    return text if 0 < len(text) <= MAX_TEXT_CHARS else _cut(shorten(value))


def _value_from(text: str) -> object:
    if not text:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return Shown(text)


def _bad_request(violations: Iterable[tuple[str, str]], limit: int = MAX_TEXT_CHARS) -> BadRequest:
    return BadRequest(
        field_violations=[
            BadRequest.FieldViolation(field=_cut(field), description=_cut(description, limit))
            for field, description in violations
        ]
    )


def _diagnostic_details(diagnostics: Iterable[Diagnostic]) -> list[Message]:
    """As many as fit, errors first; how many were left out is said."""
    ordered = sorted(diagnostics, key=lambda diagnostic: diagnostic.severity != "error")
    found = pb.Diagnostics()
    violations: list[tuple[str, str]] = []
    size = 0
    for number, diagnostic in enumerate(ordered):
        message = pb.Diagnostic(
            severity=diagnostic.severity,
            path=_cut(diagnostic.path),
            line=diagnostic.line or 0,
            column=diagnostic.column or 0,
            message=_cut(diagnostic.message),
            value=_value_text(diagnostic.value),
            expected=_cut(diagnostic.expected),
            code=diagnostic.code,
            source=_cut(diagnostic.source, 80),
        )
        size += 2 * message.ByteSize()
        if size > MAX_DETAIL_BYTES and number:
            found.omitted = len(ordered) - number
            break
        found.diagnostics.append(message)
        if diagnostic.severity == "error":
            violations.append((diagnostic.path or "workflow", str(diagnostic)))
    return [_bad_request(violations), found]


def _packed(details: Iterable[Message]) -> list[AnyMessage]:
    packed = []
    for detail in details:
        item = AnyMessage()
        item.Pack(detail)
        packed.append(item)
    return packed


def _rebuild(status: Status) -> LabanError | None:
    """The error that `error_to_status` wrote down; None if it was not written by us."""
    info = ErrorInfo()
    diagnostics = pb.Diagnostics()
    for detail in status.details:
        if detail.Is(ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(pb.Diagnostics.DESCRIPTOR):
            detail.Unpack(diagnostics)
    if info.domain != DOMAIN:
        return None
    if any(item.severity == "error" for item in diagnostics.diagnostics):
        return WorkflowErrors([_diagnostic(item) for item in diagnostics.diagnostics])
    kind = _KINDS.get(info.reason, LabanError)
    error = kind(
        info.metadata.get("message", status.message),
        field=info.metadata.get("field", ""),
        value=_value_from(info.metadata.get("value", "")),
    )
    name = next((code.name for code in grpc.StatusCode if code.value[0] == status.code), error.status)
    if error.status != name:
        error.status = name
    return error


def _diagnostic(item: pb.Diagnostic) -> Diagnostic:
    severity = item.severity
    return Diagnostic(
        "error" if severity == "error" else "warning" if severity == "warning" else "info",
        item.path,
        item.line or None,
        item.column or None,
        item.message,
        _value_from(item.value),
        item.expected,
        "not_built" if item.code == "not_built" else "invalid",
        item.source,
    )
