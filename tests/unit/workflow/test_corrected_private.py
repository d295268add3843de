"""Corrected reads carry traces of what stood before the text elsewhere, so nothing private may be beside them."""

from __future__ import annotations

import pytest

from laban.cluster.workflow.diagnostics import WorkflowErrors
from laban.cluster.workflow.parse import parse_yaml
from laban.cluster.workflow.run import Run

FLOW = """
version: 1
name: flow
messages: {{open: one, secret: {{text: two, private: {private}}}}}
steps:
  - {{step: keep, read: [secret, open]}}
  - {{step: tell, read: [secret, {{read: open, fidelity: {fidelity}}}]}}
"""


@pytest.mark.parametrize(("fidelity", "private"), [("corrected", "false"), ("exact", "true"), ("direct", "true")])
def test_it_is_refused_only_where_something_is_private(fidelity: str, private: str) -> None:
    Run(parse_yaml(FLOW.format(fidelity=fidelity, private=private)), {})
    with pytest.raises(WorkflowErrors) as caught:
        Run(parse_yaml(FLOW.format(fidelity="corrected", private="true")), {})
    [problem] = [each for each in caught.value.diagnostics if each.severity == "error"]
    assert "'tell' reads `corrected`" in problem.message
