"""Who is let in: tokens, roles, and how often."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from laban.actors.errors import Exhausted, Forbidden, InvalidInput, Unauthenticated
from laban.cluster.callers import ANYONE, Caller
from laban.cluster.door import NEEDS, SPENDS, Door
from laban.cluster.meter import Meter
from laban.cluster.tokens import Quota
from laban.proto import laban_pb2 as pb


class Book:
    """Tokens are names here."""

    def __init__(self, quota: Quota | None = None) -> None:
        self.callers = {
            "reader": Caller("reader", "acme", frozenset(["read"])),
            "writer": Caller("writer", "acme", frozenset(["submit"])),
            "boss": Caller("boss", "other", frozenset(["admin"])),
        }
        self.quotas = {} if quota is None else {"acme": quota}
        self.num_looks = 0
        self.broken = False

    def refresh(self) -> bool:
        self.num_looks += 1
        if self.broken:
            raise InvalidInput("is not valid YAML")
        return False

    def find(self, token: str) -> Caller | None:
        return self.callers.get(token)

    @property
    def kv_bytes(self) -> Mapping[str, int]:
        return {}

    def quota(self, tenant: str) -> Quota:
        return self.quotas.get(tenant, Quota())


def bearer(token: str) -> list[tuple[str, str | bytes]]:
    return [("user-agent", "x"), ("authorization", f"Bearer {token}")]


def test_without_a_book_everybody_may_do_everything() -> None:
    assert Door().enter("DrainWorker", ()) is ANYONE


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer  ")],
        [("authorization", "Basic writer")],
        [("authorization", "writer")],
        [("authorization", "Bearer stranger")],
        [("authorization", b"Bearer \xff")],
        [*bearer("writer"), *bearer("writer")],
        [("x-authorization", "Bearer writer")],
    ],
)
def test_nobody_else_comes_in(metadata: list[tuple[str, str | bytes]]) -> None:
    with pytest.raises(Unauthenticated) as raised:
        Door(Book()).enter("Get", metadata)
    assert "writer" not in str(raised.value)
    assert "stranger" not in str(raised.value)


def test_a_role_allows_what_it_says_and_no_more() -> None:
    door = Door(Book())
    allowed = {
        token: {method for method in METHODS if _let_in(door, method, token)} for token in ("reader", "writer", "boss")
    }
    assert allowed["reader"] == {"Get", "List", "Watch", "ExplainStep", "GetSession", "GetStatus"}
    assert allowed["writer"] == METHODS - {"AddWorker", "DrainWorker"}
    assert allowed["boss"] == METHODS
    assert NEEDS.keys() - {"Models"} <= METHODS  # which HTTP alone has


METHODS = {method.name for service in pb.DESCRIPTOR.services_by_name.values() for method in service.methods}


def _let_in(door: Door, method: str, token: str) -> bool:
    try:
        return door.enter(method, bearer(token)).name == token
    except Forbidden:
        return False


def test_a_tenant_that_calls_too_often_waits_as_long_as_it_is_told_and_others_do_not() -> None:
    now_s = 100.0
    door = Door(Book(Quota(requests_per_s=5, max_workflows=3)), clock=lambda: now_s)
    for _ in range(10):  # two seconds' worth at once
        assert door.enter("Get", bearer("reader")).max_workflows == 3
    with pytest.raises(Exhausted) as raised:
        door.enter("Get", bearer("writer"))  # of the same tenant
    assert door.enter("Get", bearer("boss")).max_workflows is None
    wait_s = raised.value.retry_after_s
    assert wait_s == pytest.approx(0.2)
    now_s += wait_s + 1e-9
    door.enter("Get", bearer("writer"))
    with pytest.raises(Exhausted):
        door.enter("Get", bearer("writer"))
    now_s += 3600
    for _ in range(10):
        door.enter("Get", bearer("reader"))
    with pytest.raises(Exhausted):
        door.enter("Get", bearer("reader"))


def test_the_file_is_looked_at_again_but_not_at_every_call_and_a_broken_one_changes_nothing() -> None:
    now_s, book = 0.0, Book()
    door = Door(book, clock=lambda: now_s)
    for _ in range(100):
        door.enter("Get", bearer("reader"))
    assert book.num_looks == 0
    now_s, book.broken = 1.0, True
    door.enter("Get", bearer("reader"))
    door.enter("Get", bearer("reader"))
    assert book.num_looks == 1


def test_a_broken_file_is_logged_once_and_again_once_it_is_broken_anew(caplog: pytest.LogCaptureFixture) -> None:
    now_s, book = 0.0, Book()
    door = Door(book, clock=lambda: now_s)
    for broken in (True, True, True, False, True, True):
        now_s, book.broken = now_s + 1.0, broken
        door.enter("Get", bearer("reader"))
    assert [record.getMessage() for record in caplog.records if "left aside" in record.message] == [
        "the tokens file is left aside: is not valid YAML"
    ] * 2


class Refusals(Meter):
    def __init__(self) -> None:
        self.reasons: list[str] = []

    def refused(self, reason: str) -> None:
        self.reasons.append(reason)


def test_tokens_are_charged_as_calls_end_and_a_debt_refuses_what_would_make_more() -> None:
    now, meter = [0.0], Refusals()
    door = Door(Book(Quota(tokens_per_minute=600)), meter=meter, clock=lambda: now[0])
    door.spent("acme", 600)
    door.enter("Submit", bearer("writer"))
    door.spent("acme", 100)
    door.spent("other", 10**9)
    for method in SPENDS:
        with pytest.raises(Exhausted, match=r"tenants.acme.tokens_per_minute") as raised:
            door.enter(method, bearer("writer"))
        assert raised.value.retry_after_s == pytest.approx(10.0, abs=0.01)
    door.enter("Watch", bearer("writer"))
    door.enter("CompleteStep", bearer("writer"))
    now[0] = 10.1
    door.enter("Submit", bearer("writer"))
    assert meter.reasons == ["tokens_per_minute"] * len(SPENDS)


def test_who_is_refused_is_counted_by_why() -> None:
    meter = Refusals()
    door = Door(Book(Quota(requests_per_s=0.5)), meter=meter, clock=lambda: 0.0)
    door.enter("Get", bearer("reader"))
    for method, who, kind in (
        ("Get", "stranger", Unauthenticated),
        ("Submit", "reader", Forbidden),
        ("Get", "reader", Exhausted),
    ):
        with pytest.raises(kind):
            door.enter(method, bearer(who))
    assert meter.reasons == ["unauthenticated", "denied", "requests_per_s"]


def test_every_method_that_spends_is_one_of_the_api() -> None:
    methods = {method.name for service in pb.DESCRIPTOR.services_by_name.values() for method in service.methods}
    assert set(SPENDS) <= methods
