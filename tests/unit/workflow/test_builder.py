"""The builder writes the same workflows as YAML does, with nothing but the standard library."""

from __future__ import annotations

import subprocess
import sys

import pytest

from laban.cluster.workflow.builder import Steps, Workflow, read
from laban.cluster.workflow.parse import parse_dict, parse_yaml

YAML = """
version: 1
name: debate
description: Two agents.
fidelity: direct
inputs: {question: {type: string, default: Why?}, round_ok: {type: boolean, default: true}}
sampling: {max_tokens: 9, stop: [x]}
agents: {ann: {prompt: Be Ann, sampling: {seed: 1}}, bob: {}}
messages: {q: {text: "{{ question }}", private: true}}
steps:
- step: answer
  read: [q, {read: "answer[others,previous]", fidelity: exact, begin: 2}]
  for_each: [ann, bob]
  rounds: 2
- {step: vote, read: [answer], count: 3, vote: answer, join: {at_least: 1, rest: cancel}}
- {step: human, read: [], external: {description: Approve}}
- loop: {until: 'check.good', max: 3, on_max: continue}
  steps:
  - step: draft
    read: [q, "check[previous]", {read: "answer", order: "vote.text"}]
    retries: {max: 2, delay_s: 1.5}
  - {step: check, read: [draft], values: [good], external: {args: {text: draft.text, limit: 3}}, timeout_s: 5}
- when: check.good
  steps: [{step: praise, read: [draft]}]
  otherwise: [{step: blame, read: [draft], when: round_ok}]
- {step: sub, read: [], workflow: other, inputs: {n: 3}, messages: {m: draft}, output: o}
workflows:
  other:
    {version: 1, name: other, inputs: {n: {type: integer}}, messages: {m: x}, steps: [{step: s, read: [m]}],
     outputs: {o: {read: s}}}
outputs: {best: {read: "answer[winner(vote)]"}, human: {read: human, join: any}}
"""


def built() -> Workflow:
    return (
        Workflow("debate", description="Two agents.", fidelity="direct")
        .input("question", default="Why?")
        .input("round_ok", "boolean", default=True)
        .sampling(max_tokens=9, stop=("x",))
        .agent("ann", "Be Ann", sampling={"seed": 1})
        .agent("bob")
        .message("q", "{{ question }}", private=True)
        .step(
            "answer",
            read=["q", read("answer[others,previous]", fidelity="exact", begin=2)],
            for_each=("ann", "bob"),
            rounds=2,
        )
        .step("vote", read=["answer"], for_each=3, vote="answer", join={"at_least": 1, "rest": "cancel"})
        .step("human", external={"description": "Approve"})
        .loop(
            Steps()
            .step(
                "draft",
                read=["q", "check[previous]", read("answer", order="vote.text")],
                retries={"max": 2, "delay_s": 1.5},
            )
            .step(
                "check",
                read=["draft"],
                values=["good"],
                external={"args": {"text": "draft.text", "limit": 3}},
                timeout_s=5,
            ),
            until="check.good",
            max=3,
            on_max="continue",
        )
        .when(
            "check.good", Steps().step("praise", read=["draft"]), Steps().step("blame", read=["draft"], when="round_ok")
        )
        .step("sub", workflow="other", inputs={"n": 3}, messages={"m": "draft"}, output="o")
        .workflow(
            "other",
            Workflow("other").input("n", "integer").message("m", "x").step("s", read=["m"]).output("o", "s"),
        )
        .output("best", "answer[winner(vote)]")
        .output("human", "human", join="any")
    )


def test_the_builder_and_yaml_say_the_same() -> None:
    assert parse_dict(built().to_dict()) == parse_yaml(YAML)


def test_to_dict_is_a_copy() -> None:
    workflow = built()
    workflow.to_dict()["steps"][0]["read"].append("nothing")
    assert parse_dict(workflow.to_dict()) == parse_yaml(YAML)


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"messages\.q is given twice"):
        built().message("q", "again")


def test_the_builder_needs_only_the_standard_library() -> None:
    program = (
        "import sys, laban.cluster.workflow.builder\n"
        "assert not {'pydantic', 'yaml', 'jinja2', 'ray', 'torch'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
