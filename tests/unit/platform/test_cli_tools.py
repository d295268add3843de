"""Tools on the command line: shell commands as tools, and `laban` against a gateway over a scripted engine."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from executor_rig import rig
from executor_workflows import EXTERNAL, tool_step

from laban.actors.errors import InvalidInput
from laban.cluster.cli import main
from laban.cluster.cli.follow import Followed
from laban.cluster.cli.shell import ShellTool, parse_tools, variables
from laban.cluster.cli.tools import ServedTools
from laban.cluster.client import Client, ToolError
from laban.cluster.gateway import Gateway
from laban.cluster.records import Event, Lease, StepResult, WorkflowRecord
from laban.cluster.render import live_line, print_results
from laban.cluster.sessions import Sessions


def lease(**args: Any) -> Lease:
    return Lease("l", "wf-1", "tests[2]", "tests", 1, args, (), "", 30.0, 0.0)


def call(command: str, lost: threading.Event | None = None, **args: Any) -> str:
    return ShellTool(command)(lease=lease(**args), lost=lost or threading.Event(), **args)


def test_a_command_gets_its_args_and_gives_its_text() -> None:
    assert call("cat", path="a b", deep={"n": [1]}) == '{"path":"a b","deep":{"n":[1]}}'
    shown = 'echo "$LABAN_WORKFLOW_ID $LABAN_STEP $LABAN_ARG_PATH $LABAN_ARG_N_2 $LABAN_ARG_OK"; echo'
    assert call(shown, path="é $(x)", ok=True, **{"n-2": 0.5}) == "wf-1 tests[2] é $(x) 0.5 true\n"
    assert call("true") == ""
    assert call("head -c 100000 /dev/zero | tr '\\0' x", text="y" * 200_000) == "x" * 100_000
    found = variables(lease(none=None, deep=[], nul="a\0b", long="x" * 40_000))
    assert {key for key in found if "ARG" in key} == {"LABAN_ARG_NONE"}
    assert "LABAN_ADDRESS" not in found  # the server's: a command may call `laban`


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("echo out; echo why >&2; exit 3", "exit status 3: why"),
        ("echo out; exit 1", "exit status 1: out"),
        ("exit 1", "exit status 1"),
        ("kill -9 $$", "ended by signal 9"),
        ("printf '\\377'", "its output is not UTF-8"),
        ("head -c 9000 /dev/zero | tr '\\0' x >&2; exit 1", "exit status 1: " + "x" * 2000),
    ],
)
def test_a_command_that_fails(command: str, message: str) -> None:
    with pytest.raises(ToolError) as caught:
        call(command)
    assert caught.value.message.startswith(message)
    assert len(caught.value.message) < 2100


def gone(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().split()[2] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("stubborn", ["", "trap '' TERM; "])
def test_a_command_ends_with_all_that_it_started_when_its_lease_is_lost(stubborn: str, tmp_path: Path) -> None:
    lost = threading.Event()
    file = tmp_path / "pids"
    threading.Timer(0.4, lost.set).start()
    with pytest.raises(ToolError, match="lost"):
        call(f"{stubborn}sleep 600 & echo $$ $! > {file}; wait; sleep 600", lost)
    deadline = time.monotonic() + 5
    numbers = [int(number) for number in file.read_text().split()]
    while not all(map(gone, numbers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(numbers) == 2
    assert all(map(gone, numbers))


def test_the_flag() -> None:
    assert parse_tools(["a=x=1 y", "b.c=z"]) == {"a": ShellTool("x=1 y"), "b.c": ShellTool("z")}
    for bad in (["a"], ["=x"], ["a= "], ["a=1", "a=2"]):
        with pytest.raises(InvalidInput, match="--tool"):
            parse_tools(bad)


def test_waiting_steps_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    followed = Followed()
    followed.apply(Event(1, "wf", 0.0, "step_state", address="a", step_state="ready", attempt=1, tool="t", args={}))
    assert live_line(followed.steps["a"]) == "waits for t"
    event = Event(2, "wf", 0.0, "step_state", address="a", step_state="running", attempt=1, worker="hal", tool="t")
    followed.apply(event)
    assert live_line(followed.steps["a"]) == "t on hal"
    print_results(WorkflowRecord("wf", "flow", "running", 0.0, steps=(StepResult("a", "a", state="ready", tool="t"),)))
    assert "ready" in capsys.readouterr().out


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A gateway in a thread; `address` is where, `executor` what it serves."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # main's handlers are not pytest's
    started, found = threading.Event(), SimpleNamespace()

    async def serve() -> None:
        found.loop, found.stop = asyncio.get_running_loop(), asyncio.Event()
        async with rig() as made:
            gateway = Gateway(
                made.executor, Sessions(made.dispatcher, made.executor.languages.of), made.executor.status
            )
            found.address = f"127.0.0.1:{await gateway.start()}"
            found.executor = made.executor
            started.set()
            await found.stop.wait()
            await gateway.stop(0)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(20)
    yield found
    found.loop.call_soon_threadsafe(found.stop.set)
    thread.join(20)


def begin(address: str, text: str) -> str:
    with Client(address) as client:
        return client.submit(text).workflow_id


def state_of(address: str, workflow_id: str, step: str) -> str:
    with Client(address) as client:
        return next(found.state for found in client.get(workflow_id).steps if found.address == step)


def test_run_with_a_tool(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("flow.yaml").write_text(tool_step(more="retries: {max: 1}"))
    flags = ["--address", server.address, "--json"]
    command = "test -e once || { touch once; echo not yet >&2; exit 1; }; cat; echo $LABAN_ARG_N"
    assert main(["run", "flow.yaml", "--tool", f"run_tests={command}", *flags]) == 0
    shown = capsys.readouterr()
    tests, _ = json.loads(shown.out)["steps"]
    assert (tests["text"], tests["attempt"], tests["values"]) == ('{"n":3}3', 2, {})
    assert "waits for" not in shown.err
    assert "tests: run_tests on" in shown.err
    assert main(["run", "flow.yaml", "--tool", "run_tests=echo bad >&2; exit 4", *flags]) == 1
    assert "exit status 4: bad" in capsys.readouterr().err


def test_unknown_tools_are_named_before_anything_runs(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("flow.yaml").write_text(tool_step())
    assert main(["run", "flow.yaml", "--address", server.address, "--tool", "tests=x"]) == 2
    assert "--tool: no external step asks for it, expected one of run_tests (got 'tests')" in capsys.readouterr().err
    Path("flow.yaml").write_text(EXTERNAL)
    assert main(["run", "flow.yaml", "--address", server.address, "--tool", "tests=x"]) == 2
    assert "expected one of human" in capsys.readouterr().err
    assert server.executor.list()[0] == []


def test_a_run_says_what_it_waits_for_and_goes_on_when_that_is_typed(
    server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("flow.yaml").write_text(tool_step())
    code: list[int] = []
    run = threading.Thread(target=lambda: code.append(main(["run", "flow.yaml", "--address", server.address])))
    run.start()
    said, deadline = "", time.monotonic() + 20
    while "waits for" not in said and time.monotonic() < deadline:
        said += capsys.readouterr().err
        time.sleep(0.02)
    [line] = [line for line in said.splitlines() if "waits for" in line]
    assert line.startswith('tests waits for the tool run_tests {"n": 3}: laban complete wf-')
    assert line.endswith(f"tests --text ... --address {server.address}")
    typed = line.partition(": laban ")[2].replace("...", "typed").split()
    assert main(["get", typed[1], "--address", server.address]) == 0
    assert line in capsys.readouterr().out
    assert main(typed) == 0
    run.join(20)
    assert code == [0]
    assert "answered from outside" in capsys.readouterr().err


def test_complete_takes_its_answer_from_anywhere(
    server: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("answer.txt").write_text("from a file\n")
    read, write = os.pipe()
    os.write(write, b"from stdin\n")
    os.close(write)
    monkeypatch.setattr("sys.stdin", os.fdopen(read))
    for flags, text in (
        (["--text", "given"], "given"),
        (["--file", "answer.txt"], "from a file"),
        (["-"], "from stdin"),
        (["--file", "-"], ""),
        (["--json-output", '{"b": 1, "a": "é"}'], '{"b":1,"a":"é"}'),
        (["--json-output", '"plain"'], "plain"),
    ):
        workflow_id = begin(server.address, tool_step())
        assert main(["complete", workflow_id, "tests", *flags, "--address", server.address, "--json"]) == 0
        step, _ = json.loads(capsys.readouterr().out)["steps"]
        assert (step["text"], step["state"]) == (text, "succeeded")
    for flags in ([], ["-", "--text", "x"], ["--json-output", "{"], ["word"], ["--file", "none.txt"]):
        assert main(["complete", workflow_id, "tests", *flags, "--address", server.address]) == 2
    assert main(["complete", workflow_id, "tests", "--text", "other", "--address", server.address]) == 2
    assert "answered before" in capsys.readouterr().err


def test_fail(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    workflow_id = begin(server.address, tool_step(more="retries: {max: 5}"))
    assert main(["fail", workflow_id, "tests", "not now", "--address", server.address]) == 0
    assert capsys.readouterr().out == f"tests: ready; {workflow_id}: running\n"
    assert main(["fail", workflow_id, "tests", "no", "--final", "--address", server.address]) == 0
    assert capsys.readouterr().out == f"tests: failed; {workflow_id}: failed\n"


def test_tools_serves_one_workflow_to_its_end(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    workflow_id = begin(server.address, tool_step())
    given = ["tools", "--workflow", workflow_id, "--address", server.address]
    assert main([*given, "--tool", "run_tests=echo served"]) == 0
    with Client(server.address) as client:
        assert client.wait(workflow_id).steps[0].text == "served"
    assert main(given) == 2
    assert "--tool" in capsys.readouterr().err
    assert main(["tools", "--tool", "a=b", "--address", "127.0.0.1:1"]) == 1


def test_leaving_ends_the_commands_that_run(server: Any) -> None:
    workflow_id = begin(server.address, tool_step())
    with Client(server.address) as client:
        served = ServedTools(client, {"run_tests": ShellTool("echo $$ > pid; exec sleep 600")})
        served.begin(workflow_id)
        deadline = time.monotonic() + 20
        while not (Path("pid").exists() and Path("pid").read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        began = time.monotonic()
        served.end()
        assert time.monotonic() - began < 5
        assert gone(int(Path("pid").read_text()))
        assert state_of(server.address, workflow_id, "tests") == "running"  # its lease runs out
        client.cancel(workflow_id)
