"""What it costs a batch that its calls are constrained.

    .venv/bin/python benchmarks/constrained.py [--quick] [--json]      about 6 minutes (make bench-constrained)

One engine in this process, on a GPU if there is one. Eight calls decode together, with the same contexts, seeds and
lengths, in alternating blocks: free; half of them kept to a JSON schema; all of them; all to one of some choices' long
texts. The inter-token latency of each block is compared with that of the free block beside it. Compiling a schema and
making a mask are timed by themselves.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import median

import numpy as np
from decode_speed import HEADER, Encoded, encoded, random_tokens
from inprocess import open_engine
from report import Clock, Row, add_arguments, finish, new_report

from laban.actors.calls import Call, Constraint, Sampling
from laban.actors.engine.constraining import Constraining
from laban.actors.engine.engine import Engine
from laban.actors.models import prepare_default_model
from laban.cluster.workflow.constraints import constraint_of

BATCH = 8
CONTEXT_TOKENS = 256
SETTLED_TOKENS = 4  # of each call, before the clock starts
TARGET = 1.05
ITEM = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "score": {"type": "integer", "minimum": 0, "maximum": 100},
        "tags": {"type": "array", "items": {"enum": ["new", "old", "open", "closed"]}, "maxItems": 3},
        "share": {"type": "number"},
        "done": {"type": "boolean"},
    },
    "required": ["name", "score", "tags", "share", "done"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": ITEM, "minItems": 200}  # more than is generated

_ids = count()


def inter_token_s(engine: Engine, contexts: list[Encoded], samplings: list[Sampling]) -> float:
    """Seconds from token to token of calls that decode together, one under each context."""
    header = tuple(engine.tokenizer.encode(HEADER))
    for context, sampling in zip(contexts, samplings, strict=True):
        name = f"call-{next(_ids)}"
        engine.submit(Call(name, "bench", context.view, context.stop, header, context.specs, sampling, (0,)))
    last = samplings[0].max_tokens - 2
    began: tuple[float, int] | None = None
    ended: tuple[float, int] | None = None
    while engine.has_work():
        engine.step()
        decodes = [s.decode for s in engine.scheduler.sequences if s.decode is not None]
        behind = min((d.num_sampled for d in decodes), default=0) if len(decodes) == len(contexts) else 0
        if began is None and behind >= SETTLED_TOKENS:
            began = time.perf_counter(), behind
        if ended is None and behind >= last:
            ended = time.perf_counter(), behind
    if began is None or ended is None:
        raise RuntimeError("a call ended before its time")
    return (ended[0] - began[0]) / (ended[1] - began[1])


def arms(num_tokens: int, stop: int) -> dict[str, list[Sampling]]:
    """What the calls of each arm are asked for; none of them ends before `num_tokens`."""
    free = [Sampling(max_tokens=num_tokens, temperature=0.8, seed=seed) for seed in range(BATCH)]
    stops, by_schema = (stop,), constraint_of(SCHEMA)
    by_choice = Constraint(choices=tuple(f"{number} " + "and so on " * num_tokens for number in range(20)))
    constrained = [replace(each, constraint=by_schema, stop_token_ids=stops) for each in free]
    return {
        "free": free,
        "half_schema": [*constrained[: BATCH // 2], *free[BATCH // 2 :]],
        "schema": constrained,
        "choices": [replace(each, constraint=by_choice, stop_token_ids=stops) for each in free],
    }


def mask_rows(engine: Engine, stop: int, num_texts: int) -> list[Row]:
    """Of a grammar of its own, so that nothing is compiled or remembered yet."""
    schema = {**SCHEMA, "maxItems": 10_000}
    constraining = Constraining(engine.tokenizer, engine.info.vocab_size)
    context = encoded(engine, [[stop]])
    sampling = Sampling(1, constraint=constraint_of(schema), stop_token_ids=(stop,))
    call = Call("mask", "bench", context.view, context.stop, (stop,), context.specs, sampling)
    began = time.perf_counter()
    constraining.holds(call, 0.0)
    ((_, _, error),) = constraining.release(["mask"])
    compiled_s = time.perf_counter() - began
    if error is not None:
        raise error
    matcher = constraining.matcher(call)
    assert matcher is not None
    item = '{"name": "one more of them", "score": 12, "tags": ["new", "open"], "share": 0.25, "done": true}'
    tokens = engine.tokenizer.encode("[" + ", ".join([item] * num_texts))
    words = np.zeros((1, -(-engine.info.vocab_size // 32)), np.int32)
    times = []
    for index, token in enumerate(tokens):
        began = time.perf_counter()
        matcher.fill(words)
        matcher.take(index, token)
        times.append(time.perf_counter() - began)
    assert matcher.problem is None
    constraining.close()
    first = times[: len(times) // num_texts]
    return [
        Row("compile_schema", 1000 * compiled_s, "ms", better="lower"),
        Row("mask.first_item", 1e6 * sum(first) / len(first), "us", better="lower"),
        Row("mask.median", 1e6 * median(times), "us", better="lower"),
        Row("mask.worst", 1e6 * max(times), "us", better="lower"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="What it costs a batch that its calls are constrained.")
    add_arguments(parser)
    parser.add_argument("--model", type=Path, help="folder of the model (default: the default model)")
    parser.add_argument("--blocks", type=int, default=8, help="of each kind")
    parser.add_argument("--tokens", type=int, default=64, help="that each call generates in a block")
    args = parser.parse_args()
    if args.quick:
        args.blocks, args.tokens = 1, 16
    clock, report = Clock(), new_report("constrained", args)
    engine = open_engine(args.model or prepare_default_model(), pool_tokens=8192)
    stop = next(i for i in range(engine.info.vocab_size) if engine.tokenizer.is_special(i))
    rng = random.Random(args.seed)
    contexts = [encoded(engine, [random_tokens(engine, CONTEXT_TOKENS, rng)]) for _ in range(BATCH)]
    asked = arms(args.tokens, stop)
    measured: dict[str, list[float]] = {name: [] for name in asked}
    for block in range(args.blocks + 1):  # the first is not counted
        order = list(asked) if block % 2 == 0 else list(reversed(asked))
        for name in order:
            seconds = inter_token_s(engine, contexts, asked[name])
            if block:
                measured[name].append(seconds)
        clock.say(f"block {block} of {args.blocks}")
    for name, times in measured.items():
        report.rows.append(Row(f"itl.{name}", 1000 * median(times), "ms", better="lower"))
    for name in (name for name in measured if name != "free"):
        ratios = [own / free for own, free in zip(measured[name], measured["free"], strict=True)]
        report.rows.append(Row(f"itl.{name}_to_free", median(ratios), "x", TARGET, "lower"))
    report.rows += mask_rows(engine, stop, 20)
    finish(report, args, clock)
    engine.close()


if __name__ == "__main__":
    main()
