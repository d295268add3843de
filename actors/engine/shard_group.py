"""The shards of one worker as a group of processes: how they meet, and what they tell one another."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from laban.actors.shards import ShardPlace

JOIN_TIMEOUT = timedelta(minutes=10)
# A shard that waits this long inside an iteration gives up. Whoever started the shards sees a dead one much sooner.
COLLECTIVE_TIMEOUT = timedelta(minutes=5)
# Between iterations a shard waits for the next call, however long that takes.
IDLE_TIMEOUT = timedelta(days=3650)
# Its name since torch 2.13, and the one before.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

LENGTH_BYTES = 8
MESSAGE_BYTES = 4096  # of an object sent at once; the rest of a larger one follows


def open_rendezvous(host: str) -> tuple[object, str]:
    """Where the shards of a worker meet: a server on a free port, and its address. It stands while it is referenced."""
    server = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=JOIN_TIMEOUT)
    return server, f"{host}:{server.port}"


class ShardGroup:
    """This process among the shards of its worker, each of which makes the same calls in the same order. One a process.

    Tensors on `device` go through NCCL on a GPU and gloo on a CPU; objects always go through gloo. On NCCL,
    `all_reduce`, `all_gather_last_dim` and `broadcast_` run on the current stream, without a host sync: a CUDA graph
    may capture them. All methods raise RuntimeError when a shard is gone or late.
    """

    def __init__(self, rank: int, size: int, device: torch.device, store: Store) -> None:
        """Waits for the others."""
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(device)
            device = torch.device("cuda", torch.cuda.current_device())
        self.rank, self.size, self.device = rank, size, device
        _keep_to_loopback(rank, size, store)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=COLLECTIVE_TIMEOUT,
            device_id=device if on_gpu else None,  # NCCL connects now, not within a captured graph
        )
        self._control = dist.new_group(backend="gloo", timeout=IDLE_TIMEOUT)
        self._message = torch.zeros(MESSAGE_BYTES, dtype=torch.uint8)

    @classmethod
    def join(cls, place: ShardPlace, device: torch.device) -> ShardGroup:
        """Meet the others at `place.address`."""
        host, _, port = place.address.rpartition(":")
        store = TCPStore(host, int(port), is_master=False, timeout=JOIN_TIMEOUT)
        return cls(place.rank, place.size, device, store)

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of every shard's `x`, in place. Each shard sends 2 (size - 1) / size of its bytes."""
        dist.all_reduce(x)
        return x

    def all_gather_last_dim(self, x: Tensor) -> Tensor:
        """Every shard's `x` [num_rows, n], in order of rank: [num_rows, size * n]."""
        num_rows, n = x.shape
        gathered = x.new_empty((self.size * num_rows, n))
        _all_gather(gathered, x.contiguous())
        return gathered.view(self.size, num_rows, n).transpose(0, 1).reshape(num_rows, self.size * n)

    def broadcast_(self, x: Tensor) -> Tensor:
        """`x` becomes rank 0's, in place."""
        dist.broadcast(x, 0)
        return x

    def broadcast_object(self, value: Any = None) -> Any:
        """Rank 0's `value`, pickled; the others' is ignored. They wait for it without a limit of time."""
        message = self._message
        if self.rank == 0:
            data = pickle.dumps(value)
            packed = torch.frombuffer(bytearray(len(data).to_bytes(LENGTH_BYTES, "little") + data), dtype=torch.uint8)
            head, rest = packed[:MESSAGE_BYTES], packed[MESSAGE_BYTES:]
            message[: head.shape[0]] = head
            dist.broadcast(message, 0, group=self._control)
        else:
            dist.broadcast(message, 0, group=self._control)
            length = int.from_bytes(bytes(message[:LENGTH_BYTES].tolist()), "little")
            rest = torch.empty(max(0, LENGTH_BYTES + length - MESSAGE_BYTES), dtype=torch.uint8)
        if rest.numel():
            dist.broadcast(rest, 0, group=self._control)
        if self.rank == 0:
            return value
        return pickle.loads(torch.cat((message, rest))[LENGTH_BYTES : LENGTH_BYTES + length].numpy().tobytes())

    def smallest(self, value: int) -> int:
        """The least of every shard's `value`. Waits for all of them without a limit of time."""
        least = torch.tensor(value)
        dist.all_reduce(least, dist.ReduceOp.MIN, group=self._control)
        return int(least)

    def gather(self, rows: Sequence[Sequence[float]]) -> list[list[list[float]]]:
        """Every shard's `rows`, of which all have as many, all as long, in order of rank. Waits for all of them without
        a limit of time."""
        own = torch.tensor(rows, dtype=torch.float64)
        gathered = own.new_empty((self.size * own.shape[0], own.shape[1]))
        _all_gather(gathered, own, group=self._control)
        found: list[list[list[float]]] = gathered.view(self.size, *own.shape).tolist()
        return found

    def gather_objects(self, value: Any) -> list[Any]:
        """Every shard's `value`, pickled, in order of rank. Waits for all of them without a limit of time."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._control)
        return values

    def close(self) -> None:
        """Leave, when all shards do, with nothing under way and their runners closed.

        NCCL's own way to leave waits for graphs that captured its collectives, and for some that are gone already; its
        abort can wait for ever if another shard left first.
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            dist.monitored_barrier(self._control, timeout=COLLECTIVE_TIMEOUT)
            dist.distributed_c10d._abort_process_group()
        else:
            dist.destroy_process_group()


def _keep_to_loopback(rank: int, size: int, store: Store) -> None:
    """Shards on one host talk over its loopback: gloo would look up the host's own name, which need not resolve."""
    store.set(f"host/{rank}", _host())
    hosts = {store.get(f"host/{other}") for other in range(size)}
    loopback = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    if len(hosts) == 1 and loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback[0])


def _host() -> str:
    """Differs between machines, and between containers with networks of their own."""
    boot_id, network = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/net")
    parts = [socket.gethostname()]
    if boot_id.exists() and network.exists():
        parts += [boot_id.read_text().strip(), str(network.stat().st_ino)]
    return "/".join(parts)
