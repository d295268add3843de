"""More inputs to learn from for a task of tasks.py, of the problems that are learnt from alone: drawn again with parts
of others, and problems that the plain model writes itself after two of them as examples.

A problem of a model's own need not be a right one: an adapter learns from what its workflow reads, whatever that is.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from inprocess import run_calls
from task_data import Choice, Function, Problem, Talk
from task_runs import Desk
from tasks import Case, Material, case_of, sentences
from tuning import halves, varied

from laban.actors.calls import Call, Sampling
from laban.kvstore.encodings import View

WAVES = 8  # of problems that are written: later ones may be made of parts of earlier ones
TEMPERATURE = 0.9
Others = Sequence[Any]


@dataclass(frozen=True, slots=True)
class Way:
    """`vary` makes another problem of one, with parts of others. The model is shown problems as `shown` says, each
    after `label`, and what it writes after one is read by `read` (None: not of the kind). `stop` ends it."""

    vary: Callable[[random.Random, Any, Others], Any]
    label: str = ""
    shown: Callable[[Any], str] = str
    read: Callable[[random.Random, str, Others], Any | None] = lambda *_: None
    stop: str = "\n\n"
    max_tokens: int = 120


def _flat(text: str) -> str:
    return " ".join(text.split())


def _vary_problem(rng: random.Random, problem: Problem, others: Sequence[Problem]) -> Problem:
    own, *rest = (halves(sentences(each.text)) for each in (problem, *others))
    made = varied(own, rest, rng)
    return Problem(f"{made['begin']} {made['end']}", "")


def _read_problem(rng: random.Random, text: str, others: Others) -> Problem | None:
    return Problem(_flat(text), "") if len(sentences(_flat(text))) > 1 and len(text) > 60 else None


def _vary_choice(rng: random.Random, choice: Choice, others: Sequence[Choice]) -> Choice:
    right = choice.options[choice.right]
    wrong = [text for text in choice.options if text != right]
    wrong += [rng.choice(each.options) for each in rng.sample(others, min(len(others), len(wrong)))]
    parts = sentences(choice.text)
    text = " ".join(parts[rng.randrange(len(parts)) :]) if rng.random() < 0.5 else choice.text
    wrong = sorted(set(wrong) - {right})
    options = [right, *rng.sample(wrong, min(len(choice.options) - 1, len(wrong)))]
    return Choice(choice.topic, text, tuple(options), 0)


def _vary_question(rng: random.Random, choice: Choice, others: Sequence[Choice]) -> Choice:
    return replace(_vary_choice(rng, choice, others), text=choice.text) if rng.random() < 0.5 else choice


def _read_choice(rng: random.Random, text: str, others: Sequence[Choice]) -> Choice | None:
    *begin, end = sentences(_flat(text))
    topic, colon, first = " ".join(begin).partition(": ")
    if not colon:
        topic, first = rng.choice(others).topic, topic
    if len(first) < 20 or len(end) < 10:
        return None
    wrong = {rng.choice(each.options) for each in rng.sample(others, min(len(others), 6))} - {end}
    return Choice(topic, first, (end, *sorted(wrong)[:3]), 0) if len(wrong) > 2 else None


def _vary_function(rng: random.Random, function: Function, others: Sequence[Function]) -> Function:
    """With another's description, or without its examples."""
    head, mark, about = function.head.partition('"""')
    if rng.random() < 0.5:
        about = rng.choice(others).head.partition('"""')[2] or about
    if rng.random() < 0.5:
        about = re.split(r"\n\s*>>>", about)[0]
    return Function(f"{head}{mark}{about}", "")


def _read_function(rng: random.Random, text: str, others: Others) -> Function | None:
    head = '"""'.join(text.split('"""')[:2]).strip()
    return Function(f'{head}\n    """', "") if "def " in head and '"""' in head else None


def _vary_talk(rng: random.Random, talk: Talk, others: Sequence[Talk]) -> Talk:
    return replace(talk, second=rng.choice(others).second)


def _read_talk(rng: random.Random, text: str, others: Sequence[Talk]) -> Talk | None:
    first, _, second = _flat(text).partition(" Then: ")
    if len(second) < 10 or rng.random() < 0.3:
        second = rng.choice(others).second
    return Talk(first, second, "") if len(first) > 20 else None


WAYS: dict[str, Way] = {
    "gsm8k": Way(_vary_problem, "Problem: ", lambda each: _flat(each.text), _read_problem),
    "hellaswag": Way(
        _vary_choice, "Story: ", lambda e: _flat(f"{e.topic}: {e.text} {e.options[e.right]}"), _read_choice
    ),
    "human_eval": Way(
        _vary_function, "# A function\n", lambda each: each.head, _read_function, "# A function", max_tokens=150
    ),
    "mt_bench": Way(_vary_talk, "Question: ", lambda e: _flat(f"{e.first} Then: {e.second}"), _read_talk),
    "judge": Way(_vary_question),
}


def redrawn(material: Material, count: int, rng: random.Random) -> list[Case]:
    """At most so many, none of them held out, nor twice there."""
    if material.spare or not count:
        return _new(material, list(material.spare))[:count]
    way, found = WAYS[material.task.name], []
    for _ in range(2 * count):
        problem = rng.choice(material.problems)
        others = [each for each in material.problems if each is not problem]
        found.append(case_of(material, way.vary(rng, problem, others)))
    return _new(material, found)[:count]


def written(desk: Desk, material: Material, count: int, rng: random.Random) -> list[Case]:
    """At most so many, of problems of which none was there before: none where `WAYS` has no label."""
    way = WAYS.get(material.task.name)
    if way is None or not way.label:
        return []
    problems, found = list(material.problems), list[Case | None]()
    for wave in range(WAVES):
        own = []
        for text in _texts(desk, material, way, -(-count // WAVES), rng, wave):
            problem = way.read(rng, text, problems)
            if problem is not None:
                own.append(problem)
                found.append(case_of(material, problem))
        problems += own
    return _new(material, found)


def _texts(desk: Desk, material: Material, way: Way, count: int, rng: random.Random, wave: int) -> list[str]:
    engine, calls = desk.engine, []
    for number in range(count):
        shown = [f"{way.label}{way.shown(each)}" for each in rng.sample(material.problems, 2)]
        tokens = engine.tokenizer.encode("\n\n".join((*shown, way.label.rstrip(" "))))
        sampling = Sampling(way.max_tokens, TEMPERATURE, seed=rng.randrange(1 << 30), stop=(way.stop,), drafting=False)
        name = f"write-{material.task.name}-{wave}-{number}"
        calls.append(Call(name, f"{engine.info.namespace}/write", View(), 0, tuple(tokens), (), sampling))
    return [event.text.strip() for event in run_calls(engine, calls).values()]


def _new(material: Material, cases: Sequence[Case | None]) -> list[Case]:
    """Without those that are held out, are learnt from anyway, or were there before."""
    known = {str(case.inputs) for case in (*material.task.train, *material.more, *material.task.held_out)}
    found = []
    for case in cases:
        if case is not None and str(case.inputs) not in known:
            known.add(str(case.inputs))
            found.append(case)
    return found
