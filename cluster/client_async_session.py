"""A session of the asynchronous client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, Unpack

from laban.actors.errors import LabanError, NotFound
from laban.cluster import client_hint_requests as hinting
from laban.cluster import client_requests as requests
from laban.cluster.client_channel import AsyncChannel
from laban.cluster.client_chat_requests import ChatMessages, ChatOptions, chat_request
from laban.cluster.client_hint_requests import HintOptions
from laban.cluster.client_requests import DecodeOptions, Placed, PlaceOptions
from laban.cluster.records import Hint, HintOutcome, MessageRecord, SessionRecord, TokenChunk
from laban.cluster.translate import chunk_from_pb
from laban.cluster.translate_hints import outcome_from_pb
from laban.cluster.translate_sessions import message_from_pb, session_from_pb
from laban.proto import laban_pb2 as pb


class AsyncSession:
    """Messages encoded and generated one by one, each under a view. `async with` closes it."""

    def __init__(self, channel: AsyncChannel, record: SessionRecord) -> None:
        self._channel = channel
        self.session_id = record.session_id
        self.ttl_s = record.ttl_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.close()
        except NotFound:
            return  # it has ended already
        except LabanError:
            if error is None:
                raise

    async def prefill(
        self,
        text: str | None = None,
        *,
        token_ids: Sequence[int] | None = None,
        timeout_s: float | None = None,
        **options: Unpack[PlaceOptions],
    ) -> MessageRecord:
        """Encode a message under a view: `text` in its role's frame, or exactly `token_ids`."""
        request = requests.prefill_request(self.session_id, text, token_ids, options)
        call = self._channel.call_within(self._channel.choreography.Prefill, request, timeout_s)
        return message_from_pb(await call)

    def decode(
        self, *, timeout_s: float | None = None, **options: Unpack[DecodeOptions]
    ) -> AsyncGenerator[TokenChunk | MessageRecord, None]:
        """Generate a message under a view: chunks, then the message. Leaving early aborts the call."""
        request = requests.decode_request(self.session_id, options)
        return self._items(self._channel.choreography.Decode(request, timeout=timeout_s), request)

    async def generate(self, *, timeout_s: float | None = None, **options: Unpack[DecodeOptions]) -> MessageRecord:
        """`decode`, for callers who want the message alone."""
        return await last_message(self.decode(timeout_s=timeout_s, **options))

    async def chat(
        self, messages: ChatMessages, *, timeout_s: float | None = None, **options: Unpack[ChatOptions]
    ) -> MessageRecord:
        """The model's answer to a list of chat messages, given whole each time, in any order; what it reuses it knows
        by content.

        `exact`: the prompt is that of the model's own chat template, and its longest known beginning is reused. Under
        `direct` and `blended` each message is an encoding of its own. An answer that comes back as an assistant's
        message is the one that was generated. `tokens_read`, `tokens_reused`, `tokens_encoded` and `tokens_generated`
        of the record say what was saved.
        """
        items = self.stream_chat(messages, timeout_s=timeout_s, **options)
        return await last_message(items)

    def stream_chat(
        self, messages: ChatMessages, *, timeout_s: float | None = None, **options: Unpack[ChatOptions]
    ) -> AsyncGenerator[TokenChunk | MessageRecord, None]:
        """`chat` as it comes: chunks, then the message. Leaving early aborts the call."""
        request = chat_request(self.session_id, messages, options)
        return self._items(self._channel.choreography.Chat(request, timeout=timeout_s), request)

    async def get(self) -> SessionRecord:
        request = pb.GetSessionRequest(session_id=self.session_id)
        return session_from_pb(await self._channel.call(self._channel.choreography.GetSession, request))

    async def hint(self, agent: str, reads: Sequence[Placed] = (), **options: Unpack[HintOptions]) -> HintOutcome:
        """Say what an agent of yours will read next, in order, and when: in `steps` steps, in `in_s` seconds or both.

        It replaces all that was said of the agent before. `pin_s` keeps what it reads from eviction for so long. No
        result depends on a hint; the answer says what became of it.
        """
        request = hinting.hint_request(self.session_id, agent, reads, options)
        response = await self._channel.call(self._channel.choreography.Hint, request)
        return outcome_from_pb(response.outcomes[0])

    async def hint_all(self, hints: Iterable[Hint], *, ttl_s: float | None = None) -> tuple[HintOutcome, ...]:
        """`hint` for several agents at once."""
        request = hinting.hints_request(self.session_id, hints, ttl_s)
        response = await self._channel.call(self._channel.choreography.Hint, request)
        return tuple(outcome_from_pb(outcome) for outcome in response.outcomes)

    async def release_hints(self, *agents: str) -> int:
        """Forget the hints of these agents, or with none named all; what they pinned is let go. Returns how many."""
        request = hinting.release_hints_request(self.session_id, agents)
        response = await self._channel.call(self._channel.choreography.ReleaseHints, request)
        return int(response.num_released)

    async def release(self, *messages: str | MessageRecord) -> int:
        """Forget these messages, or with none named all. Returns how many."""
        request = requests.release_request(self.session_id, messages)
        response = await self._channel.call(self._channel.choreography.Release, request)
        return int(response.num_released)

    async def close(self) -> None:
        request = pb.CloseSessionRequest(session_id=self.session_id)
        await self._channel.call(self._channel.choreography.CloseSession, request)

    async def _items(self, call: Any, request: Any) -> AsyncGenerator[TokenChunk | MessageRecord, None]:
        async with aclosing(self._channel.items(call, request)) as responses:
            async for response in responses:
                if response.WhichOneof("item") == "message":
                    yield message_from_pb(response.message)
                else:
                    yield chunk_from_pb(response.chunk)


async def last_message(items: AsyncGenerator[TokenChunk | MessageRecord, None]) -> MessageRecord:
    """Of a stream, which it closes."""
    async with aclosing(items):
        async for item in items:
            if isinstance(item, MessageRecord):
                return item
    raise LabanError("the server ended the stream without the message")
