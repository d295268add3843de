"""A real Prometheus scrapes a real run: every panel's query and every alert's expression is taken, and has data."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml
from command_line import ENDING_S, Cli

from laban.cluster.client import Client
from laban.cluster.metrics import METRICS, series_names
from laban.cluster.monitoring.dashboards import DASHBOARDS
from laban.cluster.monitoring.panels import Dashboard
from laban.cluster.monitoring.prometheus import RULES, start

SCRAPE_S = 1.0

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed"),
]

# A pool that holds less than a run reads, over a host tier: encodings leave the device and come back.
SETTINGS = """
engine: {pool_tokens: 512}
cache: {host_bytes: 64MiB}
audit: {share: 1.0, budget: 1.0}
grants: {rules: {tenants: all, messages: [{text: Be brief.}]}}
"""
FLOW = """
version: 1
name: small
inputs: {number: {type: string}}
messages:
  common: "Alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau."
  own: "{{ number }}: one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen."
agents: {ann: You are Ann., bob: You are Bob.}
steps:
  - {step: answer, for_each: agents, rounds: 2, read: [common, own, "answer[all,previous]"], fidelity: direct,
     sampling: {max_tokens: 4}}
  - {step: final, read: [common, answer], sampling: {max_tokens: 4}}
"""
# Small enough for the pool to be audited in service.
AUDITED = """
version: 1
name: audited
messages: {one: "One.", two: "Two."}
steps: [{step: say, read: [two, one], fidelity: direct, sampling: {max_tokens: 4}}]
"""
FAILS = """
version: 1
name: fails
messages: {task: "What?"}
steps: [{step: only, read: [task], sampling: {max_tokens: 4000}}]
"""
# Queries that have nothing to tell in a run as short as this one, and why.
WITHOUT_DATA = {"Prefetches in time: useful": "a share of prefetches whose outcome is known: there may be none yet"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Prometheus:
    def __init__(self, port: int) -> None:
        self._at = f"http://127.0.0.1:{port}/api/v1"

    def ask(self, path: str, **query: str) -> Any:
        try:
            with urlopen(f"{self._at}/{path}?{urlencode(query)}", timeout=10) as answer:
                return json.load(answer)["data"]
        except HTTPError as error:
            raise AssertionError(error.read().decode()) from None

    def query(self, expr: str) -> list[Any]:
        found: list[Any] = self.ask("query", query=expr)["result"]
        return found


def await_audits(metrics: str, num: int) -> None:
    """Until so many audits in service are done: what comes next would end one that is under way."""
    for _ in range(240):
        with urlopen(f"http://{metrics}/metrics", timeout=10) as answer:
            done = re.search(r'^laban_audits_total\{.*outcome="done".*\} (\S+)$', answer.read().decode(), re.MULTILINE)
        if done is not None and float(done[1]) >= num:
            return
        time.sleep(0.5)
    raise AssertionError(f"not {num} audits are done")


@pytest.fixture(scope="module")
def observed(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, str]]:
    """A Prometheus that has seen a run, and the address of the metrics."""
    cli = Cli(tmp_path_factory.mktemp("observed"))
    metrics, port = f"127.0.0.1:{free_port()}", free_port()
    settings = SETTINGS + f"journal: {{url: sqlite:///{cli.folder / 'journal.db'}}}\n"
    settings += f"metrics: {{port: {metrics.rpartition(':')[2]}}}\n"
    (cli.folder / "laban.yaml").write_text(settings)
    (cli.folder / "fails.yaml").write_text(FAILS)
    (cli.folder / "flow.yaml").write_text(FLOW)
    (cli.folder / "audited.yaml").write_text(AUDITED)
    serving = cli.start("serve", "--port", "0")
    assert serving.stdout is not None
    prometheus = None
    try:
        address = serving.stdout.readline().rpartition(" on ")[2].strip()
        prometheus = start(cli.folder / "prometheus", metrics, port=port, interval_s=SCRAPE_S)
        flows = [("fails.yaml", {}), *(("flow.yaml", {"number": number}) for number in "123411"), ("audited.yaml", {})]
        with Client(address) as client:
            for turn in range(2):  # rates need what was there before to have grown
                for flow, inputs in flows:
                    record = client.wait(client.submit(cli.folder / flow, inputs).workflow_id)
                    assert record.state == ("failed" if flow == "fails.yaml" else "succeeded"), record.error
                await_audits(metrics, turn + 1)
                with client.open_session() as session:
                    session.prefill(f"hello {turn}")
                time.sleep(3 * SCRAPE_S)
        yield Prometheus(port), metrics
    finally:
        if prometheus is not None:
            prometheus.terminate()
            prometheus.wait(ENDING_S)
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(ENDING_S) == 0
        assert serving.stderr is not None
        said = serving.stderr.read()  # also what is said in the processes of the control plane and the workers
        assert re.search(r"WARNING laban\.cluster\.run_log: .* failed .*workflow=wf-", said), said
        assert re.search(r"INFO laban\.actors\.engine\.load: .* worker=worker-0", said), said
        assert cli.leftovers() == []


def filled_in(expr: str) -> str:
    """As Grafana would, with everything chosen."""
    expr = expr.replace("$__rate_interval", "60s")
    return re.sub(r"\$(model|worker|workflow)", ".*", expr)


def test_everything_documented_is_exported_after_a_real_run(observed: tuple[Prometheus, str]) -> None:
    prometheus, metrics = observed
    with urlopen(f"http://{metrics}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    told = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    assert {name for name in told if name.startswith("laban_")} == METRICS.keys()
    assert {"process_resident_memory_bytes", "process_open_fds", "python_gc_collections_total"} <= told
    known = set(prometheus.ask("label/__name__/values"))
    exported = {name for metric in METRICS.values() for name in series_names(metric)}
    assert {name for name in known if name.startswith("laban_")} <= exported
    with urlopen(f"http://{metrics}/readyz", timeout=10) as answer:
        assert answer.read() == b"ready\n"


@pytest.mark.parametrize("board", DASHBOARDS, ids=lambda board: board.name)
def test_every_panel_has_data(observed: tuple[Prometheus, str], board: Dashboard) -> None:
    prometheus, _ = observed
    empty = []
    for panel in board.panels:
        for query in panel.queries:
            found = prometheus.query(filled_in(query.expr))
            if not any(series["value"][1] != "NaN" for series in found):
                empty.append(f"{panel.title}: {query.legend}")
    assert [each for each in empty if each not in WITHOUT_DATA] == []


def test_every_rule_is_taken_and_evaluated(observed: tuple[Prometheus, str]) -> None:
    prometheus, _ = observed
    rules = {rule["name"]: rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]}
    written = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    assert rules.keys() == {rule.get("alert") or rule["record"] for rule in written}
    assert {rule["health"] for rule in rules.values()} == {"ok"}
    for rule in written:
        if "record" in rule:
            assert prometheus.query(rule["record"]), rule["record"]
        else:  # what it compares is there; whether it fires is for promtool's tests
            compared = re.split(r" (?:>|==) [\d.]", rule["expr"])[0]
            assert rule["expr"].startswith("absent") or prometheus.query(compared), rule["alert"]
    firing = {
        alert["labels"]["alertname"] for alert in prometheus.ask("alerts")["alerts"] if alert["state"] == "firing"
    }
    assert firing <= {"LabanFailuresBurnFast", "LabanDivergence"}
