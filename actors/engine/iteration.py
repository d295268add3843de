"""An iteration that was launched, and what it samples for whom."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from laban.actors.calls import TokenLogprob
from laban.actors.engine.decoding import Decode
from laban.actors.engine.launched import Launched
from laban.actors.engine.sequence import UNKNOWN, Chunk, Sequence
from laban.kvstore.encodings import make_spec


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

    def launched(self) -> None:
        """The device has begun on it: the sequence has a token more, which the host is not told yet."""
        sequence, decode = self.sequence, self.decode
        sequence.sample_row = self.first_row
        decode.num_launched += len(self.rows)
        # Its key and value are computed with the next iteration, unless it is known to be the last. With drafted
        # tokens it goes on when it is known which of them are taken.
        if not self.drafted and decode.num_launched < decode.sampling.most_tokens:
            sequence.tokens.append(UNKNOWN)

    def take(self, tokens: list[tuple[int, TokenLogprob | None]]) -> int:
        """Gives the call the tokens that were sampled, at least one; how many of them it took. What comes after its end
        is left, and its message is closed."""
        sequence, decode = self.sequence, self.decode
        num_before, num_sampled = len(sequence.tokens), decode.num_sampled
        if self.drafted:
            sequence.add_drafted(self.drafted)
        for token, logprob in tokens:
            at = len(decode.call.tokens) + decode.num_sampled
            if at < num_before:
                sequence.tokens[at] = token
            if decode.drafter is not None:
                decode.drafter.take(token)
            decode.push(token, logprob)
            if decode.finish_reason is not None:
                break
        if decode.finish_reason is not None:
            self._close()
        elif self.drafted:
            sequence.take_drafted(num_before, [token for token, _ in tokens])
            decode.num_launched = decode.num_sampled
        return decode.num_sampled - num_sampled

    def _close(self) -> None:
        call = self.decode.call
        tokens = [*call.tokens, *self.decode.generated, *call.terminator]
        specs = {spec.encoding_id: spec for spec in call.specs}
        self.sequence.close(tokens, make_spec(call.namespace, tokens, call.start, call.view, specs))


def samples_of(chunks: Iterable[Chunk]) -> list[Sampled]:
    """What an iteration of `chunks` samples, in rows from 0 on."""
    sampled: list[Sampled] = []
    num_rows = 0
    for chunk in chunks:
        decode = chunk.sequence.decode
        if decode is not None and chunk.samples:
            sampled.append(Sampled(chunk.sequence, decode, num_rows, chunk.drafted))
            num_rows += 1 + len(chunk.drafted)
    return sampled


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
