"""The sending side of transfers without threads."""

from __future__ import annotations

from typing import Any

from laban.actors.engine.engine import Engine
from laban.actors.transfers import Export, ExportRequest


class Loop:
    """ExportPort over an engine that nobody else steps."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def info(self) -> Any:
        return self.engine.info

    def export(self, request: ExportRequest) -> None:
        self.engine.export(request)
        while not request.reply.done():
            self.engine.step()

    def end_export(self, export: Export) -> None:
        self.engine.end_export(export)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s
