"""What goes wrong is said in one line, with an exit code, and the next workflow runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from command_line import LONG, QUESTION, Cli, document, write

from laban.cluster.client import Client
from laban.cluster.records import TokenChunk

pytestmark = pytest.mark.e2e


def refused(done: subprocess.CompletedProcess[str], *parts: str, code: int = 2) -> str:
    """The error: the last line of stderr, but for the line of the file that it quotes; and nothing on stdout."""
    assert done.returncode == code, (done.stdout, done.stderr)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    line = [line for line in done.stderr.splitlines() if not re.match(r" +(\d+ )?\| ", line)][-1]
    assert line.startswith("laban: ")
    for part in parts:
        assert part in line
    return line


def test_missing_file(cli: Cli) -> None:
    refused(cli("run", "none.yaml"), "FILE: no such file (got 'none.yaml')")
    refused(cli("submit", "none.yaml"), "no such file")
    refused(cli("lint", "none.yaml"), "no such file")


def test_bad_workflow_starts_no_cluster(cli: Cli) -> None:
    bad = write(cli, QUESTION.replace("read: [question]", "read: [qestion]"))
    refused(cli("run", bad), "flow.yaml:9:12", "qestion")


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--input", "question"], "expected K=V"),
        (["--input", "qestion=x"], "unknown input 'qestion'"),
        (["--set", "max_tokens=4"], "expected ADDRESS.FIELD=V"),
        (["--set", "answer.max_tokens=four"], "answer"),
        (["--set", "nobody.max_tokens=4"], "nobody"),
        (["--fidelity", "perfect"], "perfect"),
    ],
)
def test_bad_flags(cli: Cli, address: str, flags: list[str], part: str) -> None:
    flow = write(cli, QUESTION)
    refused(cli("run", flow, *flags), part)
    refused(cli("run", flow, "--address", address, *flags), part)


def test_nobody_there(cli: Cli) -> None:
    refused(cli("status", "--address", "127.0.0.1:1"), "no Laban answers at 127.0.0.1:1", "laban serve", code=1)
    refused(cli("status", "--address", "nonsense"), "address: expected host:port (got 'nonsense')")


def test_port_in_use(cli: Cli, address: str) -> None:
    refused(cli("serve", "--port", address.rpartition(":")[2]), "port: the port is in use", "choose another")
    refused(cli("serve", "--port", "http"), "server.port", "(got 'http')")


def test_unknown_workflow(cli: Cli, address: str) -> None:
    for command in ("get", "watch", "cancel"):
        refused(cli(command, "wf-none", "--address", address), "workflow_id: no such workflow (got 'wf-none')")


def test_model_folders(cli: Cli, model_folder: Path) -> None:
    flow = write(cli, QUESTION)
    refused(cli("run", flow, "--model", "none"), "model: the model folder does not exist")
    broken = cli.folder / "broken"
    shutil.copytree(model_folder, broken, ignore=shutil.ignore_patterns("*.safetensors"))
    refused(cli("run", flow, "--model", "broken"), "has no model.safetensors")
    with (model_folder / "model.safetensors").open("rb") as whole:
        (broken / "model.safetensors").write_bytes(whole.read(1_000_000))
    refused(cli("run", flow, "--model", "broken"), "model.safetensors is cut off: 1000000 bytes, expected 538")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    refused(cli("run", flow, "--model", "broken"), "state-space")
    rope = {"rope_type": "dynamic", "factor": 2.0}
    (broken / "config.json").write_text(json.dumps(config | {"rope_parameters": rope}))
    refused(cli("serve", "--model", "broken"), "dynamic-NTK RoPE")


def test_bad_configuration(cli: Cli) -> None:
    (cli.folder / "laban.yaml").write_text("engine: {page_size: 0}\n")
    refused(cli("config"), "engine.page_size: input should be greater than 0", "(got 0)")
    refused(cli("run", write(cli, QUESTION), "--config", "other.yaml"), "configuration file does not exist")


def test_a_huge_request_is_refused_and_the_next_workflow_runs(cli: Cli, address: str) -> None:
    huge = write(cli, QUESTION + "# " + "x" * 100_000_000 + "\n", "huge.yaml")
    refused(cli("run", huge, "--address", address), "yaml: has ", "server.max_message_bytes", code=1)
    too_long = ["--input", "question=" + "many words " * 9_000]
    refused(cli("run", write(cli, QUESTION), "--address", address, *too_long), "8192")
    done = cli("run", write(cli, QUESTION), "--address", address, "--json", *too_long)
    assert (done.returncode, list(json.loads(done.stdout))) == (2, ["error"])
    done = cli("run", write(cli, QUESTION), "--address", address, "--json")
    assert document(done.stdout)["state"] == "succeeded"


def test_a_killed_worker_loses_no_workflow(address: str, serving: Cli) -> None:
    with Client(address) as client:
        epoch = client.status().workers[0].epoch
        killed = False
        texts: dict[int, str] = {}
        for item in client.run(LONG.replace("word " * 1500, "word " * 100)):
            workflow_id = item.workflow_id
            if isinstance(item, TokenChunk):
                texts[item.attempt] = ("" if item.index == 0 else texts[item.attempt]) + item.text
                if not killed and item.index > 5:
                    (worker,) = serving.processes("ray::WorkerProcess")
                    os.kill(worker, signal.SIGKILL)
                    killed = True
        record = client.get(workflow_id)
        assert record.state == "succeeded", record.error
        (step,) = record.steps
        assert step.attempt == 2
        assert step.text == texts[2] == "word " * 100
        assert "word word" in texts[1]
        assert client.status().workers[0].epoch != epoch
        after = client.wait(client.submit(QUESTION).workflow_id)
        assert (after.state, after.steps[0].attempt) == ("succeeded", 1)
