"""What a request for hints asks for, checked: plain records out of protobuf messages."""

from __future__ import annotations

import math

from google.protobuf.duration_pb2 import Duration

from laban.actors.errors import InvalidInput
from laban.cluster.gateway_requests import read_fidelity, read_view
from laban.cluster.records import Hint
from laban.cluster.translate_sessions import duration_s
from laban.proto import laban_pb2 as pb

MAX_HINTS = 1024  # of one request
MAX_AGENT_CHARS = 128
MAX_STEPS = 1_000_000


def read_hints(request: pb.HintRequest) -> tuple[tuple[Hint, ...], float | None]:
    """The hints, and for how long they hold: None as the sessions say."""
    if not 0 < len(request.hints) <= MAX_HINTS:
        raise InvalidInput(f"{len(request.hints)} hints, expected 1 to {MAX_HINTS}", field="hints")
    places: dict[str, int] = {}
    for place, hint in enumerate(request.hints):
        path = f"hints[{place}].agent"
        read_agent(hint.agent, path)
        if hint.agent in places:
            raise InvalidInput(f"has a hint already, hints[{places[hint.agent]}]", field=path, value=hint.agent)
        places[hint.agent] = place
    hints = tuple(_read_hint(hint, f"hints[{place}]") for place, hint in enumerate(request.hints))
    return hints, _read_span(request.ttl, "ttl", positive=True) if request.HasField("ttl") else None


def read_agents(request: pb.ReleaseHintsRequest) -> tuple[str, ...]:
    """Those named; none where all are meant."""
    if request.all and request.agents:
        raise InvalidInput("given beside `all`, expected one of the two", field="agents")
    if not request.all and not request.agents:
        raise InvalidInput("missing, expected at least one agent, or `all`", field="agents")
    return tuple(read_agent(agent, f"agents[{place}]") for place, agent in enumerate(request.agents))


def read_agent(agent: str, path: str) -> str:
    if not 0 < len(agent) <= MAX_AGENT_CHARS:
        raise InvalidInput(f"{len(agent)} characters, expected 1 to {MAX_AGENT_CHARS}", field=path, value=agent)
    return agent


def _read_hint(hint: pb.Hint, path: str) -> Hint:
    view = read_view(hint.view, f"{path}.view")
    likelihood = hint.likelihood if hint.HasField("likelihood") else 1.0
    if not 0 < likelihood <= 1:  # nor NaN
        raise InvalidInput("expected more than 0, up to 1", field=f"{path}.likelihood", value=likelihood)
    if hint.HasField("steps") and not 0 <= hint.steps <= MAX_STEPS:
        raise InvalidInput(f"expected 0 to {MAX_STEPS}", field=f"{path}.steps", value=hint.steps)
    return Hint(
        agent=hint.agent,
        reads=tuple(view.placements),
        layout=view.layout,
        fidelity=read_fidelity(hint.fidelity, f"{path}.fidelity") or "exact",
        steps=hint.steps if hint.HasField("steps") else None,
        in_s=_read_span(hint.starts_in, f"{path}.starts_in") if hint.HasField("starts_in") else None,
        likelihood=likelihood,
        pin_s=_read_span(hint.pin, f"{path}.pin") if hint.HasField("pin") else None,
    )


def _read_span(span: Duration, path: str, *, positive: bool = False) -> float:
    seconds = duration_s(span)
    if not math.isfinite(seconds) or seconds < 0 or (positive and seconds == 0):
        least = "more than 0" if positive else "0 or more"
        raise InvalidInput(f"expected {least} seconds", field=path, value=seconds)
    return seconds
