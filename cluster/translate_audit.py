"""Audits between protobuf and plain values, both ways."""

from __future__ import annotations

from laban.actors.errors import InvalidInput
from laban.cluster.audit.auditor import AuditRequest
from laban.cluster.audit.levels import named, problem_with
from laban.cluster.audit.records import AuditItem, Decision, RecordedStep, Refused, Replayed, StepAudit
from laban.cluster.gateway_requests import read_submission
from laban.cluster.texts import check_text
from laban.proto import laban_pb2 as pb

MAX_LEVELS = 16


def read_audit(request: pb.AuditRequest) -> AuditRequest:
    """Slow for large documents: call it off the event loop. Raises as `read_submission` does."""
    if not request.HasField("submit"):
        raise InvalidInput("missing, expected what was submitted", field="submit")
    submission = read_submission(request.submit, "submit.")
    if submission.overrides.fidelity is not None:
        raise InvalidInput("expected none: `levels` says which", field="submit.overrides.fidelity")
    if not 1 <= len(request.levels) <= MAX_LEVELS:
        raise InvalidInput(f"expected 1 to {MAX_LEVELS}", field="levels", value=len(request.levels))
    for place, level in enumerate(request.levels):
        problem = problem_with(level)
        if problem:
            raise InvalidInput(problem, field=f"levels[{place}]", value=level)
    if request.num_apart < 0:
        raise InvalidInput("expected 0 or more", field="num_apart", value=request.num_apart)
    recorded = tuple(_recorded_from_pb(step, f"recorded[{place}]") for place, step in enumerate(request.recorded))
    levels = tuple(dict.fromkeys(named(level, submission.workflow) for level in request.levels))
    return AuditRequest(
        submission.workflow, submission.inputs, submission.overrides, recorded, levels, request.num_apart
    )


def _recorded_from_pb(step: pb.RecordedStep, path: str) -> RecordedStep:
    if step.HasField("error"):
        return RecordedStep(step.address, state="failed", error=check_text(step.error, f"{path}.error"))
    return RecordedStep(step.address, check_text(step.text, f"{path}.text"), tuple(step.token_ids))


def item_to_pb(item: AuditItem) -> pb.AuditResponse:
    match item:
        case StepAudit():
            step = pb.StepAudit(
                address=item.address,
                step=item.step,
                level=item.level,
                read=item.read,
                kl=item.kl,
                agrees=item.agrees,
                logprob_changes=item.logprob_changes,
                num_read=item.num_read,
                num_reused=item.num_reused,
                is_same=item.is_same,
            )
            return pb.AuditResponse(step=step)
        case Decision():
            decision = pb.AuditedDecision(
                address=item.address,
                step=item.step,
                level=item.level,
                name=item.name,
                was=item.was,
                becomes=item.becomes,
            )
            return pb.AuditResponse(decision=decision)
        case Replayed():
            replayed = pb.ReplayedRun(
                level=item.level,
                ttft_ms=item.ttft_ms,
                wall_ms=item.wall_ms,
                num_read=item.num_read,
                num_encoded=item.num_encoded,
            )
            return pb.AuditResponse(replayed=replayed)
        case Refused():
            return pb.AuditResponse(refused=pb.RefusedLevel(level=item.level, reason=item.reason, address=item.address))
