"""The disk tier: what is damaged, cut off or foreign is found, a full disk costs writes alone, a budget is a budget."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from laban.kvstore import disk_files
from laban.kvstore.arrivals import Arrival
from laban.kvstore.disk import DiskTier
from laban.kvstore.disk_files import Chunk, ChunkLayout
from laban.kvstore.disk_folder import LOCK_NAME, FolderInUse

LAYOUT = ChunkLayout("int16", (2, 3, -1, 5))
PER_TOKEN = 60
NAMESPACE = "model/a"
WAIT_S = 20


def tokens_of(encoding_id: str, num_tokens: int) -> Chunk:
    seed = int.from_bytes(encoding_id.encode(), "little") % 2**32
    return np.random.default_rng(seed).integers(-(2**15), 2**15, LAYOUT.of(num_tokens), np.int16)


def open_tier(folder: Path, max_bytes: int = 1 << 20, **options: object) -> DiskTier:
    return DiskTier(folder, max_bytes, "model/", LAYOUT, chunk_tokens=4, **options)  # type: ignore[arg-type]


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[DiskTier]:
    tier = open_tier(tmp_path / "kv")
    yield tier
    tier.close()


def save(tier: DiskTier, encoding_id: str, num_tokens: int = 10, namespace: str = NAMESPACE) -> Arrival:
    whole = tokens_of(encoding_id, num_tokens)
    write = tier.save(encoding_id, namespace, num_tokens, lambda begin, end: whole[:, :, begin:end])
    assert write.wait(WAIT_S)
    return write


def load(tier: DiskTier, encoding_id: str) -> tuple[Arrival, Chunk]:
    """What came, up to the arrival's prefix."""
    num_tokens = tier.held().get(encoding_id, (0,))[0]
    found = np.zeros(LAYOUT.of(num_tokens), np.int16)

    def take(begin: int, end: int, chunk: Chunk) -> None:
        found[:, :, begin:end] = chunk
        chunk[:] = 0  # it is used again

    arrival = tier.load(encoding_id, take)
    assert arrival.wait(WAIT_S)
    return arrival, found[:, :, : arrival.num_tokens_done]


def size_on_disk(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.iterdir() if path.name != LOCK_NAME)


@pytest.mark.parametrize("num_tokens", [1, 3, 4, 5, 8, 41])
def test_what_is_saved_is_loaded(tier: DiskTier, num_tokens: int) -> None:
    write = save(tier, "a1", num_tokens)
    assert (write.problem, write.num_tokens_done, write.num_bytes) == (None, num_tokens, num_tokens * PER_TOKEN)
    assert tier.held() == {"a1": (num_tokens, tier.bytes_for("a1", NAMESPACE, num_tokens), NAMESPACE)}
    assert tier.used_bytes == size_on_disk(tier.folder)
    arrival, found = load(tier, "a1")
    assert arrival.problem is None
    assert arrival.num_tokens_done == arrival.num_tokens == num_tokens
    assert arrival.seconds >= 0
    assert np.array_equal(found, tokens_of("a1", num_tokens))


def test_a_worker_that_starts_again_finds_its_files(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    for encoding_id in ("a", "b"):
        save(tier, encoding_id)
    held = tier.held()
    tier.close()
    tier = open_tier(tmp_path)
    assert tier.held() == held
    assert tier.used_bytes == size_on_disk(tmp_path)
    assert np.array_equal(load(tier, "b")[1], tokens_of("b", 10))
    tier.close()


def test_files_are_the_users_alone(tier: DiskTier) -> None:
    save(tier, "a")
    assert stat.S_IMODE(tier.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in tier.folder.iterdir()} == {0o600}


def test_dropped_is_gone(tier: DiskTier) -> None:
    save(tier, "a")
    tier.drop("a")
    tier.drop("never there")
    assert (tier.held(), tier.used_bytes, size_on_disk(tier.folder)) == ({}, 0, 0)
    assert load(tier, "a")[0].problem == "encoding a is not on the disk"
    assert save(tier, "a").problem is None


def test_what_is_held_is_not_written_again(tier: DiskTier) -> None:
    save(tier, "a")
    write = tier.save("a", NAMESPACE, 10, lambda begin, end: pytest.fail("read again"))
    assert (write.ended, write.problem) == (True, None)


@pytest.mark.parametrize(
    ("encoding_id", "namespace", "num_tokens"),
    [("../x", NAMESPACE, 1), ("a", "other", 1), ("a", NAMESPACE, 0), ("", NAMESPACE, 1)],
)
def test_what_no_file_can_be_is_refused(tier: DiskTier, encoding_id: str, namespace: str, num_tokens: int) -> None:
    with pytest.raises(ValueError, match=r"encoding id|namespace|num_tokens"):
        tier.save(encoding_id, namespace, num_tokens, lambda begin, end: pytest.fail("read"))


def test_a_layout_has_one_axis_of_tokens() -> None:
    with pytest.raises(ValueError, match="one -1"):
        ChunkLayout("int16", (2, 3))
    assert LAYOUT.bytes_per_token == PER_TOKEN


def reopened(tier: DiskTier, change: Callable[[Path], object], encoding_id: str = "a") -> DiskTier:
    """The tier after a stop, in which `change` happened to the file."""
    tier.close()
    change(tier.folder / f"{encoding_id}.kv")
    return open_tier(tier.folder)


def overwritten(at: int, with_: bytes | None = None) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        data = bytearray(path.read_bytes())
        new = bytes([data[at] ^ 0x10]) if with_ is None else with_
        data[at : at + len(new)] = new
        path.write_bytes(data)

    return change


HEADER_BYTES = len(disk_files.Header("a", NAMESPACE, 10, PER_TOKEN, "int16", LAYOUT.shape, 4).encoded())
CHUNK = 4 + 4 * PER_TOKEN


@pytest.mark.parametrize("at", [*range(8, HEADER_BYTES, 7), HEADER_BYTES - 1])
def test_a_damaged_header_is_found_at_the_start(tier: DiskTier, at: int) -> None:
    save(tier, "a")
    tier = reopened(tier, overwritten(at))
    assert (tier.held(), tier.used_bytes, size_on_disk(tier.folder)) == ({}, 0, 0)
    assert save(tier, "a").problem is None
    tier.close()


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("within", [0, 3, 4, 100, 123])
def test_a_damaged_chunk_leaves_the_tokens_before_it(tier: DiskTier, number: int, within: int) -> None:
    save(tier, "a")
    at = HEADER_BYTES + number * CHUNK + within
    tier = reopened(tier, overwritten(at))
    assert "a" in tier.held()
    arrival, found = load(tier, "a")
    assert arrival.num_tokens_done == 4 * number
    assert np.array_equal(found, tokens_of("a", 10)[:, :, : 4 * number])
    assert arrival.problem is not None
    assert f"chunk {number}" in arrival.problem
    assert (tier.held(), tier.used_bytes, size_on_disk(tier.folder)) == ({}, 0, 0)
    tier.close()


@pytest.mark.parametrize(("other", "number"), [("b", 1), ("a", 0)])
def test_a_chunk_that_belongs_elsewhere_is_damage(tier: DiskTier, other: str, number: int) -> None:
    """Of another file, and of another place of the same."""
    save(tier, "a")
    save(tier, "b")
    at = HEADER_BYTES + number * CHUNK
    stolen = (tier.folder / f"{other}.kv").read_bytes()[at : at + CHUNK]
    tier = reopened(tier, overwritten(HEADER_BYTES + CHUNK, stolen))
    assert load(tier, "a")[0].num_tokens_done == 4
    tier.close()


@pytest.mark.parametrize("length", [0, 5, 9, 16, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + CHUNK, -1])
def test_a_cut_file_is_deleted_at_the_start(tier: DiskTier, length: int) -> None:
    save(tier, "a")
    tier = reopened(tier, lambda path: os.truncate(path, length if length >= 0 else path.stat().st_size - 1))
    assert (tier.held(), tier.used_bytes, size_on_disk(tier.folder)) == ({}, 0, 0)
    tier.close()


@pytest.mark.parametrize("num_tokens", [0, 4, 8])
def test_a_file_cut_while_the_worker_runs_leaves_a_prefix(tier: DiskTier, num_tokens: int) -> None:
    save(tier, "a")
    os.truncate(tier.folder / "a.kv", HEADER_BYTES + num_tokens // 4 * CHUNK + 7)
    arrival, found = load(tier, "a")
    assert arrival.num_tokens_done == num_tokens
    assert np.array_equal(found, tokens_of("a", 10)[:, :, :num_tokens])
    assert "a" not in tier


def test_files_of_others_are_never_deleted(tmp_path: Path) -> None:
    others = {"notes.txt": b"mine", "x.kv": b"not by magic", "y.kv.part": b"nor this", "z z.kv": disk_files.MAGIC}
    for name, data in others.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "folder.kv").mkdir()
    (tmp_path / "link.kv").symlink_to(tmp_path / "notes.txt")
    tier = open_tier(tmp_path)
    assert tier.held() == {}
    for encoding_id in ("x", "link", "folder"):
        assert "not a file of ours" in str(save(tier, encoding_id).problem)
    assert not tier.writes_paused
    assert tier.used_bytes == 0
    tier.close()
    assert {name: (tmp_path / name).read_bytes() for name in others} == others
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "folder.kv", "link.kv", LOCK_NAME])


def test_a_file_replaced_by_anothers_is_let_go(tier: DiskTier) -> None:
    save(tier, "a")
    (tier.folder / "a.kv").write_bytes(b"somebody's")
    assert load(tier, "a")[0].problem is not None
    assert "a" not in tier
    assert tier.used_bytes == 0
    assert (tier.folder / "a.kv").read_bytes() == b"somebody's"


def test_a_file_that_somebody_deleted_is_forgotten_and_not_called_damaged(
    tier: DiskTier, caplog: pytest.LogCaptureFixture
) -> None:
    save(tier, "a")
    (tier.folder / "a.kv").unlink()
    problem = load(tier, "a")[0].problem
    assert problem == f"{tier.folder / 'a.kv'}: No such file or directory"
    assert f"forgot a file that is gone: {problem}" in caplog.text
    assert ("a" in tier, tier.used_bytes) == (False, 0)
    assert save(tier, "a").problem is None


def test_files_of_other_models_are_deleted(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    save(tier, "a", namespace="model/old")
    save(tier, "b", namespace="model/new")
    tier.close()
    tier = DiskTier(tmp_path, 1 << 20, "model/new", LAYOUT)
    assert list(tier.held()) == ["b"]
    tier.close()
    tier = DiskTier(tmp_path, 1 << 20, "model/new", ChunkLayout("int16", (2, 3, -1, 6)))
    assert (list(tier.held()), size_on_disk(tmp_path)) == ([], 0)
    tier.close()


def test_a_file_under_another_name_is_deleted(tier: DiskTier) -> None:
    save(tier, "a")
    tier = reopened(tier, lambda path: path.rename(path.with_name("b.kv")))
    assert (tier.held(), size_on_disk(tier.folder)) == ({}, 0)
    tier.close()


def test_a_smaller_budget_keeps_the_newest(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    for age, encoding_id in enumerate("cab"):
        save(tier, encoding_id)
        os.utime(tmp_path / f"{encoding_id}.kv", ns=(age, age))
    size = tier.bytes_for("a", NAMESPACE, 10)
    tier.close()
    tier = open_tier(tmp_path, 2 * size)
    assert set(tier.held()) == {"a", "b"}
    assert tier.used_bytes == size_on_disk(tmp_path) == 2 * size
    tier.close()


def test_a_folder_has_one_owner(tier: DiskTier) -> None:
    with pytest.raises(FolderInUse, match=str(tier.folder)):
        open_tier(tier.folder)
    tier.close()
    tier.close()
    open_tier(tier.folder).close()


def test_without_room_nothing_is_written(tier: DiskTier) -> None:
    tier.max_bytes = tier.bytes_for("a", NAMESPACE, 10)
    assert save(tier, "a").problem is None
    assert "do not fit" in str(save(tier, "b", 1).problem)
    tier.drop("a")
    assert save(tier, "b", 1).problem is None


class FullDisk:
    """Writes fail after some bytes, until it is emptied."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room = room
        self._write = os.write
        monkeypatch.setattr(disk_files.os, "write", self)

    def __call__(self, fd: int, data: bytes | memoryview) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = self._write(fd, data[: min(self.room, 7)])  # few at once, as a disk may
        self.room -= count
        return count


@pytest.mark.parametrize("room", [0, 3, HEADER_BYTES, HEADER_BYTES + 50, HEADER_BYTES + CHUNK])
def test_a_full_disk_stops_writes_for_a_while_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, room: int
) -> None:
    now = 0.0
    tier = open_tier(tmp_path, clock=lambda: now, pause_s=30)
    save(tier, "a")
    disk = FullDisk(monkeypatch, room)
    for encoding_id in ("b", "c"):
        assert save(tier, encoding_id).problem is not None
    assert tier.writes_paused
    assert (set(tier.held()), tier.used_bytes) == ({"a"}, size_on_disk(tmp_path))
    assert load(tier, "a")[0].problem is None
    now = 29.0
    assert "paused" in str(save(tier, "b").problem)
    now, disk.room = 31.0, room
    assert "No space left" in str(save(tier, "b").problem)
    assert sum("No space left" in record.message for record in caplog.records) == 1
    now, disk.room = 62.0, 1 << 20
    assert save(tier, "b").problem is None
    assert np.array_equal(load(tier, "b")[1], tokens_of("b", 10))
    tier.close()


def test_writes_queued_behind_one_that_failed_are_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = open_tier(tmp_path)
    begun, going = threading.Event(), threading.Event()
    FullDisk(monkeypatch, HEADER_BYTES)

    def wait(begin: int, end: int) -> Chunk:
        begun.set()
        going.wait(WAIT_S)
        return tokens_of("a", end - begin)

    first = tier.save("a", NAMESPACE, 4, wait)
    assert begun.wait(WAIT_S)
    second = tier.save("b", NAMESPACE, 4, lambda begin, end: pytest.fail("read"))
    going.set()
    assert second.wait(WAIT_S)
    assert "No space" in str(first.problem)
    assert "paused" in str(second.problem)
    assert tier.used_bytes == 0
    tier.close()


@pytest.mark.parametrize("error", [OSError(5, "of the caller"), RuntimeError("of the caller")])
def test_what_the_caller_raises_is_not_the_disks_fault(tier: DiskTier, error: Exception) -> None:
    def fail(*_: object) -> Chunk:
        raise error

    write = tier.save("a", NAMESPACE, 10, fail)
    assert write.wait(WAIT_S)
    assert "of the caller" in str(write.problem)
    assert (tier.writes_paused, tier.used_bytes, size_on_disk(tier.folder)) == (False, 0, 0)
    save(tier, "a")
    arrival = tier.load("a", fail)  # type: ignore[arg-type]
    assert arrival.wait(WAIT_S)
    assert "of the caller" in str(arrival.problem)
    assert "a" in tier


def test_a_chunk_of_another_shape_is_a_problem(tier: DiskTier) -> None:
    write = tier.save("a", NAMESPACE, 10, lambda begin, end: tokens_of("a", 3))
    assert write.wait(WAIT_S)
    assert "expected int16 (2, 3, 4, 5)" in str(write.problem)
    assert not tier.writes_paused


@pytest.mark.parametrize("by_dropping", [True, False])
def test_a_cancelled_write_leaves_nothing(tier: DiskTier, by_dropping: bool) -> None:
    reading, going = threading.Event(), threading.Event()

    def read(begin: int, end: int) -> Chunk:
        reading.set()
        going.wait(WAIT_S)
        return tokens_of("a", 10)[:, :, begin:end]

    write = tier.save("a", NAMESPACE, 10, read)
    reading.wait(WAIT_S)
    assert tier.save("a", NAMESPACE, 10, read) is write
    tier.drop("a") if by_dropping else write.cancel()
    assert "cancelled" in str(tier.save("a", NAMESPACE, 10, read).problem)
    going.set()
    assert write.wait(WAIT_S)
    assert write.problem == "cancelled"
    assert (tier.held(), tier.used_bytes, size_on_disk(tier.folder)) == ({}, 0, 0)


def test_a_cancelled_load_keeps_its_prefix(tier: DiskTier) -> None:
    save(tier, "a")
    arrivals: list[Arrival] = []
    begun = threading.Event()

    def take(begin: int, end: int, chunk: Chunk) -> None:
        begun.wait(WAIT_S)
        arrivals[0].cancel()

    arrivals.append(tier.load("a", take))
    begun.set()
    assert arrivals[0].wait(WAIT_S)
    assert (arrivals[0].num_tokens_done, arrivals[0].problem) == (4, "cancelled")
    assert "a" in tier


def test_dropping_what_is_being_read_frees_its_bytes_afterwards(tier: DiskTier) -> None:
    save(tier, "a")
    used = tier.used_bytes
    begun, going = threading.Event(), threading.Event()
    found = np.zeros(LAYOUT.of(10), np.int16)

    def take(begin: int, end: int, chunk: Chunk) -> None:
        begun.set()
        going.wait(WAIT_S)
        found[:, :, begin:end] = chunk

    arrival = tier.load("a", take)
    begun.wait(WAIT_S)
    tier.drop("a")
    assert (tier.held(), tier.used_bytes) == ({}, used)
    going.set()
    assert arrival.wait(WAIT_S)
    assert (arrival.problem, tier.used_bytes) == (None, 0)
    assert np.array_equal(found, tokens_of("a", 10))


def test_closing_ends_everything(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    save(tier, "a", 40)
    begun, going = threading.Event(), threading.Event()

    def wait(*_: object) -> Chunk:
        begun.set()
        going.wait(WAIT_S)
        return tokens_of("b", 4)

    under_way = [tier.save(key, NAMESPACE, 40, wait) for key in "bcd"] + [tier.load("a", wait) for _ in range(3)]  # type: ignore[arg-type]
    begun.wait(WAIT_S)
    closing = threading.Thread(target=tier.close)
    closing.start()
    going.set()
    closing.join(WAIT_S)
    assert all(arrival.ended for arrival in under_way)
    assert save(tier, "e").problem == load(tier, "a")[0].problem == "the disk tier is closed"


KILLED = """
import sys
from pathlib import Path
import numpy as np
from laban.kvstore.disk import DiskTier
from laban.kvstore.disk_files import ChunkLayout

layout = ChunkLayout("int16", (2, 3, -1, 5))
tier = DiskTier(Path(sys.argv[1]), 1 << 20, "model/", layout, chunk_tokens=4)

def read(begin, end):
    if begin >= int(sys.argv[2]):
        print("here", flush=True)
        sys.stdin.read()
    return np.zeros(layout.of(end - begin), np.int16)

tier.save("a", "model/a", 4, lambda begin, end: np.zeros(layout.of(4), np.int16)).wait()
tier.save("b", "model/a", 10, read).wait()
"""


@pytest.mark.parametrize("num_tokens", [0, 4, 8])
def test_killed_while_it_writes(tmp_path: Path, num_tokens: int) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(num_tokens)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        with pytest.raises(FolderInUse):
            open_tier(tmp_path)
        process.send_signal(signal.SIGKILL)
    assert any(path.name == "b.kv.part" for path in tmp_path.iterdir())
    tier = open_tier(tmp_path)
    assert list(tier.held()) == ["a"]
    assert tier.used_bytes == size_on_disk(tmp_path)
    tier.close()


@given(num_tokens=st.integers(1, 30), at=st.integers(0, 10_000), bit=st.integers(0, 7), chunk_tokens=st.integers(1, 9))
@settings(deadline=None, max_examples=60)
def test_any_flipped_bit_is_found(num_tokens: int, at: int, bit: int, chunk_tokens: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        tier = DiskTier(Path(name), 1 << 20, "model/", LAYOUT, chunk_tokens=chunk_tokens)
        save(tier, "a", num_tokens)
        path = Path(name) / "a.kv"
        data = bytearray(path.read_bytes())
        data[at % len(data)] ^= 1 << bit
        path.write_bytes(data)
        arrival, found = load(tier, "a")
        assert arrival.problem is not None
        assert np.array_equal(found, tokens_of("a", num_tokens)[:, :, : arrival.num_tokens_done])
        assert "a" not in tier
        tier.close()


class Budget(RuleBasedStateMachine):
    """Whatever is saved, loaded and dropped: the folder keeps to its budget, and the tier knows what it has."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        self.max_bytes = 4 * 800
        self.tier = open_tier(self.folder, self.max_bytes)
        self.kept: dict[str, int] = {}

    def teardown(self) -> None:
        self.tier.close()
        self._folder.cleanup()

    @rule(key=st.sampled_from("abcdefgh"), num_tokens=st.integers(1, 20), cancelled=st.booleans())
    def save(self, key: str, num_tokens: int, cancelled: bool) -> None:
        whole = tokens_of(key, num_tokens)

        def read(begin: int, end: int) -> Chunk:
            assert size_on_disk(self.folder) <= self.tier.used_bytes <= self.max_bytes
            return whole[:, :, begin:end]

        write = self.tier.save(key, NAMESPACE, num_tokens, read)
        if cancelled:
            write.cancel()
        assert write.wait(WAIT_S)
        if write.problem is None:
            self.kept.setdefault(key, num_tokens)
        else:
            assert cancelled or self.tier.used_bytes + write.num_tokens * PER_TOKEN + 400 > self.max_bytes

    @rule(key=st.sampled_from("abcdefgh"))
    def load(self, key: str) -> None:
        arrival, found = load(self.tier, key)
        assert (arrival.problem is None) == (key in self.kept)
        if key in self.kept:
            assert np.array_equal(found, tokens_of(key, self.kept[key]))

    @rule(key=st.sampled_from("abcdefgh"))
    def drop(self, key: str) -> None:
        self.tier.drop(key)
        self.kept.pop(key, None)

    @rule(key=st.sampled_from("abcdefgh"), share=st.floats(0, 0.99))
    def damage(self, key: str, share: float) -> None:
        if key in self.kept:
            path = self.folder / f"{key}.kv"
            overwritten(8 + int(share * (path.stat().st_size - 8)))(path)
            assert load(self.tier, key)[0].problem is not None
            del self.kept[key]

    @rule()
    def start_again(self) -> None:
        self.tier.close()
        self.tier = open_tier(self.folder, self.max_bytes)

    @invariant()
    def accounts(self) -> None:
        assert {key: value[0] for key, value in self.tier.held().items()} == self.kept
        assert self.tier.used_bytes == sum(value[1] for value in self.tier.held().values())
        assert size_on_disk(self.folder) == self.tier.used_bytes <= self.max_bytes


TestBudget = Budget.TestCase
TestBudget.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
