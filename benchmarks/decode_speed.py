"""Decode speed: our engine at batch 1 beside transformers `generate`, and at batch 8 beside its own batch 1.

All in this process, on the same model and the same contexts, in alternating blocks; ratios are of neighbours.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from itertools import count
from statistics import median

from inprocess import run_calls
from peer_transformers import Generator

from laban.actors.calls import Call, Sampling
from laban.actors.engine.engine import Engine
from laban.kvstore.encodings import EMPTY_VIEW, EncodingSpec, View

CONTEXT_TOKENS = 512
BATCH = 8
HEADER = " so"  # one token

_ids = count()


@dataclass(frozen=True, slots=True)
class DecodeSpeed:
    """Tokens a second, medians over blocks; ratios are medians of the blocks' ratios."""

    single: float
    batched: float
    transformers: float
    single_to_transformers: float
    batched_to_single: float


def measure_decode(engine: Engine, generator: Generator, *, seed: int, blocks: int, num_tokens: int) -> DecodeSpeed:
    """`num_tokens` of each sequence in each block; the first block of each kind is not counted."""
    rng = random.Random(seed)
    contexts = [random_tokens(engine, CONTEXT_TOKENS, rng) for _ in range(BATCH)]
    views = [encoded(engine, [tokens]) for tokens in contexts]
    rates: list[tuple[float, float, float]] = []
    for block in range(blocks + 1):
        measured: dict[str, float] = {}
        kinds = ["single", "transformers", "batched"]
        for kind in kinds if block % 2 == 0 else reversed(kinds):
            if kind == "transformers":
                header = engine.tokenizer.encode(HEADER)
                times = generator.generate([[*contexts[0], *header]], num_tokens).token_times_s
                measured[kind] = (num_tokens - 1) / (times[-1] - times[0])
            else:
                measured[kind] = decode_rate(engine, views[: BATCH if kind == "batched" else 1], num_tokens)
        if block:
            rates.append((measured["single"], measured["batched"], measured["transformers"]))
    return DecodeSpeed(
        median(single for single, _, _ in rates),
        median(batched for _, batched, _ in rates),
        median(theirs for _, _, theirs in rates),
        median(single / theirs for single, _, theirs in rates),
        median(batched / single for single, batched, _ in rates),
    )


def random_tokens(engine: Engine, num_tokens: int, rng: random.Random) -> list[int]:
    """Ordinary tokens: the first ids of a vocabulary are special."""
    return [rng.randrange(256, min(engine.info.vocab_size, 20_000)) for _ in range(num_tokens)]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A context that stands in an engine's store: the view of it, what that needs, and where it ends."""

    view: View
    specs: tuple[EncodingSpec, ...]
    stop: int


def encoded(engine: Engine, messages: list[list[int]]) -> Encoded:
    """One chain of `messages`."""
    view, specs, stop = EMPTY_VIEW, dict[str, EncodingSpec](), 0
    for tokens in messages:
        call = Call(f"context-{next(_ids)}", "bench", view, stop, tuple(tokens), tuple(specs.values()))
        spec = run_calls(engine, [call])[call.call_id].encoding
        specs[spec.encoding_id] = spec
        view, stop = View(spec.encoding_id), spec.stop
    return Encoded(view, tuple(specs.values()), stop)


def iteration_times(engine: Engine, contexts: list[Encoded], num_tokens: int) -> list[float]:
    """Seconds of each decode iteration of calls that decode together, one under each context."""
    header = tuple(engine.tokenizer.encode(HEADER))
    for context in contexts:
        call_id = f"decode-{next(_ids)}"
        sampling = Sampling(max_tokens=num_tokens)
        engine.submit(Call(call_id, "bench", context.view, context.stop, header, context.specs, sampling, (0,)))
    times: list[float] = []
    while engine.has_work():
        decoding = sum(s.decode is not None and s.decode.num_sampled > 0 for s in engine.scheduler.sequences)
        closing = any(s.spec is not None for s in engine.scheduler.sequences)
        began = time.perf_counter()
        engine.step()
        if decoding == len(contexts) and not closing:
            times.append(time.perf_counter() - began)
    assert len(times) == num_tokens - 1, (len(times), num_tokens)
    return times


def decode_rate(engine: Engine, contexts: list[Encoded], num_tokens: int) -> float:
    """Tokens a second, after the first token of each."""
    times = iteration_times(engine, contexts, num_tokens)
    return len(contexts) * len(times) / sum(times)
