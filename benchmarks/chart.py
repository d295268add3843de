"""The chart of `reuse.py` for the README: sum of TTFT and end to end, by workload and arm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from report import Report

COLOURS = {
    "direct": "#0b6e4f",
    "prefix_shared_first": "#6fb98f",
    "prefix": "#c9d6df",
    "reencode": "#a5a5a5",
    "transformers": "#e8a33d",
    "vllm_prefix": "#5b7db1",
    "vllm_shared_first": "#9db4d8",
}
METRICS = {"ttft_sum": "time to first token, summed over the steps", "end_to_end": "end to end"}


def draw(report: Report, workloads: Sequence[str], arms: Sequence[str], path: Path) -> None:
    """Bars in seconds. What was not measured is left out."""
    plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 9, "svg.hashsalt": "laban", "svg.fonttype": "none"})
    shown = [arm for arm in COLOURS if arm in arms]
    figure, axes = plt.subplots(
        len(workloads), 2, figsize=(9, 0.5 + len(workloads) * (0.45 + 0.17 * len(shown))), squeeze=False
    )
    for row, workload in enumerate(workloads):
        for column, (metric, title) in enumerate(METRICS.items()):
            axis = axes[row][column]
            found = [(arm, report.value(f"{workload}.{arm}.{metric}")) for arm in shown]
            bars = [(arm, value) for arm, value in found if value is not None]
            names = [arm if column == 0 else "" for arm, _ in bars]
            drawn = axis.barh(
                range(len(bars)), [value for _, value in bars], color=[COLOURS[a] for a, _ in bars], height=0.75
            )
            axis.bar_label(drawn, labels=[f"{value:.3g} s" for _, value in bars], padding=3, fontsize=8)
            axis.set_yticks(range(len(bars)), names)
            axis.invert_yaxis()
            axis.margins(x=0.18)
            axis.set_xticks([])
            axis.spines[["top", "right", "bottom"]].set_visible(False)
            heading = f"{workload.replace('_', ' ')}" if column == 0 else ""
            axis.set_title(heading, loc="left", fontweight="bold", fontsize=9)
            if row == 0:
                axis.set_title(title, loc="right", fontsize=8, color="#555555")
    figure.text(
        0.01, 0.003, f"{report.machine}; commit {report.commit}; shorter is better", fontsize=7, color="#777777"
    )
    figure.tight_layout(rect=(0, 0.015, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
