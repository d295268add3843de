"""What looking ahead does for the executor: what is learned of steps, foresight, and workflows that wait for memory."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypedDict

from laban.actors.lasting import going_on
from laban.cluster.admission import DEFAULT
from laban.cluster.demand import RunDemand, Sizes
from laban.cluster.dispatch import Dispatcher
from laban.cluster.execution import Execution
from laban.cluster.foresight import Foresight
from laban.cluster.messages import MessageBook
from laban.cluster.meter import NO_METER, Meter
from laban.cluster.records import StepResult
from laban.cluster.view_tree import ViewTree
from laban.cluster.waiting_room import WaitingRoom
from laban.cluster.workflow.lookahead_likelihoods import Likelihoods
from laban.cluster.workflow.models import named_models
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.schema import Workflow
from laban.cluster.workflow.timing import Kind, StepHistory
from laban.kvstore.encodings import EncodingId

logger = logging.getLogger(__name__)

KINDS: Mapping[str, Kind] = {"external": "external", "workflow": "workflow"}  # by how a step finished; others generate


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run before it begins, and what it may need."""

    run: Run
    book: MessageBook
    tree: ViewTree | None = None
    demand: RunDemand | None = None


class Watching(TypedDict, total=False):
    """Arguments of Execution."""

    on_change: Callable[[Execution, StepResult | None], None]
    successors: Callable[[str], Mapping[EncodingId, int] | None]


class Lookout:
    """Lives in the event loop of the dispatcher; `start` before the first workflow, `stop` at the end."""

    def __init__(
        self, dispatcher: Dispatcher, *, prefetch: bool = True, admission: bool = True, meter: Meter = NO_METER
    ) -> None:
        """`prefetch`: have brought or encoded what the next calls will read. `admission`: hold whole workflows back
        while memory for keys and values is short."""
        self._dispatcher = dispatcher
        self._meter = meter
        self._inside: dict[str, Execution] = {}  # by id, those that have entered and not left
        self.likelihoods = Likelihoods()
        self.history = StepHistory()
        self.foresight = Foresight(dispatcher, self.likelihoods, self.history, prefetch=prefetch)
        self._waiting_room = WaitingRoom(self._kv_bytes) if admission else None

    def start(self) -> None:
        self.foresight.start()
        if self._waiting_room is not None:
            self._waiting_room.start()
        self._dispatcher.foresee(self.foresight)

    async def stop(self) -> None:
        if self._waiting_room is not None:
            self._waiting_room.close()
        await self.foresight.stop()

    @property
    def num_held(self) -> int:
        """Workflows that are held back."""
        return 0 if self._waiting_room is None else self._waiting_room.num_waiting

    def count_steps(self) -> Mapping[str, int]:
        """The steps that have begun and not ended, by state: ready, running, external."""
        found = Counter({"ready": 0, "running": 0, "external": 0})
        for execution in self._inside.values():
            found.update(execution.progress.states())
        return found

    def prepare(self, run: Run, book: MessageBook) -> Prepared:
        """In any thread."""
        tree = ViewTree(book)
        if self._waiting_room is None:
            return Prepared(run, book, tree)
        workflow = run.graph.workflow
        try:
            sizes = self._sizes(workflow.name, book)
            demand = RunDemand(run, sizes.pop(DEFAULT), self._others(sizes, workflow))
            if not self._waiting_room.is_roomy(demand.bound):
                demand.refine()
        except Exception:  # it need not wait, then
            logger.exception("estimating what %s needs failed", workflow.name)
            return Prepared(run, book, tree)
        return Prepared(run, book, tree, demand)

    def _sizes(self, workflow: str, book: MessageBook) -> dict[str, Sizes]:
        """By model."""
        pools, found = self._dispatcher.pools, {}
        for pool in pools:
            own = book.of(pool.name)
            names = {pool.name, DEFAULT} if pool is pools.default else {pool.name}
            models = frozenset(names) if pools.are_several else None
            key = DEFAULT if pool is pools.default else pool.name
            found[key] = Sizes(workflow, own, ViewTree(own), self.history, pool.info.bytes_per_token, models)
        return found

    def _others(self, sizes: Mapping[str, Sizes], workflow: Workflow) -> Mapping[str, Sizes]:
        """Of the models that it names."""
        return {name: sizes[name] for _, name in named_models(workflow) if name in sizes} if sizes else {}

    def watching(self, workflow_id: str) -> Watching:
        """How an execution tells of itself, and what it is told."""
        return {"on_change": self._changed, "successors": partial(self.foresight.successors, workflow_id)}

    def enter(
        self,
        execution: Execution,
        prepared: Prepared,
        rank: int,
        now: Callable[[], None],
        later: Callable[[], None] | None = None,
    ) -> None:
        """Have the workflow start by `now`, or once there is memory for it by `later` (its `start`, else: one that was
        restored has it). In the order of their ranks."""
        workflow_id, room, demand = execution.workflow_id, self._waiting_room, prepared.demand
        self._inside[workflow_id] = execution
        with going_on(f"counting workflow {workflow_id}"):
            (self._meter.workflow_submitted if later is None else self._meter.workflow_restored)(
                workflow_id, execution.board.name
            )

        def start(go: Callable[[], None]) -> None:
            with going_on(f"foreseeing workflow {workflow_id}"):  # it runs as well unforeseen
                self.foresight.begin(workflow_id, prepared.run, prepared.book, execution.progress, rank, prepared.tree)
            go()

        late = partial(start, later or execution.start)
        if room is None or demand is None or room.enter(workflow_id, demand, execution.progress.is_idle, late):
            start(now)
        else:
            execution.hold(room.why(workflow_id))

    def _changed(self, execution: Execution, ended: StepResult | None) -> None:
        """A step's state has changed; `ended` is its result, if it has ended."""
        self.foresight.moved(execution.workflow_id)
        if ended is None:
            return
        if (step := execution.begun(ended.address)) is not None:
            self.foresight.read(execution.workflow_id, step, ended.worker)
        kind, seconds = KINDS.get(ended.finish_reason, "generate"), ended.wall_ms / 1000.0
        self._meter.step_ended(execution.workflow_id, execution.board.name, kind, ended)
        if ended.state == "succeeded":
            self.history.observe(execution.board.name, ended.address, kind, seconds, ended.tokens_generated)
        if self._waiting_room is not None:
            self._waiting_room.moved(execution.workflow_id)

    def leave(self, execution: Execution) -> None:
        """The workflow has ended."""
        self._inside.pop(execution.workflow_id, None)
        with going_on(f"counting workflow {execution.workflow_id}"):
            self._meter.workflow_ended(execution.board.record(with_steps=False))
        with going_on(f"looking ahead of workflow {execution.workflow_id} to its end"):
            self.foresight.end(execution.workflow_id)
        if self._waiting_room is not None:
            self._waiting_room.leave(execution.workflow_id)

    def let_go(self, workflow_id: str) -> None:
        """The workflow goes on elsewhere."""
        self._inside.pop(workflow_id, None)
        with going_on(f"forgetting what was foreseen of workflow {workflow_id}"):
            self.foresight.forget(workflow_id)
        if self._waiting_room is not None:
            self._waiting_room.leave(workflow_id)

    def _kv_bytes(self) -> Mapping[str, int]:
        """Memory for keys and values of the workers that are up, their devices' and their hosts', by model."""
        found: Counter[str] = Counter({DEFAULT: 0})
        default = self._dispatcher.info.model_name
        for each in self._dispatcher.workers():
            if each.alive and not each.draining:
                model = DEFAULT if each.model == default else each.model
                found[model] += each.pages * each.page_size * each.bytes_per_token + each.host_bytes
        return found
