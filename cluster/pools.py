"""The workers of each model, and the calls that wait for one of them. Models share nothing but the processes around."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

from laban.actors.calls import WorkerInfo
from laban.actors.errors import FailedPrecondition, InvalidInput, Unavailable
from laban.cluster.routing.router import Router
from laban.cluster.waiting_orders import WaitingOrders


@dataclass(slots=True)
class Pool:
    """One model's. `info` is one of its workers': namespace, name and context are the same for all."""

    info: WorkerInfo
    router: Router
    waiting: WaitingOrders = field(default_factory=WaitingOrders)

    @property
    def name(self) -> str:
        return self.info.model_name


class Pools:
    """By the models' names; the default one comes first."""

    def __init__(self, infos: Iterable[WorkerInfo], make_router: Callable[[], Router], default: str = "") -> None:
        """`default` "" is the first worker's model. Raises Unavailable for no workers, or none of the default, and
        FailedPrecondition for workers of one name that serve different models, or of two that serve the same, and for
        workers of one model that do not have as many shards: one could not fetch from another."""
        found: dict[str, Pool] = {}
        for info in infos:
            pool = found.setdefault(info.model_name, Pool(info, make_router()))
            if pool.info.namespace != info.namespace:
                other = f"worker {info.worker_id} serves another model than worker {pool.info.worker_id}"
                raise FailedPrecondition(other, field="namespace", value=info.namespace)
            if pool.info.num_shards != info.num_shards:
                other = f"of worker {info.worker_id}, worker {pool.info.worker_id} has {pool.info.num_shards}"
                raise FailedPrecondition(f"{other}: expected as many", field="num_shards", value=info.num_shards)
        if not found:
            raise Unavailable("no worker is up")
        if default and default not in found:
            raise Unavailable("no worker serves the default model", field="default_model", value=default)
        first = found[default] if default else next(iter(found.values()))
        self.all: Mapping[str, Pool] = {first.name: first, **found}
        self.default = first
        self._by_namespace: dict[str, Pool] = {}
        for pool in self:
            same = self._by_namespace.setdefault(pool.info.namespace, pool)
            if same is not pool:
                raise FailedPrecondition(
                    f"{pool.name} is the same model in the same dtype as {same.name}, expected one entry for both",
                    field=f"models.{pool.name}",
                )

    def __iter__(self) -> Iterator[Pool]:
        return iter(self.all.values())

    @property
    def are_several(self) -> bool:
        return len(self.all) > 1

    @property
    def identity(self) -> str:
        """Of all that is served, as workflows in the journal name it: the namespace, or a digest of several."""
        if not self.are_several:
            return self.default.info.namespace
        every = sorted(f"{pool.name}={pool.info.namespace}" for pool in self)
        served = "|".join([self.default.name, *every])
        return f"models-{blake2b(served.encode(), digest_size=16).hexdigest()}"

    def named(self, name: str) -> Pool:
        """ "" is the default. Raises InvalidInput, with the names there are."""
        pool = self.all.get(name) if name else self.default
        if pool is None:
            known = f"expected one of {', '.join(self.all)}"
            raise InvalidInput(f"no such model is served, {known}", field="model", value=name)
        return pool

    def of(self, namespace: str) -> Pool:
        """Whose encodings are of that namespace: the model's, with a tenant behind it or without."""
        if self.are_several:
            for known, pool in self._by_namespace.items():
                if namespace == known or namespace.startswith(f"{known}/"):
                    return pool
        return self.default
