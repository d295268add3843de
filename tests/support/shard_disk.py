"""The lives of a worker of several shards over one folder, for processes of shards: what each shard saw and has."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine_harness import TOLERANCE, Driver, byte_tokenizer, force, logprobs
from engine_reference import MAX_CONTEXT, random_model
from shard_processes import HEADS, DrivenLockstep

from laban.actors.calls import CacheCounters, WorkerRates
from laban.actors.engine.config import EngineConfig
from laban.actors.engine.engine import Engine
from laban.actors.engine.load import make_engine
from laban.actors.engine.lockstep import follow
from laban.actors.engine.shard_group import ShardGroup
from laban.kvstore import disk as disk_module
from laban.kvstore.encodings import EncodingSpec

NUM_MESSAGES, NUM_TOKENS = 5, 300
PER_TOKEN = 2 * 3 * 2 * 8 * 4  # bytes: keys and values, layers, KV heads, elements, float32
RATES = WorkerRates(100.0, 0.01, 1e12, 1e12, 1e12)


def text(number: int) -> list[int]:
    return [(13 * number + 7 * i * i + 3 * i) % 128 for i in range(NUM_TOKENS)]


def engine_over(
    folder: Path | None, group: ShardGroup | None, *, pool_tokens: int, host_tokens: int, device: str = "cpu"
) -> Engine:
    """That thinks little of encoding and much of its links, whatever it measures; on `device` if there is no group."""
    config = EngineConfig(
        pool_tokens=pool_tokens,
        dtype="float32",
        drafting=False,
        host_bytes=host_tokens * PER_TOKEN,
        disk_folder=None if folder is None else str(folder),
        disk_bytes=1 << 24,
        max_batch_tokens=512,
        cuda_graphs=False,
    )
    engine = make_engine(
        random_model("llama", **HEADS),
        byte_tokenizer(),
        config,
        torch.device(device) if group is None else group.device,
        group,
        namespace="test",
        max_context=MAX_CONTEXT,
    )
    assert engine.info.bytes_per_token == PER_TOKEN
    engine.tiers.rates._add = lambda name, value: None  # type: ignore[method-assign]
    engine.tiers.rates.adopt = lambda known: None  # type: ignore[method-assign]
    engine.tiers.rates._values = {name: getattr(RATES, name) for name in RATES.__dataclass_fields__}
    return engine


@dataclass
class Life:
    """What one shard can tell of one life of its worker."""

    held: dict[str, tuple[int, int, str]]  # on disk when it ended
    entries: list[Any]
    counters: CacheCounters
    num_saves_failed: int
    disk_bytes: int
    used_bytes: int
    files: list[str]
    told: list[np.ndarray] = field(default_factory=list)  # log-probabilities; the first shard's alone
    encoded: list[int] = field(default_factory=list)  # tokens, of each call

    @property
    def messages(self) -> list[str]:
        """On disk, without the answers to them."""
        return sorted(key for key, (num_tokens, _, _) in self.held.items() if num_tokens == NUM_TOKENS)


def lives(group: ShardGroup, folder: Path) -> list[Life]:
    """One that spills; one that finds what was spilled; one in which the last shard's first file is damaged and its
    second cut short; one in an empty folder in which the last shard's disk is full at first."""
    specs: dict[str, EncodingSpec] = {}
    last = group.rank == group.size - 1
    found = [life(group, folder / "a", specs, rounds=2)]
    found.append(life(group, folder / "a", specs, rounds=1))
    if last:
        flipped, cut = (folder / "a" / f"shard-{group.rank}" / f"{key}.kv" for key in found[-1].messages[:2])
        data = bytearray(flipped.read_bytes())
        data[-5] ^= 1
        flipped.write_bytes(data)
        cut.write_bytes(cut.read_bytes()[:-100])
    found.append(life(group, folder / "a", specs, rounds=1))
    found.append(life(group, folder / "b", specs, rounds=2, disk_is_full=last))
    group.close()
    return found


def life(
    group: ShardGroup, folder: Path, specs: dict[str, EncodingSpec], *, rounds: int, disk_is_full: bool = False
) -> Life:
    engine = engine_over(folder, group, pool_tokens=704, host_tokens=1024)
    write_all = disk_module.write_all
    told, encoded = [], []
    try:
        if disk_is_full:
            disk_module.write_all = _full
        if group.rank:
            follow(engine, group)
        else:
            lockstep = DrivenLockstep(engine, group)
            told, encoded = play(Driver(lockstep, specs), rounds)  # type: ignore[arg-type]
            lockstep.close()
    finally:
        disk_module.write_all = write_all
    engine.store.check_integrity()
    engine.tiers.host.check_integrity()
    entries = [
        (e.key, e.num_tokens, tuple(e.pages), e.pins, e.last_use)
        for store in (engine.store, engine.tiers.host)
        for e in store._entries.values()
    ]
    engine.close()
    engine.runner.close()
    disk, spills = engine.tiers.disk, engine.tiers._spills
    assert disk is not None
    assert spills is not None
    assert spills._held == dict(disk.held())
    assert spills.used_bytes == disk.used_bytes
    return Life(
        dict(disk.held()),
        entries,
        engine.tiers.counters.totals(),
        engine.tiers.tallying.totals().num_saves_failed,
        engine.info.disk_bytes,
        disk.used_bytes,
        sorted(path.stem for path in (folder / f"shard-{group.rank}").glob("*.kv*")),
        told,
        encoded,
    )


def play(driver: Driver, rounds: int) -> tuple[list[np.ndarray], list[int]]:
    """Each message is read in each round: log-probabilities of what was forced, tokens encoded for it."""
    specs = [
        next((spec for spec in driver.specs.values() if list(spec.tokens) == text(number)), None)
        for number in range(NUM_MESSAGES)
    ]
    messages = [spec or driver.prefill(text(number)) for number, spec in enumerate(specs)]
    told, encoded = [], []
    for _ in range(rounds):
        for spec in messages:
            call = driver.submit([3], driver.chain(spec), sampling=force([4, 5]))
            driver.run()
            result = driver.result(call)
            told.append(logprobs(result).numpy())
            encoded.append(result.tokens_encoded)
            for _ in range(8):  # what may be written is written, a few every 50 ms
                driver.step()
                time.sleep(0.01)
            driver.run()
    return told, encoded


def _full(fd: int, data: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def check_lives(shards: list[list[Life]]) -> None:
    """`lives` of each shard: all have the same, and answered as one that never let anything go."""
    size = len(shards)
    expected, _ = play(Driver(engine_over(None, None, pool_tokens=4096, host_tokens=0)), 1)
    for number, of_all in enumerate(zip(*shards, strict=True)):
        first = of_all[0]
        for each in of_all:
            assert (each.held, each.entries) == (first.held, first.entries), f"life {number}: the shards differ"
            assert each.files == sorted(each.held), f"life {number}: a file that is not held everywhere"
            assert each.used_bytes == sum(size for _, size, _ in each.held.values())
            assert each.disk_bytes == 1 << 24  # of all shards together
        for at, told in enumerate(first.told):
            np.testing.assert_allclose(told, expected[at % NUM_MESSAGES], atol=TOLERANCE, rtol=0)
    spilled, again, damaged, full = shards[0]
    per_shard = PER_TOKEN // size
    assert len(spilled.messages) >= 2
    assert all(taken > num_tokens * per_shard for num_tokens, taken, _ in spilled.held.values())
    assert spilled.counters.tokens_loaded_disk > 0
    # Found again: nothing that was on disk is encoded.
    missing = NUM_MESSAGES - len(spilled.messages)
    assert sum(again.encoded) == NUM_MESSAGES + missing * NUM_TOKENS
    # The last shard's first file is damaged in its last chunk: what comes before is used, in all shards. Its second
    # one is cut short, and so of no use in any.
    missing = NUM_MESSAGES - len(again.messages)
    assert sum(damaged.encoded) == NUM_MESSAGES + (NUM_TOKENS - 256) + (1 + missing) * NUM_TOKENS
    assert damaged.counters.tokens_loaded_disk % NUM_TOKENS == 256
    # The last shard's disk was full: what the others wrote is gone again, and none tries for a while.
    assert full.held == {}
    assert 1 <= full.num_saves_failed <= 2
    assert len({each[3].num_saves_failed for each in shards}) == 1
    assert full.counters.bytes_saved_disk == 0
