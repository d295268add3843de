"""A workflow flattened into explicit steps, one an instance, with the order of what each reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FixedMessage:
    """A message that is given; an agent's prompt is one."""

    key: str
    role: str
    text: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class FlatStep:
    """One instance. `reads` are keys of fixed messages and of other steps, as the author ordered them."""

    key: str
    address: str
    reads: tuple[str, ...]
    prompt: str | None  # which of `reads` is its agent's prompt
    num_tokens: int  # generated
    role: str = "assistant"
    name: str | None = None
    prefill: str = ""


@dataclass(frozen=True, slots=True)
class Workload:
    """`messages` in the order of declaration, `steps` in the order in which they become ready."""

    name: str
    messages: Mapping[str, FixedMessage]
    steps: tuple[FlatStep, ...]

    def shared_first(self, step: FlatStep) -> tuple[str, ...]:
        """The step's reads in the one order that all steps share: by creation, its own prompt as the last.

        What its author put after all generated messages (an instruction, a ballot) stays behind these.
        """
        made = {s.key: number for number, s in enumerate(self.steps)}
        given = {key: number for number, key in enumerate(self.messages)}
        others = [key for key in step.reads if key != step.prompt]
        generated = [key for key in others if key in made]
        last = others.index(generated[-1]) if generated else len(others)
        before = [key for number, key in enumerate(others) if key in given and number < last]
        after = [key for number, key in enumerate(others) if key in given and number > last]
        ordered = [*sorted(before, key=given.__getitem__), *sorted(generated, key=made.__getitem__), *after]
        return (*ordered, step.prompt) if step.prompt is not None else tuple(ordered)

    def waves(self) -> list[list[FlatStep]]:
        """The steps in groups that are ready together."""
        waves: list[list[FlatStep]] = []
        depth: dict[str, int] = {}
        for step in self.steps:
            depth[step.key] = max((depth[key] + 1 for key in step.reads if key in depth), default=0)
            if depth[step.key] == len(waves):
                waves.append([])
            waves[depth[step.key]].append(step)
        return waves
