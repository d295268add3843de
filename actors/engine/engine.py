"""The engine of one worker: calls in, a report an iteration out.

    submit -> Scheduler.admit -> Scheduler.schedule -> Runner.launch -> Launched.wait -> publish

On a card an iteration is taken in while the next one runs: its tokens stay there, and the next is planned without
knowing them. Owned by one thread. Nothing here knows Ray, workflows or the network.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Pages
from dataclasses import replace
from functools import partial
from itertools import takewhile
from uuid import uuid4

import numpy as np
from torch import OutOfMemoryError
from torch.cuda import Event, empty_cache

from laban.actors.calls import (
    Advice,
    Call,
    CallEvent,
    CallFailed,
    CallFinished,
    CallStarted,
    Prefetch,
    TokenLogprob,
    WorkerInfo,
    WorkerLoad,
    WorkerReport,
)
from laban.actors.engine.checks import check_specs
from laban.actors.engine.config import EngineConfig
from laban.actors.engine.constraining import Constraining
from laban.actors.engine.corrections import Corrections
from laban.actors.engine.decoding import Decode
from laban.actors.engine.drafting import Drafting, num_accepted
from laban.actors.engine.exports import Exports
from laban.actors.engine.failures import Failures
from laban.actors.engine.fetching import Fetching
from laban.actors.engine.forgetting import Forgetting
from laban.actors.engine.iteration import Iteration, Sampled
from laban.actors.engine.launched import BatchTooLarge, Launched
from laban.actors.engine.loads import Loads
from laban.actors.engine.of_all_shards import counters_of_all, rates_of_all, tallies_of_all
from laban.actors.engine.runner import AnyRunner, bytes_per_token
from laban.actors.engine.running_call import RunningCall
from laban.actors.engine.sampler import Masks
from laban.actors.engine.scheduler import Scheduler
from laban.actors.engine.scoring import KeptScores
from laban.actors.engine.sequence import UNKNOWN, Chunk, Sequence
from laban.actors.engine.sharding import local_num_kv_heads
from laban.actors.engine.shared_beginnings import SharedBeginnings
from laban.actors.engine.tenant_limits import TenantLimits
from laban.actors.engine.tick import Tick
from laban.actors.engine.tiers import Tiers
from laban.actors.engine.tiers_setup import make_tiers
from laban.actors.engine.trials import FIRST, SECOND, Trials
from laban.actors.errors import FailedPrecondition, InvalidInput, LabanError
from laban.actors.tallies import WorkerTallies
from laban.actors.tokenizer import Tokenizer
from laban.actors.transfers import Export, ExportRequest, FindPeer
from laban.kvstore.arrivals import Standing
from laban.kvstore.encodings import EncodingSpec, adapter_of, make_spec
from laban.kvstore.store import EncodingStore, Entry

log = logging.getLogger(__name__)

POLL_S = 0.0005
MOST_POLLS = 4
"""What takes longer is looked for less often: to look takes Python's lock from the threads that copy."""
TALLIES_EVERY_S = 0.5
FREE_TOKENS_ON_CARD = 128
"""A decode reads all weights for a few rows; so many more cost a fraction of an iteration."""


class Engine:
    """Runs calls on one model. `submit` and `abort` take effect at the next `step`."""

    def __init__(
        self,
        runner: AnyRunner,
        tokenizer: Tokenizer,
        config: EngineConfig,
        *,
        worker_id: str = "worker-0",
        namespace: str = "",
        model_name: str = "",
        max_context: int | None = None,
        tiers: Tiers | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`tiers` are those below the device; None has none."""
        num_pages = runner.k_pool.shape[1] // config.page_size
        self.runner = runner
        self.tokenizer = tokenizer
        self.tiers = tiers or make_tiers(runner, config, None)
        self.store = EncodingStore(
            num_pages,
            config.page_size,
            order=self.tiers.needs.order(self.tiers.bring_back_s),
            tenant_pages=max(1, int(num_pages * config.tenant_share)),
            on_evict=self._evicts,
            on_free=self._frees,
        )
        self.tiers.is_on_device = self.store.__contains__
        self.tiers.last_write = self._last_write
        self.corrections = Corrections(runner, self.store, self.tiers.tallying)
        self._trials = Trials(self.corrections)
        self.exports = Exports(self.tiers, self.store, self.corrections)
        # Into which the shards divide the keys and values of a token.
        self._num_parts: int = runner.model.config.num_key_value_heads // local_num_kv_heads(runner.model)
        self._limits = TenantLimits(self.store, self.tiers, self._num_parts)
        self._forgetting = Forgetting(self.store, self.tiers)
        self.info = WorkerInfo(
            worker_id=worker_id,
            epoch=uuid4().hex,
            namespace=namespace,
            model_name=model_name,
            max_context=max_context or runner.model.config.max_position_embeddings,
            num_pages=num_pages,
            page_size=config.page_size,
            bytes_per_token=bytes_per_token(runner.model.config, runner.dtype),
            vocab_size=runner.vocab_size,
            attention_backend=runner.attention_backend,
            dtype=str(runner.dtype).removeprefix("torch."),
            device=str(runner.device),
            num_shards=1 if runner.group is None else runner.group.size,
            host_bytes=self._num_parts * self.tiers.host_bytes,
            disk_bytes=self._num_parts * self.tiers.disk_bytes,
            adapters=runner.adapters.fingerprints,
        )
        flights, per_token = self.tiers.flights, self.tiers.needs.bytes_per_token
        loads = None if flights is None else Loads(flights, per_token, config.page_size, self._after)
        self.scheduler = Scheduler(
            config,
            self.store,
            self.tiers,
            loads,
            self.corrections,
            SharedBeginnings(runner, self.store),
            self.info.max_context,
            runner.vocab_size,
            free_tokens=FREE_TOKENS_ON_CARD if runner.device.type == "cuda" else 0,
        )
        self._scores = KeptScores(runner.vocab_size)
        self._constraining = Constraining(tokenizer, runner.vocab_size)
        self._drafting = Drafting(config, on_card=runner.device.type == "cuda", waits=runner.overlaps)
        self._failures = Failures(runner.device)
        self._clock = clock
        self._events: list[CallEvent] = []
        self._advice: list[Advice] = []
        self._num_reports = 0
        self._num_waits = 0  # steps in a row
        self._under_way: Iteration | None = None
        self._num_launched = 0
        self._last_settled_s = 0.0
        self._tallies_due_s = 0.0
        # Of each page, the last iteration that may read what was in it before it was freed.
        self._read_until = np.zeros(num_pages, np.int64)

    def submit(self, call: Call) -> None:
        """Queues a call. One that can never run is answered with CallFailed."""
        try:
            self._check_adapters(call.namespace, call.specs)
            self._scores.check(call)
            if not self._constraining.holds(call, self._clock()):
                self.scheduler.enqueue(call, self._clock())
        except LabanError as error:
            self._events.append(CallFailed(call.call_id, error.status, str(error)))

    def _check_adapters(self, namespace: str, specs: Iterable[EncodingSpec]) -> None:
        """What one adapter encodes is never read by another. Raises FailedPrecondition for one that is not here."""
        found = {adapter_of(each) for each in {namespace, *(spec.namespace for spec in specs)}}
        if len(found) > 1:
            raise InvalidInput("its encodings are of several adapters, expected those of one", field="namespace")
        (adapter,) = found
        if not self.runner.adapters.knows(adapter):
            raise FailedPrecondition("the worker has no such adapter", field="namespace", value=adapter)

    def _can_compute(self, prefetch: Prefetch) -> bool:
        try:
            self._check_adapters(prefetch.specs[-1].namespace, prefetch.specs)
            check_specs(prefetch.specs, self.runner.vocab_size, known=self.store)
        except LabanError:
            return False
        return True

    def abort(self, call_id: str) -> None:
        """Drops a call, if it is still here. It is not reported on again."""
        self._constraining.drop(call_id)
        self.scheduler.abort(call_id)

    def advise(self, advice: Advice) -> None:
        """Takes note of what is to come, at the next `step`; of limits at once."""
        if advice.kv_bytes is not None:
            self._limits.take(advice.kv_bytes)
        if (trial := self._trials.forget(advice.forgotten)) is not None:
            for name in (FIRST, SECOND):
                self.abort(f"{trial}/{name}")
            self._scores.release(trial)
        self._forgetting.forget(advice.forgotten)
        self.corrections.forget(advice.forgotten)
        self._advice.append(advice)

    def connect(self, find_peer: FindPeer) -> None:
        """From now on encodings can be fetched from other workers."""
        if self.tiers.pool is not None:
            direct = self.tiers.direct
            self.tiers.fetcher = Fetching(find_peer, self.tiers.pool, direct)
            self.info = replace(self.info, fetches=True, reach=direct.reach)

    def export(self, request: ExportRequest, now_s: float | None = None) -> None:
        """Lends an encoding to another worker, now or once it has been copied to host memory. `now_s` is the next
        step's, if that is known."""
        self.tiers.date(self._clock() if now_s is None else now_s)
        self.exports.begin(request)

    def end_export(self, export: Export) -> None:
        self.exports.end(export)

    def has_work(self) -> bool:
        scheduler = self.scheduler
        waits = (
            self._events
            or self._constraining
            or self._advice
            or self._forgetting.is_busy
            or self._trials.is_waiting
            or scheduler.running
            or scheduler.num_waiting
            or scheduler.sequences
        )
        return bool(waits or self._under_way or self.tiers.is_busy or scheduler.prefetches.may_begin)

    def tick(self) -> Tick:
        """What the next step goes by; in a worker of several shards the first one's."""
        flights = self.tiers.flights
        landed = () if flights is None else flights.landed()
        costs = self._drafting.costs.known
        ready = self._constraining.ready
        return Tick(self._clock(), landed, self.tiers.rates.known, ready, costs, self.standings())

    def standings(self) -> tuple[Standing, ...]:
        """Of this shard's part of what is under way below the device."""
        return tuple(arrival.standing for arrival in self.tiers.under_way)

    def step(self, tick: Tick | None = None) -> WorkerReport:
        """One iteration. What goes wrong in it ends the calls that run, with an error, and not the engine. Raises what
        would go wrong with the next ones, too: a worker that lived on would take calls only to fail them."""
        try:
            self._begin(tick or self.tick())
            waits = not self._iterate() and not self._events and self.has_work()
            self._num_waits = self._num_waits + 1 if waits else 0
            if waits:  # for copies, grammars, or what others read: there is nothing to do
                time.sleep(POLL_S * min(MOST_POLLS, 1 + self._num_waits // 16))
        except Exception as error:  # a kernel, memory or model failure: the calls cannot go on, the next ones can
            if self.runner.group is not None:
                raise  # the other shards may have come further, or less far: their worker ends
            if self._failures.is_last(error):
                log.error("no iteration of worker %s works any more", self.info.worker_id)
                raise
            log.exception("an iteration failed")
            if self._under_way is not None:  # it reads from buffers that the next one is written to
                with contextlib.suppress(Exception):
                    self._under_way.launched.wait()
                self._under_way = None
            message = f"the iteration failed: {type(error).__name__}: {error}"
            self._events += [CallFailed(i, "INTERNAL", message) for i in self.scheduler.abort_all()]
        events, trial = self._trials.take(self._events)
        self._events = []
        self._num_reports += 1
        if trial is not None:
            self.submit(trial)
        if rubbish := self._trials.take_rubbish():
            self._forgetting.forget(rubbish)
        changes = (*self.store.take_changes(), *self.tiers.take_changes())
        return WorkerReport(
            self.info.worker_id,
            self.info.epoch,
            self._num_reports,
            tuple(events),
            changes,
            self._load(),
            rates_of_all(self.tiers.rates.known, self._num_parts),
            counters_of_all(self.tiers.counters.totals(), self._num_parts),
            self._tallies(),
        )

    def _begin(self, tick: Tick) -> None:
        """Takes in what has come since the last step."""
        tiers, scheduler = self.tiers, self.scheduler
        tiers.date(tick.now_s)
        self.store.now_s = tick.now_s
        tiers.rates.adopt(tick.rates)
        self._drafting.costs.adopt(tick.draft_costs)
        self._release(tick.compiled)
        advice, self._advice = self._advice, []
        for each in advice:
            tiers.needs.take_uses(each.uses)
            tiers.needs.take_over(each.over)
            tiers.needs.take_pins(each.pins)
            scheduler.prefetches.order([one for one in each.prefetches if self._can_compute(one)])
            scheduler.prefetches.cancel(each.cancelled)
        for encoding_id, asked, failed in tiers.take_arrivals(tick.standings):
            scheduler.arrived(encoding_id, asked, failed=failed)
        if tiers.flights is not None:
            problems = tiers.flights.land(tick.landed, tiers.loaded)
            if problems and self.runner.group is not None:
                raise RuntimeError(problems[0])  # the other shards have copied their part
        self.exports.pump()
        self._publish_whole(scheduler.take_loaded())
        self._limits.keep()
        self._forgetting.go_on()
        if not scheduler.running and not scheduler.num_waiting and (trial := self._trials.next()) is not None:
            self.submit(trial)

    def _release(self, call_ids: Pages[str]) -> None:
        """Queues calls whose grammars are there."""
        for call, submitted_at, error in self._constraining.release(call_ids):
            try:
                if error is not None:
                    raise error
                self.scheduler.enqueue(call, submitted_at)
            except LabanError as problem:
                self._constraining.drop(call.call_id)
                self._events.append(CallFailed(call.call_id, problem.status, str(problem)))

    def _iterate(self) -> bool:
        """False if the device was given nothing and had nothing to tell."""
        scheduler, tiers = self.scheduler, self.tiers
        for admitted in scheduler.admit(self._make_decode):
            if isinstance(admitted, RunningCall):
                if not admitted.told:
                    admitted.told = True
                    self._events.append(
                        CallStarted(
                            admitted.call.call_id,
                            admitted.tokens_read,
                            admitted.tokens_reused,
                            tokens_loaded=admitted.tokens_loaded,
                        )
                    )
                if admitted.sequence.finished:
                    self._finish(admitted)
            else:
                call, error = admitted
                if not isinstance(error, LabanError):
                    if self.runner.group is not None or self._failures.is_of_device(error):
                        raise error  # the other shards may have admitted it; or no other would fare better
                    log.error("a call could not begin", exc_info=error)
                    error = LabanError(f"the call could not begin: {type(error).__name__}: {error}")
                self._constraining.drop(call.call_id)
                self._events.append(CallFailed(call.call_id, error.status, str(error)))
        scheduler.prefetches.run()
        tiers.save(self.store)
        self._pump()
        chunks = self._drafting.widen(scheduler.schedule(), scheduler.chunking.max_tokens)
        launched = self._try_launch(chunks) if chunks else None
        if self.runner.overlaps:  # the host takes in the iteration before while the device runs this one
            launched, self._under_way = self._under_way, launched
        if launched is not None:
            self._settle(launched)
        return launched is not None or self._under_way is not None

    def _pump(self) -> None:
        """Gives the link what it is to copy next."""
        loads, beside = self.scheduler.loads, self.scheduler.is_decoding
        idle = not self.scheduler.running and not self.scheduler.num_waiting
        if loads is not None:
            gates = self.runner.gates if not beside and loads.may_gate else None
            loads.pump(self.tiers.rates.expected, beside=beside, idle=idle, gates=gates)
        self.tiers.pump_saves(beside=beside, idle=idle)

    def _try_launch(self, chunks: list[Chunk]) -> Iteration | None:
        """None if the device has no room for that much: less of it is tried next."""
        num_tokens = sum(chunk.count for chunk in chunks)
        try:
            return self._launch(chunks)
        except (BatchTooLarge, OutOfMemoryError) as error:
            if num_tokens == 1 or (self.runner.group is not None and isinstance(error, OutOfMemoryError)):
                raise
            log.warning("an iteration of %d tokens does not fit: %s", num_tokens, error)
        self.scheduler.chunking.shrink(num_tokens)
        empty_cache()
        return None

    def _launch(self, chunks: list[Chunk]) -> Iteration:
        sampled: list[Sampled] = []
        decodes: list[Decode] = []  # of each row
        indices: list[int] = []
        for chunk in chunks:
            decode = chunk.sequence.decode
            if decode is not None and chunk.samples:
                sampled.append(Sampled(chunk.sequence, decode, len(decodes), chunk.drafted))
                decodes += [decode] * len(sampled[-1].rows)
                indices += range(decode.num_launched, decode.num_launched + len(sampled[-1].rows))
        began_s = time.perf_counter()
        ask = None if all(d.matcher is None for d in decodes) else partial(self._masks, decodes)
        launched = self.runner.launch(chunks, [d.sampling for d in decodes], indices, ask)
        self._num_launched += 1
        self.corrections.copying = None
        for chunk in chunks:
            chunk.sequence.num_computed = chunk.sequence.entry.num_tokens = chunk.begin + chunk.num_known
            chunk.sequence.num_iterations += 1
            if chunk.sequence.load is not None:
                self.scheduler.encoded_instead(chunk)
        for each in sampled:
            each.sequence.sample_row = each.first_row
            each.decode.num_launched += len(each.rows)
            # Its key and value are computed with the next iteration, unless it is known to be the last. With drafted
            # tokens it goes on when it is known which of them are taken.
            if not each.drafted and each.decode.num_launched < each.decode.sampling.most_tokens:
                each.sequence.tokens.append(UNKNOWN)
        return Iteration(launched, chunks, sampled, self._num_launched, began_s)

    def _masks(self, decodes: list[Decode]) -> Masks | None:
        """What an iteration's sampled rows may take, asked for while its forward runs: by now what the one before it
        sampled is there, which constrained calls go by."""
        if (before := self._under_way) is not None:
            tokens, sound = before.launched.wait()
            for each in before.sampled:
                matcher, row = each.decode.matcher, each.first_row
                if matcher is not None and sound[row] and self._awaits(each.sequence, each.decode):
                    matcher.take(each.decode.num_sampled, tokens[row])
        return self._constraining.masks(decodes)

    def _settle(self, iteration: Iteration) -> None:
        """Takes in what an iteration did. Calls may have ended since it was launched."""
        tokens, sound = iteration.launched.wait()
        self._measure(iteration)
        now_s = self._clock()
        rows: dict[Sampled, list[int]] = {}  # of the tokens to take, as far as their logits are sound
        for each in iteration.sampled:
            if self._awaits(each.sequence, each.decode):
                right = num_accepted(each.drafted, [tokens[row] for row in each.rows])
                rows[each] = list(takewhile(lambda row: sound[row], each.rows[: right + 1]))
        logprobs = self._logprobs(rows, iteration.launched, tokens)
        for each, own in rows.items():
            decode = each.decode
            if decode.matcher is not None and (problem := decode.matcher.problem) is not None:
                self.scheduler.abort(decode.call.call_id)
                self._events.append(CallFailed(decode.call.call_id, problem.status, str(problem)))
            elif own:
                self._take_tokens(each, [(tokens[row], logprobs.get(row)) for row in own], now_s)
            else:
                self.scheduler.abort(decode.call.call_id)
                message = "the model gave logits that are not finite numbers"
                self._events.append(CallFailed(decode.call.call_id, "INTERNAL", message))
        self._score(iteration)
        self._publish_whole([chunk.sequence for chunk in iteration.chunks])
        self._failures.worked()

    def _score(self, iteration: Iteration) -> None:
        """Hands the logits of forced calls to those who compare them."""
        scored, first = iteration.launched.scored, 0
        for chunk in iteration.chunks:
            decode, num_rows = chunk.sequence.decode, len(chunk.scored)
            if not num_rows or decode is None or decode.scorer is None:
                continue
            assert scored is not None
            rows, first = scored[first : first + num_rows], first + num_rows
            running = self.scheduler.running.get(decode.call.call_id)
            if running is None or running.sequence is not chunk.sequence:
                continue
            try:
                decode.scorer.take(rows)
            except LabanError as error:
                self.scheduler.abort(decode.call.call_id)
                self._events.append(CallFailed(decode.call.call_id, error.status, str(error)))

    def _measure(self, iteration: Iteration) -> None:
        """It ran from when it was launched, or the one before it had ended."""
        now_s, ended_s = time.perf_counter(), self._last_settled_s
        self._last_settled_s = now_s
        began_s = max(iteration.began_s, ended_s)
        num_tokens, num_drafted = iteration.num_tokens, iteration.num_drafted
        self.tiers.rates.took(num_tokens, iteration.decodes_only, now_s - began_s)
        if iteration.decodes_only:  # drafted tokens were waited for: what the host did since is part of what they cost
            since_s = ended_s if num_drafted and ended_s else began_s
            self._drafting.costs.observe(num_tokens, now_s - since_s)
        tallying = self.tiers.tallying
        num_decoded = sum(chunk.num_known for chunk in iteration.chunks if chunk.is_decode)
        tallying.observe("iteration_s", now_s - began_s)
        tallying.observe("batch_calls", len(iteration.chunks))
        tallying.add("tokens_decoded", num_decoded)
        tallying.add("tokens_prefilled", num_tokens - num_drafted - num_decoded)

    def _awaits(self, sequence: Sequence, decode: Decode) -> bool:
        """Whether the call still runs and wants more tokens: one launched after its end is nobody's."""
        running = self.scheduler.running.get(decode.call.call_id)
        return running is not None and running.sequence is sequence and decode.finish_reason is None

    def _logprobs(
        self, rows: dict[Sampled, list[int]], launched: Launched, tokens: list[int]
    ) -> dict[int, TokenLogprob]:
        """Of the tokens in those `rows` whose calls ask for it."""
        num_tops = {row: each.decode.sampling.num_logprobs for each, own in rows.items() for row in own}
        asked = {row: num_top for row, num_top in num_tops.items() if num_top is not None}
        if not asked:
            return {}
        told = launched.logprobs(list(asked), [tokens[row] for row in asked], list(asked.values()))
        return dict(zip(asked, told, strict=True))

    def _take_tokens(self, sampled: Sampled, tokens: list[tuple[int, TokenLogprob | None]], now_s: float) -> None:
        """Those that an iteration brought a call, at least one; what comes after its end is left."""
        sequence, decode = sampled.sequence, sampled.decode
        running = self.scheduler.running[decode.call.call_id]
        num_before, num_sampled = len(sequence.tokens), decode.num_sampled
        if sampled.drafted:
            sequence.add_drafted(sampled.drafted)
        for token, logprob in tokens:
            at = len(decode.call.tokens) + decode.num_sampled
            if at < num_before:
                sequence.tokens[at] = token
            if decode.drafter is not None:
                decode.drafter.take(token)
            decode.push(token, logprob)
            if decode.finish_reason is not None:
                break
        num_taken = decode.num_sampled - num_sampled
        if sampled.drafted:
            self._count_drafted(decode, len(sampled.drafted), num_taken - 1)
        if running.first_token_at is None:
            running.first_token_at = now_s
        else:
            share_s = (now_s - running.last_token_at) / num_taken
            self.tiers.tallying.observe("inter_token_s", share_s, num_taken)
        running.last_token_at = now_s
        if decode.finish_reason is not None:
            self._close(sequence, decode)
            running.tokens_encoded += len(decode.call.terminator)
        elif sampled.drafted:
            sequence.take_drafted(num_before, [token for token, _ in tokens])
            decode.num_launched = decode.num_sampled
        if (news := decode.take_news()) is not None:
            self._events.append(news)

    def _count_drafted(self, decode: Decode, num_drafted: int, num_accepted: int) -> None:
        decode.tokens_drafted += num_drafted
        decode.tokens_accepted += num_accepted
        self.tiers.tallying.add("tokens_drafted", num_drafted)
        self.tiers.tallying.add("tokens_accepted", num_accepted)
        self.tiers.tallying.add("tokens_decoded", num_accepted)

    def _close(self, sequence: Sequence, decode: Decode) -> None:
        call = decode.call
        tokens = [*call.tokens, *decode.generated, *call.terminator]
        specs = {spec.encoding_id: spec for spec in call.specs}
        sequence.close(tokens, make_spec(call.namespace, tokens, call.start, call.view, specs))

    def _publish_whole(self, sequences: list[Sequence]) -> None:
        # Those aborted since they were launched are in nobody's hands any more.
        whole = [s for s in sequences if s.is_whole and s.is_scored and s in self.scheduler.sequences]
        if not whole:
            return
        for sequence in whole:
            self.scheduler.publish(sequence)
        for running in list(self.scheduler.running.values()):
            if running.sequence.finished:
                self._finish(running)

    def _finish(self, running: RunningCall) -> None:
        call, sequence, decode, now = running.call, running.sequence, running.sequence.decode, self._clock()
        self.scheduler.finish(call.call_id)
        assert sequence.spec is not None
        own = decode if call.sampling is not None else None  # a prefill may be answered by another call's message
        self._trials.ended(call, tuple(own.generated) if own else (), sequence.spec.encoding_id)
        self._events.append(
            CallFinished(
                call.call_id,
                own.finish_reason if own and own.finish_reason else "prefill",
                sequence.spec,
                tuple(own.generated) if own else (),
                own.text if own else "",
                running.tokens_read,
                running.tokens_reused,
                running.tokens_encoded,
                ttft_ms=1000 * ((running.first_token_at or now) - running.submitted_at),
                wall_ms=1000 * (now - running.submitted_at),
                logprobs=tuple(own.logprobs) if own else (),
                tokens_generated=own.num_sampled if own else 0,
                tokens_loaded=running.tokens_loaded,
                phases=running.phases(),
                comparison=own.scorer.end() if own and own.scorer else None,
                tokens_drafted=own.tokens_drafted if own else 0,
                tokens_accepted=own.tokens_accepted if own else 0,
            )
        )

    def _make_decode(self, call: Call) -> Decode:
        assert call.sampling is not None
        decode = Decode(call, call.sampling, self.tokenizer, self.tokenizer.detokenizer())
        decode.matcher = self._constraining.matcher(call)
        decode.drafter = self._drafting.drafter(call)
        if call.scoring is not None:
            decode.force(self._scores.begin(call, self.store.now_s))
        return decode

    def _load(self) -> WorkerLoad:
        scheduler, allocator = self.scheduler, self.store.allocator
        return WorkerLoad(
            len(scheduler.running),
            scheduler.num_waiting + len(self._constraining),
            scheduler.queued_tokens(),
            allocator.num_free,
            allocator.num_pages,
            len(self.store),
            self._num_parts * self.tiers.host_bytes_used,
            self._num_parts * self.tiers.disk_bytes_used,
            scheduler.num_blocked,
        )

    def _tallies(self) -> WorkerTallies | None:
        now_s = self._clock()
        if now_s < self._tallies_due_s and self.has_work():
            return None
        self._tallies_due_s = now_s + TALLIES_EVERY_S
        pool = self.corrections.pool
        totals = tallies_of_all(self.tiers.tallying.totals(), self._num_parts)
        return totals._replace(num_anchors=pool.num_anchors, anchor_bytes=pool.num_bytes)

    def _evicts(self, entry: Entry) -> None:
        self.tiers.device_evicts(entry)
        self.scheduler.prefetches.evicted(entry)

    def _frees(self, pages: list[int]) -> None:
        # What was predicted since the last launch is copied before the next one.
        self._read_until[pages] = self._num_launched + (self.corrections.copying is not None)

    def _after(self, pages: Pages[int]) -> Event | None:
        """What a copy into `pages` must wait for."""
        if not len(pages):
            return None
        until = int(self._read_until[list(pages)].max())
        if until > self._num_launched:
            return self.corrections.copying
        under_way = self._under_way
        return under_way.launched.ready if under_way is not None and until >= under_way.number else None

    def _last_write(self) -> Event | None:
        return None if self._under_way is None else self._under_way.launched.ready

    def close(self) -> None:
        """Ends the threads of the tiers below. The runner may serve another engine."""
        self.tiers.close()
        self._constraining.close()
