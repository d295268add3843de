"""What a run is given: inputs, overrides of fidelity and sampling, private messages."""

from __future__ import annotations

import pytest

from laban.cluster.workflow.diagnostics import WorkflowErrors
from laban.cluster.workflow.parse import parse_yaml
from laban.cluster.workflow.run import Overrides, ReadyStep, Run
from laban.cluster.workflow.sampling import instance_seed
from laban.cluster.workflow.schema import MAX_TEXT

HEAD = "version: 1\nname: t\nmessages: {q: hi}\nagents: {ann: {prompt: Be Ann, sampling: {seed: 5}}, bob: Be Bob}\n"


def start(body: str, overrides: Overrides = Overrides(), **inputs: object) -> Run:  # noqa: B008 (frozen)
    return Run(parse_yaml(HEAD + body), inputs, overrides)


def only(run: Run) -> ReadyStep:
    (step,) = run.ready()
    return step


FIDELITY = """fidelity: direct
steps:
- {step: a, read: [q]}
- {step: f, fidelity: exact, read: [q, {read: a, fidelity: %s}]}
"""


@pytest.mark.parametrize(
    ("level", "override", "expected"),
    [("direct", None, "mixed"), ("exact", None, "exact"), ("exact", "direct", "direct"), ("direct", "exact", "exact")],
)
def test_fidelity_of_workflow_step_read_and_caller(level: str, override: str | None, expected: str) -> None:
    run = start(FIDELITY % level, Overrides(fidelity=override))
    assert only(run).fidelity == (override or "direct")
    run.finish("a", "")
    assert only(run).fidelity == expected


SAMPLING = """sampling: {max_tokens: 9, temperature: 0.5, seed: 3}
steps:
- {step: a, for_each: agents, sampling: {max_tokens: 7, stop: x}}
- {step: b, agent: ann}
- {step: c}
"""


def test_sampling_of_step_over_agent_over_workflow() -> None:
    run = start(SAMPLING)
    specs = {step.address: step.sampling for step in run.ready()}
    assert (specs["a[ann]"].max_tokens, specs["a[ann]"].stop, specs["a[ann]"].temperature) == (7, ("x",), 0.5)
    assert specs["b"].max_tokens == 9
    assert run.seed == 3
    assert specs["c"].seed is None  # the run's seed decides
    assert specs["b"].seed == 5
    assert specs["a[ann]"].seed == instance_seed(5, "a[ann]")


def test_overrides_of_a_step_and_an_instance() -> None:
    changes = {("a", "max_tokens"): "3", ("a[bob]", "max_tokens"): 4, ("c", "temperature"): "1.5"}
    run = start(SAMPLING, Overrides(seed=8, set=changes))
    specs = {step.address: step.sampling for step in run.ready()}
    assert [specs[a].max_tokens for a in ("a[ann]", "a[bob]", "b")] == [3, 4, 9]
    assert specs["c"].temperature == 1.5
    assert (run.seed, specs["b"].seed) == (8, None)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (Overrides(fidelity="fast"), "not a fidelity .*expected auto, exact"),
        (Overrides(seed=-1), "at least 0"),
        (Overrides(set={("answr", "max_tokens"): 1}), "unknown step or address"),
        (Overrides(set={("a[cleo]", "max_tokens"): 1}), "unknown step or address"),
        (Overrides(set={("a", "max_token"): 1}), "did you mean 'max_tokens'"),
        (Overrides(set={("a", "max_tokens"): "many"}), "whole number"),
        (Overrides(set={("a", "temperature"): "nan"}), "finite"),
        (Overrides(set={("a", "temperature"): float("inf")}), "finite"),
        (Overrides(set={("a", "top_p"): 0}), "more than 0"),
    ],
)
def test_wrong_overrides(overrides: Overrides, words: str) -> None:
    with pytest.raises(WorkflowErrors, match=words) as raised:
        start(SAMPLING, overrides)
    assert raised.value.diagnostics[0].line is None  # what the caller said stands in no file


INPUTS = """inputs:
  who: {}
  n: {type: integer, default: 2}
  docs: {type: list, default: [a, b]}
  b: {type: boolean, default: true}
steps: [{step: s, agent: bob, read: [m], name: "{{ who }}", prefill: "{{ n }}{{ agent }}"}]
"""


def test_inputs_fill_templates() -> None:
    text = HEAD.replace("q: hi", "m: \"{{ who }} {{ n + 1 }} {{ docs | join('+') }}{% if b %}!{% endif %}\"") + INPUTS
    run = Run(parse_yaml(text), {"who": "Zoe", "n": "4", "docs": ["x", "y"]})
    assert run.messages["m"].text == "Zoe 5 x+y!"
    assert run.messages["agent:bob"].text == "Be Bob"
    step = only(run)
    assert (step.name, step.prefill) == ("Zoe", "4bob")


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "not given"),
        ({"who": 3}, "expected text"),
        ({"who": "x", "n": "three"}, "whole number"),
        ({"who": "x", "n": 2.5}, "whole number"),
        ({"who": "x", "n": "1" * 400}, "whole number"),  # more than a float holds
        ({"who": "x", "n": "1" * 5000}, "whole number"),  # more digits than Python reads
        ({"who": "x" * (MAX_TEXT + 1)}, f"at most {MAX_TEXT} characters"),
        ({"who": "x", "docs": "a"}, "a list"),
        ({"who": "x", "docs": [["a"]]}, "a list"),
        ({"who": "x", "b": "maybe"}, "true or false"),
        ({"who": "x", "whom": "y"}, "did you mean 'who'"),
    ],
)
def test_wrong_inputs(inputs: dict[str, object], words: str) -> None:
    with pytest.raises(WorkflowErrors, match=words):
        Run(parse_yaml(HEAD.replace("q: hi", "m: hi") + INPUTS), inputs)


def test_a_private_message_that_would_leak_stops_the_run() -> None:
    body = "steps:\n- {step: a, read: [secret]}\n- {step: f, read: [{read: a, fidelity: %s}]}\n"
    text = HEAD.replace("{q: hi}", "{secret: {text: s, private: true}}") + body
    Run(parse_yaml(text % "exact"), {})
    with pytest.raises(WorkflowErrors, match="'f' would read the private 'secret' through the encoding of 'a'"):
        Run(parse_yaml(text % "direct"), {})
    with pytest.raises(WorkflowErrors, match="private"):
        Run(parse_yaml(text % "exact"), {}, Overrides(fidelity="direct"))


def test_what_is_wrong_with_a_given_input_is_not_said_of_the_file() -> None:
    """Its line there is another input's, or says what was right."""
    with pytest.raises(WorkflowErrors) as caught:
        start("inputs: {n: {type: integer}, m: {}}\nsteps: [{step: a, read: [q]}]\n", n="x", k="1")
    said = [(d.path, d.line) for d in caught.value.diagnostics]
    assert said == [("inputs.k", None), ("inputs.n", None), ("inputs.m", 5)]
