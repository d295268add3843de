"""What copies have to wait for on a card, where the host runs ahead: who may still read or write where they copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch.cuda import Event

from laban.actors.engine.iteration import Iteration


class Fences:
    """Pages are freed while an iteration that reads them is under way, and given to others at once: those may write to
    them only after that."""

    def __init__(
        self,
        num_pages: int,
        *,
        copying: Callable[[], Event | None],
        under_way: Callable[[], Iteration | None],
    ) -> None:
        """`copying` is the event of what was predicted since the last launch, `under_way` the iteration that was
        launched and not taken in."""
        self._copying, self._under_way = copying, under_way
        self._num_launched = 0
        # Of each page, the last iteration that may read what was in it before it was freed.
        self._read_until = np.zeros(num_pages, np.int64)

    def launched(self) -> int:
        """An iteration was given to the device; its number."""
        self._num_launched += 1
        return self._num_launched

    def freed(self, pages: list[int]) -> None:
        # What was predicted since the last launch is copied before the next one.
        self._read_until[pages] = self._num_launched + (self._copying() is not None)

    def after(self, pages: Sequence[int]) -> Event | None:
        """What a copy into `pages` must wait for."""
        if not len(pages):
            return None
        until = int(self._read_until[list(pages)].max())
        if until > self._num_launched:
            return self._copying()
        under_way = self._under_way()
        return under_way.launched.ready if under_way is not None and until >= under_way.number else None

    def last_write(self) -> Event | None:
        """What a copy of what was published must wait for."""
        under_way = self._under_way()
        return None if under_way is None else under_way.launched.ready
