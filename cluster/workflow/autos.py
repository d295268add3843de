"""What a workflow leaves to `auto`, said before it runs."""

from __future__ import annotations

from collections.abc import Iterator

from laban.cluster.workflow.blocks import lay_out
from laban.cluster.workflow.diagnostics import Problem
from laban.cluster.workflow.fidelity import AUTO, TOLERANCE
from laban.cluster.workflow.schema import Workflow
from laban.cluster.workflow.states import Overrides


def unchosen(workflow: Workflow, overrides: Overrides) -> Iterator[Problem]:
    """Of each step and read that asks for `auto`, what it will be: that depends on what a server has recorded."""
    if overrides.fidelity not in (None, AUTO):
        return
    for placed in lay_out(workflow).steps:
        step = placed.step
        if step.external is not None or step.workflow is not None:
            continue
        stated = (overrides.tolerance, step.tolerance, workflow.tolerance)
        tolerance = next((each for each in stated if each is not None), TOLERANCE)
        if AUTO in (overrides.fidelity, step.fidelity or workflow.fidelity):
            yield Problem(placed.loc, _told(f"step '{step.step}'", tolerance), severity="info")
        for index, read in enumerate(step.read if overrides.fidelity is None else ()):
            if read.fidelity == AUTO:
                own = tolerance if read.tolerance is None else read.tolerance
                what = f"read {index} of step '{step.step}'"
                yield Problem((*placed.loc, "read", index), _told(what, own), severity="info")


def _told(what: str, tolerance: float) -> str:
    return (
        f"{what} is auto: exact, or the cheapest level that audits of this workflow found surely within "
        f"{tolerance:g} nats a token (`laban audit FILE --keep`, or audits in service)"
    )
