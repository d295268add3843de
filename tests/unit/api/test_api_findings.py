"""What audits found is kept and cleared over gRPC; a status names divergences to those whom they concern."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from api_fakes import STATUS, FakeExecutor, FakeSessions

from laban.actors.errors import InvalidInput, LabanError, NotBuilt, NotFound
from laban.cluster.audit.auditor import AuditRequest
from laban.cluster.audit.audits import Audits
from laban.cluster.audit.findings import Finding
from laban.cluster.audit.knowledge import Remembered
from laban.cluster.audit.records import AuditItem, RecordedStep, Refused, StepAudit
from laban.cluster.audit.resolving import Levels
from laban.cluster.audit.tally import Tally
from laban.cluster.audit.watching import Watch
from laban.cluster.callers import Caller, set_caller
from laban.cluster.client import Client
from laban.cluster.client_async import AsyncClient
from laban.cluster.gateway import Gateway
from laban.cluster.gateway_cluster import ClusterService
from laban.cluster.records import Divergence
from laban.cluster.workflow.parse import parse_yaml
from laban.proto import laban_pb2 as pb

FLOW = "version: 1\nname: flow\nmessages: {m: words}\nsteps: [{step: say, read: [m]}]"
FINDING = Finding("say", None, "direct", "audit", Tally(2, 0.5, 0.13, 20, 19, 4, 1))
LEVELS = ("direct", "blended:0.15", "blended:0.5")  # each by its share
LOST = Divergence("", "flow", 12.5, 0.125, 40, 0.05, falls_back=True)


def against(act: Any, *, keeps: bool = True) -> Remembered:
    """Runs `act` with a client of a gateway that keeps findings."""
    known = Remembered()

    async def main() -> None:
        levels, watch = Levels(known, "model"), Watch(known, 0.05, falls_back=True)
        await known.set_divergence(LOST)
        await watch.refresh()
        kept: Any = Audits(None, None, None, levels, watch) if keeps else Audits(None, None, None)  # type: ignore[arg-type]
        gateway = Gateway(
            FakeExecutor(), FakeSessions(), lambda: replace(STATUS, divergences=watch.diverging), audits=kept
        )
        port = await gateway.start("127.0.0.1", 0)
        try:
            with Client(f"127.0.0.1:{port}") as client:
                await asyncio.to_thread(act, client)
        finally:
            await gateway.stop(0)

    asyncio.run(main())
    return known


def test_findings_are_kept_for_the_workflow_and_cleared_by_its_name() -> None:
    def act(client: Client) -> None:
        client.record_findings(FLOW, [FINDING])
        client.record_findings(FLOW.replace("name: flow", "name: other"), [FINDING])
        assert client.status().divergences == (LOST,)
        client.clear_findings("other")
        with pytest.raises(NotFound, match="other"):
            client.clear_findings("other")

    known = against(act)
    (subject,) = known._found
    assert subject == asyncio.run(Levels(known, "model").subject(parse_yaml(FLOW), ""))
    assert asyncio.run(known.findings(subject)) == [FINDING]


def test_what_is_found_of_blended_is_found_of_a_share() -> None:
    flow = FLOW.replace("name: flow", "name: flow\nrecompute_share: 0.4")

    def act(client: Client) -> None:
        client.record_findings(flow, [replace(FINDING, level=level) for level in ("blended", "blended:0.30")])

    known = against(act)
    (subject,) = known._found
    found = asyncio.run(known.findings(subject))
    assert [each.level for each in found] == ["blended:0.4", "blended:0.3"]


class Replays(Audits):
    """Finds one thing after another, for ever."""

    def __init__(self, knowledge: Remembered) -> None:
        super().__init__(None, None, None, Levels(knowledge, "model"))  # type: ignore[arg-type]
        self.asked: list[AuditRequest] = []
        self.left = asyncio.Event()

    async def run(
        self, request: AuditRequest, *, tenant: str = "", max_of_tenant: int | None = None
    ) -> AsyncGenerator[AuditItem, None]:
        self.asked.append(request)
        try:
            yield StepAudit("say", "say", "direct", None, (0.5, 0.25), (True, False), (0.0, -0.5), 7, 3)
            yield Refused("blended", "so it is")
            while True:
                yield Refused("direct", "again", "say")
                await asyncio.sleep(0.01)
        finally:
            self.left.set()


def test_the_asynchronous_client_audits_keeps_and_clears() -> None:
    async def main() -> None:
        known = Remembered()
        audits = Replays(known)
        gateway = Gateway(FakeExecutor(), FakeSessions(), lambda: STATUS, audits=audits)
        port = await gateway.start("127.0.0.1", 0)
        try:
            async with AsyncClient(f"127.0.0.1:{port}") as client, asyncio.timeout(30):
                recorded = [RecordedStep("say", "hello", (1, 2)), RecordedStep("ask", state="failed", error="gone")]
                found = []
                asks = ["direct", "blended", "blended:.5"]
                async with aclosing(client.audit(FLOW, {}, recorded, asks, num_apart=3)) as items:
                    async for item in items:
                        found.append(item)
                        if len(found) == 2:
                            break
                await audits.left.wait()  # whoever leaves ends it
                assert found == [
                    StepAudit("say", "say", "direct", None, (0.5, 0.25), (True, False), (0.0, -0.5), 7, 3),
                    Refused("blended", "so it is"),
                ]
                [asked] = audits.asked
                assert (asked.workflow.name, asked.levels, asked.num_apart) == ("flow", LEVELS, 3)
                assert asked.recorded == tuple(recorded)
                await client.record_findings(FLOW, [FINDING])
                await client.clear_findings("flow")
                with pytest.raises(NotFound, match="flow"):
                    await client.clear_findings("flow")
        finally:
            await gateway.stop(0)

    asyncio.run(main())


def test_what_is_cleared_diverges_no_more() -> None:
    def act(client: Client) -> None:
        client.clear_findings("flow")
        assert client.status().divergences == ()

    against(act)


@pytest.mark.parametrize(
    ("finding", "field"),
    [
        (replace(FINDING, step=""), "findings[0].step"),
        (replace(FINDING, step="sing"), "findings[0].step"),
        (replace(FINDING, step="say/say"), "findings[0].step"),
        (replace(FINDING, read=1), "findings[0].read"),
        (replace(FINDING, level="exact"), "findings[0].level"),
        (replace(FINDING, level="fast"), "findings[0].level"),
        (replace(FINDING, level="direct:0.3"), "findings[0].level"),
        (replace(FINDING, level="blended:0"), "findings[0].level"),
        (replace(FINDING, level="blended:nan"), "findings[0].level"),
        (replace(FINDING, read=-1), "findings[0].read"),
        (replace(FINDING, tally=Tally(-1, 0.5, 0.13)), "findings[0]"),
        (replace(FINDING, tally=Tally(2**62, 0.5, 0.13)), "findings[0]"),
        (replace(FINDING, tally=Tally(2, 0.5, 0.0)), "findings[0]"),
        (replace(FINDING, tally=Tally(2, float("nan"), 0.13)), "findings[0]"),
        (replace(FINDING, tally=Tally(2, 0.5, 0.13, num_agreed=3)), "findings[0]"),
    ],
)
def test_numbers_that_no_audit_finds_are_refused(finding: Finding, field: str) -> None:
    def act(client: Client) -> None:
        with pytest.raises(InvalidInput) as caught:
            client.record_findings(FLOW, [finding])
        assert caught.value.field == field

    against(act)


def test_a_tolerance_that_is_none_is_refused() -> None:
    def act(client: Client) -> None:
        for bad in (-0.1, 101.0, float("nan")):
            with pytest.raises(InvalidInput) as caught:
                client.submit(FLOW, fidelity="auto", tolerance=bad)
            assert caught.value.field == "overrides.tolerance"

    against(act)


def test_a_server_that_keeps_nothing_says_so() -> None:
    def act(client: Client) -> None:
        for asked in (lambda: client.record_findings(FLOW, [FINDING]), lambda: client.clear_findings("flow")):
            with pytest.raises(LabanError) as caught:
                asked()
            assert type(caught.value) is NotBuilt

    against(act, keeps=False)


def test_who_is_no_admin_hears_of_its_own_tenant_alone() -> None:
    everyone = (replace(LOST, tenant="one"), replace(LOST, tenant="two"))
    service = ClusterService(lambda: replace(STATUS, divergences=everyone))

    async def told(role: Any) -> list[str]:
        set_caller(Caller("somebody", "one", frozenset({role})))
        return [each.tenant for each in (await service.GetStatus(pb.GetStatusRequest())).divergences]

    assert asyncio.run(told("read")) == ["one"]
    assert asyncio.run(told("admin")) == ["one", "two"]
