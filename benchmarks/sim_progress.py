"""How far a series of simulations is: a bar on a terminal, a line for each elsewhere."""

from __future__ import annotations

import sys
from typing import TextIO

from report import Clock

WIDTH = 24


class Progress:
    """On stderr. `begin` each of `planned`, `show` its share, `end` the last one."""

    def __init__(self, clock: Clock, planned: int, *, out: TextIO | None = None) -> None:
        self._clock = clock
        self._planned = planned
        self._out = sys.stderr if out is None else out
        self._begun = 0
        self._title = ""

    def begin(self, title: str) -> None:
        self._begun += 1
        self._title = title
        if self._out.isatty():
            self.show(0.0)
        else:
            self._clock.say(f"{self._begun} of {max(self._planned, self._begun)}: {title}")

    def show(self, share: float) -> None:
        """Of the one that was begun last."""
        if self._out.isatty():
            done = min(1.0, (self._begun - 1 + share) / max(self._planned, self._begun))
            bar = "#" * round(WIDTH * done)
            self._out.write(f"\r[{bar:-<{WIDTH}}] {done:4.0%}  {self._title}\x1b[K")
            self._out.flush()

    def end(self) -> None:
        if self._out.isatty():
            self._out.write("\r\x1b[K")
            self._out.flush()
