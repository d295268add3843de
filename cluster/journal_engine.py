"""How the journal's database is reached: its URL, connections, transactions, and the locks beside a SQLite file."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DataError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from laban.actors.errors import FailedPrecondition, InvalidInput

DIALECTS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}
BUSY_S = 5.0  # to wait for a lock of SQLite's, and for a connection to PostgreSQL
STATEMENT_MS = 30_000
ALIVE_S = 5
UNANSWERED_MS = 15_000
"""A server that is cut off, with no word that the connection is over, is away after so long; the system's own patience
is a quarter of an hour. One that it takes to answer is asked whether it is there every ALIVE_S."""
IDLE_MS = 10_000
"""A process that stops in the middle of a transaction loses it: others wait for what it has locked."""
PATIENCE = {
    "keepalives_idle": ALIVE_S,
    "keepalives_interval": ALIVE_S,
    "keepalives_count": UNANSWERED_MS // 1000 // ALIVE_S - 1,
    "tcp_user_timeout": UNANSWERED_MS,
}
Sync = Literal["full", "normal"]
"""When a commit returns. `full`: it is on the disk. `normal`: the system has it, so it outlives the process, but may be
lost with the machine."""
LOG_BYTES = 4 * 1024 * 1024
"""Of SQLite's write-ahead log: it goes on at its beginning once it has some 1,000 pages."""
MEMBER_ID = re.compile(r"[0-9a-f]{1,32}")


class JournalAway(Exception):
    """The database cannot be written now; nothing of what was to be written is there, or all of it."""


class JournalLost(JournalAway):
    """A SQLite file that is not where it was opened: somebody has to see to it."""


class Unfit(InvalidInput):
    """The database does not take what was given, and will not another time: nothing of it is there."""


class Fenced(Exception):
    """This member was taken for dead: others have its workflows, and nothing is written under its name any more."""


def checked(url: str) -> URL:
    """Raises InvalidInput for a URL that is none, or of a database that is not supported."""
    expected = "sqlite:////folder/file.db or postgresql://user@host/database"
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, ValueError):
        raise InvalidInput(f"not a database's URL, expected {expected}", field="journal.url") from None
    if backend not in DIALECTS:
        raise InvalidInput(f"{backend} is not supported, expected {expected}", field="journal.url")
    return parsed.set(drivername=DIALECTS[backend])


def is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def engine_of(url: URL, sync: Sync) -> Engine:
    """Connections commit each statement by itself, outside of `transaction`. Raises FailedPrecondition."""
    commit = "on" if sync == "full" else "off"
    options = (
        f"-c statement_timeout={STATEMENT_MS} -c idle_in_transaction_session_timeout={IDLE_MS} "
        f"-c synchronous_commit={commit}"
    )
    patience = {name: value for name, value in PATIENCE.items() if name not in url.query}
    arguments: dict[str, Any] = (
        {"timeout": BUSY_S, "check_same_thread": False}
        if is_sqlite(url)
        else {"connect_timeout": int(BUSY_S), "options": options, **patience}
    )
    try:
        engine = create_engine(url, connect_args=arguments, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    except (NoSuchModuleError, ImportError):
        raise FailedPrecondition(
            "PostgreSQL needs the package psycopg: pip install 'laban[postgres]'", field="journal.url"
        ) from None
    if is_sqlite(url):
        event.listen(engine, "connect", partial(_prepare_sqlite, sync))
    return engine


@contextmanager
def transaction(connection: Connection, fence: str | None = None) -> Iterator[None]:
    """One that writes. Raises Fenced if `fence` is the id of a member that is not there any more.

    Nobody can take the member out until the transaction has ended: SQLite has one writer at a time, and PostgreSQL
    locks its row. To see to that costs no way to the database and back of its own.
    """
    is_local = connection.dialect.name == "sqlite"
    with connection.begin():
        if fence is None:
            connection.exec_driver_sql("BEGIN IMMEDIATE" if is_local else "BEGIN")
        elif not (_is_there_locally if is_local else _is_there)(connection.connection, fence):
            raise Fenced
        yield


def _is_there_locally(connection: Any, fence: str) -> bool:
    """By the driver itself: SQLAlchemy takes longer to ask than SQLite to answer."""
    connection.driver_connection.execute("BEGIN IMMEDIATE")
    found = connection.driver_connection.execute("SELECT 1 FROM laban_members WHERE member_id = ?", (fence,))
    return found.fetchone() is not None


def _is_there(connection: Any, fence: str) -> bool:
    assert MEMBER_ID.fullmatch(fence), "it becomes part of a statement"
    with closing(connection.cursor()) as cursor:
        select = f"SELECT 1 FROM laban_members WHERE member_id = '{fence}' FOR KEY SHARE"
        cursor.execute(f"BEGIN; {select}", prepare=False)
        cursor.nextset()
        return cursor.fetchone() is not None


def _prepare_sqlite(sync: Sync, connection: Any, record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute(f"PRAGMA synchronous={sync}")
    cursor.close()


def grow_log(connection: Connection) -> None:
    """Have SQLite's write-ahead log at its full length from the start: a commit that makes the file longer has to wait
    for the file system's own journal, too, which takes as long again, and longer while others write.

    So much is written and taken back: with few pages to keep in memory SQLite puts the rest there. Without the room
    for it nothing happens.
    """
    path = Path(f"{connection.engine.url.database}-wal")
    if path.exists() and path.stat().st_size >= LOG_BYTES:
        return
    with suppress(SQLAlchemyError):
        connection.exec_driver_sql("PRAGMA cache_size=10")
        connection.commit()
        with connection.begin() as all_of_it:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            connection.exec_driver_sql("CREATE TABLE laban_log (room BLOB)")
            connection.exec_driver_sql(f"INSERT INTO laban_log VALUES (zeroblob({LOG_BYTES}))")
            all_of_it.rollback()
    connection.exec_driver_sql("PRAGMA cache_size=-2000")
    connection.commit()


def as_unfit(error: Exception) -> Unfit | None:
    """What went wrong, where it is what was given: a text that the database cannot hold, a number that is too large."""
    if isinstance(error, DataError | UnicodeError | OverflowError):
        return Unfit(f"the journal's database does not take it: {reason_of(error)}")
    return None


def reason_of(error: Exception) -> str:
    """The first line of what the database said, without the statement."""
    cause = getattr(error, "orig", None) or error
    return (str(cause).strip() or repr(cause)).splitlines()[0]


class OpenedFile:
    """A SQLite file and its write-ahead log, as they were opened. SQLite does not see it when they are deleted or
    replaced: it goes on writing into what has no name any more, and nobody would find it there again."""

    def __init__(self, database: Path) -> None:
        self._database, self._log = database, Path(f"{database}-wal")
        self._known: dict[Path, tuple[int, int]] = {}

    def note(self) -> None:
        """What is there was written to."""
        for path in (self._database, self._log):
            if path not in self._known and (found := _identity(path)) is not None:
                self._known[path] = found

    def closed(self) -> None:
        """The last to close the file takes its log away."""
        self._known.pop(self._log, None)

    def check(self) -> None:
        """Raises JournalLost."""
        for path, known in self._known.items():
            found = _identity(path)
            if found != known:
                what = "deleted or moved away" if found is None else "replaced by another file"
                raise JournalLost(
                    f"{path.name} was {what} while Laban has it open; put back the one that was there, or start Laban "
                    "again: it goes on with what it finds there (docs/runbooks.md, The journal is away)"
                )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class FileLocks:
    """What those who share a SQLite file hold beside it, each for as long as its process lives."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._shared: int | None = None
        self._own: dict[str, int] = {}

    def share(self) -> None:
        """Make the file, which nobody else may read: texts are in there. Raises FailedPrecondition, also while a Laban
        uses it that wants it alone, as older ones do."""
        try:
            self._database.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._database, os.O_CREAT | os.O_RDWR, 0o600))
            self._shared = os.open(f"{self._database}.lock", os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(self._shared, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise FailedPrecondition(
                "a Laban of an older version uses this journal: stop it, or name another",
                field="journal.url",
                value=str(self._database),
            ) from None
        except OSError as error:
            raise FailedPrecondition(
                f"the journal cannot be written there ({error.strerror})",
                field="journal.url",
                value=str(self._database),
            ) from None

    def hold(self, member_id: str) -> None:
        """Before others hear of the member."""
        own = os.open(self._path(member_id), os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._own[member_id] = own

    def is_held(self, member_id: str) -> bool:
        """Whether the member's process lives."""
        try:
            other = os.open(self._path(member_id), os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(other)
        return False

    def forget(self, member_id: str) -> None:
        """The member is none any more."""
        own = self._own.pop(member_id, None)
        if own is not None:
            os.close(own)
        with suppress(FileNotFoundError):
            self._path(member_id).unlink()

    def release(self) -> None:
        for member_id in list(self._own):
            self.forget(member_id)
        if self._shared is not None:
            os.close(self._shared)
            self._shared = None

    def _path(self, member_id: str) -> Path:
        return Path(f"{self._database}.{member_id}.lock")
