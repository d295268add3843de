"""Where the tolerance of a corrected read comes from."""

from __future__ import annotations

import pytest

from laban.cluster.workflow.fidelity import TOLERANCE
from laban.cluster.workflow.parse import parse_yaml
from laban.cluster.workflow.run import Run

FLOW = """
version: 1
name: flow
fidelity: {fidelity}
{usual}
messages: {{a: one, b: two, c: three}}
agents: {{ann: You are Ann.}}
steps:
  - step: say
    agent: ann
    tolerance: 0.25
    read: [a, {{read: b, tolerance: 0.5}}, {{read: c, fidelity: direct}}]
  - step: tell
    agent: ann
    read: [a, b]
"""


@pytest.mark.parametrize(("usual", "expected"), [("", TOLERANCE), ("tolerance: 0.125", 0.125)])
def test_the_tolerance_is_the_reads_or_the_steps_or_the_workflows(usual: str, expected: float) -> None:
    run = Run(parse_yaml(FLOW.format(fidelity="corrected", usual=usual)), {})
    first, second = (ready.reads for ready in run.ready())
    assert [(read.fidelity, read.tolerance) for read in first] == [
        ("corrected", 0.25), ("corrected", 0.25), ("corrected", 0.5), ("direct", 0.25)
    ]  # fmt: skip
    assert {(read.fidelity, read.tolerance) for read in second} == {("corrected", expected)}
