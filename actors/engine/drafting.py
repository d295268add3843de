"""Drafting from what is read: a call's next tokens are guessed from the messages in its view and from its own text.

Agents quote, revise and merge what they read. Where a call's last tokens stand in something that it reads, what
followed there is likely to follow here: it is computed along with the call's last token, in one forward, and at each
place the token is sampled that comes after it. Drafted tokens are kept as long as they are those, and the first that is
not is replaced by what was sampled. A sample depends on the logits, the seed and the token's number alone
(`kernels/noise.py`), so the text is the one that the call would have had without drafts, greedy or not. A draft that is
one token for certain is accepted as often as by any other exact test (arXiv 2211.17192).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Seq

from laban.actors.calls import Call
from laban.actors.engine.config import EngineConfig
from laban.actors.engine.draft_policy import MOST_DRAFTED, WIDTHS, Chances, WidthCosts, choose
from laban.actors.engine.sequence import UNKNOWN, Chunk
from laban.actors.engine.suffix_index import SuffixIndex
from laban.kvstore.encodings import flatten

MAX_KINDS = 4096
"""Kinds of calls of which it is remembered how often drafts were right."""


class Drafter:
    """One call's: where its text repeats what it reads. The index is made with the first token."""

    def __init__(self, call: Call, chances: Chances) -> None:
        self._call, self._chances = call, chances
        self._index: SuffixIndex | None = None

    def take(self, token: int) -> None:
        """The call's next token. Whether it was drafted or not, it says how good a draft would have been."""
        if self._index is None:
            self._index = self._begin()
        guess = self._index.next_token()
        if guess is not None:
            self._chances.observe(self._index.length, guess == token)
        self._index.append(token)

    def offer(self, most: int, num_unknown: int) -> tuple[list[int], list[float]]:
        """Up to `most` tokens to draft, and for each the chance that it and all before it are taken.

        The call has `num_unknown` tokens more than it was told: what is drafted comes after these.
        """
        if self._index is None or not self._index.length:
            return [], []
        chances = self._chances.of_following(self._index.length, num_unknown + most)[num_unknown:]
        tokens = self._index.following(num_unknown + len(chances))[num_unknown:] if chances else []
        return tokens, chances[: len(tokens)]

    def _begin(self) -> SuffixIndex:
        call = self._call
        assert call.sampling is not None
        specs = {spec.encoding_id: spec for spec in call.specs}
        texts = [specs[p.encoding_id].tokens[p.begin : p.end] for p in flatten(call.view, specs)]
        index = SuffixIndex(texts, len(call.tokens) + call.sampling.most_tokens)
        for token in call.tokens:
            index.append(token)
        return index


class Drafting:
    """Decides for each iteration what is drafted in it."""

    def __init__(self, config: EngineConfig, *, on_card: bool, waits: bool) -> None:
        """`waits`: the next iteration is launched before this one's tokens are known; drafted calls sit it out."""
        self._most = config.draft_tokens if config.drafting else 0
        self._waits = waits
        if self._most:  # what is compiled is compiled now, not at somebody's first token
            index = SuffixIndex([[1, 2, 3]], 3)
            for token in (1, 2, 3):
                index.append(token)
        self.costs = WidthCosts(0.15, 0.01) if on_card else WidthCosts(0.06, 0.05)
        self._all = Chances()
        self._kinds: OrderedDict[tuple[str, str], Chances] = OrderedDict()  # the oldest use first

    def drafter(self, call: Call) -> Drafter | None:
        """Of a call that begins; None if nothing is drafted for it."""
        sampling = call.sampling
        if not self._most or sampling is None or not sampling.drafting:
            return None
        if call.scoring is not None or sampling.constraint is not None or call.spare:
            return None
        return Drafter(call, self._chances_of(call))

    def widen(self, chunks: list[Chunk], max_tokens: int) -> list[Chunk]:
        """`chunks` with drafted tokens where they pay; no more than `max_tokens` in all."""
        offers = [self._offer(chunk) for chunk in chunks]
        if not any(tokens for tokens, _ in offers):
            return chunks
        num_tokens = sum(chunk.count for chunk in chunks)
        num_calls = sum(chunk.samples for chunk in chunks)
        room = min(MOST_DRAFTED, max_tokens - num_tokens)
        if num_tokens < WIDTHS[-1]:
            costs = [self.costs.expected(num_tokens + n) for n in range(min(room, WIDTHS[-1] - num_tokens) + 1)]
        else:  # beside so many each token takes as long as any other
            costs = [float(num_tokens + n) for n in range(room + 1)]
        if len(costs) < 2:
            return chunks
        counts = choose([chances for _, chances in offers], num_calls, costs, waits=self._waits)
        return [
            Chunk(chunk.sequence, chunk.begin, chunk.count + count, tuple(tokens[:count])) if count else chunk
            for chunk, (tokens, _), count in zip(chunks, offers, counts, strict=True)
        ]

    def _offer(self, chunk: Chunk) -> tuple[list[int], list[float]]:
        decode = chunk.sequence.decode
        if decode is None or decode.drafter is None or chunk.count > 1 or not chunk.samples or not decode.num_sampled:
            return [], []
        most = min(self._most, decode.sampling.most_tokens - decode.num_launched - 1)
        if most <= 0:
            return [], []
        return decode.drafter.offer(most, int(chunk.sequence.tokens[chunk.begin] == UNKNOWN))

    def _chances_of(self, call: Call) -> Chances:
        """Those of the calls that are like it, of the same tenant."""
        if not call.kind:
            return Chances(self._all)
        kind = call.namespace, call.kind
        if kind not in self._kinds:
            self._kinds[kind] = Chances(self._all)
            while len(self._kinds) > MAX_KINDS:
                self._kinds.popitem(last=False)
        self._kinds.move_to_end(kind)
        return self._kinds[kind]


def num_accepted(drafted: Seq[int], sampled: Seq[int]) -> int:
    """Of `drafted` tokens: how many were sampled, up to the first that was not. `sampled` has one more."""
    count = 0
    while count < len(drafted) and drafted[count] == sampled[count]:
        count += 1
    return count
