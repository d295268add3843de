"""Which encoding begins as another one: what a message that is new shares with those that were encoded in its place.

Keys and values of a token depend on the tokens before it and on what those attend to, so two messages encoded at the
same place under the same view have those of their common beginning in common. (For whole prompts this is the radix
tree of SGLang, arXiv 2312.07104; here each view has one of its own.)
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from laban.kvstore.encodings import EncodingSpec, View
from laban.kvstore.store import Entry

_Home = tuple[str, int, View]
_SPARE = 64
"""So many that are gone are kept among those that are there, before they are looked for."""


class Beginnings:
    """Of the encodings of one store. Those that it has dropped are forgotten in time, and never found."""

    def __init__(self, is_there: Callable[[Entry], bool]) -> None:
        self._is_there = is_there
        self._homes: dict[_Home, list[Entry]] = {}  # each in the order of its entries' tokens
        self._size = 0
        self._cleared_at = _SPARE

    def __len__(self) -> int:
        return self._size

    def add(self, entry: Entry) -> None:
        """An entry that is ready, of a spec that it has."""
        assert entry.spec is not None
        held = self._homes.setdefault(_home(entry.spec), [])
        held.insert(bisect_left(held, entry.spec.tokens, key=_tokens), entry)
        self._size += 1
        if self._size > self._cleared_at:
            self._clear()

    def find(self, spec: EncodingSpec) -> tuple[Entry, int] | None:
        """The entry that has most of its first tokens, and how many; never all of them."""
        held = self._homes.get(_home(spec))
        if held is None:
            return None
        at = bisect_left(held, spec.tokens, key=_tokens)  # what begins alike stands side by side
        best: tuple[Entry, int] | None = None
        for beside in (range(at, len(held)), range(at - 1, -1, -1)):
            entry = next((held[i] for i in beside if self._is_there(held[i])), None)
            if entry is None:
                continue
            shared = min(_shared(_tokens(entry), spec.tokens), entry.num_tokens, spec.num_tokens - 1)
            if shared and (best is None or shared > best[1]):
                best = entry, shared
        return best

    def _clear(self) -> None:
        homes = ((home, [entry for entry in held if self._is_there(entry)]) for home, held in self._homes.items())
        self._homes = {home: held for home, held in homes if held}
        self._size = sum(len(held) for held in self._homes.values())
        self._cleared_at = 2 * self._size + _SPARE


def _home(spec: EncodingSpec) -> _Home:
    return spec.namespace, spec.start, spec.view


def _tokens(entry: Entry) -> tuple[int, ...]:
    assert entry.spec is not None
    return entry.spec.tokens


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many of the first are alike."""
    size = min(len(one), len(other))
    if one[:size] == other[:size]:
        return size
    return next(at for at in range(size) if one[at] != other[at])
