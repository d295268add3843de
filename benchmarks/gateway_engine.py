"""An engine that takes no time of its own, for measuring all that is around it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import uuid4

from laban.actors.calls import (
    Advice,
    Call,
    CallEvent,
    CallFinished,
    CallStarted,
    CallTokens,
    WorkerInfo,
    WorkerLoad,
    WorkerReport,
)
from laban.actors.transfers import ExportRequest, FindPeer, Refused
from laban.kvstore.encodings import make_spec

INSTANT_TOKENS = 8
"""A decode of more is paced: all that run get a token at once, every PACE_S."""
PACE_S = 0.5
TOKEN = 65


@dataclass(slots=True)
class _Running:
    call: Call
    num_tokens: int = 0
    text: str = ""


class InstantEngine:
    """Each token's text is the time at which it was made, `time.monotonic`, and a space."""

    def __init__(
        self,
        model_folder: str = "",
        config: object = None,
        worker_id: str = "instant",
        progress: Callable[[str, float | None], None] = lambda doing, share: None,
    ) -> None:
        self.info = WorkerInfo(
            worker_id=worker_id,
            epoch=uuid4().hex,
            namespace="instant",
            model_name="instant",
            max_context=100_000,
            num_pages=1_000_000,
            page_size=16,
            bytes_per_token=1,
            vocab_size=1_000_000,
            attention_backend="none",
            dtype="none",
            device="none",
        )
        self._running: dict[str, _Running] = {}
        self._started: list[CallEvent] = []
        self._num_reports = 0
        self._paced_at_s = 0.0

    def submit(self, call: Call) -> None:
        self._running[call.call_id] = _Running(call)
        self._started.append(CallStarted(call.call_id, 0, 0))

    def abort(self, call_id: str) -> None:
        self._running.pop(call_id, None)

    def advise(self, advice: Advice) -> None:
        """It has no cache."""

    def connect(self, find_peer: FindPeer) -> None:
        """It has nothing to fetch."""

    def export(self, request: ExportRequest) -> None:
        request.answer(lambda: Refused("it has nothing"))

    def has_work(self) -> bool:
        return bool(self._running)

    def step(self) -> WorkerReport:
        now_s = time.monotonic()
        instant = [each for each in self._running.values() if not _is_paced(each.call)]
        is_due = now_s >= self._paced_at_s + PACE_S
        if not instant and not is_due:
            time.sleep(min(0.001, self._paced_at_s + PACE_S - now_s))
        going = instant
        if is_due:
            self._paced_at_s = now_s
            going = list(self._running.values())
        events, self._started = self._started, []
        for each in going:
            events += self._advance(each)
        self._num_reports += 1
        load = WorkerLoad(len(self._running), num_free_pages=1_000_000, num_pages=1_000_000)
        return WorkerReport(self.info.worker_id, self.info.epoch, self._num_reports, tuple(events), load=load)

    def close(self) -> None:
        """Holds nothing."""

    def _advance(self, each: _Running) -> list[CallEvent]:
        call, events = each.call, []
        most = 0 if call.sampling is None else call.sampling.max_tokens
        if each.num_tokens < most:
            text = f"{time.monotonic()} "
            events.append(CallTokens(call.call_id, each.num_tokens, (TOKEN,), text))
            each.num_tokens += 1
            each.text += text
        if each.num_tokens == most:
            del self._running[call.call_id]
            output = (TOKEN,) * most
            specs = {spec.encoding_id: spec for spec in call.specs}
            spec = make_spec(call.namespace, (*call.tokens, *output, *call.terminator), call.start, call.view, specs)
            events.append(
                CallFinished(
                    call.call_id,
                    "prefill" if call.sampling is None else "length",
                    spec,
                    output,
                    each.text,
                    0,
                    0,
                    len(call.tokens),
                    ttft_ms=0.0,
                    wall_ms=0.0,
                    tokens_generated=most,
                )
            )
        return events


def _is_paced(call: Call) -> bool:
    return call.sampling is not None and call.sampling.max_tokens > INSTANT_TOKENS
