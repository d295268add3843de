"""What flags and files say: a workflow's text, its overrides."""

from __future__ import annotations

import os
from pathlib import Path

from laban.actors.errors import InvalidInput, NotFound


def read_file(name: str, field: str = "FILE") -> bytes:
    """Raises NotFound or InvalidInput; `field` is the argument that named the file."""
    path = Path(name)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise NotFound("no such file", field=field, value=name) from None
    except OSError as error:
        raise InvalidInput(f"cannot be read ({error.strerror})", field=field, value=name) from None


def check_writable(name: str, field: str) -> None:
    """Refuse, before any work is done for it, a file that cannot be written; nothing is written. Raises InvalidInput
    naming the flag `field`."""
    path = Path(name)
    folder = path.parent
    if path.is_dir():
        problem = "is a folder, expected a file"
    elif path.exists():
        problem = "" if os.access(path, os.W_OK) else "cannot be written (no permission)"
    elif not folder.is_dir():
        problem = f"cannot be written: there is no folder {folder}"
    else:
        problem = "" if os.access(folder, os.W_OK | os.X_OK) else f"cannot be written (no permission in {folder})"
    if problem:
        raise InvalidInput(problem, field=field, value=name)


def parse_adapters(given: list[str]) -> dict[str, str] | None:
    """`NAME=FOLDER`, each once; None if none is given."""
    adapters: dict[str, str] = {}
    for item in given:
        name, found, path = item.partition("=")
        if not found or not name or not path:
            raise InvalidInput("expected NAME=FOLDER, such as tuned=out/adapter", field="--adapter", value=item)
        if name in adapters:
            raise InvalidInput("is given twice", field=f"--adapter {name}", value=path)
        adapters[name] = path
    return adapters or None


def parse_settings(given: list[str]) -> dict[str, str]:
    """`ADDRESS.FIELD=V`, each once."""
    settings: dict[str, str] = {}
    for item in given:
        # An address may hold no "=", a value may.
        key, found, value = item.partition("=")
        address, _, name = key.rpartition(".")
        if not found or not address or not name:
            raise InvalidInput(
                "expected ADDRESS.FIELD=V, such as answer[bob,2].max_tokens=64", field="--set", value=item
            )
        if key in settings:
            raise InvalidInput("is given twice", field=f"--set {key}", value=value)
        settings[key] = value
    return settings
