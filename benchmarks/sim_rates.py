"""The simulator's costs, fitted to what other benchmarks measured and stored in benchmarks/results."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from sim_costs import GB, Costs

from laban.actors.errors import InvalidInput, NotFound

Rows = Mapping[str, float]
DENSE = "ttft.dense_"  # and the number of tokens: milliseconds


def _encode_tokens_per_s(rows: Rows) -> float | None:
    """The slope over the dense prefills, by least squares: what a forward takes at the least is another number."""
    points = [(int(name.removeprefix(DENSE)), ms / 1000) for name, ms in rows.items() if name.startswith(DENSE)]
    if len(points) < 2:
        return None
    mean_tokens, mean_s = (sum(each) / len(points) for each in zip(*points, strict=True))
    seconds = sum((tokens - mean_tokens) * (took_s - mean_s) for tokens, took_s in points)
    return sum((tokens - mean_tokens) ** 2 for tokens, _ in points) / seconds if seconds > 0 else None


def _iteration_s(rows: Rows) -> float | None:
    return rows["itl.shared_1"] / 1000 if "itl.shared_1" in rows else None


def _running_s(rows: Rows) -> float | None:
    if "itl.shared_1" not in rows or "itl.shared_32" not in rows:
        return None
    return max(0.0, rows["itl.shared_32"] - rows["itl.shared_1"]) / 1000 / 31


def _link_bytes_per_s(rows: Rows) -> float | None:
    """Of a message of 1,024 tokens, scattered over pages."""
    measured = rows.get("load.scattered.1024.auto")
    return None if measured is None else measured * GB


FITS: dict[str, Callable[[Rows], float | None]] = {
    "encode_tokens_per_s": _encode_tokens_per_s,
    "iteration_s": _iteration_s,
    "running_s": _running_s,
    "link_bytes_per_s": _link_bytes_per_s,
}


def fit(costs: Costs, paths: Iterable[Path]) -> Costs:
    """With every rate that the documents tell; later ones win. What none tells stays as it is.

    Raises NotFound for a file that cannot be read, InvalidInput for one that is no result or tells no rate.
    """
    for path in paths:
        rows = _rows(path)
        found = {name: value for name, fitted in FITS.items() if (value := fitted(rows)) is not None}
        if not found:
            raise InvalidInput(
                f"tells no rate; expected rows {DENSE}N (two or more), itl.shared_1, itl.shared_32 "
                "or load.scattered.1024.auto",
                field="--rates",
                value=str(path),
            )
        costs = replace(costs, **found)
    return costs


def _rows(path: Path) -> Rows:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return {str(row["name"]): float(row["value"]) for row in document["rows"]}
    except OSError as error:
        raise NotFound(f"cannot be read: {error.strerror}", field="--rates", value=str(path)) from None
    except (ValueError, KeyError, TypeError):
        raise InvalidInput("expected a benchmark's JSON document", field="--rates", value=str(path)) from None
