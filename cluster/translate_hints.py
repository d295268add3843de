"""What became of hints as protobuf messages, and back."""

from __future__ import annotations

from typing import cast

from laban.cluster import records
from laban.cluster.translate import enum_number, enum_word
from laban.cluster.translate_sessions import duration, duration_s
from laban.proto import laban_pb2 as pb


def hint_status_word(number: int) -> records.HintStatus:
    return cast(records.HintStatus, enum_word(pb.HintStatus, number, "HINT_STATUS_"))


def hint_status_number(word: str) -> pb.HintStatus:
    return cast(pb.HintStatus, enum_number(pb.HintStatus, word, "HINT_STATUS_"))


def outcome_to_pb(outcome: records.HintOutcome) -> pb.HintOutcome:
    return pb.HintOutcome(
        agent=outcome.agent,
        status=hint_status_number(outcome.status),
        reason=outcome.reason,
        num_reads=outcome.num_reads,
        num_tokens=outcome.num_tokens,
        pin=duration(outcome.pin_s),
        ttl=duration(outcome.ttl_s),
    )


def outcome_from_pb(outcome: pb.HintOutcome) -> records.HintOutcome:
    return records.HintOutcome(
        agent=outcome.agent,
        status=hint_status_word(outcome.status),
        reason=outcome.reason,
        num_reads=outcome.num_reads,
        num_tokens=outcome.num_tokens,
        pin_s=duration_s(outcome.pin),
        ttl_s=duration_s(outcome.ttl),
    )
