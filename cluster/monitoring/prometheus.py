"""A Prometheus beside a local cluster: `make monitor`.

python -m laban.cluster.monitoring.prometheus [--target HOST:PORT] [--port N] [--folder DIR]
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import yaml

RULES = Path(__file__).resolve().parents[2] / "helm" / "laban" / "alerts" / "laban.rules.yaml"
READY_S = 30.0
MISSING = """\
There is no `prometheus` on the path. On Debian and Ubuntu:

    sudo apt-get install prometheus     # then: sudo systemctl disable --now prometheus

Elsewhere, take it from where your system's packages come from."""


class PrometheusFailed(Exception):
    """It did not come up; the message is the end of what it said."""


def config_text(target: str, *, rules: Path = RULES, interval_s: float = 5.0) -> str:
    """A configuration that scrapes `target`, a host:port."""
    return yaml.safe_dump(
        {
            "global": {
                "scrape_interval": f"{int(1000 * interval_s)}ms",
                "evaluation_interval": f"{int(1000 * interval_s)}ms",
            },
            "rule_files": [str(rules)],
            "scrape_configs": [{"job_name": "laban", "static_configs": [{"targets": [target]}]}],
        },
        sort_keys=False,
    )


def start(folder: Path, target: str, *, port: int, interval_s: float = 5.0) -> subprocess.Popen[bytes]:
    """A Prometheus that keeps its data in `folder` and answers on 127.0.0.1. Waits until it does.

    Raises FileNotFoundError where it is not installed, PrometheusFailed.
    """
    binary = shutil.which("prometheus")
    if binary is None:
        raise FileNotFoundError("prometheus")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prometheus.yml").write_text(config_text(target, interval_s=interval_s), encoding="utf-8")
    log = folder / "prometheus.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                binary,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    deadline_s = time.monotonic() + READY_S
    while not _answers(f"http://127.0.0.1:{port}/-/ready"):
        if process.poll() is not None or time.monotonic() > deadline_s:
            process.kill()
            process.wait()
            raise PrometheusFailed(log.read_text(errors="replace")[-2000:])
        time.sleep(0.1)
    return process


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="monitor", description="Scrape a local cluster until interrupted.")
    parser.add_argument("--target", default="127.0.0.1:9464", metavar="HOST:PORT", help="as `laban serve` prints it")
    parser.add_argument("--port", type=int, default=9090, help="to listen on, at 127.0.0.1 (default 9090)")
    parser.add_argument("--folder", type=Path, default=Path("build/monitor"), help="for its data")
    arguments = parser.parse_args(argv)
    try:
        process = start(arguments.folder, arguments.target, port=arguments.port)
    except FileNotFoundError:
        print(MISSING, file=sys.stderr)
        return 1
    except PrometheusFailed as error:
        print(f"Prometheus did not come up:\n{error}", file=sys.stderr)
        return 1
    print(f"Prometheus: http://127.0.0.1:{arguments.port}/graph   alerts: http://127.0.0.1:{arguments.port}/alerts")
    if not _answers(f"http://{arguments.target}/healthz"):
        print(f"Nobody answers at {arguments.target} yet: start one with `laban serve`", file=sys.stderr)
    print("Dashboards for Grafana: laban dashboards   (Ctrl-C ends Prometheus)", flush=True)
    try:
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


if __name__ == "__main__":
    sys.exit(main())
