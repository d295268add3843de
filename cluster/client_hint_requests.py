"""The requests about hints: plain Python values into protobuf messages. Raises InvalidInput with the field's path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

from laban.actors.errors import InvalidInput
from laban.cluster.client_requests import MAX_TTL_S, Placed, fidelity_of, filled, put, view_of
from laban.cluster.records import Hint, Layout
from laban.cluster.translate_sessions import duration
from laban.proto import laban_pb2 as pb


class HintOptions(TypedDict, total=False):
    """When an agent will read, and how: as in `laban.cluster.records.Hint`. The hint is forgotten after `ttl_s`."""

    steps: int | None
    in_s: float | None
    pin_s: float | None
    likelihood: float
    layout: Layout
    fidelity: str
    ttl_s: float | None


def hint_request(session_id: str, agent: str, reads: Sequence[Placed], options: HintOptions) -> pb.HintRequest:
    """One hint."""
    request = _request(session_id, options.get("ttl_s"))
    rest: Any = {name: value for name, value in options.items() if name != "ttl_s"}
    _put_hint(request.hints.add(), agent, reads, path="hints[0]", **rest)
    return request


def hints_request(session_id: str, hints: Iterable[Hint], ttl_s: float | None) -> pb.HintRequest:
    request = _request(session_id, ttl_s)
    for place, hint in enumerate(hints):
        _put_hint(
            request.hints.add(),
            hint.agent,
            hint.reads,
            path=f"hints[{place}]",
            steps=hint.steps,
            in_s=hint.in_s,
            pin_s=hint.pin_s,
            likelihood=hint.likelihood,
            layout=hint.layout,
            fidelity=hint.fidelity,
        )
    return request


def release_hints_request(session_id: str, agents: Sequence[str]) -> pb.ReleaseHintsRequest:
    """None named: all."""
    return filled(pb.ReleaseHintsRequest, session_id=session_id, agents=list(agents), all=not agents)


def _request(session_id: str, ttl_s: float | None) -> pb.HintRequest:
    request = filled(pb.HintRequest, session_id=session_id)
    _put_span(request.ttl, ttl_s, "ttl")
    return request


def _put_hint(
    target: pb.Hint,
    agent: str,
    reads: Sequence[Placed],
    *,
    path: str,
    steps: int | None = None,
    in_s: float | None = None,
    pin_s: float | None = None,
    likelihood: float = 1.0,
    layout: str = "packed",
    fidelity: str = "exact",
) -> None:
    put(target, "agent", agent, f"{path}.agent")
    target.view.CopyFrom(view_of(reads, layout, f"{path}.view"))
    target.fidelity = fidelity_of(fidelity, f"{path}.fidelity")
    if steps is not None:
        put(target, "steps", steps, f"{path}.steps")
    put(target, "likelihood", likelihood, f"{path}.likelihood")
    _put_span(target.starts_in, in_s, f"{path}.starts_in")
    _put_span(target.pin, pin_s, f"{path}.pin")


def _put_span(target: Any, seconds: float | None, path: str) -> None:
    if seconds is None:
        return
    if not 0 <= seconds < MAX_TTL_S:
        raise InvalidInput("expected 0 or more seconds", field=path, value=seconds)
    target.CopyFrom(duration(seconds))
