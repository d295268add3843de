"""Chats as gRPC asks for them, checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from laban.actors.chat_messages import ChatMessage
from laban.actors.errors import InvalidInput
from laban.cluster.chats import ChatAsk
from laban.cluster.gateway_requests import read_fidelity, read_recompute_share, read_role, read_sampling
from laban.cluster.texts import check_name, check_text
from laban.proto import laban_pb2 as pb

MAX_MESSAGES = 4096


def read_chat(request: pb.ChatRequest, encode: Callable[[str], Sequence[int]]) -> ChatAsk:
    """Slow for a long forced text: call it off the event loop then. Raises InvalidInput, OutOfRange."""
    if not 0 < len(request.messages) <= MAX_MESSAGES:
        raise InvalidInput(f"{len(request.messages)} messages, expected 1 to {MAX_MESSAGES}", field="messages")
    messages = tuple(
        ChatMessage(
            read_role(message.role, f"messages[{place}].role"),
            check_text(message.text, f"messages[{place}].text"),
            check_name(message.name, f"messages[{place}].name") or None,
        )
        for place, message in enumerate(request.messages)
    )
    return ChatAsk(
        messages,
        read_sampling(request.sampling, encode),
        fidelity=read_fidelity(request.fidelity, "fidelity") or "exact",
        recompute_share=read_recompute_share(request),
    )
