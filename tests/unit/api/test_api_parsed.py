"""Documents that come again: the same workflow as when they are read anew, for one tenant and exactly that document."""

from __future__ import annotations

import asyncio

import pytest

from laban.cluster import gateway_workflows
from laban.cluster.callers import ANYONE, set_caller
from laban.cluster.gateway_requests import is_quick, read_submission
from laban.cluster.parsed import MAX_BYTES, ParsedWorkflows
from laban.cluster.translate_spec import spec_from_dict, value_from_python
from laban.cluster.workflow.diagnostics import WorkflowErrors
from laban.cluster.workflow.parse import to_dict
from laban.proto import laban_pb2 as pb

YAML = """
version: 1
name: one
inputs: {about: {type: string}}
messages: {task: "Say: {{ about }}"}
steps:
  - {step: answer, read: [task]}
"""
OUTER = """
version: 1
name: outer
steps:
  - {step: inner, workflow: part.yaml}
"""


def of_yaml(text: str = YAML, about: str = "x", name: str = "", **files: str) -> pb.SubmitRequest:
    named = {key.replace("_", "."): value.encode() for key, value in files.items()}
    return pb.SubmitRequest(
        yaml=text.encode(), source_name=name, inputs={"about": value_from_python(about, "about")}, files=named
    )


def of_spec(text: str) -> pb.SubmitRequest:
    step = {"step": "answer", "read": ["task"]}
    return pb.SubmitRequest(
        workflow=spec_from_dict({"version": 1, "name": "one", "messages": {"task": text}, "steps": [step]})
    )


def test_a_document_that_comes_again_is_what_it_was_with_the_inputs_that_come_with_it():
    parsed = ParsedWorkflows()
    for request in (of_yaml(about="a"), of_yaml(about="b"), of_spec("a"), of_spec("b"), of_yaml(name="other.yaml")):
        anew = read_submission(request)
        first = read_submission(request, parsed=parsed)
        again = read_submission(request, parsed=parsed)
        assert first == again == anew
        assert to_dict(again.workflow) == to_dict(anew.workflow)
        assert again.workflow is first.workflow is not anew.workflow


def test_what_differs_in_anything_is_read_by_itself():
    parsed = ParsedWorkflows()
    inner = YAML.replace("inputs: {about: {type: string}}", "").replace("{{ about }}", "x")
    plain = read_submission(of_yaml(), parsed=parsed).workflow
    assert read_submission(of_yaml(), parsed=parsed, tenant="ann").workflow is not plain
    assert not is_quick(of_yaml(), "bob", parsed)
    assert is_quick(of_yaml(about="other"), "ann", parsed)
    assert read_submission(of_yaml(YAML + "# more\n"), parsed=parsed).workflow is not plain
    one = read_submission(of_yaml(OUTER, part_yaml=inner), parsed=parsed).workflow
    two = read_submission(of_yaml(OUTER, part_yaml=inner.replace("Say", "Sing")), parsed=parsed).workflow
    assert to_dict(one) != to_dict(two)


def test_what_is_wrong_is_said_each_time_with_its_place():
    parsed = ParsedWorkflows()
    for name in ("a.yaml", "a.yaml", "b.yaml"):
        with pytest.raises(WorkflowErrors) as raised:
            read_submission(of_yaml(YAML.replace("[task]", "[tusk]"), name=name), parsed=parsed)
        assert name in str(raised.value)
    assert not is_quick(of_yaml(YAML.replace("[task]", "[tusk]"), name="a.yaml"), "", parsed)


def test_only_so_many_and_none_that_is_large_are_kept():
    parsed = ParsedWorkflows(max_kept=2)
    requests = [of_spec(text) for text in "abc"]
    for request in (requests[0], requests[1], requests[0], requests[2]):
        read_submission(request, parsed=parsed)
    assert [is_quick(request, "", parsed) for request in requests] == [True, False, True]
    large = of_spec("z" * MAX_BYTES)
    read_submission(large, parsed=parsed)
    assert not is_quick(large, "", parsed)
    assert [is_quick(request, "", parsed) for request in requests] == [True, False, True]


def test_the_service_keeps_tenants_apart(monkeypatch: pytest.MonkeyPatch):
    """By whom it says the call is."""
    seen: list[str] = []
    real = gateway_workflows.read_submission

    def read(request, path, *, tenant, parsed):
        seen.append(tenant)
        return real(request, path, tenant=tenant, parsed=parsed)

    monkeypatch.setattr(gateway_workflows, "read_submission", read)

    async def scenario():
        service = gateway_workflows.WorkflowService(executor=None)
        found = []
        for tenant in ("ann", "bob", "ann"):
            set_caller(type(ANYONE)("x", tenant, ANYONE.roles))
            found.append((await service._read(of_yaml())).workflow)
        assert found[0] is found[2] is not found[1]

    asyncio.run(scenario())
    assert seen == ["ann", "bob", "ann"]
