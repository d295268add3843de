"""`laban tune`: an adapter with which a workflow reads encodings as they are and says what it says under `exact`."""

from __future__ import annotations

import asyncio
import json
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laban.actors.errors import FailedPrecondition, InvalidInput
from laban.actors.tuning.lessons import Lesson, write_lessons
from laban.actors.tuning.plan import Said, TunePlan
from laban.actors.tuning.start import Start, read_start
from laban.cluster.audit.data import read_data
from laban.cluster.audit.levels import problem_with
from laban.cluster.audit.records import RecordedStep
from laban.cluster.cli.files import read_file
from laban.cluster.cli.recording import record_run
from laban.cluster.cli.show import Waiting
from laban.cluster.tuning.card import card
from laban.cluster.tuning.lessons import BASELINE, Trace, lesson_of, split
from laban.cluster.workflow.fidelity import expected
from laban.cluster.workflow.models import named_adapters, named_models
from laban.cluster.workflow.parse import parse_yaml
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.states import Overrides

if TYPE_CHECKING:
    from laban.actors.model_folder import ModelFacts
    from laban.cluster.cli.shell import ShellTool
    from laban.cluster.client import Client
    from laban.cluster.records import ClusterStatus
    from laban.cluster.render import Screen
    from laban.cluster.workflow.schema import Workflow

RUN, TRACES, CHECKPOINT, ADAPTER = "run.json", "traces.jsonl", "checkpoint.pt", "adapter"
RUNS_AT_ONCE = 16
OPTIONS = ("rank", "alpha", "dropout", "learning_rate", "epochs", "batch", "hard", "checkpoint_every", "dtype")


class Tuning:
    """What is to be tuned, checked before any cluster is asked, and the folder that it is done in.

    Raises WorkflowErrors, InvalidInput and FailedPrecondition.
    """

    def __init__(self, request: Mapping[str, Any], arguments: Namespace) -> None:
        self.request = dict(request)
        self.workflow: Workflow = parse_yaml(request["workflow"], request["source_name"], request["files"])
        self.level = request["fidelity"] or "direct"
        problem = "nothing would have to be learned" if self.level == BASELINE else problem_with(self.level)
        if problem:
            raise InvalidInput(f"{problem}, expected {expected()}", field="--fidelity", value=self.level)
        if named := named_adapters(self.workflow):
            why = "names an adapter: take it out, for what is learned is what the plain model says"
            raise InvalidInput(why, field="FILE", value=named[0])
        data = read_file(arguments.data, "--data")
        self.inputs = read_data(data.decode("utf-8", "replace"), self.workflow, request["inputs"], arguments.data)
        if len(self.inputs) < 2:
            raise InvalidInput("holds one line, expected one more at least: some are held out", field=arguments.data)
        if not 0 < arguments.held_out < 1:
            raise InvalidInput("expected a share between 0 and 1", field="--held-out", value=arguments.held_out)
        self.held_out = arguments.held_out
        changes = {tuple(key.rpartition(".")[::2]): value for key, value in request["overrides"].items()}
        self.overrides = Overrides(None, request["seed"], changes)
        for level in (BASELINE, self.level):
            run = Run(self.workflow, self.inputs[0][1], Overrides(level, request["seed"], changes))
        # "": the server's default one
        self._called = {node.model for node in run.graph.nodes.values() if node.kind == "generate"}
        self._called |= {name for _, name in named_models(self.workflow)}
        given = {name: getattr(arguments, name) for name in OPTIONS if getattr(arguments, name) is not None}
        if arguments.targets is not None:
            given["targets"] = tuple(each.strip() for each in arguments.targets.split(",") if each.strip())
        self._given = frozenset(given)
        self._from: str | None = arguments.start
        self.start: Start | None = None
        self.plan = TunePlan(**given, seed=request["seed"] or 0)
        self.plan.check()
        self.processes = arguments.processes
        if self.processes < 1:
            raise InvalidInput("expected at least one", field="--processes", value=self.processes)
        self.folder = Path(arguments.out)
        self.data_hash = blake2b(data, digest_size=8).hexdigest()
        self.facts: ModelFacts | None = None

    def open(self, facts: ModelFacts, name: str | None) -> None:
        """The folder, new or that of the same call before; `name` is what the model is called where there are several.

        Raises FailedPrecondition for the folder of another call, InvalidInput for a workflow that calls other models,
        and what `read_start` and `Start.check` raise for an adapter to start from.
        """
        self.facts = facts
        others = [model for _, model in named_models(self.workflow) if model not in (name, facts.name)]
        if others:
            raise InvalidInput(f"calls another model than {name or facts.name}", field="FILE", value=others[0])
        if self._from is not None:
            self.start = read_start(self._from, facts.folder)
            settled = {name: value for name, value in self.start.options().items() if name not in self._given}
            self.plan = replace(self.plan, **settled)
            self.plan.check()
            self.start.check(self.plan)
        digest = blake2b(self.request["workflow"], digest_size=8)
        for name, content in sorted((self.request["files"] or {}).items()):
            digest.update(f"{name}|".encode() + (content if isinstance(content, bytes) else str(content).encode()))
        mine: dict[str, Any] = {
            "workflow": digest.hexdigest(), "data": self.data_hash, "model": facts.fingerprint,
            "inputs": self.request["inputs"], "overrides": self.request["overrides"], "seed": self.request["seed"],
        }  # fmt: skip
        training = {"level": self.level, "held_out": self.held_out, **self.plan.as_dict()}
        training["start"] = self.start and self.start.fingerprint  # an older folder's lacks it: none
        del training["seed"]  # runs were recorded with it, too
        mine = json.loads(json.dumps(mine | training, default=str))
        path = self.folder / RUN
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_text(json.dumps(mine, indent=1) + "\n")
                return
            known = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InvalidInput(f"cannot be used ({error})", field="--out", value=str(self.folder)) from None
        for name in mine:
            if known.get(name) == mine[name]:
                continue
            begun = self.folder / CHECKPOINT
            if name in training and not begun.exists():  # what was recorded serves any training
                path.write_text(json.dumps(mine, indent=1) + "\n")
                return
            instead = f"remove {begun} to train anew on what was recorded" if name in training else "remove this one"
            raise FailedPrecondition(
                f"holds a run with another {name} ({known.get(name)}, now {mine[name]}): name another folder, or "
                + instead, field="--out", value=str(self.folder),
            )  # fmt: skip

    def check_served(self, status: ClusterStatus, address: str) -> None:
        """Whether the models that the runs to be recorded call at `address` are the one that is to be tuned.

        Raises FailedPrecondition for another one, or one that is not served there.
        """
        facts = self.facts
        assert facts is not None
        served = {model.name: model for model in status.models}
        for name in sorted({name or status.model for name in self._called}):
            if name not in served:
                raise FailedPrecondition(
                    f"serves no model {name}, expected {facts.name} under that name", field="--address", value=address
                )
            there = served[name].fingerprint
            if there and there != facts.fingerprint:
                raise FailedPrecondition(
                    f"serves another model as {name} (fingerprint {there[:8]}) than {facts.folder} "
                    f"({facts.fingerprint[:8]}), expected the one that is to be tuned: give its folder as --model",
                    field="--address", value=address,
                )  # fmt: skip

    # Traces

    def known(self) -> dict[int, Trace]:
        """Those recorded so far, by line."""
        found: dict[int, Trace] = {}
        path = self.folder / TRACES
        if path.exists():
            for text in path.read_text().splitlines():
                try:
                    line, inputs, recorded = json.loads(text)
                except ValueError:  # the last one, of a call that was killed
                    continue
                steps = (RecordedStep(**(step | {"token_ids": tuple(step["token_ids"])})) for step in recorded)
                found[line] = Trace(line, inputs, tuple(steps))
        return found

    def record(self, client: Client, tools: dict[str, ShellTool], screen: Screen, server: str) -> None:
        """Runs under `exact` what has not been, on the cluster at `server`. Runs that fail are left out."""
        known = self.known()
        num_done = len(known)
        with (self.folder / TRACES).open("a") as file, _pool() as pool:
            file.write("\n" if file.tell() else "")  # whatever was cut off ends here
            options = {key: value for key, value in self.request.items() if key != "inputs"} | {"fidelity": BASELINE}
            waiting = [(line, inputs) for line, inputs in self.inputs if line not in known]
            runs = {
                pool.submit(record_run, client, inputs, options, tools, Waiting(server, screen.note)): (line, inputs)
                for line, inputs in waiting
            }
            for run in as_completed(runs):
                (line, inputs), (recorded, error) = runs[run], run.result()
                num_done += 1
                doing = f"recorded {num_done} of {len(self.inputs)} runs under {BASELINE}"
                screen.phase(doing, num_done / len(self.inputs))
                if error:
                    screen.note(f"line {line} is left out: its run failed: {error}")
                    continue
                file.write(json.dumps([line, inputs, [asdict(step) for step in recorded]]) + "\n")
                file.flush()

    def is_recorded(self) -> bool:
        known = self.known()
        return self._is_begun() or all(line in known for line, _ in self.inputs)

    def _is_begun(self) -> bool:
        """Whether something was learned from the lessons: they, and what is held out, stay what they are."""
        return all((self.folder / name).exists() for name in (CHECKPOINT, "lessons.jsonl", "held_out.jsonl"))

    # Lessons

    def write_lessons(self, parse_special_tokens: bool = True) -> tuple[int, int]:
        """How many there are to learn from, and how many are held out."""
        from laban.actors.framing import derive_framing
        from laban.actors.tokenizer import Tokenizer
        from laban.cluster.messages import Language

        if self._is_begun():
            counts = [len((self.folder / f"{name}.jsonl").read_text().splitlines()) for name in ("lessons", "held_out")]
            return counts[0], counts[1]
        facts = self.facts
        assert facts is not None
        known = self.known()
        if len(known) < 2:
            raise FailedPrecondition(f"{len(known)} runs under {BASELINE} succeeded, expected two at least")
        tokenizer = Tokenizer.from_folder(facts.folder, parse_special_tokens=parse_special_tokens)
        language = Language(derive_framing(facts.folder, tokenizer), tokenizer, "tune", facts.max_context)

        async def made(lines: Iterable[int]) -> list[Lesson]:
            return [await lesson_of(known[line], self.workflow, self.overrides, self.level, language) for line in lines]

        parts = split(list(known), self.held_out, self.plan.seed)
        for name, lines in zip(("lessons", "held_out"), parts, strict=True):
            write_lessons(self.folder / f"{name}.jsonl", asyncio.run(made(lines)))
        return len(parts[0]), len(parts[1])

    # Training

    def train(self, screen: Screen, ray_address: str | None) -> dict[str, Any]:
        """The scores on the inputs held out."""
        from laban.actors.tuning.distributed import Job, run

        assert self.facts is not None
        job = Job(
            str(self.folder.resolve()), str(self.facts.folder), self.plan, self.processes, ray_address, self.start
        )
        return run(job, lambda said: screen.phase(*_phase(said)))

    def write_card(self, scores: Mapping[str, Any], num_lessons: int) -> None:
        assert self.facts is not None
        text = card(
            self.workflow.name, self.facts, self.level, self.data_hash, num_lessons, self.plan.as_dict(), scores,
            start=str(self.start) if self.start else None,
        )  # fmt: skip
        (self.folder / ADAPTER / "README.md").write_text(text)


@contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    """What has not begun when something goes wrong is not begun."""
    pool = ThreadPoolExecutor(RUNS_AT_ONCE)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def tune(tuning: Tuning, arguments: Namespace, screen: Screen, num_lessons: int, ray_address: str | None = None) -> int:
    """Trains, shows what came of it, and returns the exit code."""
    with screen:
        screen.phase("starting training", None)
        scores = tuning.train(screen, ray_address)
    tuning.write_card(scores, num_lessons)
    adapter = tuning.folder / ADAPTER
    if arguments.json:
        print(json.dumps({"adapter": str(adapter), "lessons": num_lessons, **scores}))
        return 0
    print("\n".join(_table(scores["steps"])))
    interval = scores["ratio_interval"]
    between = f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
    print(
        f"\non {scores['num_inputs']} held-out inputs the mean KL of {tuning.level} from {BASELINE} is "
        f"{scores['ratio']:.2f}{between} of what it was"
    )
    print(f"adapter: {adapter}", file=sys.stderr)
    return 0


def _phase(said: Said) -> tuple[str, float | None]:
    if not said.num_steps:
        return said.doing, None
    if said.doing != "training":
        return said.doing, None
    return f"training: step {said.step} of {said.num_steps}, loss {said.loss:.4f}", said.step / said.num_steps


def _table(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    rows: list[tuple[str, ...]] = [
        ("step", "tokens", "KL before", "after", "p95 before", "after", "top-1 before", "after")
    ]
    for step in steps:
        rows.append(
            (
                step["step"] or "all",
                str(step["num_tokens"]),
                *(f"{step[name]:.4f}" for name in ("kl_before", "kl_after", "p95_before", "p95_after")),
                *(f"{step[name]:.1%}" for name in ("agreement_before", "agreement_after")),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(w) if not i else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
