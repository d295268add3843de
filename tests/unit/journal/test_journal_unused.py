"""What a failed start leaves of a journal: nothing, where it made it and nobody wrote to it; all else stays."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from laban.cluster.journal_schema import DIVERGENCES, FINDINGS, MOVES, WORKFLOWS
from laban.cluster.journal_store import SqlStore
from laban.cluster.journal_unused import file_to_make, remove_unused

KILLED = "import os, sys; from laban.cluster.journal_store import SqlStore; SqlStore(sys.argv[1]).open(); os._exit(1)"


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Of a start that was killed, beside another file."""
    (tmp_path / "journal.db.txt").write_text("mine")
    path = file_to_make(f"sqlite:///{tmp_path / 'journal.db'}")
    assert path == tmp_path / "journal.db"
    subprocess.run([sys.executable, "-c", KILLED, f"sqlite:///{path}"], check=False)
    assert len(list(tmp_path.iterdir())) >= 4
    return path


def test_an_unused_journal_goes_whole(journal: Path) -> None:
    assert remove_unused(journal, wait_s=0)
    assert [file.name for file in journal.parent.iterdir()] == ["journal.db.txt"]
    store = SqlStore(f"sqlite:///{journal}")  # and can be made again
    store.open()
    store.close()


def test_a_journal_that_others_have_stays(journal: Path) -> None:
    store = SqlStore(f"sqlite:///{journal}")
    store.open()
    try:
        before = sorted(journal.parent.iterdir())
        assert not remove_unused(journal, wait_s=0)
        assert sorted(journal.parent.iterdir()) == before
        assert store.load() == []
    finally:
        store.close()


@pytest.mark.parametrize("table", [WORKFLOWS, MOVES, FINDINGS, DIVERGENCES])
def test_a_journal_that_holds_anything_stays(journal: Path, table: object) -> None:
    with closing(sqlite3.connect(journal)) as connection, connection:
        columns = connection.execute(f'PRAGMA table_info("{table}")').fetchall()
        connection.execute(f'INSERT INTO "{table}" VALUES ({", ".join("1" for _ in columns)})')
    assert not remove_unused(journal, wait_s=0)
    assert journal.is_file()


def test_only_what_the_start_makes(tmp_path: Path) -> None:
    there = tmp_path / "there.db"
    there.touch()
    assert file_to_make(f"sqlite:///{there}") is None
    assert file_to_make(None) is file_to_make("postgresql://host/base") is None
    assert not remove_unused(tmp_path / "none.db", wait_s=0)
    there.write_bytes(b"no database")
    Path(f"{there}.lock").touch()
    assert not remove_unused(there, wait_s=0)
    assert there.is_file()
