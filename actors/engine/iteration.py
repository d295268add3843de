"""An iteration that was launched, as the engine takes it in."""

from __future__ import annotations

from dataclasses import dataclass

from laban.actors.engine.decoding import Decode
from laban.actors.engine.launched import Launched
from laban.actors.engine.sequence import Chunk, Sequence


@dataclass(frozen=True, slots=True)
class Sampled:
    """Where an iteration samples a call's next tokens: in row `first_row`, and in one more for each drafted token."""

    sequence: Sequence
    decode: Decode
    first_row: int
    drafted: tuple[int, ...]

    @property
    def rows(self) -> range:
        return range(self.first_row, self.first_row + 1 + len(self.drafted))


@dataclass(frozen=True, slots=True)
class Iteration:
    """What was given to the device, and whose next tokens it samples."""

    launched: Launched
    chunks: list[Chunk]
    sampled: list[Sampled]
    number: int
    began_s: float

    @property
    def num_tokens(self) -> int:
        return sum(chunk.count for chunk in self.chunks)

    @property
    def num_drafted(self) -> int:
        return sum(len(chunk.drafted) for chunk in self.chunks)

    @property
    def decodes_only(self) -> bool:
        """Whether all that it computes are last tokens of calls that go on, and drafted ones."""
        return self.num_tokens - self.num_drafted == len(self.chunks) == len(self.sampled)
