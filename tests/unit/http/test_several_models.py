"""Sessions, chats and OpenAI's API over two models, each with its own template."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from chat_rig import ChatFraming, ChatTokenizer
from openai import AsyncOpenAI, NotFoundError
from scripted_engine import decode
from two_models import AngleFraming, Two, two_models

from laban.actors.chat_template import ChatTemplate
from laban.actors.errors import InvalidInput
from laban.cluster.chat_prompts import ChatPrompts
from laban.cluster.chats import Chats
from laban.cluster.client import AsyncClient
from laban.cluster.gateway import Gateway
from laban.cluster.http.server import HttpServer
from laban.cluster.sessions import Sessions
from laban.kvstore.encodings import flatten

SQUARE = """^{% for m in messages %}[{{ m.role }}:]{{ m.content }}|{% endfor %}\
{% if add_generation_prompt %}[assistant:]{% endif %}"""
ANGLE = """${% for m in messages %}<{{ m.role }}:>{{ m.content }};{% endfor %}\
{% if add_generation_prompt %}<assistant:>{% endif %}"""
TALK = [{"role": "user", "content": "Why?"}]


class AngleChatFraming(AngleFraming):
    def root_text(self, first_role: str) -> str:
        return decode(self.root(first_role))

    def message_text(self, role: str, text: str, name: str | None = None, *, first: bool = False) -> str:
        return decode(self.message(role, text))

    def header_text(self, role: str, name: str | None = None, *, first: bool = False) -> str:
        return decode(self.header(role))


class AngleTokenizer(ChatTokenizer):
    def is_special(self, token_id: int) -> bool:
        return token_id in map(ord, "<$")


@dataclass
class Rig:
    two: Two
    client: AsyncClient
    openai: AsyncOpenAI

    def seen(self, worker_id: str) -> str:
        """The prompt of the last call there."""
        call = self.two.workers[worker_id].engine.calls[-1]
        specs = {spec.encoding_id: spec for spec in call.specs}
        return "".join(decode(specs[each.encoding_id].tokens) for each in flatten(call.view, specs)) + decode(
            call.tokens
        )


@asynccontextmanager
async def rig() -> AsyncIterator[Rig]:
    async with two_models() as two:
        executor, dispatcher = two.executor, two.dispatcher
        square = ChatPrompts(ChatFraming(), ChatTokenizer(), ChatTemplate(SQUARE, {}))
        angle = ChatPrompts(AngleChatFraming(), AngleTokenizer(), ChatTemplate(ANGLE, {}))
        chats = Chats(dispatcher, executor.languages.of, square, others={"two": angle})
        gateway = Gateway(executor, Sessions(dispatcher, executor.languages.of, chats=chats), executor.status)
        client = AsyncClient(f"127.0.0.1:{await gateway.start()}", timeout_s=60)
        server = HttpServer(chats)
        url = f"http://127.0.0.1:{await server.start()}/v1"
        openai = AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
        try:
            yield Rig(two, client, openai)
        finally:
            await openai.close()
            await client.close()
            await server.stop(0)
            await gateway.stop(0)


def test_openais_api_lists_the_models_and_a_request_chooses_one() -> None:
    async def main() -> None:
        async with rig() as r:
            listed = [(each.id, each.max_model_len) async for each in await r.openai.models.list()]  # type: ignore[attr-defined]
            assert listed == [("one", 2000), ("two", 2000)]
            assert (await r.openai.models.retrieve("two")).id == "two"
            for model, worker, prompt in (
                ("one", "w0", "^[user:]Why?|[assistant:]"),
                ("two", "w1", "$<user:>Why?;<assistant:>"),
            ):
                done = await r.openai.chat.completions.create(model=model, messages=TALK)  # type: ignore[arg-type]
                assert done.model == model
                assert r.seen(worker) == prompt
                said = done.choices[0].message.content or ""
                more = [*TALK, {"role": "assistant", "content": said}, {"role": "user", "content": "So?"}]
                again = await r.openai.chat.completions.create(model=model, messages=more)  # type: ignore[arg-type]
                assert again.usage is not None
                assert again.usage.prompt_tokens_details is not None
                assert again.usage.prompt_tokens_details.cached_tokens >= len(prompt + said)
            with pytest.raises(NotFoundError) as caught:
                await r.openai.chat.completions.create(model="three", messages=TALK)  # type: ignore[arg-type]
            assert caught.value.code == "model_not_found"
            assert "expected one or two" in str(caught.value)
            with pytest.raises(NotFoundError):
                await r.openai.models.retrieve("three")

    asyncio.run(main())


def test_a_session_calls_the_model_that_it_was_opened_with() -> None:
    async def main() -> None:
        async with rig() as r:
            async with await r.client.open_session(model="two") as session:
                message = await session.prefill("Why?")
                answer = await session.generate(view=[message], max_tokens=5)
                assert answer.worker == "w1"
                assert r.seen("w1") == "$<user:>Why?;<assistant:>"
                told = await session.generate(view=[message], forced_text="so")
                assert told.text == "so"
                assert (await session.get()).model == "two"
                await session.chat([{"role": "user", "content": "And?"}], max_tokens=5)
                assert r.seen("w1") == "$<user:>And?;<assistant:>"
            async with await r.client.open_session() as session:
                assert (await session.get()).model == "one"
                await session.chat([{"role": "user", "content": "And?"}], max_tokens=5)
                assert r.seen("w0") == "^[user:]And?|[assistant:]"
            with pytest.raises(InvalidInput, match="model: no such model is served, expected one of one, two"):
                await r.client.open_session(model="three")

    asyncio.run(main())


def test_the_status_names_every_model() -> None:
    async def main() -> None:
        async with rig() as r:
            status = await r.client.status()
            assert status.ready
            assert [(each.name, each.workers, each.workers_up) for each in status.models] == [
                ("one", 1, 1),
                ("two", 1, 1),
            ]
            assert [(each.worker_id, each.model) for each in status.workers] == [("w0", "one"), ("w1", "two")]
            r.two.dispatcher._lives._supervisor = None
            r.two.workers["w1"].kill()
            async with asyncio.timeout(10):
                while (status := await r.client.status()).ready:
                    await asyncio.sleep(0.01)
            assert [each.name for each in status.models if not each.workers_up] == ["two"]

    asyncio.run(main())
