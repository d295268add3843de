"""Drives an engine over a random small model, and the interpreter beside it on the same messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
from engine_reference import MAX_CONTEXT, VOCAB_SIZE, Interpreter, Placed, Recorded, random_model
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from laban.actors.calls import Call, CallEvent, CallFailed, CallFinished, CallTokens, Sampling, Source
from laban.actors.engine.adapters import Adapters
from laban.actors.engine.config import EngineConfig
from laban.actors.engine.engine import Engine
from laban.actors.engine.fused_runner import FusedRunner
from laban.actors.engine.runner import Runner
from laban.actors.engine.tiers_setup import make_tiers
from laban.actors.tokenizer import Tokenizer
from laban.kvstore.encodings import EMPTY_VIEW, EncodingSpec, Placement, View, closure, dependencies, extend, view_stop
from laban.kvstore.message_slots import MessageSlot

TOLERANCE = 2e-4
_ids = count()


def byte_tokenizer() -> Tokenizer:
    return Tokenizer(byte_backend())


def byte_backend() -> Backend:
    """128 tokens, one for each ASCII character: token id 97 is "a"."""
    names = {chr(i) if 32 < i < 127 else f"<{i}>": i for i in range(VOCAB_SIZE)}
    assert len(names) == VOCAB_SIZE
    backend = Backend(models.BPE(vocab=names, merges=[]))
    backend.decoder = decoders.Fuse()
    return backend


def make_engine(
    kind: str = "llama",
    *,
    pool_tokens: int = 4096,
    seed: int = 0,
    device: str = "cpu",
    fused: bool = False,
    dtype: torch.dtype = torch.float32,
    host_tokens: int = 0,
    disk_folder: Path | None = None,
    adapters: Adapters | None = None,
    tokenizer: Tokenizer | None = None,
    **config: Any,
) -> Engine:
    """An engine over `random_model(kind, seed)`, with room for `host_tokens` in host memory and the byte
    tokenizer unless told another.

    It drafts nothing unless asked to: what is drafted depends on how long things take.
    """
    settings = EngineConfig(pool_tokens=pool_tokens, **{"drafting": False, **config})
    model = random_model(kind, seed).to(device, dtype)  # type: ignore[arg-type]
    slots = pool_tokens // settings.page_size * settings.page_size
    runner: Runner | FusedRunner = Runner(model, slots, adapters=None if fused else adapters)
    if fused:
        runner = FusedRunner(
            random_model(kind, seed).to(device, dtype),  # type: ignore[arg-type]
            slots,
            page_size=settings.page_size,
            max_batch_tokens=settings.batch_tokens,
            max_running=settings.max_running,
            adapters=adapters,
        )
    host_bytes = host_tokens * 2 * runner.k_pool[:, 0].numel() * runner.k_pool.itemsize
    tiers = make_tiers(runner, settings, host_bytes, namespace="test", disk_folder=disk_folder)
    tokenizer = tokenizer or byte_tokenizer()
    return Engine(runner, tokenizer, settings, namespace="test", max_context=MAX_CONTEXT, tiers=tiers)


def interpreter(kind: str = "llama", seed: int = 0) -> Interpreter:
    return Interpreter(random_model(kind, seed))


@dataclass
class Driver:
    """An engine and the specs that its callers know of."""

    engine: Engine
    specs: dict[str, EncodingSpec] = field(default_factory=dict)
    events: dict[str, list[CallEvent]] = field(default_factory=dict)

    def place(self, view: View, spec: EncodingSpec, position: int, begin: int = 0, end: int | None = None) -> View:
        end = spec.num_tokens if end is None else end
        return extend(view, Placement(spec.encoding_id, position, begin, end), self.specs)

    def chain(self, *specs: EncodingSpec) -> View:
        """Each where it was encoded."""
        view = EMPTY_VIEW
        for spec in specs:
            view = self.place(view, spec, spec.start)
        return view

    def submit(
        self, tokens: list[int], view: View = EMPTY_VIEW, start: int | None = None, sampling: Sampling | None = None,
        terminator: tuple[int, ...] = (), rank: int = 0, sources: tuple[Source, ...] = (), namespace: str = "test",
        kind: str = "", slots: tuple[MessageSlot, ...] = (),
    ) -> str:  # fmt: skip
        call_id = f"call-{next(_ids)}"
        start = view_stop(view, self.specs) if start is None else start
        specs = tuple(closure(dependencies(view), self.specs))
        call = Call(
            call_id, namespace, view, start, tuple(tokens), specs, sampling, terminator, rank, sources, kind=kind,
            slots=slots,
        )  # fmt: skip
        self.engine.submit(call)
        self.events[call_id] = []
        return call_id

    def run(self, max_steps: int = 10_000) -> None:
        """Until nothing is left to do."""
        for _ in range(max_steps):
            if not self.engine.has_work():
                self.engine.store.check_integrity()
                assert not self.engine.scheduler.sequences
                return
            self.step()
        raise AssertionError("the engine does not come to an end")

    def step(self) -> None:
        for event in self.engine.step().events:
            self.events[event.call_id].append(event)
            if isinstance(event, CallFinished):
                self.specs[event.encoding.encoding_id] = event.encoding

    def result(self, call_id: str) -> CallFinished:
        last = self.events[call_id][-1]
        assert isinstance(last, CallFinished), last
        return last

    def failure(self, call_id: str) -> CallFailed:
        last = self.events[call_id][-1]
        assert isinstance(last, CallFailed), last
        return last

    def streamed(self, call_id: str) -> tuple[list[int], str]:
        chunks = [e for e in self.events[call_id] if isinstance(e, CallTokens)]
        return [t for c in chunks for t in c.token_ids], "".join(c.text for c in chunks)

    def prefill(
        self, tokens: list[int], view: View = EMPTY_VIEW, start: int | None = None, namespace: str = "test"
    ) -> EncodingSpec:
        call_id = self.submit(tokens, view, start, namespace=namespace)
        self.run()
        return self.result(call_id).encoding

    def keys_and_values(self, spec: EncodingSpec) -> tuple[torch.Tensor, torch.Tensor]:
        """The stored [num_layers, num_tokens, num_kv_heads, head_dim], keys as first rotated."""
        entry = self.engine.store.get(spec.encoding_id)
        assert entry is not None
        assert entry.ready
        slots = [first + i for first, length in entry.runs(0, entry.num_tokens) for i in range(length)]
        runner = self.engine.runner
        return runner.k_pool[:, slots].cpu(), runner.v_pool[:, slots].cpu()


def force(tokens: list[int]) -> Sampling:
    """Generates `tokens`, and tells the log-probability of every token at each step."""
    return Sampling(max_tokens=len(tokens), forced=tuple(tokens), num_logprobs=VOCAB_SIZE)


def logprobs(result: CallFinished) -> torch.Tensor:
    """[num_generated, vocab_size]"""
    rows = torch.zeros(len(result.logprobs), VOCAB_SIZE)
    for row, told in zip(rows, result.logprobs, strict=True):
        for token, value in told.top:
            row[token] = value
    return rows


def assert_same_encoding(
    driver: Driver, oracle: Interpreter, spec: EncodingSpec, recorded: Recorded, tolerance: float = TOLERANCE
) -> None:
    """Stored keys and values are the interpreter's."""
    keys, values = driver.keys_and_values(spec)
    positions = torch.arange(spec.start, spec.stop)
    for layer in range(keys.shape[0]):
        expected = oracle.rotate(layer, recorded.keys[layer], positions)
        torch.testing.assert_close(keys[layer].double(), expected, atol=tolerance, rtol=0)
        torch.testing.assert_close(values[layer].double(), recorded.values[layer], atol=tolerance, rtol=0)


def place_recorded(message: Recorded, position: int, begin: int = 0, end: int | None = None) -> Placed:
    return Placed(message, position, begin, message.values.shape[1] if end is None else end)
