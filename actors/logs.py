"""Logs of a process: lines of text or of JSON, with the ids of workflow, step, worker and trace where
they are known.

Who logs says them by `extra=about(workflow=...)`. No text of a message is ever logged.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

Level = Literal["debug", "info", "warning", "error"]

FIELDS = ("workflow", "step", "worker")
_KEY = "laban_about"


@dataclass(frozen=True, slots=True)
class LogSettings:
    format: Literal["text", "json"] = "text"
    level: Level = "info"  # of what this package says; of others' libraries warnings and errors are told


def about(*, workflow: str = "", step: str = "", worker: str = "") -> Mapping[str, object]:
    """What a line is about, for `extra`."""
    given = {"workflow": workflow, "step": step, "worker": worker}
    return {_KEY: {name: value for name, value in given.items() if value}}


TraceOf = Callable[[str], str]


def set_up_logs(settings: LogSettings, *, worker: str = "", trace_of: TraceOf = lambda workflow: "") -> None:
    """Of this process, to stderr. `worker` goes with every line that names none. `trace_of` gives the id of a
    workflow's trace, or for "" of what is being done; "" where there is none."""
    handler = logging.StreamHandler()
    handler.setFormatter((_Json if settings.format == "json" else _Text)(worker, trace_of))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("laban").setLevel(settings.level.upper())


class _Text(logging.Formatter):
    def __init__(self, worker: str, trace_of: TraceOf) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._worker, self._trace_of = worker, trace_of

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = _fields(record, self._worker, self._trace_of)
        return super().formatMessage(record) + "".join(f" {name}={value}" for name, value in fields.items())


class _Json(logging.Formatter):
    def __init__(self, worker: str, trace_of: TraceOf) -> None:
        super().__init__()
        self._worker, self._trace_of = worker, trace_of

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record, self._worker, self._trace_of),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def _fields(record: logging.LogRecord, worker: str, trace_of: TraceOf) -> dict[str, str]:
    found: dict[str, str] = getattr(record, _KEY, {})
    trace = trace_of(found.get("workflow", ""))
    return {**({"worker": worker} if worker else {}), **found, **({"trace": trace} if trace else {})}
