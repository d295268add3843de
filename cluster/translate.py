"""Records to protobuf messages and back: the plain values of `records.py`, field by field.

Imports neither pydantic nor anything of the server: the client uses it too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, cast

from google.protobuf.timestamp_pb2 import Timestamp

from laban.actors.calls import TokenLogprob
from laban.cluster import records
from laban.cluster.translate_findings import note_from_pb, note_to_pb
from laban.cluster.translate_values import struct_from_python, struct_to_python
from laban.cluster.usage import Usage
from laban.proto import laban_pb2 as pb

NANOS = 1_000_000_000


def enum_word(enum: Any, number: int, prefix: str) -> str:
    """The word of an enum value, "" for UNSPECIFIED and for values that this version does not know.

    >>> enum_word(pb.Fidelity, pb.FIDELITY_DIRECT, "FIDELITY_")
    'direct'
    """
    if number == 0 or number not in enum.values():
        return ""
    return str(enum.Name(number)).removeprefix(prefix).lower()


def enum_number(enum: Any, word: str, prefix: str) -> int:
    """The value that a word stands for, 0 for "". Raises ValueError for an unknown word.

    >>> enum_number(pb.Fidelity, "direct", "FIDELITY_") == pb.FIDELITY_DIRECT
    True
    """
    return int(enum.Value(prefix + (word.upper() or "UNSPECIFIED")))


def fidelity_word(number: int) -> str:
    return enum_word(pb.Fidelity, number, "FIDELITY_")


def fidelity_number(word: str) -> pb.Fidelity:
    return cast(pb.Fidelity, enum_number(pb.Fidelity, word, "FIDELITY_"))


def workflow_state_word(number: int) -> records.WorkflowState:
    return cast(records.WorkflowState, enum_word(pb.WorkflowState, number, "WORKFLOW_STATE_"))


def workflow_state_number(word: str) -> pb.WorkflowState:
    return cast(pb.WorkflowState, enum_number(pb.WorkflowState, word, "WORKFLOW_STATE_"))


def step_state_word(number: int) -> records.StepState:
    return cast(records.StepState, enum_word(pb.StepState, number, "STEP_STATE_"))


def step_state_number(word: str) -> pb.StepState:
    return cast(pb.StepState, enum_number(pb.StepState, word, "STEP_STATE_"))


def finish_reason_word(number: int) -> records.FinishReason:
    return cast(records.FinishReason, enum_word(pb.FinishReason, number, "FINISH_REASON_"))


def finish_reason_number(word: str) -> pb.FinishReason:
    return cast(pb.FinishReason, enum_number(pb.FinishReason, word, "FINISH_REASON_"))


def timestamp(seconds: float) -> Timestamp:
    nanos = round(seconds * NANOS)
    return Timestamp(seconds=nanos // NANOS, nanos=nanos % NANOS)


def seconds(at: Timestamp) -> float:
    return at.seconds + at.nanos / NANOS


def outputs_to_pb(outputs: Iterable[tuple[str, str]]) -> list[pb.Output]:
    return [pb.Output(name=name, text=text) for name, text in outputs]


def outputs_from_pb(outputs: Iterable[pb.Output]) -> tuple[tuple[str, str], ...]:
    return tuple((output.name, output.text) for output in outputs)


def error_to_pb(error: records.ErrorInfo | None) -> pb.Error | None:
    return None if error is None else pb.Error(status=error.status, message=error.message, field=error.field)


def error_from_pb(owner: Any) -> records.ErrorInfo | None:
    """`owner.error`, None if it is not set."""
    if not owner.HasField("error"):
        return None
    return records.ErrorInfo(owner.error.status, owner.error.message, owner.error.field)


def logprobs_to_pb(logprobs: Iterable[TokenLogprob]) -> list[pb.TokenLogprob]:
    return [
        pb.TokenLogprob(
            token_id=item.token_id,
            logprob=item.logprob,
            top=[pb.TopLogprob(token_id=token_id, logprob=logprob) for token_id, logprob in item.top],
        )
        for item in logprobs
    ]


def logprobs_from_pb(logprobs: Iterable[pb.TokenLogprob]) -> tuple[TokenLogprob, ...]:
    return tuple(
        TokenLogprob(item.token_id, item.logprob, tuple((top.token_id, top.logprob) for top in item.top))
        for item in logprobs
    )


def step_to_pb(step: records.StepResult) -> pb.StepResult:
    return pb.StepResult(
        address=step.address,
        step=step.step,
        agent=step.agent or "",
        attempt=step.attempt,
        state=step_state_number(step.state),
        fidelity=fidelity_number(step.fidelity),
        error=error_to_pb(step.error),
        values=struct_from_python(step.values),
        tool=step.tool,
        args=struct_from_python(step.args),
        model=step.model,
        adapter=step.adapter,
        earlier_attempts=pb.Usage(**asdict(step.earlier_attempts)) if step.attempt > 1 else None,
        **figures_to_pb(step),
    )


def step_from_pb(step: pb.StepResult) -> records.StepResult:
    return records.StepResult(
        address=step.address,
        step=step.step,
        agent=step.agent or None,
        attempt=step.attempt,
        state=step_state_word(step.state),
        fidelity=fidelity_word(step.fidelity),
        error=error_from_pb(step),
        values=struct_to_python(step.values),
        tool=step.tool,
        args=struct_to_python(step.args),
        model=step.model,
        adapter=step.adapter,
        earlier_attempts=usage_from_pb(step.earlier_attempts),
        **figures_from_pb(step),
    )


def usage_from_pb(usage: pb.Usage) -> Usage:
    return Usage(
        tokens_read=usage.tokens_read,
        tokens_reused=usage.tokens_reused,
        tokens_loaded=usage.tokens_loaded,
        tokens_encoded=usage.tokens_encoded,
        tokens_generated=usage.tokens_generated,
        wall_ms=usage.wall_ms,
    )


def figures_to_pb(result: records.StepResult | records.MessageRecord) -> dict[str, Any]:
    """What a step's result and a session's message have in common: text, counts and times."""
    return {
        "text": result.text,
        "token_ids": result.token_ids,
        "tokens_read": result.tokens_read,
        "tokens_reused": result.tokens_reused,
        "tokens_loaded": result.tokens_loaded,
        "tokens_encoded": result.tokens_encoded,
        "tokens_generated": result.tokens_generated,
        "tokens_drafted": result.tokens_drafted,
        "tokens_accepted": result.tokens_accepted,
        "ttft_ms": result.ttft_ms,
        "wall_ms": result.wall_ms,
        "worker": result.worker,
        "finish_reason": finish_reason_number(result.finish_reason),
        "logprobs": logprobs_to_pb(result.logprobs),
    }


def figures_from_pb(result: pb.StepResult | pb.MessageRecord) -> dict[str, Any]:
    return {
        "text": result.text,
        "token_ids": tuple(result.token_ids),
        "tokens_read": result.tokens_read,
        "tokens_reused": result.tokens_reused,
        "tokens_loaded": result.tokens_loaded,
        "tokens_encoded": result.tokens_encoded,
        "tokens_generated": result.tokens_generated,
        "tokens_drafted": result.tokens_drafted,
        "tokens_accepted": result.tokens_accepted,
        "ttft_ms": result.ttft_ms,
        "wall_ms": result.wall_ms,
        "worker": result.worker,
        "finish_reason": finish_reason_word(result.finish_reason),
        "logprobs": logprobs_from_pb(result.logprobs),
    }


def workflow_to_pb(record: records.WorkflowRecord) -> pb.WorkflowRecord:
    return pb.WorkflowRecord(
        workflow_id=record.workflow_id,
        name=record.name,
        state=workflow_state_number(record.state),
        created_at=timestamp(record.created_at),
        finished_at=None if record.finished_at is None else timestamp(record.finished_at),
        outputs=outputs_to_pb(record.outputs),
        steps=[step_to_pb(step) for step in record.steps],
        error=error_to_pb(record.error),
        last_event=record.last_event,
        held=record.held,
        notes=[note_to_pb(note) for note in record.notes],
    )


def workflow_from_pb(record: pb.WorkflowRecord) -> records.WorkflowRecord:
    return records.WorkflowRecord(
        workflow_id=record.workflow_id,
        name=record.name,
        state=workflow_state_word(record.state),
        created_at=seconds(record.created_at),
        finished_at=seconds(record.finished_at) if record.HasField("finished_at") else None,
        outputs=outputs_from_pb(record.outputs),
        steps=tuple(step_from_pb(step) for step in record.steps),
        error=error_from_pb(record),
        last_event=record.last_event,
        held=record.held,
        notes=tuple(map(note_from_pb, record.notes)),
    )


def event_to_pb(event: records.Event) -> pb.Event:
    """Raises ValueError for an event whose kind and content do not go together."""
    message = pb.Event(number=event.number, workflow_id=event.workflow_id, at=timestamp(event.at))
    if event.kind == "workflow_state" and event.workflow_state is not None:
        message.workflow_state.CopyFrom(
            pb.WorkflowStateChanged(
                state=workflow_state_number(event.workflow_state),
                outputs=outputs_to_pb(event.outputs),
                error=error_to_pb(event.error),
                held=event.held,
                notes=[note_to_pb(note) for note in event.notes],
            )
        )
    elif event.kind == "step_state" and event.step_state is not None:
        message.step_state.CopyFrom(
            pb.StepStateChanged(
                address=event.address,
                state=step_state_number(event.step_state),
                attempt=event.attempt,
                worker=event.worker,
                tool=event.tool,
                args=struct_from_python(event.args) if event.tool else None,
            )
        )
    elif event.kind == "step_result" and event.result is not None:
        message.step_result.CopyFrom(step_to_pb(event.result))
    else:
        raise ValueError(f"event {event.number} of {event.workflow_id} is a {event.kind} without its content")
    return message


def event_from_pb(message: pb.Event) -> records.Event | None:
    """None for a kind of event that this version does not know."""
    base = (message.number, message.workflow_id, seconds(message.at))
    what = message.WhichOneof("what")
    if what == "workflow_state":
        changed = message.workflow_state
        return records.Event(
            *base,
            "workflow_state",
            workflow_state=workflow_state_word(changed.state),
            outputs=outputs_from_pb(changed.outputs),
            error=error_from_pb(changed),
            held=changed.held,
            notes=tuple(map(note_from_pb, changed.notes)),
        )
    if what == "step_state":
        step = message.step_state
        return records.Event(
            *base,
            "step_state",
            address=step.address,
            attempt=step.attempt,
            step_state=step_state_word(step.state),
            worker=step.worker,
            tool=step.tool,
            args=struct_to_python(step.args),
        )
    if what == "step_result":
        result = step_from_pb(message.step_result)
        return records.Event(*base, "step_result", address=result.address, attempt=result.attempt, result=result)
    return None


def chunk_to_pb(chunk: records.TokenChunk) -> pb.TokenChunk:
    return pb.TokenChunk(
        workflow_id=chunk.workflow_id,
        address=chunk.address,
        attempt=chunk.attempt,
        index=chunk.index,
        token_ids=chunk.token_ids,
        text=chunk.text,
    )


def chunk_from_pb(chunk: pb.TokenChunk) -> records.TokenChunk:
    return records.TokenChunk(
        chunk.workflow_id, chunk.address, chunk.attempt, chunk.index, tuple(chunk.token_ids), chunk.text
    )


def watch_to_pb(item: records.Event | records.TokenChunk) -> pb.WatchResponse:
    if isinstance(item, records.TokenChunk):
        return pb.WatchResponse(chunk=chunk_to_pb(item))
    return pb.WatchResponse(event=event_to_pb(item))


def watch_from_pb(item: pb.WatchResponse) -> records.Event | records.TokenChunk | None:
    """None for what this version does not know."""
    what = item.WhichOneof("item")
    if what == "chunk":
        return chunk_from_pb(item.chunk)
    return event_from_pb(item.event) if what == "event" else None
