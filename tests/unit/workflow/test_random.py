"""Random well-formed files lint clean, run and end; random damage to them is reported with a line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laban.cluster.workflow.diagnostics import Diagnostic, WorkflowErrors
from laban.cluster.workflow.graph import StepGraph
from laban.cluster.workflow.lint import lint
from laban.cluster.workflow.parse import parse_dict, parse_yaml, to_dict
from laban.cluster.workflow.run import InstanceState, Run
from laban.cluster.workflow.schema import Workflow

AGENTS = ["ann", "bob", "cleo"]
MESSAGES = ["m1", "m2", "d", "d[1]"]
FIDELITY = st.sampled_from([None, None, "exact", "direct"])


@st.composite
def workflows(draw: st.DrawFn) -> dict[str, Any]:
    """Up to five steps, each with reads of messages, of earlier steps and of its own earlier rounds."""
    data: dict[str, Any] = {"version": 1, "name": "random", "messages": {"m1": "one {{ x }}", "m2": {"text": "two"}}}
    data["messages"]["d"] = {"text": "{{ index }}: {{ item }}", "for_each": "docs"}
    items = draw(st.lists(st.sampled_from(["p", 4, True]), min_size=1, max_size=5))
    data["inputs"] = {"x": {"type": "string", "default": "y"}, "docs": {"type": "list", "default": items}}
    data["agents"] = {name: draw(st.sampled_from([{}, "Be {{ agent }}"])) for name in AGENTS}
    data["fidelity"] = draw(st.sampled_from(["exact", "direct"]))
    steps: list[dict[str, Any]] = []
    for number in range(draw(st.integers(1, 5))):
        steps.append(draw(_step(f"s{number}", steps)))
    data["steps"] = draw(st.permutations(steps))
    data["outputs"] = {f"o{n}": step["step"] for n, step in enumerate(steps)}
    return data


@st.composite
def _step(draw: st.DrawFn, name: str, earlier: list[dict[str, Any]]) -> dict[str, Any]:
    step: dict[str, Any] = {"step": name, "read": draw(st.lists(st.sampled_from(MESSAGES), max_size=3))}
    wide = [other["step"] for other in earlier if "for_each" in other]
    batches = [{"batch": base, "size": size} for base in ("d", *wide) for size in (1, 2, 7)]
    fan_out = draw(st.sampled_from([None, "agents", ["bob", "ann"], 1, 3, "docs", draw(st.sampled_from(batches))]))
    if fan_out is not None:
        step["for_each"] = fan_out
        step |= draw(st.sampled_from([{}, {"max_parallel": 1}, {"max_parallel": 2, "on_error": "skip"}]))
    if fan_out == "docs":
        step["read"].append("d[item]")
    elif isinstance(fan_out, dict):
        step["read"].append(f"{fan_out['batch']}[batch]")
    if fan_out != "agents" and not isinstance(fan_out, list) and draw(st.booleans()):
        step["agent"] = draw(st.sampled_from(AGENTS))
    if draw(st.booleans()):
        step["rounds"] = draw(st.integers(1, 4))
        who = [] if fan_out is None else [draw(st.sampled_from(["all", "self", "others"]))]
        when = draw(st.sampled_from(["all", "previous"]))
        step["read"].append(f"{name}[{','.join([*who, when])}]")
    for other in draw(st.lists(st.sampled_from(earlier), max_size=3)) if earlier else []:
        step["read"].append(draw(_read(other, earlier)))
    if draw(st.booleans()):
        step["external"] = {}
    elif draw(st.booleans()):
        step["sampling"] = {"max_tokens": draw(st.integers(1, 9)), "temperature": draw(st.sampled_from([0, 0.5, 2]))}
    if any(not _is_message(read) for read in step["read"]) and "rounds" not in step and draw(st.booleans()):
        step["join"] = draw(st.sampled_from(["all", "any", {"at_least": 1}, {"at_least": 1, "rest": "cancel"}]))
    candidates = [other for other in earlier if "for_each" in other]
    if candidates and draw(st.booleans()):
        step["vote"] = draw(st.sampled_from(candidates))["step"]
    return step


@st.composite
def _read(draw: st.DrawFn, other: dict[str, Any], earlier: list[dict[str, Any]]) -> str | dict[str, Any]:
    arguments: list[str] = []
    voters = [step["step"] for step in earlier if step.get("vote") == other["step"]]
    if "for_each" in other:
        first = "cleo" if other["for_each"] == "agents" else "bob" if isinstance(other["for_each"], list) else "1"
        arguments.append(draw(st.sampled_from(["all", first, *(f"winner({v})" for v in voters)])))
    if "rounds" in other and draw(st.booleans()):
        arguments.append(draw(st.sampled_from(["all", "last", "1"])))
    if "for_each" not in other and not arguments:
        selector = other["step"]
    else:
        selector = f"{other['step']}[{', '.join(arguments)}]"
    level = draw(FIDELITY)
    return selector if level is None else {"read": selector, "fidelity": level}


def _is_message(read: str | dict[str, Any]) -> bool:
    return read in (*MESSAGES, "d[item]", "d[batch]")


relaxed = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@relaxed
@given(workflows(), st.randoms(use_true_random=False))
def test_a_random_file_lints_clean_runs_and_ends(data: dict[str, Any], random: Any) -> None:
    workflow = parse_yaml(yaml.safe_dump(data), "f.yaml")
    assert parse_dict(data) == workflow == parse_dict(to_dict(workflow))
    assert lint(workflow).ok
    run = Run(workflow, {})
    running: dict[str, Any] = {}
    read: set[str] = set()
    for _ in range(10_000):
        assert run.skipped() or not (running.keys() & set(run.skipped()))
        for step in run.ready():
            assert all(ref.key in run.messages or run.status(ref.key).state == "succeeded" for ref in step.reads)
            assert step.address not in read
            read.add(step.address)
            running[step.address] = step
        for address in run.skipped():
            running.pop(address, None)
        if not running:
            break
        address = random.choice(sorted(running))
        running.pop(address)
        run.finish(address, f"{address} says {random.choice(['1', '2', 'ann', 'bob', 'nothing'])}")
    assert run.state == "succeeded"
    assert set(run.outputs()) == set(data["outputs"])
    assert run.steps_to_execution() == {}
    assert all(i.state in ("succeeded", "skipped") for i in run.instances)


@relaxed
@given(workflows(), st.randoms(use_true_random=False))
def test_a_run_with_failures_ends_too(data: dict[str, Any], random: Any) -> None:
    run = Run(parse_dict(data), {})
    running: set[str] = set()
    for _ in range(10_000):
        running |= {step.address for step in run.ready()}
        running -= set(run.skipped())
        if run.state != "running":
            break
        assert running
        address = random.choice(sorted(running))
        running.discard(address)
        if random.random() < 0.2:
            run.fail(address, "broken")
        else:
            run.finish(address, "2")
    assert run.state in ("succeeded", "failed")
    assert (run.error != "") == (run.state == "failed")
    assert not any(i.state in ("waiting", "ready", "running") for i in run.instances)


def soonest(graph: StepGraph, states: Mapping[str, InstanceState]) -> dict[str, int]:
    """Steps to execution by playing: each turn, every instance that can run does, and is there a turn later."""
    there = {address for address, state in states.items() if state == "succeeded"}
    found = {address: 0 for address, state in states.items() if state in ("ready", "running")}
    turn = 0
    latest = set(found)
    while latest:
        there |= latest
        decided = {
            vote.unit
            for vote in graph.votes.values()
            if all(unit in there or states[unit] in ("failed", "skipped", "cancelled") for unit in vote.waits)
            and sum(voter in there for voter in vote.voters) >= vote.quorum
        }
        turn += 1
        latest = {
            address
            for address, node in graph.nodes.items()
            if states[address] == "waiting"
            and address not in found
            and sum(unit in there or unit in decided for unit in node.waits) >= node.required
        }
        found |= dict.fromkeys(latest, turn)
    return found


@relaxed
@given(workflows(), st.integers(0, 12), st.randoms(use_true_random=False))
def test_steps_to_execution_equal_playing_it_out(data: dict[str, Any], num_done: int, random: Any) -> None:
    run = Run(parse_dict(data), {})
    running = [step.address for step in run.ready()]
    for _ in range(num_done):
        running = [address for address in running if address not in run.skipped()]
        if not running or run.state != "running":
            break
        running.sort()
        run.finish(running.pop(random.randrange(len(running))), "1")
        running += [step.address for step in run.ready()]
    states = {i.address: i.state for i in run.instances}
    expected = soonest(run.graph, states)
    assert run.steps_to_execution() == expected
    for key, (steps, address) in run.next_uses().items():
        users = [a for a, node in run.graph.nodes.items() for s in node.sources if key in s.keys]
        assert address in users
        assert steps == min(expected[a] for a in users if a in expected and states[a] != "running")


DAMAGE = ["", "x", "[", "}", ": ", "\n", "&a", "*a", "'", "- ", "\t", "{{", "9" * 30, "é", "all", "winner(s0)"]


def complaints(parse: Callable[[], Workflow]) -> tuple[Diagnostic, ...]:
    """The diagnostics of a file, or of linting it if it parses; any other exception fails the test."""
    try:
        return lint(parse()).diagnostics
    except WorkflowErrors as errors:
        return errors.diagnostics


@relaxed
@given(workflows(), st.data())
def test_random_damage_is_reported_with_a_line(data: dict[str, Any], choices: st.DataObject) -> None:
    text = yaml.safe_dump(data, default_flow_style=choices.draw(st.booleans()))
    start = choices.draw(st.integers(0, len(text) - 1))
    length = choices.draw(st.integers(0, 12))
    insert = choices.draw(st.sampled_from(DAMAGE))
    found = complaints(lambda: parse_yaml(text[:start] + insert + text[start + length :], "f.yaml"))
    assert all(d.line is not None and d.column is not None for d in found)


@relaxed
@given(st.binary(max_size=300) | st.text(max_size=300))
def test_any_text_at_all(text: str | bytes) -> None:
    complaints(lambda: parse_yaml(text))


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=12,
)
PLACES = ["version", "name", "inputs", "messages", "agents", "steps", "outputs", "sampling", "fidelity"]
FIELDS = [
    "step",
    "agent",
    "for_each",
    "count",
    "rounds",
    "read",
    "join",
    "vote",
    "external",
    "name",
    "prefill",
    "sampling",
]


@relaxed
@given(workflows(), st.sampled_from(PLACES + FIELDS), TREES)
def test_any_value_anywhere(data: dict[str, Any], key: str, value: object) -> None:
    if key in FIELDS:
        data["steps"][0][key] = value
    else:
        data[key] = value
    complaints(lambda: parse_dict(data))
