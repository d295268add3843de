"""The command that simulates: what it prints, replays and refuses, and policies of one's own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from benchmark_modules import FOLDER, benchmark_modules

from laban.cluster.routing.policies import load_routing
from laban.cluster.routing.recorder import RecordedCall, RecordedRead, RecordedUse, line_of
from laban.kvstore.eviction import load_policy

EVICTION, ROUTING = "examples.policies.frequent:KeepReturning", "examples.policies.frequent:NearestUnlessBusy"


@pytest.fixture(scope="module")
def simulate() -> Iterator[ModuleType]:
    with benchmark_modules("simulate") as (module,):
        yield module


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER.parent)
    monkeypatch.setattr(sys, "path", [*sys.path, str(FOLDER.parent)])


def rows(simulate: ModuleType, capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> dict[str, float]:
    assert simulate.main([*words, "--json", "--out", str(folder)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {"benchmark", "commit", "machine", "date", "rows"} == set(document)
    assert {"name", "value", "unit", "target", "better", "met"} == set(document["rows"][0])
    return {row["name"]: row["value"] for row in document["rows"]}


def call(number: int, source: str, **changes: Any) -> RecordedCall:
    """Of a source that reads one message of everybody's and what it made itself just before."""
    reads = [RecordedRead("shared", 500, 0, 0, 500)]
    if number:
        reads.append(RecordedRead(f"{source}.{number - 1}", 40, 500, 0, 40))
    fields: dict[str, Any] = {
        "ordered_at": 1e9 + 2 * number, "source": source, "address": f"answer[{number}]", "attempt": 1, "rank": 0,
        "namespace": "n", "reads": tuple(reads), "start": 540, "num_tokens": 8, "num_generated": 32,
        "encoding_id": f"{source}.{number}", "worker": "w0", "waited_ms": 0.0, "ttft_ms": 10.0, "wall_ms": 500.0,
        "tokens_read": 540, "tokens_reused": 540, "tokens_loaded": 0, "tokens_encoded": 0,
        "uses": (RecordedUse("shared", 1, 0.5, 1.0, True),),
    }  # fmt: skip
    return RecordedCall(**(fields | changes))


def recording(folder: Path, *calls: RecordedCall) -> Path:
    path = folder / "calls.jsonl"
    path.write_text("".join(f"{line_of(each)}\n" for each in calls))
    return path


def test_every_eviction_policy_is_compared_on_one_workload(
    simulate: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    told = rows(simulate, capsys, tmp_path, "--workload", "cyclic", "--scale", "0.1", "--device-bytes", "5GB")
    assert told["cyclic.lru.hit_rate"] == 0  # a ring that does not fit
    assert told["cyclic.belady.stall"] <= told["cyclic.cost.stall"] * 1.001 < told["cyclic.lru.stall"]
    assert told["cyclic.cost.flows_ended"] == 100


def test_wrong_predictions_cost_something(
    simulate: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [
        "--workload",
        "cyclic",
        "--scale",
        "0.4",
        "--device-bytes",
        "5GB",
        "--host-bytes",
        "0",
        "--eviction",
        "cost",
    ]
    right = rows(simulate, capsys, tmp_path, *words)
    wrong = rows(simulate, capsys, tmp_path, *words, "--wrong", "0.5")
    assert wrong["cyclic.cost.hit_rate"] < right["cyclic.cost.hit_rate"]


@pytest.mark.usefixtures("own")
def test_the_examples_policies_serve_and_simulate(
    simulate: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert type(load_policy(EVICTION)).__name__ == "KeepReturning"
    assert type(load_routing(ROUTING)).__name__ == "NearestUnlessBusy"
    words = ["--workload", "fleet", "--workers", "2", "--live", "12", "--device-bytes", "3GB", "--host-bytes", "0"]
    told = rows(simulate, capsys, tmp_path, *words, "--eviction", f"lru,{EVICTION}", "--routing", f"cost,{ROUTING}")
    for eviction in ("lru", EVICTION):
        for routing in ("cost", ROUTING):
            assert told[f"fleet.{eviction}.{routing}.flows_ended"] == 100
    assert told[f"fleet.{EVICTION}.cost.stall"] != told["fleet.lru.cost.stall"]


@pytest.mark.parametrize(
    ("returns", "said"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero (failing_under_test.py, line 3)"),
        ("None", "key returned None, expected a tuple of numbers, none of them NaN"),
    ],
)
@pytest.mark.parametrize("kind", ["eviction", "routing"])
def test_what_is_wrong_with_a_policy_of_ones_own_is_said_in_one_line(
    simulate: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    kind: str, returns: str, said: str,
) -> None:  # fmt: skip
    (tmp_path / "failing_under_test.py").write_text(
        f"class Mine:\n    def key(self, item, now_s):\n        return {returns}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "failing_under_test", raising=False)
    words = ["--workload", "cyclic"] if kind == "eviction" else ["--workload", "fleet", "--workers", "2", "--live", "8"]
    with pytest.raises(SystemExit) as ended:
        simulate.main([*words, "--scale", "0.1", "--device-bytes", "5GB", f"--{kind}", "failing_under_test:Mine"])
    assert ended.value.code == 2
    said = f"policy failing_under_test:Mine: {said}"
    assert capsys.readouterr().err.splitlines()[-1] == f"simulate.py: {said}"


def test_faults_end_no_flow(simulate: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [
        "--workers",
        "3",
        "--live",
        "30",
        "--eviction",
        "cost",
        "--lost",
        "0.3",
        "--late",
        "0.2",
        "--repeated",
        "0.3",
    ]
    told = rows(simulate, capsys, tmp_path, *words, "--kill-every", "3", "--join", "1")
    assert told["fleet.cost.cost.flows_ended"] == 100
    assert told["fleet.cost.cost.calls_lost"] > 0


def test_a_recording_is_replayed(simulate: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    given = call(0, "a", num_generated=0, num_tokens=500, encoding_id="shared", reads=())
    failed = call(3, "a", error="UNAVAILABLE", encoding_id="", num_generated=0)
    path = recording(tmp_path, given, *(call(n, source) for source in "ab" for n in range(3)), failed)
    told = rows(simulate, capsys, tmp_path, "--replay", str(path), "--eviction", "lru", "--host-bytes", "0")
    assert told["replay.lru.flows_ended"] == 100
    assert told["replay.lru.encoded"] == 500  # what all read, once
    with benchmark_modules("sim_replay") as (module,):
        flows = module.replay(path).flows
    assert [len(flow.steps) for flow in flows] == [3, 3]
    assert [(step.kind, step.after, step.wait_s) for step in flows[0].steps] == [
        ("answer", (), 0.0),
        ("answer", (0,), 1.5),
        ("answer", (1,), 1.5),
    ]
    assert flows[0].declared


def test_rates_are_fitted_and_near_the_defaults(tmp_path: Path) -> None:
    with benchmark_modules("sim_rates", "sim_costs") as (rates, costs):
        stored = [FOLDER / "results" / f"2026-11-22-{name}.json" for name in ("gpu", "gpu-links")]
        fitted, default = rates.fit(costs.Costs(), stored), costs.Costs()
        assert fitted != default
        for name in rates.FITS:
            assert getattr(fitted, name) == pytest.approx(getattr(default, name), rel=0.15), name
        path = tmp_path / "rates.json"
        made = [{"name": "ttft.dense_1000", "value": 60.0}, {"name": "ttft.dense_3000", "value": 160.0}]
        path.write_text(json.dumps({"rows": made}))
        assert rates.fit(default, [path]).encode_tokens_per_s == pytest.approx(20_000)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--eviction", "lruu"], "eviction policy 'lruu'; expected cost, steps, lru, belady or package.module:Class"),
        (["--workers", "2", "--routing", "best"], "routing policy 'best': expected cost, prefix_affinity"),
        (["--eviction", "no_such_module:Mine"], "cannot import 'no_such_module'"),
        (["--workload", "none"], "argument --workload: invalid choice: 'none'"),
        (["--wrong", "30"], "argument --wrong: expected a share from 0 to 1, got '30'"),
        (["--device-bytes", "lots"], "argument --device-bytes: expected a number of bytes, such as 4GiB"),
        (["--device-bytes", "200MB"], "a call has no room"),
        (["--workers", "1", "--lost", "0.1"], "--lost: expected --workers 2 or more"),
        (["--only", "evictions"], "--only: no section evictions; expected eviction, policies, faults, scale"),
        (["--only", "scale", "--workers", "3"], "--only: expected no --workers beside it"),
        (["--rates", "nowhere.json"], "--rates: cannot be read: No such file or directory (got 'nowhere.json')"),
        (["--replay", "nowhere.jsonl"], "recording: cannot be read: No such file or directory (got 'nowhere.jsonl')"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    simulate: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        simulate.main([*words, "--scale", "0.2", "--out", str(tmp_path)] if "--only" not in words else words)
    assert ended.value.code == 2
    last = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("[")]
    assert len(last) == 1
    assert said in last[0]


def test_a_broken_recording_names_its_line_and_field(
    simulate: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = recording(tmp_path, call(0, "a"), call(1, "a"))
    path.write_text(path.read_text().replace('"rank":0', '"rank":-1', 2))
    with pytest.raises(SystemExit) as ended:
        simulate.main(["--replay", str(path)])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "simulate.py: line 1: rank: expected a whole number, 0 or more (got -1)\n"


def test_help_needs_nothing_else() -> None:
    done = subprocess.run([sys.executable, FOLDER / "simulate.py", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for word in ("--replay", "package.module:Class", "belady", "docs/policies.md"):
        assert word in done.stdout
