"""`laban trace`: a workflow's timeline in a file."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from laban.actors.errors import InvalidInput
from laban.cluster.records import Event
from laban.cluster.timeline import timeline

if TYPE_CHECKING:
    from laban.cluster.client import Client


def trace(client: Client, arguments: Namespace) -> int:
    last = client.get(arguments.workflow_id).last_event
    events: list[Event] = []
    with closing(client.watch(arguments.workflow_id)) as items:
        for item in items if last else ():
            if isinstance(item, Event):
                events.append(item)
                if item.number >= last:  # of one that runs, no more than there is by now
                    break
    out = Path(arguments.out)
    try:
        out.write_text(json.dumps(timeline(events, time.time())), encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"cannot be written ({error.strerror})", field="--out", value=arguments.out) from None
    print(f"{out}: {len(events)} events; open it at ui.perfetto.dev, or in chrome://tracing")
    return 0
