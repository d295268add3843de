"""The file of one encoding: a header, then chunks of tokens, each with a checksum of its own.

    magic, version, length of the text | the header as JSON text | CRC-32 of all before
    CRC-32, bytes of the first chunk | CRC-32, bytes of the next | ...

A chunk's checksum begins from the header's and the chunk's number, so one that belongs elsewhere is damage too. What
comes before a damaged chunk is good.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laban.kvstore.encodings import EncodingId

MAGIC = b"LABAN-KV"
VERSION = 1
CHUNK_TOKENS = 256

_START = struct.Struct("<8sII")
_CRC = struct.Struct("<I")
_MOST_TEXT = 1 << 16

Chunk = NDArray[Any]


class Damaged(Exception):
    """The file is ours and not as it was written."""


class NotOurs(Exception):
    """The file does not begin as ours do."""


@dataclass(frozen=True, slots=True)
class ChunkLayout:
    """What a chunk is as an array: `dtype` as numpy names it, and `shape`, in which -1 stands for the tokens.

    `part` says which of an encoding's heads are in it: as "0/2" the first half; "" all.
    """

    dtype: str
    shape: tuple[int, ...]
    part: str = ""

    def __post_init__(self) -> None:
        if self.shape.count(-1) != 1 or any(size < 1 for size in self.shape if size != -1):
            raise ValueError(f"shape is {self.shape}, expected one -1, for the tokens, and else 1 or more")

    @property
    def bytes_per_token(self) -> int:
        return -math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def of(self, num_tokens: int) -> tuple[int, ...]:
        return tuple(num_tokens if size == -1 else size for size in self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    encoding_id: EncodingId
    namespace: str
    num_tokens: int
    bytes_per_token: int
    dtype: str
    shape: tuple[int, ...]
    chunk_tokens: int = CHUNK_TOKENS
    part: str = ""

    @property
    def layout(self) -> ChunkLayout:
        return ChunkLayout(self.dtype, self.shape, self.part)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """(begin, end) of the tokens of each."""
        for begin in range(0, self.num_tokens, self.chunk_tokens):
            yield begin, min(begin + self.chunk_tokens, self.num_tokens)

    def encoded(self) -> bytes:
        return self._start() + _CRC.pack(self.crc)

    @property
    def crc(self) -> int:
        return zlib.crc32(self._start())

    def _start(self) -> bytes:
        text = json.dumps(asdict(self)).encode()
        return _START.pack(MAGIC, VERSION, len(text)) + text

    @property
    def file_bytes(self) -> int:
        num_chunks = -(-self.num_tokens // self.chunk_tokens)
        return len(self.encoded()) + num_chunks * _CRC.size + self.num_tokens * self.bytes_per_token


def begins_as_ours(start: bytes) -> bool:
    """Whether a file that begins so, and perhaps ends there, may be one of ours."""
    return start[: len(MAGIC)] == MAGIC[: len(start)]


def read_header(fd: int) -> Header:
    """Leaves `fd` at the first chunk. Raises Damaged, NotOurs or OSError."""
    start = _read(fd, _START.size)
    if not begins_as_ours(start):
        raise NotOurs("not a file of ours")
    if len(start) < _START.size:
        raise Damaged("the header is cut off")
    _, version, length = _START.unpack(start)
    if version != VERSION or length > _MOST_TEXT:
        raise Damaged(f"version {version}, expected {VERSION}")
    text, crc = _read(fd, length), _read(fd, _CRC.size)
    if crc != _CRC.pack(zlib.crc32(start + text)):
        raise Damaged("the header's checksum is wrong")
    try:
        fields = json.loads(text)
        header = Header(**{**fields, "shape": tuple(fields["shape"])})
        if header.layout.bytes_per_token != header.bytes_per_token or min(header.num_tokens, header.chunk_tokens) < 1:
            raise ValueError(text)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise Damaged("the header makes no sense") from error
    return header


def write_chunk(fd: int, header: Header, number: int, chunk: Chunk) -> None:
    """Raises OSError, and ValueError for a chunk of another shape or type."""
    begin = number * header.chunk_tokens
    expected = header.layout.of(min(header.chunk_tokens, header.num_tokens - begin))
    if chunk.shape != expected or chunk.dtype != np.dtype(header.dtype):
        raise ValueError(f"chunk {number} is {chunk.dtype} {chunk.shape}, expected {header.dtype} {expected}")
    data = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data
    write_all(fd, memoryview(_CRC.pack(_checksum(header, number, data))))
    write_all(fd, data)


def read_chunk(fd: int, header: Header, number: int, into: Chunk) -> None:
    """The next chunk. Raises Damaged or OSError."""
    stored = _read(fd, _CRC.size)
    data = into.reshape(-1).view(np.uint8).data
    at = 0
    while at < len(data):
        count = os.readv(fd, [data[at:]])
        if count == 0:
            raise Damaged(f"chunk {number} is cut off")
        at += count
    if stored != _CRC.pack(_checksum(header, number, data)):
        raise Damaged(f"the checksum of chunk {number} is wrong")


def write_all(fd: int, data: memoryview | bytes) -> None:
    data = memoryview(data)
    while data:
        data = data[os.write(fd, data) :]


def _checksum(header: Header, number: int, data: memoryview) -> int:
    """2.4 GB/s on one core, without Python's lock: a disk is slower."""
    return zlib.crc32(data, zlib.crc32(struct.pack("<I", number), header.crc))


def _read(fd: int, count: int) -> bytes:
    """Fewer at the end of the file."""
    parts = []
    while count and (part := os.read(fd, count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
