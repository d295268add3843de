"""Says in the log what becomes of workflows and their steps: ids, states, times and counts, never a text."""

from __future__ import annotations

import logging

from laban.actors.logs import about
from laban.cluster.meter import Meter
from laban.cluster.records import StepResult, WorkflowRecord

logger = logging.getLogger(__name__)


class RunLog(Meter):
    """Tells `other` the same, of workflows and steps."""

    def __init__(self, other: Meter) -> None:
        self._other = other

    def workflow_submitted(self, workflow_id: str, name: str) -> None:
        logger.info("%s is taken in", name, extra=about(workflow=workflow_id))
        self._other.workflow_submitted(workflow_id, name)

    def workflow_restored(self, workflow_id: str, name: str) -> None:
        logger.info("%s goes on after a restart", name, extra=about(workflow=workflow_id))
        self._other.workflow_restored(workflow_id, name)

    def step_ended(self, workflow_id: str, workflow: str, kind: str, result: StepResult) -> None:
        failed, total = result.state == "failed", result.total
        logger.log(
            logging.WARNING if failed else logging.DEBUG,
            "%s %s%s after %.0f ms, attempt %d: in all %d tokens read, %d reused, %d encoded, %d generated",
            result.address,
            result.state,
            f" ({result.error.status})" if failed and result.error is not None else "",
            result.wall_ms,
            result.attempt,
            total.tokens_read,
            total.tokens_reused,
            total.tokens_encoded,
            total.tokens_generated,
            extra=about(workflow=workflow_id, step=result.address, worker=result.worker if kind == "generate" else ""),
        )
        self._other.step_ended(workflow_id, workflow, kind, result)

    def workflow_ended(self, record: WorkflowRecord) -> None:
        status = "" if record.error is None else f" ({record.error.status})"
        logger.info(
            "%s %s%s after %.0f ms",
            record.name,
            record.state,
            status,
            record.wall_ms,
            extra=about(workflow=record.workflow_id),
        )
        self._other.workflow_ended(record)
