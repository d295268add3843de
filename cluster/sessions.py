"""Choreography: callers who decide as they go, message by message, each under a view of their choice."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from laban.actors.calls import Call, Sampling
from laban.actors.errors import Exhausted, FailedPrecondition, InvalidInput, NotFound
from laban.cluster.audit.cases import SESSIONS, Said
from laban.cluster.chat_memory import ChatMemory
from laban.cluster.chats import ROLE, Answers, ChatAsk, Chats, record_of
from laban.cluster.dispatch import Dispatcher
from laban.cluster.messages import LanguageOf, MessageBook, Opening, tokens_of
from laban.cluster.meter import NO_METER, Meter
from laban.cluster.records import (
    ErrorInfo,
    Hint,
    HintOutcome,
    Layout,
    MessageRecord,
    SessionPlacement,
    SessionRecord,
    TokenChunk,
)
from laban.cluster.session_hints import HintTaker, SessionHints
from laban.cluster.slots import Order
from laban.cluster.texts import aside
from laban.cluster.views import Composed, Entry
from laban.cluster.waiter import Finish, Waiter
from laban.cluster.workflow.fidelity import RECOMPUTE_SHARE, Fidelity
from laban.kvstore.encodings import EncodingId, EncodingSpec


@dataclass(frozen=True, slots=True)
class SessionLimits:
    default_ttl_s: float = 600.0
    max_ttl_s: float = 86_400.0
    max_sessions: int = 1024
    max_messages: int = 4096  # of one session
    max_view: int = 4096  # entries


@dataclass(slots=True)
class _Session:
    session_id: str
    tenant: str
    ttl_s: float
    created_at: float
    expires_at: float
    book: MessageBook
    rank: int = 0
    records: dict[str, MessageRecord] = field(default_factory=dict)
    last_number: int = 0
    specs_kept: int = 0  # when those that nothing needs were last forgotten
    running: set[str] = field(default_factory=set)  # keys of calls; while there are any it does not expire
    memory: ChatMemory | None = None  # once there was a chat
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # calls begin in the order in which they came

    def encodings(self) -> list[EncodingId]:
        return [message.home.encoding_id for message in self.book.messages.values()]

    def specs(self) -> Mapping[EncodingId, EncodingSpec]:
        return self.book.specs

    @property
    def model(self) -> str:
        return self.book.language.model

    def record(self) -> SessionRecord:
        messages = tuple(self.records.values())
        return SessionRecord(self.session_id, self.ttl_s, self.created_at, self.expires_at, messages, self.model)


class Onlooker(Protocol):
    """What is needed of `cluster.foresight.Foresight` beside hints."""

    def keep(
        self,
        source: str,
        encodings: Callable[[], Sequence[EncodingId]],
        specs: Callable[[], Mapping[EncodingId, EncodingSpec]],
    ) -> None: ...

    def moved(self, source: str) -> None: ...

    def end(self, source: str) -> None: ...


class Sessions:
    """Methods are called in the event loop that the dispatcher lives in.

    All of them raise NotFound for a session that is unknown, expired, closed or another tenant's.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        language: LanguageOf,
        *,
        limits: SessionLimits | None = None,
        hint_taker: HintTaker | None = None,
        onlooker: Onlooker | None = None,
        next_rank: Callable[[], int] = lambda: 0,
        chats: Chats | None = None,
        meter: Meter = NO_METER,
        audits: Answers | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Without a `hint_taker` hints are ignored, and answered so. The `onlooker` is
        told of messages that may be read again. `next_rank` gives a session its place among the workflows. `chats`
        knows the model's chat template."""
        self._dispatcher = dispatcher
        self._onlooker, self._meter, self._audits = onlooker, meter, audits
        self._next_rank, self._chats = next_rank, chats
        pool_tokens = min(pool.info.pool_tokens for pool in dispatcher.pools)
        self._hints = SessionHints(hint_taker, pool_tokens, clock=clock)
        self._language = language
        self._limits = limits or SessionLimits()
        self._clock = clock
        self._sessions: dict[str, _Session] = {}
        self._waiters: dict[str, Waiter] = {}

    @property
    def num_open(self) -> int:
        self.sweep()
        return len(self._sessions)

    def open(
        self,
        ttl_s: float | None = None,
        *,
        model: str = "",
        adapter: str = "",
        tenant: str = "",
        max_of_tenant: int | None = None,
    ) -> SessionRecord:
        """With the `model` of all its calls, "" being the default, and an `adapter` of that, "" being none. Raises
        InvalidInput for a time to live out of range and a model or adapter that is not served, Exhausted for too many
        sessions, of all or of the tenant."""
        limits = self._limits
        ttl_s = limits.default_ttl_s if ttl_s is None else ttl_s
        if not 0 < ttl_s <= limits.max_ttl_s:
            raise InvalidInput(
                f"expected more than 0 and at most {limits.max_ttl_s:g} seconds", field="ttl", value=ttl_s
            )
        self.sweep()
        if len(self._sessions) >= limits.max_sessions:
            raise Exhausted(f"{len(self._sessions)} sessions are open, expected at most {limits.max_sessions}")
        num_own = sum(session.tenant == tenant for session in self._sessions.values())
        if max_of_tenant is not None and num_own >= max_of_tenant:
            self._meter.refused("max_sessions")
            raise Exhausted(f"{num_own} sessions of this tenant are open, expected at most {max_of_tenant}")
        now = self._clock()
        book = MessageBook(self._language(tenant, model).under(adapter))
        session = _Session(f"s-{secrets.token_hex(16)}", tenant, ttl_s, now, now + ttl_s, book, self._next_rank())
        self._sessions[session.session_id] = session
        if self._onlooker is not None:
            self._onlooker.keep(session.session_id, session.encodings, session.specs)
        return session.record()

    def get(self, session_id: str, *, tenant: str = "") -> SessionRecord:
        return self._find(session_id, tenant).record()

    def model_of(self, session_id: str, *, tenant: str = "") -> str:
        """The name of the model of its calls."""
        return self._find(session_id, tenant).model

    def close(self, session_id: str, *, tenant: str = "") -> None:
        self._end(self._find(session_id, tenant))

    def release(
        self, session_id: str, message_ids: Collection[str] = (), *, everything: bool = False, tenant: str = ""
    ) -> int:
        """Forget messages; those encoded while attending to them keep working. Returns how many.

        Raises NotFound for an unknown message, and forgets none then; InvalidInput for none named.
        """
        session = self._find(session_id, tenant)
        if not message_ids and not everything:
            raise InvalidInput("expected at least one message, or all", field="message_ids")
        for index, message_id in enumerate(message_ids):
            if message_id not in session.records:
                raise NotFound("no such message", field=f"message_ids[{index}]", value=message_id)
        going = set(session.records) if everything else set(message_ids)
        homes = {session.book.messages[message_id].home.encoding_id for message_id in going}
        for message_id in going:
            del session.records[message_id]
        if session.running:
            # A running call still needs what it reads: its specs are forgotten with the next release or the end.
            for message_id in going:
                del session.book.messages[message_id]
        else:
            session.book.keep_only(list(session.records))
        if session.memory is not None:
            session.memory.forget(homes)
        self._moved(session)
        return len(going)

    def hint(
        self, session_id: str, hints: Sequence[Hint], ttl_s: float | None = None, *, tenant: str = ""
    ) -> tuple[HintOutcome, ...]:
        """Say what agents will read, each of another name; what became of each hint, in their order."""
        session = self._find(session_id, tenant)
        return self._hints.take(session_id, session.book, hints, ttl_s)

    def release_hints(
        self, session_id: str, agents: Collection[str] = (), *, everything: bool = False, tenant: str = ""
    ) -> int:
        """Forget hints, and let go of what they pinned. How many there were."""
        self._find(session_id, tenant)
        return self._hints.release(session_id, agents, everything=everything)

    async def prefill(
        self,
        session_id: str,
        role: str,
        *,
        text: str | None = None,
        token_ids: Sequence[int] | None = None,
        name: str | None = None,
        view: Sequence[SessionPlacement] = (),
        layout: Layout = "packed",
        position: int | None = None,
        fidelity: Fidelity = "exact",
        recompute_share: float = RECOMPUTE_SHARE,
        tenant: str = "",
    ) -> MessageRecord:
        """Encode a message under a view: `text` in its role's frame, or exactly `token_ids`."""
        session = self._find(session_id, tenant)
        async with session.turn:
            language = session.book.language
            make = partial(tokens_of, language, role, name, text, token_ids, first=not view)
            tokens = await aside(len(text or token_ids or ""), make)
            self._find(session_id, tenant)  # it may have ended meanwhile
            message_id = self._new_id(session)
            entries = self._entries(session, view, fidelity, recompute_share)
            key = f"{session_id}/{message_id}"
            call, composed = session.book.prefill(
                key,
                f"message {message_id}",
                entries,
                role,
                tokens,
                layout=layout,
                position=position,
                path="token_ids" if text is None else "text",
                rank=session.rank,
            )
            waiter = Waiter(message_id)
            self._order(session, call, waiter)
        try:
            async for _ in waiter.chunks():
                raise AssertionError("a prefill generates nothing")
            return self._keep(session, message_id, role, name, fidelity, composed, waiter.result())
        finally:
            self._done(session, key)

    async def decode(
        self,
        session_id: str,
        *,
        sampling: Sampling,
        role: str = "assistant",
        name: str | None = None,
        prefill: str = "",
        view: Sequence[SessionPlacement] = (),
        layout: Layout = "packed",
        position: int | None = None,
        fidelity: Fidelity = "exact",
        recompute_share: float = RECOMPUTE_SHARE,
        tenant: str = "",
    ) -> AsyncGenerator[TokenChunk | MessageRecord, None]:
        """Generate a message under a view: chunks, then the message. Closing the generator aborts the call."""
        session = self._find(session_id, tenant)
        opening = Opening(role, name, prefill)
        async with session.turn:
            header = await aside(len(prefill), partial(session.book.header, opening, first=not view))
            self._find(session_id, tenant)  # it may have ended meanwhile
            message_id = self._new_id(session)
            entries = self._entries(session, view, fidelity, recompute_share)
            key = f"{session_id}/{message_id}"
            call, composed = session.book.decode(
                key,
                f"message {message_id}",
                entries,
                opening,
                sampling,
                header=header,
                layout=layout,
                position=position,
                path="sampling.max_tokens",
                rank=session.rank,
            )
            waiter = Waiter(message_id)
            self._order(session, call, waiter)
        try:
            async for chunk in waiter.chunks():
                yield chunk
            finish = waiter.result()
            record = self._keep(session, message_id, role, name, fidelity, composed, finish)
            how = {"layout": layout, "position": position}
            self._audit(session, message_id, fidelity, finish, lambda: Said.of(session.book, opening, entries, **how))
            yield record
        finally:
            self._done(session, key)

    async def chat(
        self, session_id: str, ask: ChatAsk, *, tenant: str = ""
    ) -> AsyncGenerator[TokenChunk | MessageRecord, None]:
        """The answer to a list of messages: chunks, then the message. Closing the generator aborts the call.

        Raises what `Chats.reply` does.
        """
        session = self._find(session_id, tenant)
        chats = self._chats
        if chats is None:
            raise FailedPrecondition("there is no chat template here")
        memory = session.memory = session.memory or chats.memory(session.model)
        prompt = await chats.prepare(ask, memory, session.book.language)
        self._find(session_id, tenant)  # it may have ended meanwhile
        message_id = self._new_id(session)
        key = f"{session_id}/{message_id}"
        asked = chats.compose(session.book, ask, memory, prompt, key, session.rank)
        waiter = Waiter(message_id)
        try:
            self._order(session, asked.call, waiter)
            async for chunk in waiter.chunks():
                yield chunk
            finish = waiter.result()
            record = self._keep(session, message_id, ROLE, None, ask.fidelity, asked.composed, finish)
            chats.remember(memory, session.book, finish)
            self._audit(session, message_id, ask.fidelity, finish, lambda: asked.said(session.book))
            yield record
        finally:
            self._done(session, key)

    def sweep(self) -> None:
        """End the sessions whose time is over. Done whenever sessions are opened or counted; call it now and then."""
        now = self._clock()
        for session in list(self._sessions.values()):
            if session.expires_at <= now and not session.running:
                self._end(session)

    def _find(self, session_id: str, tenant: str) -> _Session:
        """The session, its time to live begun anew."""
        session = self._sessions.get(session_id)
        now = self._clock()
        if session is not None and session.expires_at <= now and not session.running:
            self._end(session)
            session = None
        if session is None or session.tenant != tenant:
            raise NotFound("no such session, or it has ended", field="session_id", value=session_id)
        session.expires_at = now + session.ttl_s
        return session

    def _new_id(self, session: _Session) -> str:
        if len(session.records) + len(session.running) >= self._limits.max_messages:
            raise Exhausted(
                f"the session has {len(session.records)} messages, expected at most {self._limits.max_messages}"
            )
        session.last_number += 1
        return f"m{session.last_number}"

    def _entries(
        self, session: _Session, view: Sequence[SessionPlacement], fidelity: Fidelity, recompute_share: float
    ) -> list[Entry]:
        if len(view) > self._limits.max_view:
            raise InvalidInput(f"expected at most {self._limits.max_view} placements", field="view", value=len(view))
        entries = []
        for index, placed in enumerate(view):
            message = session.book.messages.get(placed.message_id)
            if message is None:
                raise NotFound("no such message", field=f"view[{index}].message_id", value=placed.message_id)
            entries.append(Entry(message, fidelity, placed.position, placed.begin, placed.end, recompute_share))
        return entries

    def _order(self, session: _Session, call: Call, waiter: Waiter) -> None:
        session.running.add(call.call_id)
        self._waiters[call.call_id] = waiter
        self._dispatcher.submit([Order(call, waiter, session.book.specs, rank=session.rank)])

    def _done(self, session: _Session, key: str) -> None:
        """The call is over, one way or another."""
        self._dispatcher.abort([key])
        self._waiters.pop(key, None)
        session.running.discard(key)
        if session.session_id not in self._sessions:  # it ended meanwhile, and the call had more watched since
            self._dispatcher.directory.unwatch(session.session_id)
            return
        if not session.running and len(session.book.specs) > 2 * session.specs_kept + 64:
            # Exact reads leave encodings that no message descends from.
            session.book.keep_only(list(session.records))
            session.specs_kept = len(session.book.specs)
            self._dispatcher.directory.watch(session.session_id, session.book.specs)
        session.expires_at = self._clock() + session.ttl_s

    def _keep(
        self,
        session: _Session,
        message_id: str,
        role: str,
        name: str | None,
        fidelity: Fidelity,
        composed: Composed,
        finish: Finish,
    ) -> MessageRecord:
        event = finish.event
        session.book.add_encoded(message_id, role, name, event.encoding)
        num_tokens = event.encoding.num_tokens
        entries = len(composed.spans) - int(composed.has_root)
        record = replace(
            record_of(finish, fidelity),
            session_id=session.session_id,
            message_id=message_id,
            role=role,
            name=name,
            overlaps=tuple(overlap.describe(entries) for overlap in composed.overlaps(num_tokens)),
        )
        session.records[message_id] = record
        self._meter.message_made(record, session.model)
        self._moved(session)
        return record

    def _audit(
        self, session: _Session, message_id: str, fidelity: Fidelity, finish: Finish, said: Callable[[], Said]
    ) -> None:
        if self._audits is not None:
            self._audits.answered(SESSIONS, session.session_id, message_id, session.tenant, fidelity, finish, said)

    def _moved(self, session: _Session) -> None:
        if self._onlooker is not None:
            self._onlooker.moved(session.session_id)

    def _end(self, session: _Session) -> None:
        del self._sessions[session.session_id]
        self._dispatcher.directory.unwatch(session.session_id)
        self._hints.release(session.session_id, everything=True)
        if self._onlooker is not None:
            self._onlooker.end(session.session_id)
        for key in session.running:
            self._waiters[key].give_up(ErrorInfo("NOT_FOUND", f"session {session.session_id} has ended"))
