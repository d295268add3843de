"""vLLM on the same kind of card: stored figures, and how many times faster we are."""

from __future__ import annotations

from report import Report, Row

NAME = "vllm_0_26"
MEASURED = "vLLM 0.26.0 (FlashAttention-3, CUDA graphs, prefix caching), H100 80GB HBM3, 2026-11-21 and 22"

# Milliseconds. A row that reuses nothing under vLLM has what the same tokens take it.
FIGURES = {
    "ttft.dense_1024": 27.04,
    "ttft.dense_2560": 63.91,
    "ttft.dense_5120": 130.44,
    "ttft.dense_8192": 216.21,
    "ttft.prefix_5120.new_16": 11.86,
    "ttft.prefix_5120.new_64": 11.82,
    "ttft.reordered_8x640.new_16": 130.44,
    "ttft.reordered_8x640.new_64": 130.44,
    "ttft.agent_1": 33.15,
    "ttft.agent_2": 41.44,
    "ttft.agent_3": 52.72,
    "ttft.agent_4": 66.74,
    "ttft.agent_5": 80.69,
    "panel.encoded.first_tokens": 3487.20,
    "panel.encoded.end_to_end": 4018.02,
    "panel.encoding.first_tokens": 3487.20,
    "panel.encoding.end_to_end": 4018.02,
    "itl.shared_1": 6.703,
    "itl.shared_32": 10.134,
    "itl.private_32": 14.593,
}


def peer_rows(report: Report) -> list[Row]:
    """The figures of what the report has measured, and vLLM's time as a multiple of ours."""
    rows = []
    for name, figure in FIGURES.items():
        ours = report.value(name)
        if ours is not None:
            rows.append(Row(f"{NAME}.{name}", figure, "ms", better="lower"))
            rows.append(Row(f"{NAME}_to_ours.{name}", figure / ours, "x"))
    return rows
