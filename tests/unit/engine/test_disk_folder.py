"""A pool's pages to the disk and back, and folders that cannot be had."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from laban.actors.engine.disk_folder import chunk_of, open_disk, rows_of
from laban.actors.engine.host_pool import HostPool
from laban.actors.errors import FailedPrecondition


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pages_come_back_as_they_were(tmp_path: Path, dtype: torch.dtype) -> None:
    host = HostPool(8, 4, 2, 1, 6, dtype, pinned=False)
    host.k.view(torch.uint8).random_()
    host.v.view(torch.uint8).random_()
    disk = open_disk(tmp_path / "a", 1 << 20, "m", host, chunk_tokens=5)
    before = host.read([(3, 12)])
    assert disk.save("x", "m", 12, lambda begin, end: chunk_of(host.read([(3 + begin, end - begin)]))).wait(20)
    arrival = disk.load("x", lambda begin, end, chunk: host.write([(17 + begin, end - begin)], rows_of(chunk, dtype)))
    assert arrival.wait(20)
    assert arrival.problem is None
    assert torch.equal(host.read([(17, 12)]).view(torch.uint8), before.view(torch.uint8))
    disk.close()


def test_a_folder_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    host = HostPool(1, 4, 1, 1, 4, torch.float32, pinned=False)
    disk = open_disk(tmp_path / "a", 1 << 20, "m", host)
    with pytest.raises(FailedPrecondition, match=rf"cache.disk_folder: {tmp_path}/a is another worker's"):
        open_disk(tmp_path / "a", 1 << 20, "m", host)
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPrecondition, match=rf"cache.disk_folder: {tmp_path}/file"):
        open_disk(tmp_path / "file", 1 << 20, "m", host)
    disk.close()


def test_a_budget_that_the_file_system_has_not_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    host = HostPool(4, 16, 1, 1, 4, torch.float32, pinned=False)
    disk = open_disk(tmp_path / "a", 1 << 20, "m", host)
    rows = torch.zeros(2, 1, 100, 1, 4)
    write = disk.save("e", "m", 100, lambda begin, end: chunk_of(rows[:, :, begin:end]))
    assert write.wait(20)
    used = disk.used_bytes
    disk.close()
    for free, warns in ((1 << 20, False), ((1 << 20) - used, False), ((1 << 20) - used - 1, True)):
        caplog.clear()
        usage = SimpleNamespace(total=1 << 30, used=0, free=free)
        monkeypatch.setattr("laban.actors.engine.disk_folder.shutil.disk_usage", lambda folder, usage=usage: usage)
        disk = open_disk(tmp_path / "a", 1 << 20, "m", host)
        assert disk.used_bytes == used
        assert ("(cache.disk_bytes), and its file system has room for" in caplog.text) == warns
        disk.close()
