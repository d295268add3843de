"""The reference is what the schema says, the JSON Schema takes what the language takes, and the page's examples run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from workflow_play import play_file

from laban.cluster.workflow import reference, templates
from laban.cluster.workflow.lint import lint
from laban.cluster.workflow.parse import parse_dict, parse_yaml
from laban.cluster.workflow.reference_texts import ABOUT, TEXTS
from laban.cluster.workflow.schema import Model

PAGE = reference.PAGE.read_text()
EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))
FILES = {parse_yaml(text).name: text for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)}
PARTS = re.findall(r"```yaml part\n(.*?)```", PAGE, re.DOTALL)
VALIDATOR = Draft202012Validator(reference.workflow_schema())


def problems(document: object) -> list[str]:
    return [error.message for error in VALIDATOR.iter_errors(document)]


def test_what_is_generated_is_not_stale(capsys: pytest.CaptureFixture[str]) -> None:
    assert reference.main(["--check"]) == 0, capsys.readouterr().err


def test_staleness_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page, schema = tmp_path / "page.md", tmp_path / "schema.json"
    page.write_text(PAGE.replace("| `on_error` |", "| `on_eror` |"))
    monkeypatch.setattr(reference, "PAGE", page)
    monkeypatch.setattr(reference, "SCHEMA", schema)
    assert reference.main(["--check"]) == 1
    assert reference.stale() == [page, schema]
    assert reference.main(["--write", "--check"]) == 0
    assert page.read_text() == PAGE


def _all_models(model: type[Model]) -> set[type[Model]]:
    return {model}.union(*map(_all_models, model.__subclasses__()))


def test_every_field_is_described_and_nothing_else() -> None:
    assert set(TEXTS) == set(ABOUT) == _all_models(Model) - {Model}
    for model, texts in TEXTS.items():
        assert set(texts) == set(model.model_fields), model
    tables = re.findall(r"<!-- generated: (\w+) -->", PAGE)
    assert sorted(tables) == sorted(model.__name__ for model in ABOUT)


def test_every_filter_is_on_the_page() -> None:
    section = PAGE.partition("## Expressions")[2].partition("\n## ")[0]
    shown = set(re.findall(r"`(\w+)(?:\([^`]*\))?`", section))
    assert {*templates._FILTERS, *templates._OWN_FILTERS} <= shown


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(reference.workflow_schema())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_valid(path: Path) -> None:
    assert problems(yaml.safe_load(path.read_text())) == []


@pytest.mark.parametrize("name", FILES)
def test_files_of_the_page_are_valid_lint_clean_and_run(name: str) -> None:
    assert problems(yaml.safe_load(FILES[name])) == []
    assert lint(parse_yaml(FILES[name])).diagnostics == ()
    assert play_file(FILES[name]).run.state == "succeeded"


@pytest.mark.parametrize("part", [part for part in PARTS if not part.startswith("#")])
def test_parts_of_the_page_are_valid_and_parse(part: str) -> None:
    whole = {"version": 1, "name": "t", "messages": {"task": "hi"}, "agents": {"ann": "A", "bob": "B"}}
    document = {**whole, "steps": yaml.safe_load(part)}
    assert problems(document) == []
    assert lint(parse_dict(document)).ok


def test_the_loop_of_the_page() -> None:
    answers = {"draft": "```py\nx = 1\n```", "review": "Verdict: bad", "review[3]": "Verdict: ok."}
    played = play_file(FILES["code"], {**answers, "tests[2]": RuntimeError("exit status 1")})
    assert played.order == " ".join(f"draft[{n}] tests[{n}] review[{n}]" for n in (1, 2, 3)) + " summary"
    assert played.reads("draft[3]") == "task tests[2] review[2]"
    assert played.args("tests[1]") == {"code": "x = 1"}
    played = play_file(FILES["code"], {"review": "Verdict: ok", "tests": RuntimeError("exit status 1")})
    assert played.begun.keys() >= {"draft[4]", "summary"}


@pytest.mark.parametrize(
    ("text", "order"), [("a bug", "triage fix check final"), ("?" * 201, "triage reply doubts final")]
)
def test_the_branches_of_the_page(text: str, order: str) -> None:
    played = play_file(FILES["triage"], {"triage": text})
    assert set(played.order.split()) == set(order.split())
    assert ("fix" in played.run.outputs()) == ("fix" in order)


def test_the_order_of_the_page() -> None:
    scores = {f"rate[{number}]": f"Score: {score}" for number, score in enumerate((3, 9, 5), 1)}
    assert play_file(FILES["best_two"], scores).reads("final") == "doc[2] doc[3] merge"


def test_the_workflow_in_a_workflow_of_the_page() -> None:
    played = play_file(FILES["report"])
    assert played.reads("study[2]/notes").endswith("topic[2] study[2]/ask")
    assert played.run.outputs() == {"final": "x"}


SOUND: dict[str, Any] = {
    "version": 1, "name": "t", "messages": {"m": "hi"}, "agents": {"ann": {}},
    "steps": [
        {"step": "a", "count": 2, "read": ["m", {"read": "m"}], "join": "any", "retries": 2, "values": ["v"]},
        {"loop": {"max": 2}, "steps": [{"step": "b", "for_each": ["ann"], "external": {"timeout_s": 3, "retries": 1}}]},
        {"when": "a.v", "steps": [{"step": "c", "values": {"v": "x", "w": {"one_of": ["y"]}}, "vote": "a"}]},
        {"step": "d", "sampling": {"stop": "x", "temperature": 1}, "for_each": {"batch": "a", "size": 2}},
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["version"], 2), (["name"], "a b"), (["steps"], []), (["messages"], {"a b": "x"}), (["stepz"], 1),
        (["fidelity"], "fast"), (["steps", 0, "step"], 3), (["steps", 0, "count"], 0), (["steps", 0, "join"], "some"),
        (["steps", 0, "read", 0], "m["), (["steps", 0, "read", 1], {"red": "m"}), (["steps", 0, "retries"], -1),
        (["steps", 0, "values"], "v"), (["steps", 1, "loop"], {}), (["steps", 1, "loop", "on_max"], "stop"),
        (["steps", 1, "steps", 0, "external", "lease_s"], 0), (["steps", 1, "when"], True),
        (["steps", 2, "otherwise"], {}), (["steps", 2, "steps", 0, "values", "w", "type"], "text"),
        (["steps", 3, "sampling", "temperature"], 3), (["steps", 3, "for_each", "batch"], 1),
        (["steps", 3, "on_error"], 1),
    ],
)  # fmt: skip
def test_damage_is_not_valid(path: list[str | int], value: object) -> None:
    document = yaml.safe_load(yaml.safe_dump(SOUND))
    assert problems(document) == []
    inner = document
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    assert problems(document)
