"""Where a workflow is that somebody asks for: here, at another Laban of the same journal, or in the journal alone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from laban.actors.errors import FailedPrecondition, Unavailable
from laban.cluster.execution import Execution
from laban.cluster.executor import Executor
from laban.cluster.finished import Finished
from laban.cluster.journal_reader import Found, JournalReader
from laban.cluster.journal_records import Stored, Submission, archive_from_json
from laban.cluster.leases import origin_of
from laban.cluster.membership import Membership
from laban.cluster.records import WorkflowRecord
from laban.cluster.shelf import MAX_PAGE_CHARS, page_token_of, read_page, size_of


@dataclass(frozen=True, slots=True)
class There:
    """At another Laban, which is reached at this address."""

    address: str


@dataclass(frozen=True, slots=True)
class Shown:
    """It has ended, and was read from the journal."""

    submission: Submission
    finished: Finished


Place = There | Shown | None
"""None: here, or nowhere; the executor says which."""


class Switchboard:
    """Lives in the executor's event loop."""

    def __init__(self, executor: Executor, reader: JournalReader, membership: Membership) -> None:
        self._executor = executor
        self._reader = reader
        self._membership = membership

    @property
    def addresses(self) -> Collection[str]:
        """Where others were, as of the last round."""
        return {each.address for each in self._membership.members}

    async def of_workflow(self, workflow_id: str, tenant: str | None, *, whole: bool = False) -> Place:
        """`whole`: wherever anything of it is, as who deletes it must ask.

        Raises Unavailable for one that nobody runs just now, and if the database is away.
        """
        known = self._executor.shelf.known(workflow_id)
        if isinstance(known, Execution):
            return None
        try:
            found = await self._reader.find(workflow_id)
        except Unavailable:
            if known is not None:
                return None
            raise
        if found is None:
            self._executor.forget([workflow_id])
            return None
        if tenant not in (None, found.tenant):
            return None
        if found.stored is None:
            return self._of_running(workflow_id, found)
        if whole and found.address and found.owner != self._membership.member_id:
            return There(found.address)
        return None if known is not None else _shown(found.stored)

    def of_lease(self, lease_id: str) -> Place:
        """Who has given it out."""
        origin = origin_of(lease_id)
        others = (each for each in self._membership.members if each.member_id != self._membership.member_id)
        address = next((each.address for each in others if each.member_id == origin), "")
        return There(address) if address else None

    async def page(
        self, *, page_size: int = 0, page_token: str = "", states: Collection[str] = (), tenant: str | None = None
    ) -> tuple[list[WorkflowRecord], str]:
        """As `Executor.list`, of all that are in the journal. While the database is away, of those here."""
        size, before = read_page(page_size, page_token)
        shelf = self._executor.shelf
        kept = {each.workflow_id: each for each in shelf}
        try:
            entries = await self._reader.page(size + 1, before, states, tenant, kept.keys())
        except Unavailable:
            return shelf.page(page_size, page_token, states, tenant)
        records: list[WorkflowRecord] = []
        num_chars = num_seen = 0
        for entry in entries[:size]:
            here = kept.get(entry.workflow_id)
            record = entry.record if here is None else here.board.record(with_steps=False)
            if record is not None and (not states or record.state in states):
                num_chars += size_of(record)
                if records and num_chars > MAX_PAGE_CHARS:
                    break
                records.append(record)
            num_seen += 1
        last = entries[num_seen - 1] if len(entries) > num_seen else None
        return records, "" if last is None else page_token_of(last.place, last.workflow_id)

    def _of_running(self, workflow_id: str, found: Found) -> Place:
        executor = self._executor
        if found.owner == self._membership.member_id:
            if workflow_id in executor.intake.unreadable:
                why = executor.intake.unreadable[workflow_id]
                raise FailedPrecondition(
                    f"this version of Laban cannot go on with it ({why})", field="workflow_id", value=workflow_id
                )
            raise Unavailable("the workflow is being taken over: try again")
        if found.owner:
            if not found.address:
                raise Unavailable("the Laban that runs the workflow is not up yet: try again")
            return There(found.address)
        if found.namespace != executor.languages.namespace(found.tenant):
            raise FailedPrecondition(
                "no Laban that is up serves the workflow's model", field="workflow_id", value=workflow_id
            )
        raise Unavailable("the workflow waits for a Laban to take it over: try again")


def _shown(stored: Stored) -> Shown:
    submission = stored.submission
    try:
        return Shown(submission, Finished(archive_from_json(stored.archive)))
    except ValueError:
        raise FailedPrecondition(
            "this version of Laban cannot show it", field="workflow_id", value=submission.workflow_id
        ) from None
