"""`laban tools`, `laban complete`, `laban fail`, and the tools that `laban run` serves while it shows a run."""

from __future__ import annotations

import json
import logging
import sys
import threading
from argparse import Namespace
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from laban.actors.errors import InvalidInput, LabanError
from laban.cluster.cli.files import read_file
from laban.cluster.cli.shell import ShellTool

if TYPE_CHECKING:
    from laban.cluster.client import Client
    from laban.cluster.records import WorkflowRecord
    from laban.cluster.workflow.schema import Workflow

logger = logging.getLogger(__name__)


def serve_until_interrupted(client: Client, tools: dict[str, ShellTool], arguments: Namespace) -> None:
    if not tools:
        raise InvalidInput("expected at least one, NAME=COMMAND", field="--tool")
    client.status()  # who is not there at the start is not waited for
    where = f"the workflow {arguments.workflow}" if arguments.workflow else arguments.address
    print(f"serving {', '.join(tools)} to {where}  (Ctrl-C ends it)", file=sys.stderr, flush=True)
    client.serve_tools(tools, workflow_id=arguments.workflow, concurrency=arguments.concurrency, grace_s=0.0)


class ServedTools:
    """Serves tools to one workflow, in the background, from `begin` on."""

    def __init__(self, client: Client, tools: dict[str, ShellTool]) -> None:
        self._client = client
        self._tools = tools
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def names(self) -> Collection[str]:
        return self._tools

    def begin(self, workflow_id: str) -> None:
        if self._tools:
            self._thread = threading.Thread(target=self._serve, args=(workflow_id,), name="tools", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Commands that still run are ended."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _serve(self, workflow_id: str) -> None:
        try:
            self._client.serve_tools(self._tools, workflow_id=workflow_id, stop=self._stop, grace_s=0.0)
        except LabanError as error:
            print(f"laban: the tools are served no more: {error}", file=sys.stderr)


@contextmanager
def serving(client: Client, tools: dict[str, ShellTool]) -> Iterator[ServedTools]:
    served = ServedTools(client, tools)
    try:
        yield served
    finally:
        served.end()


def check_names(tools: Iterable[str], document: bytes, name: str, files: Mapping[str, bytes]) -> None:
    """Refuse tools that no external step of the workflow asks for. Raises WorkflowErrors for a bad document."""
    from laban.cluster.workflow.parse import parse_yaml

    asked = list(dict.fromkeys(_asked(parse_yaml(document, name, files))))
    for tool in tools:
        if tool not in asked:
            known = f"one of {', '.join(asked)}" if asked else "none: the workflow has no external step"
            raise InvalidInput(f"no external step asks for it, expected {known}", field="--tool", value=tool)


def _asked(workflow: Workflow) -> Iterator[str]:
    """The tools that a workflow, and those in it, ask for."""
    from laban.cluster.workflow.blocks import steps_of

    for step in steps_of(workflow):
        if step.external is not None:
            yield step.external.tool or step.step
    for other in workflow.workflows.values():
        yield from _asked(other)


def complete(client: Client, arguments: Namespace) -> WorkflowRecord:
    options = _answer(arguments)
    return client.complete_step(arguments.workflow_id, arguments.step, **options)


def _answer(arguments: Namespace) -> dict[str, Any]:
    given = [
        arguments.text is not None,
        arguments.file is not None,
        arguments.source is not None,
        arguments.json_output is not None,
    ]
    if sum(given) != 1:
        raise InvalidInput("expected one of --text T, --file F, - (stdin) or --json-output JSON", field="ANSWER")
    if arguments.json_output is not None:
        try:
            return {"output": json.loads(arguments.json_output)}
        except ValueError as error:
            shown = arguments.json_output
            raise InvalidInput(f"is not JSON ({error})", field="--json-output", value=shown) from None
    if arguments.text is not None:
        return {"text": arguments.text}
    source = arguments.source or arguments.file
    if arguments.source not in (None, "-"):
        raise InvalidInput("expected -, for the text on stdin", field="ANSWER", value=arguments.source)
    data = sys.stdin.buffer.read() if source == "-" else read_file(source, "--file")
    try:
        return {"text": data.decode("utf-8").removesuffix("\n")}
    except UnicodeDecodeError as error:
        raise InvalidInput(f"is not UTF-8 ({error.reason})", field="ANSWER") from None
