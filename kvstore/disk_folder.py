"""The folder of a disk tier: one owner at a time, and what of it is ours and good."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import stat
from pathlib import Path

from laban.kvstore.disk_files import MAGIC, ChunkLayout, Damaged, Header, NotOurs, begins_as_ours, read_header

logger = logging.getLogger(__name__)

LOCK_NAME = "laban-kv.lock"
SUFFIX, PARTIAL = ".kv", ".part"
NAME = re.compile(r"[0-9A-Za-z_-]{1,128}")
_FILE = re.compile(rf"({NAME.pattern})\{SUFFIX}(\{PARTIAL})?")


class FolderInUse(Exception):
    """Another worker has the folder."""


def lock_folder(folder: Path) -> int:
    """A descriptor that keeps others out while it is open, however the process ends. Raises FolderInUse or OSError."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if isinstance(error, BlockingIOError):
            raise FolderInUse(f"{folder} is another worker's: each needs a folder of its own") from error
        raise
    return fd


def scan(folder: Path, layout: ChunkLayout, namespace_prefix: str) -> list[tuple[Path, Header]]:
    """The files that are whole, of that layout and of namespaces that begin so, newest first. Deletes others of ours.

    A file is ours by its name and by how it begins; what is not stays as it is.
    """
    found = []
    for entry in list(os.scandir(folder)):
        status = entry.stat(follow_symlinks=False)
        match = _FILE.fullmatch(entry.name)
        if match is None or not stat.S_ISREG(status.st_mode):
            continue
        path = Path(entry.path)
        try:
            header = _take(path, status.st_size, match[1], half_written=match[2] is not None)
            if header.layout != layout or not header.namespace.startswith(namespace_prefix):
                raise Damaged(f"it is of {header.namespace}, {header.layout}")
        except NotOurs:
            logger.warning("%s is not a file of ours, and stays as it is", path)
        except (Damaged, OSError) as error:
            logger.info("%s is deleted: %s", path, error)
            unlink(path)
        else:
            found.append((status.st_mtime_ns, path, header))
    return [(path, header) for _, path, header in sorted(found, key=lambda each: each[0], reverse=True)]


def clear(folder: Path) -> None:
    """Deletes the files of ours in a folder that no worker has any more; in one that a worker has, nothing."""
    if not folder.is_dir():
        return
    try:
        fd = lock_folder(folder)
    except (FolderInUse, OSError) as error:
        logger.info("%s stays as it is: %s", folder, error)
        return
    try:
        for entry in list(os.scandir(folder)):
            if _FILE.fullmatch(entry.name) and entry.is_file(follow_symlinks=False) and _is_ours(Path(entry.path)):
                unlink(Path(entry.path))
    finally:
        os.close(fd)


def _is_ours(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return begins_as_ours(os.read(fd, len(MAGIC)))
    except OSError:
        return False
    finally:
        os.close(fd)


def _take(path: Path, size: int, encoding_id: str, *, half_written: bool) -> Header:
    """The header of a file that is whole but for damage within its chunks. Raises Damaged, NotOurs or OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        if half_written:
            raise Damaged("half written") if begins_as_ours(os.read(fd, len(MAGIC))) else NotOurs("not a file of ours")
        header = read_header(fd)
    finally:
        os.close(fd)
    if header.encoding_id != encoding_id or header.file_bytes != size:
        raise Damaged(f"{size} bytes of {header.encoding_id}, expected {header.file_bytes} of {encoding_id}")
    return header


def unlink(path: Path) -> bool:
    """Whether it is gone."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s cannot be deleted: %s", path, error)
        return False
    return True
