"""Random well-formed files lint clean, run and end; random damage to them is reported with a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from random_workflows import workflows

from laban.cluster.translate_spec import spec_from_dict, spec_to_dict
from laban.cluster.workflow.diagnostics import Diagnostic, WorkflowErrors
from laban.cluster.workflow.json_schema import workflow_schema
from laban.cluster.workflow.lint import lint
from laban.cluster.workflow.parse import parse_dict, parse_yaml, to_dict
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.schema import Workflow

pytestmark = pytest.mark.slow

relaxed = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SCHEMA = Draft202012Validator(workflow_schema())
FITTING = "word: ok\nscore: 3"
TEXTS = [FITTING, "word: bad", "score: 12", '{"word": "ok", "score": 7}', "```\nok\n```", "1", "2", "bob", "ok", ""]


def drive(run: Run, random: Any, share: float = 0.0) -> None:
    """Plays a run to its end. Of its failures, steps that tolerate them have some, others with `share`."""
    running: dict[str, Any] = {}
    began: set[str] = set()
    for _ in range(20_000):
        for step in run.ready():
            assert step.address not in began
            began.add(step.address)
            running[step.address] = step
            for key in (ref.key for ref in step.reads if ref.key not in run.messages and "/" not in ref.key):
                status = run.status(key)
                said = run.graph.nodes[key].step.on_error == "message"
                assert status.state == "succeeded" or (status.state == "failed" and said)
        for address in run.skipped():
            running.pop(address, None)
        if not running:
            break
        step = running.pop(random.choice(sorted(running)))
        tolerant = step.tries.on_error != "fail"
        text = random.choice(TEXTS)
        if step.problem:
            run.fail(step.address, step.problem)
        elif random.random() < max(share, 0.3 if tolerant else 0.0):
            run.fail(step.address, "broken")
        elif not run.unfit(step.address, text):
            run.finish(step.address, text)
        elif tolerant:
            run.fail(step.address, run.unfit(step.address, text))
        else:
            run.finish(step.address, FITTING)
    assert not any(i.state in ("waiting", "ready", "running") for i in run.instances)
    assert run.state in ("succeeded", "failed")
    assert (run.error != "") == (run.state == "failed")
    assert set(run.outputs()) <= set(run.graph.outputs)


@relaxed
@given(workflows(), st.randoms(use_true_random=False))
def test_a_random_file_lints_clean_runs_and_ends(data: dict[str, Any], random: Any) -> None:
    workflow = parse_yaml(yaml.safe_dump(data), "f.yaml")
    assert parse_dict(data) == workflow
    assert lint(workflow).ok
    run = Run(workflow, {})
    drive(run, random)
    assert run.state == "succeeded" or "cannot be decided" in run.error or "did not end" in run.error, run.error


@relaxed
@given(workflows(control=False), st.randoms(use_true_random=False))
def test_without_control_flow_everything_is_run(data: dict[str, Any], random: Any) -> None:
    run = Run(parse_dict(data), {})
    drive(run, random)
    assert run.state == "succeeded"
    assert set(run.outputs()) == set(data["outputs"])
    assert all(i.state in ("succeeded", "skipped") for i in run.instances)


@relaxed
@given(workflows(), st.randoms(use_true_random=False))
def test_a_run_with_failures_ends_too(data: dict[str, Any], random: Any) -> None:
    drive(Run(parse_dict(data), {}), random, share=0.2)


@relaxed
@given(workflows())
def test_the_forms_are_one(data: dict[str, Any]) -> None:
    workflow = parse_dict(data)
    assert list(SCHEMA.iter_errors(data)) == []
    spelled = to_dict(workflow)
    assert parse_dict(spelled) == workflow
    assert list(SCHEMA.iter_errors(spelled)) == []
    assert parse_dict(spec_to_dict(spec_from_dict(spelled))) == workflow
    assert parse_dict(spec_to_dict(spec_from_dict(data))) == workflow


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


def places(value: Any, loc: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every path into a tree but its root."""
    for key in range(len(value)) if isinstance(value, list) else value if isinstance(value, dict) else ():
        yield (*loc, key)
        yield from places(value[key], (*loc, key))


ODD = [
    None,
    True,
    0,
    -1,
    3.5,
    "",
    "x",
    "s0",
    "s1[all]",
    "l1",
    "1 +",
    "s9.text",
    "(",
    [],
    ["x"],
    {},
    {"x": 1},
    {"read": 1},
]


@relaxed
@given(workflows(), st.data(), st.randoms(use_true_random=False))
def test_damaged_parts_are_reported_with_a_line(data: dict[str, Any], choices: st.DataObject, random: Any) -> None:
    data = deepcopy(data)  # parts of it belong to the strategy
    for _ in range(choices.draw(st.integers(1, 3))):
        *way, last = choices.draw(st.sampled_from(list(places(data))))
        parent: Any = data
        for key in way:
            parent = parent[key]
        kind = choices.draw(st.sampled_from(["delete", "replace", "misspell", "repeat"]))
        if kind == "delete":
            del parent[last]
        elif kind == "replace" or (kind == "repeat" and isinstance(parent, dict)):
            parent[last] = choices.draw(st.sampled_from(ODD))
        elif kind == "repeat":
            parent.append(parent[last])
        elif isinstance(parent, dict):
            parent[f"{last}x"] = parent.pop(last)
        else:
            parent[last] = f"{parent[last]}x"
    text = yaml.safe_dump(data)
    found = complaints(lambda: parse_yaml(text, "f.yaml"))
    assert all(d.line is not None and d.column is not None for d in found)
    if not any(d.severity == "error" for d in found):
        workflow = parse_yaml(text)
        if all(declared.default is not None for declared in workflow.inputs.values()):
            drive(Run(workflow, {}), random)


@relaxed
@given(workflows(), st.data())
def test_a_file_that_breaks_off(data: dict[str, Any], choices: st.DataObject) -> None:
    text = yaml.safe_dump(data, default_flow_style=choices.draw(st.booleans()))
    found = complaints(lambda: parse_yaml(text[: choices.draw(st.integers(0, len(text)))], "f.yaml"))
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
PLACES = ["version", "name", "inputs", "messages", "agents", "steps", "outputs", "sampling", "fidelity", "workflows"]
FIELDS = ["step", "agent", "for_each", "count", "rounds", "read", "join", "vote", "external", "name", "prefill"]
FIELDS += [
    "sampling",
    "when",
    "loop",
    "steps",
    "otherwise",
    "values",
    "retries",
    "timeout_s",
    "on_error",
    "max_parallel",
]
FIELDS += ["workflow", "inputs", "messages", "output"]


@relaxed
@given(workflows(), st.sampled_from(PLACES + FIELDS), TREES)
def test_any_value_anywhere(data: dict[str, Any], key: str, value: object) -> None:
    if key in FIELDS:
        data["steps"][0][key] = value
    else:
        data[key] = value
    complaints(lambda: parse_dict(data))
