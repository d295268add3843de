"""What the caller of a run changes, checked; and the sampling of each instance that results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pydantic import ValidationError

from laban.cluster.workflow.diagnostics import Problem, suggest
from laban.cluster.workflow.explain import explain
from laban.cluster.workflow.fidelity import AUTO, Fidelity, expected, is_served
from laban.cluster.workflow.graph import Node, StepGraph
from laban.cluster.workflow.sampling import SamplingSpec, instance_seed, merge
from laban.cluster.workflow.schema import Sampling, Step
from laban.cluster.workflow.states import Overrides

_WHOLE = {"max_tokens", "top_k", "seed", "logprobs"}
_REAL = {"temperature", "top_p"}


def check_fidelity(overrides: Overrides) -> tuple[Fidelity | None, list[Problem]]:
    """The fidelity that replaces all others, if one does; `auto` that nobody has resolved is `exact`."""
    level = "exact" if overrides.fidelity == AUTO else overrides.fidelity
    if level is None or is_served(level):
        return level, []
    return None, [Problem(("overrides", "fidelity"), "not a fidelity", level, f"{AUTO}, {expected()}", in_file=False)]


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """The sampling of every instance: overrides over step over agent over workflow."""

    graph: StepGraph
    seed: int | None  # the caller's, replacing the workflow's, agents' and steps'
    changes: Mapping[str, Sampling]  # by address or step
    _merged: dict[tuple[object, ...], SamplingSpec] = field(default_factory=dict)

    def of(self, node: Node) -> SamplingSpec:
        """The sampling of one instance; its seed is None where the run's seed decides."""
        step, agent = node.step, self.graph.workflow.agents.get(node.agent or "")
        own, whole = self.changes.get(node.address, Sampling()), self.changes.get(step.step, Sampling())
        key = (step.step, node.agent, node.address if node.address in self.changes else None)
        if key not in self._merged:
            layers = [own, whole, step.sampling, agent.sampling if agent else Sampling()]
            # The workflow's seed is the run's: each instance's own is derived from it.
            shared = self.graph.workflow.sampling.model_copy(update={"seed": None})
            self._merged[key] = merge(*layers, shared)
        spec = self._merged[key]
        if own.seed is not None:
            return spec
        if self.seed is not None:
            return replace(spec, seed=None)
        # Siblings with one stated seed would all say the same: each derives its own.
        alone = node.member is None and node.round is None
        return spec if spec.seed is None or alone else replace(spec, seed=instance_seed(spec.seed, node.address))


def plan_sampling(graph: StepGraph, overrides: Overrides) -> tuple[SamplingPlan, list[Problem]]:
    """Checks `overrides` against the graph."""
    steps = {node.step.step: node.step for node in graph.nodes.values()}
    given: dict[str, dict[str, object]] = {}
    problems: list[Problem] = []
    for (target, name), value in overrides.set.items():
        loc = ("overrides", f"{target}.{name}")
        if target not in steps and target not in graph.nodes:
            known = suggest(target, [*steps, *graph.nodes])
            problems.append(Problem(loc, f"unknown step or address '{target}'", None, known))
        elif name not in Sampling.model_fields:
            problems.append(
                Problem(loc, f"unknown sampling value '{name}'", None, suggest(name, Sampling.model_fields))
            )
        elif not _generates(steps.get(target) or graph.nodes[target].step):
            problems.append(Problem(loc, "the step generates nothing", target))
        else:
            given.setdefault(target, {})[name] = _number(name, value)
    if overrides.seed is not None:
        problems += _checked({"seed": overrides.seed})[1]
    changes: dict[str, Sampling] = {}
    for target, values in given.items():
        sampling, more = _checked(values, target)
        problems += more
        changes[target] = sampling
    return SamplingPlan(graph, overrides.seed, changes), [replace(p, in_file=False) for p in problems]


def _generates(step: Step) -> bool:
    return step.external is None and step.workflow is None


def _checked(values: dict[str, object], target: str = "") -> tuple[Sampling, list[Problem]]:
    try:
        return Sampling.model_validate(values), []
    except ValidationError as error:
        found = explain(error)
        return Sampling(), [replace(p, loc=(f"overrides.{target}" if target else "overrides", *p.loc)) for p in found]


def _number(name: str, value: object) -> object:
    """A number given as its text, as a command line does."""
    if name == "drafting":
        return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value
    if not isinstance(value, str) or name not in _WHOLE | _REAL:
        return value
    try:
        return int(value) if name in _WHOLE else float(value)
    except ValueError:
        return value
