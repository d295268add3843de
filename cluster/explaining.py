"""Why a step's call went where it went, or why there is nothing to tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from laban.actors.errors import LabanError, NotFound
from laban.cluster.board import Board
from laban.cluster.messages import MessageBook
from laban.cluster.records import NextUse, RoutingDecision, StepExplanation, StepResult
from laban.cluster.views import compose
from laban.cluster.workflow.states import ReadRef
from laban.kvstore.encodings import EncodingId, flatten
from laban.kvstore.uses import Use

MAX_SUGGESTED = 5


def step_of(board: Board, address: str) -> StepResult:
    """Raises NotFound, naming instances of the step where only that was said."""
    result = board.steps.get(address)
    if result is not None:
        return result
    near = [other for other in board.steps if other.partition("[")[0] == address]
    more = ", ..." if len(near) > MAX_SUGGESTED else ""
    hint = f", expected one of {', '.join(near[:MAX_SUGGESTED])}{more}" if near else ""
    raise NotFound(f"the workflow has no such step instance{hint}", field="address", value=address)


def explained(
    board: Board, address: str, decision: RoutingDecision | None, uses: Iterable[NextUse] = ()
) -> StepExplanation:
    """`decision` is the last one of the step's call. Raises NotFound, with the reason, if there is none."""
    result = step_of(board, address)
    if decision is None:
        raise NotFound(_why_none(result), field="address", value=address)
    return StepExplanation(board.workflow_id, address, decision, tuple(uses))


def next_uses(reads: Sequence[ReadRef], book: MessageBook, uses: Mapping[EncodingId, Use]) -> tuple[NextUse, ...]:
    """When each message that a step reads, each once, will be read next; those that nobody will are left out.

    `book` has the messages. A message is what the step reads of it, or else the encoding made when it was.
    """
    try:
        if not reads or any(book.find(read.key) is None for read in reads):
            return ()
    except LabanError:  # the call said so
        return ()
    entries = book.entries(reads)
    language = book.language
    root = language.framing.root(entries[0].message.role)
    try:
        composed = compose(language.space, root, entries, book.specs, max_context=language.max_context)
    except LabanError:  # the call said so
        return ()
    placed = iter(flatten(composed.view, {**book.specs, **composed.added})[int(composed.has_root) :])
    found: dict[str, NextUse] = {}
    for read, entry, (_, stop) in zip(reads, entries, composed.spans[int(composed.has_root) :], strict=True):
        of_read = [next(placed)]
        while of_read[-1].stop < stop:  # a blended read has two
            of_read.append(next(placed))
        ids = [*(placement.encoding_id for placement in of_read), entry.message.home.encoding_id]
        use = next((uses[encoding_id] for encoding_id in ids if encoding_id in uses), None)
        if use is not None:
            found[read.key] = NextUse(read.key, use.steps, max(0.0, use.in_s), use.likelihood)
    return tuple(found.values())


def _why_none(result: StepResult) -> str:
    if result.tool:
        return "is an external step: it has no call that could be routed"
    if result.finish_reason == "workflow":
        return "runs a workflow of its own; ask about the steps of that one"
    if result.state == "waiting":
        return "was not routed yet: what it reads is not there"
    if result.state == "ready":
        return "was not routed yet: it waits for a worker"
    if result.attempt == 0:
        return f"was never routed: it was {result.state}"
    return "is too long ago: where its call could have gone is not kept any more"
