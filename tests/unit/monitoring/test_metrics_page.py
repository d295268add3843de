"""The page of the metrics is what the declarations say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from laban.cluster import metrics_reference
from laban.cluster.metrics import METRICS, SECTIONS

PAGE = metrics_reference.PAGE.read_text()


def test_what_is_generated_is_not_stale(capsys: pytest.CaptureFixture[str]) -> None:
    assert metrics_reference.main(["--check"]) == 0, capsys.readouterr().err


def test_every_metric_is_on_the_page_once() -> None:
    assert re.findall(r"^\| `(laban_\w+)` \|", PAGE, re.MULTILINE) == list(METRICS)
    assert re.findall(r"<!-- generated: ([\w ]+) -->", PAGE) == ["labels", *SECTIONS]


def test_staleness_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "metrics.md"
    page.write_text(PAGE.replace("laban_ready", "laban_redy"))
    monkeypatch.setattr(metrics_reference, "PAGE", page)
    assert metrics_reference.main(["--check"]) == 1
    assert metrics_reference.main(["--write", "--check"]) == 0
    assert page.read_text() == PAGE
