"""`laban audit` from the command line to the model and back into the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Cli

from laban.actors.errors import NotFound
from laban.cluster.audit.findings import Finding
from laban.cluster.audit.tally import Tally
from laban.cluster.client import Client

pytestmark = pytest.mark.e2e

FLOW = """\
version: 1
name: pair   # two who answer, one who chooses
inputs: {question: {}}
sampling: {max_tokens: 6, temperature: 0}
messages: {question: "{{ question }}"}
steps:
  - {step: one, read: [question], prefill: "Yes, "}
  - {step: two, read: [question], prefill: "No, "}
  - step: choice   # by a letter
    read: [two, question, one]
    values: {letter: "([a-z])"}
"""


def test_audit_measures_recommends_and_writes(cli: Cli, address: str, tmp_path: Path) -> None:
    flow, data, html = tmp_path / "flow.yaml", tmp_path / "data.jsonl", tmp_path / "report.html"
    flow.write_text(FLOW)
    data.write_text('{"question": "Is it late?"}\n')
    common = ["audit", str(flow), "--address", address, "--data", str(data)]
    done = cli(*common, "--levels", "blended:0.5", "--tolerance", "100", "--json", "--html", str(html), "--write")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    steps = {row["step"]: row for row in report["steps"]}
    assert steps["one"]["is_same"]
    assert steps["choice"]["kl_mean"] > 0
    assert steps["choice"]["num_decisions"] == 1
    assert [gain["level"] for gain in report["gains"]] == ["blended:0.5"]
    assert [(one["step"], one["level"]) for one in report["advice"]] == [("choice", "blended:0.5")]
    assert html.read_text().startswith("<!doctype html>")
    assert flow.read_text() == FLOW.replace(
        "# by a letter\n", "# by a letter\n    fidelity: blended\n    recompute_share: 0.5\n"
    )


def test_bad_data_is_refused_before_anything_runs(cli: Cli, tmp_path: Path) -> None:
    flow, data = tmp_path / "flow.yaml", tmp_path / "data.jsonl"
    flow.write_text(FLOW)
    data.write_text(json.dumps({"question": "why"}) + "\n" + json.dumps({"answer": 1}) + "\n")
    done = cli("audit", str(flow), "--data", str(data))
    assert done.returncode == 2
    assert f"{data}:2: answer: unknown input" in done.stderr
    assert "Traceback" not in done.stderr


def test_auto_is_what_a_server_was_told_of_until_that_is_cleared(cli: Cli, address: str, tmp_path: Path) -> None:
    flow, inputs = tmp_path / "flow.yaml", {"question": "Is it late?"}
    flow.write_text(FLOW.replace("name: pair ", "name: told "))
    common = [str(flow), "--address", address, "--input", "question=Is it late?"]
    kept = cli("audit", *common, "--levels", "direct", "--tolerance", "100", "--keep")
    assert kept.returncode == 0, kept.stderr
    assert "it takes 20 calls of a step, one has 1" in kept.stderr
    with Client(address) as client:

        def chosen() -> tuple[str, str]:
            record = client.wait(client.submit(flow, inputs, fidelity="auto", tolerance=100.0).workflow_id)
            [note] = [each for each in record.notes if each.why and each.step == "choice"]
            [step] = [each for each in record.steps if each.address == "choice"]
            return step.fidelity, note.why

        level, why = chosen()
        assert level == "exact"
        assert "over 1 audited calls, expected at least 20 calls" in why
        enough = Tally(400, 4.0, 0.05, 400, 400)
        client.record_findings(flow, [Finding("choice", None, "direct", "audit", enough)])
        assert chosen() == ("direct", "within 100")
        client.clear_findings("told")
        assert chosen() == ("exact", "nothing is known of other levels")
        with pytest.raises(NotFound):
            client.clear_findings("told")
