"""Constrained calls beside others on an engine of 128 tokens: what they are asked, and what is to come of it."""

from __future__ import annotations

from constrained_cases import STOP, byte_level_tokenizer, constrained, with_tokenizer
from engine_harness import Driver, make_engine
from shard_processes import DrivenLockstep, sharded_engine

from laban.actors.calls import Sampling
from laban.actors.engine.engine import Engine
from laban.actors.engine.lockstep import follow
from laban.actors.engine.shard_group import ShardGroup
from laban.kernels import row_attention
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
    return with_tokenizer(make_engine(fused=fused, **config), byte_level_tokenizer(128))  # type: ignore[arg-type]


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
    shard = with_tokenizer(sharded_engine("llama", group), byte_level_tokenizer(128))
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
