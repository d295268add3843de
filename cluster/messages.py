"""The messages of one workflow or session, and every encoding that a later call of it may need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from laban.actors.calls import Call, Sampling
from laban.actors.errors import InvalidInput, LabanError, OutOfRange, UnsupportedModel
from laban.cluster.recent import Recent
from laban.cluster.records import Layout
from laban.cluster.texts import aside
from laban.cluster.views import Composed, Entry, Message, check_fits, compose, home_of
from laban.cluster.workflow.names import MAX_TEXT
from laban.cluster.workflow.states import MessageText, ReadRef
from laban.kvstore.encodings import (
    EncodingId,
    EncodingSpec,
    View,
    adapter_of,
    closure,
    dependencies,
    make_spec,
    with_adapter,
)
from laban.kvstore.spaces import NOTHING, Granted, Space, moved


class FramingPort(Protocol):
    """What is needed of `laban.actors.framing.Framing`."""

    @property
    def stop_token_ids(self) -> tuple[int, ...]: ...
    def root(self, first_role: str) -> tuple[int, ...]: ...
    def message(self, role: str, text: str, name: str | None = None, *, first: bool = False) -> tuple[int, ...]: ...
    def header(
        self, role: str, name: str | None = None, *, first: bool = False, prefill: str = ""
    ) -> tuple[int, ...]: ...
    def terminator(self, role: str, *, after_stop_token: bool) -> tuple[int, ...]: ...
    def starts_otherwise(self, role: str) -> bool: ...


class TokenizerPort(Protocol):
    """What is needed of `laban.actors.tokenizer.Tokenizer`."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def longest_token(self) -> int: ...
    def encode(self, text: str) -> list[int]: ...
    def guarded(self, text: str) -> str: ...


@dataclass(frozen=True, slots=True)
class Language:
    """What turns text into calls for one model and tenant. `max_context` is in tokens, `model` the model's name.

    `adapters` are the fingerprints of the model's, by name. `granted` is what the tenant shares with others, by the
    adapter's fingerprint, "" being none.
    """

    framing: FramingPort
    tokenizer: TokenizerPort
    namespace: str
    max_context: int
    model: str = ""
    adapters: Mapping[str, str] = field(default_factory=dict)
    granted: Mapping[str, Granted] = field(default_factory=dict)

    @property
    def space(self) -> Space:
        return Space(self.namespace, self.granted.get(adapter_of(self.namespace), NOTHING))

    @property
    def most_chars(self) -> int:
        """A text of more than that is longer than the context, whatever its tokens are."""
        return self.max_context * self.tokenizer.longest_token

    def check_room(self, text: str, field: str) -> None:
        """Raises OutOfRange for a text of more than `most_chars`: to make tokens of it may take seconds."""
        if len(text) > self.most_chars:
            raise OutOfRange(
                f"{len(text)} characters, expected at most {self.most_chars}: more never fit the model's context of"
                f" {self.max_context} tokens",
                field=field,
            )

    def encode(self, text: str, field: str) -> list[int]:
        """The tokens of a text as it stands. Raises OutOfRange as `check_room` does, InvalidInput for what is not
        Unicode."""
        self.check_room(text, field)
        return self.tokenizer.encode(self.tokenizer.guarded(text))

    def under(self, adapter: str) -> Language:
        """Of calls with one of the model's adapters; "" is none. Raises InvalidInput for an unknown one."""
        if not adapter:
            return self
        if adapter not in self.adapters:
            expected = f"expected one of {', '.join(self.adapters)}" if self.adapters else "there are none"
            raise InvalidInput(f"no such adapter is served; {expected}", field="adapter", value=adapter)
        return replace(self, namespace=with_adapter(self.namespace, self.adapters[adapter]))


class LanguageOf(Protocol):
    """Gives a tenant's language of a model, "" being the default. Raises InvalidInput for one that is not served."""

    def __call__(self, tenant: str, model: str = "") -> Language: ...


@dataclass(frozen=True, slots=True)
class Voice:
    """How one model writes: what a Language of it has, whoever's."""

    framing: FramingPort
    tokenizer: TokenizerPort
    adapters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Opening:
    """How a generated message begins: whose it is, and the text put at its start."""

    role: str
    name: str | None = None
    prefill: str = ""


@dataclass(frozen=True, slots=True)
class Written:
    """A message as text, which is what crosses from one model to another. `path` is its field in errors."""

    role: str
    text: str
    name: str | None
    path: str


Framed = tuple[tuple[int, ...], tuple[int, ...]]
"""A message's tokens, and those that it has at the start of a conversation."""


def tokens_of(
    language: Language, role: str, name: str | None, text: str | None, token_ids: Sequence[int] | None, *, first: bool
) -> Sequence[int]:
    """The tokens of a message that is given as text, to be framed, or as exactly its tokens.

    Raises InvalidInput for both or neither, a role without a frame, and ids that are none of the model's, OutOfRange
    for a text that is surely longer than the context.
    """
    if (text is None) == (token_ids is None):
        raise InvalidInput("expected either text or token ids", field="content")
    language.framing.root(role)  # refuses a role that the model has no frame for
    if text is not None:
        language.check_room(text, "text")
        return language.framing.message(role, text, name, first=first)
    assert token_ids is not None
    if not token_ids:
        raise InvalidInput("expected at least one token", field="token_ids")
    check_token_ids(language, token_ids, "token_ids")
    return token_ids


def check_token_ids(language: Language, token_ids: Sequence[int], field: str) -> None:
    """Raises InvalidInput for ids that are none of the model's."""
    size = language.tokenizer.vocab_size
    for index, token_id in enumerate(token_ids):
        if not 0 <= token_id < size:
            raise InvalidInput(f"expected 0 to {size - 1}", field=f"{field}[{index}]", value=token_id)


@dataclass(slots=True)
class MessageBook:
    """Grows only; `keep_only` forgets. Specs stay as long as a message here descends from them.

    Where a workflow may call several models this is the book of the default one, and `of` has one for each other. They
    have their texts in common. What one model wrote, or was given, is framed and encoded for another one once a call of
    that one reads it.

    `under` has one for each adapter, with the same messages: what is at home in another adapter's encodings, or in the
    plain model's, is so at the same place under the same view, encoded by this one.
    """

    language: Language
    messages: dict[str, Message] = field(default_factory=dict)
    specs: dict[EncodingId, EncodingSpec] = field(default_factory=dict)
    languages: Callable[[str], Language] | None = None  # of other models, by name; None: there are none
    _texts: dict[str, Written] = field(default_factory=dict)
    _others: dict[str, MessageBook] = field(default_factory=dict)
    _plain: MessageBook | None = None  # of the book of an adapter
    _moved: dict[EncodingId, EncodingId] = field(default_factory=dict)  # of others' encodings: those of the same here
    _ahead: Recent[tuple[str, str, str | None], Framed] = field(default_factory=lambda: Recent(MAX_TEXT))
    """Messages that are about to be given, by role, text and name."""

    def of(self, model: str) -> MessageBook:
        """The book of one model, "" being the default. Raises what `languages` does for an unknown one."""
        if self.languages is None or model in ("", self.language.model):
            return self
        other = self._others.get(model)
        if other is None:
            other = self._others[model] = MessageBook(self.languages(model), _texts=self._texts)
        return other

    def under(self, adapter: str) -> MessageBook:
        """The book of calls with one of the model's adapters; "" is none. Raises InvalidInput for an unknown one."""
        if not adapter:
            return self
        key = f"#{adapter}"
        other = self._others.get(key)
        if other is None:
            other = MessageBook(self.language.under(adapter), self.messages, self.specs, _plain=self)
            self._others[key] = other
        return other

    def find(self, key: str) -> Message | None:
        """In this model's tokens; None if there is no such message yet. Raises as `add_text` does for a text that this
        model cannot read."""
        if self._plain is not None:
            message = self._plain.find(key)
        else:
            message = self.messages.get(key)
            if message is None and (written := self._texts.get(key)) is not None:
                message = self.add_text(key, written.role, written.text, written.name, path=written.path)
        space = self.language.space
        if message is None or space.has(message.home):
            return message
        known = self._moved.get(message.home.encoding_id)
        home = known or moved(message.home.encoding_id, space, self.specs, self._moved)
        return replace(message, home=self.specs[home])

    def read(self, keys: Iterable[str]) -> None:
        """Have messages that are there in this model's tokens. Raises as `find` does."""
        for key in keys:
            self.find(key)

    def give(self, key: str, role: str, text: str, name: str | None, *, path: str) -> None:
        """A message that was given, to whatever models will read it. Raises as `add_text` does where there is but one
        model; where there are several, `find` does."""
        if self.languages is None:
            self.add_text(key, role, text, name, path=path)
        else:
            self._texts[key] = Written(role, text, name, path)

    def tell(self, key: str, role: str, text: str, name: str | None) -> None:
        """What a model wrote, to the other ones."""
        if self.languages is not None:
            self._texts[key] = Written(role, text, name, key)

    async def look_ahead(self, role: str, text: str, name: str | None) -> None:
        """Before such a message is given: have the tokens ready that will be asked for then, made in another thread if
        it is long. Raises as `add_text` does where there is but one model, except for what only its tokens say."""
        if self.languages is None:
            books = [self]
        else:  # which of the models will read it is not known yet
            books = [self, *(book for key, book in self._others.items() if not key.startswith("#"))]
        for book in books:
            try:
                framed = await aside(len(text), partial(book._framed, role, text, name, path="text"))
            except LabanError:
                if self.languages is None:
                    raise
            else:
                book._ahead.put((role, text, name), framed, len(text))

    async def look_over(self, role: str, text: str, name: str | None) -> None:
        """`look_ahead` that raises all that `give` would, and then leaves nothing behind."""
        await self.look_ahead(role, text, name)
        if self.languages is None:
            try:
                self._home_of(self._ahead_or_framed(role, text, name, path="text"), role, what="the text", path="text")
            except LabanError:
                self._ahead.drop((role, text, name))
                raise

    def _framed(self, role: str, text: str, name: str | None, *, path: str) -> Framed:
        framing = self.language.framing
        self.language.check_room(text, path)
        tokens = framing.message(role, text, name)
        return tokens, framing.message(role, text, name, first=True) if framing.starts_otherwise(role) else tokens

    def _ahead_or_framed(self, role: str, text: str, name: str | None, *, path: str) -> Framed:
        return self._ahead.get((role, text, name)) or self._framed(role, text, name, path=path)

    def _home_of(
        self, framed: Framed, role: str, *, what: str, path: str
    ) -> tuple[EncodingSpec, dict[EncodingId, EncodingSpec]]:
        language = self.language
        root = language.framing.root(role)
        return home_of(language.space, root, framed[0], max_context=language.max_context, what=what, field=path)

    def add_text(self, key: str, role: str, text: str, name: str | None, *, path: str) -> Message:
        """A message that was given, at home right after its root. `path` is its field in errors.

        Raises InvalidInput for a role that cannot be framed or text that is not valid, OutOfRange for one
        longer than the context.
        """
        framed = self._ahead_or_framed(role, text, name, path=path)
        self._ahead.drop((role, text, name))
        tokens, first_tokens = framed
        home, specs = self._home_of(framed, role, what=f"message {key}", path=path)
        self.specs.update(specs)
        message = Message(role, home, name, () if first_tokens == tokens else first_tokens)
        self.messages[key] = message
        return message

    def add_fixed(self, messages: Iterable[MessageText]) -> None:
        """The messages of a workflow that no call makes, agents' prompts among them. Raises as `add_text` does."""
        for message in messages:
            key = message.key
            path = f"agents.{key[6:]}.prompt" if key.startswith("agent:") else f"messages.{key}"
            self.give(key, message.role, message.text, message.name, path=path)

    def entries(self, reads: Iterable[ReadRef]) -> list[Entry]:
        """A step's reads as a view's entries. Raises as `find` does."""
        return [
            Entry(
                self._found(read.key),
                read.fidelity,
                begin=read.begin,
                end=read.end,
                recompute_share=read.recompute_share,
                tolerance=read.tolerance,
                slot=read.index,
            )
            for read in reads
        ]

    def _found(self, key: str) -> Message:
        message = self.find(key)
        if message is None:
            raise KeyError(key)
        return message

    def add_encoded(
        self, key: str, role: str, name: str | None, home: EncodingSpec, view: View | None = None
    ) -> Message:
        """A message that a call made, under `view` as its call has it here: under another one in `home` if that was
        made while other messages were granted. KeyError unless all that its encoding depends on is here."""
        if view is not None and home.view != view:
            home = make_spec(home.namespace, home.tokens, home.start, view, self.specs)
        for encoding_id in dependencies(home.view):
            self.specs[encoding_id]
        self.specs[home.encoding_id] = home
        message = self.messages[key] = Message(role, home, name)
        return message

    def keep_only(self, keys: Sequence[str]) -> None:
        """Forget the other messages and the specs that only they needed."""
        self.messages = {key: self.messages[key] for key in keys}
        needed = closure((message.home.encoding_id for message in self.messages.values()), self.specs)
        self.specs = {spec.encoding_id: spec for spec in needed}
        self._moved.clear()

    def decode(
        self,
        call_id: str,
        what: str,
        entries: Sequence[Entry],
        opening: Opening,
        sampling: Sampling,
        *,
        header: Sequence[int] | None = None,
        layout: Layout = "packed",
        position: int | None = None,
        path: str = "",
        rank: int = 0,
    ) -> tuple[Call, Composed]:
        """A call that generates a message; `header` is its opening's, where that has been made. OutOfRange, naming
        `what` and `path`, if it may outgrow the context."""
        role = opening.role
        composed = self._compose(entries, role, layout, position)
        header = header or self.header(opening, first=not entries)
        return self.decoding(call_id, what, composed, role, header, sampling, path=path, rank=rank), composed

    def header(self, opening: Opening, *, first: bool) -> tuple[int, ...]:
        """The tokens that a generated message begins with. In any thread. Raises OutOfRange as `check_room` does."""
        self.language.check_room(opening.prefill, "prefill")
        header = self.language.framing.header(opening.role, opening.name, first=first, prefill=opening.prefill)
        if not header:
            raise UnsupportedModel(f"the model's template has no header for the role {opening.role}, expected one")
        return header

    def decoding(
        self,
        call_id: str,
        what: str,
        composed: Composed,
        role: str,
        header: Sequence[int],
        sampling: Sampling,
        *,
        path: str = "",
        rank: int = 0,
    ) -> Call:
        """`decode` for a view that is composed, and a header of one's own."""
        framing = self.language.framing
        terminator = framing.terminator(role, after_stop_token=False)
        parts = {"header": len(header), "max_tokens": sampling.most_tokens, "terminator": len(terminator)}
        check_fits(what, composed.start, parts, self.language.max_context, field=path)
        call = self._call(call_id, composed, header)
        sampling = replace(sampling, stop_token_ids=framing.stop_token_ids)
        return replace(call, sampling=sampling, terminator=terminator, rank=rank)

    def prefill(
        self,
        call_id: str,
        what: str,
        entries: Sequence[Entry],
        role: str,
        tokens: Sequence[int],
        *,
        layout: Layout = "packed",
        position: int | None = None,
        path: str = "",
        rank: int = 0,
    ) -> tuple[Call, Composed]:
        """A call that encodes `tokens` as a message under a view. Raises OutOfRange as `decode` does."""
        composed = self._compose(entries, role, layout, position)
        check_fits(what, composed.start, {"the message": len(tokens)}, self.language.max_context, field=path)
        call = replace(self._call(call_id, composed, tokens), rank=rank)
        granted = self.language.space.find(tokens, composed.start, composed.view)
        return call if granted is None else replace(call, namespace=granted.namespace), composed

    def compose(
        self, root: Sequence[int], entries: Sequence[Entry], layout: Layout = "packed", position: int | None = None
    ) -> Composed:
        """These entries after the root's tokens; the encodings that this names are kept here. Raises what
        `views.compose` does."""
        language = self.language
        composed = compose(
            language.space,
            root,
            entries,
            self.specs,
            max_context=language.max_context,
            layout=layout,
            position=position,
        )
        self.specs.update(composed.added)
        return composed

    def _compose(self, entries: Sequence[Entry], role: str, layout: Layout, position: int | None) -> Composed:
        root = self.language.framing.root(entries[0].message.role if entries else role)
        return self.compose(root, entries, layout, position)

    def _call(self, call_id: str, composed: Composed, tokens: Sequence[int]) -> Call:
        needed = closure(dependencies(composed.view), self.specs)
        view, start = composed.view, composed.start
        return Call(call_id, self.language.namespace, view, start, tuple(tokens), tuple(needed), slots=composed.slots)
