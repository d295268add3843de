"""Calls written down as they end, one JSON object a line, and read again to be replayed.

Neither text nor tokens are written, and of a namespace only a digest. Lines are made and written in a thread of their
own; nothing waits for it. When writing fails, as on a full disk, recording stops and everything else goes on.
"""

from __future__ import annotations

import json
import logging
import math
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any, TextIO, get_args, get_type_hints

from laban.actors.calls import Call, CallFinished
from laban.actors.errors import InvalidInput, NotFound
from laban.kvstore.encodings import EncodingId, flatten
from laban.kvstore.uses import Use

logger = logging.getLogger(__name__)

VERSION = 1
BEGINNING = b'{"version":'  # of each line
CHUNK_BYTES = 64 << 10
MAX_QUEUED = 10_000
"""Calls that wait to be written; more are left out, and counted."""


@dataclass(frozen=True, slots=True)
class RecordedRead:
    """Tokens [begin, end) of an encoding of `num_tokens`, the first of them at `position` in the call's view."""

    encoding_id: str
    num_tokens: int
    position: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class RecordedUse:
    """What was known of an encoding's next use after this call when the call was ordered: see kvstore/uses.py."""

    encoding_id: str
    steps: int
    in_s: float
    likelihood: float
    fixed: bool


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """A call, when it had ended. Times of day are seconds since the epoch, durations milliseconds.

    `waited_ms` was before it was sent to `worker`, `ttft_ms` from then to its first token, `wall_ms` to its end.
    `encoding_id` is what it made, of `num_tokens` given and `num_generated` more. `error` is the name of a status,
    "" if it succeeded; one that failed has made nothing.
    """

    ordered_at: float
    source: str  # the workflow or session
    address: str  # the step, or the session's message
    attempt: int
    rank: int
    namespace: str  # a digest
    reads: tuple[RecordedRead, ...]  # the whole view, in order
    start: int
    num_tokens: int
    num_generated: int
    encoding_id: str
    worker: str
    waited_ms: float
    ttft_ms: float
    wall_ms: float
    tokens_read: int
    tokens_reused: int
    tokens_loaded: int
    tokens_encoded: int
    uses: tuple[RecordedUse, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class EndedCall:
    """What the dispatcher knows of a call that ended."""

    call: Call
    ordered_at: float
    attempt: int
    worker: str
    waited_ms: float
    uses: Mapping[EncodingId, Use]
    end: CallFinished | str  # or the name of the status that it failed with

    def record(self) -> RecordedCall:
        call, end = self.call, self.end
        specs = {spec.encoding_id: spec for spec in call.specs}
        source, _, address = call.call_id.partition("/")
        done = end if isinstance(end, CallFinished) else None
        return RecordedCall(
            ordered_at=self.ordered_at,
            source=source,
            address=address,
            attempt=self.attempt,
            rank=call.rank,
            namespace=blake2b(call.namespace.encode(), digest_size=8).hexdigest(),
            reads=tuple(
                RecordedRead(p.encoding_id, specs[p.encoding_id].num_tokens, p.position, p.begin, p.end)
                for p in flatten(call.view, specs)
            ),
            start=call.start,
            num_tokens=len(call.tokens),
            num_generated=0 if done is None else done.encoding.num_tokens - len(call.tokens),
            encoding_id="" if done is None else done.encoding.encoding_id,
            worker=self.worker,
            waited_ms=self.waited_ms,
            ttft_ms=0.0 if done is None else done.ttft_ms,
            wall_ms=0.0 if done is None else done.wall_ms,
            tokens_read=0 if done is None else done.tokens_read,
            tokens_reused=0 if done is None else done.tokens_reused,
            tokens_loaded=0 if done is None else done.tokens_loaded,
            tokens_encoded=0 if done is None else done.tokens_encoded,
            uses=tuple(
                RecordedUse(encoding_id, use.steps, use.in_s, use.likelihood, use.fixed)
                for encoding_id, use in self.uses.items()
            ),
            error="" if done is not None else str(end),
        )


class Recorder:
    """Appends to a file. `put` from one thread; `close` waits for what was put, for up to `timeout_s`."""

    def __init__(self, path: str, *, open_file: Callable[[str], TextIO] | None = None) -> None:
        """Raises InvalidInput for a file that cannot be written."""
        try:
            if open_file is None and Path(path).is_file():
                _drop_cut_line(path)
            self._file = open(path, "a", encoding="utf-8") if open_file is None else open_file(path)  # noqa: SIM115
        except OSError as error:
            raise InvalidInput(f"cannot be written: {error.strerror}", field="routing.record", value=path) from None
        self._path = path
        self._queue: queue.Queue[EndedCall | None] = queue.Queue(MAX_QUEUED)
        self._stopped = False
        self.num_left_out = 0
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def put(self, ended: EndedCall) -> None:
        """Does not wait, raises nothing."""
        if self._stopped:
            return
        try:
            self._queue.put_nowait(ended)
        except queue.Full:
            self.num_left_out += 1

    def close(self, timeout_s: float = 5.0) -> None:
        """Idempotent, raises nothing."""
        if not self._stopped:
            self._stopped = True
            try:
                self._queue.put(None, timeout=timeout_s)
            except queue.Full:
                logger.warning("calls are not all recorded in %s: writing is too slow", self._path)
            if self.num_left_out:
                logger.warning("%d calls came too fast to be recorded in %s", self.num_left_out, self._path)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            with self._file:
                while (ended := self._queue.get()) is not None:
                    self._file.write(line_of(ended.record()) + "\n")
                    if self._queue.empty():
                        self._file.flush()
        except Exception as error:
            self._stopped = True
            logger.error("calls are recorded no more in %s: %s", self._path, error)
            while not self._queue.empty():
                self._queue.get_nowait()


def _drop_cut_line(path: str) -> None:
    """Whoever recorded here before may have died within a line, or had no room for it: what comes behind it would be a
    part of that line. What is none of ours stays."""
    with open(path, "r+b") as file:
        at = file.seek(0, 2)
        tail = b""
        while at and b"\n" not in tail:
            begin = max(0, at - CHUNK_BYTES)
            file.seek(begin)
            tail, at = file.read(at - begin) + tail, begin
        cut = tail.rpartition(b"\n")[2]
        if cut and cut[: len(BEGINNING)] == BEGINNING[: len(cut)]:
            file.truncate(at + len(tail) - len(cut))


def line_of(call: RecordedCall) -> str:
    """Reads are lists, in the order of RecordedRead's fields; so are uses."""
    plain: dict[str, Any] = {"version": VERSION, **asdict(call)}
    plain["reads"] = [list(each.values()) for each in plain["reads"]]
    plain["uses"] = [list(each.values()) for each in plain["uses"]]
    return json.dumps(plain, separators=(",", ":"))


def read_calls(path: str | Path) -> Iterator[RecordedCall]:
    """The calls of a file, in the order they ended. A last line that was cut off is left out.

    Raises NotFound for no such file, InvalidInput, naming the line and the field, for one that is none of these.
    """
    try:
        file = open(path, encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise NotFound(f"cannot be read: {error.strerror}", field="recording", value=str(path)) from None
    with file:
        for number, line in enumerate(file, 1):
            where = f"line {number}"
            if not line.endswith("\n"):
                return  # its writer ended within it
            try:
                plain = json.loads(line)
            except ValueError as error:
                raise InvalidInput(f"is not JSON: {error}", field=where) from None
            if not isinstance(plain, dict):
                raise InvalidInput("expected an object", field=where, value=plain)
            if plain.pop("version", None) != VERSION:
                raise InvalidInput(f"expected {VERSION}", field=f"{where}: version")
            yield _parsed(RecordedCall, plain, f"{where}: ")


def _parsed(kind: type, plain: Mapping[str, object], path: str) -> Any:
    hints = get_type_hints(kind)
    known = {field.name for field in fields(kind)}
    for name in plain.keys() - known:
        raise InvalidInput("no such field", field=path + name)
    values = {}
    for name in known:
        if name not in plain:
            raise InvalidInput("is missing", field=path + name)
        values[name] = _value(hints[name], plain[name], path + name)
    return kind(**values)


def _value(kind: Any, value: object, path: str) -> object:
    if kind in (str, bool) and type(value) is kind:
        return value
    if kind is int and type(value) is int and value >= 0:
        return value
    if kind is float and type(value) in (int, float) and math.isfinite(value):  # type: ignore[arg-type]
        return float(value)  # type: ignore[arg-type]
    if get_args(kind) and isinstance(value, list):
        return tuple(_row(get_args(kind)[0], each, f"{path}[{at}]") for at, each in enumerate(value))
    names = {str: "text", bool: "true or false", int: "a whole number, 0 or more", float: "a number"}
    raise InvalidInput(f"expected {names.get(kind, 'a list')}", field=path, value=value)


def _row(kind: type, value: object, path: str) -> object:
    names = [field.name for field in fields(kind)]
    if not isinstance(value, list) or len(value) != len(names):
        raise InvalidInput(f"expected a list of {', '.join(names)}", field=path, value=value)
    return _parsed(kind, dict(zip(names, value, strict=True)), f"{path}.")
