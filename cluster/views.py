"""Composing a view: from the messages a call reads to placements of encodings and the place of the new message.

Pure. A message has a *home*: the encoding made when the message was. A `direct` read places the home; an
`exact` read places the encoding of the message's tokens under the view so far, which is the home itself
wherever the home was made under that same view, by construction of the ids.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from laban.actors.errors import InvalidInput, OutOfRange
from laban.cluster.records import Layout
from laban.kvstore.encodings import EMPTY_VIEW, EncodingId, EncodingSpec, Placement, View, extend, make_spec

ReadFidelity = Literal["exact", "direct"]
MAX_OVERLAPS = 100
"""Overlaps reported for one view; a view in which everything overlaps has quadratically many."""


@dataclass(frozen=True, slots=True)
class Message:
    """An immutable message: who says it, and the encoding made when it was. `home.tokens` are all its tokens.

    Some templates frame the first message of a conversation otherwise: `first_tokens` are then its tokens
    there. A whole message placed first has them; () means that they are `home.tokens`.
    """

    role: str
    home: EncodingSpec
    name: str | None = None
    first_tokens: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a view, as its author wrote it: tokens `[begin, end)` of a message.

    `position` is that of the first placed token; None puts it where the layout says.
    """

    message: Message
    fidelity: ReadFidelity = "exact"
    position: int | None = None
    begin: int | None = None
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two things in a view that share the positions `[begin, end)`. Allowed, and said.

    `first` and `second` are indices into the view; -1 is the root that every view begins with, and the
    number of entries stands for the new message itself.
    """

    first: int
    second: int
    begin: int
    end: int

    def describe(self, num_entries: int) -> str:
        """In words, for a view of `num_entries`."""
        names = {-1: "the root", num_entries: "the new message"}
        first, second = (names.get(index, f"view[{index}]") for index in (self.first, self.second))
        return f"{first} and {second} share the positions {self.begin} to {self.end - 1}"


@dataclass(frozen=True, slots=True)
class Composed:
    """A view and where the new message starts under it.

    `added` holds the specs that the view names and the caller did not have. `spans` are the positions
    `[begin, end)` that the root (if `has_root`) and then each entry take.
    """

    view: View
    start: int
    added: Mapping[EncodingId, EncodingSpec]
    spans: tuple[tuple[int, int], ...]
    has_root: bool

    def overlaps(self, new_tokens: int = 0) -> tuple[Overlap, ...]:
        """The pairs that share positions, the new message of `new_tokens` among them: at most MAX_OVERLAPS."""
        spans = [*self.spans, (self.start, self.start + new_tokens)]
        first_index = -1 if self.has_root else 0
        ordered = sorted((begin, end, index) for index, (begin, end) in enumerate(spans, first_index) if begin < end)
        found: list[Overlap] = []
        for number, (_, end, index) in enumerate(ordered):
            for other_begin, other_end, other in ordered[number + 1 :]:
                if other_begin >= end or len(found) == MAX_OVERLAPS:
                    break
                found.append(Overlap(min(index, other), max(index, other), other_begin, min(end, other_end)))
        return tuple(sorted(found, key=lambda overlap: (overlap.first, overlap.second)))


def compose(
    namespace: str,
    root: Sequence[int],
    entries: Sequence[Entry],
    specs: Mapping[EncodingId, EncodingSpec],
    *,
    max_context: int,
    layout: Layout = "packed",
    position: int | None = None,
) -> Composed:
    """Place the root tokens at 0 and then each entry, in order.

    `packed` places an entry without a position where the one before it ends; `as_encoded` where its home
    has it. The new message starts at `position`, or after the furthest token placed. `specs` must hold the
    homes of the messages and all that these depend on.

    Raises OutOfRange for a position outside `[0, max_context)` or an entry that ends beyond `max_context`,
    InvalidInput for a token range that is empty or not within its message; both name the field.
    """
    added: dict[EncodingId, EncodingSpec] = {}
    known = ChainMap(added, cast(dict[EncodingId, EncodingSpec], specs))  # only `added` is written to
    view = EMPTY_VIEW
    cursor = 0
    spans: list[tuple[int, int]] = []
    if root:
        root_spec = make_spec(namespace, root, 0, EMPTY_VIEW, known)
        known[root_spec.encoding_id] = root_spec
        view = View(root_spec.encoding_id)
        cursor = len(root)
        spans.append((0, cursor))
    for index, entry in enumerate(entries):
        begin, _ = _token_range(entry, index)
        if entry.position is not None:
            at = _checked_position(entry.position, f"view[{index}].position", max_context)
        elif layout == "as_encoded":
            at = entry.message.home.start + begin
        else:
            at = cursor
        placement = place(namespace, entry, index, at, view, known)
        cursor = placement.stop
        if cursor > max_context:
            raise OutOfRange(
                f"tokens placed at {at} end at {cursor}, expected at most the model's context of {max_context}",
                field=f"view[{index}]",
            )
        view = extend(view, placement, known)
        spans.append((at, cursor))
    stop = max((end for _, end in spans), default=0)
    start = stop if position is None else _checked_position(position, "position", max_context)
    new = {encoding_id: spec for encoding_id, spec in added.items() if encoding_id not in specs}
    return Composed(view, start, new, tuple(spans), bool(root))


def place(
    namespace: str, entry: Entry, index: int, at: int, view: View, known: MutableMapping[EncodingId, EncodingSpec]
) -> Placement:
    """The entry `index` of a view, its first token at `at` under `view`, the entries before it. An encoding that is not
    `known` is added there. Raises InvalidInput as `compose` does."""
    home = entry.message.home
    begin, end = _token_range(entry, index)
    reframed = entry.message.first_tokens if index == 0 and (begin, end) == (0, home.num_tokens) else ()
    if entry.fidelity == "direct" and not reframed:
        return Placement(home.encoding_id, at, begin, end)
    spec = make_spec(namespace, reframed or home.tokens[begin:end], at, view, known)
    known.setdefault(spec.encoding_id, spec)
    return Placement(spec.encoding_id, at, 0, spec.num_tokens)


def home_of(
    namespace: str, root: Sequence[int], tokens: Sequence[int], *, max_context: int, what: str, field: str = ""
) -> tuple[EncodingSpec, dict[EncodingId, EncodingSpec]]:
    """The home of a message that was given, not generated, and the specs it needs, itself among them.

    It is encoded right after its root. Raises OutOfRange if it ends beyond `max_context`.
    """
    check_fits(what, len(root), {"the message": len(tokens)}, max_context, field=field)
    specs: dict[EncodingId, EncodingSpec] = {}
    view = EMPTY_VIEW
    if root:
        root_spec = make_spec(namespace, root, 0, EMPTY_VIEW, specs)
        specs[root_spec.encoding_id] = root_spec
        view = View(root_spec.encoding_id)
    home = make_spec(namespace, tokens, len(root), view, specs)
    specs[home.encoding_id] = home
    return home, specs


def check_fits(what: str, start: int, parts: Mapping[str, int], max_context: int, *, field: str = "") -> None:
    """Raise OutOfRange if a message at `start` made of `parts` (name: tokens) ends beyond `max_context`."""
    stop = start + sum(parts.values())
    if stop > max_context:
        sizes = " + ".join(f"{tokens} of {name}" for name, tokens in parts.items())
        raise OutOfRange(
            f"{what} needs up to {stop} positions (a view of {start} + {sizes}),"
            f" expected at most the model's context of {max_context}",
            field=field,
        )


def _token_range(entry: Entry, index: int) -> tuple[int, int]:
    num_tokens = entry.message.home.num_tokens
    begin = 0 if entry.begin is None else entry.begin
    end = num_tokens if entry.end is None else entry.end
    if not 0 <= begin < num_tokens:
        raise InvalidInput(f"expected 0 to {num_tokens - 1}", field=f"view[{index}].begin", value=begin)
    if not begin < end <= num_tokens:
        raise InvalidInput(f"expected {begin + 1} to {num_tokens}", field=f"view[{index}].end", value=end)
    return begin, end


def _checked_position(position: int, path: str, max_context: int) -> int:
    if not 0 <= position < max_context:
        raise OutOfRange(f"expected 0 to {max_context - 1}, within the model's context", field=path, value=position)
    return position
