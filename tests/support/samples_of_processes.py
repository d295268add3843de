"""What the processes of a server take: memory, open files, threads, and what Ray and the metrics say they hold."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from kept_server import VICTIMS, KeptServer
from prometheus_client.parser import text_string_to_metric_families

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
GAUGES = ("laban_pages", "laban_encodings", "laban_grpc_open_requests", "laban_sessions")
RAY_OBJECTS = "- num local plasma objects: "


def sample(server: KeptServer, metrics_port: int) -> dict[str, float]:
    """By name: `rss_mib.`, `files.` and `threads.` of each kind of process, all of a kind together, and gauges."""
    found: dict[str, float] = {}
    for kind in VICTIMS:
        for number in server.victims(kind):
            for name, value in _of_process(number).items():
                found[f"{name}.{kind}"] = found.get(f"{name}.{kind}", 0.0) + value
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=30) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    for family in families:
        if family.name in GAUGES:
            used = [each.value for each in family.samples if each.labels.get("state") != "free"]
            found[family.name.removeprefix("laban_")] = sum(used)
    found["ray_objects"] = float(_ray_objects(server))
    return found


def _of_process(number: int) -> Mapping[str, float]:
    """Nothing of one that has ended meanwhile."""
    folder = Path(f"/proc/{number}")
    try:
        resident = int((folder / "statm").read_text().split()[1]) * PAGE_BYTES
        return {
            "rss_mib": resident / 2**20,
            "files": float(len(os.listdir(folder / "fd"))),
            "threads": float(len(os.listdir(folder / "task"))),
        }
    except OSError:
        return {}


def _ray_objects(server: KeptServer) -> int:
    """Objects in the store of the server's Ray, as its raylet writes every ten seconds; -1 before it has."""
    for number in server.victims("raylet"):
        line = Path(f"/proc/{number}/cmdline").read_text()
        session = next(each for each in line.split("\0") if each.startswith("--session_dir=")).partition("=")[2]
        state = Path(session) / "logs" / "debug_state.txt"
        if state.exists():
            for text in state.read_text().splitlines():
                if text.startswith(RAY_OBJECTS):
                    return int(text.removeprefix(RAY_OBJECTS))
    return -1


def slope(at_s: Sequence[float], values: Sequence[float]) -> float:
    """Of the straight line that fits best, per hour; 0 for fewer than two."""
    if len(values) < 2:
        return 0.0
    mean_s, mean = sum(at_s) / len(at_s), sum(values) / len(values)
    spread = sum((each - mean_s) ** 2 for each in at_s)
    together = sum((each - mean_s) * (value - mean) for each, value in zip(at_s, values, strict=True))
    return 3600 * together / spread if spread else 0.0
