"""A workflow's timeline: every step in the place and time it had."""

from __future__ import annotations

import asyncio
import json
from argparse import Namespace
from itertools import pairwise
from pathlib import Path

import pytest
from executor_workflows import DEBATE, asynchronous, tool_step
from metered_rig import metered_rig

from laban.actors.errors import InvalidInput
from laban.cluster.cli.trace import trace
from laban.cluster.client import Client
from laban.cluster.records import Event
from laban.cluster.timeline import HANDLERS, timeline


def spans(drawn: dict, name: str) -> list[dict]:
    return [each for each in drawn["traceEvents"] if each["ph"] == "X" and each["name"] == name]


@asynchronous
async def test_steps_lie_side_by_side_at_their_workers() -> None:
    async with metered_rig(2) as rig:
        events = [item async for item in rig.client.run(DEBATE) if isinstance(item, Event)]
    drawn = timeline(events, events[-1].at + 100)
    names = {each["args"]["name"] for each in drawn["traceEvents"] if each["name"] == "process_name"}
    assert "workflow" in names
    assert names - {"workflow"} <= {"w0", "w1"}
    whole = spans(drawn, events[0].workflow_id)[0]
    assert whole["dur"] == pytest.approx((events[-1].at - events[0].at) * 1e6, abs=2)
    steps = [each for each in drawn["traceEvents"] if each["ph"] == "X" and each["name"].startswith("answer")]
    whole_waits, parts = spans(drawn, "queue and prefill"), (spans(drawn, "queued"), spans(drawn, "prefill"))
    assert len(steps) == len(spans(drawn, "decode")) == len(whole_waits) + len(parts[0]) == 6
    assert len(parts[0]) == len(parts[1])
    for step in steps:
        assert step["args"]["state"] == "succeeded"
        inside = [
            each
            for name in ("queued", "prefill", "queue and prefill", "decode")
            for each in spans(drawn, name)
            if (each["pid"], each["tid"]) == (step["pid"], step["tid"])
            and step["ts"] <= each["ts"] <= each["ts"] + each["dur"] <= step["ts"] + step["dur"] + 1
        ]
        assert sum(each["dur"] for each in inside) == pytest.approx(step["dur"], abs=3)
    lanes: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for step in steps:
        lanes.setdefault((step["pid"], step["tid"]), []).append((step["ts"], step["ts"] + step["dur"]))
    for times in lanes.values():
        times.sort()
        assert all(before[1] <= after[0] for before, after in pairwise(times))


@asynchronous
async def test_what_runs_and_what_handlers_have_is_drawn_up_to_now(tmp_path: Path) -> None:
    async with metered_rig() as rig:
        record = await rig.client.submit(tool_step())
        address = rig.client_address

        def write(out: Path) -> None:
            with Client(address) as client:
                assert trace(client, Namespace(workflow_id=record.workflow_id, out=str(out))) == 0

        await asyncio.to_thread(write, tmp_path / "trace.json")
        with pytest.raises(InvalidInput, match="cannot be written"):
            await asyncio.to_thread(write, tmp_path)
        await rig.client.cancel(record.workflow_id)
    drawn = json.loads((tmp_path / "trace.json").read_text())
    names = {each["args"]["name"] for each in drawn["traceEvents"] if each["name"] == "process_name"}
    assert names == {"workflow", HANDLERS}
    assert spans(drawn, "tests")[0]["args"]["state"] == "running"
    assert spans(drawn, record.workflow_id)[0]["args"]["state"] == "running"


def test_nothing_is_drawn_of_nothing() -> None:
    assert [each["ph"] for each in timeline([], 5.0)["traceEvents"]] == ["M", "M", "X"]
