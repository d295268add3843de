"""The tables of docs/metrics.md, from the declarations.

python -m laban.cluster.metrics_reference --write      renews them; --check only compares
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from laban.cluster.metrics import LABELS, SECTIONS, Metric

PAGE = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"
_MARKED = re.compile(r"(<!-- generated: ([\w ]+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def metrics_table(metrics: Sequence[Metric]) -> str:
    rows = ["| name | type | labels | unit | meaning |", "|---|---|---|---|---|"]
    for each in metrics:
        labels = ", ".join(f"`{label}`" for label in each.labels)
        rows.append(f"| `{each.name}` | {each.kind} | {labels} | {each.unit} | {each.meaning} |")
    return "\n".join(rows) + "\n"


def labels_table() -> str:
    rows = ["| label | values |", "|---|---|", *(f"| `{name}` | {values} |" for name, values in LABELS.items())]
    return "\n".join(rows) + "\n"


def written(page: str) -> str:
    """The page with its tables renewed."""

    def renew(match: re.Match[str]) -> str:
        table = labels_table() if match[2] == "labels" else metrics_table(SECTIONS[match[2]])
        return f"{match[1]}{table}{match[3]}"

    return _MARKED.sub(renew, page)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="metrics_reference", description="The tables of docs/metrics.md.")
    parser.add_argument("--write", action="store_true", help="renew them")
    parser.add_argument("--check", action="store_true", help="exit with status 1 if they are stale")
    arguments = parser.parse_args(argv)
    page = PAGE.read_text(encoding="utf-8")
    if arguments.write:
        PAGE.write_text(page := written(page), encoding="utf-8")
    if arguments.check and page != written(page):
        print("stale: docs/metrics.md; run python -m laban.cluster.metrics_reference --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
