"""The journal's database: what is written is read, by those who share it, of this version or an older one."""

from __future__ import annotations

import asyncio
import fcntl
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from executor_rig import until
from executor_workflows import CHAIN, asynchronous
from journal_rig import server
from postgres import Postgres, programs
from sqlalchemy import func, select, text

from laban.actors.calls import CallFinished, TokenLogprob
from laban.actors.errors import FailedPrecondition, InvalidInput, Unavailable
from laban.cluster import journal_migrations as migrations
from laban.cluster import journal_reader
from laban.cluster.config import LabanConfig, Resolved, describe
from laban.cluster.journal_engine import LOG_BYTES, Fenced, JournalLost, Unfit, checked, engine_of, transaction
from laban.cluster.journal_members import Presence
from laban.cluster.journal_place import checked_url, default_url
from laban.cluster.journal_reader import JournalReader
from laban.cluster.journal_records import Deletion, Ending, Line, Stored, Submission
from laban.cluster.journal_schema import MOVES
from laban.cluster.journal_store import LEASE_S, LOCK_KEY, SqlStore, Taken
from laban.cluster.moves import CallEnded, move_from_json, move_to_json
from laban.cluster.records import JOURNAL_AVAILABLE
from laban.kvstore.encodings import EMPTY_VIEW, make_spec

CHAIN_OF = CHAIN.replace("question: {type: string}", "question: {default: why}")


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    if programs() is None:
        pytest.skip("PostgreSQL is not installed")
    pytest.importorskip("psycopg")
    made = Postgres.make()
    yield made
    made.remove()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'journal.db'}"
    made: str = request.getfixturevalue("postgres").url
    store = SqlStore(made)
    store.open()
    store.write([Deletion(each.submission.workflow_id) for each in store.load()])
    store.close()
    return made


def submission(name: str, rank: int, key: str | None = None) -> Submission:
    return Submission(name, rank, "", key, "digest", "model/", 2000, 2**63 - 1, 1700000000.1234567, '{"a":"\\u0000é"}')


def line(name: str, number: int) -> Line:
    return Line(name, number, 0.0, 0, 0, "{}")


def test_what_is_written_is_read(url: str) -> None:
    store = SqlStore(url)
    store.open()
    lines = [Line("w2", number, 1.1 + number, number - 1, 3 * number, '{"kind":"started"}') for number in (1, 2)]
    for _ in range(2):  # an answer that was lost: all of it comes again
        store.write([submission("w1", 1, "k"), submission("w2", 2), submission("w3", 3), *lines])
    store.write([Line("w1", 1, 0.0, 0, 0, "{}"), Ending("w1", "failed", 5.5, "what is left"), Deletion("w3")])
    store.close()
    store.open()
    assert list(store.load()) == [
        Stored(submission("w1", 1, "k"), archive="what is left"),
        Stored(submission("w2", 2), tuple(lines)),
    ]
    store.close()


def shared(url: str, name: str, clock: Callable[[], float], model: str | None = "model") -> SqlStore:
    store = SqlStore(url, presence=Presence("here", name, model), lease_s=10.0, clock=clock)
    store.open()
    return store


def test_nobody_writes_for_a_member_that_others_took_out(url: str) -> None:
    now_s = 1000.0
    first, second = (shared(url, name, lambda: now_s) for name in "ab")
    first.write([submission("w1", 1), submission("w2", 2), Line("w1", 1, 0.0, 0, 0, "{}")])
    now_s += 9
    assert len(second.attend(second.presence).members) == 2
    now_s += 2
    found = second.attend(second.presence)
    assert [each.submission.workflow_id for each in found.taken] == ["w1", "w2"]
    assert [len(each.lines) for each in found.taken] == [1, 0]
    assert [each.address for each in found.members] == ["b"]
    for late in (
        Line("w1", 2, 0.0, 0, 0, "{}"),
        submission("w3", 3),
        Ending("w1", "failed", 1.0, "{}"),
        Deletion("w2"),
    ):
        with pytest.raises(Fenced):
            first.write([late])
    with pytest.raises(Fenced):
        first.attend(first.presence)
    first.rejoin()
    assert first.load() == []
    second.write([Line("w1", 2, 0.0, 0, 0, "{}")])
    second.close()  # which hands over
    assert [(each.submission.workflow_id, len(each.lines)) for each in first.load()] == [("w1", 2), ("w2", 0)]
    first.close()


def test_sqlites_log_has_its_length_from_the_start_and_nothing_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    log = tmp_path / "journal.db-wal"

    def seen() -> list[str]:
        with closing(sqlite3.connect(path)) as other:
            assert other.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            return sorted(name for (name,) in other.execute("SELECT name FROM sqlite_master WHERE type = 'table'"))

    store = SqlStore(f"sqlite:///{path}")
    store.open()
    tables = seen()
    assert "laban_moves" in tables
    assert "laban_log" not in tables
    length = log.stat().st_size
    assert length >= LOG_BYTES
    store.write([submission("w", 1)])
    for number in range(1, 100):
        store.write([Line("w", number, 0.0, 0, 0, "x" * 2000)])
    assert log.stat().st_size == length
    shutil.copy(path, tmp_path / "copy.db")  # as a process that is killed leaves them
    shutil.copy(log, tmp_path / "copy.db-wal")
    store.close()
    again = SqlStore(f"sqlite:///{tmp_path / 'copy.db'}")
    again.open()
    (found,) = again.load()
    assert [line.number for line in found.lines] == list(range(1, 100))
    again.close()


def test_a_key_is_one_workflows(url: str) -> None:
    first, second = (shared(url, name, lambda: 0.0) for name in "ab")
    assert first.write([submission("w1", 1, "k")]) == {}
    assert first.write([submission("w1", 1, "k")]) == {}  # an answer that was lost
    assert second.write([submission("w2", 2, "k"), submission("w3", 3, "l")]) == {"w2": Taken("w1", "digest")}
    first.write([Deletion("w1")])
    assert second.write([submission("w4", 4, "k")]) == {}
    # At once: the one that has the key goes, the next one comes.
    assert second.write([Deletion("w4"), submission("w5", 5, "k")]) == {}
    assert second.write([submission("w6", 6), line("w6", 1), Deletion("w6")]) == {}
    assert [each.submission.workflow_id for each in second.load()] == ["w3", "w5"]
    first.close()
    second.close()


def test_what_the_database_cannot_hold_is_no_outage(url: str) -> None:
    """None of what comes with it is written, and what comes then is."""
    store = shared(url, "a", lambda: 0.0)
    bad = [submission("w2", 2**70), submission("w2", 2, "\ud800")]
    if url.startswith("postgresql"):
        bad.append(submission("w2", 2, "k\0"))
    for each in bad:
        with pytest.raises(Unfit, match="does not take it"):
            store.write([submission("w1", 1), each])
    assert store.write([submission("w3", 3)]) == {}
    assert [each.submission.workflow_id for each in store.load()] == ["w3"]
    store.close()


@asynchronous
async def test_a_database_that_does_not_answer_holds_up_nothing_but_who_asks_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared(url, "a", lambda: 0.0).close()
    answers = threading.Event()
    monkeypatch.setattr(journal_reader, "READ_S", 0.2)
    monkeypatch.setattr(journal_reader, "_find", lambda connection, workflow_id: answers.wait())
    reader = JournalReader(url)
    asked = [asyncio.ensure_future(reader.find(f"w{number}")) for number in range(50)]
    await asyncio.sleep(0)
    assert await asyncio.wait_for(asyncio.to_thread(int), 5.0) == 0
    outcomes = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 5.0)
    assert all(isinstance(each, Unavailable) and "not answered within" in str(each) for each in outcomes)
    await asyncio.wait_for(reader.close(), 5.0)
    answers.set()


@asynchronous
async def test_what_no_workflow_can_be_called_is_not_found(url: str) -> None:
    shared(url, "a", lambda: 0.0).close()
    reader = JournalReader(url)
    for workflow_id in ("wf\0", "\ud800"):
        assert await reader.find(workflow_id) is None
    await reader.close()


@asynchronous
async def test_what_cannot_be_written_is_refused_alone_and_the_rest_is_written_in_order(url: str) -> None:
    store = SqlStore(url)
    store.open()
    async with server(store) as run:
        ranks = iter([1, 2**70, 2, 3])
        run.executor.intake.next_rank = lambda: next(ranks)
        asked = [run.submit(CHAIN_OF, idempotency_key=key) for key in "abc"]
        answers = dict(zip("abc", await asyncio.gather(*asked, return_exceptions=True), strict=True))
        [(key, refused)] = [each for each in answers.items() if isinstance(each[1], Exception)]
        assert isinstance(refused, InvalidInput)
        assert "does not take it" in str(refused)
        assert run.journal.status == JOURNAL_AVAILABLE
        answers[key] = await run.submit(CHAIN_OF, idempotency_key=key)  # which is free again
        for each in answers.values():
            assert (await run.events(each.workflow_id))[-1].workflow_state == "succeeded"

        done: list[int] = []
        for number in range(1, 8):
            line = Line("nobody's", 2**40 if number % 3 == 0 else number, 0.0, 0, 0, "{}")
            run.journal.append(line, lambda number=number: done.append(number))
        await until(lambda: len(done) == 7)
        assert done == [*range(1, 8)]
    with closing(engine_of(checked(url), "full").connect()) as connection:
        numbers = connection.execute(select(MOVES.c.number).where(MOVES.c.workflow_id == "nobody's")).scalars().all()
    expected = {number for number in range(1, 8) if number % 3}
    assert set(numbers) - {2**40} == expected  # SQLite holds as large a number


def test_what_is_left_is_shared_out_among_those_who_can_run_it(url: str) -> None:
    now_s = 0.0
    first, second, third = (shared(url, name, lambda: now_s) for name in "abc")
    other = shared(url, "d", lambda: now_s, model="another")
    first.write([submission(f"w{number}", number) for number in range(8)])
    second.write([submission("own", 9)])
    first.close()
    assert other.attend(other.presence).taken == ()
    assert len(second.attend(second.presence).taken) == 4
    assert len(third.attend(third.presence).taken) == 4
    second.close()
    third.close()
    other.close()


def test_who_starts_where_another_was_takes_its_place(url: str) -> None:
    first = shared(url, "a", lambda: 0.0)
    first.write([submission("w1", 1)])
    again = shared(url, "a", lambda: 0.0)  # its port is free: nobody is there
    assert [each.submission.workflow_id for each in again.load()] == ["w1"]
    with pytest.raises(Fenced):
        first.write([Line("w1", 1, 0.0, 0, 0, "{}")])
    again.close()
    first.close()


def test_the_journal_as_a_whole_keeps_no_more_than_it_should(url: str) -> None:
    first, second = (shared(url, name, lambda: 0.0) for name in "ab")
    for number in range(6):
        store = (first, second)[number % 2]
        store.write([submission(f"w{number}", number), Ending(f"w{number}", "failed", float(number), "{}")])
    known = [f"w{number}" for number in range(6)]
    assert first.attend(first.presence, keep=4, known=known).gone == {"w0", "w1"}
    assert second.attend(second.presence, keep=10, before=4.0, known=known).gone == {"w0", "w1", "w2", "w3"}
    first.close()
    second.close()


def test_the_clock_of_leases_is_the_databases(url: str) -> None:
    store = SqlStore(url)
    store.open()
    found = store.attend(store.presence).members[0]
    assert abs(found.expires_at - LEASE_S - time.time()) < 60
    store.close()


def test_a_laban_that_wants_the_journal_alone_keeps_others_out(url: str) -> None:
    store = SqlStore(url)
    if url.startswith("sqlite"):
        path = f"{store._url.database}.lock"
        with open(path, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(FailedPrecondition, match="an older version uses this journal"):
                store.open()
    else:
        alone = store._engine.connect()
        alone.execute(select(func.pg_advisory_lock(LOCK_KEY)))
        with pytest.raises(Unavailable, match="an older version uses it"):
            store.open()
        alone.close()
    store.open()
    store.close()


def test_a_journal_of_the_version_before_is_brought_forward(url: str) -> None:
    old = [submission("w1", 1, "k"), replace(submission("w2", 2), created_at=1700000001.5)]
    _write_as_version_1(url, old)
    store = SqlStore(url)
    store.open()
    found = store.load()
    assert [replace(each.submission, rank=0) for each in found] == [replace(each, rank=0) for each in old]
    assert [each.submission.rank for each in found] == pytest.approx([each.created_at * 1e6 for each in old], abs=1)
    assert [each.archive for each in found] == ["", "what is left"]
    assert found[0].lines == (Line("w1", 1, 0.5, 0, 2, "{}"),)
    assert store.write([submission("w3", 3, "k")]) == {"w3": Taken("w1", "digest")}
    store.write([Deletion("w1"), Deletion("w2")])
    store.close()


def _write_as_version_1(url: str, submissions: list[Submission]) -> None:
    store = SqlStore(url)
    with closing(store._engine.connect()) as connection, transaction(connection):
        for table in ("moves", "members", "workflows", "findings", "divergences", "schema"):
            connection.execute(text(f"DROP TABLE IF EXISTS laban_{table}"))
        config = Config()
        config.set_main_option("script_location", str(Path(migrations.__file__).parent))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for each in submissions:
            row = {field.name: getattr(each, field.name) for field in fields(each)}
            ended = each.workflow_id == "w2"
            row |= {"state": "failed" if ended else "running", "archive": "what is left" if ended else None}
            names = ", ".join(row)
            places = ", ".join(f":{name}" for name in row)
            connection.execute(text(f"INSERT INTO laban_workflows ({names}) VALUES ({places})"), row)
        connection.execute(text("INSERT INTO laban_moves VALUES ('w1', 1, 0.5, 0, 2, '{}')"))


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    store = SqlStore(f"sqlite:///{path}")
    store.open()
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("update laban_schema set version_num = '9999'")
    with pytest.raises(
        FailedPrecondition, match=r"journal.url: .* newer Laban: its schema is 9999, expected at most 0003"
    ):
        store.open()


def test_what_is_in_the_journal_is_its_owners_alone(tmp_path: Path) -> None:
    store = SqlStore(f"sqlite:///{tmp_path / 'deep' / 'journal.db'}")
    store.open()
    store.write([submission("w", 1)])
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "deep").iterdir()} == {0}
    store.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nowhere", "journal.url: not a database's URL, expected sqlite"),
        ("mysql://u@h/d", "journal.url: mysql is not supported, expected sqlite"),
        ("sqlite:////proc/none/journal.db", "the journal cannot be written there"),
        ("postgresql://u:secret@127.0.0.1:1/d", "u:[*]{3}@127.0.0.1:1/d cannot be used"),
    ],
)
def test_a_database_that_cannot_be_had_is_named(url: str, message: str) -> None:
    with pytest.raises((InvalidInput, FailedPrecondition, Unavailable), match=message):
        SqlStore(url).open()


def test_where_a_journal_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert default_url(8470) == f"sqlite:///{tmp_path}/laban/journal-8470.db"
    assert [checked_url(url) for url in (None, "none", default_url(0))] == [None, None, None]
    assert checked_url("sqlite:///here.db") == f"sqlite:///{tmp_path}/here.db"
    assert checked_url("sqlite:////there.db") == "sqlite:////there.db"


def test_the_configuration_as_shown_has_no_password() -> None:
    config = LabanConfig.model_validate({"journal": {"url": "postgresql://me:se/cr:et@host/db"}})
    shown = describe(Resolved(config, {}, None))
    assert "postgresql://me:***@host/db" in shown
    assert "cr:et" not in shown


def test_a_move_is_read_as_it_was_written() -> None:
    spec = make_spec("n", (1, 2), 3, EMPTY_VIEW, {})
    logprobs = (TokenLogprob(1, -float("inf"), ((2, -0.1), (3, -float("inf")))),)
    ended = CallFinished("c", "stop", spec, (1,), "\0é\u2028", 1, 2, 3, 0.1, 1e-9, logprobs)
    move = CallEnded("a[1]/b", 2, "w", ended, 0.3)
    assert move_from_json(move_to_json(move)) == move


@asynchronous
async def test_workflows_outlive_the_process(url: str) -> None:
    def opened() -> SqlStore:
        store = SqlStore(url)
        store.open()
        return store

    async with server(opened()) as first:
        done, cut_off = [(await first.submit(CHAIN_OF, idempotency_key=key)).workflow_id for key in "ab"]
        events = await first.events(done)
        record = first.executor.get(done)
        first.worker.paused = True
        waits = (await first.submit(CHAIN_OF)).workflow_id
    async with server(opened()) as again:
        assert await again.events(done) == events
        assert again.executor.get(done) == record
        for workflow_id in (cut_off, waits):
            assert (await again.events(workflow_id))[-1].workflow_state == "succeeded"


@asynchronous
async def test_a_postgres_that_is_stopped_and_started_again_loses_nothing(postgres: Postgres) -> None:
    store = SqlStore(postgres.url)
    store.open()
    async with server(store) as run:
        run.worker.paused = True
        workflow_id = (await run.submit(CHAIN_OF)).workflow_id
        postgres.stop()
        run.worker.resume()
        await until(lambda: run.journal.unavailable_since is not None)
        with pytest.raises(Unavailable, match="try again later"):
            await run.submit(CHAIN_OF)
        assert run.executor.get(workflow_id).state == "running"
        postgres.start()
        assert (await run.events(workflow_id))[-1].workflow_state == "succeeded"
        assert run.journal.status == "available"


def gone(path: Path, how: str) -> Callable[[], None]:
    """Makes the file go; what is returned puts it back."""
    if how == "log":
        path = path.with_name(f"{path.name}-wal")
    aside = path.with_name("aside")
    path.rename(aside)
    if how == "replaced":
        sqlite3.connect(path).close()
        path.touch()
    return lambda: aside.replace(path) and None


@pytest.mark.parametrize(
    ("how", "says"),
    [("deleted", "deleted or moved away"), ("replaced", "replaced by another file"), ("log", "db-wal was")],
)
def test_a_file_that_is_not_where_it_was_opened_is_written_to_no_more(tmp_path: Path, how: str, says: str) -> None:
    store = SqlStore(f"sqlite:///{tmp_path / 'journal.db'}")
    store.open()
    store.write([submission("before", 1)])
    put_back = gone(tmp_path / "journal.db", how)
    for work in (lambda: store.write([submission("lost", 2)]), lambda: store.attend(Presence())):
        for _ in range(2):
            with pytest.raises(JournalLost, match=says):
                work()
    if how != "replaced":
        assert not (tmp_path / f"journal.db{'-wal' if how == 'log' else ''}").exists()  # no other one is made
    put_back()
    store.write([submission("after", 3)])
    store.close()
    store.open()
    assert [each.submission.workflow_id for each in store.load()] == ["before", "after"]
    store.close()


def test_what_is_written_while_the_file_goes_is_not_said_to_be_there(tmp_path: Path) -> None:
    store = SqlStore(f"sqlite:///{tmp_path / 'journal.db'}")
    store.open()
    with pytest.raises(JournalLost):
        store.do(lambda connection: (tmp_path / "journal.db").unlink())
    store.close()
    store.open()  # a new one, which is its own from then on
    store.write([submission("new", 1)])
    assert [each.submission.workflow_id for each in store.load()] == ["new"]
    store.close()


@asynchronous
async def test_a_lost_file_is_told_and_what_is_submitted_refused(tmp_path: Path) -> None:
    store = SqlStore(f"sqlite:///{tmp_path / 'journal.db'}")
    store.open()
    async with server(store) as run:
        workflow_id = (await run.submit(CHAIN_OF)).workflow_id
        await run.events(workflow_id)
        put_back = gone(tmp_path / "journal.db", "deleted")
        with pytest.raises(Unavailable, match="deleted or moved away"):
            await run.submit(CHAIN_OF)
        assert "journal.db was deleted or moved away" in run.journal.lost
        assert run.executor.status().journal.endswith(run.journal.lost)
        with pytest.raises(Unavailable, match="deleted or moved away"):
            run.journal.check()
        put_back()
        await until(lambda: run.executor.status().journal == "available")
        assert run.journal.lost == ""
        await run.events((await run.submit(CHAIN_OF)).workflow_id)
