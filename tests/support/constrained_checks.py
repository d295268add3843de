"""Constrained calls beside others on an engine of 128 tokens: what they are asked, and what is to come of it."""

from __future__ import annotations

from dataclasses import replace

import torch
from constrained_cases import STOP, byte_level_tokenizer, constrained
from engine_harness import Driver, make_engine
from sampling_cases import chi_square
from shard_processes import DrivenLockstep, sharded_engine

from laban.actors.calls import Sampling
from laban.actors.engine.engine import Engine
from laban.actors.engine.lockstep import follow
from laban.actors.engine.sampler import sampling_params
from laban.actors.engine.shard_group import ShardGroup
from laban.kernels import row_attention
from laban.kernels.sampling import Allowed, sample_rows
from laban.kvstore.encodings import EMPTY_VIEW

REVIEW = {
    "type": "object",
    "properties": {
        "good": {"type": "boolean"},
        "marks": {"type": "array", "items": {"enum": ["no", "yes", 3]}, "minItems": 1, "maxItems": 3},
        "why": {"type": "string", "maxLength": 6},
    },
    "required": ["good", "marks", "why"],
    "additionalProperties": False,
}
CHOICES = ["no", "no way", "yes", "(maybe.*)", "[a]\n|b"]


def engine(*, fused: bool = False, **config: object) -> Engine:
    return make_engine(fused=fused, tokenizer=byte_level_tokenizer(128), **config)  # type: ignore[arg-type]


def mixed_calls(num_seeds: int = 4) -> list[Sampling]:
    calls = []
    for seed in range(num_seeds):
        calls += [
            constrained(schema=REVIEW, seed=seed, num_logprobs=1),
            constrained(choices=CHOICES, seed=seed, temperature=1.5, top_k=3),
            constrained(schema={"type": "integer"}, seed=seed, temperature=0.0, max_tokens=4),
            Sampling(max_tokens=12, temperature=1.0, seed=seed, stop_token_ids=(STOP,), num_logprobs=2),
            Sampling(max_tokens=12, seed=seed, stop=("ab",)),
        ]
    return calls


def told(driver: Driver, call_id: str) -> tuple[object, ...]:
    result = driver.result(call_id)
    assert driver.streamed(call_id)[1] == result.text
    return result.finish_reason, result.generated, result.text, result.encoding.tokens


def play_constrained(group: ShardGroup) -> list[tuple[object, ...]]:
    row_attention.compiled = None  # type: ignore[assignment]
    shard = sharded_engine("llama", group, byte_level_tokenizer(128))
    answer: list[tuple[object, ...]] = []
    if group.rank == 0:
        lockstep = DrivenLockstep(shard, group)
        answer = play(Driver(lockstep))  # type: ignore[arg-type]
        lockstep.close()
    else:
        follow(shard, group)
    shard.close()
    group.close()
    return answer


def play(driver: Driver) -> list[tuple[object, ...]]:
    calls = [driver.submit([1, 2, number], EMPTY_VIEW, 0, each) for number, each in enumerate(mixed_calls(1))]
    driver.run()
    return [told(driver, call) for call in calls]


def check_masked_draws(device: torch.device) -> None:
    """By chi-square: a temperature an eighth off would be noticed."""
    logits = torch.linspace(-2.0, 1.5, 40)[torch.randperm(40, generator=torch.Generator().manual_seed(1))]
    may = torch.arange(40) % 3 != 0
    words = torch.zeros(1, 2, dtype=torch.int64)
    for token in may.nonzero()[:, 0].tolist():
        words[0, token // 32] |= 1 << (token % 32)
    words = torch.where(words >= 2**31, words - 2**32, words).int()
    num_draws = 40_000
    samplings = [Sampling(max_tokens=1, temperature=0.8, seed=seed) for seed in range(num_draws)]
    params = sampling_params(samplings, [0] * num_draws, device)
    rows = torch.arange(num_draws, device=device)
    params = replace(params, allowed=Allowed(rows, words.to(device).expand(num_draws, -1)))
    tokens, _ = sample_rows(logits.to(device).expand(num_draws, -1), params)
    tokens = tokens.cpu()
    assert may[tokens].all()
    place = may.cumsum(0) - 1
    assert chi_square(place[tokens], (logits[may] / 0.8).softmax(-1)) < 6
    # What would come of drawing from all and taking the likeliest allowed one instead of another.
    assert chi_square(place[tokens], (logits[may] / 0.9).softmax(-1)) > 8
