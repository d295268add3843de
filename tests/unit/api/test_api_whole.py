"""The gateway over the real executor and sessions, whose workers run a scripted engine: client to engine and back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from api_fakes import error_of
from executor_rig import rig

from laban.actors.calls import TokenLogprob
from laban.actors.errors import Conflict, FailedPrecondition, InvalidInput, NotFound, OutOfRange
from laban.cluster.client import AsyncClient, Client
from laban.cluster.gateway import Gateway
from laban.cluster.lookout import Lookout
from laban.cluster.records import Event, Hint, MessageRecord, SessionPlacement, TokenChunk
from laban.cluster.sessions import Sessions
from laban.cluster.workflow.diagnostics import WorkflowErrors
from laban.cluster.workflow.lint import lint
from laban.cluster.workflow.parse import parse_yaml

ROOT = Path(__file__).parents[3]
DEBATE = (ROOT / "examples" / "parallel_debate.yaml").read_text()
EXTERNAL = """\
version: 1
name: ask
messages: {q: "Well?"}
steps:
  - {step: human, external: {}}
  - {step: answer, read: [q, human], sampling: {max_tokens: 8}}
"""


@asynccontextmanager
async def serving() -> AsyncIterator[AsyncClient]:
    async with rig() as made:
        executor, lookout = made.executor, Lookout(made.dispatcher)
        foresight = lookout.foresight
        sessions = Sessions(made.dispatcher, executor.languages.of, hint_taker=foresight, onlooker=foresight)
        lookout.start()
        gateway = Gateway(
            executor,
            sessions,
            lambda: executor.status(sessions_open=sessions.num_open),
            fleet=made.dispatcher.fleet,
        )
        port = await gateway.start()
        client = AsyncClient(f"127.0.0.1:{port}", timeout_s=20)
        try:
            yield client
        finally:
            await client.close()
            await gateway.stop(0)
            await lookout.stop()


def test_a_workflow_runs_and_its_chunks_add_up() -> None:
    async def main() -> None:
        async with serving() as client:
            items = [item async for item in client.run(DEBATE, seed=1)]
            events = [item for item in items if isinstance(item, Event)]
            assert [event.number for event in events] == list(range(1, len(events) + 1))
            assert events[-1].workflow_state == "succeeded"
            record = await client.get(events[0].workflow_id)
            assert record.outputs == events[-1].outputs
            text: dict[str, str] = {}
            for item in items:
                if isinstance(item, TokenChunk):
                    text[item.address] = item.text if item.index == 0 else text[item.address] + item.text
            assert text == {step.address: step.text for step in record.steps}
            assert len(record.steps) == 9
            again = [item async for item in client.watch(record.workflow_id, 3) if isinstance(item, Event)]
            assert again == events[3:]
            page, token = await client.list(states=["succeeded"])
            assert ([found.workflow_id for found in page], token) == ([record.workflow_id], "")

    asyncio.run(main())


def test_log_probabilities_reach_the_result() -> None:
    async def main() -> None:
        async with serving() as client:
            document = f"{EXTERNAL.split('steps:')[0]}steps: [{{step: a, read: [q], sampling: {{logprobs: 2}}}}]\n"
            [step] = (await client.wait((await client.submit(document)).workflow_id)).steps
            assert [told.token_id for told in step.logprobs] == list(step.token_ids)
            assert step.logprobs[3] == TokenLogprob(step.token_ids[3], -3.0, ((0, 0.0), (1, -1.0)))
            async with await client.open_session() as session:
                message = await session.generate(max_tokens=4, logprobs=0)
                assert [told.logprob for told in message.logprobs] == [0.0, -1.0, -2.0, -3.0]
                assert (await session.generate(max_tokens=4)).logprobs == ()

    asyncio.run(main())


def test_an_external_step_is_completed() -> None:
    async def main() -> None:
        async with serving() as client:
            record = await client.submit(EXTERNAL, idempotency_key="k")
            assert (await client.submit(EXTERNAL, idempotency_key="k")).workflow_id == record.workflow_id
            assert type(await error_of(client.submit(DEBATE, idempotency_key="k"))) is Conflict
            workflow_id = record.workflow_id
            assert type(await error_of(client.complete_step(workflow_id, "answer", "x"))) is FailedPrecondition
            assert type(await error_of(client.complete_step(workflow_id, "nobody", "x"))) is NotFound
            await client.complete_step(workflow_id, "human", "Hm.")
            assert type(await error_of(client.fail_step(workflow_id, "human", "no"))) is Conflict
            assert (await client.wait(workflow_id)).state == "succeeded"

    asyncio.run(main())


def test_a_step_is_explained_while_its_decision_is_kept() -> None:
    async def main() -> None:
        async with serving() as client:
            record = await client.submit(EXTERNAL)
            workflow_id = record.workflow_id
            for address, why in (("human", "external step"), ("answer", "not routed yet"), ("nobody", "no such step")):
                error = await error_of(client.explain(workflow_id, address))
                assert type(error) is NotFound
                assert why in error.message
            await client.complete_step(workflow_id, "human", "Hm.")
            step = (await client.wait(workflow_id)).steps[1]
            found = await client.explain(workflow_id, "answer")
            assert (found.workflow_id, found.address, found.decision.attempt) == (workflow_id, "answer", 1)
            [candidate] = found.decision.candidates
            assert candidate.worker_id == found.decision.chosen == step.worker
            assert (found.decision.policy, found.decision.num_workers) == ("cost", 1)
            assert len(candidate.key) == len(found.decision.key_names)
            assert type(await error_of(client.explain("wf-none", "answer"))) is NotFound

    asyncio.run(main())


def test_hints_are_taken() -> None:
    async def main() -> None:
        async with serving() as client, await client.open_session(60) as session:
            first = await session.prefill("one", role="user")
            second = await session.prefill("two", view=[first])
            said = await session.hint("ann", [first, second], steps=2, pin_s=30)
            assert (said.status, said.reason, said.num_reads, said.pin_s, said.ttl_s) == ("accepted", "", 2, 30, 60)
            assert said.num_tokens == first.num_tokens + second.num_tokens
            outcomes = await session.hint_all(
                [
                    Hint("bob", (SessionPlacement(first.message_id), SessionPlacement("m9")), in_s=1.0),
                    Hint("cleo", (SessionPlacement("m9"),)),
                ]
            )
            assert [said.status for said in outcomes] == ["clipped", "ignored"]
            assert (await session.generate(view=[first, second], max_tokens=4)).tokens_generated > 0
            assert await session.release_hints("ann", "cleo") == 1
            assert await session.release_hints() == 1

    asyncio.run(main())


def test_workers_come_and_go() -> None:
    async def main() -> None:
        async with serving() as client:
            [first] = (await client.status()).workers
            assert type(await error_of(client.drain_worker(first.worker_id))) is FailedPrecondition
            assert type(await error_of(client.drain_worker("worker-x"))) is NotFound
            added = await client.add_worker()
            assert added.alive
            assert [worker.alive for worker in (await client.status()).workers] == [True, True]
            items = [item async for item in client.drain_worker(first.worker_id)]
            assert items[-1].done
            [left] = (await client.status()).workers
            assert left.worker_id == added.worker_id
            assert (await client.wait((await client.submit(DEBATE)).workflow_id)).state == "succeeded"

    asyncio.run(main())


def test_bad_inputs_and_overrides() -> None:
    async def main() -> None:
        async with serving() as client:
            for error in (
                await error_of(client.submit(DEBATE, {"questoin": "?"})),
                await error_of(client.submit(DEBATE, {"question": 3})),
                await error_of(client.submit(DEBATE, overrides={"answr.max_tokens": 3})),
            ):
                assert isinstance(error, WorkflowErrors)
            assert type(await error_of(client.watch("wf-none"))) is NotFound
            record = await client.wait((await client.submit(DEBATE, overrides={"answer.max_tokens": "4"})).workflow_id)
            assert {step.tokens_generated for step in record.steps} <= {1, 2, 3, 4}

    asyncio.run(main())


def test_a_session() -> None:
    async def main() -> None:
        async with serving() as client, await client.open_session(60) as session:
            first = await session.prefill("one", role="user")
            second = await session.prefill("two", view=[first])
            items = [item async for item in session.decode(view=[second, first], fidelity="direct", max_tokens=6)]
            assert isinstance(items[-1], MessageRecord)
            assert "".join(item.text for item in items[:-1] if isinstance(item, TokenChunk)) == items[-1].text
            assert (await client.status()).sessions_open == 1
            error = await error_of(session.prefill("x", view=[first, SessionPlacement(first.message_id, 10**6)]))
            assert type(error) is OutOfRange
            assert error.field == "view.placements[1].position"
            error = await error_of(session.prefill(token_ids=[1, 10**8]))
            assert type(error) is InvalidInput
            assert error.field == "token_ids.ids[1]"
            error = await error_of(session.prefill("x", view=["m99"]))
            assert type(error) is NotFound
            assert error.field == "view.placements[0].message_id"
            with pytest.raises(NotFound):
                await session.release("m99")
            assert await session.release() == 3

    asyncio.run(main())


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page of the documentation."""
    parts = (ROOT / page).read_text().split(f"```{language}\n")[1:]
    return [part.split("```")[0] for part in parts]


def test_the_readme_shows_what_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with serving() as client:
            [flow, loop], [program] = blocks("README.md", "yaml"), blocks("README.md", "python")
            assert lint(parse_yaml(flow)).diagnostics == ()
            around = "version: 1\nname: fix\nmessages: {task: a, plan: b}\nagents: {executor: c, reviewer: d}\nsteps:\n"
            assert lint(parse_yaml(around + loop)).ok
            (tmp_path / "flow.yaml").write_text(flow)
            monkeypatch.chdir(tmp_path)
            assert "127.0.0.1:8470" in program
            await asyncio.to_thread(exec, program.replace("127.0.0.1:8470", client._channel.address), {})
            [record], _ = await client.list(states=["succeeded"])
            assert record.name == "two_opinions"

    asyncio.run(main())


def test_the_api_page_shows_what_works(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with serving() as client:
            workflows, session, tools, constrained, hints = blocks("docs/api.md", "python")
            compile(constrained, "docs/api.md", "exec")  # the scripted engine generates what it likes
            monkeypatch.chdir(ROOT)
            assert "localhost:8470" in workflows
            await asyncio.to_thread(exec, workflows.replace("localhost:8470", client._channel.address), {})
            with Client(client._channel.address) as sync:
                await asyncio.to_thread(exec, session, {"client": sync})
                await asyncio.to_thread(exec, hints, {"client": sync})
            stop = threading.Event()
            loop = asyncio.to_thread(exec, tools.replace("localhost:8470", client._channel.address), {"stop": stop})
            ending = asyncio.create_task(loop)
            step = "{step: find, external: {tool: report}, read: [q]}"
            record = await client.submit(f'version: 1\nname: x\nmessages: {{q: "?"}}\nsteps: [{step}]\n')
            assert (await client.wait(record.workflow_id)).steps[0].text == "1 messages were read"
            stop.set()
            await ending

    asyncio.run(main())
