"""What a Ray cluster has, waited for before Laban is started on it, as where nodes come one by one.

python -m laban.cluster.nodes --address HOST:PORT        until Ray's head answers
python -m laban.cluster.nodes --wait-for 8 --of GPU      until nodes with so many are there; the autoscaler is asked
"""

from __future__ import annotations

import argparse
import logging
import socket
import sys
import time
from collections.abc import Callable, Sequence

POLL_S = 2.0
SAY_EVERY_S = 30.0


def until(ready: Callable[[], str], *, timeout_s: float, sleep: Callable[[float], None] = time.sleep) -> None:
    """Wait until `ready` returns "", saying now and then what it returns instead. Raises TimeoutError with it."""
    waited_s, said_s = 0.0, -SAY_EVERY_S
    while missing := ready():
        if waited_s >= timeout_s:
            raise TimeoutError(missing)
        if waited_s - said_s >= SAY_EVERY_S:
            print(missing, file=sys.stderr, flush=True)
            said_s = waited_s
        sleep(POLL_S)
        waited_s += POLL_S


def no_answer(address: str) -> str:
    """Why nothing can connect to `address`; "" if something can."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=POLL_S).close()
    except OSError as error:
        return f"waiting for {address} ({error.strerror or error})"
    return ""


def too_few(number: int, resource: str, there: dict[str, float]) -> str:
    """
    >>> too_few(2, "GPU", {"GPU": 1.0, "CPU": 8.0})
    "Ray's nodes have 1 GPUs, waiting for 2"
    >>> too_few(2, "CPU", {"CPU": 8.0})
    ''
    """
    found = there.get(resource, 0.0)
    return "" if found >= number else f"Ray's nodes have {found:g} {resource}s, waiting for {number}"


def _wait_for(number: int, resource: str, timeout_s: float) -> None:
    import ray
    from ray.autoscaler.sdk import request_resources

    ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=False)
    # One bundle for each process: how large a node is, is the autoscaler's business. Without one nobody reads this.
    request_resources(bundles=[{resource: 1}] * number)
    until(lambda: too_few(number, resource, ray.cluster_resources()), timeout_s=timeout_s)  # type: ignore[no-untyped-call]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="nodes", description="Wait for a Ray cluster.")
    parser.add_argument("--address", metavar="HOST:PORT", help="of Ray's head")
    parser.add_argument("--wait-for", type=int, default=0, metavar="N", help="of a resource, on all nodes together")
    parser.add_argument("--of", choices=("CPU", "GPU"), default="GPU", help="the resource (default: GPU)")
    parser.add_argument("--timeout-s", type=float, default=3600.0)
    arguments = parser.parse_args(argv)
    try:
        if arguments.address:
            until(lambda: no_answer(arguments.address), timeout_s=arguments.timeout_s)
        if arguments.wait_for:
            _wait_for(arguments.wait_for, arguments.of, arguments.timeout_s)
    except TimeoutError as error:
        print(f"gave up: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
