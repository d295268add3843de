"""What each command does. Imports what it needs when it runs: most commands need neither Ray nor a model."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laban.actors.errors import InvalidInput, Unavailable
from laban.actors.logs import set_up_logs
from laban.cluster.cli.cluster import explain_step, on_workers, show_status
from laban.cluster.cli.files import check_writable, parse_settings, read_file
from laban.cluster.cli.flags import check_one_cluster, configuration
from laban.cluster.cli.follow import document, summary
from laban.cluster.cli.inputs import parse_inputs
from laban.cluster.cli.reaching import why_unreachable
from laban.cluster.cli.shell import ShellTool, parse_tools
from laban.cluster.cli.show import follow, report, say_step, show
from laban.cluster.cli.tools import check_names, serve_until_interrupted, serving
from laban.cluster.cli.tools import complete as complete_step
from laban.cluster.client_files import files_named_in
from laban.cluster.workflow.fidelity import AUTO, MAX_TOLERANCE, expected, is_served

if TYPE_CHECKING:
    from laban.cluster.client import Client
    from laban.cluster.config import LabanConfig
    from laban.cluster.launch import ClusterHandle
    from laban.cluster.records import WorkflowRecord
    from laban.cluster.render import Screen
    from laban.cluster.workflow.schema import Workflow

CHECK_EVERY_S = 1.0
MAX_SILENCES = 3
MAX_SEED = 2**63 - 1


def serve(arguments: Namespace) -> int:
    from laban.cluster.launch import start_cluster
    from laban.cluster.process_logs import ProcessLogs, logs_folder
    from laban.cluster.render import screen_for

    config = _journaled(configuration(arguments).config)
    set_up_logs(config.log.settings)
    screen, logs = screen_for(), ProcessLogs()
    try:
        with screen:
            cluster = start_cluster(config, screen.phase, logs)
    except Unavailable:  # a process of it did not come up: its log says why
        logs.show()
        raise
    with cluster:
        print(f"serving {cluster.serves} on {cluster.address}", flush=True)
        if cluster.http_address:
            scheme = "http" if config.server.tls is None else "https"
            print(f"OpenAI's API: {scheme}://{cluster.http_address}/v1", file=sys.stderr, flush=True)
        if cluster.metrics_address:
            print(f"metrics: http://{cluster.metrics_address}/metrics", file=sys.stderr, flush=True)
        print(f"logs: below, and those of this machine in {logs_folder()}/worker-*.err", file=sys.stderr, flush=True)
        print(f"try: laban run FILE --address {cluster.address}  (Ctrl-C ends the server)", file=sys.stderr, flush=True)
        logs.show()
        try:
            _stay_while_serving(cluster)
        except KeyboardInterrupt:
            print("stopping", file=sys.stderr)
    return 0


def _journaled(config: LabanConfig) -> LabanConfig:
    """With a journal, unless it says otherwise: workflows outlive the server."""
    from laban.cluster.journal_place import default_url

    if config.journal.url is not None:
        return config
    journal = config.journal.model_copy(update={"url": default_url(config.server.port)})
    return config.model_copy(update={"journal": journal})


def run(arguments: Namespace) -> int:
    from laban.cluster.render import screen_for

    check_one_cluster(arguments)
    request = _request(arguments)
    tools = parse_tools(arguments.tools)
    if tools:
        check_names(tools, request["workflow"], request["source_name"], request["files"])
    screen = screen_for()
    if arguments.address is None:
        _check_locally(request, configuration(arguments).config)
    with _given_or_own(arguments, screen) as client:
        return _run(client, request, tools, screen, arguments)


def audit(arguments: Namespace) -> int:
    from laban.cluster.cli.audit import Auditing, AuditPlan, finish, record
    from laban.cluster.render import screen_for

    check_one_cluster(arguments)
    if arguments.html:
        check_writable(arguments.html, "--html")
    if arguments.write:
        check_writable(arguments.file, "--write")
    request = _request(arguments)
    tools = parse_tools(arguments.tools)
    if tools:
        check_names(tools, request["workflow"], request["source_name"], request["files"])
    plan = AuditPlan(request, arguments)
    if arguments.address is None:
        _check_served(plan.workflow, configuration(arguments).config)
    with _given_or_own(arguments, screen_for()) as client:
        found = Auditing(client, plan, tools, arguments.address).all()
        keep = (lambda: record(client, plan, found)) if arguments.keep else None
        return finish(plan, found, arguments, keep)


def tune(arguments: Namespace) -> int:
    from laban.actors.models import check_model_folder
    from laban.actors.tuning.distributed import check_installed
    from laban.cluster.cli.tune import Tuning
    from laban.cluster.cli.tune import tune as train
    from laban.cluster.launch import model_folder
    from laban.cluster.render import screen_for

    check_one_cluster(arguments, also_local=("config", "model"))
    request = _request(arguments)
    tools = parse_tools(arguments.tools)
    if tools:
        check_names(tools, request["workflow"], request["source_name"], request["files"])
    tuning = Tuning(request, arguments)
    check_installed()
    screen = screen_for()
    with screen:
        found = configuration(arguments).config
        plan = found.model_plans()[0]
        tuning.open(check_model_folder(model_folder(plan.path, screen.phase)), plan.name)
    if not tuning.is_recorded():
        with _given_or_own(arguments, screen_for()) as client, screen_for() as recording:
            tuning.check_served(client.status(), arguments.address)
            tuning.record(client, tools, recording, arguments.address)
    num_lessons, _ = tuning.write_lessons(found.engine.parse_special_tokens)
    return train(tuning, arguments, screen_for(), num_lessons, found.ray.address)


def clear(arguments: Namespace) -> int:
    if arguments.workflow.endswith((".yaml", ".yml")):
        wanted = "is a file: expected the workflow's name, which stands in it and in `laban status`"
        raise InvalidInput(wanted, field="NAME", value=arguments.workflow)
    with _client(arguments) as client:
        client.clear_findings(arguments.workflow)
    print(f"{arguments.workflow}: forgotten; what is submitted of it has the levels that it asks for")
    return 0


@contextmanager
def _given_or_own(arguments: Namespace, screen: Screen) -> Iterator[Client]:
    """A client of the cluster at --address, or of one that is started for this command and ends with it."""
    if arguments.address is not None:
        with _client(arguments) as client:
            yield client
        return

    from laban.cluster.client import Client
    from laban.cluster.client_credentials import Credentials
    from laban.cluster.config import AuthSection, JournalSection
    from laban.cluster.launch import start_cluster

    found = configuration(arguments).config
    silent = {name: getattr(found, name).model_copy(update={"port": None}) for name in ("metrics", "http")}
    config = found.model_copy(update=silent)
    # A cluster of its own listens where nobody else does.
    alone = {"host": "127.0.0.1", "port": 0, "tls_cert": None, "tls_key": None, "tls_client_ca": None}
    private = config.model_copy(update={"server": config.server.model_copy(update=alone), "auth": AuthSection()})
    with screen:
        cluster = start_cluster(private.model_copy(update={"journal": JournalSection()}), screen.phase)
    arguments.address = cluster.address
    with cluster, Client(cluster.address, credentials=Credentials()) as client:
        yield client


def _run(
    client: Client, request: dict[str, Any], tools: dict[str, ShellTool], screen: Screen, arguments: Namespace
) -> int:
    with screen, serving(client, tools) as served:
        items = client.run(**request, cancel_on_disconnect=True)
        record = follow(client, items, screen, arguments.address, served)
    return report(record, arguments)


def submit(arguments: Namespace) -> int:
    if arguments.key == "":  # a shell's variable that is not set: without a key another try would be another workflow
        raise InvalidInput("is empty, expected a key of at most 128 characters", field="--key", value="")
    with _client(arguments) as client:
        record = client.submit(**_request(arguments), idempotency_key=arguments.key or "")
    print(json.dumps({"workflow_id": record.workflow_id}) if arguments.json else record.workflow_id)
    return 0


def watch(arguments: Namespace) -> int:
    from laban.cluster.render import screen_for

    if arguments.after < 0:
        raise InvalidInput("expected 0 or more", field="--after", value=arguments.after)
    with _client(arguments) as client:
        with screen_for() as screen:
            items = client.watch(arguments.workflow_id, arguments.after)
            record = follow(client, items, screen, arguments.address)
        return report(record or client.get(arguments.workflow_id), arguments)


def get(arguments: Namespace) -> int:
    with _client(arguments) as client:
        record = client.get(arguments.workflow_id)
    show(record, arguments)
    return 0


def list_workflows(arguments: Namespace) -> int:
    if arguments.limit < 1:
        raise InvalidInput("expected 1 or more", field="--limit", value=arguments.limit)
    records: list[WorkflowRecord] = []
    token = ""
    with _client(arguments) as client:
        while len(records) < arguments.limit:
            size = min(1000, arguments.limit - len(records))
            page, token = client.list(page_size=size, page_token=token, states=arguments.state)
            records.extend(page)
            if not token:
                break
    if arguments.json:
        print(json.dumps({"workflows": [summary(record) for record in records]}, ensure_ascii=False))
    else:
        from laban.cluster.render import print_workflows

        print_workflows(records)
        if token:
            print(f"there are more; --limit {arguments.limit * 2} shows them", file=sys.stderr)
    return 0


def cancel(arguments: Namespace) -> int:
    with _client(arguments) as client:
        record = client.cancel(arguments.workflow_id)
    if arguments.json:
        print(document(record))
    else:
        print(f"{record.workflow_id}: {record.state}")
    return 0


def delete(arguments: Namespace) -> int:
    with _client(arguments) as client:
        client.delete(arguments.workflow_id)
    print(json.dumps({"deleted": arguments.workflow_id}) if arguments.json else f"{arguments.workflow_id}: deleted")
    return 0


def tools(arguments: Namespace) -> int:
    commands = parse_tools(arguments.tools)
    with _client(arguments) as client:
        serve_until_interrupted(client, commands, arguments)
    return 0


def complete(arguments: Namespace) -> int:
    with _client(arguments) as client:
        record = complete_step(client, arguments)
    return say_step(record, arguments)


def fail(arguments: Namespace) -> int:
    with _client(arguments) as client:
        record = client.fail_step(arguments.workflow_id, arguments.step, arguments.message, final=arguments.final)
    return say_step(record, arguments)


def lint(arguments: Namespace) -> int:
    from laban.cluster.cli.lint import lint_file

    return lint_file(arguments)


def graph(arguments: Namespace) -> int:
    from laban.cluster.cli.graph import graph

    return graph(arguments)


def schema(arguments: Namespace) -> int:
    from laban.cluster.workflow.reference import schema_text

    print(schema_text(), end="")
    return 0


def new(arguments: Namespace) -> int:
    from laban.cluster.cli.new import new

    return new(arguments)


def config(arguments: Namespace) -> int:
    from laban.cluster.config import describe

    print(describe(configuration(arguments)), end="")
    return 0


def status(arguments: Namespace) -> int:
    with _client(arguments) as client:
        return show_status(client, arguments)


def workers(arguments: Namespace) -> int:
    with _client(arguments) as client:
        return on_workers(client, arguments)


def explain(arguments: Namespace) -> int:
    with _client(arguments) as client:
        return explain_step(client, arguments)


def token(arguments: Namespace) -> int:
    from laban.cluster.cli.token import new_token

    return new_token(arguments)


def trace(arguments: Namespace) -> int:
    from laban.cluster.cli.trace import trace

    check_writable(arguments.out, "--out")
    with _client(arguments) as client:
        return trace(client, arguments)


def dashboards(arguments: Namespace) -> int:
    from laban.cluster.monitoring.dashboards import write

    try:
        paths = write(Path(arguments.out))
    except OSError as error:
        raise InvalidInput(f"cannot be written ({error.strerror})", field="--out", value=arguments.out) from None
    print("\n".join(map(str, paths)))
    return 0


def version(arguments: Namespace) -> int:
    try:
        print(f"laban {package_version('laban')}")
    except PackageNotFoundError:
        print("laban, from a source folder that is not installed")
    return 0


def _request(arguments: Namespace) -> dict[str, Any]:
    """The client's arguments for a submission. Raises NotFound or InvalidInput for what cannot be sent."""
    text = read_file(arguments.file)
    if arguments.seed is not None and not 0 <= arguments.seed <= MAX_SEED:
        raise InvalidInput(f"expected 0 to {MAX_SEED}", field="--seed", value=arguments.seed)
    if arguments.fidelity is not None and arguments.fidelity != AUTO and not is_served(arguments.fidelity):
        raise InvalidInput(f"expected {AUTO}, {expected()}", field="--fidelity", value=arguments.fidelity)
    tolerance = getattr(arguments, "auto_tolerance", None)
    if tolerance is not None and not 0 <= tolerance <= MAX_TOLERANCE:
        raise InvalidInput(f"expected 0 to {MAX_TOLERANCE:g}, nats a token", field="--tolerance", value=tolerance)
    return {
        "workflow": text,
        "source_name": arguments.file,
        "files": files_named_in(text, Path(arguments.file)),
        "inputs": parse_inputs(arguments.inputs),
        "fidelity": arguments.fidelity,
        "tolerance": tolerance,
        "seed": arguments.seed,
        "overrides": parse_settings(arguments.settings),
    }


def _check_locally(request: dict[str, Any], config: LabanConfig) -> None:
    """Refuse a bad workflow, input or override, and what `_check_served` refuses, before a cluster is started for it.
    Raises WorkflowErrors."""
    from laban.cluster.workflow.parse import parse_yaml
    from laban.cluster.workflow.run import Run
    from laban.cluster.workflow.states import Overrides

    workflow = parse_yaml(request["workflow"], request["source_name"], request["files"])
    changes: dict[tuple[str, str], object] = {}
    for key, value in request["overrides"].items():
        address, _, name = key.rpartition(".")
        changes[address, name] = value
    Run(workflow, request["inputs"], Overrides(request["fidelity"], request["seed"], changes))
    _check_served(workflow, config)


def _check_served(workflow: Workflow, config: LabanConfig) -> None:
    """Refuse a model or adapter that `config` has not. Raises WorkflowErrors."""
    from laban.cluster.workflow.diagnostics import WorkflowErrors
    from laban.cluster.workflow.models import unknown_adapters, unknown_models

    plans = config.model_plans()
    adapters = {plan.name or "": [name for name, _ in plan.adapters] for plan in plans}
    # A model alone is called by its folder's name, which is known once it has been looked at.
    problems = unknown_models(workflow, list(adapters)) if config.models else []
    default = adapters[plans[0].name or ""]
    problems = problems or unknown_adapters(workflow, lambda model: adapters.get(model, default))
    if problems:
        raise WorkflowErrors(workflow.marks.locate(problems))


def _stay_while_serving(cluster: ClusterHandle) -> None:
    """Until interrupted. Raises Unavailable if the control plane is gone."""
    silences = 0
    while silences < MAX_SILENCES:
        time.sleep(CHECK_EVERY_S)
        silences = 0 if cluster.answers() else silences + 1
    raise Unavailable("the control plane does not answer any more; start it again with `laban serve`")


@contextmanager
def _client(arguments: Namespace) -> Iterator[Client]:
    from laban.cluster.client import Client

    with _hinted(arguments.address), Client(arguments.address) as client:
        yield client


@contextmanager
def _hinted(address: str) -> Iterator[None]:
    """Say what to do when nobody answers at `address`."""
    try:
        yield
    except Unavailable as error:
        if "cannot reach" not in error.message:
            raise
        raise Unavailable(why_unreachable(address, error.message)) from error
