"""Modules of the folder `benchmarks`, which is no package: found while a test needs them, and then forgotten."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[2] / "benchmarks"


@contextmanager
def benchmark_modules(*names: str) -> Iterator[list[ModuleType]]:
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    try:
        yield [import_module(name) for name in names]
    finally:
        sys.path.remove(str(FOLDER))
        for name in set(sys.modules) - before:
            if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == FOLDER:
                del sys.modules[name]
