"""The workflows that a process has: those that it runs, and those that have ended, for as long as they are kept."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager

from laban.actors.errors import InvalidInput, NotFound
from laban.cluster.execution import Execution
from laban.cluster.finished import Finished
from laban.cluster.journal_records import Submission
from laban.cluster.records import WorkflowRecord

PAGE_TOKEN = re.compile(r"([0-9]{1,18})\.([!-~]{1,64})")  # what a database can be asked for
DEFAULT_PAGE = 50
MAX_PAGE = 1000
MAX_PAGE_CHARS = 1_000_000
"""With one workflow at least; so that a page is within the 4 MiB that gRPC's clients take unless told otherwise."""


class Shelf:
    """Lives in one event loop."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Execution | Finished] = OrderedDict()  # oldest first
        self._submissions: dict[str, tuple[int, str]] = {}  # place in the order of submission, and tenant
        self._ended: OrderedDict[str, None] = OrderedDict()  # in the order in which they did
        self._guests: dict[str, tuple[Finished, str]] = {}  # shown to somebody just now, and whose they are
        self._num_visits: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, workflow_id: str) -> bool:
        return workflow_id in self._kept

    def __iter__(self) -> Iterator[Execution | Finished]:
        """As they are now: what is done with them may change what is here."""
        return iter(list(self._kept.values()))

    def keep(self, submission: Submission, execution: Execution | Finished) -> None:
        self._kept[submission.workflow_id] = execution
        self._submissions[submission.workflow_id] = submission.rank, submission.tenant

    def find(self, workflow_id: str, tenant: str | None = None) -> Execution | Finished:
        """Raises NotFound, for another tenant's as well; None may see all."""
        found = self._kept.get(workflow_id)
        owner = self._submissions[workflow_id][1] if found is not None else ""
        if found is None and workflow_id in self._guests:
            found, owner = self._guests[workflow_id]
        if found is None or tenant not in (None, owner):
            raise NotFound("no such workflow", field="workflow_id", value=workflow_id)
        return found

    def known(self, workflow_id: str) -> Execution | Finished | None:
        return self._kept.get(workflow_id)

    @contextmanager
    def showing(self, submission: Submission, finished: Finished) -> Iterator[None]:
        """One that is not kept here can be found meanwhile."""
        workflow_id = submission.workflow_id
        self._guests[workflow_id] = finished, submission.tenant
        self._num_visits[workflow_id] += 1
        try:
            yield
        finally:
            self._num_visits[workflow_id] -= 1
            if not self._num_visits[workflow_id]:
                del self._guests[workflow_id], self._num_visits[workflow_id]

    def drop(self, workflow_id: str) -> None:
        del self._kept[workflow_id], self._submissions[workflow_id]
        self._ended.pop(workflow_id, None)

    # Those that have ended

    def end(self, workflow_id: str) -> None:
        self._ended[workflow_id] = None

    def ended_before(self, finished: Iterable[Finished]) -> None:
        """These had ended before any that is here."""
        earlier = sorted(finished, key=lambda each: each.board.finished_at or 0.0)
        self._ended = OrderedDict.fromkeys([*(each.workflow_id for each in earlier), *self._ended])

    @property
    def ended(self) -> Collection[str]:
        return self._ended.keys()

    def overdue(self, keep: int, before: float | None) -> str | None:
        """The one that ended first, if it is one too many or ended before that time of day."""
        if not self._ended:
            return None
        oldest = next(iter(self._ended))
        finished_at = self._kept[oldest].board.finished_at
        is_old = before is not None and finished_at is not None and finished_at < before
        return oldest if is_old or len(self._ended) > keep else None

    # Those that have not

    @property
    def num_active(self) -> int:
        return len(self._kept) - len(self._ended)

    def num_active_of(self, tenant: str) -> int:
        return sum(each == tenant and name not in self._ended for name, (_, each) in self._submissions.items())

    def active(self) -> list[Execution]:
        running = (each for name, each in self._kept.items() if name not in self._ended)
        return [each for each in running if isinstance(each, Execution)]

    # Pages

    def page(
        self, page_size: int, page_token: str, states: Collection[str], tenant: str | None
    ) -> tuple[list[WorkflowRecord], str]:
        """Newest first and without their steps, and the token of the next page or "". A page ends early where the next
        workflow would make it too large."""
        size, before = read_page(page_size, page_token)
        found = [
            (place, workflow_id)
            for workflow_id, (place, owner) in self._submissions.items()
            if tenant in (None, owner) and (not states or self._kept[workflow_id].board.state in states)
        ]
        found = sorted((each for each in found if before is None or each < before), reverse=True)
        records: list[WorkflowRecord] = []
        num_chars = 0
        for _, workflow_id in found[:size]:
            record = self._kept[workflow_id].board.record(with_steps=False)
            num_chars += size_of(record)
            if records and num_chars > MAX_PAGE_CHARS:
                break
            records.append(record)
        more = page_token_of(*found[len(records) - 1]) if len(found) > len(records) else ""
        return records, more


def size_of(record: WorkflowRecord) -> int:
    """Of a record without its steps, in characters, about."""
    error = 0 if record.error is None else len(record.error.message)
    return 300 + error + sum(len(name) + len(text) for name, text in record.outputs)


def page_token_of(place: int, workflow_id: str) -> str:
    """Of the page behind a workflow."""
    return f"{place}.{workflow_id}"


def read_page(page_size: int, page_token: str) -> tuple[int, tuple[int, str] | None]:
    """How many, and behind which workflow's place and id. Raises InvalidInput."""
    if not 0 <= page_size <= MAX_PAGE:
        raise InvalidInput(f"expected 1 to {MAX_PAGE}, or 0 for {DEFAULT_PAGE}", field="page_size", value=page_size)
    size = page_size or DEFAULT_PAGE
    if not page_token:
        return size, None
    found = PAGE_TOKEN.fullmatch(page_token)
    if found is None:
        raise InvalidInput("expected a token from an earlier page", field="page_token", value=page_token)
    return size, (int(found[1]), found[2])


def clock_place(clock: Callable[[], float], last: int) -> int:
    """The place in the order of submission of what comes next: the time of day in microseconds, so that those who
    share a database count alike, and always later than the last one."""
    return max(last + 1, int(clock() * 1e6))
