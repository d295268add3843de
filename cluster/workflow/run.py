"""One run of a workflow: a pure, synchronous state machine. It knows no clock, no model and no network."""

from __future__ import annotations

from collections.abc import Mapping

from laban.actors.errors import FailedPrecondition, NotFound
from laban.cluster.workflow import lookahead
from laban.cluster.workflow.build import build_graph
from laban.cluster.workflow.diagnostics import WorkflowErrors
from laban.cluster.workflow.graph import Node, OutputNode, Source, StepGraph, winner_keys
from laban.cluster.workflow.inputs import check_inputs
from laban.cluster.workflow.overrides import check_fidelity, plan_sampling
from laban.cluster.workflow.progress import Progress
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
    Task,
    Tries,
)
from laban.cluster.workflow.texts import fixed_messages, instance_texts
from laban.cluster.workflow.visibility import private_leaks

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

    def __init__(self, workflow: Workflow, inputs: Mapping[str, object], overrides: Overrides = _NO_OVERRIDES) -> None:
        """Raises WorkflowErrors, with everything that is wrong with the three of them."""
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
        self.messages, problems = fixed_messages(workflow, values)
        self._texts_of, more = instance_texts(graph, values)
        self._sampling, even_more = plan_sampling(graph, overrides)
        problems += more + even_more + private_leaks(graph)
        if problems:
            raise WorkflowErrors(workflow.marks.locate(problems))
        self.seed = overrides.seed if overrides.seed is not None else workflow.sampling.seed
        self._progress = Progress(graph)

    @property
    def state(self) -> RunState:
        return self._progress.state

    @property
    def error(self) -> str:
        """Why the run failed; empty unless it did."""
        return self._progress.error

    @property
    def instances(self) -> tuple[InstanceStatus, ...]:
        """Every instance in order, with its state."""
        return tuple(self.status(address) for address in self.graph.nodes)

    def status(self, address: str) -> InstanceStatus:
        """One instance's state. Raises NotFound."""
        node, progress = self._node(address), self._progress
        reason = progress.reasons.get(address, "")
        return InstanceStatus(
            address, node.step.step, node.agent, node.round, node.kind, progress.states[address], reason
        )

    def ready(self) -> tuple[ReadyStep, ...]:
        """The steps that became ready since the last call, in order; they now count as running."""
        return tuple(self._hand_out(self.graph.nodes[address]) for address in self._progress.take_ready())

    def finish(self, address: str, text: str) -> None:
        """A running instance made `text` (without its prefill). Of one skipped or cancelled meanwhile it is ignored.

        Raises NotFound for an unknown address, FailedPrecondition for one that is not running.
        """
        if self._expects(address):
            self._progress.finish(address, text)

    def fail(self, address: str, message: str) -> None:
        """A running instance failed for good; so does the run unless joins tolerate it. Otherwise like `finish`."""
        if self._expects(address):
            self._progress.fail(address, message)

    def cancel(self) -> None:
        """Ends the run, if it has not ended: whatever has not run will not."""
        if self.state == "running":
            self._progress.stop("cancelled", "the run was cancelled")

    def outputs(self) -> dict[str, str]:
        """The named outputs of a run that succeeded; nothing before, and nothing of one that did not."""
        if self.state != "succeeded":
            return {}
        return {name: self._output(output) for name, output in self.graph.outputs.items()}

    def skipped(self) -> tuple[str, ...]:
        """Instances that will never finish, though the run goes on or ended well: abort those that are running."""
        return tuple(a for a, state in self._progress.states.items() if state in ("skipped", "cancelled"))

    def tallies(self) -> dict[str, Tally]:
        """The votes decided so far, by step."""
        return {t.vote: t for t in self._progress.tallies.values() if t is not None}

    def steps_to_execution(self) -> dict[str, int]:
        """How many steps before each instance that may still run can: 0 for those that run or are ready."""
        return lookahead.steps_to_execution(self.graph, self._progress.states)

    def next_uses(self) -> dict[str, tuple[int, str]]:
        """For each message (keys as in ReadRef) that may be read again: in how many steps, and by which instance."""
        return lookahead.next_uses(self.graph, self._progress.states)

    def unfit(self, address: str, text: str) -> str:
        """Why a finished text will not do; empty if it does."""
        return ""

    def values(self, address: str) -> dict[str, object]:
        """What was found in a finished step's text."""
        return {}

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
        reads = tuple(ref for source in node.sources for ref in self._refs(source))
        step = node.step
        prefill, name = self._texts_of[node.address]
        levels = {ref.fidelity for ref in reads} or {"exact"}
        return ReadyStep(
            address=node.address,
            step=step.step,
            agent=node.agent,
            round=node.round,
            kind=node.kind,
            role=step.role or ("assistant" if step.external is None else "user"),
            name=name,
            prefill=prefill,
            reads=reads,
            sampling=self._sampling.of(node),
            fidelity="mixed" if len(levels) > 1 else levels.pop(),
            tries=Tries(step.timeout_s, step.retries.max, step.retries.delay_s, step.on_error),
            task=_task(node),
        )

    def _refs(self, source: Source) -> list[ReadRef]:
        return [ReadRef(key, source.fidelity, source.begin, source.end) for key in self._keys(source)]

    def _keys(self, source: Source) -> list[str]:
        """The messages that a source stands for now: those of its instances that are there."""
        if source.fixed:
            return list(source.keys)
        texts = self._progress.texts
        if source.vote is None:
            return [key for key in source.keys if key in texts]
        vote = self.graph.votes[source.vote]
        tally = self._progress.tallies.get(vote.unit)
        if tally is None:  # a join fired without the vote
            return []
        return [key for key in winner_keys(source, vote, tally.winner) if key in texts]

    def _output(self, output: OutputNode) -> str:
        if output.source.fixed:
            return output.separator.join(self.messages[key].text for key in output.source.keys)
        return output.separator.join(self._progress.texts[key] for key in self._keys(output.source))


def _task(node: Node) -> Task | None:
    external = node.step.external
    if external is None:
        return None
    tool = external.tool or node.step.step
    return Task(tool, external.args, external.description, external.output_schema, external.lease_s)
