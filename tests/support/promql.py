"""What a PromQL expression of ours names: metrics, and the labels asked for of each."""

from __future__ import annotations

import re

from laban.cluster.metrics import METRICS, Metric, series_names

SERIES: dict[str, Metric] = {name: metric for metric in METRICS.values() for name in series_names(metric)}
_NAMED = re.compile(r"\b(laban_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')
_GROUPED = re.compile(r"\b(?:by|on|without|group_left)\s*\(([^)]*)\)")
RECORDED = re.compile(r"\blaban:\w+(?::\w+)*")


def problems_of(expr: str) -> list[str]:
    """Names of series that are not exported, labels that these do not have, and labels grouped by that none has."""
    expr = RECORDED.sub("recorded", expr)
    found: list[str] = []
    known = {"le", "job", "instance"}
    for name, matchers in _NAMED.findall(expr):
        if name not in SERIES:
            found.append(f"{name} is not exported")
            continue
        labels = {*SERIES[name].label_names, "le"}
        known |= labels
        found += [f"{name} has no label {label}" for label in _MATCHER.findall(matchers) if label not in labels]
    grouped = {label.strip() for group in _GROUPED.findall(expr) for label in group.split(",") if label.strip()}
    return found + [f"nothing has a label {label}" for label in sorted(grouped - known)]
