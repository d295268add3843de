"""From samples to rows: medians, ratios, and the targets of those that have one."""

from __future__ import annotations

from report import Row
from samples import Sample, middle, ratio

QUANTITIES = {
    "ttft_sum": ("ttft_s", "s"),
    "ttft_seen_sum": ("seen_ttft_s", "s"),
    "end_to_end": ("wall_s", "s"),
    "tokens_encoded": ("tokens_encoded", "tokens"),
    "tokens_reused": ("tokens_reused", "tokens"),
}
RIVALS = ("reencode", "prefix", "prefix_shared_first", "transformers", "vllm_prefix", "vllm_shared_first")

# (workload, rival, quantity) -> target of rival / direct. None stands for every workload.
TARGETS: dict[tuple[str | None, str, str], float] = {
    ("debate370", "prefix", "ttft"): 6.2,
    ("panel", "prefix", "end_to_end"): 2.2,
    (None, "prefix", "end_to_end"): 0.97,
    ("debate370", "vllm_prefix", "ttft"): 6.2,
    ("panel", "vllm_prefix", "ttft"): 2.2,
    (None, "vllm_prefix", "end_to_end"): 0.9,
    (None, "vllm_shared_first", "end_to_end"): 0.9,
}


def sample_rows(samples: list[Sample]) -> list[Row]:
    """The medians of each workload and arm."""
    pairs = dict.fromkeys((s.workload, s.arm) for s in sorted(samples, key=lambda s: s.workload))
    rows = []
    for workload, arm in pairs:
        for name, (quantity, unit) in QUANTITIES.items():
            value = middle(samples, workload, arm, quantity)
            if value is not None:
                better = "higher" if name == "tokens_reused" else "lower"
                rows.append(Row(f"{workload}.{arm}.{name}", value, unit, better=better))  # type: ignore[arg-type]
    return rows


def ratio_rows(samples: list[Sample]) -> list[Row]:
    """How many times faster `direct` is than each rival. Against vLLM the TTFT is as the caller sees it."""
    rows = []
    for workload in sorted({s.workload for s in samples}):
        for rival in RIVALS:
            seen = "seen_ttft_s" if rival.startswith("vllm") else "ttft_s"
            for kind, quantity in (("ttft", seen), ("end_to_end", "wall_s")):
                value = ratio(samples, workload, rival, "direct", quantity)
                if value is not None:
                    target = TARGETS.get((workload, rival, kind), TARGETS.get((None, rival, kind)))
                    rows.append(Row(f"{workload}.{kind}.{rival}_to_direct", value, "x", target))
    return rows
