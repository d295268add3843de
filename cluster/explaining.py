"""Why a step's call went where it went, or why there is nothing to tell."""

from __future__ import annotations

from collections.abc import Iterable

from laban.actors.errors import NotFound
from laban.cluster.board import Board
from laban.cluster.records import NextUse, RoutingDecision, StepExplanation, StepResult

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
