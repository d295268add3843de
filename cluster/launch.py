"""Start a cluster: the model, Ray, the workers, the directory and the control plane."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laban.actors.adapter_folder import check_adapter_folder
from laban.actors.errors import FailedPrecondition, InvalidInput, Unavailable
from laban.actors.framing import derive_framing
from laban.actors.machine_memory import memory_bytes
from laban.actors.models import ModelFacts, check_model_folder, prepare_default_model
from laban.actors.shards import heads_per_shard
from laban.cluster.config import LabanConfig, MetricsSection
from laban.cluster.config_models import ModelPlan, Settled, check_set_sizes, lacking_node, settle
from laban.cluster.config_sections import EVERYWHERE
from laban.cluster.gateway import check_address
from laban.cluster.host import FACTORY, HostPlan, ModelPlace
from laban.cluster.http.section import HttpSection
from laban.cluster.journal_unused import file_to_make, remove_unused
from laban.cluster.metrics_server import settled
from laban.cluster.process_logs import ProcessLogs, take_over_rays_output
from laban.cluster.start_checks import checked, worker_folder

if TYPE_CHECKING:
    from laban.actors.remote import RemoteHost

# What is being done, and the share of it done (0 to 1; None where that is not known).
Progress = Callable[[str, float | None], None]

NODES_EVERY_S = 2.0  # how often it is looked whether a node that is waited for has joined
STOP_S = 15.0  # for what is left to be written, and the workers to end
OBJECT_STORE_BYTES = 256 << 20  # calls and reports are small
TRANSFER_BYTES = 64 << 20  # keys and values on their way to a shard: two transfers, a few chunks of each
MOST_STORE_BYTES = 8 << 30
QUIET_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    # Why a worker did not load its model is said by whoever waits for it; Ray would show the traceback as well.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    # Ray would run workers at a lower priority than everything else on the machine.
    "RAY_worker_niceness": "0",
}
OWN_RAY = {
    # Nobody brings back the raylet or the GCS of a Ray on one machine: notice soon, so that all of it is started again.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    # The GCS remembers this many calls for Ray's dashboard; of 100,000, its own default, it grows for hours.
    "RAY_task_events_max_num_task_in_gcs": "5000",
}


class ClusterHandle:
    """A running cluster. `stop`, or the end of a `with`, ends it and every process that it started."""

    def __init__(
        self,
        address: str,
        model: ModelFacts,
        host: RemoteHost,
        *,
        owns_ray: bool,
        metrics_address: str = "",
        http_address: str = "",
        drain_s: float = 0.0,
        serves: str = "",
    ) -> None:
        """`model` is the default one, `serves` names all. `drain_s` is what the control plane may take to end its
        calls."""
        self.address, self.metrics_address, self.http_address = address, metrics_address, http_address
        self.model, self.serves = model, serves or model.name
        self._host: RemoteHost | None = host
        self._owns_ray = owns_ray
        self._drain_s = drain_s

    def answers(self, timeout_s: float = 10.0) -> bool:
        """Whether the control plane answers in time. Raises Unavailable if its process is gone."""
        return self._host is None or self._host.answers(timeout_s)

    def stop(self) -> None:
        """Idempotent."""
        host, self._host = self._host, None
        if host is not None:
            host.stop(timeout_s=STOP_S + self._drain_s)
            _end_ray(self._owns_ray)

    def __enter__(self) -> ClusterHandle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


def start_cluster(
    config: LabanConfig, progress: Progress = lambda doing, share: None, logs: ProcessLogs | None = None
) -> ClusterHandle:
    """Start everything and wait until it serves. Cleans up after itself when it fails or is interrupted. `logs` is
    handed what the processes log; without it that is in their files alone.

    Raises NotFound, InvalidInput or UnsupportedModel for the model, InvalidInput for a policy that cannot be loaded, a
    folder that cannot be written and caches beyond this machine's memory, FailedPrecondition for a port in use or a Ray
    that is running already, Unavailable if a process does not come up.
    """
    config = checked(config)
    if config.ray.address is None:
        check_address(config.server.host, config.server.port)
        http = settled(config.http, (config.server.port, config.metrics.port))
        metrics = settled(config.metrics, (config.server.port, http.port))
        config = config.model_copy(update={"metrics": metrics, "http": http})
    models = [_checked_model(plan, progress) for plan in config.model_plans()]
    _check_memory(config, models, on_gpu=config.engine.device != "cpu")  # or perhaps so, until Ray tells
    owns_ray = _start_ray(config, progress, logs)
    journal = file_to_make(config.journal.url)
    try:
        return _start_services(config, models, progress, owns_ray)
    except BaseException:
        _end_ray(owns_ray)
        if journal is not None:
            remove_unused(journal)
        raise


def _checked_model(plan: ModelPlan, progress: Progress) -> tuple[ModelPlan, ModelFacts]:
    """Refuses a model before anything is started."""
    folder = model_folder(plan.path, progress)
    progress("checking the model" if plan.name is None else f"checking model {plan.name}", None)
    facts = check_model_folder(folder)
    heads_per_shard(facts.num_heads, facts.num_kv_heads, plan.shards)
    derive_framing(folder)
    for name, path in plan.adapters:
        check_adapter_folder(path, folder, field=f"adapters.{name}")
    return plan, facts if plan.name is None else replace(facts, name=plan.name)


def _check_memory(config: LabanConfig, models: Sequence[tuple[ModelPlan, ModelFacts]], *, on_gpu: bool) -> None:
    """Of one model on this machine; on others its workers look, and of several `settle` does."""
    if config.models or config.ray.address is not None:
        return
    plan, facts = models[0]
    itemsize = 2 if plan.engine.dtype in ("bfloat16", "float16") else 4
    token_bytes = 2 * facts.num_layers * facts.num_kv_heads * facts.head_dim * itemsize
    check_set_sizes(plan, token_bytes, memory_bytes(), on_gpu=on_gpu)


def model_folder(path: str | None, progress: Progress) -> Path:
    """Where a model lies; the default model is converted first if need be."""
    return prepare_default_model(progress) if path is None else Path(path).expanduser()


def _start_ray(config: LabanConfig, progress: Progress, logs: ProcessLogs | None) -> bool:
    """Returns whether this process started Ray (and so has to end it)."""
    import ray

    if ray.is_initialized():
        return False
    for name, value in (QUIET_RAY if config.ray.address is not None else QUIET_RAY | OWN_RAY).items():
        os.environ.setdefault(name, value)
    num_processes = sum(plan.workers * plan.shards for plan in config.model_plans())
    is_ours = take_over_rays_output(logs)
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": is_ours and logs is not None}
    address = config.ray.address
    on_terminate = signal.getsignal(signal.SIGTERM)
    progress("starting Ray" if address is None else f"connecting to Ray at {address}", None)
    try:
        if address is not None:
            ray.init(address=address, **quiet)
        else:
            # "local": a fresh one, whatever RAY_ADDRESS or an earlier cluster on this machine say.
            ray.init(
                address="local",
                include_dashboard=False,
                num_cpus=config.ray.num_cpus,
                object_store_memory=min(MOST_STORE_BYTES, OBJECT_STORE_BYTES + num_processes * TRANSFER_BYTES),
                **quiet,
            )
    except Exception as error:  # Ray raises plain Exceptions, too, such as for a raylet that died while it started
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        if address is not None:
            raise Unavailable(f"no Ray answers there ({reason})", field="ray.address", value=address) from None
        raise Unavailable(f"Ray did not start: {reason}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)  # Ray takes it for itself
    return True


def _start_services(
    config: LabanConfig, models: Sequence[tuple[ModelPlan, ModelFacts]], progress: Progress, owns_ray: bool
) -> ClusterHandle:
    import ray

    from laban.actors.remote import LoadingWatch, RemoteHost, WorkerPlan, spawn_directory, spawn_worker

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    wanted = [plan for plan, _ in models]
    lacking = lacking_node(wanted, resources)
    if lacking is not None and owns_ray:
        why = "no node has it: the Ray that is started for this has this machine alone; expected ray.address of one"
        raise InvalidInput(f"{why} with such nodes", field=f"models.{lacking.name}.resource", value=lacking.resource)
    settled_models = _settled(config, wanted, resources.get("GPU", 0.0))
    _check_memory(config, models, on_gpu=settled_models[0].num_gpus > 0)
    num_processes = sum(plan.workers * plan.shards for plan, _ in models)
    # Ray counts CPUs in ten thousandths: rounded up, the shares would be more than there is.
    num_cpus = min(1.0, math.floor(10_000 * resources.get("CPU", 1.0) / num_processes) / 10_000)
    directory = spawn_directory(config.routing.directory_shards, config.log.settings)
    plans: list[WorkerPlan] = []
    for (plan, facts), each in zip(models, settled_models, strict=True):
        for _ in range(plan.workers):
            name = f"worker-{len(plans)}"
            plans.append(
                WorkerPlan(
                    worker_id=name,
                    model_folder=str(facts.folder),
                    config=replace(each.engine, disk_folder=worker_folder(config.cache.disk_folder, name)),
                    num_shards=plan.shards,
                    num_cpus=num_cpus,
                    num_gpus=each.num_gpus,
                    directory=directory,
                    log=config.log.settings,
                    model=plan.name or "",
                    resource=plan.resource,
                )
            )
    # Workers load while the control plane's process starts.
    # The largest parts of GPUs first, as it was made sure that they fit.
    largest_first = sorted(plans, key=lambda plan: -(plan.num_gpus or 0.0))
    handles = {plan.worker_id: spawn_worker(plan) for plan in largest_first}
    facts = models[0][1]
    places = tuple(ModelPlace(found.name, str(found.folder), plan.adapters) for plan, found in models)
    host = RemoteHost(FACTORY, HostPlan(config, places, plans, handles, directory, _otel_variables()))
    names = " and ".join(found.name for _, found in models)
    loading = f"loading {names} into {len(plans)} worker{'s' if len(plans) > 1 else ''}"
    progress(loading, None)
    watch = LoadingWatch(handles[plans[0].worker_id])  # they all do much the same; the first one speaks for them
    began = looked = time.monotonic()
    try:
        while (address := host.wait(0.2)) is None:
            now = time.monotonic()
            if lacking is not None and now - looked > NODES_EVERY_S:  # some may join
                lacking, looked = lacking_node(wanted, ray.cluster_resources()), now  # type: ignore[no-untyped-call]
            waits = "" if lacking is None else f": no node has {lacking.resource}, which {lacking.name} needs"
            if now - began > config.limits.start_timeout_s:
                why = f"the workers were not up after {config.limits.start_timeout_s:g} s{waits}"
                raise Unavailable(why, field="limits.start_timeout_s")
            if waits:
                progress(f"{loading}{waits}", None)
            elif (said := watch.poll()) is not None:
                doing, share = said
                progress(f"{loading}: {doing}", share)
            else:
                progress(loading, None)
    except BaseException:
        host.stop(timeout_s=1.0)
        for handle in handles.values():  # also those that load: whose Ray it is may keep it
            handle.end()
        directory.end()
        raise
    progress(f"serving {names} on {address}", 1.0)
    return ClusterHandle(
        address,
        facts,
        host,
        owns_ray=owns_ray,
        metrics_address=_local_address(config.metrics),
        http_address=_local_address(config.http),
        drain_s=config.server.drain_s,
        serves=names,
    )


def _otel_variables() -> dict[str, str]:
    """What OpenTelemetry's SDK goes by."""
    return {name: value for name, value in os.environ.items() if name.startswith("OTEL_")}


def _local_address(section: MetricsSection | HttpSection) -> str:
    """Of a cluster on this machine; "" if nothing listens."""
    host, port = section.host, section.port
    return f"{'127.0.0.1' if host in EVERYWHERE else host}:{port}" if port else ""


def _settled(config: LabanConfig, plans: Sequence[ModelPlan], num_gpus: float) -> list[Settled]:
    """How the workers of each model are made, by what there is for them. Raises InvalidInput for too little."""
    if not config.models:
        part = gpus_each(config, num_gpus)
        engine = plans[0].engine
        if 0 < part < 1:  # workers of one card share its memory
            engine = replace(engine, memory_share=engine.memory_share * part)
        return [Settled(engine, part)]
    here = memory_bytes() if config.ray.address is None else None
    return settle(plans, num_gpus if gpus_each(config, num_gpus) else 0.0, here)


def gpus_each(config: LabanConfig, available: float) -> float:
    """GPUs a shard: one. Workers of one shard have equal shares where there are fewer GPUs than workers. Of several
    models: whether they take any."""
    if config.engine.device == "cpu":
        return 0.0
    if available < 1:
        if config.engine.device.startswith("cuda"):
            raise InvalidInput(
                "Ray sees no GPU, expected at least one", field="engine.device", value=config.engine.device
            )
        return 0.0
    if config.engine.device != "auto" and config.engine.device != "cuda":
        raise FailedPrecondition(
            "Ray gives each worker its GPU, expected auto, cpu or cuda",
            field="engine.device",
            value=config.engine.device,
        )
    if config.models:
        return 1.0
    needed = config.workers * config.engine.shards
    if config.engine.shards > 1 and available < needed:
        raise InvalidInput(
            f"Ray sees {available:g} GPUs, expected {needed}: one for each shard of {config.workers} workers",
            field="engine.shards",
            value=config.engine.shards,
        )
    return min(1.0, available / config.workers)


def _end_ray(owned: bool) -> None:
    if owned:
        import ray

        with contextlib.suppress(Exception):  # a half-started Ray may not know how to end
            ray.shutdown()
