"""Chats over a random small model or a scripted engine, in the test's own event loop; a character is a token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from engine_harness import byte_tokenizer, make_engine
from engine_reference import VOCAB_SIZE, random_model
from executor_rig import FAST
from openai import AsyncOpenAI
from scripted_engine import CharFraming, CharTokenizer, LoopSupervisor, LoopWorker, ScriptedEngine, decode, encode

from laban.actors.chat_template import ChatTemplate
from laban.actors.frames import name_line
from laban.cluster.chat_prompts import ChatPrompts
from laban.cluster.chats import Chats
from laban.cluster.client import AsyncClient
from laban.cluster.dispatch import Dispatcher
from laban.cluster.executor import Executor
from laban.cluster.gateway import Gateway, GatewayLimits
from laban.cluster.http.server import HttpServer
from laban.cluster.sessions import Sessions

TEMPLATE = """^{% if tools %}[system:]TOOLS {{ tools | tojson }}|{% endif %}{% for m in messages %}\
[{{ m.role }}:]{{ m.content }}{% for call in m.tool_calls or [] %}\
<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}|{% endfor %}\
{% if add_generation_prompt %}[assistant:]{% endif %}"""


class ChatTokenizer(CharTokenizer):
    """Spells what is not printable as the engine's does, so that generated text has other tokens when it comes back."""

    vocab_size = VOCAB_SIZE

    def __init__(self) -> None:
        self._backend = byte_tokenizer()

    def decode(self, ids: Sequence[int]) -> str:
        return self._backend.decode(ids)

    def is_special(self, token_id: int) -> bool:
        return token_id in encode("[^")


class ChatFraming(CharFraming):
    """As TEMPLATE has it, without tools. No answer ends before its time."""

    stop_token_ids = ()

    def root_text(self, first_role: str) -> str:
        return decode(self.root(first_role))

    def message_text(self, role: str, text: str, name: str | None = None, *, first: bool = False) -> str:
        return f"{self.header_text(role, name)}{text}|"

    def header_text(self, role: str, name: str | None = None, *, first: bool = False) -> str:
        return f"[{role}:]{name_line(name)}"


def make_prompts(template: str = TEMPLATE) -> ChatPrompts:
    return ChatPrompts(ChatFraming(), ChatTokenizer(), ChatTemplate(template, {}))


@dataclass
class ChatRig:
    worker: LoopWorker
    dispatcher: Dispatcher
    executor: Executor
    chats: Chats
    sessions: Sessions
    client: AsyncClient
    server: HttpServer
    port: int
    clients: list[AsyncOpenAI] = field(default_factory=list)

    @property
    def model(self) -> str:
        return self.chats.model

    def openai(self, **options: Any) -> AsyncOpenAI:
        """A client that tries once."""
        given = {"base_url": f"http://127.0.0.1:{self.port}/v1", "api_key": "none", "max_retries": 0} | options
        self.clients.append(AsyncOpenAI(**given))
        return self.clients[-1]

    async def ask(self, head: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and body of a request that no client would make."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        size = f"Content-Length: {len(body)}\r\n" if "Content-Length" not in head else ""
        writer.write(f"{head}\r\nHost: x\r\nConnection: close\r\n{size}\r\n".encode() + body)
        async with asyncio.timeout(30):
            answer = await reader.read()
        writer.close()
        top, _, rest = answer.partition(b"\r\n\r\n")
        return int(top.split()[1]), rest


@asynccontextmanager
async def chat_rig(
    *, scripted: bool = False, template: str = TEMPLATE, limits: GatewayLimits | None = None, **options: Any
) -> AsyncIterator[ChatRig]:
    """Over a real engine of a small model, unless it is `scripted`. `options` are the HTTP server's."""
    engine: Any = ScriptedEngine() if scripted else make_engine(pool_tokens=16_384)
    worker = LoopWorker(engine)
    dispatcher = Dispatcher([worker], supervisor=LoopSupervisor(), limits=FAST)
    executor = Executor(dispatcher, ChatFraming(), ChatTokenizer())
    chats = Chats(dispatcher, executor.languages.of, make_prompts(template), next_rank=executor.intake.next_rank)
    sessions = Sessions(dispatcher, executor.languages.of, chats=chats)
    executor.start()
    gateway = Gateway(executor, sessions, executor.status)
    client = AsyncClient(f"127.0.0.1:{await gateway.start()}", timeout_s=60)
    server = HttpServer(chats, limits, **options)
    made = ChatRig(worker, dispatcher, executor, chats, sessions, client, server, await server.start())
    try:
        yield made
        async with asyncio.timeout(10):
            while dispatcher.num_outstanding:
                await asyncio.sleep(0.01)
    finally:
        await client.close()
        for each in made.clients:
            await each.close()
        await server.stop(0)
        await gateway.stop(0)
        await executor.stop()


class Dense:
    """The same model, each prompt from its beginning: what `exact` is compared with."""

    def __init__(self) -> None:
        self._model = random_model("llama", 0).eval()

    def regret(self, prompt: Sequence[int], token_ids: Sequence[int]) -> float:
        """By how much, at most, a generated token is less likely than the best one: near 0 for a greedy answer."""
        with torch.no_grad():
            logits = self._model(torch.tensor([[*prompt, *token_ids]])).logits[0, len(prompt) - 1 : -1].float()
        chosen = logits.gather(1, torch.tensor(list(token_ids))[:, None])[:, 0]
        return float((logits.max(dim=1).values - chosen).max())


def rendered(messages: Sequence[dict[str, Any]], tools: Sequence[Any] = (), template: str = TEMPLATE) -> str:
    return ChatTemplate(template, {}).render_messages(messages, tools or None, add_generation_prompt=True)
