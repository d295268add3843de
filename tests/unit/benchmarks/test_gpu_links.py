"""The benchmark of copies, tried on a CPU: every section."""

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
def gpu_links() -> Iterator[ModuleType]:
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    yield import_module("gpu_links")
    sys.path.remove(str(FOLDER))
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == FOLDER:
            del sys.modules[name]


def test_every_section(gpu_links: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert gpu_links.main(["--tiny", "--reps", "1", "--json", "--out", str(tmp_path)]) == 0
    document = json.loads(capsys.readouterr().out)
    values = {row["name"]: row["value"] for row in document["rows"]}
    for name in ("pin", "load.scattered.1024.auto", "stream.both.contiguous.8192.auto", "limit_5.load", "disk.write"):
        assert values[name] > 0
    assert "decode.beside.load.contiguous.auto.slower" in values


def test_a_section_that_is_not(gpu_links: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_links.main(["--tiny", "--only", "nosuch"])
    assert "no section nosuch" in capsys.readouterr().err
