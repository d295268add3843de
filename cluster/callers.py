"""Who makes a call: a tenant and what it may do. Set once where a call comes in, read wherever it matters."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, get_args

from laban.cluster.workflow.fidelity import Fidelity

Role = Literal["submit", "read", "admin"]
"""`read` sees its tenant's workflows and the cluster's status, `submit` also starts, moves and ends them, `admin` also
changes the cluster."""

ROLES: tuple[Role, ...] = get_args(Role)
IMPLIED: dict[Role, tuple[Role, ...]] = {"submit": ("read",), "admin": ("submit", "read"), "read": ()}


@dataclass(frozen=True, slots=True)
class Caller:
    """`name` says whose token it is, for the log. `tenant` is "" where nobody has to say who they are."""

    name: str
    tenant: str
    roles: frozenset[Role]
    max_workflows: int | None = None  # of the tenant, running at once
    max_sessions: int | None = None  # of the tenant, open at once
    fidelity: Fidelity = "exact"  # of chats over HTTP, unless they say otherwise

    def may(self, role: Role) -> bool:
        return any(role == held or role in IMPLIED[held] for held in self.roles)


ANYONE = Caller("anyone", "", frozenset(ROLES))
_caller: ContextVar[Caller] = ContextVar("caller", default=ANYONE)


def caller() -> Caller:
    """Of the call that is being answered."""
    return _caller.get()


def set_caller(found: Caller) -> None:
    """For the rest of this task, and what it starts."""
    _caller.set(found)
