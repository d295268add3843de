"""The pictures of `simulate.py`: every policy against every other, and what a growing fleet runs out of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from chart import plt
from report import Report
from sim_sections import BUSY, DECLARED, EVICTIONS, OF_WHOLE, ROUTINGS
from sim_workloads import WORKLOADS

COLOURS = {"cost": "#0b6e4f", "lru": "#a5a5a5", "steps": "#e8a33d", "belady": "#9db4d8"}
OTHER = "#5b7db1"
QUANTITIES = {
    "hit_rate": "read from the device (%)",
    "ttft": "first token, p50 and p99 (ms)",
    "moved": "moved (TB)",
    "stall": "stall, all calls (s)",
}
STYLE = {"font.family": "DejaVu Sans", "font.size": 9, "svg.hashsalt": "laban", "svg.fonttype": "none"}
LINES = ("#0b6e4f", "#6fb98f", "#5b7db1", "#e8a33d", "#a5a5a5", "#c9d6df")


def draw(report: Report, fleets: Sequence[int], folder: Path) -> Iterator[Path]:
    """Of what the report has. Yields what was drawn."""
    plt.rcParams.update(STYLE)
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in (("simulate-stall", _stalls), ("simulate-policies", _policies), ("simulate-scale", _scale)):
        figure = make(report, fleets)
        if figure is not None:
            said = f"{report.machine}; commit {report.commit}; simulated"
            figure.text(0.01, 0.004, said, fontsize=7, color="#777777")
            figure.tight_layout(rect=(0, 0.02, 1, 1))
            path = folder / f"{name}.svg"
            figure.savefig(path, metadata={"Date": None})
            plt.close(figure)
            yield path


def _stalls(report: Report, fleets: Sequence[int]) -> Any:
    """By workload, as against `lru`."""
    shown = [name for name in WORKLOADS if report.value(f"eviction.{name}.host.lru.stall") is not None]
    if not shown:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.8 + 0.52 * len(shown)), sharey=True)
    for axis, tiers in zip(axes, ("device", "host"), strict=True):
        for place, policy in enumerate(EVICTIONS):
            values = []
            for name in shown:
                at = f"eviction.{name}.{tiers}"
                lru = report.value(f"{at}.lru.stall") or 1e-9
                values.append((report.value(f"{at}.{policy}.stall") or 0.0) / lru)
            at_y = [row + (place - 1.5) * 0.2 for row in range(len(shown))]
            bars = axis.barh(at_y, values, 0.19, color=COLOURS.get(policy, OTHER), label=policy)
            axis.bar_label(bars, labels=[f"{value:.2f}" for value in values], padding=2, fontsize=6.5)
        axis.set_yticks(range(len(shown)), [f"{name}*" if name in DECLARED else name for name in shown])
        axis.set_title("no host tier" if tiers == "device" else "with a host tier", loc="left", fontsize=9)
        axis.set_xticks([])
        axis.margins(x=0.12)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.legend(*axes[1].get_legend_handles_labels(), fontsize=8, frameon=False, loc="upper right", ncols=4)
    figure.suptitle("stall as against lru (shorter is better; * all steps declared)", fontsize=9, x=0.01, ha="left")
    return figure


def _policies(report: Report, fleets: Sequence[int]) -> Any:
    """Eviction under routing `cost`, and routing under eviction `cost`."""
    groups = {"eviction": EVICTIONS, "routing": ROUTINGS}
    if report.value("routing.fleet.cost.stall") is None:
        return None
    figure, axes = plt.subplots(2, 4, figsize=(11, 3.4), sharex="col")
    for row, (group, names) in enumerate(groups.items()):
        for column, (quantity, title) in enumerate(QUANTITIES.items()):
            axis = axes[row][column]
            main = "ttft_p50" if quantity == "ttft" else quantity
            by = 1000 if quantity == "moved" else 1
            found = [(report.value(f"{group}.fleet.{name}.{main}") or 0.0) / by for name in names]
            colours = ["#0b6e4f" if name == "cost" else "#c9d6df" for name in names]
            labels = [f"{value:.3g}" for value in found]
            if quantity == "ttft":
                tails = [report.value(f"{group}.fleet.{name}.ttft_p99") or 0.0 for name in names]
                axis.barh(range(len(names)), tails, color=colours, alpha=0.4, height=0.7)
                labels = [f"{value:.3g}, {tail:.3g}" for value, tail in zip(found, tails, strict=True)]
            bars = axis.barh(range(len(names)), found, color=colours, height=0.7)
            if quantity == "ttft":
                for place, (tail, label) in enumerate(zip(tails, labels, strict=True)):
                    axis.annotate(label, (tail, place), (3, 0), textcoords="offset points", va="center", fontsize=7)
            else:
                axis.bar_label(bars, labels=labels, padding=3, fontsize=7)
            axis.set_yticks(range(len(names)), names if column == 0 else [""] * len(names))
            axis.invert_yaxis()
            axis.margins(x=0.35)
            axis.set_xticks([])
            axis.spines[["top", "right", "bottom"]].set_visible(False)
            axis.set_title(title if row == 0 else "", loc="left", fontsize=8, color="#555555")
        axes[row][0].set_ylabel(group, fontweight="bold")
    return figure


def _scale(report: Report, fleets: Sequence[int]) -> Any:
    """How busy each thing is, and the first token, over the number of workers."""
    shown = [number for number in fleets if report.value(f"scale.{number}.live") is not None]
    if not shown:
        return None
    figure, (busy, first) = plt.subplots(1, 2, figsize=(9, 3.2))
    for name, colour in zip(BUSY, LINES, strict=True):
        values = [report.value(f"scale.{number}.busy.{name.replace(' ', '_')}") or 1e-3 for number in shown]
        busy.plot(shown, values, marker="o", markersize=3, color=colour, label=name,
                  linestyle="-" if name in OF_WHOLE else "--")  # fmt: skip
    busy.axhline(100, color="#cc3333", linewidth=0.8)
    busy.set_yscale("log")
    busy.set_title("busy (% of its time; dashed: each worker's own)", loc="left", fontsize=8)
    busy.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(0, 0.93), ncols=2)
    busy.set_ylim(top=1000)
    for quantity, colour in (("ttft_p50", "#6fb98f"), ("ttft_p99", "#0b6e4f")):
        values = [report.value(f"scale.{number}.{quantity}") or 0.0 for number in shown]
        first.plot(shown, values, marker="o", markersize=3, color=colour, label=quantity.removeprefix("ttft_"))
    first.set_title("first token (ms)", loc="left", fontsize=8)
    first.set_ylim(bottom=0)
    first.legend(fontsize=7, frameon=False)
    for axis in (busy, first):
        axis.set_xscale("log", base=2)
        axis.set_xticks(shown, [str(number) for number in shown])
        axis.set_xlabel("workers")
        axis.spines[["top", "right"]].set_visible(False)
    return figure
