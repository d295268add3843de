"""What a request asks for, checked: plain values out of protobuf messages, every error with its field's path."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.duration_pb2 import Duration

from laban.actors.calls import Constraint, Sampling
from laban.actors.errors import InvalidInput, LabanError, NotBuilt, OutOfRange, with_others
from laban.cluster.claims import MAX_KEY
from laban.cluster.parsed import ParsedWorkflows
from laban.cluster.records import Layout, SessionPlacement, WorkflowState
from laban.cluster.texts import check_plain, check_text
from laban.cluster.translate import NANOS, fidelity_word, workflow_state_word
from laban.cluster.translate_sessions import duration_s
from laban.cluster.translate_spec import spec_to_dict
from laban.cluster.translate_values import schema_to_python, value_to_python
from laban.cluster.workflow.constraints import constraint_of
from laban.cluster.workflow.fidelity import (
    AUTO,
    MAX_TOLERANCE,
    RECOMPUTE_SHARE,
    Asked,
    Fidelity,
    expected,
    is_served,
)
from laban.cluster.workflow.parse import parse_dict, parse_yaml
from laban.cluster.workflow.schema import Workflow
from laban.cluster.workflow.states import Overrides
from laban.proto import laban_pb2 as pb

MAX_QUICK_BYTES = 16_384
MAX_SECONDS = 315_576_000_000  # of a protobuf Duration: 10,000 years
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_LOGPROBS = 20
MAX_TOOLS = 256
MAX_TOOL_CHARS = 128
MAX_WAIT_S = 60.0
DEFAULT_WAIT_S = 20.0
DEFAULT_MAX_TOKENS = 256
ROLES = ("system", "user", "assistant")

# Field of Sampling: (lowest, highest, whether the lowest itself is allowed).
_BOUNDS: Mapping[str, tuple[float, float, bool]] = {
    "max_tokens": (1, 1_000_000, True),
    "temperature": (0, 2, True),
    "top_p": (0, 1, False),
    "top_k": (0, 1_000_000, True),
    "seed": (0, 2**63 - 1, True),
    "logprobs": (0, MAX_LOGPROBS, True),
}


@dataclass(frozen=True, slots=True)
class Submission:
    """A workflow to run, as Submit and Run ask for it."""

    workflow: Workflow
    inputs: dict[str, Any]
    overrides: Overrides
    idempotency_key: str | None


@dataclass(frozen=True, slots=True)
class ViewRequest:
    """A session call's view, and where the new message goes."""

    placements: list[SessionPlacement] = field(default_factory=list)
    layout: Layout = "packed"


@dataclass(frozen=True, slots=True)
class LeaseWish:
    """Which external steps a handler asks for, and for how long."""

    tools: tuple[str, ...]
    workflow_id: str
    handler: str
    wait_s: float


def read_submission(
    request: pb.SubmitRequest, path: str = "", *, tenant: str = "", parsed: ParsedWorkflows | None = None
) -> Submission:
    """Slow for large documents: call it off the event loop unless `is_quick`. Raises WorkflowErrors, InvalidInput,
    NotBuilt."""
    if request.WhichOneof("source") is None:
        raise InvalidInput("missing, expected `yaml` or `workflow`", field=f"{path}source")
    if parsed is None:
        workflow = _parse(request)
    else:
        workflow = parsed.get(_key_of(request, tenant), request.ByteSize(), lambda: _parse(request))
    inputs = {name: value_to_python(value, f"{path}inputs.{name}") for name, value in request.inputs.items()}
    overrides = read_overrides(request.overrides, f"{path}overrides")
    return Submission(workflow, inputs, overrides, read_key(request.idempotency_key, f"{path}idempotency_key"))


def is_quick(request: pb.SubmitRequest, tenant: str, parsed: ParsedWorkflows) -> bool:
    """Whether `read_submission` has little to do: the document was read before, and there is little else."""
    return request.ByteSize() <= MAX_QUICK_BYTES and _key_of(request, tenant) in parsed


def _parse(request: pb.SubmitRequest) -> Workflow:
    if request.WhichOneof("source") == "yaml":
        return parse_yaml(request.yaml, request.source_name or "workflow.yaml", request.files)
    return parse_dict(spec_to_dict(request.workflow))


def _key_of(request: pb.SubmitRequest, tenant: str) -> Hashable:
    """All that `_parse` looks at."""
    if request.WhichOneof("source") == "yaml":
        return tenant, request.yaml, request.source_name, tuple(sorted(request.files.items()))
    return tenant, request.workflow.SerializeToString(deterministic=True)


def read_overrides(overrides: pb.Overrides, path: str) -> Overrides:
    changes: dict[tuple[str, str], object] = {}
    for place, step in enumerate(overrides.steps):
        at = f"{path}.steps[{place}]"
        if not step.address:
            raise InvalidInput("missing, expected a step or an instance such as answer[bob,2]", field=f"{at}.address")
        for name, value in read_sampling_values(step.sampling, f"{at}.sampling").items():
            changes[step.address, name] = value
    return Overrides(
        fidelity=read_asked(overrides.fidelity, f"{path}.fidelity"),
        seed=_in_bounds("seed", overrides.seed, f"{path}.seed") if overrides.HasField("seed") else None,
        set=changes,
        tolerance=read_tolerance(overrides, f"{path}.tolerance"),
    )


def read_key(key: str, path: str) -> str | None:
    if len(key) > MAX_KEY:
        raise InvalidInput(f"{len(key)} characters, expected at most {MAX_KEY}", field=path)
    check_plain(key, path)
    return key or None


def read_id(value: str, path: str) -> str:
    if not value:
        raise InvalidInput("missing, expected an id", field=path)
    check_plain(value, path)
    return value


def read_fidelity(number: int, path: str) -> Fidelity | None:
    """None where the request leaves it open."""
    word = fidelity_word(number)
    if number == 0:
        return None
    if is_served(word):
        return word
    raise InvalidInput(f"expected {expected()}", field=path, value=word or number)


def read_asked(number: int, path: str) -> Asked | None:
    """A level, or `auto`; otherwise as `read_fidelity`."""
    word = fidelity_word(number)
    if word == AUTO or number == 0 or is_served(word):
        return AUTO if word == AUTO else read_fidelity(number, path)
    raise InvalidInput(f"expected {expected(asked=True)}", field=path, value=word or number)


def read_tolerance(overrides: pb.Overrides, path: str) -> float | None:
    if not overrides.HasField("tolerance"):
        return None
    if not 0 <= overrides.tolerance <= MAX_TOLERANCE:
        raise InvalidInput(f"expected 0 to {MAX_TOLERANCE:g}, nats a token", field=path, value=overrides.tolerance)
    return overrides.tolerance


def read_recompute_share(request: pb.PrefillRequest | pb.DecodeRequest | pb.ChatRequest) -> float:
    share = request.recompute_share if request.HasField("recompute_share") else RECOMPUTE_SHARE
    if not 0 < share <= 1:
        raise InvalidInput("expected more than 0, up to 1", field="recompute_share", value=share)
    return share


def read_states(states: Sequence[int]) -> tuple[WorkflowState, ...]:
    for place, state in enumerate(states):
        if not workflow_state_word(state):
            raise InvalidInput("not a workflow's state", field=f"states[{place}]", value=state)
    return tuple(workflow_state_word(state) for state in states)


def read_role(role: str, path: str, default: str = "") -> str:
    if (role or default) not in ROLES:
        raise InvalidInput(f"expected one of {', '.join(ROLES)}", field=path, value=role)
    return role or default


def read_position(request: pb.PrefillRequest | pb.DecodeRequest) -> int | None:
    if not request.HasField("position"):
        return None
    if request.position < 0:
        raise OutOfRange("expected 0 or more", field="position", value=request.position)
    return request.position


def read_view(view: pb.View, path: str = "view") -> ViewRequest:
    """Whether positions and ranges fit the messages and the context is for the sessions to say."""
    if view.layout not in pb.Layout.values():
        raise InvalidInput("expected PACKED or AS_ENCODED", field=f"{path}.layout", value=view.layout)
    placements = []
    for place, item in enumerate(view.placements):
        at = f"{path}.placements[{place}]"
        read_id(item.message_id, f"{at}.message_id")
        if item.HasField("position") and item.position < 0:
            raise OutOfRange("expected 0 or more", field=f"{at}.position", value=item.position)
        placements.append(
            SessionPlacement(
                item.message_id,
                item.position if item.HasField("position") else None,
                item.begin if item.HasField("begin") else None,
                item.end if item.HasField("end") else None,
            )
        )
    return ViewRequest(placements, "as_encoded" if view.layout == pb.LAYOUT_AS_ENCODED else "packed")


def read_sampling_values(sampling: pb.Sampling, path: str) -> dict[str, Any]:
    """What is set, each within its bounds. Raises InvalidInput with all that are not."""
    values: dict[str, Any] = {}
    wrong: list[LabanError] = []
    for name in (*_BOUNDS, "stop", "drafting", "forced_text"):
        if sampling.stop if name == "stop" else sampling.HasField(name):
            try:
                values[name] = _read_sampling_value(name, getattr(sampling, name), f"{path}.{name}")
            except InvalidInput as error:
                wrong.append(error)
    if wrong:
        raise with_others(wrong)
    return values


def _read_sampling_value(name: str, value: Any, path: str) -> Any:
    if name in _BOUNDS:
        return _in_bounds(name, value, path)
    if name == "forced_text":
        if not value:
            raise InvalidInput("empty, expected some text", field=path)
        return check_text(value, path)
    if name == "stop":
        if len(value) > MAX_STOPS:
            raise InvalidInput(f"{len(value)} strings, expected at most {MAX_STOPS}", field=path)
        for place, stop in enumerate(value):
            if not 0 < len(stop) <= MAX_STOP_CHARS:
                why = f"{len(stop)} characters, expected 1 to {MAX_STOP_CHARS}"
                raise InvalidInput(why, field=f"{path}[{place}]", value=stop)
        return list(value)
    return value


def read_sampling(sampling: pb.Sampling, encode: Callable[[str], Sequence[int]]) -> Sampling:
    """A session's sampling. `encode` makes token ids of forced text. Slow for a long one: call it off the event loop
    then."""
    values = read_sampling_values(sampling, "sampling")
    forced = tuple(encode(values["forced_text"])) if "forced_text" in values else ()
    return Sampling(
        max_tokens=values.get("max_tokens", max(DEFAULT_MAX_TOKENS, len(forced))),
        temperature=values.get("temperature", 0.0),
        top_p=values.get("top_p", 1.0),
        top_k=values.get("top_k", 0),
        seed=values.get("seed", 0),
        stop=tuple(values.get("stop", ())),
        forced=forced,
        num_logprobs=values.get("logprobs"),
        drafting=values.get("drafting", True),
    )


def read_constraint(request: pb.DecodeRequest) -> Constraint | None:
    """What a session's text must be, if anything. Slow for large schemas: call it off the event loop."""
    given = request.HasField("response_schema")
    if given and request.choices:
        raise InvalidInput("given beside `response_schema`, expected one of the two", field="choices")
    schema = schema_to_python(request.response_schema, "response_schema") if given else None
    return constraint_of(schema, list(request.choices) or None)


def read_lease_wish(request: pb.LeaseStepRequest) -> LeaseWish:
    if not 0 < len(request.tools) <= MAX_TOOLS:
        raise InvalidInput(f"{len(request.tools)} tools, expected 1 to {MAX_TOOLS}", field="tools")
    for place, tool in enumerate(request.tools):
        if not 0 < len(tool) <= MAX_TOOL_CHARS:
            raise InvalidInput(
                f"{len(tool)} characters, expected 1 to {MAX_TOOL_CHARS}", field=f"tools[{place}]", value=tool
            )
    if len(request.handler) > MAX_TOOL_CHARS:
        raise InvalidInput(f"{len(request.handler)} characters, expected at most {MAX_TOOL_CHARS}", field="handler")
    wait_s = read_duration(request.wait, "wait") if request.HasField("wait") else DEFAULT_WAIT_S
    if not 0 <= wait_s <= MAX_WAIT_S:
        raise InvalidInput(f"expected 0 to {MAX_WAIT_S:g} seconds", field="wait", value=wait_s)
    return LeaseWish(tuple(dict.fromkeys(request.tools)), request.workflow_id, request.handler, wait_s)


def read_duration(span: Duration, path: str) -> float:
    """Seconds. Raises InvalidInput for seconds and nanoseconds that do not go together, as protobuf has it."""
    odd = abs(span.nanos) >= NANOS or abs(span.seconds) > MAX_SECONDS or span.seconds * span.nanos < 0
    if odd:
        raise InvalidInput(
            "expected nanoseconds of less than a second, and of the seconds' sign",
            field=path,
            value=f"{span.seconds} s and {span.nanos} ns",
        )
    return duration_s(span)


def read_answer(request: pb.CompleteStepRequest) -> tuple[str | None, Any]:
    """The text, or None and the output. Slow for a large one: call it off the event loop then."""
    if not request.HasField("output"):
        return check_text(request.text, "text"), None
    if request.text:
        raise InvalidInput("both text and output are given, expected one of them", field="output")
    return None, value_to_python(request.output, "output")


def refuse_reserved(request: Any, *names: str) -> None:
    """Raises NotBuilt if one of the reserved fields is set."""
    given = {field.name for field, _ in request.ListFields()}
    for name in names:
        if name in given:
            raise NotBuilt("reserved in the schema, not served yet", field=name)


def _in_bounds(name: str, value: Any, path: str) -> Any:
    low, high, inclusive = _BOUNDS[name]
    if not math.isfinite(value) or not low <= value <= high or (value == low and not inclusive):
        least = f"{low} or more" if inclusive else f"more than {low}"
        kind = "whole" if isinstance(value, int) else "finite"
        raise InvalidInput(f"expected a {kind} number, {least} and at most {high}", field=path, value=value)
    return value
