"""The journal's database: SQLite or PostgreSQL, through SQLAlchemy, as one of those who share it.

Used by one thread at a time.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, Executable, bindparam, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from laban.actors.errors import LabanError, Unavailable
from laban.cluster import journal_members as roll
from laban.cluster.journal_engine import (
    Fenced,
    FileLocks,
    JournalAway,
    OpenedFile,
    Sync,
    as_unfit,
    checked,
    engine_of,
    grow_log,
    is_sqlite,
    reason_of,
    transaction,
)
from laban.cluster.journal_members import Member, Presence
from laban.cluster.journal_records import Deletion, Ending, Line, Stored, Submission, Write
from laban.cluster.journal_schema import MOVES, WORKFLOWS, migrate

logger = logging.getLogger(__name__)

T = TypeVar("T")

LEASE_S = 10.0
LOCK_KEY = 0x6C6162616E  # of the advisory lock that older versions want alone

COLUMNS = {kind: tuple(field.name for field in fields(kind)) for kind in (Submission, Line, Ending)}
END_WORKFLOW = update(WORKFLOWS).where(WORKFLOWS.c.workflow_id == bindparam("of"))  # and what else a row names
DELETE_MOVES = delete(MOVES).where(MOVES.c.workflow_id == bindparam("of"))
DELETE_WORKFLOW = delete(WORKFLOWS).where(WORKFLOWS.c.workflow_id == bindparam("of"))
OF_KEY = select(WORKFLOWS.c.workflow_id, WORKFLOWS.c.content).where(
    WORKFLOWS.c.tenant == bindparam("tenant"), WORKFLOWS.c.idempotency_key == bindparam("key")
)


@dataclass(frozen=True, slots=True)
class Taken:
    """An idempotency key was another workflow's already."""

    workflow_id: str
    content: str


@dataclass(frozen=True, slots=True)
class Round:
    """What a member finds when it renews its lease: who is there, itself included, and what it takes over. `gone` are
    workflows, of those it asked about, that have been deleted."""

    members: tuple[Member, ...] = ()
    taken: tuple[Stored, ...] = ()
    gone: frozenset[str] = frozenset()


class Store(Protocol):
    """What `Journal` needs of a database. Methods block. Fenced: others took this member for dead."""

    @property
    def member_id(self) -> str: ...

    def write(self, writes: Sequence[Write]) -> Mapping[str, Taken]:
        """All of it in one transaction, but the submissions whose keys are others': these come back, by their ids.
        What is there already is not written twice. Raises JournalAway, Fenced, and Unfit for what could never be
        written."""

    def close(self) -> None:
        """Leave: what has not ended may be taken over by anybody."""


@dataclass
class SqlStore:
    """One connection, opened again after a failure. Implements Store."""

    url: str
    sync: Sync = "full"
    presence: Presence = field(default_factory=Presence)
    lease_s: float = LEASE_S
    clock: Callable[[], float] | None = None  # of leases; None: the database's
    member_id: str = field(default="", init=False)

    def __post_init__(self) -> None:
        """Raises InvalidInput for a URL that is none, or of a database that is not supported."""
        self._url = checked(self.url)
        self._engine = engine_of(self._url, self.sync)
        dialect: Any = sqlite if is_sqlite(self._url) else postgresql
        self._insert_workflow: Executable = dialect.insert(WORKFLOWS).on_conflict_do_nothing()
        self._insert_move: Executable = dialect.insert(MOVES).on_conflict_do_nothing()
        self._connection: Connection | None = None
        self._path = Path(self._url.database) if is_sqlite(self._url) and self._url.database else None
        self._locks = None if self._path is None else FileLocks(self._path)
        self._file: OpenedFile | None = None
        self._trusting_until = 0.0

    def __str__(self) -> str:
        return self._url.render_as_string(hide_password=True)

    def open(self) -> None:
        """Connect, bring the schema up to date, become a member. Raises Unavailable, FailedPrecondition."""
        if self._locks is not None:
            self._locks.share()
        self._file = None if self._path is None else OpenedFile(self._path)
        try:
            connection = self._connected()
            with transaction(connection):
                if not is_sqlite(self._url):
                    connection.execute(select(func.pg_advisory_xact_lock(LOCK_KEY + 1)))  # one at a time
                migrate(connection)
            if self._locks is not None:
                grow_log(connection)
            self.rejoin()
        except LabanError:
            self._let_go()
            raise
        except (JournalAway, SQLAlchemyError) as error:
            self._let_go()
            raise Unavailable(
                f"the journal's database {self} cannot be used: {reason_of(error)}", field="journal.url"
            ) from None

    def rejoin(self) -> None:
        """Become a member, under a new name and with no workflows. Raises JournalAway."""

        def join(connection: Connection) -> None:
            roll.join(connection, name, self.presence, roll.time_of(connection, self.clock), self.lease_s)

        name, before = secrets.token_hex(8), self.member_id
        if self._locks is not None:
            if before:
                self._locks.forget(before)
            self._locks.hold(name)
        try:
            self._do(join, is_member=False)
        except JournalAway:
            if self._locks is not None:
                self._locks.forget(name)
            raise
        self.member_id = name

    def write(self, writes: Sequence[Write]) -> Mapping[str, Taken]:
        return self._do(lambda connection: self._write(connection, writes))

    def do(self, work: Callable[[Connection], T]) -> T:
        """Something else in a transaction, as a member. Raises JournalAway, Fenced, Unfit."""
        return self._do(work)

    def attend(
        self, presence: Presence, keep: int | None = None, before: float | None = None, known: Collection[str] = ()
    ) -> Round:
        """Renew the lease, take out who is dead and take over what is this member's part of what they leave.

        Of workflows that have ended the last `keep` stay, none that ended before the time of day `before`. Raises
        JournalAway, Fenced.
        """
        self.presence = presence
        return self._do(lambda connection: self._attend(connection, keep, before, known))

    def load(self) -> list[Stored]:
        """Take over what nobody has; every workflow of this member's and all that have ended, in the order of
        submission. Raises Unavailable."""
        try:
            try:
                self.attend(self.presence)
            except Fenced:  # whoever started it took its time
                self.rejoin()
                self.attend(self.presence)
            return self._do(self._load)
        except (JournalAway, Fenced) as error:
            raise Unavailable(f"the journal's database {self} cannot be read: {reason_of(error)}") from None

    def close(self) -> None:
        if self.member_id:
            with suppress(JournalAway, Fenced):  # else others find out when the lease has run out
                self._do(lambda connection: roll.leave(connection, self.member_id))
        self._let_go()

    def _let_go(self) -> None:
        self._disconnect()
        self.member_id = ""
        if self._locks is not None:
            self._locks.release()

    def _do(self, work: Callable[[Connection], T], *, is_member: bool = True) -> T:
        """In a transaction that fails if this member is none any more. Raises JournalAway, Fenced, Unfit."""
        if is_member and not self.member_id:
            raise JournalAway("it is not open")
        try:
            if self._file is not None:
                self._file.check()  # also before a new connection would make another file
            connection = self._connected()
            with transaction(connection, self.member_id if is_member else None):
                result = work(connection)
            if self._file is not None:
                self._file.check()
                self._file.note()
            return result
        except (JournalAway, Fenced):
            raise
        except Exception as error:  # whatever it is, the thread that writes goes on
            self._disconnect()
            raise as_unfit(error) or JournalAway(reason_of(error)) from error

    def _attend(self, connection: Connection, keep: int | None, before: float | None, known: Collection[str]) -> Round:
        now = roll.time_of(connection, self.clock)
        if roll.renew(connection, self.member_id, self.presence, now, self.lease_s) < now:
            # The database may have been away for everybody: let the others speak.
            self._trusting_until = now + self.lease_s
        there = roll.members(connection)
        dead = [each for each in there if self._is_dead(each, now) and roll.take_out(connection, each)]
        for each in dead:
            logger.warning("member %s at %s is gone; others take its workflows over", each.member_id, each.address)
            if self._locks is not None:
                self._locks.forget(each.member_id)
        living = [each for each in there if each not in dead]
        is_up = self.presence.state == "up"
        taken = roll.take_over(connection, self.member_id, self.presence.model, living) if is_up else []
        if keep is not None:
            roll.forget_oldest(connection, keep, before)
        return Round(
            tuple(living),
            tuple(self._found(connection, workflow_id) for workflow_id in taken),
            self._gone(connection, known) if len(living) > 1 else frozenset(),
        )

    def _load(self, connection: Connection) -> list[Stored]:
        mine = (WORKFLOWS.c.owner == self.member_id) | (WORKFLOWS.c.state != roll.RUNNING)
        rows = connection.execute(select(WORKFLOWS).where(mine).order_by(WORKFLOWS.c.rank)).mappings().all()
        return [stored(connection, dict(row)) for row in rows]

    def _is_dead(self, member: Member, now: float) -> bool:
        if member.member_id == self.member_id:
            return False
        if self._locks is not None and not self._locks.is_held(member.member_id):
            return True
        here = (self.presence.host, self.presence.address)
        if all(here) and (member.host, member.address) == here:  # whose port is this one's now
            return True
        return member.expires_at < now and now >= self._trusting_until

    def _found(self, connection: Connection, workflow_id: str) -> Stored:
        row = connection.execute(select(WORKFLOWS).where(WORKFLOWS.c.workflow_id == workflow_id)).mappings().one()
        return stored(connection, dict(row))

    def _gone(self, connection: Connection, known: Collection[str]) -> frozenset[str]:
        if not known:
            return frozenset()
        return frozenset(known) - frozenset(connection.execute(select(WORKFLOWS.c.workflow_id)).scalars())

    def _write(self, connection: Connection, writes: Sequence[Write]) -> Mapping[str, Taken]:
        """Those of a kind together: of one workflow they come in this order. What is deleted goes first, since another
        may have its key by now, and nothing else is written of it."""
        deletions = {each.workflow_id for each in writes if isinstance(each, Deletion)}
        writes = [each for each in writes if each.workflow_id not in deletions]
        submissions = [each for each in writes if isinstance(each, Submission)]
        endings = [each for each in writes if isinstance(each, Ending)]
        gone: list[dict[str, object]] = [{"of": workflow_id} for workflow_id in deletions]
        given = {"state": roll.RUNNING, "owner": self.member_id}
        parts: tuple[tuple[Executable, list[dict[str, object]]], ...] = (
            (DELETE_MOVES, gone),
            (DELETE_WORKFLOW, gone),
            (self._insert_workflow, [_row(each) | given for each in submissions]),
            (self._insert_move, [_row(each) for each in writes if isinstance(each, Line)]),
            (END_WORKFLOW, [_row(each) | {"of": each.workflow_id} for each in endings]),
            (DELETE_MOVES, [{"of": each.workflow_id} for each in endings]),
        )
        for statement, rows in parts:
            if rows:
                connection.execute(statement, rows)
        taken: dict[str, Taken] = {}
        for each in submissions:
            if each.idempotency_key is not None:
                row = connection.execute(OF_KEY, {"tenant": each.tenant, "key": each.idempotency_key}).one()
                if row.workflow_id != each.workflow_id:
                    taken[each.workflow_id] = Taken(row.workflow_id, row.content)
        return taken

    def _connected(self) -> Connection:
        """Raises SQLAlchemyError, and JournalAway if a Laban has the database that wants it alone."""
        if self._connection is None:
            connection = self._engine.connect()
            if not is_sqlite(self._url):
                with connection.begin():
                    shared = connection.execute(select(func.pg_try_advisory_lock_shared(LOCK_KEY))).scalar_one()
                if not shared:
                    connection.close()
                    raise JournalAway("a Laban of an older version uses it")
            self._connection = connection
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if self._file is not None:
            self._file.closed()
        if connection is not None:
            with suppress(SQLAlchemyError):  # it was broken anyway
                connection.invalidate()
                connection.close()


def stored(connection: Connection, row: dict[str, Any]) -> Stored:
    """A row of WORKFLOWS, and its moves where it has not ended."""
    archive = row.pop("archive") or ""
    del row["state"], row["finished_at"], row["owner"]
    submission = Submission(**row)
    if archive:
        return Stored(submission, archive=archive)
    chosen = select(MOVES).where(MOVES.c.workflow_id == submission.workflow_id).order_by(MOVES.c.number)
    return Stored(submission, tuple(Line(**line) for line in connection.execute(chosen).mappings()))


def _row(write: Submission | Line | Ending) -> dict[str, object]:
    return {name: getattr(write, name) for name in COLUMNS[type(write)]}
