"""The endpoints: chat completions, models, health."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from laban.actors.errors import Cancelled, LabanError, Unavailable
from laban.cluster.callers import caller
from laban.cluster.chat_prompts import ChatPrompts
from laban.cluster.chats import ChatAsk, ChatBegun, ChatItem
from laban.cluster.http.answers import Answer, error_event
from laban.cluster.http.errors import Refused, error_body, error_response
from laban.cluster.http.exchange import STOPPING, Exchange, Exchanges, incident_of
from laban.cluster.http.fields import read_object
from laban.cluster.http.requests import Completion, no_such_model, read_completion
from laban.cluster.http.tool_formats import ToolFormat, format_of
from laban.cluster.records import MessageRecord, TokenChunk

LARGE_BODY_BYTES = 64 << 10  # read in a thread


class ChatsPort(Protocol):
    """`cluster.chats.Chats`, which says what it does and raises."""

    @property
    def models(self) -> Mapping[str, int]: ...
    def prompts(self, model: str) -> ChatPrompts: ...
    def reply(self, ask: ChatAsk, *, tenant: str = "") -> AsyncGenerator[ChatItem, None]: ...


class OpenAiApi:
    def __init__(self, chats: ChatsPort, exchanges: Exchanges, why_not_ready: Callable[[], str]) -> None:
        """`why_not_ready` gives "" if the server is."""
        self._chats, self._why_not_ready = chats, why_not_ready
        self._exchanges = exchanges
        self._created = int(time.time())
        self._formats = {model: _format_of(chats.prompts(model)) for model in chats.models}
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", exchanges.app("Chat", self._complete), methods=["POST"]),
                Route("/v1/models", exchanges.app("Models", self._models), methods=["GET"]),
                Route("/v1/models/{model:path}", exchanges.app("Models", self._model), methods=["GET"]),
                Route("/health", self._health, methods=["GET"]),
            ],
            exception_handlers={HTTPException: _no_route},
        )

    async def _models(self, exchange: Exchange) -> Response:
        return JSONResponse({"object": "list", "data": [self._described(model) for model in self._chats.models]})

    async def _model(self, exchange: Exchange) -> Response:
        asked = exchange.request.path_params["model"]
        if asked not in self._chats.models:
            raise no_such_model(asked, self._chats.models)
        return JSONResponse(self._described(asked))

    def _described(self, model: str) -> dict[str, Any]:
        found = {"id": model, "object": "model", "created": self._created, "owned_by": "laban"}
        return {**found, "max_model_len": self._chats.models[model]}

    async def _health(self, request: Request) -> Response:
        why = STOPPING if self._exchanges.closing else self._why_not_ready()
        return JSONResponse({"status": why or "ok"}, 503 if why else 200)

    async def _complete(self, exchange: Exchange) -> Response | None:
        body = await exchange.body()
        large = len(body) > LARGE_BODY_BYTES
        asked = await asyncio.to_thread(self._read, body) if large else self._read(body)
        model = asked.ask.model
        answer = Answer(asked, model, self._chats.prompts(model).tokenizer.decode)
        if not asked.stream:
            return JSONResponse(await exchange.while_there(self._whole(asked, answer)))
        await exchange.while_there(self._streamed(exchange, asked, answer))
        return None

    def _read(self, body: bytes) -> Completion:
        return read_completion(read_object(body), forms=self._formats, fidelity=caller().fidelity)

    async def _whole(self, asked: Completion, answer: Answer) -> dict[str, Any]:
        async with aclosing(self._items(asked)) as items:
            async for item in items:
                if isinstance(item, ChatBegun):
                    answer.prompt_tokens = item.prompt_tokens
                elif isinstance(item, MessageRecord):
                    return answer.completion(item)
        raise LabanError("the answer did not come")

    async def _streamed(self, exchange: Exchange, asked: Completion, answer: Answer) -> None:
        """What goes wrong before the first token is an error like any other; after that, an event of the stream."""
        try:
            async with aclosing(self._items(asked)) as items:
                async for item in items:
                    if isinstance(item, ChatBegun):
                        answer.prompt_tokens = item.prompt_tokens
                        continue
                    opening = b""
                    if not exchange.begun:
                        await _begin(exchange)
                        opening = answer.first()
                    events = answer.more(item) if isinstance(item, TokenChunk) else answer.last(item)
                    if sent := opening + b"".join(events):
                        await _send(exchange, sent)
            await exchange.send({"type": "http.response.body", "body": b"", "more_body": False})
        except asyncio.CancelledError:
            if not exchange.begun or not self._exchanges.closing:
                raise
            await _fail(exchange, Unavailable(STOPPING))
        except LabanError as error:
            if not exchange.begun or isinstance(error, Cancelled):
                raise
            await _fail(exchange, error)
        except Exception as error:
            if not exchange.begun:
                raise
            await _fail(exchange, incident_of(error))

    async def _items(self, asked: Completion) -> AsyncGenerator[ChatItem, None]:
        """Raises LabanError of DEADLINE_EXCEEDED once the request's own time is over."""
        loop = asyncio.get_running_loop()
        end_s = None if asked.timeout_s is None else loop.time() + asked.timeout_s
        async with aclosing(self._chats.reply(asked.ask, tenant=caller().tenant)) as items:
            while True:
                try:
                    async with asyncio.timeout_at(end_s):
                        item = await anext(items, None)
                except TimeoutError:
                    why = "the answer took longer than was asked for"
                    late = LabanError(why, field="laban.timeout_s", value=asked.timeout_s)
                    late.status = "DEADLINE_EXCEEDED"
                    raise late from None
                if item is None:
                    return
                yield item


def _format_of(prompts: ChatPrompts) -> ToolFormat | None:
    return format_of(prompts.template_text) if prompts.takes_tools else None


async def _begin(exchange: Exchange) -> None:
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
    headers.append((b"x-accel-buffering", b"no"))
    exchange.begun = True
    await exchange.send({"type": "http.response.start", "status": 200, "headers": headers})


async def _send(exchange: Exchange, data: bytes) -> None:
    # Waits while the client does not read: nothing piles up here.
    await exchange.send({"type": "http.response.body", "body": data, "more_body": True})


async def _fail(exchange: Exchange, error: LabanError) -> None:
    exchange.code = error.status
    data = error_event(error_body(error))
    await exchange.send({"type": "http.response.body", "body": data, "more_body": False})


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = {404: "no such path", 405: "the path is there, but not for this method"}.get(error.status_code, error.detail)
    where = f"{request.method} {request.url.path[:200]}"
    refused = Refused(what, field="", value=where, http_status=error.status_code, code="unknown_url")
    response = error_response(refused)
    response.headers.update(error.headers or {})  # Allow, of a method that is not served (RFC 9110, 15.5.6)
    return response
