"""What a run has found out: texts, the values in them, and what expressions make of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from laban.actors.calls import Constraint
from laban.actors.grammars import choices_problem, schema_text
from laban.cluster.workflow import votes
from laban.cluster.workflow.expressions import ExpressionProblem
from laban.cluster.workflow.graph import Bound, Gate, Node, StepGraph, Use
from laban.cluster.workflow.resolve import Member
from laban.cluster.workflow.schema import Step
from laban.cluster.workflow.states import Tally, Task, Tries
from laban.cluster.workflow.tool_schemas import problem_with
from laban.cluster.workflow.values import code_of, find_values


class Facts:
    """Grows as instances end. `inputs` and the texts of `messages` are those that the run started from; `prefills` are
    those of every instance."""

    def __init__(
        self,
        graph: StepGraph,
        inputs: Mapping[str, object],
        messages: Mapping[str, str],
        prefills: Mapping[str, str],
    ) -> None:
        self._graph = graph
        self._prefills = prefills
        self._inputs = inputs
        self._messages = messages
        self.texts: dict[str, str] = {}  # by address, of those that others can read
        self.values: dict[str, dict[str, object]] = {}
        self._failed: set[str] = set()

    def add(self, address: str, text: str) -> None:
        self.texts[address] = text
        self.values[address], _ = self.values_in(address, text)

    def values_in(self, address: str, text: str) -> tuple[dict[str, object], str]:
        """The values in the message that `text` would make, and why it will not do; empty if it does."""
        step = self._graph.nodes[address].step
        return find_values(step.values, text, self._prefills[address], step.typed_names)

    def add_failure(self, address: str, message: str) -> None:
        """With `on_error: message` it can be read like a text."""
        self._failed.add(address)
        if self._graph.nodes[address].step.on_error == "message":
            self.add(address, message)

    def supposing(self, address: str, text: str) -> Facts:
        """The same, had the instance made `text`."""
        other = Facts(self._graph, self._inputs, self._messages, self._prefills)
        other.texts, other.values, other._failed = dict(self.texts), dict(self.values), self._failed - {address}
        other.add(address, text)
        return other

    def message(self, key: str) -> str:
        """The whole text of a fixed message, or of an instance that is there: with its prefill, as readers see it."""
        return self._messages[key] if key in self._messages else self._prefills[key] + self.texts[key]

    def evaluate(self, bound: Bound) -> Any:
        """Raises ExpressionProblem."""
        return bound.expression.evaluate({**self._inputs, **bound.own}, [self._referred(use) for use in bound.uses])

    def holds(self, gate: Gate) -> bool:
        """Whether a gate's condition does. Raises ExpressionProblem."""
        return gate.condition is not None and bool(self.evaluate(gate.condition))

    def count(self, step: str) -> Tally | None:
        """The vote of a step; None if it cannot be decided."""
        return votes.count(self._graph.votes[step], self.texts, self.values)

    def _referred(self, use: Use) -> object:
        keys: Sequence[str | None] = use.keys
        if use.num_rounds:
            keys = latest_of_each(use.keys, use.num_rounds, self._is_known)
        if use.many:
            rounds = [keys[at : at + use.width] for at in range(0, len(keys), max(1, use.width))]
            run = [key for members in rounds if any(map(self._is_known, members)) for key in members]
            return [self._value(key, use.value) for key in run]
        return self._value(keys[0], use.value) if keys else None

    def _is_known(self, key: str | None) -> bool:
        return key in self.texts or key in self._failed or key in self._messages

    def _value(self, key: str | None, name: str) -> object:
        if key is None:
            return None
        if name == "failed":
            return key in self._failed
        text = self._messages[key] if key in self._messages else self.texts.get(key)
        if text is None:
            return None
        if name == "text":
            return text
        found = self.values.get(key, {})
        return found[name] if name in found else code_of(self._prefills.get(key, "") + text) if name == "code" else None


def latest_of_each(keys: Sequence[str], num_rounds: int, is_there: Callable[[str], bool]) -> list[str | None]:
    """Of keys round by round, each member's last one that is there; None for a member without."""
    width = len(keys) // num_rounds
    return [next((k for k in reversed(keys[member::width]) if is_there(k)), None) for member in range(width)]


def ordered(keys: Sequence[str], members: Mapping[str, Member | None], order: object) -> list[str]:
    """Those of `keys` whose members `order` names, a list of them or one; as they are if it names none.

    A member is its number; or its name in any case, or its place. What names nobody is passed over, and so is a
    repetition: orders are often what a model wrote.
    """
    places = {str(member).lower(): member for member in members.values()}
    distinct = list(dict.fromkeys(members.values()))
    wanted: dict[Member | None, None] = {}
    for given in order if isinstance(order, list | tuple) else [order]:
        item = int(given) if isinstance(given, float) and given.is_integer() else given
        number = item if isinstance(item, int) and not isinstance(item, bool) else None
        if str(item).strip().lower() in places:
            wanted[places[str(item).strip().lower()]] = None
        elif number is not None and 1 <= number <= len(distinct) and isinstance(distinct[0], str):
            wanted[distinct[number - 1]] = None
    if not wanted:
        return list(keys)
    return [key for member in wanted for key in keys if members[key] == member]


def role_of(node: Node) -> str:
    """The role of the message that an instance makes."""
    return node.step.role or ("user" if node.kind == "external" else "assistant")


def tries_of(step: Step) -> Tries:
    retries = step.retries
    return Tries(
        timeout_s=step.timeout_s,
        max_retries=0 if retries is None else retries.max,
        delay_s=0.0 if retries is None else retries.delay_s,
        on_error=step.on_error,
    )


def task_of(node: Node, facts: Facts) -> Task:
    """What an external step asks. Raises ExpressionProblem for arguments that cannot be, or that its schema refuses."""
    external = node.step.external
    assert external is not None
    args = arguments_of(node, facts)
    if external.input_schema is not None:
        problem = problem_with(external.input_schema, args)
        if problem:
            raise ExpressionProblem(f"the arguments are not what `input_schema` asks for: {problem}")
    return Task(
        tool=external.tool or node.step.step,
        args=args,
        description=external.description,
        output_schema=external.output_schema,
        lease_s=external.lease_s,
    )


def demanded_of(node: Node, facts: Facts) -> Constraint | None:
    """What a generated text must be, if anything. Raises ExpressionProblem for choices that are none."""
    if node.step.response_schema is not None:
        return Constraint(schema=schema_text(node.step.response_schema))
    chosen = node.step.choices
    if "choices" in node.arguments:
        bound = node.arguments["choices"]
        assert isinstance(bound, Bound)
        try:
            chosen = facts.evaluate(bound)
        except ExpressionProblem as error:
            raise ExpressionProblem(f"`choices`: {error}") from None
        problem, place = choices_problem(chosen)
        if problem:
            raise ExpressionProblem(f"`choices`{place}: {problem}")
    return None if chosen is None else Constraint(choices=tuple(chosen))


def arguments_of(node: Node, facts: Facts) -> dict[str, object]:
    """The arguments of an external step, or of the workflow that a step runs. Raises ExpressionProblem."""
    found: dict[str, object] = {}
    for name, value in node.arguments.items():
        try:
            found[name] = facts.evaluate(value) if isinstance(value, Bound) else value
        except ExpressionProblem as problem:
            raise ExpressionProblem(f"the argument '{name}': {problem}") from None
    return found
