"""The examples that ship: they lint clean, need no inputs, and are what their names say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from laban.cluster.workflow.lint import lint
from laban.cluster.workflow.parse import parse_dict, parse_yaml
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.schema import Workflow

FOLDER = Path(__file__).parents[3] / "examples"
NAMES = ["branch_solve_merge", "judge_panel", "map_reduce", "parallel_debate", "plan_execute_review", "retrieval"]
NAMES += ["review_until_good", "tree_of_thoughts"]


LANGUAGE = Path(__file__).parents[3] / "docs" / "workflow-language.md"


def blocks(language: str) -> list[str]:
    """The code blocks of the language's documentation."""
    parts = LANGUAGE.read_text().split(f"```{language}\n")[1:]
    return [part.split("```")[0] for part in parts]


def test_the_documentation_shows_what_works() -> None:
    for text in blocks("yaml"):
        assert lint(parse_yaml(text)).diagnostics == ()
        assert play(parse_yaml(text)).state == "succeeded"
    (program,) = blocks("python")
    names: dict[str, Any] = {}
    exec(program, names)
    assert lint(parse_dict(names["workflow"].to_dict())).ok


def example(name: str) -> Workflow:
    return parse_yaml((FOLDER / f"{name}.yaml").read_text(), name)


def play(workflow: Workflow, answers: Mapping[str, str] | None = None) -> Run:
    run = Run(workflow, {})
    while run.state == "running":
        for step in run.ready():
            run.finish(step.address, (answers or {}).get(step.address, f"3, says {step.step}"))
    return run


def test_every_example_is_tested() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_an_example_lints_clean_and_runs_without_inputs(name: str) -> None:
    workflow = example(name)
    assert workflow.name == name
    assert lint(workflow).diagnostics == ()
    assert play(workflow).state == "succeeded"


def test_the_debate_has_three_agents_and_three_rounds() -> None:
    run = play(example("parallel_debate"))
    assert len(run.instances) == 9
    assert {i.agent for i in run.instances} == {"ann", "bob", "cleo"}


def test_the_tree_has_eight_proposals_four_voters_and_one_final() -> None:
    run = play(example("tree_of_thoughts"))
    assert [i.step for i in run.instances] == ["propose"] * 8 + ["vote"] * 4 + ["final"]
    assert run.tallies()["vote"].winner == "propose[3]"
    assert run.outputs() == {"best": "Idea 3:3, says propose", "final": "3, says final"}


def test_the_review_ends_when_the_count_and_the_reviewer_agree() -> None:
    ok = {"count[1]": '{"words": 20}', "count[2]": '{"words": 9}', "review[1]": "ok", "review[2]": "ok"}
    run = play(example("plan_execute_review"), ok)
    assert [i.address for i in run.instances if i.state == "succeeded" and i.step == "act"] == ["act[1]", "act[2]"]
    assert run.outputs()["verdicts"] == "Verdict:ok\nVerdict:ok"


def test_the_map_goes_over_forty_notes_in_five_batches() -> None:
    run = play(example("map_reduce"))
    assert [i.step for i in run.instances] == ["map"] * 40 + ["fold"] * 5 + ["final"]


def test_the_panel_reads_what_the_judges_chose_in_their_order() -> None:
    votes = dict(zip(["cost", "children", "health", "traffic", "looks"], "24232", strict=True))
    answers = {f"judge[{name}]": f"{choice}, score: 7" for name, choice in votes.items()}
    run = Run(example("judge_panel"), {})
    reads: list[str] = []
    while run.state == "running":
        for step in run.ready():
            reads = [ref.key for ref in step.reads] if step.step == "final" else reads
            run.finish(step.address, answers.get(step.address, f"says {step.address}"))
    assert reads == ["agent:editor", "propose[2]", "propose[4]", "propose[3]", "write_up"]
    assert run.tallies()["judge"].winner == "propose[2]"
    assert run.outputs() == {"best": "Idea 2:says propose[2]", "final": "says final"}


def test_retrieval_reads_the_documents_in_different_orders() -> None:
    first, second = (step for step in Run(example("retrieval"), {}).ready())
    documents = [[ref.key for ref in step.reads if ref.key.startswith("doc_")] for step in (first, second)]
    assert documents[0] != documents[1]
    assert sorted(documents[0]) == sorted(documents[1])
    assert first.fidelity == second.fidelity == "direct"
