"""What HTTP adds to a chat's first token.

    .venv/bin/python benchmarks/http_added.py [--quick] [--json]      about a minute

The engine takes no time. The same chat is asked by turns over gRPC, in a session (`session`), over HTTP by a plain
client (`http`) and by the `openai` package (`openai`), each from before the request until its first token is here.
Connections are kept, as clients keep them. `added` is the difference of medians from the session's; what the `openai`
package itself takes to make a request and read events is in `added.openai` alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import aclosing
from socket import create_server
from statistics import median, quantiles
from typing import Any

import httpx2
from gateway import PROMPT, serving
from openai import AsyncOpenAI
from report import Clock, Report, Row, add_arguments, finish, new_report

from laban.cluster.client_async_session import AsyncSession
from laban.cluster.config import LabanConfig, MetricsSection, ServerSection
from laban.cluster.http.section import HttpSection
from laban.cluster.launch import _end_ray, _start_ray
from laban.cluster.records import TokenChunk

ADDED_MS = 5.0
WARM_UP = 10
MESSAGES: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]


async def of_session(session: AsyncSession) -> float:
    began_s, first_s = time.perf_counter(), 0.0
    async with aclosing(session.stream_chat(MESSAGES, max_tokens=4)) as items:
        async for item in items:
            if isinstance(item, TokenChunk) and not first_s:
                first_s = time.perf_counter()
    return 1000 * (first_s - began_s)


async def of_http(client: httpx2.AsyncClient, asked: dict[str, Any]) -> float:
    began_s, first_s = time.perf_counter(), 0.0
    async with client.stream("POST", "/chat/completions", json=asked) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not first_s and line.startswith("data: {") and _text_in(line):
                first_s = time.perf_counter()
    return 1000 * (first_s - began_s)


def _text_in(line: str) -> str:
    [choice] = json.loads(line.removeprefix("data: "))["choices"]
    return str(choice["delta"].get("content") or "")


async def of_openai(client: AsyncOpenAI, asked: dict[str, Any]) -> float:
    began_s, first_s = time.perf_counter(), 0.0
    async for chunk in await client.chat.completions.create(**asked):
        if not first_s and chunk.choices[0].delta.content:
            first_s = time.perf_counter()
    return 1000 * (first_s - began_s)


async def first_tokens(config: LabanConfig, repetitions: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {"session": [], "http": [], "openai": []}
    url = f"http://127.0.0.1:{config.http.port}/v1"
    asked = {"model": "instant", "messages": MESSAGES, "max_tokens": 4, "temperature": 0, "stream": True}
    async with (
        serving(config) as served,
        await served.client.open_session() as session,
        httpx2.AsyncClient(base_url=url, timeout=60) as plain,
        AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        for repetition in range(repetitions + WARM_UP):
            one = {
                "session": await of_session(session),
                "http": await of_http(plain, asked),
                "openai": await of_openai(client, asked),
            }
            for name, value in one.items():
                if repetition >= WARM_UP:
                    times[name].append(value)
    return times


def rows_of(times: dict[str, list[float]]) -> list[Row]:
    rows = []
    for name, values in times.items():
        rows.append(Row(f"ttft.{name}", median(values), "ms", better="lower"))
        rows.append(Row(f"ttft.{name}.p95", quantiles(values, n=20)[-1], "ms", better="lower"))
    base = median(times["session"])
    rows.append(Row("added.http", median(times["http"]) - base, "ms", ADDED_MS, "lower"))
    rows.append(Row("added.openai", median(times["openai"]) - base, "ms", better="lower"))
    return rows


def free_port() -> int:
    with create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


async def measure(report: Report, args: argparse.Namespace, clock: Clock) -> None:
    config = LabanConfig(
        server=ServerSection(port=0),
        http=HttpSection(port=free_port()),
        metrics=MetricsSection(port=None),
    )
    clock.say("first tokens")
    report.rows += rows_of(await first_tokens(config, args.repetitions))
    report.save_partial()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What HTTP costs.")
    add_arguments(parser)
    parser.add_argument("--repetitions", type=int, help="chats each way: 300, or 20 of a quick run")
    args = parser.parse_args(arguments)
    args.repetitions = args.repetitions or (20 if args.quick else 300)
    clock = Clock()
    report = new_report("http", args)
    owns_ray = _start_ray(LabanConfig(), lambda doing, share: clock.say(doing))
    try:
        asyncio.run(measure(report, args, clock))
    finally:
        _end_ray(owns_ray)
    finish(report, args, clock)


if __name__ == "__main__":
    main()
