"""One message in the making: its tokens, what they read, and how far its keys and values are computed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from laban.actors.engine.decoding import Decode
from laban.kvstore.encodings import EncodingSpec, adapter_of
from laban.kvstore.store import Entry

if TYPE_CHECKING:
    from laban.actors.engine.loads import Load


@dataclass(frozen=True, slots=True)
class Read:
    """Tokens [begin, end) of an entry, `offset` positions further on than they were encoded.

    `start` is where the entry's first token was encoded: token i is at position start + i + offset of the view.
    """

    entry: Entry
    offset: int
    begin: int
    end: int
    start: int

    @property
    def position(self) -> int:
        """Of the first token read, in the view."""
        return self.start + self.begin + self.offset


UNKNOWN = -1
"""The id of a token that was sampled on the device and that the host was not told yet."""


@dataclass(slots=True, eq=False)
class Sequence:
    """A message being encoded into `entry`. `tokens` grows while the message is generated.

    `producers` are the sequences whose encodings it reads and that were unfinished when it was admitted. With a `load`
    its last tokens come from the host, and only those before them are computed. `prefetched` while no call wants it,
    `spare` while only calls do that are.
    """

    entry: Entry
    start: int
    tokens: list[int]
    reads: tuple[Read, ...]
    producers: tuple[Sequence, ...]
    spec: EncodingSpec | None  # None until the message is closed
    decode: Decode | None = None
    num_computed: int = 0
    finished: bool = False
    sample_row: int = 0  # where the last launched iteration sampled its next token, if it did
    load: Load | None = None
    prefetched: bool = False
    spare: bool = False
    num_iterations: int = 0

    @property
    def adapter(self) -> str:
        """The fingerprint of the one that computes it, as its identity says; "" for none."""
        if self.spec is not None:
            return adapter_of(self.spec.namespace)
        return "" if self.decode is None else adapter_of(self.decode.call.namespace)

    @property
    def num_pending(self) -> int:
        """Known tokens whose keys and values are to be computed."""
        if self.load is not None:
            return self.load.issued - self.num_computed if self.load.mixes else 0
        return len(self.tokens) - self.num_computed

    @property
    def is_whole(self) -> bool:
        """Whether the keys and values of all its tokens are there, or will be before any later iteration's."""
        return self.load is None and self.spec is not None and self.num_pending == 0

    @property
    def is_computed(self) -> bool:
        """Whether an iteration launched now may read all of it."""
        return self.finished or self.is_whole or (self.load is not None and self.load.is_gated)

    @property
    def is_given_up(self) -> bool:
        """Whether nobody wants it any more, and it is there only until what is being copied into it has landed."""
        return self.load is not None and self.load.cancelled

    @property
    def is_scored(self) -> bool:
        """Whether no logits are awaited: those of the last iteration may still be on the device."""
        return self.decode is None or self.decode.scorer is None or self.decode.scorer.is_done

    @property
    def wants_token(self) -> bool:
        """Whether the next token is to be sampled once all known ones are computed."""
        return self.decode is not None and self.decode.finish_reason is None

    def add_drafted(self, drafted: tuple[int, ...]) -> None:
        """Keys and values of these are there, after all others. For a moment: some will be taken, or none."""
        self.tokens += drafted
        self.num_computed = self.entry.num_tokens = len(self.tokens)

    def take_drafted(self, num_before: int, taken: list[int]) -> None:
        """Of what came after the first `num_before` tokens these count, the last of them not computed yet."""
        self.tokens[num_before:] = taken
        self.num_computed = self.entry.num_tokens = len(self.tokens) - 1

    def close(self, tokens: list[int], spec: EncodingSpec) -> None:
        """The message is `tokens`, whole. What was computed past the first token that differs counts no longer."""
        same = 0
        limit = min(self.num_computed, len(tokens))
        while same < limit and self.tokens[same] == tokens[same]:
            same += 1
        self.tokens, self.num_computed, self.spec = tokens, same, spec
        self.entry.num_tokens = same


@dataclass(frozen=True, slots=True)
class Chunk:
    """`count` tokens of a sequence from token `begin` on. The last of them are those `drafted`, which the sequence does
    not have yet: they come after all that it has."""

    sequence: Sequence
    begin: int
    count: int
    drafted: tuple[int, ...] = ()

    @property
    def num_known(self) -> int:
        """Of `count`: those that the sequence has."""
        return self.count - len(self.drafted)

    @property
    def token_ids(self) -> list[int]:
        return [*self.sequence.tokens[self.begin : self.begin + self.num_known], *self.drafted]

    @property
    def samples(self) -> bool:
        """Whether a next token is wanted: after the last token that the sequence has, and each drafted one."""
        return self.sequence.wants_token and self.begin + self.num_known == len(self.sequence.tokens)

    @property
    def is_decode(self) -> bool:
        """Whether it is what was generated, and what closes it."""
        decode = self.sequence.decode
        return decode is not None and decode.scorer is None and self.begin >= len(decode.call.tokens)

    @property
    def scored(self) -> range:
        """Those of its tokens, counted from its own first, that a forced token to be scored comes after."""
        decode = self.sequence.decode
        if decode is None or decode.scorer is None:
            return range(0)
        before_first = len(decode.call.tokens) - 1
        begin = max(self.begin, before_first)
        end = min(self.begin + self.count, before_first + decode.num_sampled)
        return range(begin - self.begin, max(begin, end) - self.begin)


def scored_rows(chunks: Iterable[Chunk]) -> list[int]:
    """The tokens of a batch of `chunks` whose logits are to be scored, in order."""
    rows: list[int] = []
    first = 0
    for chunk in chunks:
        rows += (first + at for at in chunk.scored)
        first += chunk.count
    return rows
