"""The engine of one worker: calls in, a report an iteration out.

    submit -> Scheduler.admit -> Scheduler.schedule -> Launching.advance -> Settling.settle -> publish

On a card an iteration is taken in while the next one runs: its tokens stay there, and the next is planned without
knowing them. Owned by one thread. Nothing here knows Ray, workflows or the network.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace

from laban.actors.calls import Advice, Call, CallEvent, CallFailed, Prefetch, WorkerReport
from laban.actors.engine.checks import check_adapter, check_specs
from laban.actors.engine.config import EngineConfig
from laban.actors.engine.constraining import Constraining
from laban.actors.engine.corrections import Corrections
from laban.actors.engine.decoding import Decode
from laban.actors.engine.drafting import Drafting
from laban.actors.engine.exports import Exports
from laban.actors.engine.failures import Failures
from laban.actors.engine.fences import Fences
from laban.actors.engine.fetching import Fetching
from laban.actors.engine.forgetting import Forgetting
from laban.actors.engine.iteration import Iteration
from laban.actors.engine.iteration_times import IterationTimes
from laban.actors.engine.launching import Launching
from laban.actors.engine.loads import Loads
from laban.actors.engine.reporting import Reporting, worker_info
from laban.actors.engine.runner import AnyRunner
from laban.actors.engine.running_call import RunningCall
from laban.actors.engine.scheduler import Scheduler
from laban.actors.engine.scoring import KeptScores
from laban.actors.engine.sequence import Sequence
from laban.actors.engine.settling import Settling
from laban.actors.engine.sharding import local_num_kv_heads
from laban.actors.engine.shared_beginnings import SharedBeginnings
from laban.actors.engine.tenant_limits import TenantLimits
from laban.actors.engine.tick import Tick
from laban.actors.engine.tiers import Tiers
from laban.actors.engine.tiers_setup import make_tiers
from laban.actors.engine.trials import FIRST, SECOND, Trials
from laban.actors.errors import LabanError
from laban.actors.tokenizer import Tokenizer
from laban.actors.transfers import Export, ExportRequest, FindPeer
from laban.kvstore.arrivals import Standing
from laban.kvstore.store import EncodingStore, Entry

log = logging.getLogger(__name__)

POLL_S = 0.0005
MOST_POLLS = 4
"""What takes longer is looked for less often: to look takes Python's lock from the threads that copy."""
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
        self._fences = Fences(
            num_pages,
            copying=lambda: self.corrections.copying,
            under_way=lambda: self._launching.under_way,
        )
        self.store = EncodingStore(
            num_pages,
            config.page_size,
            order=self.tiers.needs.order(self.tiers.bring_back_s),
            tenant_pages=max(1, int(num_pages * config.tenant_share)),
            on_evict=self._evicts,
            on_free=self._fences.freed,
        )
        self.tiers.is_on_device = self.store.__contains__
        self.tiers.last_write = self._fences.last_write
        self.corrections = Corrections(runner, self.store, self.tiers.tallying)
        self._trials = Trials(self.corrections)
        self.exports = Exports(self.tiers, self.store, self.corrections)
        # Into which the shards divide the keys and values of a token.
        num_parts: int = runner.model.config.num_key_value_heads // local_num_kv_heads(runner.model)
        self._limits = TenantLimits(self.store, self.tiers, num_parts)
        self._forgetting = Forgetting(self.store, self.tiers)
        self.info = worker_info(
            runner,
            self.store,
            self.tiers,
            num_parts,
            worker_id=worker_id,
            namespace=namespace,
            model_name=model_name,
            max_context=max_context,
        )
        flights, per_token = self.tiers.flights, self.tiers.needs.bytes_per_token
        loads = None if flights is None else Loads(flights, per_token, config.page_size, self._fences.after)
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
        self._num_waits = 0  # steps in a row
        tallying = self.tiers.tallying
        times = IterationTimes(self.tiers.rates, self._drafting, tallying)
        self._settling = Settling(self.scheduler, times, tallying, clock, self._events.append)
        self._launching = Launching(runner, self.scheduler, self._constraining, self.corrections, self._fences)
        self._reporting = Reporting(
            self.info, self.store, self.tiers, self.scheduler, self._constraining, self.corrections, num_parts
        )

    def submit(self, call: Call) -> None:
        """Queues a call. One that can never run is answered with CallFailed."""
        try:
            check_adapter(call.namespace, call.specs, self.runner.adapters.knows)
            self._scores.check(call)
            if not self._constraining.holds(call, self._clock()):
                self.scheduler.enqueue(call, self._clock())
        except LabanError as error:
            self._events.append(CallFailed(call.call_id, error.status, str(error)))

    def _can_compute(self, prefetch: Prefetch) -> bool:
        try:
            check_adapter(prefetch.specs[-1].namespace, prefetch.specs, self.runner.adapters.knows)
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
        return bool(waits or self._launching.under_way or self.tiers.is_busy or scheduler.prefetches.may_begin)

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
            self._launching.drain()
            message = f"the iteration failed: {type(error).__name__}: {error}"
            self._events += [CallFailed(i, "INTERNAL", message) for i in self.scheduler.abort_all()]
        events, trial = self._trials.take(self._events)
        self._events.clear()
        if trial is not None:
            self.submit(trial)
        if rubbish := self._trials.take_rubbish():
            self._forgetting.forget(rubbish)
        return self._reporting.report(events, self._clock(), is_busy=self.has_work())

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

    def _release(self, call_ids: Seq[str]) -> None:
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
                    self._events.append(admitted.started())
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
        launched = self._launching.advance(chunks)
        if launched is not None:
            self._settle(launched)
        return launched is not None or self._launching.under_way is not None

    def _pump(self) -> None:
        """Gives the link what it is to copy next."""
        loads, beside = self.scheduler.loads, self.scheduler.is_decoding
        idle = not self.scheduler.running and not self.scheduler.num_waiting
        if loads is not None:
            gates = self.runner.gates if not beside and loads.may_gate else None
            loads.pump(self.tiers.rates.expected, beside=beside, idle=idle, gates=gates)
        self.tiers.pump_saves(beside=beside, idle=idle)

    def _settle(self, iteration: Iteration) -> None:
        self._settling.settle(iteration)
        self._publish_whole([chunk.sequence for chunk in iteration.chunks])
        self._failures.worked()

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
        call, decode, spec = running.call, running.sequence.decode, running.sequence.spec
        self.scheduler.finish(call.call_id)
        assert spec is not None
        generated = tuple(decode.generated) if decode is not None and call.sampling is not None else ()
        self._trials.ended(call, generated, spec.encoding_id)
        self._events.append(running.finished(self._clock()))

    def _make_decode(self, call: Call) -> Decode:
        assert call.sampling is not None
        decode = Decode(call, call.sampling, self.tokenizer, self.tokenizer.detokenizer())
        decode.matcher = self._constraining.matcher(call)
        decode.drafter = self._drafting.drafter(call)
        if call.scoring is not None:
            decode.force(self._scores.begin(call, self.store.now_s))
        return decode

    def _evicts(self, entry: Entry) -> None:
        self.tiers.device_evicts(entry)
        self.scheduler.prefetches.evicted(entry)

    def close(self) -> None:
        """Ends the threads of the tiers below. The runner may serve another engine."""
        self.tiers.close()
        self._constraining.close()
