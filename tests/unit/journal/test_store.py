"""The journal's database: what is written is read, by one Laban at a time, of this version or an older one."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from executor_rig import until
from executor_workflows import CHAIN, asynchronous
from journal_rig import server
from postgres import Postgres, programs

from laban.actors.calls import CallFinished, TokenLogprob
from laban.actors.errors import FailedPrecondition, InvalidInput, Unavailable
from laban.cluster.config import LabanConfig, Resolved, describe
from laban.cluster.journal_place import checked_url, default_url
from laban.cluster.journal_records import Deletion, Ending, Line, Stored, Submission
from laban.cluster.journal_store import JournalAway, SqlStore
from laban.cluster.moves import CallEnded, move_from_json, move_to_json
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


def test_one_laban_at_a_time(url: str) -> None:
    first, second = SqlStore(url), SqlStore(url)
    first.open()
    with pytest.raises((FailedPrecondition, Unavailable), match="another Laban uses"):
        second.open()
    first.close()
    second.open()
    second.close()


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    store = SqlStore(f"sqlite:///{path}")
    store.open()
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("update laban_schema set version_num = '9999'")
    with pytest.raises(
        FailedPrecondition, match=r"journal.url: .* newer Laban: its schema is 9999, expected at most 0001"
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
        with pytest.raises(JournalAway, match="another Laban uses it"):
            SqlStore(postgres.url).write([])
