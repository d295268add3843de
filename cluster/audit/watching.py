"""Which workflows differ from `exact` by more than they may, by what audits in service found of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from laban.actors.errors import LabanError
from laban.cluster.audit.cases import CALLERS
from laban.cluster.audit.findings import Finding, Subject
from laban.cluster.audit.knowledge import Knowledge
from laban.cluster.audit.tally import Tally
from laban.cluster.records import Divergence

logger = logging.getLogger(__name__)

MAX_PENDING = 100
REFRESH_S = 30.0
"""How often it is looked what others who share the journal found, and cleared."""


def judge(tally: Tally, tolerance: float, diverges: bool) -> bool:
    """Whether a workflow is outside its tolerance: it is once that is sure, and until its mean is within it again.

    >>> judge(Tally(19, 19.0, 19.0), 0.05, False), judge(Tally(20, 20.0, 20.0), 0.05, False)
    (False, True)
    """
    return tally.kl_mean > tolerance if diverges else tally.is_outside(tolerance)


class Watch:
    """What is known of who diverges, at this Laban. All who share a journal add to the same numbers."""

    def __init__(
        self, knowledge: Knowledge, tolerance: float, *, falls_back: bool, clock: Callable[[], float] = time.time
    ) -> None:
        self._knowledge, self._tolerance, self._falls_back, self._clock = knowledge, tolerance, falls_back, clock
        self._diverging: dict[tuple[str, str], Divergence] = {}
        self._pending: dict[Subject, list[Finding]] = {}  # what could not be written yet

    @property
    def diverging(self) -> tuple[Divergence, ...]:
        return tuple(self._diverging.values())

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                await self.refresh()
            except LabanError as error:
                logger.debug("what audits found cannot be read: %s", error)
            await asyncio.sleep(REFRESH_S)

    async def refresh(self) -> None:
        """Raises Unavailable while the journal is away."""
        there = await self._knowledge.divergences()
        self._diverging = {
            (one.tenant, one.workflow): replace(one, falls_back=self._may_fall_back(one.workflow)) for one in there
        }

    def _may_fall_back(self, name: str) -> bool:
        """What is no workflow states a level with each call, and keeps to it."""
        return self._falls_back and name not in CALLERS

    async def take(self, subject: Subject, findings: Iterable[Finding], tolerance: float | None) -> None:
        """What an audit in service has found of a workflow, whose own tolerance is this. It is kept for later while the
        journal is away."""
        self._pending.setdefault(subject, []).extend(findings)
        while len(self._pending) > MAX_PENDING:
            del self._pending[next(iter(self._pending))]
        try:
            for each, waiting in list(self._pending.items()):
                await self._knowledge.add(each, waiting)
                del self._pending[each]
            await self._judge(subject, self._tolerance if tolerance is None else tolerance)
        except LabanError as error:
            logger.warning("what an audit found is not written down yet: %s", error)

    async def _judge(self, subject: Subject, tolerance: float) -> None:
        total = Tally()
        for each in await self._knowledge.findings(subject):
            if each.source == "served" and each.read is None:
                total = total.plus(each.tally)
        key = subject.tenant, subject.name
        before, falls_back = self._diverging.get(key), self._may_fall_back(subject.name)
        if judge(total, tolerance, before is not None):
            since = self._clock() if before is None else before.since
            found = Divergence(*key, since, total.kl_mean, total.num_calls, tolerance, falls_back)
            await self._knowledge.set_divergence(found)
            self._diverging[key] = found
            if before is None:
                then = "; what is submitted of it from now on is exact" if falls_back else ""
                logger.warning(
                    "workflow %s has left its tolerance: KL %.3g over %d audited calls, tolerance %g%s",
                    subject.name, total.kl_mean, total.num_calls, tolerance, then,
                )  # fmt: skip
        elif before is not None and not falls_back:
            await self._knowledge.drop_divergence(*key)
            del self._diverging[key]
            logger.warning("workflow %s is within its tolerance again: KL %.3g", subject.name, total.kl_mean)
