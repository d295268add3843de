"""What audits found is in the journal: added up by all who share it, there after a restart, gone when it is cleared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from executor_workflows import asynchronous
from journal_rig import MemoryStore, server
from postgres import Postgres, programs

from laban.actors.errors import Unavailable
from laban.cluster.audit.findings import Finding, Source, Subject, merged
from laban.cluster.audit.knowledge import Knowledge, Remembered
from laban.cluster.audit.resolving import Levels
from laban.cluster.audit.tally import Tally
from laban.cluster.journal import Journal
from laban.cluster.journal_findings import JournalKnowledge
from laban.cluster.journal_store import SqlStore
from laban.cluster.records import Divergence
from laban.cluster.workflow.parse import parse_yaml

SUBJECT = Subject("tenant", "model", "flow", "0123")
LOST = Divergence("tenant", "flow", 12.5, 0.125, 40, 0.05)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    if programs() is None:
        pytest.skip("PostgreSQL is not installed")
    pytest.importorskip("psycopg")
    made = Postgres.make()
    yield made
    made.remove()


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        made: str = request.getfixturevalue("postgres").url
        return made
    return "" if request.param == "memory" else f"sqlite:///{tmp_path / 'journal.db'}"


@asynccontextmanager
async def knowledge(url: str) -> AsyncIterator[Knowledge]:
    if not url:
        yield Remembered()
        return
    store = SqlStore(url)
    store.open()
    journal = Journal(store)
    journal.start()
    try:
        yield JournalKnowledge(journal, store, "model")
    finally:
        await journal.close()


def finding(kl: float, level: str = "direct", read: int | None = None, source: Source = "served") -> Finding:
    return Finding("say", read, level, source, Tally.of_call([kl], [True]))


@asynchronous
async def test_what_is_found_is_added_up_and_kept_apart(url: str) -> None:
    async with knowledge(url) as known:
        others = [replace(SUBJECT, tenant="other"), replace(SUBJECT, digest="4567"), replace(SUBJECT, model="m2")]
        found = [
            finding(0.5),
            finding(0.25),
            finding(1.0, "blended"),
            finding(2.0, read=0),
            finding(3.0, source="audit"),
        ]
        await known.clear("tenant", "flow")
        for each in found:
            await known.add(SUBJECT, [each])
        assert merged(await known.findings(SUBJECT)) == merged(found)
        assert [await known.findings(other) for other in others] == [[], [], []]
        await asyncio.gather(*(known.add(SUBJECT, [finding(0.5)]) for _ in range(5)))
        assert merged(await known.findings(SUBJECT))["say", None, "direct", "served"].num_calls == 7


@asynchronous
async def test_a_new_audit_takes_the_place_of_all_that_was_known_of_the_same(url: str) -> None:
    async with knowledge(url) as known:
        await known.clear("tenant", "flow")
        await known.add(SUBJECT, [finding(0.5), finding(0.5, source="shadow"), finding(1.0, "blended")])
        audited = finding(0.125, source="audit")
        await known.put(SUBJECT, [audited])
        assert merged(await known.findings(SUBJECT)) == merged([audited, finding(1.0, "blended")])


@asynchronous
async def test_who_diverges_is_said_until_it_is_cleared(url: str) -> None:
    async with knowledge(url) as known:
        await known.set_divergence(replace(LOST, kl=9.0))
        await known.set_divergence(LOST)
        await known.set_divergence(replace(LOST, tenant="other"))
        assert sorted(await known.divergences(), key=str) == sorted([LOST, replace(LOST, tenant="other")], key=str)
        await known.drop_divergence("other", "flow")
        assert await known.clear("tenant", "flow")
        assert not await known.clear("tenant", "flow")
        assert (await known.divergences(), await known.findings(SUBJECT)) == ([], [])


@asynchronous
async def test_it_outlives_the_process_and_others_see_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'journal.db'}"
    async with knowledge(url) as first:
        await first.add(SUBJECT, [finding(0.5)])
        await first.set_divergence(LOST)
        async with knowledge(url) as second:
            await second.add(SUBJECT, [finding(0.25)])
            assert merged(await first.findings(SUBJECT)) == merged([finding(0.5), finding(0.25)])
    async with knowledge(url) as third:
        assert await third.divergences() == [LOST]
        assert len(await third.findings(SUBJECT)) == 1


@asynchronous
async def test_while_the_journal_is_away_that_is_said(tmp_path: Path) -> None:
    store = SqlStore(f"sqlite:///{tmp_path / 'journal.db'}")
    store.open()
    journal = Journal(store)
    journal.start()
    known = JournalKnowledge(journal, store, "model")
    store.close()
    with pytest.raises(Unavailable):
        await known.findings(SUBJECT)
    await journal.close()


@asynchronous
async def test_what_was_chosen_at_submission_holds_after_a_restart() -> None:
    flow = "version: 1\nname: flow\nfidelity: auto\nmessages: {m: words}\nsteps: [{step: say, read: [m]}]"
    known = Remembered()
    levels = Levels(known, "model")
    within = Tally(400, 0.4, 0.0004, 400, 400)
    await known.put(await levels.subject(parse_yaml(flow), ""), [Finding("say", None, "direct", "audit", within)])
    async with server(MemoryStore(), levels=levels) as first:
        first.worker.paused = True
        record = await first.submit(flow)
        assert [(note.level, note.num_calls) for note in record.notes if note.why] == [("direct", 400)]
    async with server(MemoryStore(first.store.writes)) as again:  # which knows of no findings
        items = await again.events(record.workflow_id)
        assert items[0].notes == record.notes
        after = again.executor.get(record.workflow_id)
        assert after.notes == record.notes
        assert [step.fidelity for step in after.steps] == ["direct"]
