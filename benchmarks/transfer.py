"""Encodings from one worker's host memory to another's on one machine, transport by transport, side by side.

    .venv/bin/python benchmarks/transfer.py [--transports NAMES] [--tokens NUMBERS] [--quick] [--json]   about a minute

Two processes, one with a pool that the other fetches from as workers do (leases, ranges, checksums where there are
any). On a machine with a GPU the pools are pinned and keys and values are those of an 8B Llama in bfloat16, 128 KiB a
token; else of SmolLM2-135M in float32, 45 KiB. A message lies in one run on both sides, or scattered over pages of 16
tokens. `cma` and `nixl` read the other's memory; `object_store` sends through Ray, `pipe` through a pipe of the system
in its place where there is no Ray. `memcpy` copies within one process, by one thread: what memory can do. What is not
installed is left out. 8,192 tokens of an 8B model are encoded in 216 ms on an H100: below 5 GB/s fetching does not pay.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from report import Clock, Row, add_arguments, finish, new_report

from laban.actors.calls import Source
from laban.actors.engine.direct import DirectMemory
from laban.actors.engine.disk_folder import chunk_of
from laban.actors.engine.fetching import Fetching
from laban.actors.engine.host_pool import HostPool
from laban.actors.engine.runs import Runs, between, merge_adjacent
from laban.actors.errors import FailedPrecondition
from laban.actors.exporting import Exporting
from laban.actors.reach import Reach
from laban.actors.transfers import Chunk, Export, ExportRequest, Granted, PeerLost, Refused

PAGE = 16
TARGET_TOKENS, TARGET_RATE = 8192, 5.0
LAYOUTS = ("contiguous", "scattered")
TRANSPORTS = ("memcpy", "pipe", "object_store", "cma", "nixl")
EPOCH = "one"


@dataclass(frozen=True)
class Geometry:
    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    num_tokens: int  # of the pools
    pinned: bool

    def pool(self) -> HostPool:
        sizes = self.num_layers, self.num_kv_heads, self.head_dim
        pool = HostPool(-(-self.num_tokens // PAGE), PAGE, *sizes, self.dtype, pinned=self.pinned)
        pool.k.view(torch.uint8).fill_(3)  # so that all of it is there
        pool.v.view(torch.uint8).fill_(5)
        return pool


def runs_of(num_slots: int, num_tokens: int, layout: str, seed: int) -> Runs:
    """Where a message of so many tokens lies."""
    pages = list(range(-(-num_tokens // PAGE)))
    if layout == "scattered":
        pages = random.Random(seed).sample(range(num_slots // PAGE), len(pages))
    return between(merge_adjacent([(page * PAGE, PAGE) for page in pages]), 0, num_tokens)


class Holder:
    """A worker that holds one message of any name "layout/tokens/seed", and no engine. Serves as an actor, too."""

    def __init__(self, geometry: Geometry, transport: str) -> None:
        self.pool = geometry.pool()
        self.memory = DirectMemory(self.pool, transport)
        self.info = SimpleNamespace(epoch=EPOCH)
        self.exporting = Exporting(self)
        self._numbers = count(1)

    def reach(self) -> Reach:
        return self.memory.reach

    def export(self, request: ExportRequest) -> None:
        layout, num_tokens, seed = request.encoding_id.split("/")
        runs = runs_of(self.pool.num_slots, int(num_tokens), layout, int(seed))

        def read(begin: int, end: int) -> Any:
            return chunk_of(self.pool.read(between(runs, begin, end)))

        export = Export(
            next(self._numbers),
            request.encoding_id,
            int(num_tokens),
            self.pool.bytes_per_token,
            read,
            tuple(runs),
            self.memory.window,
        )
        request.answer(lambda: export)

    def end_export(self, export: Export) -> None:
        pass

    def open_export(self, *arguments: Any) -> Granted | Refused:
        return self.exporting.open(*arguments)

    def renew_export(self, lease_id: int) -> Refused | None:
        return self.exporting.renew(lease_id)

    def read_export(self, lease_id: int, begin: int, end: int) -> Chunk | Refused:
        return self.exporting.read(lease_id, begin, end)

    def close_export(self, lease_id: int) -> None:
        self.exporting.close(lease_id)


def serve(geometry: Geometry, transport: str, pipe: Any) -> None:
    """Until the other end is closed."""
    holder = Holder(geometry, "auto" if transport == "pipe" else transport)
    try:
        while True:
            method, arguments = pipe.recv()
            pipe.send(getattr(holder, method)(*arguments))
    except EOFError:
        return


class PipePeer:
    """PeerPort over a pipe: answers come in the order in which they were asked for."""

    def __init__(self, pipe: Any) -> None:
        self._pipe, self._lock = pipe, threading.Lock()
        self.reach: Reach = self._ask("reach")

    def _ask(self, method: str, *arguments: Any) -> Any:
        with self._lock:
            try:
                self._pipe.send((method, arguments))
                return self._pipe.recv()
            except (EOFError, OSError) as error:
                raise PeerLost(str(error)) from None

    def open(self, encoding_id: str, transport: str) -> Any:
        return self._ask("open_export", encoding_id, EPOCH, transport)

    def renew(self, lease_id: int) -> Any:
        return self._ask("renew_export", lease_id)

    def ask(self, lease_id: int, begin: int, end: int) -> Callable[[], Any]:
        return partial(self._ask, "read_export", lease_id, begin, end)

    def close(self, lease_id: int) -> None:
        self._ask("close_export", lease_id)


class OtherProcess:
    """A holder in a process of its own, and the peer that reaches it."""

    def __init__(self, geometry: Geometry, transport: str) -> None:
        context = multiprocessing.get_context("spawn")
        pipe, other = context.Pipe()
        self._process = context.Process(target=serve, args=(geometry, transport, other), daemon=True)
        self._process.start()
        other.close()
        self._pipe, self.peer = pipe, PipePeer(pipe)
        if transport == "pipe":
            self.peer.reach = Reach()

    def close(self) -> None:
        self._pipe.close()
        self._process.join()


class OtherActor:
    """The same as an actor of Ray."""

    def __init__(self, geometry: Geometry) -> None:
        import ray

        from laban.actors.remote import RemotePeer

        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=1,
            object_store_memory=1 << 30,
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": ":".join(filter(None, sys.path))}},
        )
        actor: Any = ray.remote(num_cpus=0, max_concurrency=4)(Holder)
        handle = actor.remote(geometry, "object_store")
        self.peer = RemotePeer(handle, handle, EPOCH, ray.get(handle.reach.remote()))

    def close(self) -> None:
        import ray

        ray.shutdown()


def measure(transport: str, geometry: Geometry, tokens: Sequence[int], reps: int, seed: int) -> list[Row]:
    """GB/s of whole transfers one after another, and seconds of the reader's CPUs for a GB. Raises FailedPrecondition
    for what this machine does not have."""
    own = geometry.pool()
    if transport == "memcpy":
        return measure_memcpy(own, tokens, reps, seed)
    direct = DirectMemory(own, transport if transport in ("cma", "nixl") else "object_store")
    holder = OtherActor(geometry) if transport == "object_store" else OtherProcess(geometry, transport)
    fetching = Fetching(lambda worker_id, epoch: holder.peer, own, direct)
    rows = []
    try:
        for layout in LAYOUTS:
            for num_tokens in tokens:
                to = runs_of(own.num_slots, num_tokens, layout, seed + 1)
                source = Source(f"{layout}/{num_tokens}/{seed}", "holder", EPOCH, 0.0)
                rates, loads = [], []
                for _ in range(1 + reps):
                    before = time.process_time()
                    arrival = fetching.fetch(source, num_tokens, partial(_write, own, to), partial(between, to))
                    arrival.wait()
                    via = "object_store" if transport == "pipe" else transport
                    if arrival.problem is not None or arrival.via != via:
                        raise RuntimeError(f"by {arrival.via}: {arrival.problem}")
                    rates.append(arrival.num_bytes / arrival.seconds / 1e9)
                    loads.append((time.process_time() - before) / (arrival.num_bytes / 1e9))
                name = f"{transport}.{layout}.{num_tokens}"
                aims = transport in ("cma", "nixl") and num_tokens == TARGET_TOKENS and geometry.pinned
                rows.append(Row(name, median(rates[1:]), "GB/s", TARGET_RATE if aims else None))
                rows.append(Row(f"{name}.cpu", median(loads[1:]), "s/GB", better="lower"))
    finally:
        fetching.close()
        direct.close()
        holder.close()
    return rows


def _write(pool: HostPool, to: Runs, begin: int, end: int, rows: torch.Tensor) -> None:
    pool.write(between(to, begin, end), rows)


def measure_memcpy(own: HostPool, tokens: Sequence[int], reps: int, seed: int) -> list[Row]:
    other = torch.zeros_like(own.k).view(torch.uint8).reshape(-1).numpy()
    flat = own.k.view(torch.uint8).reshape(-1).numpy()
    rates = []
    for _ in range(1 + reps):
        began = time.perf_counter()
        other[:] = flat
        rates.append(flat.nbytes / (time.perf_counter() - began) / 1e9)
    return [Row("memcpy", median(rates[1:]), "GB/s")]


def main(argv: Sequence[str] | None = None) -> int:
    """The number of transports that failed."""
    args = _arguments(argv)
    clock = Clock()
    report = new_report("transfer", args, part=args.transports != list(TRANSPORTS))
    report.commit = args.commit or report.commit
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        report.machine = f"{torch.cuda.get_device_name(0)}, {report.machine}"
    room = 2 * max(args.tokens)
    small, large = (30, 3, 64, torch.float32, room, False), (32, 8, 128, torch.bfloat16, room, on_gpu)
    geometry = Geometry(*(large if on_gpu else small))  # type: ignore[arg-type]
    if args.quick:
        geometry = replace(geometry, num_layers=4)
    num_failed = 0
    for transport in args.transports:
        if transport == "object_store" and importlib.util.find_spec("ray") is None:
            clock.say("object_store: Ray is not installed")
            continue
        clock.say(transport)
        try:
            report.rows += measure(transport, geometry, args.tokens, args.reps, args.seed)
        except FailedPrecondition as error:
            clock.say(f"{transport}: {error}")
        except Exception as error:  # the others' numbers are worth having: a card may be lent for minutes only
            clock.say(f"{transport} failed: {error!r}")
            num_failed += 1
        report.save_partial()
    finish(report, args, clock)
    return num_failed


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Rates of transfers between two workers of one machine.")
    add_arguments(parser)
    parser.add_argument("--transports", help=f"by comma: {','.join(TRANSPORTS)}")
    parser.add_argument("--tokens", help="of the messages, by comma (default: 1024,8192; with --quick 256)")
    parser.add_argument("--reps", type=int, help="repetitions that count (default: 7, with --quick 2)")
    parser.add_argument("--commit", help="that is measured, where git cannot tell")
    args = parser.parse_args(argv)
    args.transports = args.transports.split(",") if args.transports else list(TRANSPORTS)
    if unknown := set(args.transports) - set(TRANSPORTS):
        parser.error(f"no transport {', '.join(sorted(unknown))}; there are {', '.join(TRANSPORTS)}")
    try:
        args.tokens = [int(each) for each in (args.tokens or ("256" if args.quick else "1024,8192")).split(",")]
    except ValueError:
        parser.error(f"--tokens {args.tokens}: expected numbers, by comma")
    args.reps = args.reps or (2 if args.quick else 7)
    return args


if __name__ == "__main__":
    sys.exit(main())
