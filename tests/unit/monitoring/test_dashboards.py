"""The dashboards are up to date, name what is exported, and nothing that only one installation has."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from promql import SERIES, problems_of

from laban.cluster.cli import main
from laban.cluster.metrics import METRICS
from laban.cluster.monitoring import dashboards
from laban.cluster.monitoring.dashboards import DASHBOARDS, SHIPPED, stale, texts, write

EXPRESSIONS = [
    pytest.param(query.expr, id=f"{board.name}: {panel.title} {query.legend}")
    for board in DASHBOARDS
    for panel in board.panels
    for query in panel.queries
]


def test_what_the_chart_ships_is_not_stale(capsys: pytest.CaptureFixture[str]) -> None:
    assert dashboards.main(["--check"]) == 0, capsys.readouterr().err


def test_the_command_writes_them_and_staleness_is_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)  # main's handlers are not pytest's
    out = tmp_path / "a" / "b"
    assert main(["dashboards", "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(out / name) for name in texts()]
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        path.name: path.read_text() for path in SHIPPED.iterdir()
    }
    (out / "engine.json").write_text("{}")
    (out / "other.json").write_text("{}")
    assert stale(out) == ["engine.json", "other.json"]
    write(out)
    assert stale(out) == ["other.json"]
    assert main(["dashboards", "--out", str(out / "engine.json")]) == 2


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_queries_name_what_is_exported(expr: str) -> None:
    assert problems_of(expr) == []
    assert 'model=~"$model"' in expr


def test_problems_are_found() -> None:
    assert problems_of("rate(laban_reday[5m])") == ["laban_reday is not exported"]
    assert problems_of('laban_ready{worker="x"}') == ["laban_ready has no label worker"]
    assert problems_of("sum by (tier) (laban_ready)") == ["nothing has a label tier"]
    assert problems_of("laban_time_to_first_token_seconds") != []


def test_every_metric_is_on_a_dashboard() -> None:
    named = {SERIES[name].name for board in texts().values() for name in re.findall(r"laban_\w+", board)}
    assert named == METRICS.keys()


@pytest.mark.parametrize("name", texts())
def test_panels_lie_side_by_side_and_name_no_installation(name: str) -> None:
    board = json.loads(texts()[name])
    variables = {each["name"]: each for each in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert "model" in variables
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    titles = [panel["title"] for panel in board["panels"] if panel["type"] != "row"]
    assert len(set(titles)) == len(titles)
    assert set(re.findall(r'"uid": "([^"]*)"', texts()[name])) == {"${datasource}"}
    assert set(re.findall(r"\$(\w+)", texts()[name])) <= variables.keys() | {"__rate_interval", "__all"}
    assert "uid" not in board
    assert "id" not in board
