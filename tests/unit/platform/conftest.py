"""The default model's tokenizer, once per test session."""

from __future__ import annotations

from pathlib import Path

import pytest

from laban.actors.models import prepare_default_model
from laban.actors.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def default_folder() -> Path:
    return prepare_default_model()


@pytest.fixture(scope="session")
def tokenizer(default_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(default_folder)
