"""Prompt Choreography's workflows: tree of thoughts over branches and voters, and its two debates.

Lengths are the paper's, as its data show them: proposals of 100 tokens, votes of 44, debate messages of 240 and 370.
`prefix` is a fairer rival than the paper's, whose baseline encodes the voters' one prompt once for each of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from flat import FixedMessage, FlatStep, Workload
from paper_kvcomm import quality_rows
from paper_stage import ARMS, Frames, Prose, Script, Stage, Taken, act, perform, write_script
from report import Clock, Row

from laban.actors.engine.engine import Engine

PROBLEM, INSTRUCTIONS = 192, 64
TTFT, END_TO_END = "ttft_speedup", "end_to_end_speedup"
CLAIMED = {"tot_b8v4": (3.6, 1.03), "debate_in_turns": (2.0, 1.01), "debate_a3": (6.2, 1.03)}
"""By the paper: first tokens and the whole run, against its own baseline."""
TIMED = ("prefix", "prefix_shared_first", "direct", "blended")


@dataclass(slots=True)
class _Play:
    """A workload in the making."""

    name: str
    messages: dict[str, FixedMessage] = field(default_factory=dict)
    steps: list[FlatStep] = field(default_factory=list)

    def message(self, key: str, role: str = "user") -> str:
        self.messages[key] = FixedMessage(key, role, "")
        return key

    def step(self, key: str, prompt: str, reads: Sequence[str], num_tokens: int) -> str:
        self.steps.append(FlatStep(key, key, (prompt, *reads), prompt, num_tokens))
        return key

    def done(self) -> Workload:
        return Workload(self.name, self.messages, tuple(self.steps))


def tree_of_thoughts(branches: int, voters: int, by: int = 1, *, shuffled: bool = False) -> Workload:
    """Branches propose, voters read all proposals, and one writes up a proposal. `shuffled`: each voter reads them in
    an order of its own, as whoever fears for the place of an answer would have it."""
    name = f"tot_b{branches}v{voters}" + ("_shuffled" if shuffled else "")
    play, rng = _Play(name), random.Random(branches * 100 + voters)
    problem = play.message("problem")
    think, vote, finish = (play.message(key, "system") for key in ("think", "vote", "finish"))
    proposals = [play.step(f"propose_{n}", think, [problem], 100 // by) for n in range(1, branches + 1)]
    for n in range(1, voters + 1):
        order = rng.sample(proposals, branches) if shuffled else proposals
        play.step(f"vote_{n}", vote, [problem, *order], 44 // by)
    play.step("finish_up", finish, [problem, proposals[0]], 256 // by)
    return play.done()


def debate_in_turns(by: int = 1) -> Workload:
    """For, against and a moderator, one after another, three rounds; each reads all that was said."""
    play, said = _Play("debate_in_turns"), list[str]()
    problem = play.message("problem")
    prompts = {side: play.message(f"prompt_{side}", "system") for side in ("for", "against", "moderator")}
    for sides in (("for", "against"), *[("for", "against", "moderator")] * 2, ("moderator",)):
        for side in sides:
            said.append(play.step(f"{side}_{len(said)}", prompts[side], [problem, *said], 240 // by))
    return play.done()


def debate_at_once(agents: int, by: int = 1, rounds: int = 4) -> Workload:
    """Agents answer, each reading its own answers and the others' last ones."""
    play = _Play(f"debate_a{agents}")
    problem = play.message("problem")
    prompts = [play.message(f"prompt_{n}", "system") for n in range(agents)]
    own: list[list[str]] = [[] for _ in prompts]
    for number in range(rounds):
        last = [answers[-1] for answers in own if answers]
        for n, prompt in enumerate(prompts):
            others = [key for key in last if key not in own[n]]
            own[n].append(play.step(f"answer_{number}_{n}", prompt, [problem, *own[n][:number], *others], 370 // by))
    return play.done()


@dataclass(slots=True)
class Choreography:
    """`by` divides what is generated. Quality is measured where `scored`, on the first `compared` tokens."""

    engine: Engine
    prose: Prose
    frames: Frames
    clock: Clock
    compared: int
    scored: bool
    repetitions: int
    by: int = 1
    arms: Sequence[str] = TIMED
    rows: list[Row] = field(default_factory=list)

    def measure(self, workload: Workload) -> None:
        taken = {name: Taken() for name in TIMED if name in self.arms}
        for number in range(self.repetitions):
            script = self._script(workload)
            names = list(taken)[:: -1 if number % 2 else 1]
            for name in names:
                self.clock.say(f"{workload.name}: {name}, run {number + 1}")
                (stage,) = self._stages(name)
                stage.give(script)
                perform(script, stage, taken[name])
        quality = {name: Taken() for name in taken}
        if self.scored:
            self.clock.say(f"{workload.name}: quality")
            script, stages = self._script(workload), self._stages(*(n for n in taken if n != "prefix_shared_first"))
            for stage in stages:
                stage.give(script)
            act(script, stages, quality, scored=True)
        for name, found in taken.items():
            self.rows += self._rows(workload.name, name, found, taken["prefix"])
            self.rows += quality_rows(f"{workload.name}.{name}", quality[name])

    def _script(self, workload: Workload) -> Script:
        sizes = {key: PROBLEM if key == "problem" else INSTRUCTIONS for key in workload.messages}
        wanted = min(self.compared, min(step.num_tokens for step in workload.steps))
        return write_script(workload, sizes, self.frames, self.prose, wanted)

    def _stages(self, *names: str) -> list[Stage]:
        """With nothing in the store."""
        self.engine.store.evict_all()
        return [Stage(self.engine, arm) for arm in ARMS if arm.name in names]

    def _rows(self, workload: str, arm: str, found: Taken, dense: Taken) -> Iterator[Row]:
        at = f"{workload}.{arm}"
        yield Row(f"{at}.ttft", fmean(found.waits_ms), "ms", better="lower")
        yield Row(f"{at}.end_to_end", fmean(found.walls_s), "s", better="lower")
        yield Row(f"{at}.encoded", found.encoded / len(found.walls_s), "tokens", better="lower")
        if arm != "prefix":
            claimed = CLAIMED.get(workload, (None, None)) if arm == "direct" else (None, None)
            yield Row(f"{at}.{TTFT}", fmean(dense.waits_ms) / fmean(found.waits_ms), "x", claimed[0])
            yield Row(f"{at}.{END_TO_END}", fmean(dense.walls_s) / fmean(found.walls_s), "x", claimed[1])
