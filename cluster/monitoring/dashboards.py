"""The five dashboards.

python -m laban.cluster.monitoring.dashboards --write      renews helm/laban/dashboards; --check only compares
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from laban.cluster.monitoring.cluster_board import CLUSTER
from laban.cluster.monitoring.engine_boards import ENGINE, KV_CACHE
from laban.cluster.monitoring.panels import Dashboard, to_json
from laban.cluster.monitoring.routing_board import ROUTING
from laban.cluster.monitoring.workflows_board import WORKFLOWS

DASHBOARDS: tuple[Dashboard, ...] = (WORKFLOWS, ENGINE, KV_CACHE, ROUTING, CLUSTER)
SHIPPED = Path(__file__).resolve().parents[2] / "helm" / "laban" / "dashboards"


def texts() -> dict[str, str]:
    """What each file holds, by its name."""
    return {f"{each.name}.json": json.dumps(to_json(each), indent=1) + "\n" for each in DASHBOARDS}


def write(folder: Path) -> list[Path]:
    """Returns the files. Raises OSError for a folder that cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in texts()]
    for path, text in zip(paths, texts().values(), strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


def stale(folder: Path) -> list[str]:
    """The names of files that are not as they would be written, or should not be there."""
    wanted = texts()
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
    return sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="dashboards", description="The dashboards that the chart ships.")
    parser.add_argument("--write", action="store_true", help="renew them")
    parser.add_argument("--check", action="store_true", help="exit with status 1 if they are stale")
    arguments = parser.parse_args(argv)
    if arguments.write:
        write(SHIPPED)
    if arguments.check and (names := stale(SHIPPED)):
        print(f"stale: {', '.join(names)}; run python -m laban.cluster.monitoring.dashboards --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
