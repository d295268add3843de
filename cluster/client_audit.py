"""The client's side of an audit: the request, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterable

from laban.cluster.audit.findings import Finding
from laban.cluster.audit.records import AuditItem, Decision, RecordedStep, Refused, Replayed, StepAudit
from laban.cluster.translate_findings import finding_to_pb
from laban.proto import laban_pb2 as pb


def audit_request(
    submit: pb.SubmitRequest, recorded: Iterable[RecordedStep], levels: Iterable[str], num_apart: int
) -> pb.AuditRequest:
    steps = []
    for step in recorded:
        told = pb.RecordedStep(address=step.address, text=step.text, token_ids=step.token_ids)
        if step.state == "failed":
            told.error = step.error
        steps.append(told)
    return pb.AuditRequest(submit=submit, recorded=steps, levels=levels, num_apart=num_apart)


def findings_request(submit: pb.SubmitRequest, findings: Iterable[Finding]) -> pb.RecordFindingsRequest:
    return pb.RecordFindingsRequest(submit=submit, findings=map(finding_to_pb, findings))


def item_from_pb(response: pb.AuditResponse) -> AuditItem:
    """What a newer server finds besides is an empty refusal."""
    match response.WhichOneof("item"):
        case "step":
            step = response.step
            return StepAudit(
                step.address,
                step.step,
                step.level,
                step.read if step.HasField("read") else None,
                tuple(step.kl),
                tuple(step.agrees),
                tuple(step.logprob_changes),
                step.num_read,
                step.num_reused,
                step.is_same,
            )
        case "decision":
            told = response.decision
            return Decision(told.address, told.step, told.level, told.name, told.was, told.becomes)
        case "replayed":
            run = response.replayed
            return Replayed(run.level, run.ttft_ms, run.wall_ms, run.num_read, run.num_encoded)
        case _:
            refused = response.refused
            return Refused(refused.level, refused.reason, refused.address)
