"""Which tokens `blended` had best encode again: the first of the last messages, and what other rules choose.

    python benchmarks/blended_rules.py [--workloads retrieval,panel] [--shares 0.15,0.3] [--no-peers] [--json]

Prints the KL divergence from `exact` a token, the agreement of the likeliest token, and each level's divergence as a
part of that of `direct`, also over all workloads. Peers choose as many tokens by other rules (peer_blend.py): the
view's last ones, CacheBlend's and EPIC's, and a plain `direct` to compare the engine's with. A whole run is stored in
benchmarks/results and drawn in docs/blended.svg.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from inprocess import Story, open_engine
from peer_blend import LastTokens, PeerStory, PlainLlama, deviating, first
from quality import Quality, Teller, compare, fewer_readers, written
from report import ROOT, SCRATCH, Clock, Report, Row, add_arguments, finish, new_report
from texts import FreshRun, fresh_run
from transformers import AutoModelForCausalLM
from workloads import Writer, all_workloads

from laban.actors.engine.engine import Engine
from laban.actors.frames import Framing
from laban.actors.framing import derive_framing
from laban.actors.models import prepare_default_model

POOL_TOKENS = 60_000
PANEL_READERS = 3
TARGET_SHARE, TARGET = 0.15, 0.35


def tellers(
    engine: Engine, framing: Framing, run: FreshRun, exact: Story, shares: list[float], llama: PlainLlama | None
) -> dict[str, Teller]:
    found: dict[str, Teller] = {"direct": Story("direct", engine, framing, run, "direct")}
    for share in shares:
        found[f"blended_{share:g}"] = Story(f"blended{share}", engine, framing, run, "blended", share)
    if llama is not None:
        found["plain_direct"] = PeerStory(llama, exact, None)
        for share in shares:
            found[f"last_{share:g}"] = LastTokens(f"last{share}", engine, framing, run, "direct", share)
            found[f"cacheblend_{share:g}"] = PeerStory(llama, exact, deviating, share)
            found[f"epic_{share:g}"] = PeerStory(llama, exact, first, share)
    return found


def rows_of(workload: str, found: dict[str, Quality]) -> list[Row]:
    rows, usual = [], found["direct"].kl_mean
    for name, quality in found.items():
        rows += [
            Row(f"{workload}.{name}.kl_mean", quality.kl_mean, "nats", better="lower"),
            Row(f"{workload}.{name}.kl_p95", quality.kl_p95, "nats", better="lower"),
            Row(f"{workload}.{name}.top1_agreement", quality.top1, ""),
        ]
        if name != "direct":
            target = TARGET if name == f"blended_{TARGET_SHARE:g}" else None
            rows.append(Row(f"{workload}.{name}.kl_to_direct", quality.kl_mean / usual, "x", target, "lower"))
    return rows


def over_all(every: list[dict[str, Quality]]) -> list[Row]:
    """Each level's divergence, over the tokens of all workloads, as a part of that of `direct`."""
    sums = {name: sum(found[name].kl_mean * found[name].num_tokens for found in every) for name in every[0]}
    return [Row(f"all.{name}.kl_to_direct", nats / sums["direct"], "x", better="lower") for name, nats in sums.items()]


def draw(report: Report, workloads: list[str], shares: list[float], path: Path) -> None:
    """Divergence over the share that is encoded again, as a part of that of `direct`, by rule."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 9, "svg.hashsalt": "laban", "svg.fonttype": "none"})
    figure, axes = plt.subplots(1, len(workloads), figsize=(2.3 * len(workloads), 2.6), sharey=True, squeeze=False)
    rules = {
        "blended": ("first of the last messages (blended)", "#0b6e4f"),
        "last": ("the view's last tokens", "#b04a5a"),
        "cacheblend": ("most deviating (CacheBlend)", "#e8a33d"),
        "epic": ("first of each message (EPIC)", "#5b7db1"),
    }
    for axis, workload in zip(axes[0], workloads, strict=True):
        for rule, (label, colour) in rules.items():
            told = [(share, report.value(f"{workload}.{rule}_{share:g}.kl_to_direct")) for share in shares]
            points = [(0.0, 1.0), *((share, value) for share, value in told if value is not None)]
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, color=colour, label=label)
        axis.set_title(workload.replace("_", " "), fontsize=9)
        axis.set_xlabel("share encoded again")
        axis.set_ylim(0, 1.15)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("KL from exact, direct = 1")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncol=4, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Which tokens `blended` had best encode again.")
    add_arguments(parser)
    parser.add_argument("--workloads", help="names, separated by commas (default: all but debate370)")
    parser.add_argument("--shares", default="0.15,0.3,0.5", help="of tokens encoded again, separated by commas")
    parser.add_argument("--tokens", type=int, default=96, help="of each generated text, at most")
    parser.add_argument("--no-peers", action="store_true", help="the engine's levels alone")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    shares = [float(share) for share in args.shares.split(",")]
    clock, report = Clock(), new_report("blended-rules", args, part=bool(args.workloads or args.no_peers))
    folder = prepare_default_model()
    engine = open_engine(folder, pool_tokens=POOL_TOKENS)
    framing = derive_framing(folder, engine.tokenizer)
    llama = None if args.no_peers else PlainLlama(AutoModelForCausalLM.from_pretrained(folder, dtype="float32"))
    writer, rng = Writer(engine.tokenizer), random.Random(args.seed)
    known = {name: w for name, w in all_workloads(writer, quick=args.quick).items() if name != "debate370"}
    names = args.workloads.split(",") if args.workloads else list(known)
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"--workloads: no {', '.join(unknown)}, expected some of {', '.join(known)}")
    every: list[dict[str, Quality]] = []
    for name in names:
        workload = fewer_readers(known[name], PANEL_READERS) if name == "panel" else known[name]
        run = fresh_run(workload, writer, rng)
        clock.say(f"{name}: writing")
        exact, texts = written(engine, framing, run, args.tokens)
        clock.say(f"{name}: comparing")
        every.append(compare(run, texts, exact, tellers(engine, framing, run, exact, shares, llama)))
        report.rows += rows_of(name, every[-1])
        report.save_partial()
    report.rows += over_all(every)
    draw(report, names, shares, (ROOT / "docs" if report.folder != SCRATCH else SCRATCH) / "blended.svg")
    finish(report, args, clock)


if __name__ == "__main__":
    main()
