"""Logs name workflow, step and worker, are text or JSON, and never hold what a message says."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator

import pytest
from executor_workflows import asynchronous
from scripted_engine import CharFraming, CharTokenizer, LoopSupervisor, LoopWorker, ScriptedEngine

from laban.actors.logs import LogSettings, about, set_up_logs
from laban.cluster.dispatch import Dispatcher
from laban.cluster.executor import Executor
from laban.cluster.lookout import Lookout
from laban.cluster.meter import NO_METER
from laban.cluster.run_log import RunLog
from laban.cluster.workflow.parse import parse_yaml

SECRET = "xyzzy plugh"
FLOW = """
version: 1
name: telling
inputs: {word: {type: string}}
messages: {task: "{{ word }}"}
agents: {ann: "xyzzy plugh"}
steps:
  - {step: good, agent: ann, read: [task], sampling: {forced_text: "xyzzy plugh", max_tokens: 50}}
  - {step: bad, agent: ann, read: [task, good], prefill: "FAIL xyzzy plugh"}
"""

logger = logging.getLogger("laban.tests")


@pytest.fixture
def out(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """What was logged since the last call."""
    root, ours = logging.getLogger(), logging.getLogger("laban")
    before = root.handlers[:], root.level, ours.level
    root.handlers[:] = []
    yield lambda: capsys.readouterr().err
    root.handlers[:], level, our_level = before
    root.setLevel(level)
    ours.setLevel(our_level)


def test_lines_of_json(out: Callable[[], str]) -> None:
    set_up_logs(LogSettings("json", "info"), worker="w0")
    logger.debug("hidden")
    logger.info("it %s", "runs", extra=about(workflow="wf-1", step="a[1]"))
    try:
        raise ValueError("no")
    except ValueError:
        logger.exception("it failed", extra=about(worker="w7"))
    logging.getLogger("somebody.else").warning("beware\nof this")
    first, second, third = map(json.loads, out().splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "info", "logger": "laban.tests", "message": "it runs", "worker": "w0", "workflow": "wf-1",
        "step": "a[1]",
    }  # fmt: skip
    assert (second["worker"], second["level"]) == ("w7", "error")
    assert second["error"].endswith("ValueError: no")
    assert third["message"] == "beware\nof this"


def test_lines_of_text(out: Callable[[], str]) -> None:
    set_up_logs(LogSettings("text", "debug"))
    logger.debug("it runs", extra=about(workflow="wf-1", worker="w0"))
    logger.info("plain")
    first, second = out().splitlines()
    assert first.endswith("DEBUG laban.tests: it runs workflow=wf-1 worker=w0")
    assert second.endswith("INFO laban.tests: plain")


@asynchronous
async def _run() -> str:
    dispatcher = Dispatcher([LoopWorker(ScriptedEngine())], supervisor=LoopSupervisor())
    lookout = Lookout(dispatcher, meter=RunLog(NO_METER))
    executor = Executor(dispatcher, CharFraming(), CharTokenizer(), lookout=lookout)
    executor.start()
    record = await executor.intake.submit(parse_yaml(FLOW), {"word": SECRET})
    [item async for item in executor.watch(record.workflow_id)]
    await executor.stop()
    return record.workflow_id


def test_a_run_is_told_by_ids_and_never_by_its_texts(out: Callable[[], str]) -> None:
    set_up_logs(LogSettings("json", "debug"))
    _run()
    text = out()
    lines = [json.loads(line) for line in text.splitlines()]
    told = {line.get("step", ""): line for line in lines if line["logger"] == "laban.cluster.run_log"}
    assert set(told) == {"", "good", "bad"}
    assert (told["good"]["level"], told["bad"]["level"]) == ("debug", "warning")
    assert "RESOURCE_EXHAUSTED" in told["bad"]["message"]
    assert told["good"]["worker"] == "w0"
    assert len({line["workflow"] for line in told.values()}) == 1
    for word in SECRET.split():
        assert word not in text
