"""Where what audits found is kept: in the journal, for all who share it, or in memory where there is none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from laban.cluster.audit.findings import Finding, Source, Subject
from laban.cluster.audit.tally import Tally
from laban.cluster.records import Divergence

Key = tuple[str, int | None, str, Source]
MAX_SUBJECTS = 10_000


class Knowledge(Protocol):
    """Methods raise Unavailable while the journal is away."""

    async def findings(self, subject: Subject) -> list[Finding]: ...

    async def add(self, subject: Subject, findings: Iterable[Finding]) -> None:
        """To what there is, added up."""

    async def put(self, subject: Subject, findings: Iterable[Finding]) -> None:
        """In the place of all that was found, by anybody, of these steps and reads at these levels."""

    async def divergences(self) -> list[Divergence]:
        """Of the workflows that left their tolerance."""

    async def set_divergence(self, divergence: Divergence) -> None:
        """In the place of what was said of this workflow."""

    async def drop_divergence(self, tenant: str, workflow: str) -> None: ...

    async def clear(self, tenant: str, workflow: str) -> bool:
        """Forget all that was found of the workflows of this name; whether there was anything."""


@dataclass
class Remembered:
    """Implements Knowledge. As long as the process lives."""

    _found: dict[Subject, dict[Key, Tally]] = field(default_factory=dict)
    _diverging: dict[tuple[str, str], Divergence] = field(default_factory=dict)

    async def findings(self, subject: Subject) -> list[Finding]:
        return [Finding(*key, tally) for key, tally in self._found.get(subject, {}).items()]

    async def add(self, subject: Subject, findings: Iterable[Finding]) -> None:
        there = self._found.setdefault(subject, {})
        for each in findings:
            there[each.key] = there.get(each.key, Tally()).plus(each.tally)
        while len(self._found) > MAX_SUBJECTS:
            del self._found[next(iter(self._found))]

    async def put(self, subject: Subject, findings: Iterable[Finding]) -> None:
        findings = list(findings)
        gone = {each.key[:3] for each in findings}
        there = self._found.get(subject, {})
        self._found[subject] = {key: tally for key, tally in there.items() if key[:3] not in gone}
        await self.add(subject, findings)

    async def divergences(self) -> list[Divergence]:
        return list(self._diverging.values())

    async def set_divergence(self, divergence: Divergence) -> None:
        self._diverging[divergence.tenant, divergence.workflow] = divergence

    async def drop_divergence(self, tenant: str, workflow: str) -> None:
        self._diverging.pop((tenant, workflow), None)

    async def clear(self, tenant: str, workflow: str) -> bool:
        gone = [subject for subject in self._found if (subject.tenant, subject.name) == (tenant, workflow)]
        for subject in gone:
            del self._found[subject]
        return self._diverging.pop((tenant, workflow), None) is not None or bool(gone)
