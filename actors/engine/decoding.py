"""The generating side of a message: each sampled token, stop strings, what may be shown yet, and the closing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from laban.actors.calls import Call, CallTokens, FinishReason, Sampling, TokenLogprob
from laban.actors.engine.constraining import Matcher
from laban.actors.engine.scoring import Scorer
from laban.actors.tokenizer import Detokenizer, Tokenizer

if TYPE_CHECKING:
    from laban.actors.engine.drafting import Drafter


@dataclass(slots=True, eq=False)
class Decode:
    """What a decode has generated. `generated` leaves out the stop token and, at the end, what a stop string cut off.

    `ends[i]` is the length of the text that tokens 0..i complete: an unfinished character counts for nothing yet.
    """

    call: Call
    sampling: Sampling
    tokenizer: Tokenizer
    detokenizer: Detokenizer
    generated: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    text: str = ""
    num_sampled: int = 0
    num_launched: int = 0  # sampled, or being sampled by the device
    num_sent_tokens: int = 0
    num_sent_chars: int = 0
    finish_reason: FinishReason | None = None
    matcher: Matcher | None = None  # of a text that is constrained
    scorer: Scorer | None = None  # of a call whose forced tokens are encoded all at once
    drafter: Drafter | None = None  # of a call whose next tokens may be drafted
    tokens_drafted: int = 0
    tokens_accepted: int = 0  # of these, those that came into the text with another one, in one iteration

    def force(self, scorer: Scorer) -> None:
        """Takes all the forced tokens as generated: what is left is to encode and to score them."""
        self.scorer = scorer
        for token_id in self.sampling.forced[: self.sampling.most_tokens]:
            self.push(token_id, None)
        self.num_launched = self.num_sampled

    def push(self, token_id: int, logprob: TokenLogprob | None) -> None:
        """Takes the next sampled token and decides whether it was the last."""
        sampling = self.sampling
        if self.matcher is not None:
            self.matcher.take(self.num_sampled, token_id)
        self.num_sampled += 1
        if not sampling.forced and token_id in sampling.stop_token_ids:
            self._finish("stop")
            return
        self.generated.append(token_id)
        self.text += self.detokenizer.push([token_id])
        self.ends.append(len(self.text))
        if logprob is not None:
            self.logprobs.append(logprob)
        if (cut := self._find_stop()) is not None:
            self._cut(cut)
            self.finish_reason = "stop"
        elif sampling.forced and self.num_sampled >= len(sampling.forced):
            self._finish("forced")
        elif self.matcher is not None and self.matcher.is_over:
            self._finish("stop")
        elif self.num_sampled >= sampling.max_tokens:
            self._finish("length")

    def take_news(self) -> CallTokens | None:
        """What has not been told yet and will not be taken back, if anything."""
        shown = len(self.text) if self.finish_reason else len(self.text) - self._held_chars()
        if self.finish_reason:
            stop = len(self.generated)
        else:
            stop = self.num_sent_tokens
            for i in range(self.num_sent_tokens, len(self.generated)):
                completes = self.ends[i] > (self.ends[i - 1] if i else 0)
                if completes and self.ends[i] <= shown:
                    stop = i + 1
        if stop == self.num_sent_tokens and shown == self.num_sent_chars:
            return None
        first, begin = self.num_sent_tokens, self.num_sent_chars
        self.num_sent_tokens, self.num_sent_chars = stop, shown
        return CallTokens(
            self.call.call_id,
            first,
            tuple(self.generated[first:stop]),
            self.text[begin:shown],
            tuple(self.logprobs[first:stop]),
        )

    def _finish(self, reason: FinishReason) -> None:
        self.text += self.detokenizer.flush()
        if self.ends:
            self.ends[-1] = len(self.text)
        self.finish_reason = reason

    def _find_stop(self) -> int | None:
        """Where the earliest stop string begins, looking no further back than the last token could reach."""
        if not self.sampling.stop or self.sampling.forced:
            return None
        new_from = self.ends[-2] if len(self.ends) > 1 else 0
        longest = max(map(len, self.sampling.stop))
        found = [self.text.find(stop, max(0, new_from - longest + 1)) for stop in self.sampling.stop]
        return min((at for at in found if at >= 0), default=None)

    def _held_chars(self) -> int:
        """Length of the text's longest tail that a stop string may begin with."""
        if self.sampling.forced:
            return 0
        held = 0
        for stop in self.sampling.stop:
            for length in range(min(len(stop) - 1, len(self.text)), held, -1):
                if self.text.endswith(stop[:length]):
                    held = length
                    break
        return held

    def _cut(self, at: int) -> None:
        """Keeps `text[:at]`: the tokens that lie wholly before it, and the rest of its text tokenized again."""
        kept = len(self.generated)
        while kept and (self.ends[kept - 1] > at or self.ends[kept - 1] == (self.ends[kept - 2] if kept > 1 else 0)):
            kept -= 1
        begin = self.ends[kept - 1] if kept else 0
        remainder = self.tokenizer.encode(self.text[begin:at]) if begin < at else []
        self.text = self.text[:at]
        self.generated = self.generated[:kept] + remainder
        self.ends = self.ends[:kept] + [at] * len(remainder)
        self.logprobs = self.logprobs[:kept]
        self.num_sent_tokens = min(self.num_sent_tokens, kept)
