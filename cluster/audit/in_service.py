"""Audits in service: a share of the calls that are not exact is run again, teacher-forced, under `exact`, while their
worker has nothing else to do, within a share of its time; what it takes is given up as soon as there is any other work.

So are calls of sessions and chats, each kind under a name of its own.

And the other way round: where `auto` became `exact` because nothing better was known, what other levels would have done
to the call is found out in the same way.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from laban.actors.calls import CallFinished, Comparison, WorkerRates
from laban.actors.errors import FailedPrecondition, LabanError
from laban.cluster.audit.budget import Budget, is_chosen
from laban.cluster.audit.cases import Case, Pair, Said, Trial, calls_of
from laban.cluster.audit.findings import Finding
from laban.cluster.audit.resolving import Levels
from laban.cluster.audit.tally import Tally
from laban.cluster.audit.watching import Watch
from laban.cluster.config_sections import AuditSection
from laban.cluster.messages import Language
from laban.cluster.records import FidelityNote, StepResult
from laban.cluster.routing.directory_view import DirectoryView
from laban.cluster.spare_calls import GaveWay, Idlers, run_spare
from laban.cluster.views import Entry
from laban.cluster.waiter import Finish
from laban.cluster.workflow.fidelity import CHEAPEST_FIRST, Degree, Fidelity
from laban.cluster.workflow.names import step_path
from laban.kvstore.encodings import EncodingId, adapter_of

if TYPE_CHECKING:
    from laban.cluster.execution import Execution

logger = logging.getLogger(__name__)

OnChange = Callable[["Execution", StepResult | None], None]

MAX_CASES = 32
MAX_AGE_S = 300.0
"""After which what a call read is likely gone from its worker."""
MAX_CALL_S = 60.0
POLL_S = 0.1
"""How often it is looked whether a worker has nothing to do, while something is to be audited."""
LARGEST_PART = 8
"""Of a worker's pages a call may take one part in so many: others' encodings go for it."""

AuditOutcome = Literal["done", "dropped", "failed"]


class Workers(Idlers, Protocol):
    """`cluster.dispatch.Dispatcher`."""

    @property
    def directory(self) -> DirectoryView: ...

    def forget(self, encoding_ids: Iterable[EncodingId]) -> None: ...


class AuditMeter(Protocol):
    """`cluster.meter.Meter`."""

    def audit_ended(self, outcome: AuditOutcome) -> None: ...

    def audit_compared(self, workflow: str, fidelity: str, tally: Tally) -> None: ...

    def audit_spent(self, worker_id: str, seconds: float) -> None: ...


class InService:
    """Lives in the dispatcher's event loop."""

    def __init__(
        self, plan: AuditSection, workers: Workers, levels: Levels, watch: Watch, meter: AuditMeter, *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._plan, self._workers, self._levels, self._watch, self._meter = plan, workers, levels, watch, meter
        self._clock = clock
        self._budget = Budget(plan.budget)
        self._name = f"audit-{secrets.token_hex(8)}"  # one pair at a time: what was kept of the last is not kept longer
        self._cases: deque[Case] = deque()
        self._due = asyncio.Event()
        self._current: str = ""  # the workflow of the case under way
        self._work: asyncio.Task[None] | None = None

    # What steps tell

    def listening(self, tenant: str, then: OnChange | None) -> OnChange:
        """What an execution of the tenant's is to tell; `then` is told too."""

        def on_change(execution: Execution, ended: StepResult | None) -> None:
            if then is not None:
                then(execution, ended)
            if ended is not None:
                self.consider(tenant, execution, ended)

        return on_change

    def consider(self, tenant: str, execution: Execution, ended: StepResult) -> None:
        """A step has ended: it may be one to be audited. Called while its workflow's messages are still there."""
        if ended.state != "succeeded" or not ended.token_ids or not ended.worker:
            return
        if not is_chosen(execution.workflow_id, ended.address, self._plan.share):
            return
        source: Literal["served", "shadow"] = "shadow" if ended.fidelity == "exact" else "served"
        asked = asked_reads(ended, execution.board.notes) if source == "shadow" else []
        said = execution.said(ended.address) if source == "served" or asked else None
        if said is None:
            return
        trials = tuple(Trial(str(degree), degree, read) for read in asked for degree in CHEAPEST_FIRST)
        if source == "served":
            trials = (Trial(name_of(ended.fidelity, said.entries)),)
        step = step_path(ended.address)
        self._put(
            Case(
                execution.workflow_id, ended.address, step, tenant, ended.worker, source, said, ended.token_ids,
                trials, self._clock(), execution.board.name, execution.workflow,
            )
        )  # fmt: skip

    def answered(
        self, name: str, source: str, address: str, tenant: str, fidelity: Fidelity, finish: Finish,
        said: Callable[[], Said],
    ) -> None:  # fmt: skip
        """A call outside of workflows has ended: `name` is one of CALLERS, `source` the session, or chat. What it said
        is asked for only if it is to be audited."""
        if fidelity == "exact" or not finish.event.generated or not is_chosen(source, address, self._plan.share):
            return
        try:
            found = said()
        except Exception:  # its caller has the answer
            logger.exception("an answer of %s cannot be audited", source)
            return
        trials, worker_id = (Trial(fidelity),), finish.worker
        self._put(
            Case(
                source, address, spoken_by(found.language), tenant, worker_id, "served", found, finish.event.generated,
                trials, self._clock(), name,
            )
        )  # fmt: skip

    def _put(self, case: Case) -> None:
        if len(self._cases) >= MAX_CASES:
            self._cases.popleft()
            self._meter.audit_ended("dropped")
        self._cases.append(case)
        self._due.set()

    def forget(self, workflow_id: str) -> None:
        """It is deleted: nothing of it is looked at any more."""
        self._cases = deque(case for case in self._cases if case.workflow_id != workflow_id)
        if self._current == workflow_id and self._work is not None:
            self._work.cancel()

    # Doing it

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self._due.wait()
            self._drop_old()
            if not self._cases:
                self._due.clear()
                continue
            ready = next((case for case in self._cases if self._may_begin(case)), None)
            if ready is None:
                await asyncio.sleep(POLL_S)
                continue
            self._cases.remove(ready)
            await self._look_at(ready)

    def _drop_old(self) -> None:
        while self._cases and self._clock() - self._cases[0].at_s > MAX_AGE_S:
            self._cases.popleft()
            self._meter.audit_ended("dropped")

    def _may_begin(self, case: Case) -> bool:
        slot = self._workers.idle(case.worker_id)
        if slot is None:
            return False
        return self._budget.allows(case.worker_id, expected_s(case.num_tokens, slot.last.rates), self._clock())

    async def _look_at(self, case: Case) -> None:
        self._current = case.workflow_id
        self._work = asyncio.create_task(self._audit(case))
        try:
            await self._work
            outcome: AuditOutcome = "done"
        except GaveWay as error:
            logger.debug("an audit was dropped: %s", error)
            outcome = "dropped"
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is None or current.cancelling():
                raise
            outcome = "dropped"  # its workflow has been deleted
        except LabanError as error:
            logger.warning("an audit of %s of workflow %s failed: %s", case.address, case.workflow_id, error)
            outcome = "failed"
        except Exception:  # whatever it is, the next one may be audited
            logger.exception("an audit of %s of workflow %s failed inside", case.address, case.workflow_id)
            outcome = "failed"
        finally:
            self._current, self._work = "", None
        self._meter.audit_ended(outcome)

    async def _audit(self, case: Case) -> None:
        pair = await asyncio.to_thread(calls_of, case, f"{self._name}-{case.workflow_id}/{case.address}", self._name)
        slot = self._workers.idle(case.worker_id)
        if slot is None:
            raise GaveWay("the worker has something else to do")
        if case.num_tokens * LARGEST_PART > slot.info.pool_tokens:
            raise GaveWay("the call is too large for the worker's memory")
        tallies = [(trial, _zeros(pair)) for trial in pair.same]
        if pair.others:
            tallies += await self._compare(case.worker_id, pair)
        for trial, tally in tallies:
            self._meter.audit_compared(case.name, trial.name.partition(":")[0], tally)
        if case.workflow is None:
            subject, tolerance = self._levels.subject_of_calls(case.name, case.tenant), None
        else:
            subject, tolerance = await self._levels.subject(case.workflow, case.tenant), case.workflow.tolerance
        found = [Finding(case.step, trial.read, trial.name, case.source, tally) for trial, tally in tallies]
        await self._watch.take(subject, found, tolerance)

    async def _compare(self, worker_id: str, pair: Pair) -> list[tuple[Trial, Tally]]:
        holders = self._workers.directory.holders
        began_s, made = self._clock(), {each for each in pair.made if not holders(each)}

        def makes(encoding_id: EncodingId) -> None:
            if not holders(encoding_id):  # of a spare call's the directory tells only if somebody else named it, too
                made.add(encoding_id)

        try:
            first = await self._run(worker_id, pair, None)
            makes(first.encoding.encoding_id)
            found = []
            for place, (trial, _) in enumerate(pair.others):
                ended = await self._run(worker_id, pair, place)
                if trial.degree is not None:  # else it is the very message that the step made
                    makes(ended.encoding.encoding_id)
                found.append((trial, _tally(ended.comparison)))
            return found
        finally:
            spent_s = self._clock() - began_s
            self._budget.spend(worker_id, spent_s, self._clock())
            self._meter.audit_spent(worker_id, spent_s)
            self._workers.forget(made)  # texts are not to stay for it, where their workflow is deleted

    async def _run(self, worker_id: str, pair: Pair, place: int | None) -> CallFinished:
        call = pair.exact if place is None else pair.others[place][1]
        return await run_spare(self._workers, worker_id, call, MAX_CALL_S)


def asked_reads(ended: StepResult, notes: Sequence[FidelityNote]) -> list[int | None]:
    """The reads of a step, or None for all, that asked for `auto` and are exact because nothing was known."""
    step = step_path(ended.address)
    return [note.read for note in notes if note.why and note.step == step and note.level == "exact"]


def name_of(fidelity: str, entries: Sequence[Entry]) -> str:
    """What a call was made at: with its share, where that is one."""
    shares = {entry.recompute_share for entry in entries}
    if fidelity != "blended":
        return fidelity
    return str(Degree("blended", shares.pop())) if len(shares) == 1 else "mixed"


def spoken_by(language: Language) -> str:
    """What a call is made with: a model, or MODEL:ADAPTER."""
    fingerprint = adapter_of(language.namespace)
    names = [name for name, each in language.adapters.items() if each == fingerprint]
    return f"{language.model}:{names[0]}" if fingerprint and names else language.model


def expected_s(num_tokens: int, rates: WorkerRates) -> float:
    """How long an audit takes where nothing is found encoded; 0 if it is not known how fast the worker is."""
    return num_tokens / rates.encode_tokens_per_s if rates.encode_tokens_per_s else 0.0


def _tally(comparison: Comparison | None) -> Tally:
    if comparison is None:
        raise FailedPrecondition("the worker compared nothing")
    return Tally.of_call(comparison.kl, comparison.agrees)


def _zeros(pair: Pair) -> Tally:
    """Of a trial that gives the very view that `exact` gives."""
    sampling = pair.exact.sampling
    assert sampling is not None
    return Tally.of_call([0.0] * len(sampling.forced), [True] * len(sampling.forced))
