"""Who begins and who has to make room, over a store alone: what is started takes its pages and computes nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from laban.actors.calls import Call, Sampling
from laban.actors.engine.admission import Admission
from laban.actors.engine.counters import Counters
from laban.actors.engine.decoding import Decode
from laban.actors.engine.measured import MeasuredRates
from laban.actors.engine.planning import Plan
from laban.actors.engine.room import worst_case_tokens
from laban.actors.engine.running_call import RunningCall
from laban.actors.engine.tiers import Tiers
from laban.actors.engine.unfinished import Unfinished
from laban.actors.engine.waiting import Waiting
from laban.actors.errors import FailedPrecondition
from laban.kvstore.encodings import EMPTY_VIEW
from laban.kvstore.eviction import load_policy
from laban.kvstore.needs import Needs
from laban.kvstore.store import EncodingStore

PAGE, NUM_PAGES = 16, 10


class Hall:
    def __init__(self, *, max_running: int = 8, tenant_pages: int = NUM_PAGES) -> None:
        self.store = EncodingStore(NUM_PAGES, PAGE, tenant_pages=tenant_pages)
        needs = Needs(load_policy("cost"), 8)
        self.tiers = Tiers(None, None, needs, MeasuredRates(False, None), Counters())
        self.unfinished = Unfinished(self.store)
        prefetches: Any = SimpleNamespace(give_up=lambda keep: False)
        corrections: Any = None
        starting: Any = self
        self.admission = Admission(
            max_running, self.store, self.tiers, corrections, self.unfinished, starting, prefetches
        )
        self.fails: set[str] = set()

    def start(self, waiting: Waiting, plan: Plan, kept: list[Any], make_decode: Any) -> RunningCall:
        call = waiting.call
        if call.call_id in self.fails:
            raise RuntimeError("not this one")
        entry = self.store.reserve(f"call/{call.call_id}", worst_case_tokens(call), call.namespace)
        assert call.sampling is not None
        decode = Decode(call, call.sampling, None, None)  # type: ignore[arg-type]
        sequence = self.unfinished.add(entry, 0, list(call.tokens), [], {}, None, decode)
        return RunningCall(call, sequence, 0.0, 0, serial=waiting.serial)

    def undo(self, call_id: str) -> None: ...

    def ask(self, name: str, num_pages: int, *, rank: int = 0, spare: bool = False, tenant: str = "") -> None:
        sampling = Sampling(max_tokens=PAGE * num_pages - 1)
        self.admission.waiting.add(Call(name, tenant, EMPTY_VIEW, 0, (1,), (), sampling, rank=rank, spare=spare), 0.0)

    def admit(self) -> list[str]:
        """Who begins; those that fail in brackets."""
        found = self.admission.admit(lambda call: None)  # type: ignore[arg-type, return-value]
        return [each.call.call_id if isinstance(each, RunningCall) else f"({each[0].call_id})" for each in found]

    def end(self, name: str) -> None:
        self.unfinished.discard(self.admission.running.pop(name).sequence)


def test_older_workflows_first_then_as_they_came() -> None:
    hall = Hall(max_running=3)
    for name, rank in (("late", 2), ("first", 1), ("second", 1), ("oldest", 0)):
        hall.ask(name, 1, rank=rank)
    assert hall.admit() == ["oldest", "first", "second"]
    assert not hall.admission.is_short
    hall.end("first")
    assert hall.admit() == ["late"]


def test_nobody_overtakes_who_waits_for_pages() -> None:
    hall = Hall()
    hall.ask("large", 8)
    hall.ask("next", 6)
    hall.ask("small", 1)
    assert hall.admit() == ["large"]
    assert hall.admission.is_short
    hall.end("large")
    assert hall.admit() == ["next", "small"]


def test_the_youngest_make_room_and_only_as_many_as_it_takes() -> None:
    hall = Hall()
    for name, rank in (("old", 1), ("younger", 5), ("youngest", 9)):
        hall.ask(name, 3, rank=rank)
    assert hall.admit() == ["old", "younger", "youngest"]
    hall.ask("oldest", 4, rank=0)
    assert hall.admit() == ["oldest"]
    assert [each.call.call_id for each in hall.admission.waiting] == ["youngest"]
    assert set(hall.admission.running) == {"old", "younger", "oldest"}
    assert hall.tiers.counters.totals().preemptions == 1
    hall.end("oldest")
    assert hall.admit() == ["youngest"]
    hall.store.check_integrity()


def test_nobody_is_put_back_where_that_is_not_enough() -> None:
    hall = Hall()
    for name, rank in (("old", 0), ("young", 5)):
        hall.ask(name, 5, rank=rank)
    hall.admit()
    hall.ask("large", 6, rank=3)
    assert hall.admit() == []
    assert not hall.tiers.counters.totals().preemptions


def test_of_a_tenant_short_of_its_own_share_only_its_own_make_room() -> None:
    hall = Hall(tenant_pages=5)
    hall.ask("others", 3, rank=9, tenant="test/b")
    hall.ask("own", 3, rank=5, tenant="test/a")
    hall.admit()
    hall.ask("older", 4, rank=0, tenant="test/a")
    assert hall.admit() == ["older"]
    assert set(hall.admission.running) == {"others", "older"}


def test_who_waits_for_its_own_share_holds_up_nobody_else() -> None:
    hall = Hall(tenant_pages=5)
    for name, pages, tenant in (("first", 4, "a"), ("second", 3, "a#part"), ("third", 1, "a"), ("other", 4, "b")):
        hall.ask(name, pages, tenant=f"test/{tenant}")
    assert hall.admit() == ["first", "other"]
    hall.ask("own", 3, tenant="test/c")
    hall.end("first")
    assert hall.admit() == ["second", "third"]  # they go first once there is room for them, and then nobody passes by
    assert [each.call.call_id for each in hall.admission.waiting] == ["own"]
    hall.end("other")
    assert hall.admit() == ["own"]


def test_spare_calls_put_nobody_back_and_hold_up_no_prefetch() -> None:
    hall = Hall()
    hall.ask("young", 9, rank=5)
    hall.admit()
    hall.ask("spare", 5, rank=0, spare=True)
    assert hall.admit() == []
    assert not hall.admission.is_short
    assert not hall.tiers.counters.totals().preemptions


def test_one_that_cannot_begin_ends_alone() -> None:
    hall = Hall()
    for name in ("first", "broken", "last"):
        hall.ask(name, 2)
    hall.fails.add("broken")
    assert hall.admit() == ["first", "(broken)", "last"]
    assert not len(hall.admission.waiting)


def test_what_does_not_fit_with_nothing_else_there_is_told_so() -> None:
    hall = Hall()
    hall.ask("large", NUM_PAGES + 1)
    (told,) = hall.admission.admit(lambda call: None)  # type: ignore[arg-type, return-value]
    assert isinstance(told, tuple)
    assert isinstance(told[1], FailedPrecondition)
    assert "176 tokens" in str(told[1])
