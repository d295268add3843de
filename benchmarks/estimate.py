"""How long a run will take, roughly: tokens to encode and iterations to decode, on 2 cores of an AMD EPYC."""

from __future__ import annotations

from samples import LABAN_ARMS
from texts import HEAD_TOKENS
from workloads import Workload

from laban.actors.frames import Framing

ENCODED_PER_S = 450.0
DECODE_ITERATION_S = {1: 0.07, 4: 0.1, 16: 0.2}  # by batch
PEER_ITERATION_S = {1: 0.08, 4: 0.16, 16: 0.3}
START_S = 45.0  # cluster, models, first calls
ENGINE_S, QUICK_ENGINE_S = 220.0, 60.0  # divergence and decode speed
SHARES_ALL = ("direct", "prefix_shared_first", "vllm_shared_first")


def expected_s(planned: list[tuple[Workload, str]], framing: Framing, *, quick: bool = False) -> float:
    return (
        START_S
        + (QUICK_ENGINE_S if quick else ENGINE_S)
        + sum(_arm_s(workload, arm, framing) for workload, arm in planned)
    )


def _arm_s(workload: Workload, arm: str, framing: Framing) -> float:
    size = {m.key: HEAD_TOKENS + len(framing.message(m.role, m.text)) for m in workload.messages.values()}
    size |= {step.key: step.num_tokens for step in workload.steps}
    read = sum(size[key] for step in workload.steps for key in step.reads)
    unique = sum(size[key] for key in workload.messages)
    encoded = unique if arm in SHARES_ALL else read
    table = DECODE_ITERATION_S if arm in LABAN_ARMS else PEER_ITERATION_S
    decoding = 0.0
    for wave in workload.waves():
        batch = next((b for b in table if len(wave) <= b), max(table))
        decoding += max(step.num_tokens for step in wave) * table[batch]
    return encoded / ENCODED_PER_S + decoding
