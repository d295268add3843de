"""What is refused before anything is started: policies that are not there, folders and files that cannot be made."""

from __future__ import annotations

from pathlib import Path

import pytest

from laban.actors.disk_folder import prepare_disk_folder
from laban.actors.errors import InvalidInput
from laban.cluster.config import LabanConfig
from laban.cluster.launch import start_cluster
from laban.cluster.start_checks import checked, worker_folder


def config(**sections: object) -> LabanConfig:
    return LabanConfig.model_validate(sections)


def test_paths_become_absolute_and_nothing_else_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert checked(config(workers=3)) == config(workers=3)
    found = checked(config(cache={"disk_folder": "a/b", "eviction": "lru"}, routing={"record": "calls.jsonl"}))
    assert (found.cache.disk_folder, found.cache.eviction) == (str(tmp_path / "a" / "b"), "lru")
    assert found.routing.record == str(tmp_path / "calls.jsonl")
    assert (tmp_path / "a" / "b").is_dir()
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_policy_of_ones_own_is_found_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "policy_of_mine.py").write_text("class Oldest:\n    def key(self, item, now_s): return (0.0,)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    assert checked(config(cache={"eviction": "policy_of_mine:Oldest"})).cache.eviction == "policy_of_mine:Oldest"


@pytest.mark.parametrize(
    ("eviction", "message"),
    [
        ("newest", "'newest'; expected cost, steps, lru or package.module:Class"),
        ("belady", "'belady'.*simulations only; expected cost"),
        ("no_such_module_here:Class", "cannot import 'no_such_module_here'"),
        ("collections:Nothing", "no such class in 'collections'"),
        ("collections:Counter", "Counter has no method 'key'"),
        ("collections:", "expected package.module:Class"),
    ],
)
def test_policies_that_cannot_be_loaded(eviction: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        checked(config(cache={"eviction": eviction}))
    assert caught.value.field == "cache.eviction"


def test_routing_policies_that_cannot_be_loaded() -> None:
    for policy, message in (
        ("cost", ""),
        ("random", "expected cost, prefix_affinity"),
        ("json:Nothing", "no such class"),
    ):
        if not message:
            checked(config(routing={"policy": policy}))
            continue
        with pytest.raises(InvalidInput, match=message) as caught:
            checked(config(routing={"policy": policy}))
        assert caught.value.field == "routing.policy"


def test_folders_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/self/x"), Path("/proc/self")):
        with pytest.raises(InvalidInput, match="no files can be made there") as caught:
            prepare_disk_folder(str(folder))
        assert (caught.value.field, caught.value.value) == ("cache.disk_folder", str(folder))
    with pytest.raises(InvalidInput, match="null"):
        prepare_disk_folder("a\0b")


def test_a_start_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match=r"cache\.disk_folder: no files"):
        start_cluster(config(cache={"disk_folder": str(tmp_path / "file")}))
    with pytest.raises(InvalidInput, match=r"routing\.record: cannot be written"):
        start_cluster(config(routing={"record": str(tmp_path / "none" / "calls.jsonl")}))
    assert checked(config(cache={"disk_folder": str(tmp_path)}, engine={"shards": 2})).cache.disk_folder == str(
        tmp_path
    )
    # Where Ray runs elsewhere the folder is there, not here.
    remote = config(cache={"disk_folder": str(tmp_path / "file")}, ray={"address": "10.0.0.1:6379"})
    assert checked(remote).cache.disk_folder == str(tmp_path / "file")


def test_each_worker_has_a_folder_of_its_own() -> None:
    assert worker_folder("/d", "worker-1") == "/d/worker-1"
    assert worker_folder(None, "worker-1") is None


def test_a_journal_that_cannot_be_written_is_refused_before_anything_starts(tmp_path: Path) -> None:
    made = tmp_path / "a" / "b" / "journal.db"
    assert checked(config(journal={"url": f"sqlite:///{made}"})).journal.url == f"sqlite:///{made}"
    assert not made.parent.exists(), "it is made when it is opened"
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="cannot be written there") as raised:
        checked(config(journal={"url": f"sqlite:///{tmp_path / 'file' / 'journal.db'}"}))
    assert raised.value.field == "journal.url"
