"""What is said of steps that have a routing decision, and of those that have none."""

from __future__ import annotations

import pytest
from scripted_engine import MAX_CONTEXT, CharFraming, CharTokenizer

from laban.actors.errors import NotFound
from laban.cluster.board import Board
from laban.cluster.explaining import explained, next_uses
from laban.cluster.messages import Language, MessageBook
from laban.cluster.records import NextUse, RoutingCandidate, RoutingDecision, StepResult
from laban.cluster.views import Entry, compose
from laban.cluster.workflow.states import ReadRef
from laban.kvstore.encodings import flatten
from laban.kvstore.spaces import Space
from laban.kvstore.uses import Use

STEPS = (
    StepResult("ask[1]", "ask", state="waiting"),
    StepResult("ask[2]", "ask", state="ready", attempt=1),
    StepResult("human", "human", state="running", attempt=1, tool="human"),
    StepResult("inner", "inner", state="succeeded", attempt=1, finish_reason="workflow"),
    StepResult("none", "none", state="skipped"),
    StepResult("old", "old", state="succeeded", attempt=2, worker="w0"),
)
DECISION = RoutingDecision("wf/old", 2, 5.0, "cost", "w0", (RoutingCandidate("w0", (1.0,)),))


def board() -> Board:
    return Board("wf", "flow", STEPS, lambda: 0.0)


def test_a_decision_is_told_with_what_is_known_of_the_messages() -> None:
    uses = (NextUse("task", 1, 2.0, 1.0),)
    found = explained(board(), "old", DECISION, iter(uses))
    assert (found.workflow_id, found.address, found.decision, found.uses) == ("wf", "old", DECISION, uses)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("ask[1]", "not routed yet: what it reads"),
        ("ask[2]", "not routed yet: it waits for a worker"),
        ("human", "external step"),
        ("inner", "a workflow of its own"),
        ("none", "never routed: it was skipped"),
        ("old", "too long ago"),
        ("ask", r"no such step instance, expected one of ask\[1\], ask\[2\]"),
        ("nobody", "no such step instance .got 'nobody'"),
    ],
)
def test_without_a_decision_it_is_said_why(address: str, why: str) -> None:
    with pytest.raises(NotFound, match=why) as caught:
        explained(board(), address, None)
    assert (caught.value.field, caught.value.value) == ("address", address)


def test_of_many_instances_a_few_are_named() -> None:
    steps = [StepResult(f"vote[{number}]", "vote") for number in range(100)]
    with pytest.raises(NotFound, match=r"vote\[4\], \.\.\. .got 'vote'"):
        explained(Board("wf", "flow", steps, lambda: 0.0), "vote", None)


def test_the_messages_of_a_step_are_found_by_what_it_reads_of_them() -> None:
    book = MessageBook(Language(CharFraming(), CharTokenizer(), "model", MAX_CONTEXT))
    first, second, third = (book.add_text(key, "user", key, None, path=key) for key in ("first", "second", "third"))
    entries = [Entry(first), Entry(second), Entry(third, "direct")]
    composed = compose(Space("model"), book.language.framing.root("user"), entries, book.specs, max_context=MAX_CONTEXT)
    placed = flatten(composed.view, {**book.specs, **composed.added})
    uses = {
        placed[2].encoding_id: Use(2, 3.5, 0.5),  # of the second, as it is read behind the first
        second.home.encoding_id: Use(7, 9.0),
        third.home.encoding_id: Use(1, -0.25),  # overdue
        "another": Use(0, 0.0),
    }
    assert placed[2].encoding_id != second.home.encoding_id
    reads = (ReadRef("first", "exact"), ReadRef("second", "exact"), ReadRef("third", "direct"))
    assert next_uses(reads, book, uses) == (NextUse("second", 2, 3.5, 0.5), NextUse("third", 1, 0.0, 1.0))
    del uses[placed[2].encoding_id]
    assert next_uses(reads, book, uses)[0] == NextUse("second", 7, 9.0, 1.0)
    assert next_uses((), book, uses) == ()
    assert next_uses((*reads, ReadRef("gone", "exact")), book, uses) == ()
