"""The journal's database: SQLite or PostgreSQL, through SQLAlchemy. Used by one thread at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from sqlalchemy import Connection, Engine, Executable, bindparam, create_engine, delete, event, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from laban.actors.errors import FailedPrecondition, InvalidInput, LabanError, Unavailable
from laban.cluster.journal_records import Deletion, Ending, Line, Stored, Submission, Write
from laban.cluster.journal_schema import MOVES, WORKFLOWS, migrate

DIALECTS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}
BUSY_S = 5.0  # to wait for a lock of SQLite's, and for a connection to PostgreSQL
STATEMENT_MS = 30_000
Sync = Literal["full", "normal"]
"""When a commit returns. `full`: it is on the disk. `normal`: the system has it, so it outlives the process, but may be
lost with the machine."""
LOCK_KEY = 0x6C6162616E  # of the advisory lock that keeps a second Laban out of a PostgreSQL database

COLUMNS = {kind: tuple(field.name for field in fields(kind)) for kind in (Submission, Line, Ending)}
END_WORKFLOW = update(WORKFLOWS).where(WORKFLOWS.c.workflow_id == bindparam("of"))  # and what else a row names
DELETE_MOVES = delete(MOVES).where(MOVES.c.workflow_id == bindparam("of"))
DELETE_WORKFLOW = delete(WORKFLOWS).where(WORKFLOWS.c.workflow_id == bindparam("of"))


class JournalAway(Exception):
    """The database cannot be written now; nothing of what was to be written is there, or all of it."""


class Store(Protocol):
    """What `Journal` needs of a database. Methods block."""

    def open(self) -> None:
        """Connect, keep others out, bring the schema up to date. Raises Unavailable, FailedPrecondition."""

    def write(self, writes: Sequence[Write]) -> None:
        """All of it in one transaction. What is there already is not written twice. Raises JournalAway."""

    def load(self) -> list[Stored]:
        """Every workflow, in the order of submission. Raises Unavailable."""

    def close(self) -> None: ...


class SqlStore:
    """One connection, opened again after a failure. Implements Store."""

    def __init__(self, url: str, sync: Sync = "full") -> None:
        """Raises InvalidInput for a URL that is none, or of a database that is not supported."""
        self._url = _checked(url)
        self._engine: Engine = _engine(self._url, sync)
        dialect: Any = sqlite if self._is_sqlite else postgresql
        self._insert_workflow: Executable = dialect.insert(WORKFLOWS).on_conflict_do_nothing()
        self._insert_move: Executable = dialect.insert(MOVES).on_conflict_do_nothing()
        self._connection: Connection | None = None
        self._lock_file: int | None = None

    def __str__(self) -> str:
        return self._url.render_as_string(hide_password=True)

    @property
    def _is_sqlite(self) -> bool:
        return self._url.get_backend_name() == "sqlite"

    def open(self) -> None:
        if self._is_sqlite and self._url.database:
            self._lock_file = _locked(Path(self._url.database))
        try:
            connection = self._connected()
            with connection.begin():
                migrate(connection)
        except JournalAway as error:
            self.close()
            raise Unavailable(f"the journal's database {self} cannot be used: {error}", field="journal.url") from None
        except SQLAlchemyError as error:
            self.close()
            raise Unavailable(
                f"the journal's database {self} cannot be used: {_reason(error)}", field="journal.url"
            ) from None
        except LabanError:
            self.close()
            raise

    def write(self, writes: Sequence[Write]) -> None:
        try:
            connection = self._connected()
            with connection.begin():
                self._write(connection, writes)
        except JournalAway:
            raise
        except Exception as error:  # whatever it is, the thread that writes goes on
            self._disconnect()
            raise JournalAway(_reason(error)) from error

    def load(self) -> list[Stored]:
        try:
            connection = self._connected()
            with connection.begin():
                rows = connection.execute(select(WORKFLOWS).order_by(WORKFLOWS.c.rank)).mappings().all()
                return [self._stored(connection, dict(row)) for row in rows]
        except (SQLAlchemyError, JournalAway) as error:
            self._disconnect()
            raise Unavailable(f"the journal's database {self} cannot be read: {_reason(error)}") from None

    def close(self) -> None:
        self._disconnect()
        self._engine.dispose()
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    def _stored(self, connection: Connection, row: dict[str, Any]) -> Stored:
        archive = row.pop("archive") or ""
        del row["state"], row["finished_at"]
        submission = Submission(**row)
        if archive:
            return Stored(submission, archive=archive)
        chosen = select(MOVES).where(MOVES.c.workflow_id == submission.workflow_id).order_by(MOVES.c.number)
        return Stored(submission, tuple(Line(**line) for line in connection.execute(chosen).mappings()))

    def _write(self, connection: Connection, writes: Sequence[Write]) -> None:
        """Those of a kind together: of one workflow they come in this order."""
        endings = [each for each in writes if isinstance(each, Ending)]
        deletions = [each.workflow_id for each in writes if isinstance(each, Deletion)]
        gone: list[dict[str, object]] = [
            {"of": workflow_id} for workflow_id in (*(each.workflow_id for each in endings), *deletions)
        ]
        parts: tuple[tuple[Executable, list[dict[str, object]]], ...] = (
            (
                self._insert_workflow,
                [_row(each) | {"state": "running"} for each in writes if isinstance(each, Submission)],
            ),
            (self._insert_move, [_row(each) for each in writes if isinstance(each, Line)]),
            (END_WORKFLOW, [_row(each) | {"of": each.workflow_id} for each in endings]),
            (DELETE_MOVES, gone),
            (DELETE_WORKFLOW, [{"of": workflow_id} for workflow_id in deletions]),
        )
        for statement, rows in parts:
            if rows:
                connection.execute(statement, rows)

    def _connected(self) -> Connection:
        """Raises SQLAlchemyError, and JournalAway if another Laban has the database."""
        if self._connection is None:
            connection = self._engine.connect()
            if not self._is_sqlite:
                with connection.begin():
                    is_ours = connection.execute(select(func.pg_try_advisory_lock(LOCK_KEY))).scalar_one()
                if not is_ours:
                    connection.close()
                    raise JournalAway("another Laban uses it")
            self._connection = connection
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.invalidate()
                connection.close()
            except SQLAlchemyError:
                pass  # it was broken anyway


def _row(write: Submission | Line | Ending) -> dict[str, object]:
    return {name: getattr(write, name) for name in COLUMNS[type(write)]}


def _checked(url: str) -> URL:
    expected = "sqlite:////folder/file.db or postgresql://user@host/database"
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, ValueError):
        raise InvalidInput(f"not a database's URL, expected {expected}", field="journal.url") from None
    if backend not in DIALECTS:
        raise InvalidInput(f"{backend} is not supported, expected {expected}", field="journal.url")
    return parsed.set(drivername=DIALECTS[backend])


def _engine(url: URL, sync: Sync) -> Engine:
    commit = "on" if sync == "full" else "off"
    is_sqlite = url.get_backend_name() == "sqlite"
    arguments: dict[str, Any] = (
        {"timeout": BUSY_S, "check_same_thread": False}
        if is_sqlite
        else {
            "connect_timeout": int(BUSY_S),
            "options": f"-c statement_timeout={STATEMENT_MS} -c synchronous_commit={commit}",
        }
    )
    try:
        engine = create_engine(url, connect_args=arguments, poolclass=NullPool)
    except (NoSuchModuleError, ImportError):
        raise FailedPrecondition(
            "PostgreSQL needs the package psycopg: pip install 'laban[postgres]'", field="journal.url"
        ) from None
    if is_sqlite:
        event.listen(engine, "connect", partial(_prepare_sqlite, sync))
    return engine


def _prepare_sqlite(sync: Sync, connection: Any, record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute(f"PRAGMA synchronous={sync}")
    cursor.close()


def _locked(path: Path) -> int:
    """An open file that is locked for as long as this process lives. Texts are in there: others may not read it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        lock = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise FailedPrecondition(
            f"the journal cannot be written there ({error.strerror})", field="journal.url", value=str(path)
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise FailedPrecondition(
            "another Laban uses this journal: stop it, or name another", field="journal.url", value=str(path)
        ) from None
    return lock


def _reason(error: Exception) -> str:
    """The first line of what the database said, without the statement."""
    cause = getattr(error, "orig", None) or error
    return (str(cause).strip() or repr(cause)).splitlines()[0]
