"""A Ray node with the ports that the chart pins, in a network of its own: what listens there, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile

import pytest
import yaml
from helm_chart import CHART

PORTS = yaml.safe_load((CHART / "values.yaml").read_text())["ray"]["ports"]
FLAGS = {
    "port": PORTS["gcs"],
    "ray-client-server-port": PORTS["client"],
    "dashboard-port": PORTS["dashboard"],
    "node-manager-port": PORTS["nodeManager"],
    "object-manager-port": PORTS["objectManager"],
    "runtime-env-agent-port": PORTS["runtimeEnvAgent"],
    "dashboard-agent-grpc-port": PORTS["agentGrpc"],
    "dashboard-agent-listen-port": PORTS["agentHttp"],
    "metrics-export-port": PORTS["metrics"],
    "min-worker-port": PORTS["processes"]["first"],
    "max-worker-port": PORTS["processes"]["last"],
}
ALONE = ["unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
ADDRESS = "10.9.0.1"
SCRIPT = f"""
set -e
ip link set lo up
ip addr add {ADDRESS}/32 dev lo  # Ray treats 127.0.0.1 as a case of its own
ray start --head --node-ip-address={ADDRESS} --num-cpus=2 --object-store-memory=104857600 "$@" >&2
for _ in $(seq 60); do
  curl -s -o /dev/null http://{ADDRESS}:{PORTS["agentHttp"]}/api/local_raylet_healthz && break
  sleep 0.5
done
python -c 'import json, psutil
print(json.dumps(sorted({{c.laddr.port for c in psutil.net_connections("inet") if c.status == "LISTEN"}})))'
"""


def test_a_node_listens_where_the_chart_says():
    if not all(map(shutil.which, ("unshare", "ip", "curl"))) or subprocess.run([*ALONE, "ip", "link"]).returncode:
        pytest.skip("needs unshare, ip and curl, and leave to make a network")
    scratch = tempfile.mkdtemp(prefix="lbn")  # short, since sockets' paths are limited
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    settings = {
        "PATH": path,
        "RAY_TMPDIR": scratch,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "AUTOSCALER_METRIC_PORT": str(PORTS["autoscalerMetrics"]),
        "DASHBOARD_METRIC_PORT": str(PORTS["dashboardMetrics"]),
    }
    environment = os.environ | settings
    environment.pop("RAY_ADDRESS", None)
    command = [*ALONE, "bash", "-c", SCRIPT, "bash", *(f"--{name}={port}" for name, port in FLAGS.items())]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    assert done.returncode == 0, done.stderr[-4000:]
    listening = set(json.loads(done.stdout.splitlines()[-1]))
    pinned = {port for port in PORTS.values() if isinstance(port, int)}
    ranges = [range(each["first"], each["last"] + 1) for each in PORTS.values() if isinstance(each, dict)]
    assert pinned - listening == set()
    assert [port for port in listening - pinned if not any(port in each for each in ranges)] == []
