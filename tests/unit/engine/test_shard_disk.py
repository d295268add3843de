"""Shards keep encodings on disk as one worker does: what is there is there in all of them, and calls do not notice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from shard_disk import check_lives, lives
from shard_processes import run_shards

from laban.actors.engine.disk_folder import _open, open_disk, open_disk_of_shard
from laban.actors.engine.host_pool import HostPool
from laban.kernels import row_attention
from laban.kvstore.disk import DiskTier

Held = dict[str, tuple[int, int, str]]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("size", [2])
def test_spilled_and_restarted_and_damaged_and_full_in_one_shard(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_attention, "compiled", None)
    check_lives(run_shards(size, lives, tmp_path, timeout_s=300.0))


class OneOfTwo:
    """A group whose other shard has on disk what it is said to have; None: the same."""

    size = 2

    def __init__(self, rank: int, other: Held | None = None) -> None:
        self.rank, self.other = rank, other

    def gather_objects(self, value: Held) -> list[Held]:
        return [value, value if self.other is None else self.other]


HOST = HostPool(4, 16, 2, 1, 8, torch.float32, False)


def of_two(folder: Path, rank: int, other: Held | None = None) -> DiskTier:
    return open_disk_of_shard(folder, 1 << 20, "test", HOST, OneOfTwo(rank, other))  # type: ignore[arg-type]


def keep(disk: DiskTier, *keys: str) -> Held:
    for key in keys:
        write = disk.save(key, "test", 5, lambda begin, end: np.zeros((2, 2, end - begin, 1, 8), np.int32))
        assert write.wait(10)
        assert write.problem is None
    held = dict(disk.held())
    disk.close()
    return held


def test_what_another_shard_wrote_or_one_of_more_or_none_is_foreign(tmp_path: Path) -> None:
    for rank in range(2):
        keep(of_two(tmp_path, rank), "a")
        assert "a" in keep(of_two(tmp_path, rank))
        (tmp_path / f"shard-{rank}" / "mine.txt").write_text("a user's")
    # The other shard's file, and that of a worker of four shards, two of which have a head: both of the right shape.
    file = tmp_path / "shard-0" / "a.kv"
    file.write_bytes((tmp_path / "shard-1" / "a.kv").read_bytes())
    assert keep(of_two(tmp_path, 0)) == {}
    assert not file.exists()
    assert keep(_open(tmp_path / "shard-1", 1 << 20, "test", HOST, "1/4", {})) == {}
    assert not (tmp_path / "shard-1" / "a.kv").exists()
    # A worker that is not cut into shards deletes what it cannot use, and nothing else; so do shards.
    for rank in range(2):
        keep(of_two(tmp_path, rank), "a")
    assert "a" in keep(open_disk(tmp_path, 1 << 20, "test", HOST), "a")
    assert not list(tmp_path.glob("shard-*/*.kv"))
    assert len(list(tmp_path.glob("shard-*/mine.txt"))) == 2
    keep(of_two(tmp_path, 1), "b")
    assert [path.name for path in tmp_path.rglob("*.kv")] == ["b.kv"]
    # What a worker has open is left alone.
    disk = of_two(tmp_path, 1)
    keep(open_disk(tmp_path, 1 << 20, "test", HOST))
    assert [path.name for path in tmp_path.rglob("*.kv")] == ["b.kv"]
    disk.close()


def test_what_one_shard_lacks_the_others_drop(tmp_path: Path) -> None:
    held = keep(of_two(tmp_path, 0), "a", "b", "c")
    other = {"a": held["a"], "b": (4, *held["b"][1:]), "d": held["c"]}
    assert keep(of_two(tmp_path, 0, other)) == {"a": held["a"]}
    assert [path.name for path in (tmp_path / "shard-0").glob("*.kv")] == ["a.kv"]
