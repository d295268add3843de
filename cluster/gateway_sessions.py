"""The service Choreography."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from laban.actors.errors import InvalidInput, LabanError
from laban.cluster.callers import caller
from laban.cluster.gateway_chats import read_chat
from laban.cluster.gateway_hints import read_agents, read_hints
from laban.cluster.gateway_ports import SessionsPort
from laban.cluster.gateway_requests import (
    read_constraint,
    read_duration,
    read_fidelity,
    read_id,
    read_position,
    read_recompute_share,
    read_role,
    read_sampling,
    read_view,
    refuse_reserved,
)
from laban.cluster.records import MessageRecord, TokenChunk
from laban.cluster.texts import aside, check_name, check_text
from laban.cluster.translate import chunk_to_pb
from laban.cluster.translate_hints import outcome_to_pb
from laban.cluster.translate_sessions import message_to_pb, session_to_pb
from laban.proto import laban_pb2 as pb


class SessionService:
    """laban.v1.Choreography over the sessions. `encode` makes token ids of forced text, for a model."""

    def __init__(self, sessions: SessionsPort, encode: Callable[[str, str], Sequence[int]]) -> None:
        self._sessions = sessions
        self._encode = encode

    async def OpenSession(self, request: pb.OpenSessionRequest) -> pb.Session:
        ttl_s = read_duration(request.ttl, "ttl") if request.HasField("ttl") else None
        found = self._sessions.open(
            ttl_s,
            model=request.model,
            adapter=request.adapter,
            tenant=caller().tenant,
            max_of_tenant=caller().max_sessions,
        )
        return session_to_pb(found)

    async def GetSession(self, request: pb.GetSessionRequest) -> pb.Session:
        return session_to_pb(self._sessions.get(read_id(request.session_id, "session_id"), tenant=caller().tenant))

    async def Prefill(self, request: pb.PrefillRequest) -> pb.MessageRecord:
        content = request.WhichOneof("content")
        if content is None:
            raise InvalidInput("missing, expected `text` or `token_ids`", field="content")
        with _request_paths():
            record = await self._sessions.prefill(
                read_id(request.session_id, "session_id"),
                read_role(request.role, "role"),
                text=check_text(request.text, "text") if content == "text" else None,
                token_ids=list(request.token_ids.ids) if content == "token_ids" else None,
                **_placing(request),
            )
        return message_to_pb(record)

    async def Decode(self, request: pb.DecodeRequest) -> AsyncGenerator[pb.DecodeResponse, None]:
        refuse_reserved(request, "tools")
        encode = self._encoder(request.session_id, request.sampling)
        sampling = await aside(len(request.sampling.forced_text), partial(read_sampling, request.sampling, encode))
        if request.choices or request.HasField("response_schema"):
            sampling = replace(sampling, constraint=await asyncio.to_thread(read_constraint, request))
        with _request_paths():
            decode = self._sessions.decode(
                read_id(request.session_id, "session_id"),
                role=read_role(request.role, "role", "assistant"),
                prefill=check_text(request.prefill, "prefill"),
                sampling=sampling,
                **_placing(request),
            )
            async with aclosing(decode) as items:
                async for item in items:
                    yield _response(item)

    async def Chat(self, request: pb.ChatRequest) -> AsyncGenerator[pb.DecodeResponse, None]:
        session_id = read_id(request.session_id, "session_id")
        encode = self._encoder(session_id, request.sampling)
        ask = await aside(len(request.sampling.forced_text), partial(read_chat, request, encode))
        async with aclosing(self._sessions.chat(session_id, ask, tenant=caller().tenant)) as items:
            async for item in items:
                yield _response(item)

    async def Hint(self, request: pb.HintRequest) -> pb.HintResponse:
        hints, ttl_s = read_hints(request)
        outcomes = self._sessions.hint(read_id(request.session_id, "session_id"), hints, ttl_s, tenant=caller().tenant)
        return pb.HintResponse(outcomes=[outcome_to_pb(outcome) for outcome in outcomes])

    async def ReleaseHints(self, request: pb.ReleaseHintsRequest) -> pb.ReleaseHintsResponse:
        session_id, agents = read_id(request.session_id, "session_id"), read_agents(request)
        count = self._sessions.release_hints(session_id, agents, everything=request.all, tenant=caller().tenant)
        return pb.ReleaseHintsResponse(num_released=count)

    async def Release(self, request: pb.ReleaseRequest) -> pb.ReleaseResponse:
        if request.all and request.message_ids:
            raise InvalidInput("given beside `all`, expected one of the two", field="message_ids")
        count = self._sessions.release(
            read_id(request.session_id, "session_id"),
            list(request.message_ids),
            everything=request.all,
            tenant=caller().tenant,
        )
        return pb.ReleaseResponse(num_released=count)

    async def CloseSession(self, request: pb.CloseSessionRequest) -> pb.CloseSessionResponse:
        self._sessions.close(read_id(request.session_id, "session_id"), tenant=caller().tenant)
        return pb.CloseSessionResponse()

    def _encoder(self, session_id: str, sampling: pb.Sampling) -> Callable[[str], Sequence[int]]:
        """With the tokenizer of the session's model. In any thread."""
        model = self._sessions.model_of(session_id, tenant=caller().tenant) if sampling.forced_text else ""
        return lambda text: self._encode(text, model)


def _response(item: TokenChunk | MessageRecord) -> pb.DecodeResponse:
    if isinstance(item, MessageRecord):
        return pb.DecodeResponse(message=message_to_pb(item))
    return pb.DecodeResponse(chunk=chunk_to_pb(item))


def _placing(request: pb.PrefillRequest | pb.DecodeRequest) -> dict[str, Any]:
    """What a prefill and a decode ask for alike."""
    view = read_view(request.view)
    return {
        "name": check_name(request.name, "name") or None,
        "view": view.placements,
        "layout": view.layout,
        "position": read_position(request),
        "fidelity": read_fidelity(request.fidelity, "fidelity") or "exact",
        "recompute_share": read_recompute_share(request),
        "tenant": caller().tenant,
    }


@contextmanager
def _request_paths() -> Iterator[None]:
    """Errors of the sessions name the fields of their arguments: make these the fields of the request."""
    try:
        yield
    except LabanError as error:
        path = re.sub(r"^view(?=\[)", "view.placements", error.field)
        path = re.sub(r"^token_ids(?=\[|$)", "token_ids.ids", path)
        if path == error.field:
            raise
        renamed = type(error)(error.message, field=path, value=error.value)
        raise renamed from error
