"""Multi-agent tasks whose texts are real: which workflow each is, and the inputs that it is run on.

A task is a workflow of `task_flows` and as many inputs as are asked for, drawn with a seed. Inputs to learn from and
held-out ones have no problem in common; what they share is what such a workflow shares in service: instructions, and
examples or documents that each input draws a few of, in an order of its own (`bank`). Texts are cut to a number of
tokens, so that a small model reads a case in a second or two on two cores.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import task_data
from task_data import Choice, Find, Function, Problem, Talk, installed

from laban.cluster.workflow.parse import parse_yaml
from laban.cluster.workflow.schema import Workflow

FLOWS = Path(__file__).resolve().parent / "task_flows"
BANK = 6  # texts that all inputs of a task draw from
SHOWN_TOKENS, PART_TOKENS, TEXT_TOKENS = 110, 120, 130
SESSION_CHARS = range(300, 1200)
SESSION_QUESTIONS = (
    "What is being done about {}?", "What is said of {}?", "Which command has to do with {}?",
    "What went wrong with {}?", "Which file has to do with {}?", "What comes next, after {}?",
)  # fmt: skip
THINGS = ("key", "coin", "ring", "stamp", "shell", "button", "feather", "marble")
COLOURS = ("red", "blue", "green", "white", "black", "yellow")
PLACES = ("box", "bag", "drawer", "jar", "case", "bowl")
SECRETS = ("tiger", "river", "candle", "orange", "castle", "silver", "garden", "winter")

T = TypeVar("T")
Cut = Callable[[str, int], str]
"""A text's beginning of at most so many tokens, whole words."""


@dataclass(frozen=True, slots=True)
class Case:
    """`right` says which texts would be right answers: name -> the step, and what its text has to have in it."""

    inputs: Mapping[str, object]
    right: Mapping[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Task:
    name: str
    workflow: Workflow
    train: tuple[Case, ...]
    held_out: tuple[Case, ...]


@dataclass(frozen=True, slots=True)
class _Draw:
    """What makes a task's cases: `cut` texts, drawn by `rng`, out of packages' folders."""

    cut: Cut
    rng: random.Random
    find: Find

    def bank(self, found: Sequence[T], text_of: Callable[[T], str], num_tokens: int) -> tuple[list[str], list[T]]:
        """Texts that all inputs draw from, whole ones if there are enough, and what of `found` is left."""
        texts = [text_of(each) for each in found]
        order = sorted(range(len(found)), key=lambda n: self.cut(texts[n], num_tokens) != texts[n])[:BANK]
        return [self.cut(texts[n], num_tokens) for n in order], [e for n, e in enumerate(found) if n not in order]

    def shuffled(self, found: Sequence[T]) -> list[T]:
        return self.rng.sample(found, len(found))


Found = tuple[list[str], list[T]]
"""The bank, and the problems that are left."""


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.?!])\s+", text)


def _gsm8k(draw: _Draw) -> Found[Problem]:
    found = [each for each in draw.shuffled(task_data.problems(draw.find)) if len(sentences(each.text)) > 1]
    return draw.bank(found, lambda each: f"A solved problem: {each.text} Solution: {each.solution}", 150)


def _gsm8k_case(draw: _Draw, bank: Sequence[str], each: Problem) -> Case:
    parts = sentences(each.text)
    middle = len(parts) // 2
    begin, end = (draw.cut(" ".join(half), 80) for half in (parts[:middle], parts[middle:]))
    shown_1, shown_2 = draw.rng.sample(bank, 2)
    return Case({"shown_1": shown_1, "shown_2": shown_2, "begin": begin, "end": end})


def _hellaswag(draw: _Draw) -> Found[Choice]:
    found = draw.shuffled(task_data.endings(draw.find))
    return draw.bank(found, lambda each: f"{each.topic}: {each.text} {each.options[each.right]}", SHOWN_TOKENS)


def _hellaswag_case(draw: _Draw, bank: Sequence[str], each: Choice) -> Case | None:
    texts = [draw.cut(text, 30).strip() for text in each.options]
    if len(set(texts)) < len(texts):
        return None
    right = texts[each.right]
    shown = dict(zip(("shown_1", "shown_2", "shown_3"), draw.rng.sample(bank, 3), strict=True))
    begin = draw.cut(f"{each.topic}: {each.text}", 90)
    order = draw.rng.sample(texts, len(texts))
    return Case({**shown, "begin": begin, "endings": order}, {"right": ("chosen", right)})


def _human_eval(draw: _Draw) -> Found[Function]:
    found = draw.shuffled(task_data.functions(draw.find))
    return draw.bank(found, lambda each: f"An example:\n{each.head}\n{each.body}", 170)


def _human_eval_case(draw: _Draw, bank: Sequence[str], each: Function) -> Case:
    shown_1, shown_2 = draw.rng.sample(bank, 2)
    asked = f"To be written:\n{draw.cut(each.head, TEXT_TOKENS)}"
    return Case({"shown_1": shown_1, "shown_2": shown_2, "asked": asked})


def _mt_bench(draw: _Draw) -> Found[Talk]:
    found = sorted(draw.shuffled(task_data.talks(draw.find)), key=lambda each: not each.answer)
    bank = [draw.cut(f"A question: {e.first} A good answer: {e.answer}", SHOWN_TOKENS) for e in found[:BANK]]
    return bank, draw.shuffled(found[BANK:])


def _mt_bench_case(draw: _Draw, bank: Sequence[str], each: Talk) -> Case:
    shown_1, shown_2 = draw.rng.sample(bank, 2)
    turns = {"turn_1": draw.cut(each.first, TEXT_TOKENS), "turn_2": draw.cut(each.second, TEXT_TOKENS)}
    return Case({"shown_1": shown_1, "shown_2": shown_2, **turns})


def _sessions(draw: _Draw, count: int) -> list[Case]:
    """Of two sessions in turn: parts of the one are never read beside the other's."""
    banks = []
    for said in sorted(task_data.sessions(draw.find), key=len):
        fit = list(dict.fromkeys(text for text in said if len(text) in SESSION_CHARS))
        if len(fit) >= BANK:
            banks.append([f"A message: {draw.cut(text, PART_TOKENS)}" for text in draw.rng.sample(fit, BANK)])
    banks = draw.rng.sample(banks, min(2, len(banks)))
    cases = []
    for number in range(count):
        parts = draw.rng.sample(banks[number % len(banks)], 3)
        words = sorted(set(re.findall(r"[A-Za-z_]{5,20}", " ".join(parts))))
        question = draw.rng.choice(SESSION_QUESTIONS).format(draw.rng.choice(words))
        inputs = dict(zip(("part_1", "part_2", "part_3"), parts, strict=True))
        cases.append(Case({**inputs, "question": question}))
    return cases


def _judge(draw: _Draw) -> Found[Choice]:
    return [], draw.shuffled(task_data.questions(draw.find))


def _judge_case(draw: _Draw, bank: Sequence[str], each: Choice) -> Case | None:
    names = ("one", "two", "three")
    orders = {"forwards": (0, 1, 2), "backwards": (2, 1, 0), "turned": (1, 2, 0)}  # as the workflow reads them
    if len(each.options) < len(names):
        return None
    right = each.options[each.right]
    wrong = draw.rng.sample([text for text in each.options if text != right], len(names) - 1)
    texts = draw.rng.sample([right, *wrong], len(names))
    at = texts.index(right)
    places = {step: (step, ("first", "second", "third")[order.index(at)]) for step, order in orders.items()}
    cut = {name: draw.cut(text, 40) for name, text in zip(names, texts, strict=True)}
    return Case({"question": draw.cut(each.text, 60), **cut}, places)


def _blockage(draw: _Draw, count: int) -> list[Case]:
    cases = []
    for _ in range(count):
        things = draw.rng.sample(THINGS, 4)
        colours, kinds = draw.rng.sample(COLOURS, 2), draw.rng.sample(PLACES, 2)
        places = [f"{colour} {kind}" for colour, kind in zip(colours, kinds, strict=True)]
        notes = [
            f"There is a {thing} in the {place}. What is in the {place}?"
            for thing, place in zip(things, places, strict=False)
        ]
        right = {"first_right": ("answer_1", things[0]), "second_right": ("answer_2", things[1])}
        named = {"note_1": notes[0], "note_2": notes[1], "place_1": places[0], "place_2": places[1]}
        cases.append(Case({**named, "things": draw.shuffled(things)}, right))
    return cases


def _leakage(draw: _Draw, count: int) -> list[Case]:
    cases = []
    for _ in range(count):
        words = draw.rng.sample(SECRETS, 4)
        secret = draw.rng.choice(words)
        cases.append(Case({"secret": secret, "words": words}, {"told": ("guess", secret)}))
    return cases


_LIMITED: dict[str, tuple[Callable[[_Draw], Found[Any]], Callable[[_Draw, Sequence[str], Any], Case | None]]] = {
    "gsm8k": (_gsm8k, _gsm8k_case),
    "hellaswag": (_hellaswag, _hellaswag_case),
    "human_eval": (_human_eval, _human_eval_case),
    "mt_bench": (_mt_bench, _mt_bench_case),
    "judge": (_judge, _judge_case),
}
"""Problems that are found, and the case that is made of one."""
_DRAWN: dict[str, Callable[[_Draw, int], list[Case]]] = {
    "sessions": _sessions, "blockage": _blockage, "leakage": _leakage,
}  # fmt: skip
TASKS = ("gsm8k", "hellaswag", "human_eval", "mt_bench", "sessions", "judge", "blockage", "leakage")


@dataclass(frozen=True, slots=True)
class Material:
    """A task, and what more of its inputs to learn from are made of: `problems` are those of `task.train` and of
    `more`, which are the inputs that a package has beyond all that was asked for."""

    task: Task
    draw: _Draw
    bank: Sequence[str]
    problems: Sequence[Any]
    more: Sequence[Case]
    spare: Sequence[Case]  # of a task that is drawn without end


def make_task(name: str, cut: Cut, *, num_train: int, num_held_out: int, seed: int = 1, find: Find = installed) -> Task:
    """Where a package has fewer problems than are asked for, inputs of both kinds are fewer in proportion.

    Raises SystemExit for a package that is not installed.
    """
    return make_material(name, cut, num_train=num_train, num_held_out=num_held_out, seed=seed, find=find).task


def make_material(
    name: str, cut: Cut, *, num_train: int, num_held_out: int, num_spare: int = 0, seed: int = 1, find: Find = installed
) -> Material:
    """As `make_task`. The task's inputs are the same whatever `num_spare` is."""
    draw, count = _Draw(cut, random.Random(f"{seed}/{name}"), find), num_train + num_held_out
    bank: list[str] = []
    problems: list[Any] = []
    more: list[Case] = []
    spare: list[Case] = []
    if name in _LIMITED:
        found, made_of = _LIMITED[name]
        bank, left = found(draw)
        made = [(each, case) for each in left if (case := made_of(draw, bank, each)) is not None]
        problems, cases = [each for each, _ in made], [case for _, case in made]
    else:
        cases = _DRAWN[name](draw, count + num_spare)
        cases, spare = cases[:count], cases[count:]
    if len(cases) < count:
        num_train = len(cases) * num_train // count
        num_held_out = len(cases) - num_train
    flow = FLOWS / f"{name}.yaml"
    workflow = parse_yaml(flow.read_text(encoding="utf-8"), flow.name)
    end = num_train + num_held_out
    task = Task(name, workflow, tuple(cases[:num_train]), tuple(cases[num_train:end]))
    held_out = problems[num_train:end]
    beyond = [(e, case) for e, case in zip(problems[end:], cases[end:], strict=False) if e not in held_out]
    problems, more = [*problems[:num_train], *(each for each, _ in beyond)], [case for _, case in beyond]
    return Material(task, draw, bank, problems, more, spare)


def case_of(material: Material, problem: Any) -> Case | None:
    """Of a problem such as `material.problems` are; None for one of which none can be made."""
    return _LIMITED[material.task.name][1](material.draw, material.bank, problem)


def cutter(encode: Callable[[str], Sequence[int]]) -> Cut:
    """By a model's own tokens."""

    def cut(text: str, num_tokens: int) -> str:
        if len(encode(text)) <= num_tokens:
            return text
        ends = [found.end() for found in re.finditer(r"\S+", text)]
        low, high = 0, len(ends)  # words that fit, words that do not
        while low + 1 < high:
            middle = (low + high) // 2
            low, high = (middle, high) if len(encode(text[: ends[middle - 1]])) <= num_tokens else (low, middle)
        return text[: ends[low - 1]] if low else text[:num_tokens]

    return cut
