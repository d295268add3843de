"""Plays a workflow without a cluster: each step that is ready is answered at once, from a script."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from laban.cluster.workflow.parse import parse_yaml
from laban.cluster.workflow.run import ReadyStep, Run

HEAD = "version: 1\nname: t\nmessages: {q: hi}\nagents: {ann: Be Ann, bob: Be Bob, cleo: Be Cleo}\n"


@dataclass
class Played:
    """A run played to its end: the steps in the order in which they began."""

    run: Run
    begun: dict[str, ReadyStep] = field(default_factory=dict)

    @property
    def order(self) -> str:
        return " ".join(self.begun)

    def reads(self, address: str) -> str:
        return " ".join(ref.key for ref in self.begun[address].reads if not ref.key.startswith("agent:"))

    def args(self, address: str) -> Mapping[str, object]:
        task = self.begun[address].task
        assert task is not None
        return task.args


def play(body: str, answers: Mapping[str, str | Exception] | None = None, **inputs: Any) -> Played:
    """`answers` by address, or by step; a step without one says "x"."""
    return play_file(HEAD + body, answers, **inputs)


def play_file(text: str, answers: Mapping[str, str | Exception] | None = None, **inputs: Any) -> Played:
    """The same of a whole file."""
    run = Run(parse_yaml(text), inputs)
    played = Played(run)
    given = answers or {}
    while run.state == "running":
        ready = run.ready()
        assert ready, [(i.address, i.state) for i in run.instances]
        for step in ready:
            if step.address in run.skipped():
                continue
            played.begun[step.address] = step
            answer = given.get(step.address, given.get(step.step, "x"))
            problem = step.problem or (
                str(answer) if isinstance(answer, Exception) else run.unfit(step.address, answer)
            )
            if problem:
                run.fail(step.address, problem)
            else:
                run.finish(step.address, str(answer))
    assert not any(i.state in ("waiting", "ready", "running") for i in run.instances)
    return played
