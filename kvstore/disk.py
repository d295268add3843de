"""The disk tier: a file for each encoding in a folder of one worker's own, within a budget of bytes.

A file is written under another name and renamed, so what has its name is whole, unless the machine lost power: nothing
is flushed, since checksums find damage and a lost file costs an encoding, not a call. Files are the user's alone.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from laban.kvstore.arrivals import Arrival
from laban.kvstore.disk_files import (
    CHUNK_TOKENS,
    Chunk,
    ChunkLayout,
    Damaged,
    Header,
    NotOurs,
    read_chunk,
    read_header,
    write_all,
    write_chunk,
)
from laban.kvstore.disk_folder import NAME, PARTIAL, SUFFIX, lock_folder, scan, unlink
from laban.kvstore.encodings import EncodingId

logger = logging.getLogger(__name__)

PAUSE_S = 60.0


class _CallerFailed(Exception):
    """Whoever gives or takes the chunks raised something."""


class DiskWrite(Arrival):
    """An encoding on its way to the disk. It is held once this has ended without a problem."""


@dataclass(slots=True)
class _File:
    header: Header
    num_bytes: int
    num_readers: int = 0
    dropped: bool = False


class DiskTier:
    """Encodings in files. What goes when the budget is spent is the caller's decision: `save` never evicts.

    Methods may be called by any thread and do not wait for the disk, but for the names of files. Bytes count from
    before they are written until they are off the disk, also those of a dropped file that is still being read.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        namespace_prefix: str,
        layout: ChunkLayout,
        *,
        write_threads: int = 1,
        read_threads: int = 1,
        chunk_tokens: int = CHUNK_TOKENS,
        clock: Callable[[], float] = time.monotonic,
        pause_s: float = PAUSE_S,
    ) -> None:
        """Takes the files that are whole, of that layout and of namespaces that begin so, and deletes others of ours.

        After an OSError nothing is written for `pause_s`. Raises FolderInUse, and OSError for a folder that cannot be.
        """
        self.folder, self.max_bytes, self.layout = folder, max_bytes, layout
        self.namespace_prefix = namespace_prefix
        self._chunk_tokens, self._clock, self._pause_s = chunk_tokens, clock, pause_s
        self._lock = threading.Lock()
        self._files: dict[EncodingId, _File] = {}
        self._writing: dict[EncodingId, DiskWrite] = {}
        self._used_bytes = 0
        self._stuck_bytes = 0  # of these, in files that could not be deleted
        self._paused_until = float("-inf")
        self._failing = False
        self._closed = False
        self._lock_fd = lock_folder(folder)
        self._scan()
        self._writers = ThreadPoolExecutor(write_threads, "disk-writes")
        self._readers = ThreadPoolExecutor(read_threads, "disk-reads")

    def __contains__(self, encoding_id: object) -> bool:
        return encoding_id in self._files

    @property
    def used_bytes(self) -> int:
        return self._used_bytes

    def held(self) -> Mapping[EncodingId, tuple[int, int, str]]:
        """(num_tokens, num_bytes, namespace) of each encoding that can be loaded."""
        with self._lock:
            return {
                key: (file.header.num_tokens, file.num_bytes, file.header.namespace)
                for key, file in self._files.items()
            }

    def bytes_for(self, encoding_id: EncodingId, namespace: str, num_tokens: int) -> int:
        """That its file takes of the budget."""
        return self._header(encoding_id, namespace, num_tokens).file_bytes

    @property
    def pause_s(self) -> float:
        """How long nothing is written after an OSError."""
        return self._pause_s

    @property
    def writes_paused(self) -> bool:
        return self._clock() < self._paused_until

    def save(
        self, encoding_id: EncodingId, namespace: str, num_tokens: int, read_chunk: Callable[[int, int], Chunk]
    ) -> DiskWrite:
        """Writes it, in a thread that calls `read_chunk(begin, end)` for tokens [begin, end), in order.

        What is held, or on its way, is not written again. Without room, or while writes are paused, it ends at once
        with a problem. Raises ValueError for an id that no file can be named by, or a foreign namespace.
        """
        header = self._header(encoding_id, namespace, num_tokens)
        write = DiskWrite(num_tokens, self._clock)
        with self._lock:
            if encoding_id in self._writing and not self._writing[encoding_id].cancelled:
                return self._writing[encoding_id]
            if encoding_id in self._files:
                write.advance(num_tokens, 0)
                write.end(stuck_bytes=self._stuck_bytes)
            elif (refusal := self._refusal(encoding_id, header.file_bytes)) is not None:
                write.end(refusal, pauses=self.writes_paused, stuck_bytes=self._stuck_bytes)
            else:
                self._used_bytes += header.file_bytes
                self._writing[encoding_id] = write
                self._writers.submit(self._write, write, header, read_chunk)
        return write

    def _refusal(self, encoding_id: EncodingId, num_bytes: int) -> str | None:
        if self._closed:
            return "the disk tier is closed"
        if encoding_id in self._writing:
            return "a write of it is being cancelled"
        if self.writes_paused:
            return f"writes to {self.folder} are paused after an error"
        if self._used_bytes + num_bytes > self.max_bytes:
            return f"{num_bytes} bytes do not fit: {self._used_bytes} of {self.max_bytes} are taken"
        return None

    def load(self, encoding_id: EncodingId, write_chunk: Callable[[int, int, Chunk], None]) -> Arrival:
        """Reads it in a thread, which calls `write_chunk(begin, end, chunk)` in order; `chunk` is valid during it.

        A damaged file ends it with a problem and the tokens before the damage, and is dropped.
        """
        with self._lock:
            file = self._files.get(encoding_id)
            arrival = Arrival(0 if file is None else file.header.num_tokens, self._clock)
            if file is None or self._closed:
                arrival.end("the disk tier is closed" if self._closed else f"encoding {encoding_id} is not on the disk")
                return arrival
            file.num_readers += 1
            self._readers.submit(self._load, arrival, file, write_chunk)
        return arrival

    def drop(self, encoding_id: EncodingId) -> None:
        """Deletes it, and cancels the write of it, if there is either."""
        with self._lock:
            if encoding_id in self._writing:
                self._writing[encoding_id].cancel()
            self._drop(encoding_id)

    def close(self) -> None:
        """Cancels what is under way, waits for it, and lets another worker have the folder."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for write in self._writing.values():
                write.cancel()
        self._writers.shutdown()
        self._readers.shutdown()
        os.close(self._lock_fd)

    def _header(self, encoding_id: EncodingId, namespace: str, num_tokens: int) -> Header:
        if not NAME.fullmatch(encoding_id):
            raise ValueError(f"encoding id {encoding_id!r} cannot name a file")
        if not namespace.startswith(self.namespace_prefix):
            raise ValueError(f"namespace {namespace!r} does not begin with {self.namespace_prefix!r}")
        if num_tokens < 1:
            raise ValueError(f"num_tokens is {num_tokens}, expected 1 or more")
        layout = self.layout
        return Header(
            encoding_id,
            namespace,
            num_tokens,
            layout.bytes_per_token,
            layout.dtype,
            layout.shape,
            self._chunk_tokens,
            layout.part,
        )

    def _path(self, encoding_id: EncodingId) -> Path:
        return self.folder / f"{encoding_id}{SUFFIX}"

    def _write(self, write: DiskWrite, header: Header, read: Callable[[int, int], Chunk]) -> None:
        path = self._path(header.encoding_id)
        temporary = path.with_name(f"{path.name}{PARTIAL}")
        problem: str | None = None
        kept = False
        try:
            write.begin()
            if self.writes_paused:
                raise _CallerFailed(f"writes to {self.folder} are paused after an error")
            if not write.cancelled:
                self._write_file(write, header, read, temporary)
                kept = self._keep(write, header, temporary, path)
            problem = None if kept else "cancelled"
        except OSError as error:
            problem = f"{path}: {error.strerror or error}"
            self._pause(problem)
        except Exception as error:
            problem = str(error)
        finally:
            with self._lock:
                if not kept:
                    self._deleted(header.file_bytes, is_gone=unlink(temporary))
                del self._writing[header.encoding_id]
                stuck_bytes = self._stuck_bytes
            write.end(problem, pauses=problem is not None and self.writes_paused, stuck_bytes=stuck_bytes)

    def _keep(self, write: DiskWrite, header: Header, temporary: Path, path: Path) -> bool:
        """Gives the file its name, unless the write was cancelled. Never over one that is there: it is not ours."""
        with self._lock:
            if write.cancelled:
                return False
            if os.path.lexists(path):
                raise _CallerFailed(f"{path} is there already, and not a file of ours")
            temporary.rename(path)
            self._files[header.encoding_id] = _File(header, header.file_bytes)
            self._failing = False
            return True

    def _write_file(self, write: DiskWrite, header: Header, read: Callable[[int, int], Chunk], temporary: Path) -> None:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            write_all(fd, header.encoded())
            for number, (begin, end) in enumerate(header.chunks()):
                if write.cancelled:
                    return
                try:
                    chunk = read(begin, end)
                except Exception as error:
                    raise _CallerFailed(f"{type(error).__name__}: {error}") from error
                write_chunk(fd, header, number, chunk)
                write.advance(end, (end - begin) * header.bytes_per_token)
        finally:
            os.close(fd)

    def _pause(self, problem: str) -> None:
        """Nothing is written for a while. Said once, until a write succeeds."""
        self._paused_until = self._clock() + self._pause_s
        if not self._failing:
            logger.warning("no encodings are written to disk for %.0f s at a time: %s", self._pause_s, problem)
        self._failing = True

    def _load(self, arrival: Arrival, file: _File, write: Callable[[int, int, Chunk], None]) -> None:
        problem: str | None = None
        encoding_id = file.header.encoding_id
        try:
            arrival.begin()
            problem = self._load_file(arrival, file.header, write)
        except (Damaged, NotOurs, OSError) as error:
            problem = f"{self._path(encoding_id)}: {_why(error)}"
            with self._lock:
                if self._files.get(encoding_id) is file:
                    is_gone = isinstance(error, FileNotFoundError)
                    what = "forgot a file that is gone" if is_gone else "dropped a damaged file"
                    logger.warning("%s: %s", what, problem)
                    self._drop(encoding_id, delete=not isinstance(error, NotOurs))
        except Exception as error:
            problem = str(error)
        finally:
            with self._lock:
                file.num_readers -= 1
                if file.dropped and file.num_readers == 0:
                    self._used_bytes -= file.num_bytes
            arrival.end(problem)

    def _load_file(self, arrival: Arrival, header: Header, write: Callable[[int, int, Chunk], None]) -> str | None:
        fd = os.open(self._path(header.encoding_id), os.O_RDONLY | os.O_NOFOLLOW)
        try:
            if read_header(fd) != header:
                raise Damaged("the header is another one's")
            room = np.empty(header.layout.of(min(header.chunk_tokens, header.num_tokens)), header.dtype)
            for number, (begin, end) in enumerate(header.chunks()):
                if arrival.cancelled or self._closed:
                    return "cancelled"
                chunk = room.reshape(-1)[: (end - begin) * header.bytes_per_token // room.itemsize]
                chunk = chunk.reshape(header.layout.of(end - begin))
                read_chunk(fd, header, number, chunk)
                try:
                    write(begin, end, chunk)
                except Exception as error:
                    raise _CallerFailed(f"{type(error).__name__}: {error}") from error
                arrival.advance(end, (end - begin) * header.bytes_per_token)
        finally:
            os.close(fd)
        return None

    def _drop(self, encoding_id: EncodingId, *, delete: bool = True) -> None:
        file = self._files.pop(encoding_id, None)
        if file is None:
            return
        file.dropped = not delete or unlink(self._path(encoding_id))
        if not file.dropped or file.num_readers == 0:
            self._deleted(file.num_bytes, is_gone=file.dropped)

    def _deleted(self, num_bytes: int, *, is_gone: bool) -> None:
        if is_gone:
            self._used_bytes -= num_bytes
        else:
            self._stuck_bytes += num_bytes

    def _scan(self) -> None:
        """What is there from before, the newest first as far as the budget goes."""
        for path, header in scan(self.folder, self.layout, self.namespace_prefix):
            if self._used_bytes + header.file_bytes > self.max_bytes:
                unlink(path)
                continue
            self._files[header.encoding_id] = _File(header, header.file_bytes)
            self._used_bytes += header.file_bytes


def _why(error: Exception) -> str:
    """Without the file's name, which the system's own text repeats."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
