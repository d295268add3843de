"""The host tier's pool: what is written is read back, wherever it lies; and how much memory it is given by default."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laban.actors.engine import host_memory
from laban.actors.engine.host_memory import HostBlock, default_host_bytes, memory_bytes
from laban.actors.engine.host_pool import HostPool
from laban.kvstore.pages import OutOfPages

LAYERS, KV_HEADS, DIM = 3, 2, 5


def make_pool(dtype: torch.dtype = torch.float32, num_pages: int = 8, page_size: int = 4) -> HostPool:
    return HostPool(num_pages, page_size, LAYERS, KV_HEADS, DIM, dtype, pinned=False)


@st.composite
def some_runs(draw: st.DrawFn, num_slots: int = 32) -> list[tuple[int, int]]:
    slots = draw(st.permutations(range(num_slots)))
    used = slots[: draw(st.integers(1, num_slots))]
    runs: list[tuple[int, int]] = []
    for slot in used:
        if runs and sum(runs[-1]) == slot:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((slot, 1))
    return runs


@given(runs=some_runs(), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_what_is_written_is_read_back_and_nothing_else_changes(runs: list[tuple[int, int]], dtype: torch.dtype) -> None:
    pool = make_pool(dtype)
    slots = torch.cat([torch.arange(first, first + length) for first, length in runs])
    rows = torch.randn(2, LAYERS, len(slots), KV_HEADS, DIM).to(dtype)
    pool.write(runs, rows)
    assert torch.equal(pool.read(runs), rows)
    assert torch.equal(pool.k[:, slots], rows[0])
    assert torch.equal(pool.v[:, slots], rows[1])
    others = torch.ones(pool.num_slots, dtype=torch.bool)
    others[slots] = False
    assert not pool.k[:, others].any()
    assert not pool.v[:, others].any()
    pool.close()


def test_rows_need_not_be_dense() -> None:
    pool = make_pool()
    rows = torch.randn(LAYERS, 2, 6, KV_HEADS, DIM).transpose(0, 1)
    pool.write([(3, 6)], rows)
    assert torch.equal(pool.read([(3, 6)]), rows)


def test_rows_of_another_shape_or_type_are_refused() -> None:
    pool = make_pool()
    with pytest.raises(ValueError, match="expected"):
        pool.write([(0, 4)], torch.zeros(2, LAYERS, 5, KV_HEADS, DIM))
    with pytest.raises(ValueError, match="float64"):
        pool.write([(0, 4)], torch.zeros(2, LAYERS, 4, KV_HEADS, DIM, dtype=torch.float64))


def test_bytes_follow_the_pages() -> None:
    pool = make_pool(torch.bfloat16)
    per_page = 4 * 2 * LAYERS * KV_HEADS * DIM * 2
    assert (pool.num_bytes, pool.used_bytes) == (8 * per_page, 0)
    pages = pool.allocator.allocate(3)
    assert pool.used_bytes == 3 * per_page
    with pytest.raises(OutOfPages):
        pool.allocator.allocate(6)
    pool.allocator.free(pages)
    assert pool.used_bytes == 0
    assert HostPool.num_pages_for(10 * per_page + 1, 4, pool.bytes_per_token) == 10


def test_progress_ends_at_one_and_closing_twice_is_fine() -> None:
    told: list[float | None] = []
    pool = HostPool(2, 16, 1, 1, 8, torch.float32, pinned=False, progress=lambda doing, share: told.append(share))
    assert told[-1] == 1.0
    pool.close()
    pool.close()
    assert pool.k.numel() == 0


def test_what_cannot_be_pinned_is_pageable(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no card")

    monkeypatch.setattr(host_memory, "_register", refuse)
    monkeypatch.setattr(torch, "zeros", refuse)
    told: list[float] = []
    block = HostBlock(5 << 20, pinned=True, progress=told.append)
    assert not block.is_pinned
    assert block.bytes.numel() == 5 << 20
    assert block.bytes.data_ptr() % host_memory.HUGE_PAGE == 0
    assert told == sorted(told)
    assert "cannot be pinned" in caplog.text


def test_memory_is_what_the_control_groups_leave(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal:       1048576 kB\nMemFree: 1 kB\n")
    assert memory_bytes(tmp_path) == 1 << 30
    (tmp_path / "proc/self/cgroup").write_text("0::/a/b\n")
    groups = tmp_path / "sys/fs/cgroup"
    (groups / "a/b").mkdir(parents=True)
    (groups / "a/b/memory.max").write_text("max\n")
    assert memory_bytes(tmp_path) == 1 << 30
    (groups / "a/memory.max").write_text(f"{600 << 20}\n")
    assert memory_bytes(tmp_path) == 600 << 20
    (groups / "memory.max").write_text(f"{500 << 20}\n")  # as a container sees its own
    assert memory_bytes(tmp_path) == 500 << 20
    assert default_host_bytes(on_gpu=True, workers_sharing=2, root=tmp_path) == 125 << 19
    assert default_host_bytes(on_gpu=False, workers_sharing=2, root=tmp_path) == 256 << 20


def test_memory_by_the_older_control_groups(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal:       1048576 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("5:cpu,cpuacct:/x\n4:memory:/a\n0::/\n")
    (tmp_path / "sys/fs/cgroup/memory/a").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory/a/memory.limit_in_bytes").write_text(f"{300 << 20}\n")
    (tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory_bytes(tmp_path) == 300 << 20
