"""`session.chat`: ordinary lists of messages, answered as the model's own template and a dense forward would."""

from __future__ import annotations

import asyncio
import random
import string

import pytest
from api_fakes import error_of, eventually
from chat_rig import Dense, chat_rig, rendered
from scripted_engine import encode

from laban.actors.errors import FailedPrecondition, InvalidInput, NotFound, OutOfRange
from laban.cluster.client import Client
from laban.cluster.records import MessageRecord, TokenChunk

HEADER = "[assistant:]"
TIE = 5e-4  # float32 logits of one model, by another order of operations
WORDS = [string.ascii_letters, string.digits + " ", "?!., "]


def some_text(seeded: random.Random, most: int = 30) -> str:
    return "".join(seeded.choice(seeded.choice(WORDS)) for _ in range(seeded.randint(1, most)))


def test_answers_are_those_of_a_dense_forward_over_the_templates_prompt() -> None:
    seed = random.randrange(2**32)
    seeded, dense = random.Random(seed), Dense()

    async def main() -> None:
        async with chat_rig() as rig, await rig.client.open_session() as session:
            messages = [{"role": "system", "content": some_text(seeded)}]
            past = encode(rendered(messages).removesuffix(HEADER))
            kept = 0
            for turn in range(4):
                messages.append({"role": "user", "content": some_text(seeded)})
                asked = rendered(messages[-1:]).removeprefix("^")
                prompt = [*past, *encode(asked)]
                reply = await session.chat(messages, max_tokens=8)
                why = f"seed {seed}, turn {turn}"
                assert dense.regret(prompt, reply.token_ids) < TIE, why
                assert reply.start + len(HEADER) == len(prompt), why
                assert reply.tokens_read == reply.start, why
                # All that the last turn read, made and closed is there: its question is what is new.
                assert reply.tokens_reused == kept, why
                assert reply.tokens_generated == 8
                kept = reply.start + reply.num_tokens
                past = [*prompt, *reply.token_ids, *encode("|")]
                messages.append({"role": "assistant", "content": reply.text})

    asyncio.run(main())


def test_direct_reads_reuse_messages_in_any_order_and_what_was_generated() -> None:
    async def main() -> None:
        async with chat_rig() as rig, await rig.client.open_session() as session:
            one, two, three = ({"role": "user", "content": text} for text in ("the first", "the second one", "third"))
            first = await session.chat([one, two, three], fidelity="direct", max_tokens=6)
            again = await session.chat([three, one, two], fidelity="direct", max_tokens=6)
            assert (first.tokens_reused, again.tokens_reused) == (0, again.tokens_read)
            said = {"role": "assistant", "content": first.text}
            later = await session.chat([two, said, one], fidelity="direct", max_tokens=6)
            assert later.tokens_reused == later.tokens_read
            assert (await session.chat([two, said, one], max_tokens=6)).tokens_reused < later.tokens_read
            # The same words, put together by the session's own calls.
            placed = await session.generate(view=[first, again, later], fidelity="direct", max_tokens=2)
            assert placed.tokens_reused == placed.tokens_read
            blended = await session.chat([three, two, one], fidelity="blended", recompute_share=0.5, max_tokens=4)
            assert 0 < blended.tokens_reused < blended.tokens_read
            assert await session.release(first) == 1
            forgotten = await session.chat([two, said], fidelity="direct", max_tokens=4)
            assert forgotten.tokens_reused < forgotten.tokens_read

    asyncio.run(main())


def test_chats_stream_and_stop() -> None:
    async def main() -> None:
        async with chat_rig() as rig, await rig.client.open_session() as session:
            asked = [{"role": "user", "content": "go on"}]
            items = [item async for item in session.stream_chat(asked, max_tokens=12, temperature=1.5, seed=3)]
            assert isinstance(items[-1], MessageRecord)
            chunks = [item for item in items if isinstance(item, TokenChunk)]
            assert "".join(chunk.text for chunk in chunks) == items[-1].text
            same = await session.chat(asked, max_tokens=12, temperature=1.5, seed=3)
            assert same.text == items[-1].text
            stream = session.stream_chat(asked, max_tokens=300)
            await anext(stream)
            await stream.aclose()
            await eventually(lambda: not rig.dispatcher.num_outstanding, "the call is aborted")

            def plainly() -> str:
                with Client(rig.client._channel.address) as client, client.open_session() as plain:
                    return plain.chat(asked, max_tokens=12, temperature=1.5, seed=3).text

            assert await asyncio.to_thread(plainly) == same.text

    asyncio.run(main())


@pytest.mark.parametrize(
    ("messages", "kind", "field"),
    [
        ([], InvalidInput, "messages"),
        ([{"role": "tool", "content": "x"}], InvalidInput, "messages[0].role"),
        ([{"role": "user"}], InvalidInput, "messages[0].content"),
        ([{"role": "user", "content": 3}], InvalidInput, "messages[0].content"),
        ([{"role": "user", "content": "x", "tool_calls": "y"}], InvalidInput, "messages[0].tool_calls"),
        (["hello"], InvalidInput, "messages[0]"),
        ([{"role": "user", "content": "x" * 600}], OutOfRange, "messages"),
        ([{"role": "user", "content": "refuse"}], InvalidInput, "messages"),
    ],
)
def test_bad_messages_are_refused_by_name(messages: list, kind: type, field: str) -> None:
    template = "{% if messages[-1].content == 'refuse' %}{{ raise_exception('no') }}{% endif %}" + (
        "^{% for m in messages %}[{{ m.role }}:]{{ m.content }}|{% endfor %}"
        "{% if add_generation_prompt %}[assistant:]{% endif %}"
    )

    async def main() -> None:
        async with chat_rig(template=template) as rig, await rig.client.open_session() as session:
            try:
                found = await error_of(session.chat(messages, max_tokens=4))
            except InvalidInput as error:  # before it is sent
                found = error
            assert (type(found), found.field) == (kind, field)

    asyncio.run(main())


def test_chats_end_with_their_session_and_need_a_template() -> None:
    async def main() -> None:
        async with chat_rig() as rig:
            session = await rig.client.open_session()
            await session.close()
            assert type(await error_of(session.chat([{"role": "user", "content": "x"}]))) is NotFound
            rig.sessions._chats = None
            async with await rig.client.open_session() as session:
                error = await error_of(session.chat([{"role": "user", "content": "x"}]))
                assert type(error) is FailedPrecondition

    asyncio.run(main())
