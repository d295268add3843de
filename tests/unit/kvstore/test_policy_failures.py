"""What becomes of the mistakes of a user's own policy: they cost time, never a result."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest

from laban.kvstore import plugins
from laban.kvstore.eviction import Checked, CostPolicy, Evictable, Guarded, LruPolicy
from laban.kvstore.plugins import PolicyFailed, key_of

NOW_S = 100.0


def sure(name: str, wait_s: float) -> Evictable:
    return Evictable(name, 10, 1000, 50.0, NOW_S + wait_s, 1, 1.0, False, 0.1)


ITEM = sure("item", 5.0)


class Given:
    def __init__(self, key: Any) -> None:
        self.given = key

    def key(self, *arguments: object) -> Any:
        if isinstance(self.given, Exception):
            raise self.given
        return self.given


@pytest.mark.parametrize("key", [(), (1,), (1.5, -math.inf, True), [2, 3]])
def test_numbers_are_a_key(key: Any) -> None:
    assert key_of(Given(key)) == tuple(key)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "returned None, expected a tuple of numbers"),
        (3.0, "returned 3.0"),
        ("soon", "returned 'soon'"),
        ((1.0, None), r"returned \(1.0, None\)"),
        ((math.nan,), "none of them NaN"),
        (("a", 1), "expected a tuple of numbers"),
        (ValueError("oops"), r"ValueError: oops \(test_policy_failures.py, line \d+\)"),
    ],
)
def test_what_is_no_key_is_said(given: Any, said: str) -> None:
    with pytest.raises(PolicyFailed, match=said):
        key_of(Given(given))
    with pytest.raises(PolicyFailed, match=said):
        Checked(Given(given)).key(ITEM, NOW_S)


def test_an_encoding_without_a_key_leaves_first_as_cost_has_it() -> None:
    class OddOnes:
        def key(self, item: Any, now_s: float) -> tuple[float, ...]:
            return (1 / (int(item.encoding_id) % 2),)

    num_failed = 0

    def failed() -> None:
        nonlocal num_failed
        num_failed += 1

    guarded, items = Guarded(OddOnes(), failed), [sure(str(number), number) for number in range(1, 9)]
    order = [item.encoding_id for item in sorted(items, key=lambda each: guarded.key(each, NOW_S))]
    cost = sorted((each for each in items if int(each.encoding_id) % 2 == 0), key=lambda e: CostPolicy().key(e, NOW_S))
    assert order[:4] == [item.encoding_id for item in cost]
    assert num_failed == 4
    assert Guarded(LruPolicy()).key(ITEM, NOW_S) == (1.0, ITEM.last_use_s)


def test_failures_are_told_once_a_minute(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr(plugins.time, "monotonic", lambda: now_s)
    guarded = Guarded(Given(ValueError("oops")))
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            guarded.key(ITEM, NOW_S)
        now_s += 61.0
        guarded.key(ITEM, NOW_S)
    assert ["1 times" in line or "101 times" in line for line in caplog.messages] == [True, True]
    assert "test_policy_failures:Given" in caplog.messages[0]
    assert "ValueError: oops" in caplog.messages[0]
