"""Workflows that call several models: a message crosses as its text, and is encoded once in each."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from executor_rig import results, until
from executor_workflows import asynchronous
from scripted_engine import LoopWorker, ScriptedEngine, decode
from two_models import Two, scripted, two_models

from laban.actors.errors import FailedPrecondition, InvalidInput, OutOfRange
from laban.cluster.dispatch import Dispatcher
from laban.cluster.pools import Pools
from laban.cluster.workflow.diagnostics import WorkflowErrors
from laban.cluster.workflow.parse import parse_yaml
from laban.cluster.workflow.run import Run
from laban.kvstore.encodings import flatten

RELAY = """
version: 1
name: relay
messages: {task: Add two and two., note: Be kind.}
agents:
  ann: {prompt: You are Ann., model: two}
  bob: You are Bob.
steps:
- {step: draft, agent: ann, read: [task]}
- {step: review, agent: bob, read: [task, draft]}
- {step: again, agent: ann, read: [task, draft, review], prefill: "Well,"}
- {step: other, agent: bob, model: two, read: [note, again]}
"""


def texts(two: Two, worker_id: str, address: str) -> list[str]:
    """What a step's call attended to there, in order."""
    call = next(c for c in two.workers[worker_id].engine.calls if f"/{address}#" in c.call_id)
    specs = {spec.encoding_id: spec for spec in call.specs}
    return [decode(specs[placed.encoding_id].tokens) for placed in flatten(call.view, specs)]


@asynchronous
async def test_each_step_calls_its_own_model_in_that_models_words():
    async with two_models() as two:
        record = await two.run(RELAY)
        assert record.state == "succeeded", record.error
        steps = results(record)
        placed = {address: (step.model, step.worker) for address, step in steps.items()}
        first, second = ("one", "w0"), ("two", "w1")
        assert placed == {"draft": second, "review": first, "again": second, "other": second}
        draft, review, again = (steps[name].text for name in ("draft", "review", "again"))
        assert texts(two, "w1", "draft") == ["$", "<system:>You are Ann.;", "<user:>Add two and two.;"]
        seen = ["^", "[system:]You are Bob.|", "[user:]Add two and two.|", f"[assistant:]{draft}|"]
        assert texts(two, "w0", "review") == seen
        assert texts(two, "w1", "again")[-2:] == [f"<assistant:>{draft};", f"<assistant:>{review};"]
        assert texts(two, "w1", "other")[1:] == [
            "<system:>You are Bob.;",
            "<user:>Be kind.;",
            f"<assistant:>Well,{again};",
        ]


@asynchronous
async def test_what_a_model_wrote_is_reused_by_itself_and_encoded_once_by_the_other():
    yaml = """
version: 1
name: twice
fidelity: direct
messages: {task: Add two and two.}
steps:
- {step: draft, read: [task]}
- {step: early, model: two, read: [draft, task]}
- {step: second, model: two, read: [draft, early]}
- {step: own, read: [draft]}
"""
    async with two_models() as two:
        steps = results(await two.run(yaml))
        length = len(f"<assistant:>{steps['draft'].text};")
        assert steps["second"].tokens_reused >= length, "encoded for the first reader"
        assert steps["own"].tokens_read == steps["own"].tokens_reused, "the very encoding that it was generated as"
        made = [spec for call in two.workers["w1"].engine.calls for spec in call.specs]
        assert len({spec.encoding_id for spec in made if decode(spec.tokens).startswith("<assistant:>says")}) == 2


@asynchronous
async def test_only_workers_of_the_model_are_candidates():
    async with two_models(("one", "two", "two", "one")) as two:
        yaml = "version: 1\nname: x\nmodel: two\nsteps: [{step: a, for_each: 6}, {step: b, model: one, for_each: 6}]"
        record = await two.run(yaml)
        assert {step.worker for step in record.steps if step.step == "a"} == {"w1", "w2"}
        assert {step.worker for step in record.steps if step.step == "b"} == {"w0", "w3"}
        explained = two.executor.explain(record.workflow_id, "a[1]")
        assert {each.worker_id for each in explained.decision.candidates} <= {"w1", "w2"}
        for pool in two.dispatcher.pools:
            pool.router.ledger.check_integrity()
            assert pool.router.ledger.num_calls == 0


@asynchronous
async def test_a_model_whose_workers_are_full_does_not_hold_up_another():
    async with two_models() as two:
        two.workers["w0"].paused = True
        held = asyncio.create_task(two.run("version: 1\nname: x\nsteps: [{step: a}]"))
        await until(lambda: two.workers["w0"].batches)
        record = await two.run("version: 1\nname: x\nmodel: two\nsteps: [{step: a}]")
        assert record.state == "succeeded"
        assert not held.done()
        two.workers["w0"].resume()
        assert (await held).state == "succeeded"


@asynchronous
async def test_an_unknown_model_is_refused_with_the_known_names():
    async with two_models() as two:
        yaml = "version: 1\nname: x\nagents: {ann: {model: tow}}\nsteps: [{step: a, agent: ann}]"
        with pytest.raises(
            WorkflowErrors, match=r"agents\.ann\.model.*no such model is served.*one of one, two"
        ) as caught:
            await two.run(yaml)
        assert caught.value.status == "INVALID_ARGUMENT"
        assert caught.value.diagnostics[0].line == 3
        inner = "{version: 1, name: w, model: x, steps: [{step: b}]}"
        with pytest.raises(WorkflowErrors, match=r"workflows\.w\.model"):
            await two.run(f"version: 1\nname: x\nsteps: [{{step: a, workflow: w}}]\nworkflows: {{w: {inner}}}")
        with pytest.raises(InvalidInput, match="expected one of one, two"):
            two.executor.languages.of("", "three")


@asynchronous
async def test_a_models_own_context_counts_for_what_it_reads_alone():
    long = "x" * 400
    yaml = f"version: 1\nname: x\nmessages: {{doc: {long}}}\nsteps:\n- {{step: a, read: [doc]}}\n"
    async with two_models(context_of_two=300) as two:
        assert (await two.run(yaml + "- {step: b, model: two, read: [a]}")).state == "succeeded"
        with pytest.raises(OutOfRange, match=r"messages\.doc"):
            await two.run(yaml + "- {step: b, model: two, read: [doc, a]}")
        made = f"version: 1\nname: x\nsteps:\n- {{step: a, sampling: {{forced_text: {long}, max_tokens: 500}}}}\n"
        record = await two.run(made + "- {step: b, model: two, read: [a]}")
        assert (record.state, record.error.status) == ("failed", "OUT_OF_RANGE")
        assert "context of 300" in record.error.message


@asynchronous
async def test_a_lost_worker_of_a_model_comes_back_as_one_of_it():
    async with two_models() as two:
        two.workers["w1"].kill()
        record = await two.run("version: 1\nname: x\nmodel: two\nsteps: [{step: a}]")
        assert record.state == "succeeded"
        assert [(each.worker_id, each.model) for each in two.dispatcher.workers()] == [("w0", "one"), ("w1", "two")]
        status = two.executor.status()
        assert [(each.name, each.workers_up) for each in status.models] == [("one", 1), ("two", 1)]
        await two.dispatcher.fleet.add_worker(model="two")
        states = two.dispatcher.survey().states
        assert {model: each["up"] for model, each in states.items()} == {"one": 1, "two": 2}
        with pytest.raises(FailedPrecondition, match="last worker of model one"):
            await two.dispatcher.fleet.drain("w0")
        await two.dispatcher.fleet.drain("w1")
        assert {(each.worker_id, each.model) for each in two.dispatcher.workers()} == {
            ("w0", "one"),
            ("worker-0", "two"),
        }
        with pytest.raises(InvalidInput, match="no such model"):
            await two.dispatcher.fleet.add_worker(model="three")


@asynchronous
async def test_what_is_foreseen_of_a_call_is_of_its_model():
    late = "steps:\n- {step: tool, external: {}}\n- {step: late, model: two, read: [note, tool]}"
    async with two_models() as two:
        record = await two.executor.intake.submit(parse_yaml(RELAY.replace("steps:", late)), {})
        foresight, workflow_id = two.lookout.foresight, record.workflow_id

        def foreseen() -> list[str]:
            specs = foresight._sources[workflow_id].forecast.specs
            return [decode(specs[each].tokens) for each in foresight.uses(workflow_id)]

        await until(lambda: two.executor.get(workflow_id).steps[-1].state == "succeeded")
        await until(lambda: sorted(foreseen()) == ["$", "<user:>Be kind.;"])
        assert set(foresight.successors(workflow_id, "two/float32/").values()) == {1, len("<user:>Be kind.;")}
        assert foresight.successors(workflow_id, "one/float32/") == {}
        await two.executor.cancel(workflow_id)


@asynchronous
async def test_what_a_run_needs_is_told_by_model():
    async with two_models() as two:
        run = Run(parse_yaml(RELAY), {})
        book = two.executor.languages.new_book("")
        book.add_fixed(run.messages.values())
        demand = two.lookout.prepare(run, book).demand
        bound = demand.bound
        assert bound.own_bytes > 0
        assert set(bound.others) == {"two"}
        demand.refine()
        now = demand.now()
        assert 0 < now.num_bytes_alone < bound.num_bytes_alone
        assert 0 < now.others["two"].num_bytes_alone < bound.others["two"].num_bytes_alone
        alone = Run(parse_yaml("version: 1\nname: x\nmodel: two\nsteps: [{step: a}]"), {})
        found = two.lookout.prepare(alone, two.executor.languages.new_book("")).demand
        assert found.now().models == {"two"}
        assert two.lookout._kv_bytes() == {"": 16_000, "two": 16_000}


def test_models_that_cannot_be_told_apart_are_refused():
    same = scripted("one", "w0"), scripted("two", "w1")
    same[1].info = replace(same[1].info, namespace="one/float32")
    with pytest.raises(FailedPrecondition, match=r"models\.two: two is the same model in the same dtype as one"):
        asyncio.run(make(*same))
    other = scripted("two", "w1")
    other.info = replace(other.info, model_name="one")
    with pytest.raises(FailedPrecondition, match="worker w1 serves another model than worker w0"):
        asyncio.run(make(scripted("one", "w0"), other))
    cut = scripted("one", "w1")
    cut.info = replace(cut.info, num_shards=2)
    with pytest.raises(FailedPrecondition, match=r"of worker w1, worker w0 has 1: expected as many \(got 2\)"):
        asyncio.run(make(scripted("one", "w0"), cut))


async def make(*engines: ScriptedEngine) -> Dispatcher:
    return Dispatcher([LoopWorker(engine) for engine in engines])


def test_the_journal_tells_sets_of_models_apart():
    def identity(*models: str, default: str = "") -> str:
        infos = [scripted(model, f"w{at}").info for at, model in enumerate(models)]
        return Pools(infos, lambda: None, default).identity  # type: ignore[arg-type, return-value]

    assert identity("one") == "one/float32"
    both = identity("one", "two", default="one")
    assert both == identity("two", "one", "two", default="one")
    assert (
        len({both, identity("one", "two", default="two"), identity("one", "three", default="one"), "one/float32"}) == 4
    )
