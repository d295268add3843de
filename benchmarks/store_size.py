"""How a decode iteration's time depends on what else the store holds: it should not.

    .venv/bin/python benchmarks/store_size.py [--quick] [--json]      about 2 minutes

Two engines share the weights and have pools of one size. Both hold the messages that the decode reads; one also
holds ten times as many that it does not read, put there before and after. Blocks alternate between the two.
"""

from __future__ import annotations

import argparse
import random
from statistics import median

from decode_speed import Encoded, encoded, iteration_times, random_tokens
from inprocess import open_engine, run_calls, second_engine
from report import Clock, Row, add_arguments, finish, new_report

from laban.actors.calls import Call
from laban.actors.engine.engine import Engine
from laban.actors.models import prepare_default_model
from laban.kvstore.encodings import EMPTY_VIEW

MESSAGE_TOKENS = 48
TIMES_AS_MANY = 10
TARGET = 1.05
MAX_FILL_CALLS = 10  # encoded in one batch


def fill(engine: Engine, num_messages: int, rng: random.Random, name: str) -> None:
    """Unrelated messages, each encoded alone."""
    calls = [
        Call(f"{name}-{n}", "bench", EMPTY_VIEW, 0, tuple(random_tokens(engine, MESSAGE_TOKENS, rng)), ())
        for n in range(num_messages)
    ]
    for begin in range(0, num_messages, MAX_FILL_CALLS):
        run_calls(engine, calls[begin : begin + MAX_FILL_CALLS])


def main() -> None:
    parser = argparse.ArgumentParser(description="Decode time with a small and with a ten times larger store.")
    add_arguments(parser)
    parser.add_argument("--messages", type=int, default=12, help=f"read by the decode, {MESSAGE_TOKENS} tokens each")
    parser.add_argument("--blocks", type=int, default=24, help="pairs of blocks")
    parser.add_argument("--tokens", type=int, default=24, help="decoded in a block")
    args = parser.parse_args()
    if args.quick:
        args.messages, args.blocks, args.tokens = 4, 4, 8
    clock = Clock()
    clock.say("loading the model; about 2 minutes in all on 2 cores")
    report = new_report("store_size", args)
    unrelated = TIMES_AS_MANY * args.messages
    pool_tokens = 2 * (unrelated + args.messages) * MESSAGE_TOKENS + 4096
    small = open_engine(prepare_default_model(lambda doing, share: clock.say(doing)), pool_tokens=pool_tokens)
    large = second_engine(small, pool_tokens=pool_tokens)
    clock.say(f"encoding {args.messages} messages in both stores, {unrelated} unrelated ones in one")
    rng = random.Random(args.seed)
    read = [random_tokens(small, MESSAGE_TOKENS, rng) for _ in range(args.messages)]
    fill(large, unrelated // 2, rng, "before")
    contexts: dict[str, tuple[Engine, Encoded]] = {"small": (small, encoded(small, read))}
    contexts["large"] = (large, encoded(large, read))
    fill(large, unrelated - unrelated // 2, rng, "after")

    times: dict[str, list[float]] = {"small": [], "large": []}
    for block in range(args.blocks + 1):
        order = ("small", "large") if block % 2 == 0 else ("large", "small")
        for name in order:
            engine, context = contexts[name]
            measured = median(iteration_times(engine, [context], args.tokens))
            if block:  # the first pair warms up
                times[name].append(measured)
        clock.say(f"block {block} of {args.blocks}")
    ratios = [large_s / small_s for small_s, large_s in zip(times["small"], times["large"], strict=True)]
    report.rows += [
        Row("store.small.encodings", float(len(small.store)), "", better="higher"),
        Row("store.large.encodings", float(len(large.store)), "", better="higher"),
        Row("store.small.iteration", 1000 * median(times["small"]), "ms", better="lower"),
        Row("store.large.iteration", 1000 * median(times["large"]), "ms", better="lower"),
        Row("store.large_to_small", median(ratios), "x", TARGET, "lower"),
    ]
    finish(report, args, clock)


if __name__ == "__main__":
    main()
