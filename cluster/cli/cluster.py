"""The commands about the cluster itself: its status, its workers, and why a call went where it went."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING

from laban.actors.errors import Unavailable

if TYPE_CHECKING:
    from laban.cluster.client import Client
    from laban.cluster.records import DrainProgress


def show_status(client: Client, arguments: Namespace) -> int:
    found = client.status()
    if arguments.json:
        print(json.dumps(asdict(found)))
    else:
        from laban.cluster.render_cluster import print_status

        print_status(found)
    return 0


def explain_step(client: Client, arguments: Namespace) -> int:
    found = client.explain(arguments.workflow_id, arguments.step)
    if arguments.json:
        print(json.dumps(asdict(found)))
    else:
        from laban.cluster.render_cluster import print_explanation

        print_explanation(found)
    return 0


def on_workers(client: Client, arguments: Namespace) -> int:
    action = {None: _list, "add": _add, "drain": _drain}[arguments.action]
    return action(client, arguments)


def _list(client: Client, arguments: Namespace) -> int:
    found = client.status().workers
    if arguments.json:
        print(json.dumps({"workers": [asdict(worker) for worker in found]}))
    else:
        from laban.cluster.render_cluster import print_workers

        print_workers(found)
    return 0


def _add(client: Client, arguments: Namespace) -> int:
    print("starting a worker; it comes up even if this command is interrupted ...", file=sys.stderr, flush=True)
    worker = client.add_worker(model=arguments.model)
    if arguments.json:
        print(json.dumps(asdict(worker)))
    else:
        print(f"{worker.worker_id}: up on {worker.device}")
    return 0


def _drain(client: Client, arguments: Namespace) -> int:
    from laban.cluster.render_cluster import drain_line

    last: DrainProgress | None = None
    with closing(client.drain_worker(arguments.worker)) as items:
        for progress in items:
            if progress != last and not progress.done and not arguments.no_wait:
                print(drain_line(progress), file=sys.stderr, flush=True)
            last = progress
            if arguments.no_wait:
                break
    if last is None or not (last.done or arguments.no_wait):
        raise Unavailable("the server ended the watch before the worker was gone; `laban workers` shows how far it is")
    print(json.dumps(asdict(last)) if arguments.json else drain_line(last))
    return 0
