"""Parts of Grafana dashboards: expressions, panels, rows, and the JSON of it all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24  # of Grafana's grid
OURS = 'model=~"$model"'
WINDOW = "$__rate_interval"

Unit = Literal["short", "s", "bytes", "Bps", "percentunit", "ops", "none"]


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL expression, and how its series are called."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """`kind` heatmap takes one query, of buckets by `le`."""

    title: str
    queries: tuple[Query, ...]
    about: str
    unit: Unit = "short"
    kind: Literal["timeseries", "stat", "heatmap", "bargauge"] = "timeseries"
    width: int = 8
    stacked: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """`variables` are labels to choose by besides the model: each with a metric that has it."""

    name: str  # of its file
    title: str
    about: str
    rows: tuple[Row, ...]
    variables: tuple[tuple[str, str], ...] = ()

    @property
    def panels(self) -> Iterator[Panel]:
        return (panel for row in self.rows for panel in row.panels)


def now(name: str, by: str = "", where: str = "") -> str:
    """
    >>> now("laban_workers", "state")
    'sum by (state) (laban_workers{model=~"$model"})'
    """
    return f"{_sum(by)} ({name}{_where(where)})"


def rate(name: str, by: str = "", where: str = "") -> str:
    """A second."""
    return f"{_sum(by)} (rate({name}{_where(where)}[{WINDOW}]))"


def share(part: str, whole: str) -> str:
    """Nothing where there is nothing to share."""
    return f"{part} / ({whole} > 0)"


def quantiles(name: str, by: str = "", where: str = "") -> tuple[Query, ...]:
    """The median, and what one in ten and one in a hundred exceed."""
    legend = f"{{{{{by}}}}} " if by else ""
    return tuple(Query(quantile(q, name, by, where), f"{legend}p{100 * q:g}") for q in (0.5, 0.9, 0.99))


def quantile(q: float, name: str, by: str = "", where: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q:g}, {rate(f'{name}_bucket', labels, where)})"


def mean(name: str, by: str = "", where: str = "") -> str:
    return share(rate(f"{name}_sum", by, where), rate(f"{name}_count", by, where))


def buckets(name: str, where: str = "") -> tuple[Query]:
    """For a heatmap."""
    return (Query(f"sum by (le) (increase({name}_bucket{_where(where)}[{WINDOW}]))", "{{le}}"),)


def to_json(dashboard: Dashboard) -> dict[str, Any]:
    """As Grafana imports it. No data source is named, and no uid: Grafana gives one."""
    return {
        "title": dashboard.title,
        "description": dashboard.about,
        "tags": ["laban"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "graphTooltip": 1,
        "links": [{"type": "dashboards", "title": "Laban", "tags": ["laban"], "asDropdown": True, "keepTime": True}],
        "templating": {"list": list(_variables(dashboard))},
        "panels": list(_laid_out(dashboard.rows)),
    }


def _variables(dashboard: Dashboard) -> Iterator[dict[str, Any]]:
    yield {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1}
    yield _variable("model", "label_values(laban_info, model)")
    for label, metric in dashboard.variables:
        yield _variable(label, f"label_values({metric}{{{OURS}}}, {label})")


def _variable(label: str, query: str) -> dict[str, Any]:
    return {
        "name": label,
        "label": label.capitalize(),
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": label},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "sort": 1,
    }


def _laid_out(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """From left to right, and on the next line where the row is full."""
    y = number = 0
    for row in rows:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": y},
            "panels": [],
        }
        y += 1
        x = height = 0
        for panel in row.panels:
            if x + panel.width > WIDTH:
                x, y, height = 0, y + height, 0
            number += 1
            h = 4 if panel.kind == "stat" else 8
            yield {"id": number, "gridPos": {"h": h, "w": panel.width, "x": x, "y": y}, **_panel(panel)}
            x, height = x + panel.width, max(height, h)
        y += height


def _panel(panel: Panel) -> dict[str, Any]:
    heatmap = panel.kind == "heatmap"
    targets = [
        {
            "refId": chr(ord("A") + at),
            "datasource": SOURCE,
            "expr": query.expr,
            "legendFormat": query.legend or "__auto",
            "range": panel.kind != "bargauge",
            "instant": panel.kind == "bargauge",
            **({"format": "heatmap"} if heatmap else {}),
        }
        for at, query in enumerate(panel.queries)
    ]
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "fillOpacity": 30 if panel.stacked else 8,
            "lineWidth": 1,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none"},
        }
    options: dict[str, dict[str, Any]] = {
        "timeseries": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "area"},
        "bargauge": {"reduceOptions": {"calcs": ["lastNotNull"]}, "orientation": "horizontal", "displayMode": "basic"},
        "heatmap": {
            "calculate": False,
            "yAxis": {"unit": panel.unit},
            "color": {"mode": "scheme", "scheme": "Blues", "steps": 64},
            "cellGap": 0,
            "tooltip": {"mode": "single", "yHistogram": True},
        },
    }
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options[panel.kind],
    }


def _sum(by: str) -> str:
    return f"sum by ({by})" if by else "sum"


def _where(more: str) -> str:
    return f"{{{OURS}, {more}}}" if more else f"{{{OURS}}}"
