"""The views of one workflow's calls to come, composed as far as they are known: a tree, since many begin alike.

What is found is what `compose` will make of the same reads, so the ids are those of the encodings that will be read.
"""

from __future__ import annotations

from collections import ChainMap
from dataclasses import dataclass, field

from laban.actors.errors import LabanError
from laban.cluster.messages import MessageBook
from laban.cluster.views import Entry, Message, place
from laban.cluster.workflow.states import ReadRef
from laban.kvstore.encodings import EMPTY_VIEW, EncodingId, EncodingSpec, View, dependencies


@dataclass(slots=True, eq=False)
class Spot:
    """The place after some reads: the view so far, and where the next token goes.

    `encoding_id` is what the last of them reads, None where there is no root; `fixed` says that all of it was written
    before the run began.
    """

    view: View
    stop: int
    encoding_id: EncodingId | None
    fixed: bool
    before: Spot | None
    num_reads: int = 0
    after: dict[ReadRef, Spot | None] = field(default_factory=dict)

    def encodings(self) -> list[tuple[EncodingId, bool]]:
        """What is read, in the view's order, and whether it is fixed."""
        found: list[tuple[EncodingId, bool]] = []
        spot: Spot | None = self
        while spot is not None:
            if spot.encoding_id is not None:
                found.append((spot.encoding_id, spot.fixed))
            spot = spot.before
        found.reverse()
        return found


class ViewTree:
    """`specs` holds those of all encodings found, and of what they depend on, as long as `book` has the messages."""

    def __init__(self, book: MessageBook) -> None:
        self._book = book
        self._foreseen: dict[EncodingId, EncodingSpec] = {}
        self._roots: dict[str, Spot] = {}
        self._others: dict[tuple[str, str], ViewTree] = {}

    def of(self, model: str, adapter: str = "") -> ViewTree:
        """The tree of calls of a model, "" being the default, with an adapter; of the default's without, this one."""
        book = self._book.of(model).under(adapter)
        if book is self._book:
            return self
        other = self._others.get((model, adapter))
        if other is None:
            other = self._others[model, adapter] = ViewTree(book)
        return other

    @property
    def namespace(self) -> str:
        return self._book.language.namespace

    @property
    def specs(self) -> ChainMap[EncodingId, EncodingSpec]:
        """Those of other models' trees, too."""
        others = [spec for other in list(self._others.values()) for spec in other.specs.maps]
        return ChainMap(self._foreseen, self._book.specs, *others)

    def root(self, role: str) -> Spot:
        """Of views whose first message is of this role, or that read nothing and make such a message."""
        spot = self._roots.get(role)
        if spot is None:
            language = self._book.language
            tokens = language.framing.root(role)
            spot = Spot(EMPTY_VIEW, 0, None, True, None)
            if tokens:
                spec = language.space.spec(tokens, 0, EMPTY_VIEW, {})
                self._foreseen.setdefault(spec.encoding_id, spec)
                spot = Spot(View(spec.encoding_id), len(tokens), spec.encoding_id, True, None)
            self._roots[role] = spot
        return spot

    def role_of(self, ref: ReadRef) -> str | None:
        message = self._message(ref)
        return None if message is None else message.role

    def after(self, spot: Spot, ref: ReadRef, *, fixed: bool) -> Spot | None:
        """`spot` and one more read, of a message that is `fixed` or was made by the run. None: there is no such message
        yet, or no room for it."""
        if ref in spot.after:
            return spot.after[ref]
        message = self._message(ref)
        if message is None:
            return None
        specs = self.specs
        # Which tokens of a blended read are encoded again depends on all that follows: it is taken for a direct one. So
        # is a corrected one, whether or not a worker will predict it: nothing is to be encoded for it ahead of time.
        fidelity = "direct" if ref.fidelity == "corrected" else ref.fidelity
        entry = Entry(message, fidelity, begin=ref.begin, end=ref.end)
        found: Spot | None = None
        language, number = self._book.language, spot.num_reads
        try:
            view, stop = place(language.space, entry, number, spot.stop, spot.view, specs)
        except LabanError:  # the call will say so
            stop = language.max_context + 1
        if stop <= language.max_context:
            encoding_id = dependencies(view)[-1]
            own = fixed and (spot.fixed or encoding_id == message.home.encoding_id)
            found = Spot(view, stop, encoding_id, own, spot, number + 1)
        spot.after[ref] = found
        return found

    def home(self, ref: ReadRef) -> EncodingId | None:
        """What a direct read of a message reads, wherever it stands."""
        message = self._message(ref)
        return None if message is None else message.home.encoding_id

    def _message(self, ref: ReadRef) -> Message | None:
        try:
            return self._book.find(ref.key)
        except LabanError:  # the call that reads it will say so
            return None
