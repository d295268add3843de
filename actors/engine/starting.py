"""From a plan to a running call: what it lacks is begun, and the sequence that answers it."""

from __future__ import annotations

from collections.abc import Callable

from laban.actors.calls import Call
from laban.actors.engine.corrections import Corrections
from laban.actors.engine.decoding import Decode
from laban.actors.engine.making import Making
from laban.actors.engine.planning import Plan
from laban.actors.engine.reuse import reuse_of
from laban.actors.engine.room import worst_case_tokens
from laban.actors.engine.running_call import RunningCall
from laban.actors.engine.sequence import Sequence
from laban.actors.engine.tiers import Tiers, Way
from laban.actors.engine.unfinished import Unfinished
from laban.actors.engine.waiting import Waiting
from laban.kvstore.encodings import EncodingId, make_spec
from laban.kvstore.store import EncodingStore, Entry

MakeDecode = Callable[[Call], Decode]


class Starting:
    """Decides nothing: there is room for all that the plan takes."""

    def __init__(
        self, store: EncodingStore, tiers: Tiers, corrections: Corrections, making: Making, unfinished: Unfinished
    ) -> None:
        self._store, self._tiers, self._corrections = store, tiers, corrections
        self._making, self._unfinished = making, unfinished

    def start(self, waiting: Waiting, plan: Plan, kept: list[Entry], make_decode: MakeDecode) -> RunningCall:
        """`kept` are pinned by the caller, who unpins them afterwards, also what was predicted and has joined them. If
        this raises, `undo` takes back what was done."""
        call = waiting.call
        if plan.mixes:  # none of these reads another
            kept += self._corrections.make([(plan.specs[i], mix) for i, mix in plan.mixes.items()])
        brought = self._bring(plan, call)
        sequence = self._message(waiting, plan, make_decode) if plan.target is None else self._answer(plan)
        running = self._running(waiting, plan, sequence, brought)
        if not call.spare:  # last: to mix takes pins of its own
            for entry in kept:
                self._making.want(entry, plan.specs)
        return running

    def undo(self, call_id: str) -> None:
        for sequence in list(self._unfinished.sequences):
            if sequence.decode is not None and sequence.decode.call.call_id == call_id:
                self._unfinished.discard(sequence)
        self._unfinished.give_up_orphans()

    def _bring(self, plan: Plan, call: Call) -> dict[EncodingId, int]:
        """Begins to make what is missing; of each, how many of its first tokens are not encoded."""
        brought = {}
        for spec, way in plan.missing:
            if way is Way.CORRECT:
                brought[spec.encoding_id] = spec.num_tokens
                continue
            if way is Way.ENCODE:
                self._corrections.encodes(spec, plan.specs)
            made = self._making.make(spec, way, plan.specs)
            made.spare = call.spare
            brought[spec.encoding_id] = made.num_computed if made.load is None else made.load.stop
        return brought

    def _message(self, waiting: Waiting, plan: Plan, make_decode: MakeDecode) -> Sequence:
        """The call's own, which is generated: what it reads is there or in the making."""
        call, before = waiting.call, waiting.preempted
        decode = None if before is None else before.sequence.decode
        if decode is None or decode.scorer is not None:  # all of a forced text is scored again
            decode = make_decode(call)
        entry = self._store.reserve(f"call/{call.call_id}", worst_case_tokens(call), call.namespace)
        tokens = [*call.tokens, *decode.generated]
        sequence = self._unfinished.add(entry, call.start, tokens, plan.view, plan.specs, None, decode)
        sequence.spare = call.spare
        if decode.finish_reason is not None:
            tokens = [*tokens, *call.terminator]
            sequence.close(tokens, make_spec(call.namespace, tokens, call.start, call.view, plan.specs))
        return sequence

    def _answer(self, plan: Plan) -> Sequence:
        """What a prefill asks for, which is there or in the making."""
        target = plan.target
        assert target is not None
        found = self._store.get(target.encoding_id)
        assert found is not None
        self._unfinished.pin(found)  # the call's own pin, so that another's abort does not take it away
        done = Sequence(found, target.start, list(target.tokens), (), (), target, finished=True)
        return self._unfinished.producer(found) or done

    def _running(self, waiting: Waiting, plan: Plan, sequence: Sequence, brought: dict[EncodingId, int]) -> RunningCall:
        reuse = reuse_of(plan, brought)
        num_encoded = reuse.num_encoded + (len(sequence.tokens) if plan.target is None else 0)
        before = waiting.preempted
        if before is not None:
            before.sequence = sequence
            before.tokens_encoded += num_encoded
            return before
        self._tiers.counters.add("tokens_hit_device", reuse.num_found)
        now_s, awaited_since = self._store.now_s, waiting.awaited_since
        return RunningCall(
            waiting.call,
            sequence,
            waiting.submitted_at,
            tokens_read=sum(placed.num_tokens for placed in plan.view),
            tokens_reused=reuse.num_reused,
            tokens_encoded=num_encoded,
            tokens_loaded=reuse.num_loaded,
            serial=waiting.serial,
            refused=waiting.refused,
            admitted_at=now_s,
            load_began_at=now_s if awaited_since is None else awaited_since,
            load_ended_at=None if awaited_since is None else now_s,
        )
