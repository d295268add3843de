"""Whatever a stranger writes in a file comes out as diagnostics with a line, never as another exception."""

from __future__ import annotations

import pickle

import pytest

from laban.cluster.workflow.diagnostics import Diagnostic, WorkflowErrors
from laban.cluster.workflow.names import NAME_RULE
from laban.cluster.workflow.parse import parse_dict, parse_yaml, to_dict

HEAD = "version: 1\nname: t\n"


def errors(text: str | bytes) -> list[Diagnostic]:
    with pytest.raises(WorkflowErrors) as caught:
        parse_yaml(text, "f.yaml")
    return list(caught.value.diagnostics)


def error(text: str | bytes) -> Diagnostic:
    found = errors(text)
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("a: [", 2, 1, "node content"),
        ("", 1, 1, "empty"),
        ("- 1\n", 1, 1, "wrong type"),
        ("just a text", 1, 1, "wrong type"),
        ("a: 1\n---\nb: 2\n", 2, 1, "second document"),
        (b"version: 1\nname: \xff\n", 2, 7, "not UTF-8"),
        ("version: 1\nname: a\x01b\n", 2, 8, "does not allow"),
        ("x: &a [*a]", 1, 8, "inside itself"),
        ("x: *nowhere", 1, 4, "nowhere"),
        ("? [a]\n: b", 1, 3, "key must be a text"),
        ("1: a", 1, 1, "key must be a text"),
        ("a: !!python/object:os.system x", 1, 4, "tags are not served"),
        ("a: &x {b: 1}\nc:\n  <<: *x", 3, 3, "merge keys"),
        ("a: " + "[" * 50 + "]" * 50, 1, 43, "nested more than"),
    ],
)
def test_what_is_not_yaml_has_a_place(text: str | bytes, line: int, column: int, words: str) -> None:
    found = error(text)
    assert words in found.message
    assert (found.line, found.column) == (line, column)


def test_a_very_deep_file_is_refused_without_recursion() -> None:
    assert "nested" in error("a: " + "[" * 900 + "]" * 900).message


def test_aliases_that_multiply_are_bounded() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "aliases written out" in error("\n".join(lines)).message


def test_aliases_that_deepen_are_bounded() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 3000)]
    assert "deep, aliases written out" in error("\n".join(lines)).message


def test_a_key_given_twice_is_an_error_at_the_second() -> None:
    found = error(HEAD + "steps: [{step: a, read: [], read: []}]\n")
    assert (found.line, found.column) == (3, 29)
    assert "given twice" in found.message


def test_scalars_are_those_of_yaml_1_2() -> None:
    workflow = parse_yaml(HEAD + "messages: {m: no, n: 'off'}\nsteps: [{step: yes, read: [m, n]}]\n")
    assert workflow.steps[0].step == "yes"
    assert workflow.messages["m"].text == "no"
    of_base = "messages: {m: hi}\nsteps: [{step: a, read: [m], sampling: {max_tokens: 0x10, seed: 0o17, top_k: 010}}]\n"
    sampling = parse_yaml(HEAD + of_base).steps[0].sampling
    assert (sampling.max_tokens, sampling.seed, sampling.top_k) == (16, 15, 10)


@pytest.mark.parametrize(
    ("body", "place", "path", "words"),
    [
        ("steps:\n- {step: a, red: []}", (4, 13), "steps[0].red", "did you mean 'read'"),
        ("steps:\n- {read: []}", (4, 3), "steps[0]", "`step` is missing"),
        ("steps: 3", (3, 8), "steps", "a list"),
        ("steps: []", (3, 8), "steps", "at least 1"),
        ("steps:\n- {step: a, rounds: '3'}", (4, 21), "steps[0].rounds", "a whole number"),
        ("steps:\n- {step: a, rounds: 0}", (4, 21), "steps[0].rounds", "at least 1"),
        ("steps:\n- {step: a, for_each: yes}", (4, 23), "steps[0].for_each.input", "unknown list 'yes'"),
        ("steps:\n- {step: a, for_each: true}", (4, 23), "steps[0].for_each", "a mapping"),
        ("steps:\n- {step: a, for_each: 3, count: 3}", (4, 3), "steps[0]", "keep one"),
        ("steps:\n- {step: a, join: some}", (4, 19), "steps[0].join", "write all, any"),
        ("steps:\n- {step: a, read: ['b[']}", (4, 20), "steps[0].read[0].read", "not a read"),
        ("steps:\n- {step: a, read: ['b[0]']}", (4, 20), "steps[0].read[0].read", "count from 1"),
        ("steps:\n- {step: a, fidelity: fast}", (4, 23), "steps[0].fidelity", "exact"),
        ("steps:\n- {step: all}", (4, 10), "steps[0].step", "word of the language"),
        ("steps:\n- {step: a b}", (4, 10), "steps[0].step", "not a name"),
        ("messages: {a.b: x}\nsteps: [{step: a}]", (3, 12), "messages.a.b", "not a name"),
        ("sampling: {temperature: .nan}\nsteps: [{step: a}]", (3, 25), "sampling.temperature", "finite"),
        ("sampling: {temperature: .inf}\nsteps: [{step: a}]", (3, 25), "sampling.temperature", "finite"),
        ("sampling: {temperature: 2.5}\nsteps: [{step: a}]", (3, 25), "sampling.temperature", "at most 2"),
        ("sampling: {temperature: -1}\nsteps: [{step: a}]", (3, 25), "sampling.temperature", "at least 0"),
        ("sampling: {top_p: 0}\nsteps: [{step: a}]", (3, 19), "sampling.top_p", "more than 0"),
        ("sampling: {max_tokens: 0}\nsteps: [{step: a}]", (3, 24), "sampling.max_tokens", "at least 1"),
        ("sampling: {max_tokens: true}\nsteps: [{step: a}]", (3, 24), "sampling.max_tokens", "a whole number"),
        ("sampling: {seed: -1}\nsteps: [{step: a}]", (3, 18), "sampling.seed", "at least 0"),
        ("sampling: {stop: ['']}\nsteps: [{step: a}]", (3, 19), "sampling.stop[0]", "at least 1 long"),
        ("inputs: {n: {type: integer, default: x}}\nsteps: [{step: a}]", (3, 38), "inputs.n.default", "whole number"),
        ("inputs: {n: {type: number, default: .nan}}\nsteps: [{step: a}]", (3, 37), "inputs.n.default", "finite"),
        ("inputs: {agent: {}}\nsteps: [{step: a}]", (3, 10), "inputs.agent", "word of templates"),
        ("messages: {m: '{{ x }}'}\nsteps: [{step: a}]", (3, 15), "messages.m.text", "unknown variable 'x'"),
        ("messages: {m: '{{ x'}\nsteps: [{step: a}]", (3, 15), "messages.m.text", "not a template"),
        ("steps:\n- {step: a, prefill: '{{ round }}'}", (4, 22), "steps[0].prefill", "unknown variable 'round'"),
        ("steps:\n- {step: a, read: [{read: a, begin: 5, end: 5}]}", (4, 20), "steps[0].read[0]", "is empty"),
        ("outputs: {o: nothing}\nsteps: [{step: a}]", (3, 14), "outputs.o.read", "unknown message or step"),
    ],
)
def test_what_is_wrong_with_a_workflow_has_a_place(body: str, place: tuple[int, int], path: str, words: str) -> None:
    found = error(HEAD + body)
    assert (found.line, found.column) == place
    assert found.path == path
    assert words in str(found)


def test_every_error_is_reported_in_the_order_of_the_file() -> None:
    body = "steps:\n- {step: answer, read: [question], modl: x}\n- {step: b, read: [anser]}\n"
    found = errors(HEAD + "messages: {qestion: hi}\n" + body)
    assert [d.line for d in found] == [5, 5, 6]
    assert "did you mean 'qestion'" in str(found[0])
    assert "did you mean 'answer'" in str(found[2])


@pytest.mark.parametrize(
    "body",
    [
        "tools: [x]\nsteps: [{step: a}]",
        "agents: {bob: {tools: [x]}}\nsteps: [{step: a, agent: bob}]",
        "steps: [{step: a, tools: [x]}]",
    ],
)
def test_what_is_reserved_is_said_to_be(body: str) -> None:
    with pytest.raises(WorkflowErrors) as caught:
        parse_yaml(HEAD + body)
    assert caught.value.status == "UNIMPLEMENTED"
    assert all("reserved, not served yet" in d.message and d.line for d in caught.value.diagnostics)


def test_errors_cross_processes() -> None:
    with pytest.raises(WorkflowErrors) as caught:
        parse_yaml(HEAD + "steps: [{step: a, tools: [x]}]")
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.diagnostics == caught.value.diagnostics
    assert again.status == "UNIMPLEMENTED"


def test_a_version_that_is_not_served() -> None:
    assert "expected 1" in str(error("version: 2\nname: t\nsteps: [{step: a}]"))


@pytest.mark.parametrize(
    "data",
    [
        {"version": 1, "name": "t", "steps": [{"step": "a", "read": ["b"]}]},
        {"version": 1, "name": "t", "steps": [{"step": "a", 3: 4}]},
        {"version": 1, "name": "t", "steps": [{"step": "a", "x": object()}]},
        {"version": 1, "name": "t", "steps": [{"step": "a", "rounds": 10**400}]},
        {"version": 1, "name": "t", "steps": [{"step": "a", "count": {"no": 1}}]},
        {"version": 1, "name": "t", "steps": [{"step": "a", "external": {}, "prefill": "x"}]},
    ],
)
def test_the_dict_form_has_paths_and_no_lines(data: dict[str, object]) -> None:
    with pytest.raises(WorkflowErrors) as caught:
        parse_dict(data)
    assert all(d.line is None for d in caught.value.diagnostics)


def test_a_dict_that_holds_itself() -> None:
    data: dict[str, object] = {"version": 1}
    data["steps"] = [data]
    with pytest.raises(WorkflowErrors, match="nested"):
        parse_dict(data)


def test_yaml_and_dict_form_round_trip() -> None:
    text = HEAD + "agents: {bob: Be Bob}\nmessages: {q: hi}\nsteps:\n- {step: a, count: 2, read: [q], join: all}\n"
    workflow = parse_yaml(text)
    assert parse_dict(to_dict(workflow)) == workflow
    assert to_dict(parse_dict(to_dict(workflow))) == to_dict(workflow)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("sampling: {stop: 3}\nsteps: [{step: a}]", "sampling.stop: wrong type (got 3); expected a text or a list"),
        ("steps: [{step: a, read: [7]}]", "steps[0].read[0]: wrong type (got 7); expected a text or a mapping"),
        ("steps: [{step: a, values: 3}]", "steps[0].values: wrong type (got 3); expected a list or a mapping"),
        ("steps: [{step: a, external: 3}]", "steps[0].external: wrong type (got 3); expected a mapping"),
        ("steps: [{step: 9 x}]", f"steps[0].step: not a name (got '9 x'); expected {NAME_RULE}"),
    ],
)
def test_all_forms_are_named_that_would_do(body: str, expected: str) -> None:
    with pytest.raises(WorkflowErrors) as caught:
        parse_yaml(f"version: 1\nname: t\n{body}")
    [diagnostic] = caught.value.diagnostics
    assert str(diagnostic).partition("error: ")[2] == expected


def test_a_tab_in_front_of_a_line_is_named() -> None:
    [found] = errors("version: 1\nname: x\nmessages:\n\tt: hello\n")
    assert (found.line, found.message.endswith("a tab; YAML is indented by spaces")) == (4, True)
    [found] = errors("version: 1\nname: [x\ty,\n")
    assert "a tab" not in found.message
