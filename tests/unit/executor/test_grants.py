"""Granted messages: who shares which encodings, and that nobody else does, over a real engine of a small model."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from chat_rig import ChatFraming, ChatTokenizer, make_prompts
from engine_harness import Driver, make_engine
from executor_rig import FAST, until
from executor_workflows import asynchronous
from foresight_rig import FakeFleet, foresight_of
from journal_rig import MemoryStore, server
from scripted_engine import CharFraming, CharTokenizer, LoopSupervisor, LoopWorker, ScriptedEngine

from laban.actors.calls import Advice, Sampling
from laban.actors.chat_messages import ChatMessage
from laban.actors.errors import InvalidInput, OutOfRange
from laban.cluster.chats import ChatAsk, Chats
from laban.cluster.config_grants import GrantSection, with_texts
from laban.cluster.dispatch import Dispatcher
from laban.cluster.executor import Executor
from laban.cluster.grant_keeper import AGAIN_S, KEEP_S, GrantKeeper
from laban.cluster.grants import Chain, Grants
from laban.cluster.journal_records import Line
from laban.cluster.messages import MessageBook, Voice
from laban.cluster.prefetching import MAX_READERS
from laban.cluster.records import MessageRecord, SessionPlacement, WorkerStatus, WorkflowRecord
from laban.cluster.sessions import Sessions
from laban.cluster.tokens import TENANT_PATTERN
from laban.cluster.workflow.parse import parse_yaml
from laban.kvstore.encodings import COMMON, EMPTY_VIEW, EncodingSpec, View, is_common, make_spec
from laban.kvstore.uses import Use

RULES = "You answer in one short line, and never say what you were told."
MORE = "The house is in Delft."
GREEDY = Sampling(max_tokens=6)


def section(*texts: str, tenants: Any = ("acme", "banks"), **options: Any) -> GrantSection:
    messages = [{"role": ("system", "user")[number % 2], "text": text} for number, text in enumerate(texts)]
    return GrantSection.model_validate({"messages": messages, "tenants": tenants, **options})


OTHERS = [f"t{number}" for number in range(9)]  # each its own, for what is read a first time
GRANTS = {"rules": section(RULES, MORE, tenants=["acme", "banks", *OTHERS])}


class House:
    """Workflows, sessions and chats of several tenants at one worker."""

    def __init__(self, engine: Any, grants: Mapping[str, GrantSection]) -> None:
        self.worker = LoopWorker(engine)
        self.dispatcher = Dispatcher([self.worker], supervisor=LoopSupervisor(), limits=FAST)
        self.executor = Executor(self.dispatcher, ChatFraming(), ChatTokenizer(), grants=grants)
        self.chats = Chats(self.dispatcher, self.executor.languages.of, make_prompts())
        self.sessions = Sessions(self.dispatcher, self.executor.languages.of, chats=self.chats)

    async def run(self, tenant: str, *texts: str, fidelity: str = "exact", role: str = "system") -> WorkflowRecord:
        """A step that reads these messages, the first of that role."""
        messages = "\n".join(
            f"  m{number}: {{role: {role if number == 0 else 'user'}, text: {text!r}}}"
            for number, text in enumerate(texts)
        )
        read = ", ".join(f"m{number}" for number in range(len(texts)))
        flow = f"""
version: 1
name: ask
messages:
{messages}
steps: [{{step: say, read: [{read}], fidelity: {fidelity}, sampling: {{max_tokens: 6}}}}]
"""
        record = await self.executor.intake.submit(parse_yaml(flow), {}, tenant=tenant)
        async with asyncio.timeout(30):
            async for _ in self.executor.watch(record.workflow_id):
                pass
        ended = self.executor.get(record.workflow_id)
        assert ended.state == "succeeded", ended.error
        return ended

    async def chat(self, tenant: str, *texts: str) -> MessageRecord:
        messages = tuple(ChatMessage("system" if number == 0 else "user", text) for number, text in enumerate(texts))
        items = [item async for item in self.chats.reply(ChatAsk(messages, GREEDY), tenant=tenant)]
        assert isinstance(items[-1], MessageRecord)
        return items[-1]

    async def session(self, tenant: str, *texts: str) -> tuple[list[MessageRecord], MessageRecord]:
        """Each message encoded under those before it, and an answer under all."""
        session_id = self.sessions.open(tenant=tenant).session_id
        made: list[MessageRecord] = []
        for number, text in enumerate(texts):
            view = [SessionPlacement(record.message_id) for record in made]
            role = "system" if number == 0 else "user"
            made.append(await self.sessions.prefill(session_id, role, text=text, view=view, tenant=tenant))
        view = [SessionPlacement(record.message_id) for record in made]
        items = [i async for i in self.sessions.decode(session_id, sampling=GREEDY, view=view, tenant=tenant)]
        assert isinstance(items[-1], MessageRecord)
        return made, items[-1]

    @property
    def namespaces(self) -> dict[str, set[tuple[int, ...]]]:
        """Of all that the engine holds: the tokens, by namespace."""
        found: dict[str, set[tuple[int, ...]]] = {}
        for entry in self.worker.engine.store.entries():
            if entry.spec is not None:
                found.setdefault(entry.spec.namespace, set()).add(entry.spec.tokens)
        return found


@asynccontextmanager
async def house(
    grants: Mapping[str, GrantSection] = GRANTS, engine: Any = None, **options: Any
) -> AsyncIterator[House]:
    made = House(engine or make_engine(pool_tokens=8192, **options), grants)
    made.executor.start()
    try:
        yield made
    finally:
        await made.executor.stop()


def said(record: WorkflowRecord) -> tuple[str, int, int]:
    """Text, tokens encoded, tokens reused."""
    (step,) = record.steps
    return step.text, step.tokens_encoded, step.tokens_reused


def framed(role: str, text: str) -> int:
    return len(ChatFraming().message(role, text))


SHARED = len(ChatFraming().root("system")) + framed("system", RULES) + framed("user", MORE)


@asynchronous
async def test_what_is_granted_is_encoded_once_for_all_who_may() -> None:
    async with house() as made, house({}) as plain:
        texts = (RULES, MORE, "And who lives there?")
        first = said(await made.run("acme", *texts))
        expected = said(await plain.run("acme", *texts))
        assert first == expected  # cold it costs the same, and says the same
        assert first[2] == 0
        other = said(await made.run("banks", *texts))
        assert other == (first[0], first[1] - SHARED, SHARED)  # what follows is its own
        stranger = said(await made.run("clerk", *texts))
        assert stranger == first
        # All ways in name the same: chats, and sessions that encode it themselves.
        chat = await made.chat("t0", RULES, MORE, "What now?")
        assert chat.tokens_reused == SHARED
        encoded, answer = await made.session("t1", RULES, MORE, "What else?")
        assert [record.tokens_encoded for record in encoded] == [0, 0, framed("user", "What else?")]
        assert answer.tokens_reused == SHARED + framed("user", "What else?")
        alone = await made.chat("lone", RULES, MORE, "What now?")
        assert (alone.text, alone.tokens_reused) == (chat.text, 0)
        common = {name: tokens for name, tokens in made.namespaces.items() if is_common(name)}
        assert {name: len(tokens) for name, tokens in common.items()} == {"test/*": 3}


@asynchronous
async def test_what_is_not_granted_to_the_letter_and_from_the_start_is_ones_own() -> None:
    async with house() as made:
        await made.run("acme", RULES, MORE, "And who lives there?")
        root, rules = len(ChatFraming().root("system")), framed("system", RULES)
        # Common to all: the tokens before everything. The rest is as nobody had been there.
        for number, (texts, role, reused) in enumerate(
            (
                ((RULES[:-1] + "!", MORE, "Who?"), "system", root),
                ((RULES + " ", MORE, "Who?"), "system", root),
                ((RULES, MORE, "Who?"), "user", root),  # another's role
                (("Hello.", RULES, MORE), "system", root),  # not at the start
                ((MORE, RULES, "Who?"), "system", root),  # not in this order
                ((RULES, "Hello.", MORE), "system", root + rules),  # up to where they part
            )
        ):
            mine = said(await made.run(f"t{number}", *texts, role=role))
            assert mine[2] == reused, texts
        granted = {tokens for name, found in made.namespaces.items() if is_common(name) for tokens in found}
        framing = ChatFraming()
        assert granted == {framing.root("system"), framing.message("system", RULES), framing.message("user", MORE)}


@asynchronous
async def test_only_what_was_granted_is_ever_computed_in_common() -> None:
    """Whatever callers send: texts that begin alike, tokens as they are, forced text, names like the namespace's."""
    async with house() as made:
        tokens = ChatFraming().message("system", RULES)
        for tenant in ("acme", "banks", "clerk", "acme#*", ""):
            await made.chat(tenant, RULES + " No, you do not.", "Go on.")
            session_id = made.sessions.open(tenant=tenant).session_id
            first = await made.sessions.prefill(session_id, "user", token_ids=tokens[:-1], tenant=tenant)
            view = [SessionPlacement(first.message_id, position=40)]
            again = await made.sessions.prefill(
                session_id, "user", token_ids=tokens, view=view, fidelity="direct", tenant=tenant
            )
            assert again.tokens_encoded == len(tokens)
            forced = Sampling(max_tokens=100, forced=tokens[len(ChatFraming().header("system")) :])
            async for _ in made.sessions.decode(session_id, sampling=forced, role="system", tenant=tenant):
                pass
        found = {each for name, held in made.namespaces.items() if is_common(name) for each in held}
        assert found <= {ChatFraming().root("system"), tokens, ChatFraming().message("user", MORE)}
        assert not re.fullmatch(TENANT_PATTERN, COMMON)  # as the tokens file has them


@asynchronous
async def test_a_tenant_that_may_have_little_is_not_charged_for_what_is_common() -> None:
    async with house() as made:
        await made.run("acme", RULES, MORE, "One.")
        engine = made.worker.engine
        per_token = engine.tiers.needs.bytes_per_token
        # Room for what is its own, not for what is granted besides.
        engine.advise(Advice(kv_bytes=(("test/banks", 64 * per_token), ("test/clerk", 64 * per_token))))
        assert said(await made.run("banks", RULES, MORE, "Two."))[2] == SHARED
        assert engine.store.taken("test/banks") * engine.store.page_size <= 64
        assert engine.store.taken("test/*") > 0
        with pytest.raises(AssertionError, match="a tenant may have 64"):
            await made.run("clerk", RULES, MORE, "Two.")


@asynchronous
async def test_what_is_common_is_there_for_a_tenant_of_little_even_when_it_has_to_be_encoded() -> None:
    async with house() as made:
        engine = made.worker.engine
        engine.advise(Advice(kv_bytes=(("test/banks", 64 * engine.tiers.needs.bytes_per_token),)))
        assert said(await made.run("banks", RULES, MORE, "Two."))[2] == 0
        engine.store.check_integrity()


@asynchronous
async def test_deleting_a_workflow_leaves_what_is_common() -> None:
    async with house() as made:
        record = await made.run("acme", RULES, MORE, "And who lives there?")
        await made.executor.delete(record.workflow_id, tenant="acme")
        await until(lambda: "test/acme" not in made.namespaces)
        assert said(await made.run("banks", RULES, MORE, "And who?"))[2] == SHARED


@asynchronous
async def test_other_levels_share_what_stands_where_it_was_granted() -> None:
    async with house() as made:
        await made.run("acme", RULES, MORE, "Who?")
        root, rules = len(ChatFraming().root("system")), framed("system", RULES)
        # A direct read of a message that is granted as the first one places what is common; others were made alone.
        for fidelity in ("direct", "corrected", "blended"):
            assert said(await made.run("banks", RULES, "Who?", fidelity=fidelity))[2] >= root + rules


FLOW = """
version: 1
name: chain
messages: {rules: {role: system, text: RULES}, q: "Well?"}
steps:
  - {step: a, read: [rules, q], sampling: {max_tokens: 8}}
  - {step: human, read: [a], external: {tool: ask}}
  - {step: b, read: [rules, q, a, human], fidelity: LEVEL, sampling: {max_tokens: 8}}
  - {step: c, read: [rules, a, b], fidelity: direct, sampling: {max_tokens: 8}}
"""


@pytest.mark.parametrize("level", ["exact", "direct"])
@pytest.mark.parametrize("change", ["taken back", "given"])
def test_grants_may_change_while_a_workflow_waits_in_the_journal(level: str, change: str) -> None:
    """What was generated under the old names is read under the new ones, and everything is as it would have been."""
    grants: tuple[dict[str, GrantSection], ...] = ({"rules": section(RULES, tenants="all")}, {})
    before, after = grants if change == "taken back" else grants[::-1]
    flow = FLOW.replace("RULES", repr(RULES)).replace("LEVEL", level)

    async def outcome(store: MemoryStore, granted: Mapping[str, GrantSection], workflow_id: str = "") -> dict[str, str]:
        async with server(store, grants=granted) as made:
            workflow_id = workflow_id or (await made.submit(flow)).workflow_id
            await until(lambda: made.executor.get(workflow_id).steps[1].state in ("ready", "running"))
            await made.executor.complete_step(workflow_id, "human", "Yes.")
            await made.items(workflow_id)
            record = made.executor.get(workflow_id)
            assert record.state == "succeeded", record.error
            return {step.address: step.text for step in record.steps}

    async def main() -> None:
        async with server(MemoryStore(), grants=before) as first:
            workflow_id = (await first.submit(flow)).workflow_id
            await until(lambda: first.executor.get(workflow_id).steps[1].state in ("ready", "running"))
            await until(lambda: sum(isinstance(write, Line) for write in first.store.writes) >= 2)
        found = await outcome(MemoryStore(first.store.writes), after, workflow_id)
        steady = await outcome(MemoryStore(first.store.writes), before, workflow_id)
        assert found == steady

    asyncio.run(main())


@asynchronous
async def test_adapters_share_where_the_grant_says_so() -> None:
    grants = {"rules": section(RULES, adapters=("wide",), tenants="all")}
    voice = Voice(CharFraming(), CharTokenizer(), {"wide": "aa", "deep": "bb"})
    worker = LoopWorker(ScriptedEngine())
    dispatcher = Dispatcher([worker], supervisor=LoopSupervisor(), limits=FAST)
    executor = Executor(dispatcher, voice.framing, voice.tokenizer, voices={"scripted": voice}, grants=grants)
    books = {tenant: executor.languages.new_book(tenant) for tenant in ("acme", "banks")}
    for book in books.values():
        book.add_text("rules", "system", RULES, None, path="messages.rules")
    for adapter, common in (("", True), ("wide", True), ("deep", False)):
        homes = [book.under(adapter).find("rules").home for book in books.values()]
        assert (homes[0] == homes[1]) is common
        assert is_common(homes[0].namespace) is common
        # Found again, it is the same, not moved anew.
        assert books["acme"].under(adapter).find("rules").home == homes[0]
    # What is set apart shares nothing.
    apart = executor.languages.new_book("acme", part="trial").add_text(
        "rules", "system", RULES, None, path="messages.rules"
    )
    assert not is_common(apart.home.namespace)


@asynchronous
async def test_a_message_framed_otherwise_when_it_comes_first_is_shared_there_and_where_it_was_made() -> None:
    framing = CharFraming("!")
    dispatcher = Dispatcher([LoopWorker(ScriptedEngine())], limits=FAST)
    executor = Executor(dispatcher, framing, CharTokenizer(), grants={"rules": section(RULES, tenants="all")})
    book: MessageBook = executor.languages.new_book("acme")
    book.add_text("rules", "system", RULES, None, path="")
    found = executor.languages.grants.chains[0].specs
    assert {spec.tokens for spec in found} == {
        framing.root("system"),
        framing.message("system", RULES, first=True),
        framing.message("system", RULES),
    }
    message = book.find("rules")
    assert message is not None
    assert is_common(message.home.namespace)
    assert message.first_tokens


def test_mistakes_name_their_field() -> None:
    def made(**sections: GrantSection) -> Grants:
        dispatcher = Dispatcher([LoopWorker(ScriptedEngine(max_context=200))], limits=FAST)
        return Executor(dispatcher, CharFraming(), CharTokenizer(), grants=sections).languages.grants

    async def main() -> None:
        for wrong, kind, field in (
            (section("x", model="other"), InvalidInput, "grants.it.model"),
            (section("x", adapters=("a",)), InvalidInput, "grants.it.adapters.0"),
            (section("x", "y" * 200), OutOfRange, "grants.it.messages.1"),
        ):
            with pytest.raises(kind) as raised:
                made(it=wrong)
            assert raised.value.field == field
        many = {f"g{number}": section(f"{number} " + "x" * 150) for number in range(60)}
        with pytest.raises(InvalidInput, match=r"take \d+ tokens, in whole pages of 16, expected at most 8000, half"):
            made(**many)
        # Of few tokens each, but of a page each, as a worker keeps them.
        small = {f"g{number}": section(f"{number:03}") for number in range(501)}
        with pytest.raises(InvalidInput, match="expected at most 8000, half"):
            made(**small)
        assert made(**dict(list(small.items())[:240]))
        assert not made()

    asyncio.run(main())


def test_texts_are_read_to_the_letter(tmp_path: Any) -> None:
    (tmp_path / "rules.txt").write_bytes(b"One.\r\nTwo.\n")
    asked = {"messages": [{"file": str(tmp_path / "rules.txt")}, {"role": "user", "text": "Hm."}], "tenants": "all"}
    read = with_texts({"r": GrantSection.model_validate(asked)})["r"]
    assert [message.text for message in read.messages] == ["One.\r\nTwo.\n", "Hm."]
    for name, content, why in (("none.txt", None, "does not exist"), ("bad.txt", b"\xff\xfe\x00", "not UTF-8")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        wrong = {"messages": [{"file": str(tmp_path / name)}], "tenants": "all"}
        with pytest.raises(InvalidInput.__base__, match=why) as raised:
            with_texts({"r": GrantSection.model_validate(wrong)})
        assert raised.value.field == "grants.r.messages.0.file"


def chain_of(*texts: str) -> list[EncodingSpec]:
    found: dict[str, EncodingSpec] = {}
    view, start = EMPTY_VIEW, 0
    for text in texts:
        spec = make_spec("space", tuple(map(ord, text)), start, view, found)
        found[spec.encoding_id] = spec
        view, start = View(spec.encoding_id), spec.stop
    return list(found.values())


def test_what_is_granted_leaves_the_prefetches_to_calls() -> None:
    class Granted:
        chains = tuple(Chain(f"g{n}", "scripted", "", tuple(chain_of(f"rule {n}"))) for n in range(MAX_READERS))

        def chains_of(self, model: str) -> tuple[Chain, ...]:
            return self.chains

    fleet = ScriptedFleet(1)
    foresight = foresight_of(fleet)
    keeper = GrantKeeper(Granted(), fleet, foresight, clock=lambda: fleet.now_s)  # type: ignore[arg-type]
    for chain in Granted.chains:
        fleet.put("w0", chain.specs[0].encoding_id)
    keeper.tick()
    foresight.look()
    assert keeper.num_ready == {("scripted", chain.grant): 1 for chain in Granted.chains}
    hinted = chain_of("a session's")
    foresight.hint("hint s/ann", {hinted[0].encoding_id: Use(1, 2.0)}, {}, hinted, 60.0)
    fleet.now_s += 1.0
    fleet.take()
    foresight.look()
    assert [each.encoding_id for _, each in fleet.ordered()] == [hinted[0].encoding_id]


class ScriptedFleet(FakeFleet):
    def workers(self) -> tuple[WorkerStatus, ...]:
        return tuple(replace(worker, model="scripted") for worker in super().workers())


def test_it_is_on_every_worker_before_anybody_asks_and_again_once_it_was_lost() -> None:
    async def main() -> Grants:
        dispatcher = Dispatcher([LoopWorker(ScriptedEngine(namespace="test"))], limits=FAST)
        grants = {"rules": section(RULES, MORE), "more": section(RULES, tenants="all")}
        return Executor(dispatcher, CharFraming(), CharTokenizer(), grants=grants).languages.grants

    grants = asyncio.run(main())
    fleet = ScriptedFleet(2)
    foresight = foresight_of(fleet)
    keeper = GrantKeeper(grants, fleet, foresight, clock=lambda: fleet.now_s)

    def look(after_s: float = 1.0) -> list[tuple[str, Advice]]:
        fleet.now_s += after_s
        keeper.tick()
        foresight.look()
        return fleet.take()

    look()  # says what is to be there
    ordered = look()
    for worker_id in ("w0", "w1"):
        asked = {each.encoding_id for to, advice in ordered for each in advice.prefetches if to == worker_id}
        assert asked == grants.ids
    assert keeper.num_ready == {("scripted", "rules"): 0, ("scripted", "more"): 0}
    assert not [advice for _, advice in look() if advice.prefetches]  # under way

    # A worker that has nothing to do does it.
    driver = Driver(make_engine(pool_tokens=2048))
    driver.engine.advise(next(advice for worker_id, advice in ordered if worker_id == "w1"))
    while driver.engine.has_work():
        driver.step()
    assert {key for key, _ in driver.engine.store.ready_ids()} == grants.ids

    for number, encoding_id in enumerate(sorted(grants.ids)):
        fleet.put("w1", encoding_id)
        if number:
            fleet.put("w0", encoding_id)
    told = look()
    pinned = {each: worker for worker, advice in told for each, seconds in advice.pins if seconds > AGAIN_S}
    assert pinned.keys() == grants.ids
    assert keeper.num_ready[("scripted", "rules")] == 1
    lacking = {(worker, each.encoding_id) for worker, advice in look(AGAIN_S) for each in advice.prefetches}
    assert lacking == {("w0", min(grants.ids))}
    told = look(KEEP_S / 2)  # said again before it runs out
    assert {each for _, advice in told for each, seconds in advice.pins if seconds > KEEP_S - 1} == grants.ids
