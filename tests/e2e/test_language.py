"""Loops, branches, lists, tools and workflows within workflows, on the default model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import Cli, document, write

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.e2e

DEBATE = """\
version: 1
name: debate
messages: {rules: "Be brief.", question: "Why is the sky blue?"}
agents: {ann: You are Ann., bob: You are Bob.}
sampling: {max_tokens: 8}
steps:
- {step: answer, for_each: agents, rounds: 3, read: [rules, question, "answer[self,all]", "answer[others,previous]"]}
"""
REVIEW = """\
version: 1
name: review
messages: {task: "Write one line of Python that prints 1.", plan: "Use print."}
agents: {executor: You write code., reviewer: You review code.}
sampling: {max_tokens: 12}
steps:
- loop: {until: review.verdict == "ok", max: 4, on_max: fail}
  steps:
  - {step: act, agent: executor, read: [task, plan, "tests[previous]", "review[previous]"]}
  - {step: tests, external: {args: {code: act.code}, timeout_s: 60, on_error: message}}
  - {step: review, agent: reviewer, read: [task, act, tests], values: [verdict]}
outputs: {code: act}
"""
MAP = """\
version: 1
name: mapped
inputs: {docs: {type: list}}
messages: {ask: "Say this in one word.", merge: "Which animals are these?", doc: {text: "{{ item }}", for_each: docs}}
sampling: {max_tokens: 6}
steps:
- {step: map, for_each: docs, max_parallel: 8, on_error: skip, read: [ask, "doc[item]"]}
- {step: fold, for_each: {batch: map, size: 8}, read: [merge, "map[batch]"]}
"""
NESTED = """\
version: 1
name: nested
messages: {doc: "Ants are many."}
sampling: {max_tokens: 6}
steps:
- {step: research, workflow: parts/inner.yaml, inputs: {topic: '"ants"'}, messages: {source: doc}}
- {step: final, read: [doc, {read: research, fidelity: direct}]}
"""
INNER = """\
version: 1
name: inner
inputs: {topic: {}}
messages: {source: none, ask: "Say a word on {{ topic }}."}
sampling: {max_tokens: 6}
steps:
- {step: draft, read: [source, ask]}
"""


def run(cli: Cli, address: str, text: str, *flags: str) -> dict[str, Any]:
    done = cli("run", write(cli, text), "--address", address, "--json", *flags)
    assert done.returncode == 0, done.stderr
    return document(done.stdout)


def states(record: dict[str, Any]) -> dict[str, str]:
    return {step["address"]: step["state"] for step in record["steps"]}


def test_a_debate_of_three_rounds(cli: Cli, address: str) -> None:
    record = run(cli, address, DEBATE)
    assert set(states(record).values()) == {"succeeded"}
    assert len(record["steps"]) == 6


def test_a_loop_ends_when_the_reviewer_says_so(cli: Cli, address: str) -> None:
    said = ["--set", "review[1].forced_text=Verdict: bad", "--set", "review[2].forced_text=**Verdict:** ok."]
    record = run(
        cli, address, REVIEW, *said, "--tool", "tests=test -e x && echo fine || { touch x; echo no >&2; exit 3; }"
    )
    found = states(record)
    assert [found[f"{step}[2]"] for step in ("act", "tests", "review")] == ["succeeded"] * 3
    assert {found[f"{step}[{number}]"] for step in ("act", "tests", "review") for number in (3, 4)} == {"skipped"}
    tests = next(step for step in record["steps"] if step["address"] == "tests[1]")
    assert (tests["state"], tests["text"]) == ("failed", "exit status 3: no")
    assert [s["values"] for s in record["steps"] if s["address"] == "review[2]"] == [{"verdict": "ok"}]


def test_a_loop_that_does_not_end_fails_as_it_says(cli: Cli, address: str) -> None:
    never = ["--set", "review.forced_text=Verdict: bad", "--tool", "tests=true"]
    done = cli("run", write(cli, REVIEW), "--address", address, "--json", *never)
    assert done.returncode == 1
    assert "the loop 'loop1' did not end within 4 rounds" in done.stderr


def test_a_list_from_files_is_mapped_and_folded(cli: Cli, address: str) -> None:
    for number in range(10):
        (cli.folder / f"{number}.txt").write_text(f"Animal {number} lives in the sea.")
    record = run(cli, address, MAP, "--input", "docs=@*.txt")
    assert len([step for step in record["steps"] if step["address"].startswith("map[")]) == 10
    assert set(states(record).values()) == {"succeeded"}
    assert list(states(record))[-1] == "fold[2]"


def test_a_workflow_in_a_file_of_its_own(cli: Cli, address: str) -> None:
    (cli.folder / "parts").mkdir()
    (cli.folder / "parts" / "inner.yaml").write_text(INNER)
    record = run(cli, address, NESTED)
    steps = {step["address"]: step for step in record["steps"]}
    assert steps["research"]["text"] == steps["research/draft"]["text"]
    # By reference: what the inner step made is read as it was encoded, and so is the document.
    assert steps["final"]["tokens_reused"] == steps["final"]["tokens_read"]


def test_the_examples_with_loops_branches_and_lists(cli: Cli, address: str) -> None:
    short = ["--address", address, "--json"]
    tool = f"count={sys.executable} {EXAMPLES / 'tools' / 'count_words.py'}"
    for name, flags in {
        "plan_execute_review": ["--tool", tool, "--set", "review.forced_text= ok"],
        "map_reduce": ["--input", 'notes:=["Bees dance.", "Ants carry.", "Moths fly."]', "--set", "final.max_tokens=8"],
        "review_until_good": ["--set", "write.max_tokens=8", "--input", 'labels:=["print", "burn"]'],
        "judge_panel": ["--set", "propose.max_tokens=8", "--set", "final.max_tokens=8"],
    }.items():
        done = cli("run", str(EXAMPLES / f"{name}.yaml"), *short, *flags)
        assert done.returncode == 0, done.stderr
        assert document(done.stdout)["outputs"], name


def test_the_tournament(cli: Cli, address: str) -> None:
    command = [sys.executable, str(EXAMPLES / "tournament.py"), "--address", address, "--ideas", "3"]
    done = subprocess.run([*command, "--svg", "t.svg"], cwd=cli.folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "wins" in done.stdout
    assert (cli.folder / "t.svg").read_text().startswith("<svg")


def test_the_tournament_without_a_server_says_what_to_do(cli: Cli) -> None:
    command = [sys.executable, str(EXAMPLES / "tournament.py"), "--address", "127.0.0.1:1"]
    done = subprocess.run(command, cwd=cli.folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "laban serve" in done.stderr
