"""The requests about external steps: plain Python values into protobuf messages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from laban.actors.errors import InvalidInput
from laban.cluster.client_requests import filled, put
from laban.cluster.tool_calls import UNSET
from laban.cluster.translate_sessions import duration
from laban.cluster.translate_values import value_from_python
from laban.proto import laban_pb2 as pb

MAX_WAIT_S = 60.0


def lease_request(tools: Iterable[str], workflow_id: str, handler: str, wait_s: float) -> pb.LeaseStepRequest:
    if not 0 <= wait_s <= MAX_WAIT_S:
        raise InvalidInput(f"expected 0 to {MAX_WAIT_S:g} seconds", field="wait_s", value=wait_s)
    names = [tools] if isinstance(tools, str) else list(tools)
    request = filled(pb.LeaseStepRequest, tools=names, workflow_id=workflow_id, handler=handler)
    request.wait.CopyFrom(duration(wait_s))
    return request


def complete_request(
    workflow_id: str, address: str, text: str | None, output: object = UNSET, lease_id: str = ""
) -> pb.CompleteStepRequest:
    if (text is None) == (output is UNSET):
        raise InvalidInput("expected either text or output", field="output")
    request = filled(pb.CompleteStepRequest, workflow_id=workflow_id, address=address, lease_id=lease_id)
    if isinstance(output, str):  # as an output, so that a schema takes it for text whatever it looks like
        request.output.CopyFrom(value_from_python(output, "output"))
        return request
    put(request, "text", _json(output) if text is None else text)
    return request


def _json(output: object) -> str:
    """Sent as text: a protobuf Value would lose the order of the keys."""
    value_from_python(output, "output")  # says where it is no JSON
    return json.dumps(_plain(output), ensure_ascii=False, separators=(",", ":"))


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def fail_request(
    workflow_id: str, address: str, message: str, lease_id: str = "", final: bool = False
) -> pb.FailStepRequest:
    return filled(
        pb.FailStepRequest, workflow_id=workflow_id, address=address, message=message, lease_id=lease_id, final=final
    )
