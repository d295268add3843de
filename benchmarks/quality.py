"""How far `direct` is from `exact`: full-vocabulary KL divergence and agreement of the likeliest token.

The text is generated greedily under `exact`; then every message is encoded with that text under both fidelities,
each reading its own earlier messages, and the logits of every generated token are compared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from inprocess import Story
from texts import FreshRun
from workloads import Workload, unused

from laban.actors.engine.engine import Engine
from laban.actors.frames import Framing


@dataclass(frozen=True, slots=True)
class Quality:
    """`kl_*` in nats, KL(exact || direct) a token; `top1` the share of tokens where both like the same one best."""

    kl_mean: float
    kl_p95: float
    top1: float
    num_tokens: int


def measure_quality(engine: Engine, framing: Framing, run: FreshRun, limit: int | None = None) -> Quality:
    """`limit` caps the length of a generated text."""
    written = Story("written", engine, framing, run, "exact")
    texts: dict[str, tuple[int, ...]] = {}
    for wave in run.workload.waves():
        texts.update(written.generate(wave, limit))
    exact = Story("exact", engine, framing, run, "exact")
    direct = Story("direct", engine, framing, run, "direct")
    divergences, agreements = [], []
    for step in run.workload.steps:
        if not texts[step.key]:  # the model stopped at once: there is no token to compare
            for story in (exact, direct):
                story.force(step, ())
            continue
        wanted = exact.force(step, texts[step.key]).log_softmax(-1)
        given = direct.force(step, texts[step.key]).log_softmax(-1)
        divergences.append((wanted.exp() * (wanted - given)).sum(-1))
        agreements.append((wanted.argmax(-1) == given.argmax(-1)).float())
    kl, same = torch.cat(divergences), torch.cat(agreements)
    return Quality(float(kl.mean()), float(kl.quantile(0.95)), float(same.mean()), kl.numel())


def fewer_readers(workload: Workload, count: int) -> Workload:
    """`workload` with the first `count` of the steps that nothing reads, where more would say the same again."""
    dropped = set(list(unused(workload))[count:])
    return replace(workload, steps=tuple(step for step in workload.steps if step.key not in dropped))
