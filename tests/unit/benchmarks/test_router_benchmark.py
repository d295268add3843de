"""The benchmark of routing, tried on a small fleet: what it tells, and that it fails where a target is missed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def router() -> Iterator[ModuleType]:
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    yield import_module("router")
    sys.path.remove(str(FOLDER))
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == FOLDER:
            del sys.modules[name]


def test_a_quick_run_tells_every_number(router: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert router.main(["--quick", "--json", "--out", str(tmp_path)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document.keys() == {"benchmark", "commit", "machine", "date", "rows"}
    assert document["benchmark"] == "router"
    for row in document["rows"]:
        assert row.keys() == {"name", "value", "unit", "target", "better", "met"}
        assert row["value"] > 0
    values = {row["name"]: row["value"] for row in document["rows"]}
    policies = ("cost", "prefix_affinity", "least_loaded", "round_robin", "by_key", "unknown")
    for name in (*(f"{policy}.16" for policy in policies), "view", "send", "growth.4", "growth.8"):
        assert values[f"{name}.min"] <= values[f"{name}.p50"] <= values[f"{name}.p99"]
    assert values["directory.encodings"] == 2000 > values["view.encodings"]
    [bytes_an_encoding] = [row for row in document["rows"] if row["name"] == "directory.bytes_an_encoding"]
    assert bytes_an_encoding["target"] == 600
    assert bytes_an_encoding["met"]


def test_a_missed_target_fails(router: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ["--quick", "--json", "--out", str(tmp_path), "--only"]
    assert router.main([*options, "decision", "--p50-us", "0.001"]) == 1
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["rows"] if row["met"] is False] == [
        "cost.16.p50"
    ]
    assert router.main([*options, "directory", "--changes-a-second", "1e12"]) == 1
