"""Training on Ray Train: as many processes as asked for, each with a GPU if there are any, and one is started anew
from the last checkpoint if it is lost. All of them reach the same folder."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from laban.actors.errors import FailedPrecondition, InvalidInput, LabanError, Unavailable, of_status
from laban.actors.tuning.plan import INSTALL, Said, TunePlan
from laban.actors.tuning.start import Start

PROGRESS, SCORES, FAILURE = "progress.jsonl", "scores.json", "failure.json"
MAX_FAILURES = 2
CPUS_EACH = 0.5  # of a process without a GPU
POLL_S = 0.5
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_worker_niceness": "0",
         "RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Job:
    """`folder` holds lessons.jsonl and held_out.jsonl, and gets what training makes. `ray_address` is that of a Ray
    that runs; None starts one on this machine. `start` is the adapter to start from, if there is no checkpoint."""

    folder: str
    model_folder: str
    plan: TunePlan
    num_processes: int = 1
    ray_address: str | None = None
    start: Start | None = None


def check_installed() -> None:
    """Raises FailedPrecondition, with the command that helps."""
    for what, module in (("PEFT", "peft"), ("Ray Train", "ray.train.torch")):
        try:
            __import__(module)
        except ImportError:
            raise FailedPrecondition(f"{what} is not installed, and training needs it: {INSTALL}") from None


def run(job: Job, tell: Callable[[Said], None]) -> dict[str, Any]:
    """Trains, and returns the scores, as `plan.Scores` in plain values. Ray is started, and ended, if it does not run.

    Raises InvalidInput for more processes than there are GPUs, Unavailable for a Ray that does not answer, and what
    training failed with.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    folder = Path(job.folder)
    for name in (SCORES, FAILURE):
        (folder / name).unlink(missing_ok=True)
    with _ray(job.ray_address):
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        num_gpus = int(resources.get("GPU", 0))
        if num_gpus and job.num_processes > num_gpus:
            raise InvalidInput(f"Ray sees {num_gpus} GPUs", field="--processes", value=job.num_processes)
        most = int(resources.get("CPU", 1.0) / CPUS_EACH)  # of more, some would wait for ever
        if not num_gpus and job.num_processes > most:
            raise InvalidInput(f"expected at most {most} on these CPUs", field="--processes", value=job.num_processes)
        num_cpus = max(1.0, resources.get("CPU", 1.0) // job.num_processes - bool(num_gpus))
        trainer = TorchTrainer(
            _work,
            train_loop_config={"job": asdict(job), "num_threads": int(num_cpus)},
            scaling_config=ScalingConfig(
                num_workers=job.num_processes,
                use_gpu=num_gpus > 0,
                resources_per_worker=None if num_gpus else {"CPU": CPUS_EACH},
            ),
            run_config=RunConfig(
                name=f"tune-{int(time.time())}",
                storage_path=str(folder.resolve() / "ray"),
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
            ),
        )
        with _followed(folder / PROGRESS, tell):
            try:
                trainer.fit()
            except Exception as error:  # Ray raises many kinds
                last = str(error).strip().splitlines()
                raise LabanError(f"training failed: {last[-1] if last else repr(error)}") from error
    if (folder / FAILURE).exists():
        status, message = json.loads((folder / FAILURE).read_text())
        raise of_status(status)(message)
    scores: dict[str, Any] = json.loads((folder / SCORES).read_text())
    return scores


def _work(config: dict[str, Any]) -> None:
    """In each process."""
    import ray.train
    import torch
    from ray.train.torch import get_device

    from laban.actors.tuning.lessons import read_lessons
    from laban.actors.tuning.training import Learner, load_model, train

    given = config["job"]
    plan = TunePlan(**(given["plan"] | {"targets": tuple(given["plan"]["targets"])}))
    start = given["start"] and Start(**(given["start"] | {"targets": tuple(given["start"]["targets"])}))
    folder, context = Path(given["folder"]), ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    device = get_device()
    if device.type == "cpu":
        torch.set_num_threads(config["num_threads"])

    def tell(said: Said) -> None:
        if rank == 0:
            with (folder / PROGRESS).open("a") as file:
                file.write(json.dumps(asdict(said)) + "\n")

    try:
        tell(Said("loading the model", 0, 0))
        model = load_model(given["model_folder"], plan.dtype, device)
        lessons, held_out = (read_lessons(folder / f"{name}.jsonl") for name in ("lessons", "held_out"))
        learner = Learner(model, plan, len(lessons), start=start, rank=rank, size=size)
        train(learner, lessons, held_out, folder, tell)
    except LabanError as error:  # the same in all of them: to try again would not help
        if rank == 0:
            (folder / FAILURE).write_text(json.dumps([error.status, error.message]))


@contextlib.contextmanager
def _ray(address: str | None) -> Iterator[None]:
    import ray

    if ray.is_initialized():
        yield
        return
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        if address is None:
            ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
        else:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:  # Ray raises plain Exceptions, too
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise Unavailable(f"no Ray to train on ({reason})", field="ray.address", value=address) from None
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _followed(path: Path, tell: Callable[[Said], None]) -> Iterator[None]:
    """Tells what is added to the file meanwhile."""
    ended = threading.Event()
    begin = path.stat().st_size if path.exists() else 0

    def follow() -> None:
        at = begin
        while True:
            last = ended.wait(POLL_S)
            if path.exists():
                with path.open() as file:
                    file.seek(at)
                    while (line := file.readline()).endswith("\n"):
                        at = file.tell()
                        tell(Said(**json.loads(line)))
            if last:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
