"""What the command line refuses before anything is started, and what it calls the flag that is wrong."""

from __future__ import annotations

import argparse
import http.server
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import trustme
from command_line import QUESTION
from rich.console import Console

from laban.actors.errors import LabanError
from laban.cluster.cli import audit as auditing
from laban.cluster.cli import main
from laban.cluster.cli.arguments import _parser, parse
from laban.cluster.cli.files import check_writable
from laban.cluster.cli.flags import OF_A_CLUSTER
from laban.cluster.cli.show import Waiting
from laban.cluster.records import Event, WorkflowRecord
from laban.cluster.render import print_workflows

NOWHERE = "127.0.0.1:1"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # main's handlers are not pytest's
    Path("flow.yaml").write_text(QUESTION)
    Path("data.jsonl").write_text('{"question": "a"}\n{"question": "b"}\n')


def test_every_flag_of_a_cluster_is_known_as_one() -> None:
    commands = next(a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    group = next(g for g in commands["run"]._action_groups if (g.title or "").startswith("configuration"))
    assert {action.dest: action.option_strings[0] for action in group._group_actions} == OF_A_CLUSTER


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["run", "flow.yaml", "--address", ""], "laban: address: "),
        (["audit", "flow.yaml", "--address", ""], "laban: address: "),
        (["submit", "flow.yaml", "--address", NOWHERE, "--key", ""], "laban: --key: is empty"),
    ],
)
def test_a_flag_of_a_variable_that_is_not_set_is_not_as_if_left_out(
    command: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 2
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize("command", ["run", "audit", "tune"])
@pytest.mark.parametrize("flag", ["--model", "--workers", "--adapter", "--eviction", "--record", "--config"])
def test_flags_of_a_cluster_do_not_go_with_an_address(
    command: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = ["--data", "data.jsonl", "--out", "out"] if command == "tune" else []
    code = main([command, "flow.yaml", *needed, "--address", NOWHERE, flag, "a=b"])
    said = capsys.readouterr().err
    if command == "tune" and flag in ("--model", "--config"):  # it trains that model
        assert "--address" not in said
        return
    assert code == 2
    assert said.startswith(f"laban: {flag}: is for a cluster that is started here")
    assert "`laban serve`" in said


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["run", "flow.yaml", "--input", "q=@missing"], "--input q: no such file (got 'missing')"),
        (["run", "flow.yaml", "--input", "q:=@x.csv:col"], "--input q: no such file (got 'x.csv')"),
        (["run", "flow.yaml", "--input", "q=@."], "--input q: cannot be read"),
        (["run", "missing.yaml"], "FILE: no such file"),
        (["audit", "flow.yaml", "--data", "nope.jsonl"], "--data: no such file"),
        (["tune", "flow.yaml", "--data", "nope.jsonl", "--out", "o"], "--data: no such file"),
        (["run", "flow.yaml", "--seed", "9" * 23], "--seed: expected 0 to 9223372036854775807"),
        (["run", "flow.yaml", "--seed", "-1"], "--seed: expected 0 to 9223372036854775807"),
        (["run", "flow.yaml", "--tolerance", "-1"], "--tolerance: expected 0 to 100, nats a token (got -1.0)"),
        (["run", "flow.yaml", "--fidelity", "fast"], "--fidelity: expected auto, exact, corrected, blended or direct"),
        (["submit", "flow.yaml", "--fidelity", "mixed"], "--fidelity: expected auto, exact"),
        (["run", "flow.yaml", "--set", "g.max_tokens=3"], "--set g.max_tokens: unknown step"),
        (["run", "flow.yaml", "--set", "answer.nope=3"], "--set answer.nope: "),
        (["run", "flow.yaml", "--set", "answer.max_tokens=0"], "--set answer.max_tokens: "),
        (["submit", "flow.yaml", "--set", "answer.nope=3", "--address", NOWHERE], "--set answer.nope: no such setting"),
        (["lint", "flow.yaml", "--fidelity", "fast"], "--fidelity: not a fidelity"),
        (["run", "flow.yaml", "--config", "."], "config: the configuration file is a folder"),
        (["token", "bad name"], "NAME: expected letters"),
        (["clear", "flow.yaml"], "NAME: is a file: expected the workflow's name"),
        (["status", "--address", "127.0.0.1:99999"], "address: expected a port from 1 to 65535"),
        (["audit", "flow.yaml", "--html", "no/where.html"], "--html: cannot be written: there is no folder no"),
        (["audit", "flow.yaml", "--html", "."], "--html: is a folder"),
        (["trace", "wf-1", "--out", "no/where.json", "--address", NOWHERE], "--out: cannot be written"),
    ],
)
def test_what_is_wrong_is_named_as_it_was_typed(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laban.cluster.launch.start_cluster", lambda *_: pytest.fail("a cluster was started"))
    assert main(argv) == 2
    shown = capsys.readouterr()
    assert said in shown.err + shown.out


def test_nothing_is_written_to_find_out(tmp_path: Path) -> None:
    check_writable("new.html", "--html")
    check_writable("flow.yaml", "--write")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "flow.yaml"]
    assert Path("flow.yaml").read_text() == QUESTION


def test_json_has_a_document_for_a_refusal_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "flow.yaml", "--json", "--fidelity", "fast"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["status"], error["field"], error["value"]) == ("INVALID_ARGUMENT", "--fidelity", "fast")
    Path("flow.yaml").write_text(QUESTION.replace("answer", "bad name").replace("max_tokens: 16", "max_tokens: 0"))
    assert main(["run", "flow.yaml", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)["error"]["diagnostics"]
    assert [(each["line"], each["path"]) for each in found] == [
        (8, "steps[0].step"), (10, "steps[0].sampling.max_tokens"),
    ]  # fmt: skip
    assert main(["get", "wf-1", "--json", "--address", NOWHERE]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["status"] == "UNAVAILABLE"


def test_a_port_that_speaks_http_is_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        assert main(["status", "--address", f"127.0.0.1:{server.server_port}"]) == 1
    finally:
        server.shutdown()
        server.server_close()
        thread.join(20)
    assert "speaks no gRPC: it may be the port of OpenAI's API" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("has_tls", "for_name", "trusted", "told"),
    [
        (True, "127.0.0.1", False, "is not trusted: "),
        (True, "laban.example.org", True, "is for another name"),
        (False, "127.0.0.1", True, "speaks no TLS"),
    ],
)
def test_a_handshake_that_fails_is_told_from_a_server_that_is_gone(
    has_tls: bool, for_name: str, trusted: bool, told: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    authority = trustme.CA()
    cert = authority.issue_cert(for_name)
    (authority if trusted else trustme.CA()).cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("LABAN_TLS_CA", str(tmp_path / "ca.pem"))
    server = grpc.server(ThreadPoolExecutor(1))
    pair = (cert.private_key_pem.bytes(), cert.cert_chain_pems[0].bytes())
    secret = grpc.ssl_server_credentials([pair])
    port = server.add_secure_port("127.0.0.1:0", secret) if has_tls else server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert main(["status", "--address", f"127.0.0.1:{port}"]) == 1
    finally:
        server.stop(0).wait()
    assert told in capsys.readouterr().err


def test_a_workflow_that_runs_has_taken_no_time_yet(capsys: pytest.CaptureFixture[str]) -> None:
    ended = WorkflowRecord("wf-1", "a", "succeeded", 100.0, 102.5)
    print_workflows([ended, WorkflowRecord("wf-2", "b", "running", 100.0)])
    shown = capsys.readouterr().out
    assert "2.5 s" in shown
    assert "0 ms" not in shown


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 200])
def test_no_id_is_cut_off_on_a_narrow_terminal(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laban.cluster.render._stdout", lambda: Console(width=columns))
    name = "a_workflow_with_a_name_that_is_rather_long"
    print_workflows([WorkflowRecord("wf-0123456789abcdef", name, "succeeded", 100.0, 102.5)])
    shown = capsys.readouterr().out
    assert "wf-0123456789abcdef" in shown
    assert name in shown
    assert "2.5 s" in shown
    assert "\u2026" not in shown


def test_an_interrupt_while_arguments_are_read_is_said_in_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(argv: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("laban.cluster.cli.parse", interrupted)
    assert main(["list"]) == 130
    assert capsys.readouterr().err == "laban: interrupted\n"


def test_what_waits_is_said_once_and_what_is_served_is_not() -> None:
    said: list[str] = []
    waiting = Waiting("host:1", said.append)
    ready = Event(1, "wf", 0.0, "step_state", address="ask", step_state="ready", attempt=1, tool="human", args={"n": 1})
    for _ in range(2):
        waiting.see(ready, ["tests"])
    waiting.see(Event(2, "wf", 0.0, "step_state", address="t", step_state="ready", attempt=1, tool="tests"), ["tests"])
    waiting.see(Event(3, "wf", 0.0, "step_state", address="say", step_state="ready", attempt=1), [])
    assert said == ['ask waits for the tool human {"n": 1}: laban complete wf ask --text ... --address host:1']


def test_an_audits_report_is_shown_whatever_cannot_be_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report: Any = SimpleNamespace(num_inputs=1)
    monkeypatch.setattr(auditing, "summarize", lambda *_: report)
    monkeypatch.setattr(auditing, "_why", lambda *_: [])
    monkeypatch.setattr(auditing, "advise", lambda *_: ())
    monkeypatch.setattr(auditing, "lines", lambda *_: ["the report"])
    monkeypatch.setattr(auditing, "page", lambda *_: "the page")
    monkeypatch.setattr(auditing, "write_back", lambda *_: "changed")
    plan: Any = SimpleNamespace(workflow=SimpleNamespace(name="flow"), tolerance=0.05)
    arguments = parse(["audit", "flow.yaml", "--html", "gone/report.html", "--write"])

    def keep() -> None:
        raise LabanError("the server is gone")

    assert auditing.finish(plan, [], arguments, keep) == 1
    shown = capsys.readouterr()
    assert shown.out == "the report\n"
    assert "--html: cannot be written" in shown.err
    assert "the server is gone" in shown.err
    assert Path("flow.yaml").read_text() == "changed"


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("model: huge", "no such model is served (got 'huge'); expected one of small, large"),
        ("adapter: sql", "no such adapter is served (got 'sql'); expected none"),
        ("model: large\n    adapter: sql", "no such adapter of the model large is served (got 'sql')"),
    ],
)
@pytest.mark.parametrize("command", ["run", "audit"])
def test_models_and_adapters_that_are_not_there_are_refused_before_a_cluster_starts(
    command: str, named: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laban.cluster.launch.start_cluster", lambda *_: pytest.fail("a cluster was started"))
    Path("laban.yaml").write_text("models: {small: {}, large: {dtype: bfloat16}}\n")
    Path("flow.yaml").write_text(QUESTION.replace("read: [", f"{named}\n    read: [", 1))
    assert main([command, "flow.yaml"]) == 2
    assert said in capsys.readouterr().err
