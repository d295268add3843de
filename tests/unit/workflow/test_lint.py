"""Leakage, blockage, what fits the context, what nothing uses."""

from __future__ import annotations

import pytest

from laban.cluster.workflow.lint import LintReport, lint
from laban.cluster.workflow.parse import parse_yaml
from laban.cluster.workflow.run import Overrides

HEAD = "version: 1\nname: t\nmessages: {q: one two, r: three}\nagents: {ann: Be Ann, bob: Be Bob}\n"


class Words:
    """A framing that counts words: 10 tokens of root, 2 of header, 1 of terminator."""

    def root(self, first_role: str) -> range:
        return range(10)

    def message(self, role: str, text: str, name: str | None = None) -> range:
        return range(3 + len(text.split()))

    def header(self, role: str, name: str | None = None, *, prefill: str = "") -> range:
        return range(2 + len(prefill.split()))

    def terminator(self, role: str, *, after_stop_token: bool) -> range:
        return range(1)


def report(body: str, max_context: int = 10_000, **inputs: object) -> LintReport:
    return lint(parse_yaml(HEAD + body, "f.yaml"), inputs, framing=Words(), max_context=max_context)


def said(found: LintReport, severity: str) -> list[str]:
    return [d.message for d in found.diagnostics if d.severity == severity]


CHAIN = "steps:\n- {step: a, agent: ann, read: [q]}\n- {step: b, read: [{read: a, fidelity: %s}, r]}\n"


def test_a_direct_read_leaks_what_its_encoding_saw() -> None:
    leaks = {(leak.step, leak.message, leak.through, leak.private) for leak in report(CHAIN % "direct").leaks}
    assert leaks == {("b", "q", "a", False), ("b", "agent:ann", "a", False)}
    assert report(CHAIN % "exact").leaks == ()


def test_leakage_goes_on_through_direct_reads_only() -> None:
    tail = "- {step: c, read: [{read: b, fidelity: direct}]}\n"
    leaks = {(leak.step, leak.message) for leak in report(CHAIN % "direct" + tail).leaks if leak.step == "c"}
    assert leaks == {("c", "a"), ("c", "r"), ("c", "q"), ("c", "agent:ann")}
    leaks = {(leak.step, leak.message) for leak in report(CHAIN % "exact" + tail).leaks if leak.step == "c"}
    assert leaks == {("c", "a"), ("c", "r")}


def test_only_what_is_private_is_an_error() -> None:
    text = HEAD.replace("ann: Be Ann", "ann: {prompt: Be Ann, private: true}") + CHAIN % "direct"
    found = lint(parse_yaml(text))
    assert not found.ok
    assert [d.line for d in found.diagnostics if d.severity == "error"] == [7]
    assert [leak.message for leak in found.leaks if leak.private] == ["agent:ann"]
    assert lint(parse_yaml(text), overrides=Overrides(fidelity="exact")).ok


def test_what_a_reader_is_given_does_not_leak_to_it() -> None:
    body = "steps:\n- {step: a, read: [q]}\n- {step: b, fidelity: direct, read: [q, a]}\n"
    assert report(body).leaks == ()


def test_reads_that_never_saw_each_other() -> None:
    body = "steps:\n- {step: p, count: 2, read: [q]}\n- {step: f, read: [q, {read: p, fidelity: direct}, r]}\n"
    (blocked,) = report(body).blockages
    assert (blocked.address, blocked.pairs) == ("f", (("p[1]", "p[2]"),))
    assert report(body.replace("direct", "exact")).blockages == ()


def test_the_fullest_view_of_a_step_is_looked_at() -> None:
    body = "fidelity: direct\nsteps:\n- {step: a, for_each: agents, rounds: 3, read: [q, 'a[others,previous]']}\n"
    (blocked,) = report(body).blockages
    assert blocked.address == "a[ann,2]"
    assert blocked.pairs == (("agent:ann", "q"), ("agent:ann", "a[bob,1]"))


def test_the_worst_case_of_a_view() -> None:
    body = "sampling: {max_tokens: 20}\nsteps:\n- {step: p, count: 3, read: [q]}\n"
    body += "- {step: f, read: [r, p], prefill: So}\n"
    views = {view.address: view for view in report(body).views}
    # root 10, q 3 + 2 words, header 2, 20 generated, terminator 1
    assert views["p[1]"].total == 10 + 5 + 23
    assert views["f"].total == 10 + 4 + 3 * 23 + 24
    assert report(body, max_context=107).ok
    found = report(body, max_context=106)
    (error,) = (d for d in found.diagnostics if d.severity == "error")
    assert "'f'" in error.message
    assert (error.value, error.line) == (107, 8)


def test_token_ranges_and_winners_count_what_is_read() -> None:
    body = (
        "sampling: {max_tokens: 20}\nsteps:\n- {step: p, count: 3, rounds: 2, read: [q]}\n"
        "- {step: v, read: [p], vote: p}\n"
        "- {step: f, read: [{read: 'p[winner(v),all]', begin: 3, end: 13}, {read: q, begin: 4}]}\n"
    )
    views = {view.address: view.total for view in report(body).views}
    assert views["f"] == 10 + 2 * 10 + 1 + 23


def test_what_nothing_uses_is_a_warning() -> None:
    body = "inputs: {x: {default: a}}\nsteps:\n- {step: a, read: [q]}\n- {step: b}\noutputs: {o: b}\n"
    found = report(body)
    assert found.ok
    assert len(said(found, "warning")) == 5  # x, r, ann, bob, a


def test_greedy_twins_are_a_warning() -> None:
    body = "steps:\n- {step: a, count: 2, read: [q, r]%s}\n- {step: b, for_each: agents, read: [a]}\n"
    assert any("same" in message for message in said(report(body % ""), "warning"))
    for cure in (", sampling: {temperature: 0.5}", ", prefill: '{{ index }}'"):
        assert said(report(body % cure), "warning") == []


def test_a_prefill_that_ends_in_a_space_is_a_warning() -> None:
    body = "steps:\n- {step: a, count: 2, read: [q, r], prefill: 'No {{ index }}:%s'}\n"
    body += "- {step: b, for_each: agents, read: [a]}\n"
    assert said(report(body % ""), "warning") == []
    assert any("space" in message for message in said(report(body % " "), "warning"))


def test_inputs_not_given_are_stood_in_for_and_said() -> None:
    text = HEAD.replace("one two", "'{{ x }}'") + "inputs: {x: {}}\nsteps: [{step: a, read: [q, r]}]\n"
    found = lint(parse_yaml(text), framing=Words(), max_context=1000)
    assert said(found, "info") == ["input 'x' has no default: its length is not counted"]
    assert found.ok


@pytest.mark.parametrize("given", [{"nope": 1}, {"x": 3}])
def test_wrong_inputs_are_errors(given: dict[str, object]) -> None:
    text = HEAD.replace("one two", "'{{ x }}'") + "inputs: {x: {}}\nsteps: [{step: a, read: [q]}]\n"
    assert not lint(parse_yaml(text), given).ok


def test_a_template_that_does_not_render_is_an_error_with_a_line() -> None:
    text = HEAD.replace("one two", '"{{ 1 % x }}"') + "inputs: {x: {type: integer, default: 0}}\nsteps: [{step: a}]\n"
    errors = [d for d in lint(parse_yaml(text)).diagnostics if d.severity == "error"]
    assert [(d.path, d.line) for d in errors] == [("messages.q.text", 3)]


RANGE = "steps:\n- {step: a, read: [{read: q, %s}], sampling: {max_tokens: 5}}\n- {step: b, read: [%s]}\n"


@pytest.mark.parametrize(
    ("of_q", "of_a", "expected"),
    [
        ("begin: 4", "{read: a, end: 8}", []),  # q has 3 + 2 tokens, a at most 2 + 5 + 1
        ("end: 5", "{read: a, begin: 7}", []),
        ("begin: 5", "a", [("steps[0].read[0].begin", 5, "at most 4")]),
        ("begin: 2, end: 6", "a", [("steps[0].read[0].end", 6, "at most 5")]),
        ("begin: 1000, end: 2000", "a", [("steps[0].read[0].begin", 1000, "at most 4")]),
        ("end: 5", "{read: a, end: 9}", [("steps[1].read[0].end", 9, "at most 8")]),
    ],
)
def test_ranges_beyond_a_message_are_errors(of_q: str, of_a: str, expected: list[tuple[str, int, str]]) -> None:
    found = report(RANGE % (of_q, of_a))
    assert [(d.path, d.value, d.expected) for d in found.diagnostics if d.severity == "error"] == expected


def test_of_ranges_nothing_is_said_where_lengths_are_not_known() -> None:
    failing = "steps:\n- {step: a, on_error: message}\n- {step: t, external: {}}\n"
    assert report(failing + "- {step: b, read: [{read: a, end: 5000}, {read: t, end: 5000}]}\n").ok
    given = "inputs: {long: {}}\nsteps:\n- {step: a, read: [{read: m, end: 50}]}\n"
    text = (HEAD + given).replace("r: three", "m: '{{ long }}'")
    assert lint(parse_yaml(text), framing=Words(), max_context=10_000).ok
    assert not lint(parse_yaml(text), {"long": "short"}, framing=Words(), max_context=10_000).ok
    estimate = lint(parse_yaml(HEAD + RANGE % ("begin: 5", "a")), framing=Words(), max_context=10_000, estimated=True)
    assert estimate.ok


def test_each_view_says_whose_context_it_was_measured_with() -> None:
    body = "steps:\n- {step: a, read: [q]}\n- {step: b, model: small, read: [{read: q, end: 6}]}\n"
    models = {"large": (Words(), 900), "small": (Words(), 300)}
    found = lint(parse_yaml(HEAD + body), framing=Words(), max_context=900, models=models)
    views = [(view.address, view.model, view.max_context) for view in found.views]
    assert views == [("a", "", 900), ("b", "small", 300)]
    assert said(found, "error") == ["'b' reads beyond the end of 'q', which has 5 tokens with its frame"]


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("choices: [a b, c d e f, g], sampling: {max_tokens: 3}", [("choices[1]", 3, "a max_tokens of at least 4")]),
        ("choices: [a b, c d e f, g], sampling: {max_tokens: 4}", []),
        ("choices: [a b], sampling: {max_tokens: 1, forced_text: a}", []),
        ("choices: '[1]', sampling: {max_tokens: 1}", []),
    ],
)
def test_choices_that_max_tokens_would_cut_off_are_warned_of(step: str, expected: list[tuple[str, int, str]]) -> None:
    found = report(f"steps:\n- {{step: a, read: [q, r], for_each: agents, {step}}}\noutputs: {{a: a}}\n")
    warned = [
        (d.path.removeprefix("steps[0]."), d.value, d.expected) for d in found.diagnostics if "max_tokens" in d.message
    ]
    assert (warned, found.ok) == (expected, True)


def test_views_and_choices_of_workflows_within_are_warned_of() -> None:
    body = """steps:
- {step: a, workflow: w}
- {step: b, read: [q, r, a], for_each: agents}
outputs: {b: b}
workflows:
  w:
    version: 1
    name: w
    inputs: {long: {}}
    messages: {m: "{{ long }}"}
    steps: [{step: c, workflow: v}, {step: x, read: [m, c], sampling: {max_tokens: 900}}]
    workflows:
      v:
        version: 1
        name: v
        steps: [{step: y, choices: [a b, c d e], sampling: {max_tokens: 2}}]
"""
    found = report(body.replace("workflow: w}", "workflow: w, inputs: {long: q.text}}"), max_context=800)
    said_of = {d.path: (d.severity, d.line, d.value) for d in found.diagnostics}
    assert said_of["workflows.w.steps[1]"] == ("warning", 15, 920)
    assert said_of["workflows.w.workflows.v.steps[0].choices[1]"] == ("warning", 20, 2)
    assert found.ok
