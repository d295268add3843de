"""Those who share a journal's database: who is there, and which workflows are whose. Statements on a connection.

A workflow that has not ended is its owner's alone while the owner's row is there: nobody else writes anything of it.
The row goes when the owner takes it away, or when another finds it expired. A member that was away for too long finds
that out when it writes next, in that very transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    bindparam,
    delete,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    update,
)

from laban.cluster.journal_engine import Fenced
from laban.cluster.journal_schema import MEMBERS, WORKFLOWS

MemberState = Literal["up", "ending"]
RUNNING = "running"

NOW: dict[str, ColumnElement[float]] = {
    "sqlite": literal_column("(julianday('now') - 2440587.5) * 86400.0"),
    "postgresql": literal_column("CAST(extract(epoch FROM clock_timestamp()) AS double precision)"),
}
"""The database's time of day, in seconds: the only clock that leases know."""

TAKE = (
    update(WORKFLOWS)
    .where(
        WORKFLOWS.c.workflow_id == bindparam("of"),
        WORKFLOWS.c.state == RUNNING,
        WORKFLOWS.c.owner.is_not_distinct_from(bindparam("before")),
    )
    .values(owner=bindparam("to"))
)


@dataclass(frozen=True, slots=True)
class Presence:
    """How a member shows itself: the machine's name, where others reach it ("" while that is not known), and which
    workflows it can run, by the namespace of its model; None: any."""

    host: str = ""
    address: str = ""
    model: str | None = None
    state: MemberState = "up"


@dataclass(frozen=True, slots=True)
class Member:
    """`expires_at` is by the database's clock."""

    member_id: str
    host: str
    address: str
    model: str
    state: str
    joined_at: float
    expires_at: float
    workflows: int = 0  # that it has and that have not ended


def time_of(connection: Connection, clock: Callable[[], float] | None) -> float:
    """`clock` is a test's own."""
    found: float = connection.execute(select(NOW[connection.dialect.name])).scalar_one() if clock is None else clock()
    return found


def join(connection: Connection, member_id: str, presence: Presence, now: float, lease_s: float) -> None:
    row = asdict(presence) | {"model": presence.model or ""}
    times = {"joined_at": now, "expires_at": now + lease_s}
    connection.execute(insert(MEMBERS), {"member_id": member_id, **row, **times})


def renew(connection: Connection, member_id: str, presence: Presence, now: float, lease_s: float) -> float:
    """Returns when the lease would have run out. Raises Fenced for a member that is not there any more."""
    mine = MEMBERS.c.member_id == member_id
    before = connection.execute(select(MEMBERS.c.expires_at).where(mine)).scalar_one_or_none()
    if before is None:
        raise Fenced
    row = asdict(presence) | {"model": presence.model or "", "expires_at": now + lease_s}
    connection.execute(update(MEMBERS).where(mine), row)
    return float(before)


def members(connection: Connection) -> list[Member]:
    """In the order in which they joined."""
    owned = (
        select(WORKFLOWS.c.owner, func.count().label("workflows"))
        .where(WORKFLOWS.c.state == RUNNING)
        .group_by(WORKFLOWS.c.owner)
        .subquery()
    )
    rows = connection.execute(
        select(MEMBERS, func.coalesce(owned.c.workflows, 0).label("workflows"))
        .outerjoin(owned, owned.c.owner == MEMBERS.c.member_id)
        .order_by(MEMBERS.c.joined_at, MEMBERS.c.member_id)
    )
    return [Member(**row) for row in rows.mappings()]


def take_out(connection: Connection, gone: Member) -> bool:
    """Whether it is out: not if it has renewed its lease meanwhile. Waits for what it is just writing."""
    seen = MEMBERS.c.expires_at == gone.expires_at
    return bool(connection.execute(delete(MEMBERS).where(MEMBERS.c.member_id == gone.member_id, seen)).rowcount)


def take_over(connection: Connection, member_id: str, model: str | None, there: Sequence[Member]) -> list[str]:
    """Make workflows this member's that are nobody's: its part of them, where others are there for that model as well.

    Returns their ids, in the order of submission.
    """
    orphans = _orphans(connection, model)
    if not orphans:
        return []
    fit = [each for each in there if each.state == "up" and model in (None, each.model)]
    fair = ceil((len(orphans) + sum(each.workflows for each in fit)) / max(1, len(fit)))
    mine = sum(each.workflows for each in fit if each.member_id == member_id)
    wanted = orphans[: max(0, fair - mine)]
    return [
        workflow_id
        for workflow_id, before in wanted
        if connection.execute(TAKE, {"of": workflow_id, "before": before, "to": member_id}).rowcount
    ]


def leave(connection: Connection, member_id: str) -> None:
    """Its workflows are anybody's from now on."""
    owned = (WORKFLOWS.c.owner == member_id, WORKFLOWS.c.state == RUNNING)
    connection.execute(update(WORKFLOWS).where(*owned).values(owner=None))
    connection.execute(delete(MEMBERS).where(MEMBERS.c.member_id == member_id))


def forget_oldest(connection: Connection, keep: int, before: float | None) -> list[str]:
    """Delete workflows that have ended: all but the last `keep`, and those that ended before that time of day."""
    ended = select(WORKFLOWS.c.workflow_id).where(WORKFLOWS.c.state != RUNNING)
    many = ended.order_by(WORKFLOWS.c.finished_at.desc(), WORKFLOWS.c.workflow_id).offset(keep)
    found = list(connection.execute(many).scalars())
    if before is not None:
        found += connection.execute(ended.where(WORKFLOWS.c.finished_at < before)).scalars()
    gone: list[dict[str, Any]] = [{"of": workflow_id} for workflow_id in dict.fromkeys(found)]
    if gone:
        connection.execute(delete(WORKFLOWS).where(WORKFLOWS.c.workflow_id == bindparam("of")), gone)
    return [each["of"] for each in gone]


def _orphans(connection: Connection, model: str | None) -> list[tuple[str, str | None]]:
    """Unfinished workflows of that model whose owner is not there, and who that was."""
    nobodys = or_(WORKFLOWS.c.owner.is_(None), WORKFLOWS.c.owner.not_in(select(MEMBERS.c.member_id)))
    chosen = select(WORKFLOWS.c.workflow_id, WORKFLOWS.c.owner).where(WORKFLOWS.c.state == RUNNING, nobodys)
    if model is not None:
        chosen = chosen.where(WORKFLOWS.c.namespace == literal(f"{model}/") + WORKFLOWS.c.tenant)
    return [(row.workflow_id, row.owner) for row in connection.execute(chosen.order_by(WORKFLOWS.c.rank))]
