"""What a copy waits for, by who may still read or write its pages."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from laban.actors.engine.fences import Fences


class Card:
    """Iterations are launched and taken in one by one; events are their names."""

    def __init__(self) -> None:
        self.under_way: Any = None
        self.copying: Any = None
        self.fences = Fences(8, copying=lambda: self.copying, under_way=lambda: self.under_way)

    def launch(self) -> None:
        number = self.fences.launched()
        self.copying = None
        self.under_way = SimpleNamespace(number=number, launched=SimpleNamespace(ready=f"iteration {number}"))


def test_copies_wait_for_the_iteration_that_may_read_what_was_in_their_pages() -> None:
    card = Card()
    assert card.fences.after([0, 1]) is None
    card.launch()
    card.fences.freed([1, 2])
    assert card.fences.after([0, 2]) == "iteration 1"
    assert card.fences.after([0, 3]) is None
    assert card.fences.after([]) is None
    card.launch()  # the first one has ended when the second is taken in, and is waited for by launching a third
    assert card.fences.after([1, 2]) is None
    card.under_way = None
    card.fences.freed([4])
    assert card.fences.after([4]) is None


def test_copies_wait_for_what_is_predicted_from_their_pages_before_the_next_launch() -> None:
    card = Card()
    card.launch()
    card.copying = "prediction"
    card.fences.freed([5])
    card.copying = "later prediction"  # on the same stream, so after the first
    assert card.fences.after([4, 5]) == "later prediction"
    card.launch()  # comes after it on the same stream
    assert card.fences.after([5]) == "iteration 2"
    card.launch()
    assert card.fences.after([5]) is None


def test_what_is_published_stands_once_the_iteration_under_way_has_ended() -> None:
    card = Card()
    assert card.fences.last_write() is None
    card.launch()
    assert card.fences.last_write() == "iteration 1"
