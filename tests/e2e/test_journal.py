"""A cluster that is killed in the middle of a workflow goes on with it when it is started again, or another does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest
from command_line import ENDING_S, Cli

from laban.cluster.client import Client
from laban.cluster.records import Event, TokenChunk

pytestmark = pytest.mark.e2e

WORKFLOW = """
version: 1
name: relay
messages: {task: "Tell the story of a lighthouse keeper, a paragraph at a time."}
agents: {ann: "You are Ann, a novelist.", bob: "You are Bob, an editor."}
sampling: {max_tokens: 48, temperature: 0}
steps:
  - step: opening
    for_each: agents
    read: [task]
  - {step: second, agent: ann, read: [task, "opening[all]"]}
  - {step: third, agent: bob, read: [task, second]}
  - {step: human, external: {}, read: [third]}
  - {step: ending, agent: ann, read: [task, third, human]}
outputs: {story: ending}
"""


def serve(cli: Cli) -> tuple[subprocess.Popen[str], str]:
    process = cli.start("serve", "--port", "0")
    assert process.stdout is not None
    line = process.stdout.readline()
    if " on " not in line:
        _, error = process.communicate(timeout=ENDING_S)
        pytest.fail(f"the cluster did not start: {error}")
    return process, line.rpartition(" on ")[2].strip()


def kill_everything(cli: Cli, process: subprocess.Popen[str]) -> None:
    """As if the machine had lost its power."""
    for number in cli.processes(""):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    process.wait(ENDING_S)
    assert cli.leftovers() == []


def test_a_killed_server_goes_on_without_a_gap(tmp_path: Path) -> None:
    (tmp_path / "laban.yaml").write_text("journal: {url: 'sqlite:///journal.db'}\n")
    cli = Cli(tmp_path)
    process, address = serve(cli)
    with Client(address) as client:
        calm = client.submit(WORKFLOW)
        for item in client.watch(calm.workflow_id):
            if isinstance(item, Event) and item.address == "human" and item.step_state == "ready":
                client.complete_step(calm.workflow_id, "human", "Go on.")
        expected = {step.address: step.token_ids for step in client.get(calm.workflow_id).steps}

        workflow_id = client.submit(WORKFLOW, idempotency_key="story").workflow_id
        seen: list[Event] = []
        watch = client.watch(workflow_id)
        for item in watch:
            if isinstance(item, Event):
                seen.append(item)
            elif isinstance(item, TokenChunk) and item.address == "third" and item.index > 5:
                break
        kill_everything(cli, process)
    process, address = serve(cli)
    with Client(address) as client:
        assert client.submit(WORKFLOW, idempotency_key="story").workflow_id == workflow_id
        assert client.get(calm.workflow_id).outputs
        assert client.status().journal == "available"
        for item in client.watch(workflow_id, after_event=seen[-1].number):
            if isinstance(item, Event):
                seen.append(item)
                if item.address == "human" and item.step_state == "ready":
                    client.complete_step(workflow_id, "human", "Go on.")
        assert [event.number for event in seen] == list(range(1, len(seen) + 1))
        assert ("third", 2, "ready") in [(event.address, event.attempt, event.step_state) for event in seen]
        results = [event.result for event in seen if event.result is not None]
        assert {result.address: result.token_ids for result in results} == expected
        assert len(results) == len(expected)
        again = [item for item in client.watch(workflow_id) if isinstance(item, Event)]
        assert again == seen
    process.send_signal(signal.SIGTERM)
    assert process.wait(ENDING_S) == 0
    assert cli.leftovers() == []


def test_another_server_goes_on_with_what_a_killed_one_leaves(tmp_path: Path) -> None:
    (tmp_path / "laban.yaml").write_text("journal: {url: 'sqlite:///journal.db'}\n")
    clis = [Cli(tmp_path) for _ in range(2)]
    (first, address), (second, other) = map(serve, clis)
    with Client(address) as at_first, Client(other) as at_second:
        calm = at_first.submit(WORKFLOW).workflow_id
        for item in at_second.watch(calm):
            if isinstance(item, Event) and item.address == "human" and item.step_state == "ready":
                at_second.complete_step(calm, "human", "Go on.")
        expected = {step.address: step.token_ids for step in at_second.get(calm).steps}
        assert all(expected[name] for name in ("second", "third", "ending"))
        assert at_second.status().members[0].address == address

        workflow_id = at_first.submit(WORKFLOW, idempotency_key="story").workflow_id
        assert at_second.submit(WORKFLOW, idempotency_key="story").workflow_id == workflow_id
        seen: list[Event] = []
        killed = False
        for item in at_second.watch(workflow_id):  # the one watch, to the end
            if isinstance(item, Event):
                seen.append(item)
                if item.address == "human" and item.step_state == "ready":
                    at_second.complete_step(workflow_id, "human", "Go on.")
            elif isinstance(item, TokenChunk) and item.address == "third" and item.index > 5 and not killed:
                killed = True
                kill_everything(clis[0], first)
        assert killed
        assert [event.number for event in seen] == list(range(1, len(seen) + 1))
        assert ("third", 2, "ready") in [(event.address, event.attempt, event.step_state) for event in seen]
        results = [event.result for event in seen if event.result is not None]
        assert {result.address: result.token_ids for result in results} == expected
        assert len(results) == len(expected)
        assert [item for item in at_second.watch(workflow_id) if isinstance(item, Event)] == seen
        assert {record.workflow_id for record in at_second.list()[0]} == {calm, workflow_id}
        assert at_second.get(calm).state == "succeeded"
        assert [member.here for member in at_second.status().members] == [True]
    second.send_signal(signal.SIGTERM)
    assert second.wait(ENDING_S) == 0
    assert clis[1].leftovers() == []
