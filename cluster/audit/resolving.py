"""What a workflow is taken in with: levels in the place of `auto`, exact where it has left its tolerance."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from laban.cluster.audit.choosing import Resolved, fallen_back, is_exact, resolve
from laban.cluster.audit.findings import Subject
from laban.cluster.audit.identity import digest_of
from laban.cluster.audit.knowledge import Knowledge
from laban.cluster.records import Divergence
from laban.cluster.workflow.schema import Workflow
from laban.cluster.workflow.states import Overrides


@dataclass(frozen=True)
class Levels:
    """`model` as in encodings' namespaces, without the tenant. `falls_back`: as `audit.fallback` says."""

    knowledge: Knowledge
    model: str
    falls_back: bool = False

    async def resolve(self, workflow: Workflow, overrides: Overrides, tenant: str) -> Resolved:
        """Once for each workflow; what comes of it is in the journal. One that asks for `exact` alone is not looked up.

        Raises Unavailable while the journal is away.
        """
        if is_exact(workflow, overrides):
            return Resolved(workflow, overrides)
        if self.falls_back:
            for each in await self.knowledge.divergences():
                if (each.tenant, each.workflow) == (tenant, workflow.name):
                    return fallen_back(workflow, overrides, why_of(each))
        findings = await self.knowledge.findings(await self.subject(workflow, tenant))
        return await asyncio.to_thread(resolve, workflow, overrides, findings)

    async def subject(self, workflow: Workflow, tenant: str) -> Subject:
        return Subject(tenant, self.model, workflow.name, await asyncio.to_thread(digest_of, workflow))

    def subject_of_calls(self, name: str, tenant: str) -> Subject:
        """Of what is no workflow: `name` is one of `cases.CALLERS`."""
        return Subject(tenant, self.model, name, "")


def why_of(divergence: Divergence) -> str:
    """
    >>> why_of(Divergence("", "debate", 0.0, 0.1234, 40, 0.05))
    'it has left its tolerance: KL 0.123 over 40 audited calls, tolerance 0.05'
    """
    return (
        f"it has left its tolerance: KL {divergence.kl:.3g} over {divergence.num_calls} audited calls, "
        f"tolerance {divergence.tolerance:g}"
    )
