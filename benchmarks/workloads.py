"""What is measured: workflows flattened into explicit steps, one an instance, whose texts are forced.

The run state machine itself says which instances there are and what each reads, so a workload is what
the workflow would do, with every text of an exact length. One thing is lost: whoever wins a vote is known
beforehand, so a step that reads the winner does not wait for the ballots. It is so for every arm alike.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from flat import FixedMessage, FlatStep, Workload

from laban.cluster.workflow.parse import parse_dict, parse_yaml
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.schema import Workflow

# Whose course does not depend on what the model says.
MEASURED = ("branch_solve_merge", "parallel_debate", "retrieval", "tree_of_thoughts")
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PROMPT = "agent:"

DEBATE_TOKENS = 370
PANEL_VOTERS, PANEL_PROMPT_TOKENS, PANEL_MESSAGE_TOKENS, PANEL_OUT_TOKENS = 16, 64, tuple(range(256, 371, 16)), 44

COMMON_WORDS = """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system question work government number night point home water room mother area money story
fact month lot right study book eye job word business issue side kind head house service friend father power hour game
line end member law car city community name president team minute idea body information back parent face level office
door health person art war history party result change morning reason research girl moment air teacher force education
foot boy age policy music market sense nation plan college interest death experience effect class control field
development role effort rate heart show leader light voice wife police mind price report decision son view
relationship town road arm difference value building action season society director position player record paper space
ground form event official matter center couple site project activity star table need court oil situation cost
industry figure street image phone data picture practice piece land product doctor wall patient worker news test movie
north love support technology step computer type attention film tree source hair look window culture chance energy
period course summer plant opportunity term letter choice rule south floor campaign material population call economy
hospital church risk fire future bank west sport board subject officer rest performance top goal second bed order
author blood agency nature colour store sound movement page race concern series language response animal factor decade
article east artist scene stock career treatment approach size dog fund media sign thought list individual quality
pressure answer resource meeting success cup amount ability staff character growth loss degree region television box
training trade deal election feeling standard bill message analysis benefit lawyer section glass skill sister
professor operation stage
"""


class Encoder(Protocol):
    def encode(self, text: str) -> list[int]: ...


class Writer:
    """Random common words of an exact number of tokens."""

    def __init__(self, tokenizer: Encoder) -> None:
        self._tokenizer = tokenizer
        self._words = [word for word in COMMON_WORDS.split() if len(tokenizer.encode(f" {word}")) == 1]

    def words(self, num_tokens: int, rng: random.Random) -> str:
        """Raises ValueError where the tokenizer has no words of one token."""
        text = "".join(f" {rng.choice(self._words)}" for _ in range(num_tokens)) if self._words else ""
        if len(self._tokenizer.encode(text)) != num_tokens:
            raise ValueError(f"no text of {num_tokens} tokens can be written with this tokenizer")
        return text


def flatten(name: str, workflow: Workflow, *, num_tokens: int | None = None) -> Workload:
    """`workflow` with its default inputs. Each step makes `num_tokens`, or its own max_tokens if that is None.

    Raises ValueError for what has no flat form: external steps and reads of a part of a message.
    """
    run = Run(workflow, {})
    keys = _Keys()
    messages: dict[str, FixedMessage] = {}
    for message in run.messages.values():
        key = keys.add(message.key)
        messages[key] = FixedMessage(key, message.role, message.text, message.name)
    steps: list[FlatStep] = []
    while run.state == "running":
        for ready in run.ready():
            if ready.kind == "external" or any(r.begin is not None or r.end is not None for r in ready.reads):
                raise ValueError(f"{ready.address}: an external step or a partial read has no flat form")
            prompt = next((keys[r.key] for r in ready.reads if r.key.startswith(PROMPT)), None)
            steps.append(
                FlatStep(
                    keys.add(ready.address),
                    ready.address,
                    tuple(keys[read.key] for read in ready.reads),
                    prompt,
                    num_tokens or ready.sampling.max_tokens,
                    ready.role,
                    ready.name,
                    ready.prefill,
                )
            )
            run.finish(ready.address, "1")
    if run.state != "succeeded":
        raise ValueError(f"{name}: {run.error}")
    return Workload(name, messages, tuple(steps))


class _Keys:
    """Names that the language allows, for keys and addresses of a run."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def add(self, key: str) -> str:
        name = re.sub(r"[^A-Za-z0-9]+", "_", key).strip("_") + f"_{len(self._names)}"
        self._names[key] = name
        return name

    def __getitem__(self, key: str) -> str:
        return self._names[key]


def panel(writer: Writer, seed: int = 0, *, voters: int = PANEL_VOTERS, shrink: int = 1) -> dict[str, Any]:
    """Voters with instructions of their own, then the same messages, for each voter in another order."""
    rng = random.Random(seed)
    messages = {
        f"paper_{number}": {"role": "user", "text": writer.words(length // shrink, rng)}
        for number, length in enumerate(PANEL_MESSAGE_TOKENS, 1)
    }
    agents = {
        f"voter_{number}": {"prompt": writer.words(PANEL_PROMPT_TOKENS // shrink, rng)}
        for number in range(1, voters + 1)
    }
    steps = [
        {"step": f"ballot_{agent}", "agent": agent, "read": rng.sample(list(messages), len(messages))}
        for agent in agents
    ]
    return {
        "version": 1,
        "name": "panel",
        "sampling": {"max_tokens": max(2, PANEL_OUT_TOKENS // shrink)},
        "messages": messages,
        "agents": agents,
        "steps": steps,
        "outputs": {step["step"]: step["step"] for step in steps},
    }


def all_workloads(writer: Writer, *, quick: bool = False) -> dict[str, Workload]:
    """Every workload by name: some examples, `debate370` and `panel`. Quick ones have short texts."""
    found: dict[str, Workload] = {}
    for path in (EXAMPLES / f"{name}.yaml" for name in MEASURED):
        workflow = parse_yaml(path.read_text(encoding="utf-8"), path.name)
        found[path.stem] = flatten(path.stem, workflow)
        if path.stem == "parallel_debate":
            found["debate370"] = flatten("debate370", workflow, num_tokens=DEBATE_TOKENS)
    document = panel(writer, voters=4, shrink=4) if quick else panel(writer)
    found["panel"] = flatten("panel", parse_dict(document))
    if quick:
        found = {name: _shortened(workload) for name, workload in found.items()}
    return found


def _shortened(workload: Workload) -> Workload:
    short = 48 if workload.name == "debate370" else 8
    return replace(workload, steps=tuple(replace(s, num_tokens=min(short, s.num_tokens)) for s in workload.steps))


def unused(workload: Workload) -> Iterable[str]:
    """Steps that no other step reads: the workload's results."""
    read = {key for step in workload.steps for key in step.reads}
    return [step.key for step in workload.steps if step.key not in read]
