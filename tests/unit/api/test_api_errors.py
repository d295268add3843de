"""Errors as google.rpc.Status: what each carries, that it comes back, and that it stays small."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from laban.actors import errors
from laban.actors.errors import LabanError
from laban.cluster.gateway_requests import read_asked, read_lease_wish, read_sampling_values
from laban.cluster.translate_errors import STATUS_KEY, error_from_status, error_to_status, trailing_metadata
from laban.cluster.workflow.diagnostics import Diagnostic, WorkflowErrors
from laban.proto import laban_pb2 as pb

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LabanError)]


def details(status: Status, kind: type) -> list:
    found = []
    for item in status.details:
        if item.Is(kind.DESCRIPTOR):
            found.append(kind())
            item.Unpack(found[-1])
    return found


def there_and_back(error: LabanError) -> LabanError:
    status = error_to_status(error)
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    return error_from_status(code, status.message, trailing_metadata(status))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [None, -1, 1.5, "text", "", ["a", 1], {"k": None}, float("inf")])
def test_every_error_comes_back_as_it_was(kind: type[LabanError], value: object) -> None:
    error = kind("expected 0 or more", field="steps[0].max_tokens", value=value)
    back = there_and_back(error)
    assert type(back) is kind
    assert (back.message, back.field, back.value, back.status) == (error.message, error.field, value, error.status)
    assert str(back) == str(error)


def test_details_say_field_value_and_expected() -> None:
    status = error_to_status(errors.InvalidInput("expected 0 or more", field="view.placements[2].position", value=-3))
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    [bad] = details(status, BadRequest)
    assert [(v.field, v.description) for v in bad.field_violations] == [
        ("view.placements[2].position", "expected 0 or more (got -3)")
    ]
    [info] = details(status, ErrorInfo)
    assert (info.reason, info.domain) == ("INVALID_INPUT", "laban")
    assert dict(info.metadata) == {
        "message": "expected 0 or more", "field": "view.placements[2].position", "value": "-3"
    }  # fmt: skip
    assert not details(status, RetryInfo)


def test_what_was_expected_is_all_that_is_taken() -> None:
    with pytest.raises(errors.InvalidInput, match="fidelity: expected exact, corrected, blended, direct or auto"):
        read_asked(99, "fidelity")
    for seconds, nanos in ((1, -5), (-1, 5), (0, 1_000_000_000)):
        with pytest.raises(errors.InvalidInput, match="wait: expected nanoseconds of less than a second"):
            read_lease_wish(pb.LeaseStepRequest(tools=["t"], wait=Duration(seconds=seconds, nanos=nanos)))
    assert read_lease_wish(pb.LeaseStepRequest(tools=["t"], wait=Duration(seconds=1, nanos=5))).wait_s > 1


def test_every_mistake_in_sampling_is_named() -> None:
    sampling = pb.Sampling(top_p=5, temperature=-1, top_k=-3, stop=["", "a"], forced_text="")
    with pytest.raises(errors.InvalidInput) as caught:
        read_sampling_values(sampling, "sampling")
    status = error_to_status(caught.value)
    [bad] = details(status, BadRequest)
    fields = ["temperature", "top_p", "top_k", "stop[0]", "forced_text"]
    assert [violation.field for violation in bad.field_violations] == [f"sampling.{name}" for name in fields]
    assert bad.field_violations[2].description == "expected a whole number, 0 or more and at most 1000000 (got -3)"
    assert status.message.endswith("(got -1.0) (and 4 more)")
    assert there_and_back(caught.value).field == "sampling.temperature"


@pytest.mark.parametrize("kind", [errors.Unavailable, errors.Exhausted])
def test_what_may_pass_says_when_to_try_again(kind: type[LabanError]) -> None:
    [retry] = details(error_to_status(kind("busy")), RetryInfo)
    assert retry.retry_delay.seconds >= 1


def test_diagnostics_come_back_with_their_places() -> None:
    found = [
        Diagnostic("warning", "steps[0]", 4, 5, "odd", source="a.yaml"),
        Diagnostic("error", "steps[1].read[0]", 7, 9, "unknown message 'x'", "x", "one of task", source="a.yaml"),
        Diagnostic("error", "steps[2].fidelity", 8, 3, "reserved", code="not_built", source="a.yaml"),
    ]
    error = WorkflowErrors(found)
    status = error_to_status(error)
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    [bad] = details(status, BadRequest)
    assert [v.field for v in bad.field_violations] == ["steps[1].read[0]", "steps[2].fidelity"]
    assert "a.yaml:7:9" in bad.field_violations[0].description
    back = there_and_back(error)
    assert isinstance(back, WorkflowErrors)
    assert sorted(back.diagnostics, key=lambda d: d.line or 0) == found
    assert back.status == "INVALID_ARGUMENT"


def test_a_message_that_says_its_numbers_at_the_end_comes_whole() -> None:
    text = (
        "step a needs up to 9036 positions "
        + "(30 + 4 of header) " * 8
        + "expected at most the model's context of 8192"
    )
    back = there_and_back(errors.OutOfRange(text, field="sampling.max_tokens"))
    assert back.message == text


def test_only_reserved_things_are_unimplemented() -> None:
    back = there_and_back(WorkflowErrors([Diagnostic("error", "fidelity", 1, 1, "reserved", code="not_built")]))
    assert isinstance(back, WorkflowErrors)
    assert back.status == "UNIMPLEMENTED"


@pytest.mark.parametrize("text", ["x" * 100_000, "\U0001f30d" * 50_000, "\ud800" * 1000, "é" * 99_999])
def test_errors_fit_in_grpc_metadata(text: str) -> None:
    many = [Diagnostic("error", text, 1, 1, text, text, text, source=text) for _ in range(500)]
    for error in (LabanError(text, field=text, value=text), WorkflowErrors(many)):
        status = error_to_status(error)
        percent_encoded = sum(1 if 32 <= byte < 127 else 3 for byte in status.message.encode())
        assert percent_encoded + status.ByteSize() * 4 / 3 < 8000
        assert there_and_back(error).status == error.status


def test_left_out_diagnostics_are_counted() -> None:
    from laban.proto import laban_pb2 as pb

    status = error_to_status(WorkflowErrors([Diagnostic("error", f"a[{n}]", 1, 1, "wrong") for n in range(500)]))
    [found] = details(status, pb.Diagnostics)
    assert len(found.diagnostics) > 5
    assert len(found.diagnostics) + found.omitted == 500


def test_statuses_that_are_not_ours() -> None:
    back = error_from_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "too large", None)
    assert type(back) is errors.Exhausted
    assert back.message == "too large"
    back = error_from_status(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", ((STATUS_KEY, b"\xff\xff"),))
    assert type(back) is LabanError
    assert back.status == "DEADLINE_EXCEEDED"
    foreign = Status(code=3, message="theirs")
    foreign.details.add().Pack(ErrorInfo(domain="other", reason="X"))
    back = error_from_status(grpc.StatusCode.INVALID_ARGUMENT, "theirs", trailing_metadata(foreign))
    assert type(back) is errors.InvalidInput
    assert back.message == "theirs"
