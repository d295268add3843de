"""The client's requests: plain Python values into protobuf messages. Raises InvalidInput with the field's path."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, TypedDict, TypeVar, runtime_checkable

from google.protobuf.descriptor import FieldDescriptor

from laban.actors.errors import InvalidInput, NotFound
from laban.cluster.client_files import files_named_in
from laban.cluster.records import Layout, MessageRecord, SessionPlacement
from laban.cluster.translate import enum_number
from laban.cluster.translate_sessions import duration
from laban.cluster.translate_spec import spec_from_dict
from laban.cluster.translate_values import schema_from_python, value_from_python
from laban.proto import laban_pb2 as pb

MAX_TTL_S = 315_576_000_000  # of a protobuf Duration
WHOLE = frozenset({"max_tokens", "top_k", "seed", "logprobs"})
REAL = frozenset({"temperature", "top_p"})
SAMPLING = (*sorted(WHOLE | REAL), "stop", "forced_text", "drafting")

_PLAIN_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[^\s:/\[\]]+):[0-9]{1,5}")
_SCHEMES = ("dns:", "unix:", "unix-abstract:", "ipv4:", "ipv6:")


@runtime_checkable
class Document(Protocol):
    """A workflow under construction, such as `workflow.builder.Workflow`."""

    def to_dict(self) -> dict[str, Any]: ...


WorkflowSource = str | bytes | PathLike[str] | Mapping[str, Any] | Document
"""YAML text, a file, the document's dict form, or a builder."""

Overrides = Mapping[str | tuple[str, str], Any]
"""`{"answer[bob].max_tokens": 64}` or `{("answer[bob]", "max_tokens"): 64}`. A number may be given as its text."""

M = TypeVar("M")
Placed = str | SessionPlacement | MessageRecord
"""An entry of a session's view: a message's id, the message, or a placement."""


class SubmitOptions(TypedDict, total=False):
    """How to run a workflow. `source_name` is what its errors call the document; `files` are those that it names, by
    their paths as seen from it (given a path, the client reads them itself)."""

    fidelity: str | None
    tolerance: float | None
    seed: int | None
    overrides: Overrides | None
    idempotency_key: str
    source_name: str
    files: Mapping[str, bytes]


class PlaceOptions(TypedDict, total=False):
    """Where a session's message goes, and what it attends to."""

    role: str
    name: str | None
    view: Sequence[Placed]
    layout: Layout
    position: int | None
    fidelity: str
    recompute_share: float


class SamplingOptions(TypedDict, total=False):
    """How text is generated."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: str | Sequence[str]
    forced_text: str
    logprobs: int
    drafting: bool


class DecodeOptions(PlaceOptions, SamplingOptions, total=False):
    """And how it is generated. `prefill` is the text at its start. What comes after it is JSON that follows
    `response_schema`, or one of `choices`, if one of these is given."""

    prefill: str
    response_schema: Mapping[str, Any] | None
    choices: Sequence[str] | None


_NO_SAMPLING = {*PlaceOptions.__annotations__, "prefill", "response_schema", "choices"}


def checked_address(address: str) -> str:
    if not address.startswith(_SCHEMES):
        if _PLAIN_ADDRESS.fullmatch(address) is None:
            raise InvalidInput("expected host:port", field="address", value=address)
        if not 1 <= int(address.rpartition(":")[2]) <= 65_535:
            raise InvalidInput("expected a port from 1 to 65535", field="address", value=address)
    return address


def submit_request(
    workflow: WorkflowSource,
    inputs: Mapping[str, Any] | None = None,
    *,
    fidelity: str | None = None,
    tolerance: float | None = None,
    seed: int | None = None,
    overrides: Overrides | None = None,
    idempotency_key: str = "",
    source_name: str = "",
    files: Mapping[str, bytes] | None = None,
) -> pb.SubmitRequest:
    request = pb.SubmitRequest()
    put(request, "idempotency_key", idempotency_key)
    put(request, "source_name", source_name)
    if isinstance(workflow, PathLike):
        request.yaml = _read(Path(workflow))
        request.source_name = source_name or str(workflow)
        files = {**files_named_in(request.yaml, Path(workflow)), **(files or {})}
    elif isinstance(workflow, bytes):
        request.yaml = workflow
    elif isinstance(workflow, str):
        put(request, "yaml", workflow.encode("utf-8", "surrogatepass"), "yaml")
    elif isinstance(workflow, Mapping):
        request.workflow.CopyFrom(spec_from_dict(workflow))
    elif isinstance(workflow, Document):
        request.workflow.CopyFrom(spec_from_dict(workflow.to_dict()))
    else:
        kind = type(workflow).__name__
        raise InvalidInput("expected YAML text, a path, a dict or a builder", field="workflow", value=kind)
    for name, text in (files or {}).items():
        request.files[name] = text
    for name, value in (inputs or {}).items():
        given = value_from_python(value, f"inputs.{name}")
        try:
            request.inputs[name].CopyFrom(given)
        except (TypeError, ValueError):
            raise InvalidInput("expected names that are valid text", field="inputs", value=name) from None
    if fidelity is not None:
        request.overrides.fidelity = fidelity_of(fidelity, "overrides.fidelity")
    if tolerance is not None:
        put(request.overrides, "tolerance", tolerance, "overrides.tolerance")
    if seed is not None:
        put(request.overrides, "seed", seed, "overrides.seed")
    _put_overrides(request.overrides, overrides or {})
    return request


def fidelity_of(word: str, path: str = "fidelity") -> pb.Fidelity:
    # `mixed` is what a result may be, and nothing to ask for.
    return _enum(pb.Fidelity, word, "FIDELITY_", path, without=("mixed",))  # type: ignore[return-value]


def states_of(states: Iterable[str]) -> list[pb.WorkflowState]:
    return [
        _enum(pb.WorkflowState, state, "WORKFLOW_STATE_", f"states[{place}]")  # type: ignore[misc]
        for place, state in enumerate(states)
    ]


def put_sampling(sampling: pb.Sampling, name: str, value: Any, path: str) -> None:
    """Set one field; a number may be given as its text."""
    if name not in SAMPLING:
        raise InvalidInput(f"no such setting, expected one of {', '.join(SAMPLING)}", field=path)
    if name == "stop":
        stops = [value] if isinstance(value, str) else value
        if not isinstance(stops, list | tuple) or not all(isinstance(stop, str) for stop in stops):
            raise InvalidInput("expected text or a list of texts", field=path, value=value)
        put(sampling, "stop", list(stops), path)
        return
    if name == "drafting" and not isinstance(value, bool):
        if value not in ("true", "false"):
            raise InvalidInput("expected true or false", field=path, value=value)
        value = value == "true"
    if isinstance(value, str) and name != "forced_text":
        try:
            value = int(value) if name in WHOLE else float(value)
        except ValueError:
            expected = "a whole number" if name in WHOLE else "a number"
            raise InvalidInput(f"expected {expected}", field=path, value=value) from None
    put(sampling, name, value, path)


def view_of(view: Sequence[Placed], layout: str, path: str = "view") -> pb.View:
    if not isinstance(view, Iterable) or isinstance(view, str):
        raise InvalidInput("expected a list of messages, their ids or placements", field=path, value=view)
    placements = []
    for place, item in enumerate(view):
        at = f"{path}.placements[{place}]"
        if isinstance(item, str | MessageRecord):
            item = SessionPlacement(item if isinstance(item, str) else item.message_id)
        if not isinstance(item, SessionPlacement):
            raise InvalidInput("expected a message, its id or a placement", field=at, value=item)
        placement = pb.Placement()
        for name in ("message_id", "position", "begin", "end"):
            value = getattr(item, name)
            if value is not None:
                put(placement, name, value, f"{at}.{name}")
        placements.append(placement)
    return pb.View(placements=placements, layout=_enum(pb.Layout, layout, "LAYOUT_", f"{path}.layout"))  # type: ignore[arg-type]


def prefill_request(
    session_id: str, text: str | None, token_ids: Sequence[int] | None, options: PlaceOptions
) -> pb.PrefillRequest:
    if (text is None) == (token_ids is None):
        raise InvalidInput("expected either text or token_ids", field="content")
    request = pb.PrefillRequest(session_id=session_id)
    _put_place(request, options, "user")
    if text is not None:
        put(request, "text", text)
    else:
        request.token_ids.SetInParent()
        put(request.token_ids, "ids", list(token_ids or ()), "token_ids.ids")
    return request


def decode_request(session_id: str, options: DecodeOptions) -> pb.DecodeRequest:
    request = pb.DecodeRequest(session_id=session_id)
    _put_place(request, options, "assistant")
    put(request, "prefill", options.get("prefill", ""))
    if (schema := options.get("response_schema")) is not None:
        request.response_schema.CopyFrom(schema_from_python(schema, "response_schema"))
    if (choices := options.get("choices")) is not None:
        if isinstance(choices, str) or not choices:
            raise InvalidInput("expected a list of texts, one at least", field="choices", value=choices)
        put(request, "choices", list(choices))
    for name, value in options.items():
        if name not in _NO_SAMPLING and value is not None:
            put_sampling(request.sampling, name, value, f"sampling.{name}")
    return request


def _put_place(request: pb.PrefillRequest | pb.DecodeRequest, options: PlaceOptions, role: str) -> None:
    put(request, "role", options.get("role", role))
    put(request, "name", options.get("name") or "")
    request.view.CopyFrom(view_of(options.get("view", ()), options.get("layout", "packed")))
    request.fidelity = fidelity_of(options.get("fidelity", "exact"))
    share = options.get("recompute_share")
    if share is not None:
        put(request, "recompute_share", share)
    position = options.get("position")
    if position is not None:
        put(request, "position", position)


def release_request(session_id: str, messages: Sequence[str | MessageRecord]) -> pb.ReleaseRequest:
    """None named: all."""
    ids = [message.message_id if isinstance(message, MessageRecord) else message for message in messages]
    request = pb.ReleaseRequest(session_id=session_id, all=not ids)
    put(request, "message_ids", ids)
    return request


def open_request(ttl_s: float | None, model: str, adapter: str) -> pb.OpenSessionRequest:
    if ttl_s is None:
        return pb.OpenSessionRequest(model=model, adapter=adapter)
    if not 0 < ttl_s < MAX_TTL_S:
        raise InvalidInput("expected more than 0 seconds", field="ttl", value=ttl_s)
    return pb.OpenSessionRequest(ttl=duration(ttl_s), model=model, adapter=adapter)


def list_request(page_size: int, page_token: str, states: Iterable[str]) -> pb.ListRequest:
    request = pb.ListRequest(states=states_of(states))
    put(request, "page_size", page_size)
    put(request, "page_token", page_token)
    return request


def _put_overrides(target: pb.Overrides, overrides: Overrides) -> None:
    steps: dict[str, pb.StepOverride] = {}
    for key, value in overrides.items():
        address, name = key if isinstance(key, tuple) else key.rpartition(".")[::2]
        if not address or not name:
            raise InvalidInput(
                "expected ADDRESS.SETTING, such as answer[bob,2].max_tokens", field="overrides", value=key
            )
        if address not in steps:
            steps[address] = target.steps.add()
            put(steps[address], "address", address, "overrides")
        put_sampling(steps[address].sampling, name, value, f"overrides.{address}.{name}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise NotFound("no such file", field="workflow", value=str(path)) from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise InvalidInput(
            f"cannot be read ({getattr(error, 'strerror', error)})", field="workflow", value=str(path)
        ) from None


def _enum(enum: Any, word: str, prefix: str, path: str, without: Sequence[str] = ()) -> int:
    words = [name.removeprefix(prefix).lower() for name in enum.keys()[1:]]
    words = [each for each in words if each not in without]
    try:
        if word in without:
            raise ValueError(word)
        return enum_number(enum, word, prefix)
    except (ValueError, AttributeError):
        raise InvalidInput(f"expected one of {', '.join(words)}", field=path, value=word) from None


def filled(kind: type[M], **values: Any) -> M:
    """A request with these fields, each checked as `put` does."""
    request = kind()
    for name, value in values.items():
        put(request, name, value)
    return request


def put(message: Any, name: str, value: Any, path: str = "") -> None:
    """Set a field. Raises InvalidInput, which says what the field takes, for a value that protobuf refuses."""
    try:
        if isinstance(value, list):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    except (TypeError, ValueError, OverflowError, AttributeError):  # the last: a list for one value, or the reverse
        expected = _TAKEN[message.DESCRIPTOR.fields_by_name[name].cpp_type]
        expected = f"a list, each {expected}" if hasattr(getattr(message, name), "extend") else expected
        raise InvalidInput(f"expected {expected}", field=path or name, value=value) from None


_TAKEN = {
    FieldDescriptor.CPPTYPE_STRING: "text, without lone surrogates",
    FieldDescriptor.CPPTYPE_BOOL: "true or false",
    FieldDescriptor.CPPTYPE_DOUBLE: "a number",
    FieldDescriptor.CPPTYPE_FLOAT: "a number",
    FieldDescriptor.CPPTYPE_INT32: "a whole number of 32 bits",
    FieldDescriptor.CPPTYPE_UINT32: "a whole number of 32 bits, 0 or more",
    FieldDescriptor.CPPTYPE_INT64: "a whole number of 64 bits",
    FieldDescriptor.CPPTYPE_UINT64: "a whole number of 64 bits, 0 or more",
    FieldDescriptor.CPPTYPE_ENUM: "the number of one of its values",
    FieldDescriptor.CPPTYPE_MESSAGE: "a message",
}
"""What fields hold, by the kinds of protobuf."""
