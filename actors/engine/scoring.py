"""Comparing what two calls of the same forced tokens give, over the whole vocabulary, where the logits are.

The first call's log-probabilities are kept in host memory, as float32: their error is the logits' own. So what is kept
is vocab_size * 4 bytes a token, within `MAX_KEPT_BYTES`; the oldest go first, and what nobody came for in `MAX_AGE_S`.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import torch
from torch import Tensor

from laban.actors.calls import Call, Comparison
from laban.actors.errors import Exhausted, FailedPrecondition, InvalidInput, LabanError

MAX_KEPT_BYTES = 1 << 30
MAX_AGE_S = 600.0


@dataclass(slots=True)
class _Kept:
    tokens: tuple[int, ...]
    at_s: float
    rows: list[Tensor] = field(default_factory=list)  # each [num_tokens, vocab_size] float32, on the host

    @property
    def num_rows(self) -> int:
        return sum(len(rows) for rows in self.rows)


class KeptScores:
    """Log-probabilities by the id that they are kept under."""

    def __init__(self, vocab_size: int, max_bytes: int = MAX_KEPT_BYTES) -> None:
        self._bytes_per_token = 4 * vocab_size
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, _Kept] = OrderedDict()  # oldest first

    @property
    def num_bytes(self) -> int:
        """What is kept will take, once it is all there."""
        return sum(self._bytes_per_token * len(kept.tokens) for kept in self._kept.values())

    def check(self, call: Call) -> None:
        """Raises LabanError for a call that cannot be scored."""
        scoring, sampling = call.scoring, call.sampling
        if scoring is None:
            return
        if sampling is None or not sampling.forced:
            raise InvalidInput("goes with forced tokens", field="scoring")
        if bool(scoring.keep) == bool(scoring.against):
            raise InvalidInput("expected either keep or against", field="scoring")
        if scoring.against:
            self._find(scoring.against, sampling.forced[: sampling.most_tokens])
        num_bytes = self._bytes_per_token * sampling.most_tokens
        if scoring.keep and num_bytes > self._max_bytes:
            raise Exhausted(
                f"the log-probabilities of {sampling.most_tokens} tokens take {num_bytes} bytes,"
                f" at most {self._max_bytes} can be kept"
            )

    def begin(self, call: Call, now_s: float) -> Scorer:
        """Of a call that was checked."""
        assert call.scoring is not None
        assert call.sampling is not None
        tokens = call.sampling.forced[: call.sampling.most_tokens]
        for old in [i for i, kept in self._kept.items() if now_s - kept.at_s > MAX_AGE_S]:
            del self._kept[old]
        if call.scoring.keep:
            self._kept.pop(call.scoring.keep, None)
            self._kept[call.scoring.keep] = _Kept(tokens, now_s)
            while self.num_bytes > self._max_bytes:
                self._kept.popitem(last=False)
        return Scorer(self, call, tokens)

    def add(self, keep: str, rows: Tensor) -> None:
        """Raises FailedPrecondition if others have taken its room meanwhile."""
        if keep not in self._kept:
            raise FailedPrecondition("what was to be kept of it has been dropped for newer ones", field="scoring.keep")
        self._kept[keep].rows.append(rows.cpu())

    def rows(self, against: str, tokens: tuple[int, ...], begin: int, end: int) -> Tensor:
        """[end - begin, vocab_size] float32, on the host. Raises FailedPrecondition, InvalidInput."""
        kept = self._find(against, tokens)
        parts, at = [], 0
        for rows in kept.rows:
            parts.append(rows[max(0, begin - at) : max(0, end - at)])
            at += len(rows)
        return torch.cat(parts)

    def release(self, key: str) -> None:
        self._kept.pop(key, None)

    def _find(self, against: str, tokens: tuple[int, ...]) -> _Kept:
        kept = self._kept.get(against)
        if kept is None or kept.num_rows < len(kept.tokens):
            raise FailedPrecondition("nothing is kept under it", field="scoring.against", value=against)
        if kept.tokens != tokens:
            raise InvalidInput("was kept of other tokens", field="scoring.against", value=against)
        return kept


class Scorer:
    """One call's: takes its logits as they come, token after token."""

    def __init__(self, scores: KeptScores, call: Call, tokens: tuple[int, ...]) -> None:
        assert call.scoring is not None
        self._scores, self._scoring, self._tokens = scores, call.scoring, tokens
        self._num_taken = 0
        self._kl: list[float] = []
        self._agrees: list[bool] = []
        self._logprobs: list[float] = []
        self._kept_logprobs: list[float] = []

    @property
    def is_done(self) -> bool:
        return self._num_taken == len(self._tokens)

    def take(self, logits: Tensor) -> None:
        """`logits` [num_rows, vocab_size] float32 are those that the next of the tokens are chosen from.

        Raises LabanError if they are not finite numbers, or what they are compared with is not there any more.
        """
        begin, end = self._num_taken, self._num_taken + len(logits)
        self._num_taken = end
        given = torch.log_softmax(logits, dim=-1)
        tokens = torch.tensor(self._tokens[begin:end], device=logits.device)[:, None]
        chosen = given.gather(1, tokens)[:, 0]
        if not bool(torch.isfinite(chosen).all()):
            raise LabanError("the model gave logits that are not finite numbers")
        if self._scoring.keep:
            self._scores.add(self._scoring.keep, given)
            return
        kept = self._scores.rows(self._scoring.against, self._tokens, begin, end).to(logits.device)
        self._kl += divergence(kept, given).tolist()
        self._agrees += (kept.argmax(-1) == given.argmax(-1)).tolist()
        self._logprobs += chosen.tolist()
        self._kept_logprobs += kept.gather(1, tokens)[:, 0].tolist()

    def end(self) -> Comparison | None:
        """What came of it; None if it was kept."""
        if self._scoring.release:
            self._scores.release(self._scoring.keep or self._scoring.against)
        if self._scoring.keep:
            return None
        return Comparison(tuple(self._kl), tuple(self._agrees), tuple(self._logprobs), tuple(self._kept_logprobs))


def divergence(kept: Tensor, given: Tensor) -> Tensor:
    """KL(kept || given) of each row in nats, summed in float64; of log-probabilities [num_rows, vocab_size]."""
    p = kept.double()
    terms = torch.where(torch.isinf(p), 0.0, p.exp() * (p - given.double()))
    return terms.sum(-1).clamp(min=0.0)
