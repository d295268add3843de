"""How much is looked at, at most, of what a run leaves with workers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from played_runs import played

from laban.cluster import leftovers, view_tree
from laban.cluster.leftovers import MAX_PLACED, Ahead, Leftovers
from laban.cluster.view_tree import ViewTree
from laban.cluster.workflow.states import ReadRef

NUM_MESSAGES, NUM_STEPS = 100, 60


class Wide:
    """Ended steps that read many messages, each in an order of its own; `num_placed` counts what was placed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_placed = 0
        place = view_tree.place

        def counted(*args: Any) -> Any:
            self.num_placed += 1
            return place(*args)

        monkeypatch.setattr(view_tree, "place", counted)
        run = played("steps: [{step: draft, agent: ann, read: [m]}]")
        run.begin()
        keys = [f"x{number}" for number in range(NUM_MESSAGES)]
        for key in keys:
            run.book.add_text(key, "user", key, None, path=key)
        self.leftovers, self.tree = Leftovers(keys, set()), ViewTree(run.book)
        for number in range(NUM_STEPS):
            reads = tuple(ReadRef(key, "exact") for key in keys[number:] + keys[:number])
            self.leftovers.note(replace(run.steps["draft"], address=f"s{number}", reads=reads), "w0")

    def take(self, ahead: Ahead | None) -> tuple[int, int]:
        """How many encodings are over, and how many were placed to find out."""
        before = self.num_placed
        return len(self.leftovers.take(self.tree, ahead)), self.num_placed - before


def test_an_ended_run_is_looked_at_so_far_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = Wide(monkeypatch)
    num_over, num_placed = wide.take(None)
    assert MAX_PLACED // 2 < num_over <= num_placed <= MAX_PLACED
    assert not wide.leftovers.are_any  # the rest is not told
    assert wide.take(None) == (0, 0)


def test_a_run_is_looked_at_in_parts_until_enough_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = Wide(monkeypatch)
    ahead = Ahead((), ())
    found = [wide.take(ahead) for _ in range(4)]
    assert all(num_placed <= MAX_PLACED for _, num_placed in found)
    # A step goes the whole way or not at all, but for one that is larger than a look.
    assert sum(num_over for num_over, _ in found) == leftovers.MAX_LEFT
    assert wide.take(ahead) == (0, 0)
    assert not wide.leftovers.are_any


def test_nothing_is_placed_once_so_many_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "MAX_LEFT", 150)
    wide = Wide(monkeypatch)
    num_over, num_placed = wide.take(None)
    assert num_over == 150
    assert num_placed <= 151
