"""The texts of one run of a workload, its workflow document for each arm, and its prompts as token ids."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workloads import FixedMessage, FlatStep, Workload, Writer, unused

from laban.actors.frames import Framing
from laban.cluster.workflow.fidelity import Fidelity

HEAD_TOKENS = 4  # of the salt: 300^4 of them


@dataclass(frozen=True)
class FreshRun:
    """A workload with texts that no earlier run had: a salt at the head of every fixed message and prompt.

    All runs of a workload have the same lengths. `heads` has the salts by message, `step_heads` one for
    each step, for where nothing at all may be shared, `forced` the text of each step.
    """

    workload: Workload
    heads: Mapping[str, str]
    step_heads: Mapping[str, str]
    forced: Mapping[str, str]

    def text(self, key: str) -> str:
        return self.heads[key] + self.workload.messages[key].text

    def reads(self, step: FlatStep, shared_first: bool) -> tuple[str, ...]:
        return self.workload.shared_first(step) if shared_first else step.reads


def fresh_run(workload: Workload, writer: Writer, rng: random.Random) -> FreshRun:
    def head() -> str:
        return f"{writer.words(HEAD_TOKENS, rng)}\n"

    return FreshRun(
        workload,
        {key: head() for key in workload.messages},
        {step.key: head() for step in workload.steps},
        {step.key: writer.words(step.num_tokens, rng) for step in workload.steps},
    )


def document(run: FreshRun, fidelity: Fidelity, *, shared_first: bool = False, salted: bool = False) -> dict[str, Any]:
    """The workflow that runs it. `salted`: each step's first message is its own copy, with a salt of its own, so
    that whatever follows can be shared with no one (the template's default system prompt still is)."""
    workload = run.workload
    messages = {key: _message(m, run.text(key)) for key, m in workload.messages.items()}
    steps = []
    for step in workload.steps:
        reads = list(run.reads(step, shared_first))
        if salted:
            first = workload.messages[reads[0]]
            copy = f"first_of_{step.key}"
            messages[copy] = _message(first, run.step_heads[step.key] + first.text)
            reads[0] = copy
        entry: dict[str, Any] = {
            "step": step.key,
            "read": reads,
            "role": step.role,
            "prefill": _raw(step.prefill),
            "sampling": {"max_tokens": step.num_tokens, "temperature": 0, "forced_text": run.forced[step.key]},
        }
        if step.name is not None:
            entry["name"] = _raw(step.name)
        steps.append(entry)
    outputs = {key: key for key in unused(workload)}
    name = workload.name
    return {
        "version": 1,
        "name": name,
        "fidelity": fidelity,
        "messages": messages,
        "steps": steps,
        "outputs": outputs,
    }


def prompt_ids(
    run: FreshRun, step: FlatStep, framing: Framing, made: Mapping[str, Sequence[int]], *, shared_first: bool = False
) -> list[int]:
    """The framed prompt of `step` as one list of token ids: what an engine without views is given.

    `made` holds the generated token ids of the steps that it reads.
    """
    messages = run.workload.messages
    makers = {maker.key: maker for maker in run.workload.steps}
    reads = run.reads(step, shared_first)
    roles = [messages[key].role if key in messages else makers[key].role for key in reads]
    ids = list(framing.root(roles[0] if roles else step.role))
    for number, key in enumerate(reads):
        if key in messages:
            m = messages[key]
            ids += framing.message(m.role, run.text(key), m.name, first=number == 0)
        else:
            ids += generated_ids(makers[key], framing, made[key])
    return ids + list(framing.header(step.role, step.name, first=not reads, prefill=step.prefill))


def generated_ids(step: FlatStep, framing: Framing, generated: Sequence[int]) -> list[int]:
    """A generated message in whole, as its readers see it."""
    header = framing.header(step.role, step.name, prefill=step.prefill)
    return [*header, *generated, *framing.terminator(step.role, after_stop_token=False)]


def _message(message: FixedMessage, text: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"text": _raw(text), "role": message.role}
    if message.name is not None:
        entry["name"] = message.name
    return entry


def _raw(text: str) -> str:
    """`text` as a template that renders to itself."""
    return f"{{% raw %}}{text}{{% endraw %}}" if "{" in text else text
