"""One served cluster on the default model for the whole session, and the command line to talk to it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from command_line import ENDING_S, Cli

from laban.actors.models import prepare_default_model


@pytest.fixture(scope="session")
def model_folder() -> Path:
    return prepare_default_model()


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """Whose processes are those of the cluster at `address`."""
    return Cli(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="session")
def address(model_folder: Path, serving: Cli) -> Iterator[str]:
    """Of a cluster that `laban serve` keeps up."""
    process = serving.start("serve", "--port", "0")
    assert process.stdout is not None
    line = process.stdout.readline()
    if " on " not in line:
        _, error = process.communicate(timeout=ENDING_S)
        pytest.fail(f"the cluster did not start: {error}")
    assert process.stderr is not None
    Thread(target=process.stderr.read, daemon=True).start()  # what it logs would fill the pipe
    yield line.rpartition(" on ")[2].strip()
    process.send_signal(signal.SIGTERM)
    assert process.wait(ENDING_S) == 0
    assert serving.leftovers() == []
