"""Which levels an audit can be asked for."""

from __future__ import annotations

from laban.cluster.audit.records import AS_WRITTEN
from laban.cluster.workflow.fidelity import AUTO, Degree, expected
from laban.cluster.workflow.schema import Workflow

EXPECTED = f"{expected()}, or blended:SHARE with a share above 0, up to 1"


def problem_with(level: str) -> str:
    """Why no run can be replayed under it; "" if one can.

    >>> problem_with("direct"), problem_with("blended:0.3"), problem_with("auto")
    ('', '', 'auto chooses one of the levels: name these')
    """
    if level == AS_WRITTEN:
        return ""
    if level == AUTO:
        return "auto chooses one of the levels: name these"
    return "" if Degree.of(level) is not None else "not a fidelity"


def named(level: str, workflow: Workflow) -> str:
    """As it is told of: `blended` by itself is at the share that the workflow states. Of no problem."""
    degree = Degree.of(level, workflow.recompute_share)
    return level if degree is None else str(degree)
