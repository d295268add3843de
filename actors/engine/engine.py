"""The engine of one worker: calls in, a report an iteration out.

    submit -> Scheduler.admit -> Scheduler.schedule -> Runner.launch -> Launched.wait -> publish

On a card an iteration is taken in while the next one runs: its tokens stay there, and the next is planned without
knowing them. Owned by one thread. Nothing here knows Ray, workflows or the network.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import uuid4

from torch import OutOfMemoryError
from torch.cuda import empty_cache

from laban.actors.calls import (
    Call,
    CallEvent,
    CallFailed,
    CallFinished,
    CallStarted,
    TokenLogprob,
    WorkerInfo,
    WorkerLoad,
    WorkerReport,
)
from laban.actors.engine.config import EngineConfig
from laban.actors.engine.decoding import Decode
from laban.actors.engine.launched import BatchTooLarge, Launched
from laban.actors.engine.runner import AnyRunner, bytes_per_token
from laban.actors.engine.scheduler import Scheduler
from laban.actors.engine.sequence import UNKNOWN, Chunk, RunningCall, Sequence
from laban.actors.errors import LabanError
from laban.actors.tokenizer import Tokenizer
from laban.kvstore.encodings import make_spec
from laban.kvstore.store import EncodingStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Iteration:
    """What was given to the device, and whose next tokens it sampled, row by row."""

    launched: Launched
    chunks: list[Chunk]
    sampled: list[tuple[Sequence, Decode]]


class Engine:
    """Runs calls on one model. `submit` and `abort` take effect at the next `step`, which raises in shards only."""

    def __init__(
        self,
        runner: AnyRunner,
        tokenizer: Tokenizer,
        config: EngineConfig,
        *,
        worker_id: str = "worker-0",
        namespace: str = "",
        model_name: str = "",
        max_context: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        num_pages = runner.k_pool.shape[1] // config.page_size
        self.runner = runner
        self.tokenizer = tokenizer
        self.store = EncodingStore(num_pages, config.page_size)
        model_config = runner.model.config
        self.info = WorkerInfo(
            worker_id=worker_id,
            epoch=uuid4().hex,
            namespace=namespace,
            model_name=model_name,
            max_context=max_context or model_config.max_position_embeddings,
            num_pages=num_pages,
            page_size=config.page_size,
            bytes_per_token=bytes_per_token(model_config, runner.dtype),
            vocab_size=runner.vocab_size,
            attention_backend=runner.attention_backend,
            dtype=str(runner.dtype).removeprefix("torch."),
            device=str(runner.device),
            num_shards=1 if runner.group is None else runner.group.size,
        )
        self.scheduler = Scheduler(config, self.store, self.info.max_context, runner.vocab_size)
        self._clock = clock
        self._events: list[CallEvent] = []
        self._num_reports = 0
        self._under_way: _Iteration | None = None

    def submit(self, call: Call) -> None:
        """Queues a call. One that can never run is answered with CallFailed."""
        try:
            self.scheduler.enqueue(call, self._clock())
        except LabanError as error:
            self._events.append(CallFailed(call.call_id, error.status, str(error)))

    def abort(self, call_id: str) -> None:
        """Drops a call, if it is still here. It is not reported on again."""
        self.scheduler.abort(call_id)

    def has_work(self) -> bool:
        return bool(self._events or self.scheduler.running or self.scheduler.num_waiting or self._under_way)

    def step(self) -> WorkerReport:
        """One iteration. Whatever goes wrong in it ends the calls that run, with an error, and not the engine."""
        try:
            self._iterate()
        except Exception as error:  # a kernel, memory or model failure: the calls cannot go on, the next ones can
            if self.runner.group is not None:
                raise  # the other shards may have come further, or less far: their worker ends
            log.exception("an iteration failed")
            if self._under_way is not None:  # it reads from buffers that the next one is written to
                with contextlib.suppress(Exception):
                    self._under_way.launched.wait()
                self._under_way = None
            message = f"the iteration failed: {type(error).__name__}: {error}"
            self._events += [CallFailed(i, "INTERNAL", message) for i in self.scheduler.abort_all()]
        events, self._events = self._events, []
        self._num_reports += 1
        changes = self.store.take_changes()
        return WorkerReport(
            self.info.worker_id, self.info.epoch, self._num_reports, tuple(events), changes, self._load()
        )

    def _iterate(self) -> None:
        for admitted in self.scheduler.admit(self._make_decode):
            if isinstance(admitted, RunningCall):
                call_id = admitted.call.call_id
                self._events.append(CallStarted(call_id, admitted.tokens_read, admitted.tokens_reused))
                if admitted.sequence.finished:
                    self._finish(admitted)
            else:
                call, error = admitted
                self._events.append(CallFailed(call.call_id, error.status, str(error)))
        chunks = self.scheduler.schedule()
        launched = self._try_launch(chunks) if chunks else None
        if self.runner.overlaps:  # the host takes in the iteration before while the device runs this one
            launched, self._under_way = self._under_way, launched
        if launched is not None:
            self._settle(launched)

    def _try_launch(self, chunks: list[Chunk]) -> _Iteration | None:
        """None if the device has no room for that much: less of it is tried next."""
        num_tokens = sum(chunk.count for chunk in chunks)
        try:
            return self._launch(chunks)
        except (BatchTooLarge, OutOfMemoryError) as error:
            if num_tokens == 1 or (self.runner.group is not None and isinstance(error, OutOfMemoryError)):
                raise
            log.warning("an iteration of %d tokens does not fit: %s", num_tokens, error)
        self.scheduler.shrink(num_tokens)
        empty_cache()
        return None

    def _launch(self, chunks: list[Chunk]) -> _Iteration:
        sampled = [c.sequence for c in chunks if c.sequence.wants_token and c.begin + c.count == len(c.sequence.tokens)]
        decodes = [sequence.decode for sequence in sampled if sequence.decode is not None]
        launched = self.runner.launch(chunks, [d.sampling for d in decodes], [d.num_launched for d in decodes])
        for chunk in chunks:
            chunk.sequence.num_computed = chunk.sequence.entry.num_tokens = chunk.begin + chunk.count
        for row, (sequence, decode) in enumerate(zip(sampled, decodes, strict=True)):
            decode.num_launched += 1
            sequence.sample_row = row
            # Its key and value are computed with the next iteration, unless it is known to be the last.
            if decode.num_launched < decode.sampling.most_tokens:
                sequence.tokens.append(UNKNOWN)
        return _Iteration(launched, chunks, list(zip(sampled, decodes, strict=True)))

    def _settle(self, iteration: _Iteration) -> None:
        """Takes in what an iteration did. Calls may have ended since it was launched."""
        tokens, sound = iteration.launched.wait()
        taken = [row for row, (_, decode) in enumerate(iteration.sampled) if self._awaits(decode)]
        logprobs = self._logprobs(iteration, [row for row in taken if sound[row]], tokens)
        for row in taken:
            sequence, decode = iteration.sampled[row]
            if sound[row]:
                self._take_token(sequence, decode, tokens[row], logprobs.get(row))
            else:
                self.scheduler.abort(decode.call.call_id)
                message = "the model gave logits that are not finite numbers"
                self._events.append(CallFailed(decode.call.call_id, "INTERNAL", message))
        self._publish_whole([chunk.sequence for chunk in iteration.chunks])

    def _awaits(self, decode: Decode) -> bool:
        """Whether the call still runs and wants more tokens: one launched after its end is nobody's."""
        running = self.scheduler.running.get(decode.call.call_id)
        return running is not None and running.sequence.decode is decode and decode.finish_reason is None

    def _logprobs(self, iteration: _Iteration, rows: list[int], tokens: list[int]) -> dict[int, TokenLogprob]:
        """Of the tokens of those `rows` whose calls ask for it."""
        num_tops = {row: iteration.sampled[row][1].sampling.num_logprobs for row in rows}
        asked = {row: num_top for row, num_top in num_tops.items() if num_top is not None}
        if not asked:
            return {}
        told = iteration.launched.logprobs(list(asked), [tokens[row] for row in asked], list(asked.values()))
        return dict(zip(asked, told, strict=True))

    def _take_token(self, sequence: Sequence, decode: Decode, token: int, logprob: TokenLogprob | None) -> None:
        running = self.scheduler.running[decode.call.call_id]
        if running.first_token_at is None:
            running.first_token_at = self._clock()
        at = len(decode.call.tokens) + decode.num_sampled
        if at < len(sequence.tokens):
            sequence.tokens[at] = token
        decode.push(token, logprob)
        if decode.finish_reason is not None:
            self._close(sequence, decode)
            running.tokens_encoded += len(decode.call.terminator)
        if (news := decode.take_news()) is not None:
            self._events.append(news)

    def _close(self, sequence: Sequence, decode: Decode) -> None:
        call = decode.call
        tokens = [*call.tokens, *decode.generated, *call.terminator]
        specs = {spec.encoding_id: spec for spec in call.specs}
        sequence.close(tokens, make_spec(call.namespace, tokens, call.start, call.view, specs))

    def _publish_whole(self, sequences: list[Sequence]) -> None:
        # Those aborted since they were launched are in nobody's hands any more.
        whole = [s for s in sequences if s.spec is not None and s.num_pending == 0 and s in self.scheduler.sequences]
        if not whole:
            return
        for sequence in whole:
            self.scheduler.publish(sequence)
        for running in list(self.scheduler.running.values()):
            if running.sequence.finished:
                self._finish(running)

    def _finish(self, running: RunningCall) -> None:
        call, sequence, decode, now = running.call, running.sequence, running.sequence.decode, self._clock()
        self.scheduler.finish(call.call_id)
        assert sequence.spec is not None
        own = decode if call.sampling is not None else None  # a prefill may be answered by another call's message
        self._events.append(
            CallFinished(
                call.call_id,
                own.finish_reason if own and own.finish_reason else "prefill",
                sequence.spec,
                tuple(own.generated) if own else (),
                own.text if own else "",
                running.tokens_read,
                running.tokens_reused,
                running.tokens_encoded,
                ttft_ms=1000 * ((running.first_token_at or now) - running.submitted_at),
                wall_ms=1000 * (now - running.submitted_at),
                logprobs=tuple(own.logprobs) if own else (),
                tokens_generated=own.num_sampled if own else 0,
            )
        )

    def _make_decode(self, call: Call) -> Decode:
        assert call.sampling is not None
        return Decode(call, call.sampling, self.tokenizer, self.tokenizer.detokenizer())

    def _load(self) -> WorkerLoad:
        scheduler, allocator = self.scheduler, self.store.allocator
        return WorkerLoad(
            len(scheduler.running),
            scheduler.num_waiting,
            scheduler.queued_tokens(),
            allocator.num_free,
            allocator.num_pages,
            len(self.store),
        )
