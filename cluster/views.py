"""Composing a view: from the messages a call reads to placements of encodings and the place of the new message.

Pure. A message has a *home*: the encoding made when the message was. A `direct` read places the home; an `exact` read
places the encoding of the message's tokens under the view so far, which is the home itself wherever the home was made
under that same view, by construction of the ids. A `corrected` read asks for the same, but for one that may also be
predicted: a worker decides (`actors/engine/corrections.py`), and the id says so. A `blended` read is a direct one of
which some tokens may be exact: of all that a view reads so, a share of the tokens is encoded under the view so far, the
first ones of its last messages (`encoded_again`). These are plain encodings, and there is no second pass.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import cast

from laban.actors.errors import InvalidInput, OutOfRange
from laban.cluster.records import Layout
from laban.cluster.workflow.fidelity import RECOMPUTE_SHARE, TOLERANCE, Fidelity
from laban.kvstore.encodings import EMPTY_VIEW, EncodingId, EncodingSpec, Placement, View, extend
from laban.kvstore.message_slots import MessageSlot
from laban.kvstore.spaces import Space

MAX_OVERLAPS = 100
"""Overlaps reported for one view; a view in which everything overlaps has quadratically many."""

PART = Fraction(9, 10)
"""Of what is still to be chosen for encoding again, the most that one message gets at once."""


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

    `position` is that of the first placed token; None puts it where the layout says. `recompute_share` is above 0, up
    to 1, and counts for a blended read. `tolerance`, nats a token, counts for a corrected one; with 0 that is exact.
    `slot` says which of a step's reads it is of, if it is of one.
    """

    message: Message
    fidelity: Fidelity = "exact"
    position: int | None = None
    begin: int | None = None
    end: int | None = None
    recompute_share: float = RECOMPUTE_SHARE
    tolerance: float = TOLERANCE
    slot: int | None = None


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
    `[begin, end)` that the root (if `has_root`) and then each entry take. `slots` are of whole messages that are read
    corrected, under another view than that of their homes.
    """

    view: View
    start: int
    added: Mapping[EncodingId, EncodingSpec]
    spans: tuple[tuple[int, int], ...]
    has_root: bool
    slots: tuple[MessageSlot, ...] = ()

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
    space: Space,
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
    slots: list[MessageSlot] = []
    if root:
        root_spec = space.spec(root, 0, EMPTY_VIEW, known)
        known[root_spec.encoding_id] = root_spec
        view = View(root_spec.encoding_id)
        cursor = len(root)
        spans.append((0, cursor))
    ranges = [_token_range(entry, index) for index, entry in enumerate(entries)]
    heads = _heads(entries, [end - begin for begin, end in ranges], view, cursor)
    for index, (entry, (begin, _)) in enumerate(zip(entries, ranges, strict=True)):
        if entry.position is not None:
            at = _checked_position(entry.position, f"view[{index}].position", max_context)
        elif layout == "as_encoded":
            at = entry.message.home.start + begin
        else:
            at = cursor
        view, cursor = place(space, entry, index, at, view, known, heads[index])
        if cursor > max_context:
            raise OutOfRange(
                f"tokens placed at {at} end at {cursor}, expected at most the model's context of {max_context}",
                field=f"view[{index}]",
            )
        spans.append((at, cursor))
        if entry.fidelity == "corrected" and entry.slot is not None:
            placed, home = known[_last_of(view)], entry.message.home
            if placed.tolerance and (placed.namespace, placed.tokens) == (home.namespace, home.tokens):
                slots.append(MessageSlot(placed.encoding_id, home.encoding_id, entry.slot))
    stop = max((end for _, end in spans), default=0)
    start = stop if position is None else _checked_position(position, "position", max_context)
    new = {encoding_id: spec for encoding_id, spec in added.items() if encoding_id not in specs}
    return Composed(view, start, new, tuple(spans), bool(root), tuple(slots))


def _last_of(view: View) -> EncodingId:
    """What was placed last."""
    last = view.placements[-1].encoding_id if view.placements else view.prefix_id
    assert last is not None
    return last


def place(
    space: Space,
    entry: Entry,
    index: int,
    at: int,
    view: View,
    known: MutableMapping[EncodingId, EncodingSpec],
    head: int = 0,
) -> tuple[View, int]:
    """`view`, the entries before it, with the entry `index`, whose first token is at `at`; and the position after it.

    Encodings that are not `known` are added there. Of a blended entry the first `head` tokens are encoded under the
    view, unless its home was. Raises InvalidInput as `compose` does.
    """
    home = entry.message.home
    begin, end = _token_range(entry, index)
    whole = (begin, end) == (0, home.num_tokens)
    reframed = entry.message.first_tokens if index == 0 and whole else ()
    corrected = entry.fidelity == "corrected"
    if entry.fidelity == "exact" or reframed or (corrected and not entry.tolerance):
        head = end - begin
    elif entry.fidelity == "direct" or (whole and (home.view, home.start) == (view, at)):
        head = 0
    elif corrected:
        head = end - begin
    middle = begin + head
    if head:
        tolerance = entry.tolerance if corrected else 0.0
        spec = space.spec(reframed or home.tokens[begin:middle], at, view, known, tolerance=tolerance)
        known.setdefault(spec.encoding_id, spec)
        view = extend(view, Placement(spec.encoding_id, at, 0, spec.num_tokens), known)
        at = spec.stop
    if middle < end:
        view = extend(view, Placement(home.encoding_id, at, middle, end), known)
        at += end - middle
    return view, at


def encoded_again(sizes: Sequence[int], count: int) -> list[int]:
    """Of messages of these sizes, in the view's order, how many first tokens of each make up `count` tokens, or all.

    From the last message back each gives its first ones, at most PART of what is left to choose, and so again until
    nothing is left: what is chosen for a count is chosen for any larger one, too. Why: what a reader loses, told by the
    gradients of its divergence from `exact` by token, hangs mostly on the last one or two messages, and within a long
    one on its beginning. PART keeps a long message from taking all. Over eight tasks a share leaves less of that
    divergence so than with the view's last tokens, those whose values deviate most (CacheBlend, arXiv 2405.16444), or
    the first of each message (EPIC, arXiv 2410.15332): docs/fidelity.md.
    """
    heads, left = [0] * len(sizes), min(count, sum(sizes))
    while left:
        for number in reversed(range(len(sizes))):
            more = min(sizes[number] - heads[number], ceil(left * PART))
            heads[number] += more
            left -= more
    return heads


def _heads(entries: Sequence[Entry], sizes: Sequence[int], view: View, stop: int) -> list[int]:
    """Of each blended entry how many of its first tokens are to be encoded again, after a root that ends at `stop`.

    The share is of all tokens that are read so. Entries at the front that stand where they were made count, and have
    nothing to encode.
    """
    open_at = 0
    for entry, size in zip(entries, sizes, strict=True):
        home = entry.message.home
        moved = entry.position not in (None, stop)
        if moved or (home.view, home.start, home.num_tokens) != (view, stop, size):
            break
        open_at += 1
        if entry.message.first_tokens:  # encoded whole here, whatever is asked for
            break
        view, stop = View(home.encoding_id), home.stop
    heads, due = [0] * len(entries), Fraction(0)
    for entry, size in zip(entries, sizes, strict=True):
        if entry.fidelity == "blended":
            due += size * Fraction(str(entry.recompute_share))  # 0.2 of 10 is 2, not a little more
    stale = [number for number in range(open_at, len(entries)) if entries[number].fidelity == "blended"]
    for number, head in zip(stale, encoded_again([sizes[n] for n in stale], ceil(due)), strict=True):
        heads[number] = head
    return heads


def home_of(
    space: Space, root: Sequence[int], tokens: Sequence[int], *, max_context: int, what: str, field: str = ""
) -> tuple[EncodingSpec, dict[EncodingId, EncodingSpec]]:
    """The home of a message that was given, not generated, and the specs it needs, itself among them.

    It is encoded right after its root. Raises OutOfRange if it ends beyond `max_context`.
    """
    check_fits(what, len(root), {"the message": len(tokens)}, max_context, field=field)
    specs: dict[EncodingId, EncodingSpec] = {}
    view = EMPTY_VIEW
    if root:
        root_spec = space.spec(root, 0, EMPTY_VIEW, specs)
        specs[root_spec.encoding_id] = root_spec
        view = View(root_spec.encoding_id)
    home = space.spec(tokens, len(root), view, specs)
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
        whole = f"the message has {num_tokens} tokens with its frame, expected"
        raise InvalidInput(f"{whole} 0 to {num_tokens - 1}", field=f"view[{index}].begin", value=begin)
    if not begin < end <= num_tokens:
        whole = f"the message has {num_tokens} tokens with its frame, expected"
        raise InvalidInput(f"{whole} {begin + 1} to {num_tokens}", field=f"view[{index}].end", value=end)
    return begin, end


def _checked_position(position: int, path: str, max_context: int) -> int:
    if not 0 <= position < max_context:
        raise OutOfRange(f"expected 0 to {max_context - 1}, within the model's context", field=path, value=position)
    return position
