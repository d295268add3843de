"""What is known of levels of fidelity between protobuf and plain values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields

from laban.actors.errors import InvalidInput
from laban.cluster.audit.findings import Finding
from laban.cluster.audit.tally import Tally
from laban.cluster.records import FidelityNote
from laban.cluster.texts import check_plain
from laban.cluster.workflow.fidelity import Degree
from laban.proto import laban_pb2 as pb

MAX_FINDINGS = 10_000


def note_to_pb(note: FidelityNote) -> pb.FidelityNote:
    return pb.FidelityNote(**asdict(note))


def note_from_pb(note: pb.FidelityNote) -> FidelityNote:
    read = note.read if note.HasField("read") else None
    return FidelityNote(note.step, read, note.level, note.kl, note.num_calls, note.why)


def finding_to_pb(finding: Finding) -> pb.Finding:
    return pb.Finding(step=finding.step, read=finding.read, level=finding.level, **asdict(finding.tally))


def findings_from_pb(findings: Iterable[pb.Finding], path: str, usual_share: float) -> list[Finding]:
    """Those of an audit; `blended` by itself is at the usual share.

    Raises InvalidInput for numbers that no audit finds.
    """
    found = []
    for place, each in enumerate(findings):
        at = f"{path}[{place}]"
        if place >= MAX_FINDINGS:
            raise InvalidInput(f"more than {MAX_FINDINGS}", field=path)
        if not each.step or len(each.step) > 1_000:
            raise InvalidInput("expected a step's name, of up to 1000 characters", field=f"{at}.step", value=each.step)
        check_plain(each.step, f"{at}.step")
        degree = Degree.of(each.level, usual_share)
        if degree is None or degree.level == "exact":
            raise InvalidInput("expected a level beside exact", field=f"{at}.level", value=each.level)
        if each.read < 0:
            raise InvalidInput("expected 0 or more", field=f"{at}.read", value=each.read)
        tally = Tally(**{field.name: getattr(each, field.name) for field in fields(Tally)})
        if not tally.is_possible:
            raise InvalidInput("counts and sums that no calls come to", field=at, value=asdict(tally))
        read = each.read if each.HasField("read") else None
        found.append(Finding(each.step, read, str(degree), "audit", tally))
    return found
