"""The endpoint as the `openai` package drives it."""

from __future__ import annotations

import asyncio
import random
import runpy
from pathlib import Path
from typing import Any

import openai
import pytest
from api_fakes import eventually
from chat_rig import Dense, chat_rig, rendered
from scripted_engine import encode

ROOT = Path(__file__).parents[3]
TIE = 5e-4
HI = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi there"}]


def token_of(spelled: str) -> int:
    return ord(spelled) if len(spelled) == 1 else int(spelled[1:-1])


def test_a_completion_is_what_a_dense_forward_gives_and_later_turns_find_it() -> None:
    async def main() -> None:
        async with chat_rig() as rig:
            client = rig.openai()
            made = await client.chat.completions.create(
                model=rig.model, messages=HI, temperature=0, max_tokens=9, logprobs=True, top_logprobs=2
            )
            [choice] = made.choices
            told = choice.logprobs.content
            prompt = encode(rendered(HI))
            assert Dense().regret(prompt, [token_of(each.token) for each in told]) < TIE
            assert "".join(each.token for each in told) == choice.message.content
            assert all(each.top_logprobs[0].logprob == each.logprob for each in told)
            assert (choice.finish_reason, choice.message.role, made.object) == (
                "length",
                "assistant",
                "chat.completion",
            )
            usage = made.usage
            assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (
                len(prompt),
                9,
                len(prompt) + 9,
            )
            assert usage.prompt_tokens_details.cached_tokens == 0
            assert made.laban["tokens_encoded"] >= len(prompt)
            again = [*HI, {"role": "assistant", "content": choice.message.content}, {"role": "user", "content": "more"}]
            later = await client.chat.completions.create(model=rig.model, messages=again, temperature=0, max_tokens=3)
            read = made.laban["tokens_read"]
            assert later.usage.prompt_tokens_details.cached_tokens == read + len("[assistant:]") + 9 + len("|")

    asyncio.run(main())


def test_streams_add_up_and_say_what_they_took() -> None:
    async def main() -> None:
        async with chat_rig() as rig:
            client = rig.openai()
            asked: dict[str, Any] = {
                "model": rig.model,
                "messages": HI,
                "temperature": 1.3,
                "seed": 5,
                "max_tokens": 12,
            }
            whole = await client.chat.completions.create(**asked)
            stream = await client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
            chunks = [chunk async for chunk in stream]
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            assert text == whole.choices[0].message.content
            assert chunks[0].choices[0].delta.role == "assistant"
            assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
            assert next(c.usage for c in chunks if c.usage).completion_tokens == 12
            assert len({chunk.id for chunk in chunks}) == 1
            async with client.chat.completions.stream(**asked, logprobs=True) as helper:
                kinds = [event.type async for event in helper]
                with pytest.raises(openai.LengthFinishReasonError):  # it was cut off
                    await helper.get_final_completion()
                final = helper.current_completion_snapshot
            assert final.choices[0].message.content == text
            assert {"chunk", "content.delta", "content.done"} <= set(kinds)
            assert len(final.choices[0].logprobs.content) == 12
            other = await client.chat.completions.create(**{**asked, "seed": 6})
            unseeded = [await client.chat.completions.create(**{**asked, "seed": None}) for _ in range(3)]
            assert len({made.choices[0].message.content for made in (whole, other, *unseeded)}) > 1

    asyncio.run(main())


def test_reuse_beyond_the_prefix_is_chosen_by_request() -> None:
    async def main() -> None:
        async with chat_rig() as rig:
            client = rig.openai()
            one, two = ({"role": "user", "content": text} for text in ("the first", "and a second"))

            async def cached(messages: list[dict[str, str]], **own: Any) -> tuple[int, int]:
                made = await client.chat.completions.create(
                    model=rig.model, messages=messages, max_tokens=2, extra_body={"laban": own} if own else None
                )
                assert made.laban["fidelity"] == own.get("fidelity", "exact")
                return made.usage.prompt_tokens_details.cached_tokens, made.laban["tokens_read"]

            assert (await cached([one, two]))[0] == 0
            assert (await cached([two, one]))[0] == len("^[user:]")  # the root, and with what both begin
            await cached([one, two], fidelity="direct")
            found, read = await cached([two, one], fidelity="direct")
            assert found == read
            found, read = await cached([two, one, one], fidelity="blended", recompute_share=0.2)
            assert read / 2 < found < read  # nobody has read `one` there before

    asyncio.run(main())


def test_errors_are_the_clients_own_classes() -> None:
    async def main() -> None:
        async with chat_rig() as rig:
            client = rig.openai()

            async def error(**changes: Any) -> openai.APIStatusError:
                with pytest.raises(openai.APIStatusError) as raised:
                    await client.chat.completions.create(
                        **{"model": rig.model, "messages": HI, "max_tokens": 2} | changes
                    )
                assert raised.value.body["message"]
                return raised.value

            for changes, param in (
                ({"messages": []}, "messages"),
                ({"messages": [{"role": "judge", "content": "x"}]}, "messages[0].role"),
                ({"messages": [{"role": "user"}]}, "messages[0].content"),
                ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
                 "messages[0].content[0].type"),
                ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
                ({"temperature": 3}, "temperature"),
                ({"top_p": 0}, "top_p"),
                ({"max_tokens": 0}, "max_tokens"),
                ({"n": 2}, "n"),
                ({"n": True}, "n"),
                ({"top_logprobs": 3}, "top_logprobs"),
                ({"stop": ["a", ""]}, "stop[1]"),
                ({"logit_bias": {"5": 1}}, "logit_bias"),
                ({"presence_penalty": 0.5}, "presence_penalty"),
                ({"reasoning_effort": "low"}, "reasoning_effort"),
                ({"extra_body": {"best_of": 3}}, "best_of"),
                ({"extra_body": {"laban": {"fidelity": "perfect"}}}, "laban.fidelity"),
                ({"response_format": {"type": "yaml"}}, "response_format.type"),
                ({"response_format": {"type": "regex", "pattern": "a+"}}, "response_format.type"),
                ({"tools": [{"type": "web"}]}, "tools[0].type"),
                ({"tool_choice": "required"}, "tool_choice"),
            ):  # fmt: skip
                found = await error(**changes)
                assert (type(found), found.param) == (openai.BadRequestError, param), (changes, found)
            found = await error(messages=[{"role": "user", "content": "x" * 600}])
            assert (type(found), found.code) == (openai.BadRequestError, "context_length_exceeded")
            found = await error(model="gpt-9")
            assert (type(found), found.code, found.param) == (openai.NotFoundError, "model_not_found", "model")
            ignored = {"user": "ann", "metadata": {"a": "b"}, "store": False, "n": 1, "logit_bias": {}, "stop": None}
            made = await client.chat.completions.create(model=rig.model, messages=HI, max_tokens=2, **ignored)
            assert made.usage.completion_tokens == 2

    asyncio.run(main())


def test_models_and_health() -> None:
    why = ""

    async def main() -> None:
        nonlocal why
        async with chat_rig(scripted=True, why_not_ready=lambda: why) as rig:
            client = rig.openai()
            assert [model.id async for model in client.models.list()] == [rig.model]
            assert (await client.models.retrieve(rig.model)).owned_by == "laban"
            with pytest.raises(openai.NotFoundError):
                await client.models.retrieve("gpt-9")
            assert await rig.ask("GET /health HTTP/1.1") == (200, b'{"status":"ok"}')
            why = "no worker is up"
            assert (await rig.ask("GET /health HTTP/1.1"))[0] == 503
            status, body = await rig.ask("GET /v2/x HTTP/1.1")
            assert status == 404
            assert b'"code":"unknown_url"' in body
            with pytest.raises(openai.APIStatusError) as caught:
                await client.get("/chat/completions", cast_to=object)
            assert (caught.value.status_code, caught.value.response.headers["allow"]) == (405, "POST")

    asyncio.run(main())


def test_a_client_that_leaves_ends_its_call() -> None:
    async def main() -> None:
        async with chat_rig() as rig:
            client = rig.openai()
            asked: dict[str, Any] = {"model": rig.model, "messages": HI, "max_tokens": 400}
            stream = await client.chat.completions.create(**asked, stream=True)
            await anext(aiter(stream))
            rig.worker.paused = True  # nothing ends by itself
            await stream.close()
            await eventually(lambda: len(rig.worker.aborted) == 1, "the call is aborted")
            waiting = asyncio.create_task(client.chat.completions.create(**asked))
            await eventually(lambda: rig.dispatcher.num_outstanding == 1, "the call is there")
            waiting.cancel()
            await eventually(lambda: len(rig.worker.aborted) == 2, "the call is aborted")
            with pytest.raises(openai.InternalServerError) as raised:
                await client.chat.completions.create(**asked, extra_body={"laban": {"timeout_s": 0.05}})
            assert (raised.value.status_code, raised.value.param) == (504, "laban.timeout_s")
            await eventually(lambda: len(rig.worker.aborted) == 3, "the call is aborted")
            rig.worker.resume()

    asyncio.run(main())


def test_many_at_once_get_their_own_answers() -> None:
    seed = random.randrange(2**32)

    async def main() -> None:
        async with chat_rig(scripted=True) as rig:
            client = rig.openai()

            async def one(number: int) -> str | None:
                made = await client.chat.completions.create(
                    model=rig.model, messages=[*HI, {"role": "user", "content": f"{number} {seed}"}], seed=seed
                )
                return made.choices[0].message.content

            first = await asyncio.gather(*(one(number) for number in range(24)))
            assert await asyncio.gather(*(one(number) for number in range(24))) == first

    asyncio.run(main())


def test_the_page_and_the_example_show_what_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        async with chat_rig(scripted=True) as rig:
            url = f"http://127.0.0.1:{rig.port}/v1"
            page = (ROOT / "docs" / "openai.md").read_text()
            program = page.split("```python\n")[1].split("```")[0]
            assert "http://127.0.0.1:8471/v1" in program
            await asyncio.to_thread(exec, program.replace("http://127.0.0.1:8471/v1", url), {})
            assert "tokens were reused" in capsys.readouterr().out
            monkeypatch.setattr("sys.argv", ["openai_client.py", "--url", url, "--fidelity", "direct", "--rounds", "2"])
            await asyncio.to_thread(runpy.run_path, str(ROOT / "examples" / "openai_client.py"), run_name="__main__")
            [last] = capsys.readouterr().out.strip().splitlines()[-1:]
            found = [int(word) for word in last.split() if word.isdigit()]
            assert 0 < found[0] < found[1]

    asyncio.run(main())
