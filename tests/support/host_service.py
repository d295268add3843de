"""A service for hosts to run in tests."""

from __future__ import annotations

import asyncio

from laban.actors.errors import InvalidInput


class Service:
    """Starts at once, or refuses."""

    def __init__(self, word: str) -> None:
        self.word = word

    async def start(self) -> str:
        if self.word == "refuse":
            raise InvalidInput("expected another word", field="word", value=self.word)
        await asyncio.sleep(0)
        return f"address-of-{self.word}"

    async def stop(self) -> None:
        await asyncio.sleep(0)
