"""The simulation: a virtual clock, flows that run, what is known beforehand of their reads, and the workers."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import ceil
from typing import Any

from sim_costs import Costs
from sim_directory import Post, SimDirectory
from sim_flows import Message, Workload
from sim_foresight import Foresight, Future, Reads
from sim_routing import SimRouter, view_of
from sim_runs import READY, RUNNING, Durations, Run
from sim_store import Store
from sim_worker import SimCall, SimWorker

from laban.kvstore.eviction import Checked, load_policy
from laban.kvstore.placements import PlacementChange, PlacementState, Tier

RETRY_S = 0.1
"""When no worker takes calls."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What serves. With one worker and no `routing` there is neither router nor directory."""

    eviction: str = "cost"
    routing: str | None = None
    num_workers: int = 1
    num_shards: int = 1  # of the directory
    post: Post = Post()  # noqa: RUF009
    wrong: float = 0.0  # share of announced uses that are replaced by others at random
    deaths: tuple[tuple[float, int], ...] = ()  # when which worker dies
    restart_s: float = 10.0  # until it joins anew, with nothing
    joins: tuple[tuple[float, int], ...] = ()  # when which worker joins, of numbers from `num_workers` on
    sample: int = 0  # candidates looked at for each eviction; 0: all
    fixed: bool = False  # what is missing costs, but no time: every policy sees the same calls at the same times
    until_s: float | None = None  # flows still running then are cut off
    seed: int = 1


@dataclass(slots=True)
class Outcome:
    """What one simulation gave. `stalls_s`: how long each call waited for what had to be loaded or encoded again."""

    stalls_s: list[float] = field(default_factory=list)
    ttfts_s: list[float] = field(default_factory=list)
    work_s: float = 0.0
    makespan_s: float = 0.0
    flows: int = 0
    calls: int = 0
    reads: Reads = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    decisions_s: list[float] = field(default_factory=list)

    @property
    def stall_s(self) -> float:
        return sum(self.stalls_s)

    @property
    def hit_rate(self) -> float:
        """Of tokens read, those that were on the device."""
        there = self.counts["tokens_hit"]
        names = ("tokens_loaded", "tokens_fetched", "tokens_encoded_again", "tokens_encoded_first")
        return there / max(1.0, there + sum(self.counts[name] for name in names))

    def ttft_s(self, share: float) -> float:
        ordered = sorted(self.ttfts_s)
        return ordered[min(len(ordered) - 1, ceil(share * len(ordered)) - 1)]

    def add(self, name: str, value: float) -> None:
        self.counts[name] = self.counts.get(name, 0.0) + value


class Simulation:
    def __init__(self, workload: Workload, costs: Costs, setup: Setup, *, future: Future | None = None) -> None:
        self._workload, self._costs, self._setup = workload, costs, setup
        self._rng = random.Random(setup.seed)
        policy = load_policy(setup.eviction, simulated=True)
        self._policy = Checked(policy) if ":" in setup.eviction else policy
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self.now_s = 0.0
        self.durations = Durations()
        self.foresight = Foresight(self.durations, random.Random(setup.seed + 1), wrong=setup.wrong)
        self.told_of = self.foresight.told_of
        self._future = future
        self._written: set[str] = set()
        self._runs: dict[int, Run] = {}
        self._next_flow = 0
        self.outcome = Outcome()
        self._workers: dict[str, SimWorker] = {}
        self._router: SimRouter | None = None
        self._directory: SimDirectory | None = None
        if setup.routing is not None:
            self._directory = SimDirectory(self, setup.post, random.Random(setup.seed + 2), num_shards=setup.num_shards)
            self._router = SimRouter(setup.routing, self._directory.view, costs)
        for number in range(setup.num_workers):
            self._start(0.0, f"w{number:04d}")
        for time_s, number in setup.deaths:
            self.at(time_s, self._kill, f"w{number:04d}")
        for time_s, number in setup.joins:
            self.at(time_s, self._start, f"w{number:04d}")

    # The clock

    def at(self, time_s: float, do: Callable[..., None], *arguments: Any) -> None:
        self._count += 1
        heappush(self._heap, (time_s, self._count, do, arguments))

    def run(self, progress: Callable[[float], None] = lambda share: None) -> Outcome:
        """Once. `progress` is told every now and then which share of it is done.

        Raises MemoryError for a call that does not fit on a device that runs nothing else.
        """
        flows, live = self._workload.flows, self._workload.live
        if live is None:
            for number, flow in enumerate(flows):
                self.at(flow.arrive_s, self._begin, number)
        else:
            for number in range(min(live, len(flows))):
                self.at(self._workload.ramp_s * number / live, self._begin_next)
        collected = gc.isenabled()
        gc.disable()  # what there is stays: looking at it again and again takes most of the time
        heap, until_s = self._heap, self._setup.until_s
        while heap and self.outcome.flows < len(flows):
            self.now_s, _, do, arguments = heappop(heap)
            if until_s is not None and self.now_s > until_s:
                break
            do(self.now_s, *arguments)
            if self._count & 0xFFF == 0:
                progress(self.outcome.flows / len(flows) if until_s is None else self.now_s / until_s)
        if collected:
            gc.enable()
        return self._collect()

    def _collect(self) -> Outcome:
        outcome = self.outcome
        outcome.makespan_s = self.now_s
        for worker in self._workers.values():
            self._count_up(worker)
        if self._router is not None and self._directory is not None:
            outcome.decisions_s = self._router.decisions_s
            view, directory = self._directory.view.counters, self._directory
            outcome.add("tokens_predicted", view.tokens_predicted)
            outcome.add("tokens_missed", view.tokens_missed)
            outcome.add("directory_changes", directory.num_changes)
            outcome.add("directory_batches", directory.num_batches)
            outcome.add("directory_gaps", directory.num_gaps)
            outcome.add("directory_encodings", sum(shard.status().num_encodings for shard in directory.shards))
            outcome.add("shards_cpu_s", directory.shards_cpu_s)
            outcome.add("view_cpu_s", directory.view_cpu_s)
            outcome.add("router_cpu_s", sum(self._router.decisions_s))
        return outcome

    def _count_up(self, worker: SimWorker) -> None:
        counters, add = worker.store.counters, self.outcome.add
        for name in counters.__slots__:
            add(name, getattr(counters, name))
        add("bytes_loaded", worker.loads.moved)
        add("bytes_fetched", worker.fetches.moved)
        add("link_busy_s", worker.loads.busy_s)
        add("peer_busy_s", worker.fetches.busy_s)
        add("device_busy_s", worker.device.busy_s)

    # Workers

    def _start(self, now_s: float, worker_id: str) -> None:
        setup = self._setup
        rng = random.Random(f"{setup.seed} {worker_id} {now_s}")
        store = Store(
            worker_id, self, self._costs, self._policy, rng, sample=setup.sample, knows=self._future is not None
        )
        self._workers[worker_id] = SimWorker(worker_id, self, self, self._costs, store, fixed=setup.fixed)
        if self._router is not None and self._directory is not None:
            self._router.join(worker_id, self._directory.join(worker_id))

    def _kill(self, now_s: float, worker_id: str) -> None:
        worker = self._workers.pop(worker_id, None)
        if worker is None:
            return  # dead already
        lost = worker.stop()
        self._count_up(worker)
        if self._router is not None and self._directory is not None:
            self._router.leave(worker_id)
            self._directory.die(worker_id)
        self.outcome.add("calls_lost", len(lost))
        for call in lost:
            run = self._runs[call.flow]
            run.states[call.number] = READY
            run.began_s[call.number] = now_s
            self._send(SimCall(call.step, call.flow, call.number, call.rank, call.reads, call.ready_s), now_s)
        self.at(now_s + self._setup.restart_s, self._start, worker_id)

    # Flows

    def _begin_next(self, now_s: float) -> None:
        if self._next_flow < len(self._workload.flows):
            self._begin(now_s, self._next_flow)

    def _begin(self, now_s: float, number: int) -> None:
        self._next_flow = max(self._next_flow, number + 1)
        run = self._runs[number] = Run(self._workload.flows[number], number)
        self._go_on(number, run, run.start(), now_s)

    def _go_on(self, number: int, run: Run, ready: list[int], now_s: float) -> None:
        for each in ready:
            step = run.flow.steps[each]
            run.began_s[each] = now_s
            if step.wait_s:
                run.began_s[each] += self.durations.expect(f"wait {step.kind}")
            self.at(now_s + step.wait_s, self._submit, number, each)
        self.foresight.look(number, run, now_s)

    def _submit(self, now_s: float, number: int, each: int) -> None:
        run = self._runs[number]
        step = run.flow.steps[each]
        if step.wait_s:
            self.durations.observe(f"wait {step.kind}", step.wait_s)
        reads = tuple(message for message in step.reads if self.exists(message))
        self._send(SimCall(step, number, each, run.rank, reads, now_s), now_s)

    def _send(self, call: SimCall, now_s: float) -> None:
        router, directory = self._router, self._directory
        if router is None or directory is None:
            self._workers["w0000"].submit(call, now_s)
            return
        run = self._runs[call.flow]
        family = run.flow.name
        view = view_of(call, family, self.exists, run.successors(call.number), run.flow.declared)
        directory.view.watch_also(family, (need.encoding_id for need in view.needs))
        choice = router.choose(view, now_s)
        if choice is None:
            self.at(now_s + RETRY_S, lambda now_s: self._send(call, now_s))
            return
        call.sent = router.router.send(view, choice, now_s)
        call.tokens_expected = choice.tokens_found
        call.sources = {source.encoding_id: source.worker_id for source in choice.sources}
        self.at(now_s + self._setup.post.delay_s, self._arrive, call, choice.worker_id, choice.account.epoch)

    def _arrive(self, now_s: float, call: SimCall, worker_id: str, epoch: str) -> None:
        worker = self._workers.get(worker_id)
        assert self._router is not None
        account = self._router.ledger.accounts.get(worker_id)
        if worker is None or account is None or account.epoch != epoch:
            self._send(call, now_s)  # it died meanwhile
        else:
            worker.submit(call, now_s)

    # What workers tell and ask

    def began(self, call: SimCall, now_s: float) -> None:
        run = self._runs[call.flow]
        run.states[call.number] = RUNNING
        run.began_s[call.number] = now_s
        by = (call.flow, call.number)
        reads = self.outcome.reads
        for message in call.reads:
            reads.setdefault(message.name, []).append((now_s, by))
            if self._future is not None:
                self._future.read(message.name, by)
        self.foresight.read(call.flow, call.reads)

    def first_token(self, call: SimCall, now_s: float) -> None:
        if self._router is not None:
            self._router.ledger.started(call.sent)
            found = sum(message.num_tokens for message in call.reads) - call.tokens_encoded
            assert self._directory is not None
            self._directory.view.count(call.tokens_expected, max(0, found))

    def finished(self, call: SimCall, now_s: float) -> None:
        outcome = self.outcome
        outcome.calls += 1
        outcome.stalls_s.append(call.work_s if self._setup.fixed else call.there_s - call.admitted_s)
        outcome.ttfts_s.append(call.first_s - call.ready_s)
        outcome.work_s += call.work_s
        self.durations.observe(call.step.kind, now_s - call.ready_s)
        self._written.add(call.step.output.name)
        run = self._runs[call.flow]
        if self._router is not None:
            self._tell(call, run.flow.name)
        ready = run.finish(call.number)
        if run.ended:
            outcome.flows += 1
            del self._runs[call.flow]
            self.foresight.look(call.flow, run, now_s)
            if self._directory is not None:
                self._directory.view.unwatch(run.flow.name)
            if self._workload.live is not None:
                self.at(now_s, self._begin_next)
        else:
            self._go_on(call.flow, run, ready, now_s)

    def _tell(self, call: SimCall, family: str) -> None:
        assert self._router is not None
        assert self._directory is not None
        assert call.worker is not None
        ledger, view, worker_id = self._router.ledger, self._directory.view, call.worker.worker_id
        made = call.step.output
        view.watch_also(family, (made.name,))
        account = ledger.accounts[worker_id]
        tokens = {message.name: message.num_tokens for message in (*call.reads, made)}
        for name in (*call.sent.brings, made.name):
            if name in tokens:
                view.expect(worker_id, account.epoch, name, tokens[name])
        ledger.ended(call.sent)
        worker = call.worker
        self._router.report(worker_id, worker.num_admitted, worker.num_waiting, worker.store.device_free)

    def exists(self, message: Message) -> bool:
        return message.fixed or message.name in self._written

    def true_use_of(self, name: str) -> float | None:
        return None if self._future is None else self._future.next_s(name)

    def sender(self, call: SimCall, name: str) -> SimWorker | None:
        worker = self._workers.get(call.sources.get(name, ""))
        entry = None if worker is None else worker.store.entries.get(name)
        return worker if entry is not None and (entry.device == 2 or entry.host_ready_s <= self.now_s) else None

    def placed(self, worker_id: str, message: Message, tier: Tier, there: bool) -> None:
        if self._directory is not None:
            state = PlacementState.READY if there else PlacementState.GONE
            self._directory.change(worker_id, (PlacementChange(message.name, tier, state, message.num_tokens),))
