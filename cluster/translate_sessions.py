"""Sessions and their messages as protobuf messages, and back."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from laban.cluster import records
from laban.cluster.translate import (
    NANOS,
    fidelity_number,
    fidelity_word,
    figures_from_pb,
    figures_to_pb,
    seconds,
    timestamp,
)
from laban.proto import laban_pb2 as pb


def duration(span_s: float) -> Duration:
    nanos = round(span_s * NANOS)
    return Duration(seconds=nanos // NANOS, nanos=nanos % NANOS)


def duration_s(span: Duration) -> float:
    return span.seconds + span.nanos / NANOS


def message_to_pb(record: records.MessageRecord) -> pb.MessageRecord:
    return pb.MessageRecord(
        session_id=record.session_id,
        message_id=record.message_id,
        role=record.role,
        name=record.name or "",
        start=record.start,
        num_tokens=record.num_tokens,
        fidelity=fidelity_number(record.fidelity),
        overlaps=record.overlaps,
        **figures_to_pb(record),
    )


def message_from_pb(message: pb.MessageRecord) -> records.MessageRecord:
    return records.MessageRecord(
        session_id=message.session_id,
        message_id=message.message_id,
        role=message.role,
        name=message.name or None,
        start=message.start,
        num_tokens=message.num_tokens,
        fidelity=fidelity_word(message.fidelity),
        overlaps=tuple(message.overlaps),
        **figures_from_pb(message),
    )


def session_to_pb(record: records.SessionRecord) -> pb.Session:
    return pb.Session(
        session_id=record.session_id,
        ttl=duration(record.ttl_s),
        created_at=timestamp(record.created_at),
        expires_at=timestamp(record.expires_at),
        messages=[message_to_pb(message) for message in record.messages],
        model=record.model,
    )


def session_from_pb(session: pb.Session) -> records.SessionRecord:
    return records.SessionRecord(
        session_id=session.session_id,
        ttl_s=duration_s(session.ttl),
        created_at=seconds(session.created_at),
        expires_at=seconds(session.expires_at),
        messages=tuple(message_from_pb(message) for message in session.messages),
        model=session.model,
    )
