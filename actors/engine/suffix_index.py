"""What a text's end says of how it goes on: where the same tokens stood before, in what it reads or in itself.

After LLMA (arXiv 2304.04487) and prompt look-up decoding. A token costs a few microseconds, however long the text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from laban.kernels import suffix_loops

MAX_LENGTH = 16
"""Tokens that are compared: what is alike for longer is as good as the same."""
MAX_CANDIDATES = 256
"""Earlier places that are looked at, the latest first."""


class SuffixIndex:
    """A growing text after fixed ones, and the earlier place whose tokens its own last ones repeat.

    That place is the one with the most tokens alike (`length`, at least 2, counted up to MAX_LENGTH), and of equals
    the one that was followed already, then the latest. No match crosses the border of two texts.
    """

    def __init__(self, texts: Sequence[Sequence[int]], room: int) -> None:
        """`texts` are token ids, none below 0; `room` is how many tokens will be appended at most."""
        parts = [np.asarray(text, np.int32) for text in texts if len(text)]
        num_known = sum(map(len, parts)) + len(parts)
        self._text = np.empty(num_known + room, np.int32)
        self._links = np.empty(num_known + room, np.int32)
        self._bits = max(4, (num_known + room).bit_length())
        self._heads = np.full(1 << self._bits, -1, np.int32)
        at = 0
        for number, part in enumerate(parts):
            self._text[at : at + len(part)] = part
            self._text[at + len(part)] = -1 - number  # a border is like nothing else
            at += len(part) + 1
        suffix_loops.insert(self._text, 0, at, self._heads, self._links, self._bits)
        self._first = self._size = at
        self._place, self.length = -1, 0  # where the last token stood before, and how many are alike there

    def append(self, token: int) -> None:
        """Raises IndexError if there is no room."""
        text, last = self._text, self._size
        text[last] = token
        self._size += 1
        if last > self._first:
            suffix_loops.insert(text, last, self._size, self._heads, self._links, self._bits)
        if self._place >= 0 and text[self._place + 1] == token:  # then no other place has more tokens alike
            self._place += 1
            self.length = min(self.length + 1, MAX_LENGTH)
        elif last > self._first:
            self._place, self.length = suffix_loops.longest(text, last, self._links, MAX_LENGTH, MAX_CANDIDATES)

    def next_token(self) -> int | None:
        """What followed at the earlier place; None if nothing did, or there is no such place."""
        if self._place < 0:
            return None
        token = int(self._text[self._place + 1])
        return None if token < 0 else token

    def following(self, most: int) -> list[int]:
        """Up to `most` tokens that followed there, to the end of that text. A text that repeats itself goes on so."""
        if self._place < 0:
            return []
        begin = self._place + 1
        found: list[int] = self._text[begin : min(begin + most, self._size)].tolist()
        for at, token in enumerate(found):
            if token < 0:
                return found[:at]
        period = self._size - begin
        while len(found) < most:
            found.append(found[-period])
        return found
