"""Engines inside this process, and workloads driven on them call by call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from report import num_cores
from texts import FreshRun, generated_ids
from workloads import FlatStep

from laban.actors.calls import Call, CallFailed, CallFinished, Sampling
from laban.actors.engine.batch import Batch
from laban.actors.engine.config import EngineConfig
from laban.actors.engine.engine import Engine
from laban.actors.engine.load import load_engine
from laban.actors.engine.runner import Runner
from laban.actors.frames import Framing
from laban.cluster.messages import Language, MessageBook, Opening
from laban.cluster.views import Entry
from laban.cluster.workflow.fidelity import RECOMPUTE_SHARE, Fidelity
from laban.kvstore.encodings import EncodingId


def open_engine(folder: Path, *, pool_tokens: int, drafting: bool = False) -> Engine:
    """Messages are computed whole: what their tokens' logits are is looked at."""
    config = EngineConfig(pool_tokens=pool_tokens, num_threads=num_cores(), drafting=drafting)
    engine = load_engine(folder, config, "bench")
    engine.scheduler.beginnings.serves = False
    return engine


def second_engine(first: Engine, *, pool_tokens: int, drafting: bool = False) -> Engine:
    """Another engine with a pool of its own over the same weights."""
    config = EngineConfig(pool_tokens=pool_tokens, drafting=drafting)
    slots = pool_tokens // config.page_size * config.page_size
    engine = Engine(
        Runner(first.runner.model, slots),
        first.tokenizer,
        config,
        namespace=first.info.namespace,
        max_context=first.info.max_context,
    )
    engine.scheduler.beginnings.serves = False
    return engine


def run_calls(engine: Engine, calls: Sequence[Call]) -> dict[str, CallFinished]:
    """Runs `calls` to their end, by id. Raises RuntimeError for one that fails."""
    for call in calls:
        engine.submit(call)
    done: dict[str, CallFinished] = {}
    while len(done) < len(calls):
        for event in engine.step().events:
            if isinstance(event, CallFailed):
                raise RuntimeError(f"{event.call_id}: {event.message}")
            if isinstance(event, CallFinished):
                done[event.call_id] = event
    return done


@dataclass(slots=True)
class Story:
    """The messages of one run of a workload under one fidelity, on an engine. Stories of other names share nothing."""

    name: str
    engine: Engine
    framing: Framing
    run: FreshRun
    fidelity: Fidelity
    recompute_share: float = RECOMPUTE_SHARE
    book: MessageBook = field(init=False)
    _logits: dict[EncodingId, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        info = self.engine.info
        namespace = f"{info.namespace}/{self.name}"
        self.book = MessageBook(Language(self.framing, self.engine.tokenizer, namespace, info.max_context))
        for key, message in self.run.workload.messages.items():
            self.book.add_text(key, message.role, self.run.text(key), message.name, path=key)

    def entries(self, step: FlatStep) -> list[Entry]:
        messages, share = self.book.messages, self.recompute_share
        return [Entry(messages[key], self.fidelity, recompute_share=share) for key in step.reads]

    def generate(self, steps: Sequence[FlatStep], limit: int | None) -> dict[str, tuple[int, ...]]:
        """Greedy text of `steps`, which are ready together, each up to its own stop, its length or `limit`."""
        calls: dict[str, Call] = {}
        for step in steps:
            sampling = Sampling(max_tokens=min(step.num_tokens, limit or step.num_tokens))
            opening = Opening(step.role, step.name, step.prefill)
            calls[step.key], _ = self.book.decode(
                f"{self.name}/{step.key}", step.key, self.entries(step), opening, sampling
            )
        done = run_calls(self.engine, list(calls.values()))
        for step in steps:
            encoding = done[calls[step.key].call_id].encoding
            self.book.add_encoded(step.key, step.role, step.name, encoding)
        return {key: done[call.call_id].generated for key, call in calls.items()}

    def force(self, step: FlatStep, generated: Sequence[int]) -> torch.Tensor:
        """Encodes the message with this text; returns the logits of each generated token [tokens, vocab_size]."""
        tokens = generated_ids(step, self.framing, generated)
        call, _ = self.book.prefill(f"forced/{step.key}", step.key, self.entries(step), step.role, tokens)
        with CapturedLogits(self.engine.runner, len(tokens)) as captured:
            done = run_calls(self.engine, [call])
        encoding = done[call.call_id].encoding
        self.book.add_encoded(step.key, step.role, step.name, encoding)
        if not captured.is_empty():  # else a step before had the same text under the same view
            header = len(self.framing.header(step.role, step.name, prefill=step.prefill))
            self._logits[encoding.encoding_id] = captured.logits()[header - 1 : header - 1 + len(generated)]
        return self._logits[encoding.encoding_id]


class CapturedLogits:
    """While entered, keeps the logits of the last `num_rows` rows that the runner computes.

    A call that runs alone computes what its view lacks first and its own message last, in order.
    """

    def __init__(self, runner: Runner, num_rows: int) -> None:
        self._runner = runner
        self._num_rows = num_rows
        self._rows = torch.empty(0, runner.vocab_size)

    def __enter__(self) -> CapturedLogits:
        forward: Callable[[Batch], torch.Tensor] = self._runner.forward

        def wrapped(batch: Batch) -> torch.Tensor:
            count = min(batch.num_tokens, self._num_rows)
            first = batch.num_tokens - count
            wanted = torch.cat([batch.logit_rows, torch.arange(first, batch.num_tokens)])
            logits = forward(replace(batch, logit_rows=wanted))
            num_asked = batch.logit_rows.numel()
            self._rows = torch.cat([self._rows, logits[num_asked:]])[-self._num_rows :]
            return logits[:num_asked]

        self._runner.forward = wrapped  # type: ignore[method-assign]
        return self

    def __exit__(self, *exception: object) -> None:
        del self._runner.forward  # back to the method of the class

    def is_empty(self) -> bool:
        return self._rows.shape[0] == 0

    def logits(self) -> torch.Tensor:
        assert self._rows.shape[0] == self._num_rows
        return self._rows
