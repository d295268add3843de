"""What an iteration brought, once it is over: tokens to the calls that wait for them, and logits to be scored."""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile

from laban.actors.calls import CallEvent, CallFailed, TokenLogprob
from laban.actors.engine.decoding import Decode
from laban.actors.engine.drafting import num_accepted
from laban.actors.engine.iteration import Iteration, Sampled
from laban.actors.engine.iteration_times import IterationTimes
from laban.actors.engine.launched import Launched
from laban.actors.engine.scheduler import Scheduler
from laban.actors.engine.tallying import Tallying
from laban.actors.errors import LabanError


class Settling:
    """Calls may have ended since the iteration was launched; what it computed for those is nobody's."""

    def __init__(
        self,
        scheduler: Scheduler,
        times: IterationTimes,
        tallying: Tallying,
        clock: Callable[[], float],
        tell: Callable[[CallEvent], None],
    ) -> None:
        """What calls are told goes to `tell`."""
        self._scheduler, self._times, self._tallying = scheduler, times, tallying
        self._clock, self._tell = clock, tell

    def settle(self, iteration: Iteration) -> None:
        """Waits for the device to have done it. What became whole is still to be published."""
        tokens, sound = iteration.launched.wait()
        self._times.ended(iteration)
        now_s = self._clock()
        rows: dict[Sampled, list[int]] = {}  # of the tokens to take, as far as their logits are sound
        for each in iteration.sampled:
            if self._scheduler.awaits(each.sequence, each.decode):
                right = num_accepted(each.drafted, [tokens[row] for row in each.rows])
                rows[each] = list(takewhile(lambda row: sound[row], each.rows[: right + 1]))
        logprobs = _logprobs(rows, iteration.launched, tokens)
        for each, own in rows.items():
            matcher = each.decode.matcher
            if matcher is not None and matcher.problem is not None:
                self._fail(each.decode, matcher.problem)
            elif own:
                self._take(each, [(tokens[row], logprobs.get(row)) for row in own], now_s)
            else:
                self._fail(each.decode, LabanError("the model gave logits that are not finite numbers"))
        self._score(iteration)

    def _take(self, sampled: Sampled, tokens: list[tuple[int, TokenLogprob | None]], now_s: float) -> None:
        decode = sampled.decode
        running = self._scheduler.running[decode.call.call_id]
        num_taken = sampled.take(tokens)
        if sampled.drafted:
            self._count_drafted(decode, len(sampled.drafted), num_taken - 1)
        if running.first_token_at is None:
            running.first_token_at = now_s
        else:
            share_s = (now_s - running.last_token_at) / num_taken
            self._tallying.observe("inter_token_s", share_s, num_taken)
        running.last_token_at = now_s
        if decode.finish_reason is not None:
            running.tokens_encoded += len(decode.call.terminator)
        if (news := decode.take_news()) is not None:
            self._tell(news)

    def _count_drafted(self, decode: Decode, num_drafted: int, num_accepted: int) -> None:
        decode.tokens_drafted += num_drafted
        decode.tokens_accepted += num_accepted
        self._tallying.add("tokens_drafted", num_drafted)
        self._tallying.add("tokens_accepted", num_accepted)
        self._tallying.add("tokens_decoded", num_accepted)

    def _score(self, iteration: Iteration) -> None:
        """Hands the logits of forced calls to those who compare them."""
        scored, first = iteration.launched.scored, 0
        for chunk in iteration.chunks:
            decode, num_rows = chunk.sequence.decode, len(chunk.scored)
            if not num_rows or decode is None or decode.scorer is None:
                continue
            assert scored is not None
            rows, first = scored[first : first + num_rows], first + num_rows
            running = self._scheduler.running.get(decode.call.call_id)
            if running is None or running.sequence is not chunk.sequence:
                continue
            try:
                decode.scorer.take(rows)
            except LabanError as error:
                self._fail(decode, error)

    def _fail(self, decode: Decode, error: LabanError) -> None:
        self._scheduler.abort(decode.call.call_id)
        self._tell(CallFailed(decode.call.call_id, error.status, str(error)))


def _logprobs(rows: dict[Sampled, list[int]], launched: Launched, tokens: list[int]) -> dict[int, TokenLogprob]:
    """Of the tokens in those `rows` whose calls ask for it."""
    num_tops = {row: each.decode.sampling.num_logprobs for each, own in rows.items() for row in own}
    asked = {row: num_top for row, num_top in num_tops.items() if num_top is not None}
    if not asked:
        return {}
    told = launched.logprobs(list(asked), [tokens[row] for row in asked], list(asked.values()))
    return dict(zip(asked, told, strict=True))
