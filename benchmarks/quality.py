"""How far other levels of fidelity are from `exact`: full-vocabulary KL divergence, agreement of the likeliest token.

The text is generated greedily under `exact`; then every message is encoded with that text under each level, each
reading its own earlier messages, and the logits of every generated token are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from inprocess import Story
from texts import FreshRun
from torch import Tensor
from workloads import FlatStep, Workload, unused

from laban.actors.engine.engine import Engine
from laban.actors.frames import Framing


@dataclass(frozen=True, slots=True)
class Quality:
    """`kl_*` in nats, KL(exact || this) a token; `top1` the share of tokens where both like the same one best."""

    kl_mean: float
    kl_p95: float
    top1: float
    num_tokens: int


class Teller(Protocol):
    """What gives the logits of a step whose text is given [tokens, vocab_size]; it is asked of all steps, in order."""

    def force(self, step: FlatStep, generated: tuple[int, ...]) -> Tensor: ...


def measure_quality(engine: Engine, framing: Framing, run: FreshRun, limit: int | None = None) -> Quality:
    """Of `direct`. `limit` caps the length of a generated text."""
    exact, texts = written(engine, framing, run, limit)
    return compare(run, texts, exact, {"direct": Story("direct", engine, framing, run, "direct")})["direct"]


def written(
    engine: Engine, framing: Framing, run: FreshRun, limit: int | None
) -> tuple[Story, dict[str, tuple[int, ...]]]:
    """A story to be told under `exact`, and the text of each step in it."""
    first = Story("written", engine, framing, run, "exact")
    texts: dict[str, tuple[int, ...]] = {}
    for wave in run.workload.waves():
        texts.update(first.generate(wave, limit))
    return Story("exact", engine, framing, run, "exact"), texts


def compare(
    run: FreshRun, texts: Mapping[str, tuple[int, ...]], exact: Story, others: Mapping[str, Teller]
) -> dict[str, Quality]:
    """Each of `others` with `exact`, on the same texts."""
    divergences: dict[str, list[Tensor]] = {name: [] for name in others}
    agreements: dict[str, list[Tensor]] = {name: [] for name in others}
    for step in run.workload.steps:
        text = texts[step.key]  # empty: the model stopped at once, and there is no token to compare
        wanted = exact.force(step, text).log_softmax(-1)
        for name, other in others.items():
            given = other.force(step, text).log_softmax(-1)
            divergences[name].append((wanted.exp() * (wanted - given)).sum(-1))
            agreements[name].append((wanted.argmax(-1) == given.argmax(-1)).float())
    found = {}
    for name in others:
        kl, same = torch.cat(divergences[name]), torch.cat(agreements[name])
        found[name] = Quality(float(kl.mean()), float(kl.quantile(0.95)), float(same.mean()), kl.numel())
    return found


def fewer_readers(workload: Workload, count: int) -> Workload:
    """`workload` with the first `count` of the steps that nothing reads, where more would say the same again."""
    dropped = set(list(unused(workload))[count:])
    return replace(workload, steps=tuple(step for step in workload.steps if step.key not in dropped))
