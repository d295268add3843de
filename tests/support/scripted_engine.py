"""An engine that follows a script instead of a model, a framing of characters, and ports without processes.

A character is a token. What a call generates is its forced tokens, or a short reply that depends on all it
attends to, one token an iteration. Words in its header (a step's prefill) make it misbehave:
`FAIL` fails the call, `BOOM` breaks the engine, `DIE` ends the process, `DIE-ONCE:path` does so once,
`SLOW` takes 50 ms a token. The model `broken` does not load, `slow:path` loads once there is such a file.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from uuid import uuid4

from loop_directory import LoopDirectory

from laban.actors.calls import (
    Advice,
    Call,
    CallEvent,
    CallFailed,
    CallFinished,
    CallStarted,
    CallTokens,
    FinishReason,
    Sampling,
    TokenLogprob,
    WorkerInfo,
    WorkerLoad,
    WorkerReport,
)
from laban.actors.errors import InvalidInput
from laban.actors.ports import WorkerLost, WorkerPort
from laban.actors.tallies import WorkerTallies
from laban.actors.transfers import ExportRequest, FindPeer, Refused
from laban.actors.worker import BEAT_S
from laban.cluster.routing.policy import missing_encodings
from laban.kvstore.encodings import flatten, make_spec
from laban.kvstore.placements import PlacementChange, PlacementState, Tier

MAX_CONTEXT = 2000


def encode(text: str) -> tuple[int, ...]:
    return tuple(ord(character) for character in text)


def decode(tokens: Sequence[int]) -> str:
    return "".join(chr(token) for token in tokens)


class CharTokenizer:
    vocab_size = 0x110000
    longest_token = 8  # more than there is: what is too long by its tokens is found by these

    def encode(self, text: str) -> list[int]:
        return list(encode(text))

    def guarded(self, text: str) -> str:
        return text


class CharFraming:
    """`^` is the root, `[role:name]text|` a message. `first_mark` is put before a conversation's first one."""

    stop_token_ids = (0,)

    def __init__(self, first_mark: str = "", root: str = "^") -> None:
        self._first_mark = first_mark
        self._root = root

    def root(self, first_role: str) -> tuple[int, ...]:
        if first_role not in ("system", "user", "assistant"):
            raise InvalidInput("expected system, user or assistant", field="role", value=first_role)
        return encode(self._root)

    def message(self, role: str, text: str, name: str | None = None, *, first: bool = False) -> tuple[int, ...]:
        return (*self.header(role, name, first=first, prefill=text), *encode("|"))

    def header(self, role: str, name: str | None = None, *, first: bool = False, prefill: str = "") -> tuple[int, ...]:
        return encode(f"{self._first_mark if first else ''}[{role}:{name or ''}]{prefill}")

    def terminator(self, role: str, *, after_stop_token: bool) -> tuple[int, ...]:
        return encode("|")

    def starts_otherwise(self, role: str) -> bool:
        return bool(self._first_mark)


@dataclass
class _Running:
    call: Call
    output: tuple[int, ...]
    reason: FinishReason
    read: int
    reused: int
    encoded: int
    done: int = 0
    started: bool = False


@dataclass
class ScriptedEngine:
    model_folder: str = ""
    config: object = None
    worker_id: str = "w0"
    namespace: str = "model"
    model: str = "scripted"
    max_context: int = MAX_CONTEXT
    chunk: int = 1  # tokens an iteration
    progress: Callable[[str, float | None], None] = lambda doing, share: None
    epoch: str = field(default_factory=lambda: uuid4().hex)

    def __post_init__(self) -> None:
        if self.model_folder == "broken":
            raise InvalidInput("expected a model that loads", field="model", value=self.model_folder)
        word, _, path = self.model_folder.partition(":")
        self.progress("reading the script", 0.4)
        while word == "slow" and not Path(path).exists():
            time.sleep(0.01)
        self.info = WorkerInfo(
            worker_id=self.worker_id,
            epoch=self.epoch,
            namespace=self.namespace,
            model_name=self.model,
            max_context=self.max_context,
            num_pages=1000,
            page_size=16,
            bytes_per_token=1,
            vocab_size=CharTokenizer.vocab_size,
            attention_backend="none",
            dtype="float32",
            device="cpu",
        )
        self.held: dict[str, int] = {}
        self.calls: list[Call] = []  # all that were ever submitted
        self.batches: list[int] = []
        self.running: dict[str, _Running] = {}
        self.advice: list[Advice] = []
        self.sequence = 0
        self.tallies: WorkerTallies | None = None
        self._failed: list[CallEvent] = []

    def submit(self, call: Call) -> None:
        self.calls.append(call)
        specs = {spec.encoding_id: spec for spec in call.specs}
        for spec in call.specs:
            # Truth check: an encoding can be made only from what came before it.
            assert make_spec(spec.namespace, spec.tokens, spec.start, spec.view, specs) == spec
        missing = missing_encodings(call.view, specs, self.held)
        read = sum(placement.num_tokens for placement in flatten(call.view, specs))
        encoded = sum(missing.values()) + len(call.tokens)
        reused = read - sum(missing.values())
        self.running[call.call_id] = _Running(call, *self._output(call, specs), read, reused, encoded)

    def abort(self, call_id: str) -> None:
        self.running.pop(call_id, None)

    def advise(self, advice: Advice) -> None:
        self.advice.append(advice)

    def connect(self, find_peer: FindPeer) -> None:
        pass

    def export(self, request: ExportRequest) -> None:
        request.answer(lambda: Refused("the script says so"))

    def has_work(self) -> bool:
        return bool(self.running)

    def step(self) -> WorkerReport:
        events: list[CallEvent] = []
        added: dict[str, int] = {}
        for running in list(self.running.values()):
            events += self._advance(running, added)
        self.held.update(added)
        self.sequence += 1
        load = WorkerLoad(len(self.running), num_free_pages=1000, num_pages=1000, num_encodings=len(self.held))
        changes = tuple(PlacementChange(i, Tier.DEVICE, PlacementState.READY, n) for i, n in added.items())
        report = WorkerReport(self.worker_id, self.epoch, self.sequence, tuple(events), changes, load)
        return replace(report, tallies=self.tallies)

    def _output(self, call: Call, specs: dict) -> tuple[tuple[int, ...], FinishReason]:
        if call.sampling is None:
            return (), "prefill"
        if call.sampling.forced:
            return call.sampling.forced[: call.sampling.max_tokens], "forced"
        seen = "".join(
            f"{placed.position}{decode(specs[placed.encoding_id].tokens[placed.begin : placed.end])}"
            for placed in flatten(call.view, specs)
        )
        digest = blake2b(f"{seen}{decode(call.tokens)}{call.start}{call.sampling.seed}".encode(), digest_size=4)
        output = encode(f"says {digest.hexdigest()}")
        return output[: call.sampling.max_tokens], "stop" if len(output) <= call.sampling.max_tokens else "length"

    def _advance(self, running: _Running, added: dict[str, int]) -> list[CallEvent]:
        call = running.call
        header = decode(call.tokens)
        if "BOOM" in header:
            raise RuntimeError("the script says so")
        if once := re.search(r"DIE-ONCE:([^|]*)", header):
            if running.done >= 3 and _is_first(Path(once.group(1))):
                time.sleep(0.2)  # what was generated reaches the reader first
                os._exit(1)
        elif "DIE" in header:
            os._exit(1)
        if "SLOW" in header:
            time.sleep(0.05)
        if "FAIL" in header:
            del self.running[call.call_id]
            return [CallFailed(call.call_id, "RESOURCE_EXHAUSTED", "the script says so")]
        events: list[CallEvent] = []
        if not running.started:
            running.started = True
            events.append(CallStarted(call.call_id, running.read, running.reused, tokens_encoded=running.encoded))
            added.update((spec.encoding_id, spec.num_tokens) for spec in call.specs)
        new = running.output[running.done : running.done + self.chunk]
        if new:
            events.append(CallTokens(call.call_id, running.done, new, decode(new)))
            running.done += len(new)
        if running.done == len(running.output):
            del self.running[call.call_id]
            specs = {spec.encoding_id: spec for spec in call.specs}
            tokens = call.tokens + running.output + (call.terminator if call.sampling is not None else ())
            spec = make_spec(call.namespace, tokens, call.start, call.view, specs)
            added[spec.encoding_id] = spec.num_tokens
            read = sum(placement.num_tokens for placement in flatten(call.view, specs))
            events.append(
                CallFinished(
                    call.call_id,
                    running.reason,
                    spec,
                    running.output,
                    decode(running.output),
                    read,
                    running.reused,
                    running.encoded,
                    ttft_ms=1.0,
                    wall_ms=2.0,
                    logprobs=logprobs_of(running.output, call.sampling),
                    tokens_generated=len(running.output),
                )
            )
        return events


def _is_first(marker: Path) -> bool:
    """Of all processes that ask, one."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def logprobs_of(output: tuple[int, ...], sampling: Sampling | None) -> tuple[TokenLogprob, ...]:
    """Made up: the i-th token's is -i, and the n likeliest tokens at its place are 0 to n - 1."""
    if sampling is None or sampling.num_logprobs is None:
        return ()
    top = tuple((token_id, -float(token_id)) for token_id in range(sampling.num_logprobs))
    return tuple(TokenLogprob(token_id, -float(i), top) for i, token_id in enumerate(output))


class LoopWorker:
    """WorkerPort without a thread: the engine runs in the event loop while someone reads its reports.

    What it reports of encodings goes to `directory`, if there is one, and to nobody else. While `paused` nothing
    runs, but that it lives is reported, unless it is `silent` as well. `kill` ends this life.
    """

    beat_s = BEAT_S

    def __init__(self, engine: ScriptedEngine, directory: LoopDirectory | None = None) -> None:
        if directory is not None:
            engine.info = replace(engine.info, epoch=directory.begin(engine.worker_id))
        self.engine = engine
        self.directory = directory
        self.paused = self.silent = False
        load = WorkerLoad(num_free_pages=1000, num_pages=1000)
        self._last = WorkerReport(engine.info.worker_id, engine.info.epoch, 0, load=load)
        self.aborted: list[str] = []
        self.batches: list[list[str]] = []
        self.closed = False
        self._lost = ""
        self._wake = asyncio.Event()

    @property
    def info(self) -> WorkerInfo:
        return self.engine.info

    def submit(self, calls: Sequence[Call]) -> None:
        self.batches.append([call.call_id for call in calls])
        for call in calls:
            self.engine.submit(call)
        self._wake.set()

    def advise(self, advice: Advice) -> None:
        self.engine.advise(advice)

    def abort(self, call_ids: Sequence[str]) -> None:
        self.aborted += call_ids
        for call_id in call_ids:
            self.engine.abort(call_id)

    def kill(self, reason: str = "killed") -> None:
        self._lost = reason
        self._wake.set()

    def resume(self) -> None:
        self.paused = False
        self._wake.set()

    async def reports(self) -> AsyncGenerator[WorkerReport, None]:
        while True:
            self._wake.clear()
            if self._lost:
                raise WorkerLost(self._lost)
            if self.closed:
                return
            if self.engine.has_work() and not self.paused:
                try:
                    report = self.engine.step()
                except RuntimeError as error:
                    raise WorkerLost(str(error)) from error
                if self.directory is not None:
                    self.directory.put(self.info.worker_id, report.changes)
                self._last = replace(report, changes=(), events=())
                yield replace(report, changes=())
                await asyncio.sleep(0)
            else:
                try:
                    async with asyncio.timeout(None if self.silent else self.beat_s):
                        await self._wake.wait()
                except TimeoutError:
                    yield self._last

    async def close(self) -> None:
        self.closed = True
        self._wake.set()


class LoopSupervisor:
    """Makes LoopWorkers; the first `failures` starts fail."""

    def __init__(self, failures: int = 0, directory: LoopDirectory | None = None) -> None:
        self.failures = failures
        self.directory = directory
        self.made: list[LoopWorker] = []

    async def start(self, worker_id: str, model: str = "") -> WorkerPort:
        if self.failures > 0:
            self.failures -= 1
            raise WorkerLost("did not come up")
        worker = LoopWorker(ScriptedEngine(worker_id=worker_id), self.directory)
        self.made.append(worker)
        return worker
