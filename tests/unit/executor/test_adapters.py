"""Steps with adapters: each call reads what its own adapter encodes, and names are checked when a workflow comes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from executor_rig import FAST, results
from executor_workflows import asynchronous
from scripted_engine import CharFraming, CharTokenizer, LoopWorker, decode
from two_models import AngleFraming, scripted

from laban.actors.calls import Sampling
from laban.actors.errors import InvalidInput
from laban.cluster.chats import Chats
from laban.cluster.dispatch import Dispatcher
from laban.cluster.executor import Executor
from laban.cluster.lookout import Lookout
from laban.cluster.messages import Language, MessageBook, Voice
from laban.cluster.records import SessionPlacement
from laban.cluster.sessions import Sessions
from laban.cluster.workflow.diagnostics import WorkflowErrors
from laban.cluster.workflow.models import unknown_adapters
from laban.cluster.workflow.parse import parse_yaml
from laban.kvstore.encodings import adapter_of, flatten

DEBATE = """
version: 1
name: debate
fidelity: FIDELITY
adapter: wide
messages: {task: Add two and two.}
agents:
  ann: You are Ann.
  bob: {prompt: You are Bob., adapter: other}
  eve: {prompt: You are Eve., adapter: none}
steps:
- {step: alpha, agent: ann, read: [task]}
- {step: beta, agent: bob, read: [task, alpha]}
- {step: gamma, agent: eve, read: [task, beta, alpha]}
- {step: delta, agent: eve, adapter: wide, read: [alpha, gamma, task]}
- {step: epsilon, agent: bob, read: [beta, delta]}
"""


@asynccontextmanager
async def served() -> AsyncIterator[Any]:
    """Models `one`, with adapters, and `two`, with one of its own."""
    workers = {name: LoopWorker(scripted(name, f"w-{name}")) for name in ("one", "two")}
    dispatcher = Dispatcher(list(workers.values()), limits=FAST, default_model="one")
    lookout = Lookout(dispatcher)
    voices = {
        "one": Voice(CharFraming(), CharTokenizer(), {"wide": "aa", "other": "bb"}),
        "two": Voice(AngleFraming(), CharTokenizer(), {"small": "cc"}),
    }
    executor = Executor(dispatcher, CharFraming(), CharTokenizer(), lookout=lookout, voices=voices)
    executor.start()

    async def run(yaml: str) -> Any:
        record = await executor.intake.submit(parse_yaml(yaml), {})
        async for _ in executor.watch(record.workflow_id):
            pass
        return executor.get(record.workflow_id)

    try:
        yield SimpleNamespace(run=run, dispatcher=dispatcher, calls=workers["one"].engine.calls, executor=executor)
    finally:
        await executor.stop()


@pytest.mark.parametrize("fidelity", ["exact", "direct", "blended"])
@asynchronous
async def test_a_call_reads_only_what_its_own_adapter_encodes(fidelity: str) -> None:
    async with served() as rig:
        record = await rig.run(DEBATE.replace("FIDELITY", fidelity))
        assert record.state == "succeeded", record.error
        steps = results(record)
        said = {name: step.adapter for name, step in steps.items()}
        assert said == {"alpha": "wide", "beta": "other", "gamma": "", "delta": "wide", "epsilon": "other"}
        found = {}
        for call in rig.calls:
            name = call.call_id.split("/")[1].partition("#")[0]
            own = adapter_of(call.namespace)
            assert {adapter_of(spec.namespace) for spec in call.specs} <= {own}
            specs = {spec.encoding_id: spec for spec in call.specs}
            texts = "".join(decode(specs[p.encoding_id].tokens[p.begin : p.end]) for p in flatten(call.view, specs))
            found[name] = own, texts
        assert [own for own, _ in found.values()] == ["aa", "bb", "", "aa", "bb"]
        assert found["gamma"][1].count("[assistant:]") == 2
        for name, other in (("beta", "alpha"), ("gamma", "beta"), ("delta", "gamma"), ("epsilon", "delta")):
            assert steps[other].text in found[name][1]


@asynchronous
async def test_direct_reads_are_encoded_once_an_adapter() -> None:
    yaml = """
version: 1
name: twice
fidelity: direct
adapter: wide
messages: {task: Add two and two.}
steps:
- {step: draft, read: [task]}
- {step: early, adapter: other, read: [draft, task]}
- {step: late, adapter: other, read: [task, early, draft]}
- {step: own, read: [task, draft]}
"""
    async with served() as rig:
        steps = results(await rig.run(yaml))
        for name in ("late", "own"):
            assert steps[name].tokens_read == steps[name].tokens_reused


@pytest.mark.parametrize(
    ("change", "path", "expected"),
    [
        ("adapter: wied", "adapter", "one of wide, other, or none"),
        ("agents: {bob: {prompt: x, adapter: small}}\nmodel: one", "agents.bob.adapter", "one of wide, other"),
        ("agents: {bob: {prompt: x, adapter: wide}}\nmodel: two", "agents.bob.adapter", "one of small"),
        ("agents: {bob: {prompt: x, adapter: wide, model: two}}", "agents.bob.adapter", "one of small"),
    ],
)
@asynchronous
async def test_adapters_that_are_not_served_are_refused(change: str, path: str, expected: str) -> None:
    head = "version: 1\nname: x\n" + ("agents: {bob: x}\n" if "agents" not in change else "")
    async with served() as rig:
        with pytest.raises(WorkflowErrors) as caught:
            await rig.run(f"{head}{change}\nsteps: [{{step: a, agent: bob}}]")
        (found,) = caught.value.diagnostics
        assert found.path == path
        assert expected in found.expected


@asynchronous
async def test_those_of_other_workflows_and_steps_are_checked_too() -> None:
    yaml = """
version: 1
name: outer
workflows: {inner: {version: 1, name: inner, steps: [{step: x, adapter: gone}]}}
agents: {ann: x, bob: x}
steps:
- {step: a, workflow: inner}
- {step: b, for_each: [ann, bob], adapter: away}
"""
    async with served() as rig:
        with pytest.raises(WorkflowErrors) as caught:
            await rig.run(yaml)
        assert [d.path for d in caught.value.diagnostics] == ["workflows.inner.steps[0].adapter", "steps[1].adapter"]


@asynchronous
async def test_a_session_and_a_chat_may_have_an_adapter() -> None:
    async with served() as rig:
        sessions = Sessions(rig.dispatcher, rig.executor.languages.of)
        opened = sessions.open(adapter="wide")
        asked = await sessions.prefill(opened.session_id, "user", text="Hello.")
        view = (SessionPlacement(asked.message_id),)
        async for _ in sessions.decode(opened.session_id, sampling=Sampling(max_tokens=3), view=view):
            pass
        assert {adapter_of(call.namespace) for call in rig.calls} == {"aa"}
        with pytest.raises(InvalidInput, match="no such adapter"):
            sessions.open(adapter="small")
        prompts: Any = object()
        chats = Chats(rig.dispatcher, rig.executor.languages.of, prompts, adapters={"one": ["wide"]})
        assert list(chats.models) == ["one", "two", "one:wide"]
        assert chats.prompts("one:wide") is prompts


def test_a_book_keeps_no_moved_encodings_of_what_it_forgot() -> None:
    language = Language(CharFraming(), CharTokenizer(), "m/t", 500, adapters={"wide": "aa"})
    book = MessageBook(language)
    for key in ("a", "b"):
        book.add_text(key, "user", f"message {key}", None, path="text")
    other = book.under("wide")
    homes = {key: other.find(key) for key in ("a", "b")}
    assert all(message is not None and message.home.namespace == "m/t#adapter=aa" for message in homes.values())
    assert {adapter_of(spec.namespace) for spec in book.specs.values()} == {"", "aa"}
    plain = book.find("a")
    assert plain is not None
    assert plain.home.namespace == "m/t"
    book.keep_only(["a"])
    assert {spec.namespace for spec in book.specs.values()} == {"m/t"}


def test_agents_of_another_model_have_that_models_adapters() -> None:
    """For a step of all agents nothing is asked of the workflow's own model."""
    workflow = parse_yaml("""
version: 1
name: w
model: large
adapter: sql
messages: {q: Hello.}
agents: {a: {prompt: A., model: coder}, b: {prompt: B., model: coder}}
steps:
- {step: s, for_each: agents, read: [q], sampling: {max_tokens: 2}}
""")
    served = {"large": [], "coder": ["sql"]}
    assert unknown_adapters(workflow, lambda model: served[model]) == []
    assert len(unknown_adapters(workflow, lambda model: [])) > 0
