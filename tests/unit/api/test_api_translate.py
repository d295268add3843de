"""Values survive the way to protobuf and back, and nothing of the records is left out."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from api_fakes import DRAINED, EVENTS, EXPLANATION, LEASE, MESSAGE, RECORD, STATUS, STEP
from hypothesis import given, settings
from hypothesis import strategies as st

from laban.actors.calls import CacheCounters, WorkerRates
from laban.actors.errors import InvalidInput, NotBuilt
from laban.cluster import records
from laban.cluster import translate as tr
from laban.cluster import translate_cluster as trc
from laban.cluster import translate_hints as trh
from laban.cluster import translate_leases as trl
from laban.cluster import translate_sessions as trs
from laban.cluster.translate_spec import RESERVED, spec_from_dict, spec_to_dict, value_from_python, value_to_python
from laban.cluster.translate_values import struct_from_python, struct_to_python
from laban.cluster.workflow import schema
from laban.cluster.workflow.parse import parse_dict, parse_yaml
from laban.proto import laban_pb2 as pb

OUTCOME = records.HintOutcome("ann", "clipped", "why", 2, 40, 60.25, 30.5)


def wire(message: Any) -> Any:
    return type(message).FromString(message.SerializeToString())


def test_records_come_back_equal() -> None:
    assert tr.workflow_from_pb(wire(tr.workflow_to_pb(RECORD))) == RECORD
    for item in EVENTS:
        assert tr.watch_from_pb(wire(tr.watch_to_pb(item))) == item
    assert trs.message_from_pb(wire(trs.message_to_pb(MESSAGE))) == MESSAGE
    assert trc.status_from_pb(wire(trc.status_to_pb(STATUS))) == STATUS
    assert trc.explanation_from_pb(wire(trc.explanation_to_pb(EXPLANATION))) == EXPLANATION
    for progress in DRAINED:
        assert trc.drain_from_pb(wire(trc.drain_to_pb(progress))) == progress
    assert trh.outcome_from_pb(wire(trh.outcome_to_pb(OUTCOME))) == OUTCOME
    assert trl.lease_from_pb(wire(trl.lease_to_pb(LEASE))) == LEASE
    session = records.SessionRecord("s", 0.5, 1.25, 1.75, (MESSAGE,))
    assert trs.session_from_pb(wire(trs.session_to_pb(session))) == session


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (records.StepResult, pb.StepResult),
        (records.WorkflowRecord, pb.WorkflowRecord),
        (records.TokenChunk, pb.TokenChunk),
        (records.MessageRecord, pb.MessageRecord),
        (records.WorkerStatus, pb.WorkerStatus),
        (records.ClusterStatus, pb.ClusterStatus),
        (records.ModelStatus, pb.ModelStatus),
        (WorkerRates, pb.WorkerRates),
        (CacheCounters, pb.CacheCounters),
        (records.DirectoryStatus, pb.DirectoryStatus),
        (records.DrainProgress, pb.DrainProgress),
        (records.StepExplanation, pb.StepExplanation),
        (records.RoutingDecision, pb.RoutingDecision),
        (records.RoutingCandidate, pb.RoutingCandidate),
        (records.NextUse, pb.NextUse),
        (records.ErrorInfo, pb.Error),
        (records.SessionPlacement, pb.Placement),
        (records.LeaseMessage, pb.LeaseMessage),
    ],
)
def test_records_and_messages_have_the_same_fields(record: Any, message: Any) -> None:
    assert {item.name for item in fields(record)} == set(message.DESCRIPTOR.fields_by_name)


def test_every_field_of_the_samples_is_set() -> None:
    # So that the round trips above would notice a field that is not carried.
    worker, decision = STATUS.workers[0], EXPLANATION.decision
    cluster = (STATUS, worker, worker.rates, worker.cache, STATUS.directory, OUTCOME)
    routing = (EXPLANATION, decision, decision.candidates[0], *EXPLANATION.uses)
    for sample in (STEP, MESSAGE, RECORD, RECORD.notes[0], STATUS.divergences[0], LEASE, *cluster, *routing):
        empty = [item.name for item in fields(sample) if not getattr(sample, item.name)]
        assert empty in ([], ["error"]), sample


@pytest.mark.parametrize(
    ("words", "number", "word"),
    [
        (records.WorkflowState, tr.workflow_state_number, tr.workflow_state_word),
        (records.StepState, tr.step_state_number, tr.step_state_word),
        (records.FinishReason, tr.finish_reason_number, tr.finish_reason_word),
        (records.HintStatus, trh.hint_status_number, trh.hint_status_word),
    ],
)
def test_every_word_has_a_number_of_its_own(words: Any, number: Any, word: Any) -> None:
    assert [word(number(item)) for item in get_args(words)] == list(get_args(words))


def test_unknown_enum_values_and_events_of_a_newer_server_are_no_errors() -> None:
    assert tr.step_state_word(77) == ""
    assert tr.watch_from_pb(pb.WatchResponse(event=pb.Event(number=3))) is None
    assert tr.watch_from_pb(pb.WatchResponse()) is None


DOCUMENT: dict[str, Any] = {
    "version": 1,
    "name": "debate",
    "inputs": {"z": {"type": "integer", "default": 3}, "a": {"default": ["x", 1.5, None, True, {"k": "v"}]}},
    "fidelity": "direct",
    "sampling": {"max_tokens": 40, "temperature": 0.0, "stop": ["\n", "END"]},
    "messages": {"zeta": {"text": "Q", "name": "x"}, "alpha": {"text": "", "private": False}},
    "agents": {"b": {"prompt": "B"}, "a": {"prompt": "A", "sampling": {"seed": 0}}},
    "steps": [
        {"step": "answer", "for_each": {}, "rounds": 3, "read": [{"read": "zeta"}, {"read": "answer", "begin": 0}]},
        {"step": "pick", "for_each": {"count": 4}, "vote": {"over": "answer"}, "join": {"at_least": 2}},
        {"step": "human", "external": {}, "read": [], "for_each": {"agents": ["b"]}},
        {"step": "map", "for_each": {"input": "docs"}, "max_parallel": 3, "on_error": "skip"},
        {"step": "fold", "for_each": {"batch": "map", "size": 8}},
    ],
    "outputs": {"y": {"read": "pick"}, "b": {"read": "answer", "separator": ""}},
}


def test_documents_come_back_equal_and_in_order() -> None:
    found = spec_to_dict(wire(spec_from_dict(DOCUMENT)))
    expected = {**DOCUMENT, "steps": [{k: v for k, v in step.items() if v != []} for step in DOCUMENT["steps"]]}
    assert found == expected
    for name in ("inputs", "messages", "agents", "outputs"):
        assert list(found[name]) == list(DOCUMENT[name])


def test_shorthands_are_spelled_out() -> None:
    document = {
        "messages": {"m": "text"},
        "agents": {"a": "prompt"},
        "sampling": {"stop": "END"},
        "steps": [
            {"step": "s", "read": ["m"], "join": "any", "vote": "x", "for_each": "agents"},
            {"step": "t", "join": "all", "count": 3},
            {"step": "u", "for_each": ["a"]},
            {"step": "v", "for_each": "docs"},
        ],
        "outputs": {"o": "s"},
    }
    assert spec_to_dict(spec_from_dict(document)) == {
        "messages": {"m": {"text": "text"}},
        "agents": {"a": {"prompt": "prompt"}},
        "sampling": {"stop": ["END"]},
        "steps": [
            {"step": "s", "read": [{"read": "m"}], "join": {"at_least": 1}, "vote": {"over": "x"}, "for_each": {}},
            {"step": "t", "join": {}, "for_each": {"count": 3}},
            {"step": "u", "for_each": {"agents": ["a"]}},
            {"step": "v", "for_each": {"input": "docs"}},
        ],
        "outputs": {"o": {"read": "s"}},
    }


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({"nam": "x"}, "nam"),
        ({"steps": [{"step": "a", "red": []}]}, "steps[0].red"),
        ({"steps": {"a": 1}}, "steps"),
        ({"steps": [3]}, "steps[0]"),
        ({"agents": ["a"]}, "agents"),
        ({"agents": {"a": {"key": "b"}}}, "agents.a.key"),
        ({"sampling": {"max_tokens": "many"}}, "sampling.max_tokens"),
        ({"sampling": {"max_tokens": True}}, "sampling.max_tokens"),
        ({"sampling": {"max_tokens": 2**40}}, "sampling.max_tokens"),
        ({"fidelity": "perfect"}, "fidelity"),
        ({"name": "\ud800"}, "name"),
        ({"messages": {"a": {"text": 1}}}, "messages.a.text"),
        ({"inputs": {"a": {"default": math.nan}}}, "inputs.a.default"),
        ({"steps": [{"for_each": []}]}, "steps[0].for_each.agents"),
        ({"steps": [{"for_each": 2, "count": 2}]}, "steps[0].count"),
    ],
)
def test_documents_that_cannot_be_structured(document: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        spec_from_dict(document)
    assert caught.value.field == path


def test_what_is_reserved_is_said_to_be() -> None:
    spec = spec_from_dict({"agents": {"bob": {"prompt": "", "tools": [{"name": "search"}]}}})
    with pytest.raises(NotBuilt) as caught:
        spec_to_dict(spec)
    assert caught.value.field == "agents.bob.tools"
    spec = spec_from_dict({"steps": [{"step": "a"}, {"step": "b", "tools": [{"name": "search"}]}]})
    with pytest.raises(NotBuilt) as caught:
        spec_to_dict(spec)
    assert caught.value.field == "steps[1].tools"


def test_a_schema_keeps_the_order_of_its_properties() -> None:
    properties = {name: {"type": "string"} for name in ("reason", "verdict", "b", "a", "Z")}
    step = {"step": "a", "response_schema": {"type": "object", "properties": properties, "maxProperties": 5}}
    found = spec_to_dict(spec_from_dict({"steps": [step]}))
    assert found == {"steps": [step]}
    assert list(found["steps"][0]["response_schema"]["properties"]) == list(properties)


def test_choices_are_texts_or_an_expression() -> None:
    for choices in (["ok", "revise"], "options"):
        document = {"steps": [{"step": "a", "choices": choices}]}
        assert spec_to_dict(spec_from_dict(document)) == document


@pytest.mark.parametrize("text", ["", "[]", "1", "{", '{"minimum": NaN}', "[" * 100_000])
def test_a_schema_is_a_json_object(text: str) -> None:
    spec = pb.WorkflowSpec(steps=[{"step": "a", "response_schema": {"json": text}}])
    with pytest.raises(InvalidInput) as caught:
        spec_to_dict(spec)
    assert caught.value.field == "steps[0].response_schema"


def test_keys_are_there_and_given_once() -> None:
    for keys, place in (["a", "a"], 1), (["a", ""], 1), ([""], 0):
        with pytest.raises(InvalidInput) as caught:
            spec_to_dict(pb.WorkflowSpec(agents=[pb.AgentSpec(key=key) for key in keys]))
        assert caught.value.field == f"agents[{place}].key"


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(plain)
def test_plain_values_come_back_equal(value: Any) -> None:
    assert value_to_python(wire(value_from_python(value, "x")), "x") == value


@pytest.mark.parametrize("value", [math.inf, math.nan, 2**53 + 1, b"x", object(), "\udc80", {"a": [math.nan]}])
def test_values_that_protobuf_cannot_keep(value: object) -> None:
    with pytest.raises(InvalidInput, match=r"^inputs\.x"):
        value_from_python(value, "inputs.x")


def test_what_we_tell_is_never_refused() -> None:
    deep: Any = "x"
    for _ in range(100):
        deep = [deep]
    odd = {"a\ud800": "\udc80", "n": 10**20, "inf": math.inf, "deep": deep, "set": (1, 2)}
    found = struct_to_python(wire(struct_from_python(odd)))
    assert found.pop("deep")
    assert found == {"a?": "?", "n": str(10**20), "inf": None, "set": [1, 2]}


def test_nesting_is_bounded() -> None:
    deep: Any = 1
    for _ in range(500):
        deep = [deep]
    with pytest.raises(InvalidInput, match="nested too deep"):
        value_from_python(deep, "inputs.x")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (schema.Workflow, pb.WorkflowSpec),
        (schema.Input, pb.InputSpec),
        (schema.Sampling, pb.Sampling),
        (schema.Agent, pb.AgentSpec),
        (schema.Message, pb.MessageSpec),
        (schema.Read, pb.ReadSpec),
        (schema.Join, pb.JoinSpec),
        (schema.Vote, pb.VoteSpec),
        (schema.External, pb.ExternalSpec),
        (schema.ForEach, pb.ForEachSpec),
        (schema.Retries, pb.RetriesSpec),
        (schema.Value, pb.ValueSpec),
        (schema.Loop, pb.LoopSpec),
        (schema.BoundMessage, pb.BoundMessage),
        (schema.Output, pb.OutputSpec),
    ],
)
def test_the_structured_form_has_the_fields_of_the_language(model: Any, message: Any) -> None:
    assert set(message.DESCRIPTOR.fields_by_name) - RESERVED - {"key"} == set(model.model_fields)


def test_steps_loops_and_blocks_are_one_structured_form() -> None:
    fields = {name for model in (schema.Step, schema.LoopBlock, schema.WhenBlock) for name in model.model_fields}
    assert set(pb.StepSpec.DESCRIPTOR.fields_by_name) - RESERVED == fields


EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 4


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_the_same_workflow_in_the_structured_form(path: Path) -> None:
    given_form = yaml.safe_load(path.read_text())
    structured = parse_dict(spec_to_dict(wire(spec_from_dict(given_form))))
    assert structured.model_dump() == parse_yaml(path.read_text()).model_dump()
