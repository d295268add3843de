"""The commands and their flags. Nothing heavy is imported here, so that `--help` is instant."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from laban.cluster.cli import commands
from laban.cluster.workflow.fidelity import AUTO, expected

DEFAULT_ADDRESS = "127.0.0.1:8470"

ABOUT = """\
Laban runs multi-agent workflows on a language model. A workflow says which messages each step reads, in what order;
Laban encodes every message once and lets any later step attend to it at any position.

    laban new flow.yaml                         write a workflow to start from
    laban run examples/parallel_debate.yaml     run a workflow here and now, and watch it
    laban lint examples/parallel_debate.yaml    what is wrong with it, and what its steps would read
    laban serve                                 keep a cluster up, for `laban run --address` and programs
"""

EXAMPLES = {
    "serve": """\
    laban serve                               the default model, on 127.0.0.1:8470
    laban serve --model ~/models/Qwen3-8B --workers 2 --port 9000
    laban serve --host-bytes 64GiB --disk-folder /var/cache/laban --disk-bytes 500GiB
    laban config > laban.yaml                 every setting, to change and keep""",
    "run": """\
    laban run examples/parallel_debate.yaml
    laban run examples/parallel_debate.yaml --input question='Why is the sky blue?' --fidelity direct
    laban run flow.yaml --input report=@report.txt --set 'answer[bob,2].max_tokens=64' --seed 7
    laban run flow.yaml --input docs='@papers/*.txt'
    laban run flow.yaml --json | jq .outputs
    laban run flow.yaml --tool tests='pytest -q "$LABAN_ARG_PATH"'
    laban run flow.yaml --address 10.0.0.5:8470     on a cluster that `laban serve` keeps up""",
    "audit": """\
    laban audit flow.yaml --data inputs.jsonl                each line {"question": "..."}: one run each
    laban audit flow.yaml --data inputs.jsonl --levels direct --tolerance 0.02 --html report.html
    laban audit flow.yaml --data inputs.jsonl --write        then check what it chose:
    laban audit flow.yaml --data held_out.jsonl --levels written
    laban audit flow.yaml --data inputs.jsonl --keep --address 127.0.0.1:8470   for `fidelity: auto` there
    laban audit flow.yaml --input question='Why?' --json | jq .wholes""",
    "tune": """\
    laban tune flow.yaml --data inputs.jsonl --out tuned     200 to 500 lines {"question": "..."} are a good start
    laban tune flow.yaml --data inputs.jsonl --out tuned     the same again goes on where it was
    laban tune flow.yaml --data inputs.jsonl --out tuned --processes 8     on eight GPUs
    laban tune flow.yaml --data inputs.jsonl --out tuned --from other/adapter     less to learn: it can read already
    laban tune flow.yaml --data inputs.jsonl --out tuned --model ~/models/Qwen3-8B --epochs 8 --learning-rate 2e-5""",
    "submit": """\
    laban submit flow.yaml --key nightly-2026-11-22     the same key again gives the same workflow
    laban watch "$(laban submit flow.yaml)\"""",
    "watch": """\
    laban watch wf-0123456789abcdef
    laban watch wf-0123456789abcdef --after 12          events after number 12""",
    "get": """\
    laban get wf-0123456789abcdef
    laban get wf-0123456789abcdef --json""",
    "list": """\
    laban list --state running --state failed""",
    "cancel": """\
    laban cancel wf-0123456789abcdef""",
    "delete": """\
    laban delete wf-0123456789abcdef""",
    "tools": """\
    laban tools --tool tests='cd /src && pytest -q' --tool search=./search.sh
    laban tools --tool tests='make test' --workflow wf-0123456789abcdef --concurrency 1""",
    "complete": """\
    laban complete wf-0123456789abcdef human --text 'Looks good.'
    make test 2>&1 | laban complete wf-0123456789abcdef 'tests[2]' -
    laban complete wf-0123456789abcdef check --json-output '{"ok": true}'""",
    "fail": """\
    laban fail wf-0123456789abcdef tests 'the machine is down'""",
    "lint": """\
    laban lint flow.yaml
    laban lint flow.yaml --model ~/models/Qwen3-8B --input question=why""",
    "graph": """\
    laban graph examples/parallel_debate.yaml
    laban graph flow.yaml --svg flow.svg""",
    "schema": """\
    laban schema > workflow.schema.json       then begin a workflow with the line
                                              # yaml-language-server: $schema=workflow.schema.json""",
    "new": """\
    laban new flow.yaml && laban run flow.yaml""",
    "config": """\
    laban config                              as resolved here: laban.yaml, LABAN_* variables, flags
    LABAN_ENGINE_POOL_TOKENS=20000 laban config --workers 2""",
    "status": """\
    laban status --address 127.0.0.1:8470""",
    "explain": """\
    laban explain wf-0123456789abcdef 'answer[bob,2]'
    laban explain wf-0123456789abcdef verdict --json | jq .decision.chosen""",
    "workers": """\
    laban workers                             who there is, and what they do
    laban workers add                         one more, like the others
    laban workers add --model large           one more of a model, where there are several
    laban workers drain worker-1              take one out, once it has done what it has
    laban workers drain worker-1 --no-wait""",
    "token": """\
    laban token nightly --tenant acme --roles submit --file tokens.yaml
    laban serve --config laban.yaml           with auth.tokens_file: tokens.yaml
    LABAN_TOKEN=laban_... laban submit flow.yaml""",
    "trace": """\
    laban trace wf-0123456789abcdef --out trace.json      then open it at ui.perfetto.dev""",
    "dashboards": """\
    laban dashboards                          into the folder dashboards, to import into Grafana
    laban dashboards --out /var/lib/grafana/dashboards""",
    "clear": """\
    laban clear parallel_debate""",
    "version": "    laban version",
}

AUDIT = """\
Run a workflow under `exact` on each input, then replay each run under other levels of fidelity, every step forced to
the recorded text, and compare.

Of each step and level: the KL divergence from exact over the whole vocabulary (nats a token, mean and 95th percentile),
how often both like the same token best, the change of the text's log-likelihood, and the tokens encoded again. Where a
step's text decides something (a branch, a vote, a value that is matched) the level also generates by itself in the
recorded context: a decision that comes out otherwise flips. Of the steps that differ most, each read is also tried
alone. Last, whole runs are replayed from an empty cache, for time.

It ends with the cheapest level within the tolerance T for each step, or each read: at most T nats a token on average,
and at most a share T of the decisions flipped. Intervals are over inputs, so give it more than a few.
"""
TUNE = """\
Train an adapter (LoRA) with which a workflow that reads encodings as they are says what it says under `exact`.

1. Each line of the data is run under `exact`, as FILE says otherwise: what the steps say is recorded.
2. Each run is replayed under the level (direct, unless --fidelity says otherwise): the same messages, encoded and read
   as that level does. The adapter is trained so that the distribution of every next token is that of `exact` by the
   plain model (KL over the whole vocabulary); gradients flow through the encodings into those who made them.
3. On a share of the inputs, held out, the level is compared with `exact` before and after.

Everything is in the folder --out: the recorded runs, checkpoints, progress.jsonl, scores.json, and in `adapter` the
adapter as PEFT saves one, with a card. The same command again goes on where it was. With GPUs each process takes one;
on several machines --out must be a folder that all of them reach. Training needs `pip install '.[server,tune]'`.
"""
FILE_HELP = "the workflow, a YAML file"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Exits with status 2, and says why, if the arguments make no sense."""
    return _parser().parse_args(argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="laban", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, about: str) -> argparse.ArgumentParser:
        made = subparsers.add_parser(
            name,
            help=about,
            description=about[0].upper() + about[1:] + ".",
            epilog=f"examples:\n{EXAMPLES[name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        made.set_defaults(command=getattr(commands, name if name != "list" else "list_workflows"))
        return made

    serve = command("serve", "start a cluster and serve the API until interrupted")
    _cluster_flags(serve)
    serve.add_argument("--host", dest="server_host", help="the address to listen on")
    serve.add_argument("--port", dest="server_port", help="the port to listen on; 0 takes a free one")
    serve.add_argument("--http-port", help="the port of OpenAI's API; 0 takes a free one, null none")

    run = command("run", "run a workflow and watch it; without --address on a cluster of its own")
    run.add_argument("file", metavar="FILE", help=FILE_HELP)
    run.add_argument("--address", metavar="HOST:PORT", help="a cluster to run it on; none: start one here")
    _run_flags(run)
    _auto_flag(run)
    _tool_flag(run)
    _json_flag(run)
    _cluster_flags(run)

    audit = command("audit", "measure what reuse changes in a workflow, what it saves, and which level to choose")
    audit.description = AUDIT
    audit.add_argument("file", metavar="FILE", help=FILE_HELP)
    audit.add_argument("--address", metavar="HOST:PORT", help="a cluster to do it on; none: start one here")
    audit.add_argument("--data", metavar="FILE.jsonl", help="input values, a JSON object a line, over --input")
    audit.add_argument(
        "--levels", metavar="L,L",
        help="to compare with exact: direct, blended:0.3, ... (default: all, blended at 0.15, 0.3 and 0.5); "
        "written: what FILE says",
    )  # fmt: skip
    audit.add_argument("--tolerance", type=float, default=0.05, metavar="T", help="of the recommendation (0.05)")
    audit.add_argument("--html", metavar="FILE.html", help="write the report as one page, with pictures")
    audit.add_argument("--keep", action="store_true", help="have the cluster keep it: `fidelity: auto` chooses by it")
    audit.add_argument("--write", action="store_true", help="write the recommendation into FILE; comments stay")
    _run_flags(audit)
    _tool_flag(audit)
    _json_flag(audit)
    _cluster_flags(audit)

    _tune_flags(command("tune", "train an adapter that makes up for what reuse changes in a workflow"))

    submit = command("submit", "start a workflow on a cluster and print its id")
    submit.add_argument("file", metavar="FILE", help=FILE_HELP)
    submit.add_argument("--key", help="an idempotency key: the same one again starts nothing new")
    _run_flags(submit)
    _auto_flag(submit)
    _client_flags(submit)

    watch = command("watch", "watch a workflow to its end")
    watch.add_argument("workflow_id", metavar="ID")
    watch.add_argument("--after", type=int, default=0, metavar="N", help="only events after number N (default 0)")
    _client_flags(watch)

    get = command("get", "show a workflow as it stands")
    get.add_argument("workflow_id", metavar="ID")
    _client_flags(get)

    listing = command("list", "list workflows, newest first")
    listing.add_argument(
        "--state", action="append", default=[], help="running, succeeded, failed or cancelled; repeatable"
    )
    listing.add_argument("--limit", type=int, default=50, metavar="N", help="at most so many (default 50)")
    _client_flags(listing)

    cancel = command("cancel", "stop a workflow")
    cancel.add_argument("workflow_id", metavar="ID")
    _client_flags(cancel)
    delete = command("delete", "stop a workflow, and forget its texts and events")
    delete.add_argument("workflow_id", metavar="ID")
    _client_flags(delete)

    tools = command("tools", "do the external steps of a cluster's workflows with shell commands, until interrupted")
    _tool_flag(tools)
    tools.add_argument("--workflow", default="", metavar="ID", help="only those of this workflow, until it ends")
    tools.add_argument("--concurrency", type=int, default=4, metavar="N", help="steps at a time (default 4)")
    _client_flags(tools, json=False)

    complete = command("complete", "answer an external step by hand")
    _step_arguments(complete)
    complete.add_argument("source", nargs="?", metavar="-", help="the text is on stdin")
    complete.add_argument("--text", metavar="T", help="the text")
    complete.add_argument("--file", metavar="F", help="a file with the text; - is stdin")
    complete.add_argument("--json-output", metavar="JSON", help="any JSON value, for steps with an output_schema say")
    _client_flags(complete)

    fail = command("fail", "say that an external step failed; it is tried again if its `retries` allow")
    _step_arguments(fail)
    fail.add_argument("message", metavar="MESSAGE", help="why")
    fail.add_argument("--final", action="store_true", help="do not try it again")
    _client_flags(fail)

    lint = command("lint", "check a workflow without running it; needs neither a cluster nor a GPU")
    lint.add_argument("file", metavar="FILE", help=FILE_HELP)
    lint.add_argument("--input", dest="inputs", action="append", default=[], metavar="K=V", help="an input's value")
    lint.add_argument("--fidelity", help=f"as if every read had this fidelity: {AUTO}, {expected()}")
    _cluster_flags(lint, only_model=True)
    _json_flag(lint)

    graph = command("graph", "draw a workflow: its steps, who runs them, and what they read")
    graph.add_argument("file", metavar="FILE", help=FILE_HELP)
    graph.add_argument("--svg", metavar="OUT", help="write a picture to this file, instead of lines here")

    command("schema", "print the JSON Schema of workflow files, for editors")
    command("new", "write a workflow to start from").add_argument("file", metavar="FILE", help="to be made")

    clear = command("clear", "forget what audits found of a workflow; it has the levels that it asks for again")
    clear.add_argument("workflow", metavar="NAME", help="the workflow's name, as `laban status` shows it")
    _client_flags(clear, json=False)

    config = command("config", "print the configuration as resolved, every field explained")
    _cluster_flags(config)

    _client_flags(command("status", "show a cluster's workers, queues, pools, tiers and rates"))

    explain = command("explain", "show why a step's call went to the worker it went to")
    _step_arguments(explain)
    _client_flags(explain)

    workers = command("workers", "show, add and drain a cluster's workers")
    _client_flags(workers)
    actions = workers.add_subparsers(dest="action", metavar="[ACTION]")
    add = actions.add_parser("add", help="start one more and wait until it is up", allow_abbrev=False)
    add.add_argument("--model", metavar="NAME", default="", help="one of `models`; default: the default model's")
    drain = actions.add_parser("drain", help="give one no new calls, and end it once it is done", allow_abbrev=False)
    drain.add_argument("worker", metavar="WORKER", help="its id, as in `laban workers`")
    drain.add_argument("--no-wait", action="store_true", help="do not wait until it is gone")
    for action in (add, drain):
        _client_flags(action, below=True)
    token = command("token", "make a token that lets somebody call; it is shown once, and kept as a hash")
    token.add_argument("name", metavar="NAME", help="whose it is: shown in logs")
    token.add_argument("--tenant", default="default", help="whose workflows and encodings it sees (default: default)")
    token.add_argument(
        "--roles", default="submit", metavar="A,B",
        help="read: see workflows and status; submit: also start and end them; admin: also change the cluster",
    )  # fmt: skip
    token.add_argument(
        "--fidelity", metavar="LEVEL", default="exact",
        help="of its OpenAI requests that name none (default: exact)",
    )  # fmt: skip
    token.add_argument("--days", type=float, metavar="N", help="it expires after so many; default: never")
    token.add_argument("--file", metavar="FILE", help="the tokens file to add it to; default: print the entry")
    trace = command("trace", "write a workflow's timeline, for Perfetto or Chrome's tracing")
    trace.add_argument("workflow_id", metavar="ID")
    trace.add_argument("--out", default="trace.json", metavar="FILE", help="the file (default: trace.json)")
    _client_flags(trace, json=False)

    dashboards = command("dashboards", "write the Grafana dashboards")
    dashboards.add_argument("--out", default="dashboards", metavar="DIR", help="the folder (default: dashboards)")
    command("version", "print Laban's version")
    return parser


def _cluster_flags(parser: argparse.ArgumentParser, *, only_model: bool = False) -> None:
    group = parser.add_argument_group("configuration (`laban config` lists every setting)")
    group.add_argument("--config", metavar="FILE", help="default: laban.yaml here, if there is one")
    group.add_argument("--model", metavar="FOLDER", help="a Hugging Face model folder; default: the built-in model")
    if only_model:
        return
    group.add_argument("--workers", metavar="N", help="model replicas")
    group.add_argument(
        "--adapter", dest="adapters", action="append", default=[], metavar="NAME=FOLDER",
        help="a low-rank adapter that agents and steps may name, as PEFT and `laban tune` save one; repeatable",
    )  # fmt: skip
    policy = "or one of your own as package.module:Class"
    group.add_argument(
        "--routing", metavar="POLICY", help=f"cost, prefix_affinity, least_loaded, round_robin, {policy}"
    )
    group.add_argument("--eviction", metavar="POLICY", help=f"cost, steps, lru, {policy}")
    group.add_argument(
        "--transport", metavar="NAME",
        help="how encodings cross between workers: cma (reads another process of the machine), nixl (another machine, "
        "with the extra of that name), object_store (Ray sends; with shards there is no other); default auto: the "
        "first that serves",
    )  # fmt: skip
    group.add_argument("--host-bytes", metavar="SIZE", help="host memory a worker for its cache, such as 4GiB; 0: none")
    group.add_argument("--disk-folder", metavar="FOLDER", help="where workers keep encodings on disk; default: nowhere")
    group.add_argument("--disk-bytes", metavar="SIZE", help="of that folder a worker, such as 100GiB")
    group.add_argument("--record", metavar="FILE", help="record every call to this file, for `benchmarks/simulate.py`")


def _tune_flags(tune: argparse.ArgumentParser) -> None:
    tune.description = TUNE
    tune.add_argument("file", metavar="FILE", help=FILE_HELP)
    tune.add_argument("--data", metavar="FILE.jsonl", required=True, help="input values, a JSON object a line")
    tune.add_argument("--out", metavar="FOLDER", required=True, help="where everything is kept")
    tune.add_argument("--address", metavar="HOST:PORT", help="a cluster of --model to record on; none: start one here")
    tune.add_argument("--held-out", type=float, default=0.1, metavar="SHARE", help="of the inputs (default 0.1)")
    tune.add_argument("--processes", type=int, default=1, metavar="N", help="that train together (default 1)")
    group = tune.add_argument_group("training (the defaults are those of arXiv 2512.23049, but for the loss)")
    group.add_argument(
        "--from", dest="start", metavar="FOLDER",
        help="start from this adapter, such as another workflow's, with its rank, alpha and targets (default: none)",
    )  # fmt: skip
    group.add_argument("--rank", type=int, metavar="N", help="of the adapter (64)")
    group.add_argument("--alpha", type=float, metavar="X", help="its scale times the rank (32)")
    group.add_argument("--dropout", type=float, metavar="P", help="of the adapter's input (0.05)")
    group.add_argument("--targets", metavar="T,T", help="layers with an adapter (q_proj,k_proj,v_proj,o_proj)")
    group.add_argument("--learning-rate", type=float, metavar="X", help="at its highest (5e-5); then a cosine to 0")
    group.add_argument("--epochs", type=int, metavar="N", help="passes over the inputs (4)")
    group.add_argument("--batch", type=int, metavar="N", help="inputs a step (4)")
    group.add_argument(
        "--hard", type=float, metavar="W", help="weight of the texts themselves: 1 is imitation alone (0)"
    )
    group.add_argument("--checkpoint-every", type=int, metavar="N", help="steps (10)")
    group.add_argument("--dtype", help="of the plain model: float32 on a CPU, bfloat16 on a GPU; factors are float32")
    _run_flags(tune)
    _tool_flag(tune)
    _json_flag(tune)
    _cluster_flags(tune)


def _auto_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tolerance", type=float, dest="auto_tolerance", metavar="T",
        help="of `auto`: mean KL from exact, nats a token; default: as the workflow says, else 0.05",
    )  # fmt: skip


def _run_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input", dest="inputs", action="append", default=[], metavar="K=V",
        help="an input's value; K=@FILE is a file's text, K='@DIR/*.txt' a list of texts, K:=JSON and K:=@FILE.json a "
        "list or number, K:=@FILE.csv:COLUMN a column; repeatable",
    )  # fmt: skip
    parser.add_argument("--fidelity", help=f"for every read: {AUTO}, {expected()}; default: the workflow's")
    parser.add_argument("--seed", type=int, help="of all sampling noise; default: as the workflow says, else any")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="ADDRESS.FIELD=V",
        help="change a step's sampling, e.g. 'answer[bob,2].max_tokens=64' or answer.temperature=0.7; repeatable",
    )  # fmt: skip


def _tool_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tool", dest="tools", action="append", default=[], metavar="NAME=COMMAND",
        help="do the external steps that ask for the tool NAME by a shell command: args as JSON on stdin and as "
        "LABAN_ARG_*, stdout is the text; repeatable",
    )  # fmt: skip


def _step_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workflow_id", metavar="ID", help="the workflow's")
    parser.add_argument("step", metavar="ADDRESS", help="the step instance, e.g. human or 'tests[2]'")


def _json_flag(parser: argparse.ArgumentParser, default: bool | str = False) -> None:
    parser.add_argument(
        "--json", action="store_true", default=default, help="print exactly one JSON document; `error` if it is refused"
    )


def default_address() -> str:
    return os.environ.get("LABAN_ADDRESS") or DEFAULT_ADDRESS


def _client_flags(parser: argparse.ArgumentParser, *, json: bool = True, below: bool = False) -> None:
    """`below`: of a command's action, where what was said before it stands unless it is said again."""
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        default=argparse.SUPPRESS if below else default_address(),
        help=f"of the cluster; default: LABAN_ADDRESS, else {DEFAULT_ADDRESS}",
    )
    if json:
        _json_flag(parser, argparse.SUPPRESS if below else False)
