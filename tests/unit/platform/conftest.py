"""The default model's tokenizer, once per test session."""

from __future__ import annotations

from pathlib import Path

import pytest
from laban.actors.models import converted_default_model
from laban.actors.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def default_folder() -> Path:
    folder = converted_default_model()
    if folder is None:
        pytest.skip("the default model is not converted on this machine; `make setup` converts it")
    return folder


@pytest.fixture(scope="session")
def tokenizer(default_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(default_folder)
