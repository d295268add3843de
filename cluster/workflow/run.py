"""One run of a workflow: a pure, synchronous state machine. It knows no clock, no model and no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from laban.actors.errors import FailedPrecondition, NotFound
from laban.cluster.workflow.build import MAX_INSTANCES, build_graph
from laban.cluster.workflow.children import Children, Given, News, Room, outer_key
from laban.cluster.workflow.deciding import decisions_of, may_decide
from laban.cluster.workflow.diagnostics import Problem, WorkflowErrors
from laban.cluster.workflow.expressions import ExpressionProblem
from laban.cluster.workflow.facts import Facts, arguments_of, demanded_of, role_of, task_of, tries_of
from laban.cluster.workflow.fidelity import Fidelity
from laban.cluster.workflow.graph import Node, StepGraph
from laban.cluster.workflow.inputs import as_declared, check_inputs
from laban.cluster.workflow.overrides import check_fidelity, plan_sampling
from laban.cluster.workflow.progress import Outcome, Progress
from laban.cluster.workflow.reading import Expectation, Reading
from laban.cluster.workflow.sampling import SamplingSpec
from laban.cluster.workflow.schema import Workflow
from laban.cluster.workflow.states import (
    InstanceState,
    InstanceStatus,
    MessageText,
    Overrides,
    ReadRef,
    ReadyStep,
    RunState,
    Tally,
)
from laban.cluster.workflow.texts import fixed_messages, instance_texts
from laban.cluster.workflow.visibility import private_leaks

if TYPE_CHECKING:
    from laban.cluster.workflow.lookahead import Likelihoods, LookAhead

__all__ = [
    "InstanceState",
    "InstanceStatus",
    "MessageText",
    "Overrides",
    "ReadRef",
    "ReadyStep",
    "Run",
    "RunState",
    "Tally",
]

_NO_OVERRIDES = Overrides()


class Run:
    """The state of one run.

    `ready` hands out each step once; `finish` or `fail` is then told what became of it. Either may make
    more steps ready, skip some that are no longer wanted, or end the run; ask again after each.
    """

    def __init__(
        self,
        workflow: Workflow,
        inputs: Mapping[str, object],
        overrides: Overrides = _NO_OVERRIDES,
        given: Mapping[str, Sequence[Given]] | None = None,
        room: Room | None = None,
    ) -> None:
        """`given` are messages in the place of some of the workflow's own; `room` is that of the run around this one.

        Raises WorkflowErrors, with everything that is wrong with the inputs and overrides.
        """
        values, problems = check_inputs(workflow, inputs)
        fidelity, more = check_fidelity(overrides)
        problems += more
        if problems:
            raise WorkflowErrors(workflow.marks.locate(problems))
        graph, problems = build_graph(workflow, fidelity, values)
        if graph is None:
            raise WorkflowErrors(workflow.marks.locate(problems))
        self.graph: StepGraph = graph
        self.messages: Mapping[str, MessageText]
        self._given = given or {}
        self.messages, problems = fixed_messages(workflow, values, without=self._given)
        self._texts_of, more = instance_texts(graph, values)
        self._sampling, even_more = plan_sampling(graph, overrides)
        problems += more + even_more + private_leaks(graph)
        if problems:
            raise WorkflowErrors(workflow.marks.locate(problems))
        self.seed = overrides.seed if overrides.seed is not None else workflow.sampling.seed
        known = {key: message.text for key, message in self.messages.items()}
        for name, stand_ins in self._given.items():
            known |= {name: "\n\n".join(one.text for one in stand_ins), **{one.key: one.text for one in stand_ins}}
        prefills = {address: prefill for address, (prefill, _) in self._texts_of.items()}
        self._facts = Facts(graph, values, known, prefills)
        self._progress = Progress(graph, self._facts.holds, self._facts.count)
        self._children = Children()
        self._reading = Reading(graph, self._facts, self._progress, self._given, self._children.named)
        self._overrides = overrides
        self._room = room or Room(MAX_INSTANCES)
        if not self._room.take(len(graph.nodes)):
            problem = Problem(
                (), "too many instances in all with those of other workflows", None, f"at most {MAX_INSTANCES}"
            )
            raise WorkflowErrors(workflow.marks.locate([problem]))
        self._look_ahead: LookAhead | None = None

    @property
    def state(self) -> RunState:
        return self._progress.state

    @property
    def error(self) -> str:
        """Why the run failed; empty unless it did."""
        return self._progress.error

    @property
    def instances(self) -> tuple[InstanceStatus, ...]:
        """Every instance in order, with its state; then those of the runs that steps have started."""
        return (*(self.status(address) for address in self.graph.nodes), *self._children.statuses())

    def status(self, address: str) -> InstanceStatus:
        """One instance's state. Raises NotFound."""
        inner, rest = self._inner(address)
        if inner is not None:
            return replace(inner.status(rest), address=address)
        node, progress = self._node(address), self._progress
        reason = progress.reasons.get(address, "")
        return InstanceStatus(
            address, node.step.step, node.agent, node.round, node.kind, progress.states[address], reason
        )

    def ready(self) -> tuple[ReadyStep, ...]:
        """The steps that became ready since the last call, in order; they now count as running."""
        found: list[ReadyStep] = []
        more = True
        while more:
            taken = self._progress.take_ready()
            for node in (self.graph.nodes[address] for address in taken):
                if self._progress.states[node.address] != "running":
                    continue  # another one's start has ended the run, or it is no longer needed
                if node.kind == "workflow":
                    self._start(node)
                else:
                    found.append(self._hand_out(node))
            inside = list(self._children.ready())
            found += inside
            over = [address for address, run in self._children.active() if run.state != "running"]
            for address in over:  # some end when they are asked what is ready
                self._follow(address)
            self._stop_unwanted()
            more = bool(taken or inside or over)
        return tuple(found)

    def take_news(self) -> list[News]:
        """What runs within this one have begun and ended since the last call, in order."""
        return self._children.take_news()

    def finish(self, address: str, text: str) -> None:
        """A running instance made `text` (without its prefill). Of one skipped or cancelled meanwhile it is ignored.

        Raises NotFound for an unknown address, FailedPrecondition for one that is not running.
        """
        inner, rest = self._inner(address)
        if inner is not None:
            inner.finish(rest, text)
            self._follow(address)
        elif self._expects(address):
            self._facts.add(address, text)
            self._progress.finish(address)
            self._stop_unwanted()

    def fail(self, address: str, message: str) -> None:
        """A running instance failed for good; so does the run unless joins tolerate it. Otherwise like `finish`.

        With `on_error: message` the message is the instance's text.
        """
        inner, rest = self._inner(address)
        if inner is not None:
            inner.fail(rest, message)
            self._follow(address)
        elif self._expects(address):
            if self._node(address).kind == "workflow":
                self._fail_child(address, message)
            else:
                self._facts.add_failure(address, message)
                self._progress.fail(address, message)
                self._stop_unwanted()

    def unfit(self, address: str, text: str) -> str:
        """Why an instance's text will not do: a value that it must have is not found. Empty if it will."""
        inner, rest = self._inner(address)
        if inner is not None:
            return inner.unfit(rest, text)
        return self._facts.values_in(self._node(address).address, text)[1]

    def values(self, address: str) -> Mapping[str, object]:
        """What the step's `values` found in the text of an instance that has finished."""
        inner, rest = self._inner(address)
        return self._facts.values.get(address, {}) if inner is None else inner.values(rest)

    def cancel(self) -> None:
        """Ends the run, if it has not ended: whatever has not run will not."""
        if self.state == "running":
            self._progress.stop("cancelled", "the run was cancelled")
            self._stop_unwanted()

    def outputs(self) -> dict[str, str]:
        """The named outputs of a run that succeeded, each the whole messages that it reads, prefills included; nothing
        before, and nothing of one that did not."""
        if self.state != "succeeded":
            return {}
        there = (o for o in self.graph.outputs.values() if self._progress.outcomes[o.unit] == "there")
        return {output.name: self._reading.text_of(output) for output in there}

    def skipped(self) -> tuple[str, ...]:
        """Instances that will never finish, though the run goes on or ended well: abort those that are running."""
        own = (a for a, state in self._progress.states.items() if state in ("skipped", "cancelled"))
        return (*own, *self._children.skipped())

    def take_given_up(self) -> list[str]:
        """Those that became so since the last call; of runs within they come after the news of these."""
        own, self._progress.given_up = self._progress.given_up, []
        return own + self._children.take_given_up()

    def decides(self, address: str, text: str) -> dict[str, object]:
        """What an instance of a run that has come past it would decide by `text`: `deciding.py` says what that is."""
        inner, rest = self._inner(address)
        if inner is not None:
            return inner.decides(rest, text)
        return decisions_of(self.graph, self._facts, self._progress.decisions, address, text)

    def may_decide(self, address: str) -> bool:
        """Whether an instance's text decides anything."""
        inner, rest = self._inner(address)
        return may_decide(self.graph, address) if inner is None else inner.may_decide(rest)

    def tallies(self) -> dict[str, Tally]:
        """The votes decided so far, by step."""
        return {tally.vote: tally for tally in self._progress.tallies.values()}

    def decisions(self) -> Mapping[str, bool]:
        """What the gates asked so far have decided, by unit."""
        return self._progress.decisions

    def steps_to_execution(self) -> dict[str, int]:
        """How many steps before each instance that may still run can: 0 for those that run or are ready.

        Runs within are looked into once they have begun; before, and for what comes after, each counts as one step.
        """
        found = self.look_ahead().steps_to_execution()
        for address, inner in self._children.active():
            found |= {f"{address}/{each}": steps for each, steps in inner.steps_to_execution().items()}
        return found

    def next_uses(self) -> dict[str, tuple[int, str]]:
        """For each message (keys as in ReadRef) that may be read again: in how many steps, and by which instance."""
        uses = [
            (self._children.named(name), (use.steps, use.address))
            for key, use in self.look_ahead().next_uses().items()
            for name in ([one.key for one in self._given[key]] if key in self._given else [key])
        ]
        for address, inner in self._children.active():
            inside = inner.next_uses().items()
            uses += [(outer_key(address, key), (steps, f"{address}/{by}")) for key, (steps, by) in inside]
        soonest: dict[str, tuple[int, str]] = {}
        for key, use in uses:
            if key not in soonest or use[0] < soonest[key][0]:
                soonest[key] = use
        return soonest

    def look_ahead(self, likelihoods: Likelihoods | None = None) -> LookAhead:
        """From here; always the same object. It begins at the first call, which says how likely branches are taken."""
        if self._look_ahead is None:
            self.begin_look_ahead(likelihoods)
        assert self._look_ahead is not None
        self._look_ahead.update(self._progress)
        return self._look_ahead

    @property
    def looks_ahead(self) -> bool:
        return self._look_ahead is not None

    def begin_look_ahead(self, likelihoods: Likelihoods | None = None) -> None:
        """Of a large graph this takes long, and can be done in a thread of its own while the run goes on."""
        from laban.cluster.workflow.lookahead import LookAhead  # takes numba: not before someone looks ahead

        self._look_ahead = LookAhead(self.graph, likelihoods)

    def expectation(self, address: str) -> Expectation:
        """What an instance of this run, none of a run within it, will read. Its keys are names in this run."""
        return Expectation(self._reading, self._node(address).sources)

    def sampling(self, address: str) -> SamplingSpec:
        """As an instance of this run will use it."""
        return self._sampling.of(self._node(address))

    def ended(self) -> dict[str, Outcome]:
        """How every unit of the graph that has ended did, in the order in which they ended."""
        return self._progress.outcomes

    def inner_runs(self) -> list[tuple[str, Run]]:
        """The runs that steps have started and that go on, by the steps' addresses."""
        return self._children.active()

    def keys_of_output(self, name: str) -> list[str]:
        """The messages that an output of a run that succeeded consists of."""
        return [self._children.named(key) for key in self._reading.keys(self.graph.outputs[name].source)]

    def _inner(self, address: str) -> tuple[Run | None, str]:
        """The run within that an instance belongs to, and its address there; None for one of this run's own."""
        head, _, rest = address.partition("/")
        run = self._children.run(head) if rest else None
        if rest and run is None:
            raise NotFound("no such step instance", field="address", value=address)
        return run, rest

    def _start(self, node: Node) -> None:
        """Start the run that a step stands for."""
        address, step = node.address, node.step
        assert step.workflow is not None
        try:
            inner_workflow = self.graph.workflow.workflows[step.workflow]
            inputs = as_declared(inner_workflow, arguments_of(node, self._facts))
            given = {name: self._reading.stand_ins(source) for name, source in node.bindings.items()}
            overrides = Overrides(self._overrides.fidelity, self._overrides.seed)
            inner = Run(inner_workflow, inputs, overrides, given, self._room)
        except (ExpressionProblem, WorkflowErrors) as error:
            return self._fail_child(address, str(error))
        self._children.start(address, inner)
        return self._follow(address)

    def _follow(self, address: str) -> None:
        """Take over what became of a run within."""
        head = address.partition("/")[0]
        self._children.touch(head)
        inner = self._children.run(head)
        if inner is None or inner.state == "running" or self._progress.states[head] != "running":
            return None
        node = self.graph.nodes[head]
        name = node.step.output or next(iter(inner.graph.outputs))
        text = inner.outputs().get(name)
        problem = inner.error if inner.state != "succeeded" else self.unfit(head, text or "")
        if text is None and not problem:
            problem = f"the output '{name}' of '{node.step.workflow}' was not made"
        if problem:
            return self._fail_child(head, problem)
        self._children.finish(head, text or "", inner.keys_of_output(name), role_of(node))
        self._facts.add(head, text or "")
        self._progress.finish(head)
        return self._stop_unwanted()

    def _fail_child(self, address: str, reason: str) -> None:
        node = self.graph.nodes[address]
        message = None
        if node.step.on_error == "message":
            message = MessageText(address, role_of(node), None, reason, private=False)
        self._children.fail(address, reason, message)
        self._facts.add_failure(address, reason)
        self._progress.fail(address, reason)
        self._stop_unwanted()

    def _stop_unwanted(self) -> None:
        self._children.stop_all_but(lambda address: self._progress.states[address] == "running")

    def _node(self, address: str) -> Node:
        if address not in self.graph.nodes:
            raise NotFound("no such step instance", field="address", value=address)
        return self.graph.nodes[address]

    def _expects(self, address: str) -> bool:
        """Whether a result of `address` counts. One may arrive after its instance was skipped or cancelled."""
        self._node(address)
        state = self._progress.states[address]
        if state in ("waiting", "ready", "succeeded", "failed"):
            raise FailedPrecondition(f"the step is {state}, expected running", field="address", value=address)
        return state == "running"

    def _hand_out(self, node: Node) -> ReadyStep:
        problem, task, constraint = "", None, None
        reads: tuple[ReadRef, ...] = ()
        try:
            reads = tuple(ref for source in node.sources for ref in self._reading.refs(source))
            if node.step.external is not None:
                task = task_of(node, self._facts)
            constraint = demanded_of(node, self._facts)
        except ExpressionProblem as error:
            problem = str(error)
        step = node.step
        prefill, name = self._texts_of[node.address]
        levels: set[Fidelity | Literal["mixed"]] = {ref.fidelity for ref in reads} or {"exact"}
        return ReadyStep(
            address=node.address,
            step=step.step,
            agent=node.agent,
            round=node.round,
            kind="generate" if node.kind == "generate" else "external",
            role=role_of(node),
            name=name,
            prefill=prefill,
            reads=reads,
            sampling=self._sampling.of(node),
            fidelity="mixed" if len(levels) > 1 else levels.pop(),
            tries=tries_of(step),
            task=task,
            problem=problem,
            constraint=constraint,
            model=node.model,
            adapter=node.adapter,
        )
