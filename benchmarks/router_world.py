"""A fleet under load as the router sees it: the directory's shard, the view that subscribes to it, calls on their way.

Every live run reads its application's prompts, which many workers hold, a document or two, which some hold, and its
own messages, which were made where its calls ran. Calls begin and end, and what they bring and drive out is published,
so queues differ, links are busy, and what the router remembers of holders grows old as it does in service.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from laban.actors.calls import Call, Sampling, WorkerInfo, WorkerLoad, WorkerRates
from laban.cluster.routing.accounts import Sent
from laban.cluster.routing.call_view import CallView, view_call
from laban.cluster.routing.directory_view import DirectoryView
from laban.cluster.routing.ledger import Ledger
from laban.cluster.routing.policies import load_routing
from laban.cluster.routing.policy import RoutingPolicy
from laban.cluster.routing.replication import Replication
from laban.cluster.routing.router import Choice, Router
from laban.kvstore.directory import DirectoryShard
from laban.kvstore.directory_messages import Answer, Batch, PackedChange, Watch
from laban.kvstore.encodings import EMPTY_VIEW, EncodingId, EncodingSpec, Placement, View, closure
from laban.kvstore.placements import PlacementState, Tier, pack

NAMESPACE = "model/bfloat16/tenant"
NUM_APPLICATIONS, NUM_PROMPTS, NUM_DOCUMENTS = 32, 8, 4
RUN_AGENTS, RUN_WORKERS = 4, 3
RUN_MESSAGES = 24  # of its own, so far
MIN_READS, MAX_READS = 8, 16
MAX_SUCCESSORS = 8
CALLS_A_WORKER = 6  # on their way at one time; of these about one has no token yet
BROUGHT_A_WORKER = 256  # of what calls brought, until the oldest is driven out
CALLS_A_NEWS = 64  # routed between two polls of the directory
BATCH_CHANGES = 512
READY, GONE = PlacementState.READY, PlacementState.GONE
TIERS = (Tier.DEVICE,) * 7 + (Tier.HOST,) * 2 + (Tier.DISK,)


@dataclass(frozen=True, slots=True)
class Size:
    workers: int
    encodings: int  # in the directory; what live runs name is watched, the rest is there
    runs: int  # live
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Ordered:
    """A call, and what its workflow's later calls will read."""

    call: Call
    successors: dict[EncodingId, int]

    def view(self) -> CallView:
        return view_call(self.call, self.successors)


@dataclass(slots=True)
class _Worker:
    """What is said to the directory of one worker."""

    info: WorkerInfo
    number: int = 0  # of its last batch
    changes: list[PackedChange] = field(default_factory=list)
    brought: deque[EncodingId] = field(default_factory=deque)


class World:
    """`calls` are to be routed, again and again; `advance` is what happens between two decisions."""

    def __init__(self, size: Size, policy: str = "cost", num_calls: int = 2000) -> None:
        self.size, self._rng = size, random.Random(size.seed)
        self.shard, self.view, self.ledger = DirectoryShard(), DirectoryView(), Ledger()
        self.router = Router(load_routing(policy), self.view, self.ledger, Replication())
        self._now_s = 0.0
        self._taken = 0
        self._specs: dict[EncodingId, EncodingSpec] = {}
        self._waiting: deque[Sent] = deque()  # for their first token
        self._running: deque[Sent] = deque()
        self._workers: dict[str, _Worker] = {}
        for number in range(size.workers):
            self._join(f"worker-{number:04}")
        self._shared = [self._application() for _ in range(NUM_APPLICATIONS)]
        runs = [self._run(number) for number in range(size.runs)]
        self._fill(size.encodings - len(self._specs))
        self._watch()
        self.calls = [self._ordered(f"run-{n % size.runs}", *runs[n % size.runs], n) for n in range(num_calls)]
        self._rng.shuffle(self.calls)

    def use(self, policy: RoutingPolicy) -> None:
        """From now on. What calls did so far stays."""
        self.router = Router(policy, self.view, self.ledger, Replication())

    def load(self) -> None:
        """As many calls on their way as there are when it is busy, and some that have come and gone."""
        for number in range(2 * CALLS_A_WORKER * self.size.workers):
            view = self.calls[number % len(self.calls)].view()
            self.advance(view, self.choose(view))

    def choose(self, view: CallView) -> Choice:
        choice = self.router.choose(view, self._now_s)
        assert choice is not None
        return choice

    def send(self, view: CallView, choice: Choice) -> Sent:
        return self.router.send(view, choice, self._now_s)

    def advance(self, view: CallView, choice: Choice) -> None:
        """Send the call; another that was sent before gets its first token or ends, and the directory tells of it."""
        self.sent(self.send(view, choice))

    def sent(self, sent: Sent) -> None:
        """A call was: go on from there."""
        self._now_s += 0.001
        self._waiting.append(sent)
        if len(self._waiting) > self.size.workers:
            self._running.append(self._any(self._waiting))
            self.ledger.started(self._running[-1])
        if len(self._running) > (CALLS_A_WORKER - 1) * self.size.workers:
            self._end(self._any(self._running))
        if self._rng.random() < 1 / CALLS_A_NEWS:
            self.tell()

    def unheard_of(self, view: CallView) -> CallView:
        """The same of encodings that nobody ever had."""
        needs = tuple([need._replace(encoding_id=f"{self._rng.getrandbits(128):032x}") for need in view.needs])
        return replace(view, needs=needs, successors=(), foreseen=False)

    def tell(self) -> None:
        """What workers have to say goes to the directory, and its news to the view."""
        for worker in self._workers.values():
            self._publish(worker)
        self._poll()

    # Building

    def _join(self, worker_id: str) -> None:
        """One in eight is of another make, one in thirty far slower than its make; the rest are as noise has it."""
        rng = self._rng
        device, speed = ("other", 4000.0) if rng.random() < 1 / 8 else ("usual", 12000.0)
        speed *= 0.5 if rng.random() < 1 / 30 else rng.uniform(0.92, 1.08)
        epoch = self.shard.register(worker_id, 0.0, 0)
        info = WorkerInfo(
            worker_id, epoch, NAMESPACE, "model", 131072, 1 << 16, 16, 131072, 128256, "fused", "bfloat16", device,
            host_bytes=1 << 36, disk_bytes=1 << 40, fetches=True,
        )  # fmt: skip
        self._workers[worker_id] = _Worker(info)
        self.view.begin(worker_id, epoch)
        rates = WorkerRates(speed, 0.01, rng.uniform(18e9, 22e9), 4e9, 10e9)
        self.ledger.report(self.ledger.add(info), WorkerLoad(num_free_pages=1 << 15, num_pages=1 << 16), rates)

    def _application(self) -> tuple[list[EncodingId], list[EncodingId]]:
        """Prompts and documents. Prompts spread with the fleet, some more than others."""
        share = self._rng.choice([0.03, 0.1, 0.25])
        prompts = [
            self._make(EMPTY_VIEW, (256, 2048), max(2, int(share * self.size.workers))) for _ in range(NUM_PROMPTS)
        ]
        return prompts, [self._make(EMPTY_VIEW, (512, 8192), self._rng.randint(1, 8)) for _ in range(NUM_DOCUMENTS)]

    def _run(self, number: int) -> tuple[list[EncodingId], list[EncodingId], list[EncodingId]]:
        """Prompts, documents and own messages, each made under a prompt and a few messages before it."""
        rng = self._rng
        prompts, documents = self._shared[number % NUM_APPLICATIONS]
        read = rng.sample(documents, rng.randint(1, 2))
        agents = rng.sample(prompts, RUN_AGENTS)
        homes = rng.sample(list(self._workers), min(RUN_WORKERS, len(self._workers)))
        made: list[EncodingId] = []
        for _ in range(RUN_MESSAGES):
            reads = [*read, *rng.sample(made, min(len(made), rng.randint(2, 6)))]
            # Most calls run where the run's messages lie, some beside it; what these read they leave there, too.
            where = [homes[0], *rng.sample(homes[1:], 1)] if rng.random() < 0.3 else homes[: rng.choice((1, 1, 1, 2))]
            made.append(self._make(self._placed(rng.choice(agents), reads), (32, 512), len(where), where))
        return agents, read, made

    def _placed(self, prompt: EncodingId, reads: Sequence[EncodingId]) -> View:
        position = self._specs[prompt].num_tokens
        placements = []
        for encoding_id in reads:
            tokens = self._specs[encoding_id].num_tokens
            placements.append(Placement(encoding_id, position, 0, tokens))
            position += tokens
        return View(prompt, tuple(placements))

    def _make(self, view: View, tokens: tuple[int, int], copies: int, homes: Sequence[str] | None = None) -> EncodingId:
        rng = self._rng
        encoding_id = f"{rng.getrandbits(128):032x}"
        # Routing looks at how many tokens there are, not at which.
        self._specs[encoding_id] = EncodingSpec(encoding_id, NAMESPACE, (0,) * rng.randint(*tokens), 0, view, False)
        for worker_id in rng.sample(homes or list(self._workers), min(copies, len(homes or self._workers))):
            self._place(worker_id, encoding_id, rng.choice(TIERS), READY)
        return encoding_id

    def _place(self, worker_id: str, encoding_id: EncodingId, tier: Tier, state: PlacementState) -> None:
        worker, tokens = self._workers[worker_id], self._specs[encoding_id].num_tokens
        worker.changes.append((encoding_id, pack(tier, state, tokens if state else 0), NAMESPACE))

    def _fill(self, num_encodings: int) -> None:
        """What no live run names."""
        rng, workers = self._rng, list(self._workers.values())
        for number in range(num_encodings):
            worker = workers[number % len(workers)]
            packed = pack(rng.choice(TIERS), READY, rng.randint(32, 512))
            worker.changes.append((f"{rng.getrandbits(128):032x}", packed, NAMESPACE))
            if len(worker.changes) >= BATCH_CHANGES:
                self._publish(worker)

    def _watch(self) -> None:
        self.view.watch("runs", self._specs)
        assert self.shard.watch(Watch("router", 1, *self.view.watching.take(0), anew=True), 0.0)
        self.tell()

    def _ordered(
        self,
        run: str,
        prompts: Sequence[EncodingId],
        documents: Sequence[EncodingId],
        made: Sequence[EncodingId],
        number: int,
    ) -> Ordered:
        rng = self._rng
        prompt = rng.choice(prompts)
        own = rng.sample(made, rng.randint(MIN_READS, MAX_READS) - 1 - len(documents))
        view = self._placed(prompt, [*documents, *own])
        specs = tuple(closure([prompt, *documents, *own], self._specs))
        start = sum(self._specs[each].num_tokens for each in (prompt, *documents, *own))
        call = Call(
            f"{run}/step-{number}", NAMESPACE, view, start, (0,) * 16, specs, Sampling(max_tokens=512), (0,) * 4
        )  # fmt: skip
        later = [each for each in (*made, *prompts) if each != prompt and each not in own]
        successors = rng.sample(later, rng.randint(2, MAX_SUCCESSORS))
        return Ordered(call, {each: self._specs[each].num_tokens for each in successors})

    # Going on

    def _any(self, calls: deque[Sent]) -> Sent:
        """Of the older half: outputs differ in length, and so do queues."""
        calls.rotate(-self._rng.randrange(len(calls) // 2 + 1))
        return calls.popleft()

    def _end(self, sent: Sent) -> None:
        self.ledger.ended(sent)
        worker = self._workers[sent.account.worker_id]
        for encoding_id in sent.brings:
            if encoding_id not in self._specs:
                continue
            tokens = self._specs[encoding_id].num_tokens
            self.view.expect(worker.info.worker_id, worker.info.epoch, encoding_id, tokens)
            self._place(worker.info.worker_id, encoding_id, Tier.DEVICE, READY)
            worker.brought.append(encoding_id)
        while len(worker.brought) > BROUGHT_A_WORKER:
            self._place(worker.info.worker_id, worker.brought.popleft(), Tier.DEVICE, GONE)

    def _publish(self, worker: _Worker) -> None:
        if worker.changes:
            worker.number += 1
            batch = Batch(worker.info.worker_id, worker.info.epoch, worker.number, "changes", tuple(worker.changes))
            worker.changes.clear()
            assert self.shard.publish(batch, self._now_s) is Answer.TAKEN

    def _poll(self) -> None:
        while self.shard.has_news("router", self._taken, self._now_s):
            news = self.shard.take_news("router", self._taken, self._now_s)
            assert news is not None
            self._taken = news.number
            self.view.take(0, news)
