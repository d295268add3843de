"""What stands before an encoding in its view, in short, and how far two such differ.

Keys and values of the same tokens differ from one view to another by what precedes them there, and by nothing else
once rotation is taken out. So this is what tells whether one may stand for the other.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from laban.kvstore.encodings import EncodingId, EncodingSpec, Specs, token_bytes

LEAST = 0.01
"""The distance of surroundings that are not the same, at least."""
MAX_DIGESTS = 4096


class Piece(NamedTuple):  # compared by the dozen for a call, which tuples are fast at
    """Of one placement: a digest of its content, its tokens, and its position from the first token that it precedes."""

    content: str
    num_tokens: int
    offset: int


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The nearest piece first. Equal ones give equal keys and values, apart from rotation."""

    pieces: tuple[Piece, ...]
    num_tokens: int  # of them all


NO_SURROUNDINGS = Surroundings((), 0)


class Digests:
    """Of the tokens of encodings, of the last ones: what many views have is digested once. Owned by one thread."""

    def __init__(self) -> None:
        self._kept: OrderedDict[EncodingId, str] = OrderedDict()  # the longest unused first

    def of(self, spec: EncodingSpec) -> str:
        kept = self._kept
        digest = kept.get(spec.encoding_id)
        if digest is not None:
            kept.move_to_end(spec.encoding_id)
            return digest
        digest = kept[spec.encoding_id] = blake2b(token_bytes(spec.tokens), digest_size=16).hexdigest()
        if len(kept) > MAX_DIGESTS:
            kept.popitem(last=False)
        return digest


def surroundings(spec: EncodingSpec, specs: Specs, digests: Digests) -> Surroundings:
    """Of `spec`, from its view. KeyError for a view that names unknown encodings.

    What was encoded in its place counts by its tokens; what was encoded elsewhere brings what it saw there, and
    counts as the very encoding that it is.
    """
    pieces: list[Piece] = []
    view = spec.view
    while True:
        for placed in reversed(view.placements):
            content = f"{placed.encoding_id}:{placed.begin}:{placed.end}"
            pieces.append(Piece(content, placed.num_tokens, placed.position - spec.start))
        if view.prefix_id is None:
            return Surroundings(tuple(pieces), sum(piece.num_tokens for piece in pieces))
        before = specs[view.prefix_id]
        pieces.append(Piece(digests.of(before), before.num_tokens, before.start - spec.start))
        view = before.view


def distance(one: Surroundings, other: Surroundings) -> float:
    """0 for the same surroundings and for no others, up to 1 for such as have nothing in common.

    Half of it is for tokens that only one of them has anywhere, half for what differs from the nearest piece on. It is
    a share of the tokens, so it means the same for long and short ones.
    """
    if one.pieces == other.pieces:
        return 0.0
    most = max(one.num_tokens, other.num_tokens)
    if most == 0:
        return LEAST
    near = 0
    for mine, its in zip(one.pieces, other.pieces, strict=False):
        if mine != its:
            break
        near += mine.num_tokens
    left: dict[str, int] = {}
    for piece in one.pieces:
        left[piece.content] = left.get(piece.content, 0) + 1
    common = 0
    for piece in other.pieces:
        if left.get(piece.content, 0):
            left[piece.content] -= 1
            common += piece.num_tokens
    either = one.num_tokens + other.num_tokens - common
    return max(LEAST, 1.0 - 0.5 * near / most - 0.5 * common / max(1, either))
