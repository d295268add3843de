"""Chats: the answer to a list of messages that is given whole each time, as OpenAI's API has it.

A prompt is cut into its messages (`chat_prompts`), each of which is an entry of the view that the answer is generated
under. Under `exact` that is the reuse of prefixes; under the other levels each message is an encoding of its own, known
again by its tokens wherever it stands. A reply that comes back is the message that was generated (`chat_memory`).
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol

from laban.actors.calls import Call, Sampling
from laban.actors.chat_messages import ChatMessage
from laban.actors.errors import OutOfRange
from laban.actors.frames import ROLES
from laban.cluster.audit.cases import CHATS, Said
from laban.cluster.chat_memory import MAX_CHARS, ChatMemory, Reply
from laban.cluster.chat_prompts import ChatPrompt, ChatPrompts
from laban.cluster.dispatch import Dispatcher
from laban.cluster.messages import Language, LanguageOf, MessageBook, Opening
from laban.cluster.meter import NO_METER, Meter
from laban.cluster.records import MessageRecord, TokenChunk
from laban.cluster.slots import Order
from laban.cluster.texts import LONG_TEXT
from laban.cluster.views import Composed, Entry, Message, home_of
from laban.cluster.waiter import Finish, Waiter
from laban.cluster.workflow.fidelity import RECOMPUTE_SHARE, Fidelity
from laban.kvstore.encodings import closure

MANY_MESSAGES = 32
MAX_TENANTS = 64  # whose chats are remembered, with each model
NO_OTHERS: Mapping[str, ChatPrompts] = MappingProxyType({})
NO_ADAPTERS: Mapping[str, Iterable[str]] = MappingProxyType({})
MOST_TOKENS = 1_000_000  # asked for
ROLE = "assistant"


@dataclass(frozen=True, slots=True)
class ChatAsk:
    """`sampling.max_tokens` 0 leaves the length open: up to the end of the context, or an eighth of a worker's pool.
    `opening` is text put at the start of the answer, and no part of its text."""

    messages: tuple[ChatMessage, ...]
    sampling: Sampling
    tools: Sequence[Mapping[str, Any]] = ()
    fidelity: Fidelity = "exact"
    recompute_share: float = RECOMPUTE_SHARE
    opening: str = ""
    model: str = ""  # "": the default; in a session it is the session's

    @property
    def num_chars(self) -> int:
        """Of all that the template makes a prompt of."""
        calls = (call for message in self.messages for call in message.tool_calls)
        found = sum(len(message.text) for message in self.messages) + sum(len(call.arguments) for call in calls)
        return found + (len(json.dumps(self.tools)) if self.tools else 0)


@dataclass(frozen=True, slots=True)
class ChatBegun:
    """Said before anything is generated: the request is well formed and on its way."""

    prompt_tokens: int


ChatItem = ChatBegun | TokenChunk | MessageRecord


@dataclass(frozen=True, slots=True)
class Asked:
    """A call for an answer, and what it was composed of."""

    call: Call
    composed: Composed
    entries: tuple[Entry, ...]
    root: tuple[int, ...]
    header: tuple[int, ...]

    def said(self, book: MessageBook) -> Said:
        return Said.of(book, Opening(ROLE), self.entries, framed=(self.root, self.header))


class Answers(Protocol):
    """What is needed of `cluster.audit.in_service.InService`."""

    def answered(
        self,
        name: str,
        source: str,
        address: str,
        tenant: str,
        fidelity: Fidelity,
        finish: Finish,
        said: Callable[[], Said],
    ) -> None: ...


class Chats:
    """Lives in the dispatcher's event loop."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        language: LanguageOf,
        prompts: ChatPrompts,
        *,
        others: Mapping[str, ChatPrompts] = NO_OTHERS,
        adapters: Mapping[str, Iterable[str]] = NO_ADAPTERS,
        next_rank: Callable[[], int] = lambda: 0,
        meter: Meter = NO_METER,
        audits: Answers | None = None,
    ) -> None:
        """`prompts` are the default model's, `others` those of other models by their names. `adapters` are those of
        each model: with one it is asked for as MODEL:ADAPTER. `next_rank` gives a chat
        its place among the workflows."""
        self._dispatcher, self._language = dispatcher, language
        self._prompts = {**others, dispatcher.info.model_name: prompts}
        self._adapted = {f"{model}:{name}": (model, name) for model, names in adapters.items() for name in names}
        self._next_rank, self._meter, self._audits = next_rank, meter, audits
        self._memories: OrderedDict[tuple[str, str, str], ChatMemory] = OrderedDict()  # by tenant, model and adapter

    @property
    def model(self) -> str:
        """The default one."""
        return self._dispatcher.info.model_name

    @property
    def models(self) -> Mapping[str, int]:
        """All that are served, the default first, with their contexts in tokens; then those with adapters."""
        found = {pool.name: pool.info.max_context for pool in self._dispatcher.pools}
        return found | {asked: found[model] for asked, (model, _) in self._adapted.items() if asked not in found}

    def prompts(self, model: str) -> ChatPrompts:
        return self._prompts[self._parts(model)[0]]

    def _parts(self, model: str) -> tuple[str, str]:
        """The model and the adapter that are asked for."""
        return (model, "") if model in self._prompts else self._adapted.get(model, (model, ""))

    def memory(self, model: str) -> ChatMemory:
        return ChatMemory(self.prompts(model).tokenizer.encode)

    async def reply(self, ask: ChatAsk, *, tenant: str = "") -> AsyncGenerator[ChatItem, None]:
        """That it has begun, chunks, then the message. Closing the generator aborts the call.

        Raises InvalidInput for a model that is not served and messages that its template does not accept, OutOfRange
        for more than it can read.
        """
        named, adapter = self._parts(ask.model)
        book = MessageBook(self._language(tenant, named).under(adapter))
        model = book.language.model
        memory = self._memory_of(tenant, model, adapter)
        prompt = await self.prepare(ask, memory, book.language)
        source = f"chat-{secrets.token_hex(16)}"
        key = f"{source}/reply"
        rank = self._next_rank()
        asked = self.compose(book, ask, memory, prompt, key, rank)
        waiter = Waiter("reply")
        try:
            self._dispatcher.submit([Order(asked.call, waiter, book.specs, rank=rank)])
            yield ChatBegun(asked.composed.start + len(asked.call.tokens))
            async for chunk in waiter.chunks():
                yield chunk
            finish = waiter.result()
            self.remember(memory, book, finish)
            record = record_of(finish, ask.fidelity)
            self._meter.message_made(record, model)
            if self._audits is not None:
                self._audits.answered(CHATS, source, "reply", tenant, ask.fidelity, finish, lambda: asked.said(book))
            yield record
        finally:
            self._dispatcher.abort([key])
            self._dispatcher.directory.unwatch(source)

    async def prepare(self, ask: ChatAsk, memory: ChatMemory, language: Language) -> ChatPrompt:
        """The prompt, made in another thread where that takes long. Raises as `reply` does."""
        num_chars, most = ask.num_chars, min(MAX_CHARS, language.most_chars)
        if num_chars > most:
            raise OutOfRange(f"{num_chars} characters, expected at most {most}", field="messages")
        prompts = self.prompts(language.model)
        if num_chars <= LONG_TEXT and len(ask.messages) <= MANY_MESSAGES:
            return prompts.prompt(ask.messages, ask.tools, memory)
        beside = memory.beside()
        prompt = await asyncio.to_thread(prompts.prompt, ask.messages, ask.tools, beside)
        memory.adopt(beside)
        return prompt

    def compose(
        self, book: MessageBook, ask: ChatAsk, memory: ChatMemory, prompt: ChatPrompt, key: str, rank: int
    ) -> Asked:
        """The call for an answer of the book's model; what it needs is put into the book. Raises as `reply` does."""
        entries = []
        for part in prompt.parts:
            reply = memory.reply(part.text) if part.role == ROLE else None
            if reply is None:
                message = self._given(book, part.role, part.tokens)
            else:
                message = reply.message
                book.specs.update({spec.encoding_id: spec for spec in reply.specs})
            entries.append(Entry(message, ask.fidelity, recompute_share=ask.recompute_share))
        composed = book.compose(prompt.root, entries)
        header = (*prompt.header, *memory.encode(self.prompts(book.language.model).tokenizer.guarded(ask.opening)))
        sampling = ask.sampling
        if not sampling.max_tokens:
            sampling = replace(sampling, max_tokens=self._most_tokens(book, composed.start + len(header)))
        call = book.decoding(key, "the answer", composed, ROLE, header, sampling, path="max_tokens", rank=rank)
        return Asked(call, composed, tuple(entries), tuple(prompt.root), header)

    def remember(self, memory: ChatMemory, book: MessageBook, finish: Finish) -> None:
        """The answer, to be known again. All that it attended to has to be in the book."""
        home = finish.event.encoding
        specs = book.specs | {home.encoding_id: home}
        reply = Reply(Message(ROLE, home), tuple(closure([home.encoding_id], specs)))
        text = self.prompts(book.language.model).tokenizer.decode(home.tokens)
        memory.keep_reply(text, reply)

    def _given(self, book: MessageBook, role: str, tokens: tuple[int, ...]) -> Message:
        language = book.language
        root = language.framing.root(role if role in ROLES else "user")
        home, specs = home_of(
            language.space, root, tokens, max_context=language.max_context, what="a message", field="messages"
        )
        book.specs.update(specs)
        return Message(role, home)

    def _most_tokens(self, book: MessageBook, start: int) -> int:
        language = book.language
        rest = language.max_context - start - len(language.framing.terminator(ROLE, after_stop_token=False))
        if rest < 1:
            raise OutOfRange(
                f"the messages take {start} tokens, which leaves no room for an answer in the model's context of"
                f" {language.max_context}",
                field="messages",
            )
        pool_tokens = self._dispatcher.pools.named(language.model).info.pool_tokens
        return min(rest, max(256, pool_tokens // 8))

    def _memory_of(self, tenant: str, model: str, adapter: str) -> ChatMemory:
        key = tenant, model, adapter
        memory = self._memories.pop(key, None) or self.memory(model)
        self._memories[key] = memory
        if len(self._memories) > MAX_TENANTS:
            self._memories.popitem(last=False)
        return memory


def record_of(finish: Finish, fidelity: Fidelity) -> MessageRecord:
    """Of a message that is in no session yet."""
    event = finish.event
    return MessageRecord(
        session_id="",
        message_id="reply",
        role=ROLE,
        name=None,
        start=event.encoding.start,
        num_tokens=event.encoding.num_tokens,
        fidelity=fidelity,
        tokens_read=event.tokens_read,
        tokens_reused=event.tokens_reused,
        tokens_loaded=event.tokens_loaded,
        tokens_encoded=event.tokens_encoded,
        tokens_generated=event.tokens_generated,
        tokens_drafted=event.tokens_drafted,
        tokens_accepted=event.tokens_accepted,
        ttft_ms=event.ttft_ms + finish.waited_ms,
        wall_ms=event.wall_ms + finish.waited_ms,
        worker=finish.worker,
        finish_reason=event.finish_reason,
        text=event.text if event.finish_reason != "prefill" else "",
        token_ids=event.generated,
        logprobs=event.logprobs,
    )
