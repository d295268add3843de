"""What is wrong with loops, blocks, values, expressions and external steps is said where it stands."""

from __future__ import annotations

import pytest

from laban.cluster.workflow.diagnostics import Diagnostic, WorkflowErrors
from laban.cluster.workflow.parse import parse_yaml

HEAD = (
    "version: 1\nname: t\nmessages: {q: hi}\ninputs: {limit: {default: x}, docs: {type: list, default: [a]}}\nsteps:\n"
)
LOOP = "- loop: {name: l, until: a.ok, max: 3, on_max: fail}\n  steps:\n  - {step: a, values: [ok]}\n"


def errors(body: str) -> list[Diagnostic]:
    with pytest.raises(WorkflowErrors) as caught:
        parse_yaml(HEAD + body, "f.yaml")
    return list(caught.value.diagnostics)


@pytest.mark.parametrize(
    ("body", "line", "path", "words"),
    [
        # Loops.
        (LOOP + "  - loop: {max: 2}\n    steps: [{step: b}]", 9, "steps[0].steps[1].loop", "inside of the loop 'l'"),
        (
            LOOP + "  - when: a.ok\n    steps:\n    - loop: {max: 2}\n      steps: [{step: b}]",
            11,
            "steps[0].steps[1].steps[0].loop",
            "runs a `workflow`",
        ),
        (LOOP + "  - {step: b, rounds: 2}", 9, "steps[0].steps[1].rounds", "the loop's rounds"),
        ("- loop: {until: a.ok, max: 2}\n  steps: [{step: a}]", 6, "steps[0].loop", "`on_max` is missing"),
        ("- loop: {max: 2, on_max: fail}\n  steps: [{step: a}]", 6, "steps[0].loop", "goes with `until`"),
        ("- loop: {}\n  steps: [{step: a}]", 6, "steps[0].loop", "`max` is missing"),
        ("- loop: {max: 0}\n  steps: [{step: a}]", 6, "steps[0].loop.max", "at least 1"),
        ("- loop: {max: 2, on_max: stop}\n  steps: [{step: a}]", 6, "steps[0].loop.on_max", "'fail' or 'continue'"),
        ("- loop: {max: 2}\n  steps: []", 7, "steps[0].steps", "at least 1"),
        ("- loop: {max: 2}", 6, "steps[0]", "`steps` is missing"),
        (LOOP + "- loop: {name: l, max: 2}\n  steps: [{step: b}]", 9, "steps[1].loop.name", "an earlier loop"),
        (LOOP + "- {step: a}", 9, "steps[1].step", "also an earlier step"),
        # Reads of loops.
        (LOOP + '- {step: b, read: ["a[previous]"]}', 9, "steps[1].read[0]", "outside of the loop 'l'"),
        (LOOP + '- {step: b, read: ["a[current]"]}', 9, "steps[1].read[0]", "all, last, or a number"),
        (LOOP + '  - {step: b, read: ["a[last]"]}', 9, "steps[0].steps[1].read[0]", "not known inside of the loop"),
        (LOOP + "  - {step: b, read: [b]}", 9, "steps[0].steps[1].read[0]", "reads itself in the same round"),
        (LOOP + '- {step: b, read: ["a[4]"]}', 9, "steps[1].read[0]", "round 4 of 'a', which has 3"),
        (LOOP + '- {step: b, read: ["a[all,1]"]}', 9, "steps[1].read[0]", "does not fan out"),
        (LOOP + "  - {step: b, read: [c]}\n- {step: c, read: [b]}", 9, "steps[0].steps[1].read[0]", "a cycle of reads"),
        # Votes and loops.
        (
            "- loop: {max: 2}\n  steps:\n  - {step: a, count: 2}\n- {step: v, vote: a}",
            9,
            "steps[1].vote.over",
            "votes and loops do not go together",
        ),
        (
            "- {step: a, count: 2}\n- {step: v, vote: {over: a, value: bst}, values: [best]}",
            7,
            "steps[1].vote.value",
            "did you mean 'best'?",
        ),
        # Unknown keys.
        ("- loop: {max: 2, untl: x}\n  steps: [{step: a}]", 6, "steps[0].loop.untl", "did you mean 'until'?"),
        ("- loop: {max: 2}\n  step: [{step: a}]", 7, "steps[0].step", "did you mean 'steps'?"),
        ("- when: 1 > 2\n  steps: [{step: a}]\n  otherwse: []", 8, "steps[0].otherwse", "did you mean 'otherwise'?"),
        ("- {step: a, wehn: 1 > 2}", 6, "steps[0].wehn", "did you mean 'when'?"),
        ("- {step: a, retries: {max: 1, dely_s: 2}}", 6, "steps[0].retries.dely_s", "did you mean 'delay_s'?"),
        ("- {step: a, values: {v: {regx: a}}}", 6, "steps[0].values.v.regx", "did you mean 'regex'?"),
        ("- {step: a, external: {tol: t}}", 6, "steps[0].external.tol", "did you mean 'tool'?"),
        # Expressions.
        ("- {step: a, when: lmit > 2}", 6, "steps[0].when", "did you mean 'limit'?"),
        ("- {step: a}\n- {step: b, when: a > 2}", 7, "steps[1].when", "`a.text` or another of its values"),
        ("- {step: a}\n- {step: b, when: aa.text}", 7, "steps[1].when", "did you mean 'a'?"),
        ("- {step: a, values: [verdict]}\n- {step: b, when: a.verdct}", 7, "steps[1].when", "did you mean 'verdict'?"),
        ("- {step: a}\n- {step: b, when: a.verdict}", 7, "steps[1].when", "`values: [verdict]` in that step"),
        ("- {step: a, when: q.code}", 6, "steps[0].when", "expected q.text"),
        ("- {step: a, when: 'q.text >'}", 6, "steps[0].when", "not an expression"),
        ("- {step: a, when: ''}", 6, "steps[0].when", "at least 1 long"),
        ("- {step: a, when: true}", 6, "steps[0].when", "expected text"),
        ("- {step: a, when: round > 1}", 6, "steps[0].when", "unknown variable 'round'"),
        ("- {step: a, when: a.text}", 6, "steps[0].when", "reads itself"),
        ("- {step: a, when: b.text}\n- {step: b, read: [a]}", 6, "steps[0]", "a -> when(a) -> b -> a"),
        ("- when: round > 1\n  steps: [{step: a}]", 6, "steps[0].when", "unknown variable 'round'"),
        ("- when: a.text\n  steps: [{step: a}]", 7, "steps[0].steps[0]", "a -> when(1) -> a"),
        ("- loop: {until: index > 1, max: 2, on_max: fail}\n  steps: [{step: a}]", 6, "steps[0].loop.until", "'index'"),
        # Values.
        ("- {step: a, values: {v: {regex: a, pointer: /a}}}", 6, "steps[0].values.v", "keep one"),
        ("- {step: a, values: {v: (}}", 6, "steps[0].values.v.regex", "not a regular expression"),
        ("- {step: a, values: {v: {pointer: a}}}", 6, "steps[0].values.v.pointer", "starts with /"),
        ("- {step: a, values: {v: {expression: 1 +}}}", 6, "steps[0].values.v.expression", "not an expression"),
        (
            "- {step: a, values: {v: {expression: limit}}}",
            6,
            "steps[0].values.v.expression",
            "unknown variable 'limit'",
        ),
        ("- {step: a}\n- {step: b, values: {v: {expression: a.text}}}", 7, "steps[1].values.v.expression", "no step"),
        ("- {step: a, values: {v: {type: text}}}", 6, "steps[0].values.v.type", "not one of the values served"),
        ("- {step: a, values: [text]}", 6, "steps[0].values.text", "every step has a value 'text'"),
        ("- {step: a, values: {v: {one_of: []}}}", 6, "steps[0].values.v.one_of", "at least 1 long"),
        ("- {step: a, values: ok}", 6, "steps[0].values", "a mapping"),
        # Orders.
        ("- {step: a, read: [{read: q, order: q.text}]}", 6, "steps[0].read[0].order", "there is one member"),
        (LOOP + '- {step: b, read: [{read: "a[all]", order: "[2]"}]}', 9, "steps[1].read[0].order", "one member"),
        ("- {step: a, agent: ann, read: [{read: prompt, order: '[2]'}]}", 6, "steps[0].read[0].order", "one member"),
        ("- {step: a, count: 2}\n- {step: b, read: [{read: a, order: nme}]}", 7, "steps[1].read[0].order", "'nme'"),
        # External steps and attempts.
        ("- {step: a, external: {args: {x: nme.text}}}", 6, "steps[0].external.args.x", "unknown message or step"),
        ("- {step: a, external: {input_schema: {type: 3}}}", 6, "steps[0].external.input_schema", "not a JSON schema"),
        ("- {step: a, external: {lease_s: 0}}", 6, "steps[0].external.lease_s", "more than 0"),
        ("- {step: a, external: {}, sampling: {seed: 1}}", 6, "steps[0].sampling", "generates nothing"),
        ("- {step: a, timeout_s: 1, external: {timeout_s: 1}}", 6, "steps[0]", "given twice"),
        ("- {step: a, retries: -1}", 6, "steps[0].retries.max", "at least 0"),
        ("- {step: a, on_error: pass}", 6, "steps[0].on_error", "'fail', 'skip' or 'message'"),
        ("- {step: a, timeout_s: .inf}", 6, "steps[0].timeout_s", "finite"),
    ],
)
def test_what_is_wrong_has_a_place(body: str, line: int, path: str, words: str) -> None:
    found = errors(body)
    assert any(d.line == line and d.path == path and words in str(d) for d in found), found
    assert all(d.line is not None for d in found)


def test_many_mistakes_are_all_reported() -> None:
    body = (
        LOOP + "  - loop: {max: 2}\n    steps: [{step: b}]\n- {step: c, when: nme, read: ['a[previous]', x], rounds: 0}"
    )
    assert len(errors(body)) == 1  # the schema's come first
    assert len(errors(body.replace(", rounds: 0", ""))) == 4
