"""Where the tokens of a view come from, for each way to have an encoding."""

from __future__ import annotations

import pytest

from laban.actors.engine.planning import Plan
from laban.actors.engine.reuse import Reuse, reuse_of
from laban.actors.engine.tiers import Way
from laban.kvstore.encodings import EMPTY_VIEW, Placement, make_spec

SPEC = make_spec("test", [1] * 100, 0, EMPTY_VIEW, {})
ABOVE = make_spec("test", [2] * 30, 0, EMPTY_VIEW, {})


def plan(way: Way | None, *, begin: int = 0, end: int = 100) -> Plan:
    """A view of a part of one message, which is had in this `way`, for which another one has to be encoded."""
    missing = [] if way is None else [(ABOVE, Way.ENCODE), (SPEC, way)]
    return Plan({}, [Placement(SPEC.encoding_id, 0, begin, end)], None, missing, {}, set(), {})


@pytest.mark.parametrize(
    ("way", "brought", "expected"),
    [
        (None, 0, Reuse(0, 80, 80, 0)),
        (Way.ENCODE, 0, Reuse(130, 0, 0, 0)),
        (Way.ENCODE, 50, Reuse(80, 40, 40, 0)),  # its beginning is another's
        (Way.LOAD, 100, Reuse(30, 80, 0, 80)),
        (Way.MIX, 100, Reuse(30, 80, 0, 80)),
        (Way.RESUME, 64, Reuse(66, 54, 0, 54)),
        (Way.RESUME, 5, Reuse(125, 0, 0, 0)),  # nothing of what is read
        (Way.CORRECT, 100, Reuse(30, 80, 0, 0)),
    ],
)
def test_each_way(way: Way | None, brought: int, expected: Reuse) -> None:
    assert reuse_of(plan(way, begin=10, end=90), {SPEC.encoding_id: brought, ABOVE.encoding_id: 0}) == expected
