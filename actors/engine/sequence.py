"""One message in the making: its tokens, what they read, and how far its keys and values are computed."""

from __future__ import annotations

from dataclasses import dataclass

from laban.actors.calls import Call
from laban.actors.engine.decoding import Decode
from laban.kvstore.encodings import EncodingSpec
from laban.kvstore.store import Entry


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

    `producers` are the sequences whose encodings it reads and that were unfinished when it was admitted.
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

    @property
    def num_pending(self) -> int:
        """Known tokens whose keys and values are not computed yet."""
        return len(self.tokens) - self.num_computed

    @property
    def is_computed(self) -> bool:
        """Whether the keys and values of the whole message are there, or will be before any later iteration's."""
        return self.finished or (self.spec is not None and self.num_pending == 0)

    @property
    def wants_token(self) -> bool:
        """Whether the next token is to be sampled once all known ones are computed."""
        return self.decode is not None and self.decode.finish_reason is None

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
    """`count` tokens of a sequence from token `begin` on."""

    sequence: Sequence
    begin: int
    count: int


@dataclass(slots=True, eq=False)
class RunningCall:
    """An admitted call: the sequence that answers it (None: its encoding was there), and what is told at the end."""

    call: Call
    sequence: Sequence
    submitted_at: float
    tokens_read: int
    tokens_reused: int
    tokens_encoded: int
    first_token_at: float | None = None
