"""What audits found, in the journal's database: what a Laban adds all who share it know, and it outlives them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

from sqlalchemy import Connection, Table, and_, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from laban.actors.errors import Unavailable
from laban.cluster.audit.findings import Finding, Subject
from laban.cluster.audit.tally import Tally
from laban.cluster.journal import Journal
from laban.cluster.journal_engine import Fenced, JournalAway
from laban.cluster.journal_schema import DIVERGENCES, FINDINGS
from laban.cluster.journal_store import SqlStore
from laban.cluster.records import Divergence

T = TypeVar("T")

WHOLE = -1
MAX_ROWS = 10_000  # of a tenant; those that nothing was added to for longest go first
SUMS = tuple(field.name for field in fields(Tally))
SAID = ("tenant", "workflow", "since", "kl", "num_calls", "tolerance")


class JournalKnowledge:
    """Implements Knowledge, for one model: that of `model`, as in encodings' namespaces without the tenant."""

    def __init__(self, journal: Journal, store: SqlStore, model: str, clock: Callable[[], float] = time.time) -> None:
        self._journal, self._store, self._model, self._clock = journal, store, model, clock

    async def findings(self, subject: Subject) -> list[Finding]:
        chosen = select(FINDINGS).where(_of(subject))
        return await self._do(lambda connection: [_finding(row) for row in connection.execute(chosen).mappings()])

    async def add(self, subject: Subject, findings: Iterable[Finding]) -> None:
        await self._do(lambda connection: _add(connection, subject, findings, self._clock()))

    async def put(self, subject: Subject, findings: Iterable[Finding]) -> None:
        def work(connection: Connection) -> None:
            for step, read, level in dict.fromkeys(each.key[:3] for each in findings):
                connection.execute(delete(FINDINGS).where(_of(subject), *_at(step, read, level)))
            _add(connection, subject, findings, self._clock())

        findings = list(findings)
        await self._do(work)

    async def divergences(self) -> list[Divergence]:
        chosen = select(DIVERGENCES).where(DIVERGENCES.c.model == self._model).order_by(DIVERGENCES.c.since)

        def work(connection: Connection) -> list[Divergence]:
            rows = connection.execute(chosen).mappings()
            return [Divergence(**{name: row[name] for name in SAID}) for row in rows]

        return await self._do(work)

    async def set_divergence(self, divergence: Divergence) -> None:
        row = {name: getattr(divergence, name) for name in SAID} | {"model": self._model}

        await self._do(lambda connection: _put(connection, DIVERGENCES, row, row))

    async def drop_divergence(self, tenant: str, workflow: str) -> None:
        await self._do(lambda connection: connection.execute(self._diverging(tenant, workflow)).rowcount)

    async def clear(self, tenant: str, workflow: str) -> bool:
        found = delete(FINDINGS).where(
            FINDINGS.c.tenant == tenant, FINDINGS.c.model == self._model, FINDINGS.c.workflow == workflow
        )

        def work(connection: Connection) -> bool:
            gone = [connection.execute(each).rowcount for each in (found, self._diverging(tenant, workflow))]
            return any(gone)

        return await self._do(work)

    def _diverging(self, tenant: str, workflow: str) -> Any:
        return delete(DIVERGENCES).where(
            DIVERGENCES.c.tenant == tenant, DIVERGENCES.c.model == self._model, DIVERGENCES.c.workflow == workflow
        )

    async def _do(self, work: Callable[[Connection], T]) -> T:
        try:
            return await self._journal.do(lambda: self._store.do(work))
        except (JournalAway, Fenced) as error:
            raise Unavailable(f"the journal's database cannot be used: {error}") from None


def _add(connection: Connection, subject: Subject, findings: Iterable[Finding], now: float) -> None:
    for each in findings:
        read = WHOLE if each.read is None else each.read
        key = {"step": each.step, "read": read, "level": each.level, "source": each.source}
        row = _key(subject) | key | asdict(each.tally) | {"at": now}
        more = {name: FINDINGS.c[name] + getattr(each.tally, name) for name in SUMS}
        _put(connection, FINDINGS, row, more | {"at": now})
    of_tenant = FINDINGS.c.tenant == subject.tenant
    oldest = select(FINDINGS.c.at).where(of_tenant).order_by(FINDINGS.c.at.desc()).offset(MAX_ROWS).limit(1)
    connection.execute(delete(FINDINGS).where(of_tenant, FINDINGS.c.at <= oldest.scalar_subquery()))


def _put(connection: Connection, table: Table, row: Mapping[str, object], changes: Mapping[str, object]) -> None:
    """A row, or these changes of the one that is there: others may write the same at once."""
    dialect: Any = sqlite if connection.dialect.name == "sqlite" else postgresql
    statement = dialect.insert(table).values(row)
    connection.execute(statement.on_conflict_do_update(index_elements=table.primary_key.columns, set_=changes))


def _finding(row: Any) -> Finding:
    read = None if row["read"] == WHOLE else row["read"]
    return Finding(row["step"], read, row["level"], row["source"], Tally(*(row[name] for name in SUMS)))


def _key(subject: Subject) -> dict[str, object]:
    return {
        "tenant": subject.tenant, "model": subject.model, "workflow": subject.name, "digest": subject.digest
    }  # fmt: skip


def _of(subject: Subject) -> Any:
    return and_(*(FINDINGS.c[name] == value for name, value in _key(subject).items()))


def _at(step: str, read: int | None, level: str) -> tuple[Any, ...]:
    return (
        FINDINGS.c.step == step, FINDINGS.c.read == (WHOLE if read is None else read), FINDINGS.c.level == level
    )  # fmt: skip
