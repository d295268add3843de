"""A run under `exact`, as it went: what audits replay, and adapters are trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from laban.actors.errors import Unavailable
from laban.cluster.audit.records import RecordedStep
from laban.cluster.cli.tools import serving
from laban.cluster.records import Event

if TYPE_CHECKING:
    from laban.cluster.cli.shell import ShellTool
    from laban.cluster.cli.show import Waiting
    from laban.cluster.client import Client


def record_run(
    client: Client,
    inputs: Mapping[str, object],
    options: Mapping[str, Any],
    tools: dict[str, ShellTool],
    waiting: Waiting,
) -> tuple[list[RecordedStep], str]:
    """The instances in the order in which they ended, or why the run failed. `options` are of the submission; `waiting`
    says which steps wait for somebody."""
    order: list[RecordedStep] = []
    workflow_id = ""
    with serving(client, tools) as served:
        for item in client.run(inputs=inputs, cancel_on_disconnect=True, **options):
            if not workflow_id:
                workflow_id = item.workflow_id
                served.begin(workflow_id)
            waiting.see(item, served.names)
            result = item.result if isinstance(item, Event) else None
            if result is not None and result.state == "succeeded":
                order.append(RecordedStep(result.address, result.text, tuple(result.token_ids)))
            elif result is not None and result.state == "failed":
                why = result.error.message if result.error is not None else ""
                order.append(RecordedStep(result.address, state="failed", error=why))
    if not workflow_id:
        raise Unavailable("the server ended the run before it began; try again")
    record = client.get(workflow_id)
    if record.state != "succeeded":
        return [], record.error.message if record.error is not None else record.state
    return order, ""
