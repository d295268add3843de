"""The pictures of `papers.py`: first tokens of agents in a row, and what trees and debates gain, quality beside.

python benchmarks/paper_chart.py RESULT.json FOLDER      draws a result that is stored
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chart import plt
from report import Report, Row

COLOURS = {
    "prefix": "#a5a5a5",
    "prefix_shared_first": "#c9d6df",
    "direct": "#0b6e4f",
    "corrected": "#6fb98f",
    "blended": "#9db4d8",
    "kvcomm": "#e8a33d",
    "kvcomm_all": "#f2cf96",
}
STYLE = {"font.family": "DejaVu Sans", "font.size": 9, "svg.hashsalt": "laban", "svg.fonttype": "none"}
TABLES = {"new": ("agent", "all that is read is new"), "new_quarter": ("agent", "the same, a quarter as long"),
          "again": ("reader", "texts that others have read")}  # fmt: skip


def draw(report: Report, folder: Path) -> Iterator[Path]:
    """Of what the report has. Yields what was drawn."""
    plt.rcParams.update(STYLE)
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in (("papers-kvcomm", _agents), ("papers-choreography", _topologies)):
        figure = make(report)
        if figure is not None:
            figure.text(0.01, 0.004, f"{report.machine}; commit {report.commit}", fontsize=6.5, color="#777777")
            figure.tight_layout(rect=(0, 0.03, 1, 1))
            path = folder / f"{name}.svg"
            figure.savefig(path, metadata={"Date": None})
            plt.close(figure)
            yield path


def _agents(report: Report) -> Any:
    """First tokens by agent; and divergence over the mean of agents 2 to 5, where there is any."""
    values = {row.name: row.value for row in report.rows}
    shown = [table for table in TABLES if f"{table}.prefix.{TABLES[table][0]}_1.ttft" in values]
    if not shown:
        return None
    compared = any(f"{table}.direct.kl_mean" in values for table in shown)
    figure, axes = plt.subplots(len(shown), 1 + compared, figsize=(9, 2.9 * len(shown)), squeeze=False)
    for row, table in enumerate(shown):
        who, title = TABLES[table]
        for arm, colour in COLOURS.items():
            numbers = [n for n in range(1, 20) if f"{table}.{arm}.{who}_{n}.ttft" in values]
            times = [values[f"{table}.{arm}.{who}_{n}.ttft"] for n in numbers]
            if not times:
                continue
            axes[row][0].plot(numbers, times, "o-", color=colour, label=arm, markersize=3, linewidth=1.3)
            if compared and (kl := values.get(f"{table}.{arm}.kl_mean")) is not None:
                mean = sum(times[1:]) / len(times[1:])
                axes[row][1].plot(mean, kl, "o", color=colour)
                axes[row][1].annotate(arm, (mean, kl), xytext=(5, 3), textcoords="offset points", fontsize=7.5)
        axes[row][0].set(yscale="log", xlabel=who, ylabel="first token (ms)")
        axes[row][0].xaxis.get_major_locator().set_params(integer=True)
        axes[row][0].set_title(title, loc="left", fontsize=9, fontweight="bold")
        if compared:
            axes[row][1].set(xscale="log", xlabel=f"first token, mean of {who}s after the first (ms)")
            axes[row][1].set_ylabel("KL from exact (nats)")
        for axis in axes[row]:
            axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0][0].get_legend_handles_labels(), fontsize=7.5, frameon=False, loc="upper right", ncols=4)
    return figure


def _topologies(report: Report) -> Any:
    """What `direct` and `blended` gain over prefix caching, by workflow."""
    values = {row.name: row.value for row in report.rows}
    names = [name.removesuffix(".direct.ttft_speedup") for name in values if name.endswith(".direct.ttft_speedup")]
    if not names:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.9 + 0.42 * len(names)), sharey=True)
    arms = ("prefix_shared_first", "direct", "blended")
    for axis, (metric, title) in zip(
        axes, (("ttft_speedup", "first tokens"), ("end_to_end_speedup", "end to end")), strict=True
    ):
        for place, arm in enumerate(arms):
            gains = [values.get(f"{name}.{arm}.{metric}", 0.0) for name in names]
            at_y = [row + (place - 1) * 0.26 for row in range(len(names))]
            bars = axis.barh(at_y, gains, 0.25, color=COLOURS[arm], label=arm)
            kls = [values.get(f"{name}.{arm}.kl_mean") for name in names]
            labels = [
                f"{gain:.2f}x" + (f", KL {kl:.3f}" if kl is not None and metric == "ttft_speedup" else "")
                for gain, kl in zip(gains, kls, strict=True)
            ]
            axis.bar_label(bars, labels=labels, padding=2, fontsize=6.5)
        axis.axvline(1.0, color="#777777", linewidth=0.7)
        axis.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        axis.set_title(f"{title}, times as fast as prefix caching", loc="left", fontsize=9)
        axis.set_xticks([])
        axis.margins(x=0.22)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.legend(*axes[1].get_legend_handles_labels(), fontsize=7.5, frameon=False, loc="lower right", ncols=3)
    return figure


def stored(path: Path) -> Report:
    document = json.loads(path.read_text())
    rows = [Row(row["name"], row["value"], row["unit"]) for row in document["rows"]]
    told = {key: document[key] for key in ("commit", "machine", "date")}
    return Report(document["benchmark"], rows=rows, **told)


if __name__ == "__main__":
    for drawn in draw(stored(Path(sys.argv[1])), Path(sys.argv[2])):
        print(drawn)
