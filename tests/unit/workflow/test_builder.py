"""The builder writes the same workflows as YAML does, with nothing but the standard library."""

from __future__ import annotations

import subprocess
import sys

import pytest

from laban.cluster.workflow.builder import Workflow, read
from laban.cluster.workflow.parse import parse_dict, parse_yaml

YAML = """
version: 1
name: debate
description: Two agents.
fidelity: direct
inputs: {question: {type: string, default: Why?}}
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
outputs: {best: {read: "answer[winner(vote)]"}, human: {read: human, join: any}}
"""


def built() -> Workflow:
    return (
        Workflow("debate", description="Two agents.", fidelity="direct")
        .input("question", default="Why?")
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
