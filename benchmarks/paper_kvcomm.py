"""KVCOMM's table: agents in a row, each with a prompt of its own, who read the question and all that was said before.

Agent m's time to its first token is the same whoever comes after it, so five agents are the rows of two to five.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from flat import FixedMessage, FlatStep, Workload
from paper_stage import ARMS, Arm, Frames, Prose, Script, Stage, Taken, act, now_s, perform, rest, write_script
from peer_kvcomm import GAMMA, KvcommStage
from report import Clock, Row

from laban.actors.engine.engine import Engine

KVCOMM, KVCOMM_ALL = Arm("kvcomm"), Arm("kvcomm_all")
ANY = 100.0  # nats a token: every prediction that can be made
TARGET_GPU, TARGET_CPU, COST_TARGET = 6.0, 7.8, 1.3


@dataclass(frozen=True, slots=True)
class Lengths:
    """In tokens, as the paper has them."""

    question: int = 1024
    prefix: int = 512
    out: int = 512
    agents: int = 5

    def divided(self, by: int) -> Lengths:
        return Lengths(self.question // by, self.prefix // by, self.out // by, self.agents)


def connected(lengths: Lengths) -> Workload:
    """Agent m reads its own prefix, the question, and what the agents before it said."""
    names = range(1, lengths.agents + 1)
    messages = {f"prefix_{n}": FixedMessage(f"prefix_{n}", "system", "") for n in names}
    messages["question"] = FixedMessage("question", "user", "")
    steps = tuple(
        FlatStep(
            f"agent_{n}", f"agent_{n}",
            (f"prefix_{n}", "question", *(f"agent_{before}" for before in range(1, n))),
            f"prefix_{n}", lengths.out,
        )
        for n in names
    )  # fmt: skip
    return Workload("connected", messages, steps)


def readers(lengths: Sequence[int], prefix: int, out: int) -> tuple[Workload, dict[str, int]]:
    """Reader m has a prefix of its own and reads the first m of these texts. And the messages' lengths."""
    texts = {f"text_{n}": FixedMessage(f"text_{n}", "user", "") for n in range(1, len(lengths) + 1)}
    own = {f"prefix_{n}": FixedMessage(f"prefix_{n}", "system", "") for n in range(1, len(lengths) + 1)}
    steps = tuple(
        FlatStep(f"reader_{n}", f"reader_{n}", (f"prefix_{n}", *list(texts)[:n]), f"prefix_{n}", out)
        for n in range(1, len(lengths) + 1)
    )
    sizes = dict(zip(texts, lengths, strict=True)) | dict.fromkeys(own, prefix)
    return Workload("readers", {**own, **texts}, steps), sizes


@dataclass(slots=True)
class Table:
    """`compared` tokens of each answer are compared (none `scored` on a random model) and decoded while timed."""

    engine: Engine
    prose: Prose
    frames: Frames
    clock: Clock
    compared: int
    scored: bool
    repetitions: int
    arms: Sequence[str] = tuple(arm.name for arm in ARMS)
    rows: list[Row] = field(default_factory=list)

    @property
    def on_card(self) -> bool:
        return self.engine.runner.device.type == "cuda"

    @property
    def target(self) -> float:
        return TARGET_GPU if self.on_card else TARGET_CPU

    def stages(self, *names: str) -> list[Stage]:
        self.engine.store.evict_all()
        return [Stage(self.engine, arm) for arm in ARMS if arm.name in names and arm.name in self.arms]

    def new(self, name: str, lengths: Lengths, num_anchors: int, *, whole: bool = False) -> None:
        """The agents are the same each time, and all they read is new. With `num_anchors` beside KVCOMM's arms.

        `whole` runs decode every token, too.
        """
        workload = connected(lengths)
        sizes = {key: lengths.question if key == "question" else lengths.prefix for key in workload.messages}
        first = self._script(workload, sizes)
        prefixes = {key: tokens for key, tokens in first.given.items() if key != "question"}
        stages = self.stages("prefix", "prefix_shared_first", "direct", "corrected", "blended")
        seen = None
        if num_anchors:
            filled, seen = self._filled(name, first, num_anchors, sizes, prefixes)
            everything = KvcommStage(self.engine, KVCOMM_ALL, gamma=1.0, pools=filled.pools, _held=filled._held)
            stages += [filled, everything]
        for stage in stages:
            stage.give(first)
            stage.encode(prefixes)
        taken = {stage.arm.name: Taken() for stage in stages}
        for number in range(self.repetitions + self.on_card):
            self.clock.say(f"{name}: run {number + 1}")
            script = self._script(workload, sizes, prefixes)
            for stage in stages:
                stage.give(script)
            warms_up = number < self.on_card  # kernels are compiled at their first use
            into = {stage.arm.name: Taken() for stage in stages} if warms_up else taken
            act(script, stages, into, scored=self.scored and not warms_up, turn=number)
        self.rows += self._rows(name, taken)
        for stage in stages:
            if isinstance(stage, KvcommStage):
                at = f"{name}.{stage.arm.name}"
                self.rows += [
                    Row(f"{at}.accepted", stage.num_accepted / max(1, stage.num_asked), ""),
                    Row(f"{at}.calls_reusing", stage.num_reusing / max(1, stage.num_calls), ""),
                    Row(f"{at}.matching", 1000 * stage.matching_s / max(1, stage.num_calls), "ms", better="lower"),
                ]
        if seen is not None:
            self._seen(name, seen, stages)
        for stage in stages:
            if isinstance(stage, KvcommStage) and stage.arm is KVCOMM:
                stage.drop()
        if whole:
            self._whole(name, workload, sizes, prefixes)

    def again(self, name: str, lengths: Sequence[int], prefix: int, num_views: int, *, is_cost: bool = False) -> None:
        """The texts are the same each time, and have been read `num_views` times; who reads them is new.

        `is_cost` is what `corrected` costs beside `direct`: any prediction will do.
        """
        workload, sizes = readers(lengths, prefix, 2 * self.compared)
        first = self._script(workload, sizes)
        texts = {key: tokens for key, tokens in first.given.items() if key.startswith("text")}
        arms = ("prefix", "direct", "corrected") if is_cost else tuple(arm.name for arm in ARMS)
        stages = self.stages(*arms)
        corrected = next((stage for stage in stages if stage.arm.name == "corrected"), None)
        if corrected is not None:
            corrected.tolerance = ANY if is_cost else corrected.tolerance
            self.clock.say(f"{name}: {num_views} views to learn from")
            learning_s = self._learn(corrected, workload, sizes, texts, num_views)
        for stage in stages:
            stage.give(first)
            if stage.arm.fidelity in ("direct", "blended"):
                stage.encode(texts)
            if stage.arm.shared_first:  # one order for all: the whole of it is a prefix that stands
                stage.say(first, workload.steps[-1])
        taken = {stage.arm.name: Taken() for stage in stages}
        for number in range(self.repetitions + self.on_card):
            self.clock.say(f"{name}: run {number + 1}")
            script = self._script(workload, sizes, texts)
            for stage in stages:
                stage.give(script)
                stage.encode(key for key in script.given if key.startswith("prefix"))
            warms_up = number < self.on_card
            into = {stage.arm.name: Taken() for stage in stages} if warms_up else taken
            act(script, stages, into, scored=self.scored and not warms_up, turn=number)
        if is_cost:
            self.rows += list(self._costs(name, taken))
            return
        self.rows += self._rows(name, taken)
        if corrected is None:
            return
        saved_s = (fmean(_ttfts(taken["prefix"])) - fmean(_ttfts(taken["corrected"]))) / 1000
        self.rows.append(Row(f"{name}.corrected.learning", learning_s, "s", better="lower"))
        if saved_s > 0:
            self.rows.append(Row(f"{name}.corrected.calls_to_break_even", learning_s / saved_s, "", better="lower"))

    def _script(
        self, workload: Workload, sizes: dict[str, int], fixed: dict[str, tuple[int, ...]] | None = None
    ) -> Script:
        wanted = min(self.compared, min(step.num_tokens for step in workload.steps))
        script = write_script(workload, sizes, self.frames, self.prose, wanted)
        script.given.update(fixed or {})
        return script

    def _filled(
        self, name: str, first: Script, num_anchors: int, sizes: dict[str, int], prefixes: dict[str, tuple[int, ...]]
    ) -> tuple[KvcommStage, Script]:
        """With full pools: dense runs until every slot has its anchors. And the last run."""
        stage = KvcommStage(self.engine, KVCOMM, gamma=0.0)
        script, spent_s = first, 0.0
        for number in range(num_anchors):
            if number % 5 == 0:
                self.clock.say(f"{name}: dense run {number + 1} of {num_anchors} fills KVCOMM's pools")
            script = self._script(first.workload, sizes, prefixes)
            began = now_s()
            stage.give(script)
            for step in script.workload.steps:
                stage.say(script, step)
            stage.commit()
            spent_s += now_s() - began
        self.rows.append(Row(f"{name}.kvcomm.anchors", float(num_anchors), ""))
        self.rows.append(Row(f"{name}.kvcomm.filling", spent_s, "s", better="lower"))
        held = {s.encoding_id: s for p in stage.pools.values() for a in p.anchors for s in (a.base, *a.trues.values())}
        tokens = sum(spec.num_tokens for spec in held.values())
        size = tokens * self.engine.info.bytes_per_token
        self.rows.append(Row(f"{name}.kvcomm.anchors_memory", size / 2**30, "GiB", better="lower"))
        stage.gamma = GAMMA
        stage.num_asked = stage.num_accepted = stage.num_calls = stage.num_reusing = 0
        stage.matching_s = 0.0
        return stage, script

    def _seen(self, name: str, script: Script, stages: Sequence[Stage]) -> None:
        """One of the very runs that KVCOMM's pools were filled with, once more."""
        if not self.scored:
            return
        self.clock.say(f"{name}: a run that the pools have")
        shown = [stage for stage in stages if stage.arm.name in ("prefix", "direct", "kvcomm_all")]
        for stage in shown:
            stage.give(script)
        taken = {stage.arm.name: Taken() for stage in shown}
        act(script, shown, taken, scored=True, writes=False)
        for stage in shown[1:]:
            self.rows += quality_rows(f"{name}.seen.{stage.arm.name}", taken[stage.arm.name])

    def _whole(
        self, name: str, workload: Workload, sizes: dict[str, int], prefixes: dict[str, tuple[int, ...]]
    ) -> None:
        """Every token decoded: what a better first token is of all that."""
        walls = {}
        for stage in self.stages("prefix", "direct"):
            self.clock.say(f"{name}: all tokens, {stage.arm.name}")
            script = self._script(workload, sizes, prefixes)
            stage.give(script)
            stage.encode(prefixes)
            found = Taken()
            perform(script, stage, found)
            walls[stage.arm.name] = found.walls_s[0]
            self.rows.append(Row(f"{name}.{stage.arm.name}.end_to_end", found.walls_s[0], "s", better="lower"))
        self.rows.append(Row(f"{name}.direct.end_to_end_speedup", walls["prefix"] / walls["direct"], "x"))

    def _learn(
        self, stage: Stage, workload: Workload, sizes: dict[str, int], texts: dict[str, tuple[int, ...]], num_views: int
    ) -> float:
        """The texts are read by so many others. Seconds that it took beyond encoding them, as it did for these."""
        stage_tolerance, stage.tolerance = stage.tolerance, 1e-9  # encoded each time: pools are full when it begins
        spent_s = 0.0
        for _ in range(num_views):
            script = self._script(workload, sizes, texts)
            stage.give(script)
            stage.encode([workload.steps[-1].prompt or ""])
            stage.say(script, workload.steps[-1])
            spent_s += rest(stage.engine)
        stage.tolerance = stage_tolerance
        return spent_s

    def _rows(self, name: str, taken: dict[str, Taken]) -> list[Row]:
        """Times beside quality, for each arm."""
        dense = fmean(_ttfts(taken["prefix"]))
        rows = []
        for arm, found in taken.items():
            at = f"{name}.{arm}"
            for key, times in found.firsts_ms.items():
                rows.append(Row(f"{at}.{key}.ttft", fmean(times), "ms", better="lower"))
            if arm != "prefix":
                target = self.target if arm == "direct" and name == "new" else None
                rows.append(Row(f"{at}.speedup_2_to_5", dense / fmean(_ttfts(found)), "x", target))
                # All agents, and what it does for itself while nobody waits.
                charged = [sum(_all(each)) + 1000 * each.rest_s for each in (taken["prefix"], found)]
                rows.append(Row(f"{at}.speedup_charged", charged[0] / charged[1], "x"))
            rows.append(Row(f"{at}.encoded", found.encoded / len(_all(found)), "tokens", better="lower"))
            rows += quality_rows(at, found)
        return rows

    def _costs(self, name: str, taken: dict[str, Taken]) -> Iterator[Row]:
        for arm, found in taken.items():
            for key, times in found.firsts_ms.items():
                yield Row(f"{name}.{arm}.{key}.ttft", fmean(times), "ms", better="lower")
        for key, times in taken["corrected"].firsts_ms.items():
            part = fmean(times) / fmean(taken["direct"].firsts_ms[key])
            yield Row(f"{name}.corrected.{key}.over_direct", part, "x", COST_TARGET, "lower")
        yield Row(f"{name}.corrected.encoded", float(taken["corrected"].encoded), "tokens", better="lower")


def _all(found: Taken) -> list[float]:
    return [time_ms for times in found.firsts_ms.values() for time_ms in times]


def _ttfts(found: Taken) -> list[float]:
    """Of all but the first agent."""
    return [time_ms for times in list(found.firsts_ms.values())[1:] for time_ms in times]


def quality_rows(name: str, found: Taken) -> list[Row]:
    """None where nothing was compared."""
    kl = sorted(found.all_kl)
    if not kl:
        return []
    return [
        Row(f"{name}.kl_mean", fmean(kl), "nats", better="lower"),
        Row(f"{name}.kl_p95", kl[int(0.95 * (len(kl) - 1))], "nats", better="lower"),
        Row(f"{name}.top1_agreement", fmean(found.agrees), ""),
    ]
