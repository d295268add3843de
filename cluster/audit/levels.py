"""Which levels an audit can be asked for."""

from __future__ import annotations

from laban.cluster.audit.records import AS_WRITTEN
from laban.cluster.workflow.fidelity import AUTO
from laban.cluster.workflow.overrides import check_fidelity
from laban.cluster.workflow.states import Overrides


def problem_with(level: str) -> str:
    """Why no run can be replayed under it; "" if one can.

    >>> problem_with("direct"), problem_with("auto")
    ('', 'auto chooses one of the levels: name these')
    """
    if level == AS_WRITTEN:
        return ""
    if level == AUTO:
        return "auto chooses one of the levels: name these"
    problems = check_fidelity(Overrides(level))[1]
    return problems[0].message if problems else ""
