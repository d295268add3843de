"""The folder that a worker keeps encodings in on disk."""

from __future__ import annotations

import tempfile
from pathlib import Path

from laban.actors.errors import InvalidInput


def prepare_disk_folder(folder: str) -> None:
    """Make it if need be, and see that files can be made in it. Raises InvalidInput if they cannot.

    Nothing is written: a disk that is full may be free again when there is something to keep.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        why = getattr(error, "strerror", None) or error
        raise InvalidInput(
            f"no files can be made there ({why}), expected a folder to keep encodings in",
            field="cache.disk_folder",
            value=folder,
        ) from None
