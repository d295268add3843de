"""The client's chats as protobuf messages. Raises InvalidInput with the field's path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from laban.actors.errors import InvalidInput
from laban.cluster.client_requests import SamplingOptions, fidelity_of, put, put_sampling
from laban.proto import laban_pb2 as pb

MESSAGE_FIELDS = {"role": "role", "content": "text", "name": "name"}
ChatMessages = Sequence[Mapping[str, str]]
"""Of `role` ("system", "user" or "assistant"), `content` and, maybe, `name`, in any order."""


class ChatOptions(SamplingOptions, total=False):
    """How messages are read, and how the answer is generated."""

    fidelity: str
    recompute_share: float


def chat_request(session_id: str, messages: ChatMessages, options: ChatOptions) -> pb.ChatRequest:
    request = pb.ChatRequest(session_id=session_id)
    for place, message in enumerate(messages):
        _put_message(request.messages.add(), message, f"messages[{place}]")
    request.fidelity = fidelity_of(options.get("fidelity", "exact"))
    share = options.get("recompute_share")
    if share is not None:
        put(request, "recompute_share", share)
    for name, value in options.items():
        if name not in ("fidelity", "recompute_share") and value is not None:
            put_sampling(request.sampling, name, value, f"sampling.{name}")
    return request


def _put_message(target: pb.ChatMessage, message: Mapping[str, str], path: str) -> None:
    if not isinstance(message, Mapping):
        raise InvalidInput("expected a mapping with role and content", field=path, value=message)
    for name in ("role", "content"):
        if name not in message:
            raise InvalidInput("missing, expected text", field=f"{path}.{name}")
    for name, value in message.items():
        if name not in MESSAGE_FIELDS:
            raise InvalidInput(f"no such field, expected {', '.join(MESSAGE_FIELDS)}", field=f"{path}.{name}")
        if value is not None or name != "name":
            put(target, MESSAGE_FIELDS[name], value, f"{path}.{name}")
