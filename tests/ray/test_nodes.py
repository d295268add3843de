"""Two, then four Ray nodes: workers, a node and the directory are killed in the middle of loads and transfers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from small_model import save_small_model

SUPPORT = Path(__file__).parent.parent / "support"
RAY = {
    "RAY_AUTH_MODE": "disabled",  # or each node would make a token of its own
    "RAY_USAGE_STATS_ENABLED": "0",
    # A raylet that was killed refuses connections at once and is given up after 1.5 s; a busy one has time to answer.
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "3",
}


def test_workflows_end_undisturbed_whatever_is_killed(tmp_path: Path) -> None:
    done = run_on_nodes("node_faults.py", save_small_model(tmp_path))
    assert "node killed, another worker drained" in done


def test_a_host_runs_where_the_driver_does() -> None:
    assert "all here" in run_on_nodes("host_place.py")


def run_on_nodes(script: str, *arguments: str) -> str:
    """In a process of its own: the settings have to be there before Ray is imported, and here it may run already."""
    scratch = tempfile.mkdtemp(prefix="lbn")  # short, since sockets' paths are limited; and no other Ray's
    path = os.pathsep.join(filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | RAY | {"RAY_TMPDIR": scratch, "PYTHONPATH": path}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, str(SUPPORT / script), *arguments]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    assert done.returncode == 0, done.stdout + done.stderr[-20_000:]
    return done.stdout
