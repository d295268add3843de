"""What audits found of a workflow's steps: plain values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from laban.cluster.audit.records import AS_WRITTEN, AuditItem, Decision, StepAudit
from laban.cluster.audit.tally import Tally
from laban.cluster.workflow.names import step_path

Source = Literal["served", "audit", "shadow"]
"""Who found it, the best evidence first. `served`: audits in service, of calls at that level. `audit`: `laban audit`,
whole runs at that level. `shadow`: audits in service, of calls that were exact, whose context was exact too."""

SOURCES: tuple[Source, ...] = ("served", "audit", "shadow")


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose workflow it is, what it is called, which it is, and the model (as in encodings' namespaces, without the
    tenant)."""

    tenant: str
    model: str
    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class Finding:
    """Of a step's calls at a level; with `read` of that entry of its `read` alone at the level."""

    step: str
    read: int | None
    level: str
    source: Source
    tally: Tally

    @property
    def key(self) -> tuple[str, int | None, str, Source]:
        return self.step, self.read, self.level, self.source


def found_in(items: Iterable[AuditItem]) -> list[Finding]:
    """What an audit of a run found, by step, read and level."""
    tallies: dict[tuple[str, int | None, str], Tally] = {}
    for key, tally in _tallies(items):
        tallies[key] = tallies.get(key, Tally()).plus(tally)
    return [Finding(*key, "audit", tally) for key, tally in tallies.items()]


def _tallies(items: Iterable[AuditItem]) -> Iterator[tuple[tuple[str, int | None, str], Tally]]:
    for item in items:
        if isinstance(item, StepAudit) and item.level != AS_WRITTEN:
            yield (step_path(item.address), item.read, item.level), Tally.of_call(item.kl, item.agrees)
        elif isinstance(item, Decision) and item.level != AS_WRITTEN:
            key = step_path(item.address), None, item.level
            yield key, Tally(num_decisions=1, num_flips=int(item.flips))


def merged(findings: Iterable[Finding]) -> Mapping[tuple[str, int | None, str, Source], Tally]:
    """Tallies of the same added up."""
    tallies: dict[tuple[str, int | None, str, Source], Tally] = {}
    for each in findings:
        tallies[each.key] = tallies.get(each.key, Tally()).plus(each.tally)
    return tallies
