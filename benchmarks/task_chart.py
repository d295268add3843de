"""A picture of what levels change on tasks: divergence, decisions that flip, and what is reused.

python benchmarks/task_chart.py benchmarks/results/DATE-fidelity.json [docs/fidelity.svg]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from report import ROOT, Report, Row

MARKERS = "os^D"
PANELS = (
    ("kl_mean", "mean KL from exact, nats"),
    ("flips", "decisions flipped"),
    ("reused", "tokens read, not encoded"),
)
COLOURS = {
    "direct": "#9a3b3b",
    "random": "#c9a227",
    "blended": "#5b7db1",
    "tuned": "#7a4f9a",
    "corrected": "#0b6e4f",
    "auto": "#444444",
}


def draw(report: Report, path: Path) -> None:
    """A point an arm and task; bars are 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 9, "svg.hashsalt": "laban", "svg.fonttype": "none"})
    told = [row.name.split(".", 1) for row in report.rows if row.name.endswith(".kl_mean")]
    tasks = list(dict.fromkeys(task for task, _ in told))
    arms = list(dict.fromkeys(rest.removesuffix(".kl_mean") for _, rest in told))
    arms.sort(key=lambda arm: (list(COLOURS).index(_kind(arm)), arm))
    height = len(tasks) * (0.12 * len(arms) + 0.15) + 1.3
    figure, axes = plt.subplots(1, len(PANELS), figsize=(11, height), sharey=True)
    for axis, (what, label) in zip(axes, PANELS, strict=True):
        for number, arm in enumerate(arms):
            colour = COLOURS[_kind(arm)]
            marker = MARKERS[sum(_kind(each) == _kind(arm) for each in arms[:number]) % len(MARKERS)]
            xs, ys = [], []
            for at, task in enumerate(tasks):
                value, low, high = (report.value(f"{task}.{arm}.{what}{end}") for end in ("", ".low", ".high"))
                if value is None:
                    continue
                y = at + 0.8 * ((number + 0.5) / len(arms) - 0.5)
                if low is not None and high is not None:
                    axis.plot((low, high), (y, y), color=colour, linewidth=1)
                xs.append(value)
                ys.append(y)
            axis.plot(xs, ys, marker, markersize=4, color=colour, label=arm.replace("_", " "))
        axis.set_xlabel(label)
        axis.set_yticks(range(len(tasks)), [name.replace("_", " ") for name in tasks])
        axis.grid(axis="x", alpha=0.3)
        for at in range(1, len(tasks)):
            axis.axhline(at - 0.5, color="#cccccc", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_xscale("symlog", linthresh=0.001)
    for axis in axes:
        axis.set_xlim(left=0)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncol=len(arms), frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.45 / height, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def table(report: Report) -> str:
    """Markdown: a line a task, of each arm the divergence as a part of that of `direct`, flips and what is reused."""
    told = [row.name.split(".", 1) for row in report.rows if row.name.endswith(".kl_mean")]
    tasks = list(dict.fromkeys(task for task, _ in told))
    arms = [arm for arm in dict.fromkeys(rest.removesuffix(".kl_mean") for _, rest in told) if arm != "direct"]
    arms.sort(key=lambda arm: (list(COLOURS).index(_kind(arm)), arm))

    def shown(name: str, form: str) -> str:
        value = report.value(name)
        return "" if value is None else format(value, form)

    lines = ["| task | `direct`: nats, flips, reused |" + "".join(f" `{arm}` |" for arm in arms)]
    lines.append("|---" * (2 + len(arms)) + "|")
    for task in tasks:
        cells = [f"{shown(f'{task}.direct.kl_mean', '.3f')}, {shown(f'{task}.direct.flips', '.0%')}"]
        cells[0] += f", {shown(f'{task}.direct.reused', '.0%')}"
        for arm in arms:
            parts = (shown(f"{task}.{arm}.{what}", form) for what, form in
                     (("kl_to_direct", ".2f"), ("flips", ".0%"), ("reused", ".0%")))  # fmt: skip
            cells.append(", ".join(part for part in parts if part))
        lines.append(f"| `{task}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _kind(arm: str) -> str:
    return arm.partition("_")[0]


def main(argv: Sequence[str]) -> None:
    if not 1 <= len(argv) <= 2:
        raise SystemExit(__doc__)
    document = json.loads(Path(argv[0]).read_text())
    rows = [Row(each["name"], each["value"], each["unit"]) for each in document["rows"]]
    report = Report("fidelity", rows=rows)
    draw(report, Path(argv[1]) if len(argv) > 1 else ROOT / "docs" / "fidelity.svg")
    print(table(report))


if __name__ == "__main__":
    main(sys.argv[1:])
