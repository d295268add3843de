"""Which tokens the next iteration computes: a budget of tokens, shared out among the sequences in the making."""

from __future__ import annotations

from laban.actors.engine.sequence import Chunk, Sequence

CAREFUL_ITERATIONS = 32
"""As large as the last one that fitted, after one that did not."""
MIX_TOKENS = 512
"""Of a message whose tail is on its way, encoded in one iteration: where the two will meet is not known before."""
PREFETCH_TOKENS, LEAST_PREFETCH_TOKENS, PREFETCH_S = 512, 48, 0.25
"""Of encodings that nobody asked for yet, while nothing else is to be done: who comes then waits for no more, nor
longer than this, but for what is too few to be encoded at a fair rate."""
SCORED_TOKENS = 128
"""Of forced calls that are scored, in one iteration: each token takes a row of the whole vocabulary, several times
over."""


class Chunking:
    """Decodes first, then prefills in chunks. Knows the sequences alone, not the calls or the store."""

    def __init__(self, most_tokens: int, *, free_tokens: int = 0) -> None:
        """`free_tokens` cost an iteration next to nothing: so many of prefetches go along with decodes."""
        self._most_tokens = most_tokens
        self.free_tokens = free_tokens
        self.max_tokens = most_tokens  # of an iteration, for now: less for a while after one that did not fit
        self._num_careful = 0  # iterations until more is tried again

    def has_spare_time(self, sequences: list[Sequence]) -> bool:
        """Whether what is encoded ahead would be gone on with in the next iteration."""
        wanted = [s for s in sequences if s.num_pending > 0 and not (s.prefetched or s.spare)]
        return not wanted or (self.free_tokens > 0 and all(s.decode and s.decode.num_launched for s in wanted))

    def choose(self, sequences: list[Sequence], most_spare: int = PREFETCH_TOKENS) -> list[Chunk]:
        """The next iteration: a token of every running decode, then prefills in the order of `sequences`. Where there
        are none of these, what is done in spare time: prefetches, and the calls that are spare, `most_spare` tokens.

        A sequence may join the iteration in which what it reads is completed: every layer writes its
        keys before any row of that layer attends.
        """
        budget = self.max_tokens
        self._num_careful = max(0, self._num_careful - 1)
        if not self._num_careful:
            self.max_tokens = min(2 * budget, self._most_tokens)
        chunks: list[Chunk] = []
        completed: set[Sequence] = set()
        wanted = [s for s in sequences if not (s.prefetched or s.spare)]
        decoding = [s for s in wanted if s.decode is not None and s.decode.num_launched]
        prefilling = [s for s in wanted if not (s.decode is not None and s.decode.num_launched)]
        for sequence in decoding + prefilling:
            budget -= _take(sequence, budget, chunks, completed)
        if all(chunk.sequence.decode is not None and chunk.sequence.decode.num_launched for chunk in chunks):
            # A decode without a chunk waits to hear which drafted tokens were taken: not for long.
            spare = min(budget, self.free_tokens if decoding else most_spare)
            for sequence in sequences:
                if sequence.prefetched or sequence.spare:
                    spare -= _take(sequence, spare, chunks, completed)
        return chunks

    def shrink(self, num_tokens: int) -> None:
        """The last iteration, of `num_tokens`, was too large for the device: the next one takes half of that."""
        self.max_tokens = max(1, num_tokens // 2)
        self._num_careful = CAREFUL_ITERATIONS


def most_ahead(encode_tokens_per_s: float) -> int:
    """Tokens of an iteration that is nobody's."""
    return min(PREFETCH_TOKENS, max(LEAST_PREFETCH_TOKENS, int(PREFETCH_S * encode_tokens_per_s)))


def _take(sequence: Sequence, budget: int, chunks: list[Chunk], completed: set[Sequence]) -> int:
    """Adds what may be computed of `sequence` to `chunks`; returns how many tokens that is."""
    if budget <= 0 or sequence.num_pending <= 0:
        return 0
    if not all(p.is_computed or p in completed for p in sequence.producers):
        return 0
    taken = min(sequence.num_pending, budget if sequence.load is None else min(budget, MIX_TOKENS))
    if sequence.decode is not None and sequence.decode.scorer is not None:
        taken = min(taken, SCORED_TOKENS - sum(len(chunk.scored) for chunk in chunks))
        if taken <= 0:
            return 0
    chunks.append(Chunk(sequence, sequence.num_computed, taken))
    if taken == sequence.num_pending and sequence.decode is None and sequence.load is None:
        completed.add(sequence)
    return taken
