"""A finished call that is to be audited in service, and the calls that this takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from laban.actors.calls import Call, Sampling, Scoring
from laban.cluster.audit.apart import PREDICTED, apart
from laban.cluster.audit.findings import Source
from laban.cluster.messages import Language, MessageBook, Opening
from laban.cluster.records import Layout
from laban.cluster.spare_calls import RANK
from laban.cluster.views import Entry
from laban.cluster.workflow.fidelity import Degree
from laban.cluster.workflow.schema import Workflow
from laban.kvstore.encodings import EncodingId, EncodingSpec, closure, is_common

MAX_TOKENS = 256
"""Of a text the first so many are compared: what is kept of each is a number for every word of the vocabulary."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a call read, and how its message begins. `specs` holds all that the messages depend on."""

    opening: Opening
    entries: tuple[Entry, ...]
    language: Language
    specs: Mapping[EncodingId, EncodingSpec]
    indices: tuple[int | None, ...] = ()  # which entry of a step's `read` each is of
    layout: Layout = "packed"
    position: int | None = None
    framed: tuple[tuple[int, ...], tuple[int, ...]] | None = None  # the tokens of a root and a header of its own

    @classmethod
    def of(cls, book: MessageBook, opening: Opening, entries: Sequence[Entry], **more: Any) -> Said:
        """Of a call that the book composed, whatever becomes of the book."""
        needed = closure([entry.message.home.encoding_id for entry in entries], book.specs)
        return cls(opening, tuple(entries), book.language, {spec.encoding_id: spec for spec in needed}, **more)

    def again(self, key: str, what: str, book: MessageBook, entries: Sequence[Entry], sampling: Sampling) -> Call:
        """The call with its entries taken otherwise. Raises what composing a call raises."""
        if self.framed is None:
            call, _ = book.decode(
                key, what, entries, self.opening, sampling, layout=self.layout, position=self.position
            )
            return call
        root, header = self.framed
        composed = book.compose(root, entries, self.layout, self.position)
        return book.decoding(key, what, composed, self.opening.role, header, sampling)


SESSIONS, CHATS = "@sessions", "@chats"
CALLERS = (SESSIONS, CHATS)
"""What calls outside of workflows are found under; no workflow has such a name."""


@dataclass(frozen=True, slots=True)
class Trial:
    """The call as it was, which `name` sums up; or at a `degree`, with `read` that entry alone, the others exact."""

    name: str
    degree: Degree | None = None
    read: int | None = None

    @property
    def predicts(self) -> bool:
        return self.degree is not None and self.degree.level == PREDICTED


@dataclass(frozen=True, slots=True)
class Case:
    """A call of a workflow's step; or, without a `workflow`, one of a session or a chat: then `name` is one of CALLERS,
    `workflow_id` and `address` are its own, and `step` the model."""

    workflow_id: str
    address: str
    step: str  # its path
    tenant: str
    worker_id: str  # where it ran
    source: Source
    said: Said
    token_ids: tuple[int, ...]
    trials: tuple[Trial, ...]
    at_s: float  # when it ended, monotonic
    name: str
    workflow: Workflow | None = None

    @property
    def num_tokens(self) -> int:
        """That are encoded for it, about: the view under `exact`, and the text under that and each trial."""
        view = sum(entry.message.home.num_tokens for entry in self.said.entries)
        views = 1.0
        for trial in self.trials:
            if trial.degree is not None:
                views += {"corrected": 1.0, "blended": trial.degree.share}.get(trial.degree.level, 0.0)
        return int(views * view) + (1 + len(self.trials)) * min(len(self.token_ids), MAX_TOKENS)


@dataclass(frozen=True, slots=True)
class Pair:
    """The call under `exact`, whose scores are kept, and each trial's, whose view is another. `same` are the trials
    whose view is that of `exact`. `made` are the encodings that the call as it was did not ask for, but for granted
    ones: whether somebody else did is not known here."""

    exact: Call
    others: tuple[tuple[Trial, Call], ...]
    same: tuple[Trial, ...]
    made: frozenset[EncodingId]


def calls_of(case: Case, key: str, kept: str) -> Pair:
    """`key` is the calls' own, `kept` what the scores are kept under.

    Slow for large views: call it off the event loop. Raises what composing a call raises.
    """
    book = MessageBook(case.said.language, specs=dict(case.said.specs))
    tokens = case.token_ids[:MAX_TOKENS]
    sampling = Sampling(max_tokens=len(tokens), forced=tokens)

    def call(name: str, entries: list[Entry], scoring: Scoring) -> Call:
        made = case.said.again(f"{key}/{name}", case.address, book, entries, sampling)
        return replace(made, scoring=scoring, spare=True, rank=RANK)

    exact = call("exact", [replace(entry, fidelity="exact") for entry in case.said.entries], Scoring(keep=kept))
    others, same = [], []
    asked = [*exact.specs] if case.source == "shadow" else []
    for number, trial in enumerate(case.trials):
        other = call(str(number), list(_entries(case.said, trial)), Scoring(against=kept))
        if trial.degree is None:
            asked += other.specs
        if (other.view, other.start) == (exact.view, exact.start):
            same.append(trial)
        else:
            if trial.predicts:
                other = apart(other, case.said.language.namespace, f"{kept}-{number}")
            others.append((trial, other))
    if others:
        trial, last = others[-1]
        others[-1] = trial, replace(last, scoring=Scoring(against=kept, release=True))
    specs = (spec for each in (exact, *(other for _, other in others)) for spec in each.specs)
    made = {spec.encoding_id for spec in specs if not is_common(spec.namespace)}
    return Pair(exact, tuple(others), tuple(same), frozenset(made - {spec.encoding_id for spec in asked}))


def _entries(said: Said, trial: Trial) -> Iterator[Entry]:
    if trial.degree is None:
        yield from said.entries
        return
    level, share = trial.degree.level, trial.degree.share
    for entry, index in zip(said.entries, said.indices, strict=True):
        asked = trial.read in (None, index)
        yield replace(entry, fidelity=level if asked else "exact", recompute_share=share)
