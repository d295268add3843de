"""The synchronous client, what both refuse before sending, and what they import."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from api_fakes import EVENTS, MESSAGE, RECORD, STATUS, YAML, Served, eventually, serving

from laban.actors.errors import InvalidInput, LabanError, NotFound, Unavailable
from laban.cluster.client import Client
from laban.cluster.client_lease_requests import complete_request, fail_request, lease_request
from laban.cluster.client_requests import (
    prefill_request,
    put,
    release_request,
    submit_request,
    view_of,
)
from laban.cluster.records import MessageRecord, SessionPlacement
from laban.cluster.workflow.diagnostics import WorkflowErrors
from laban.proto import laban_pb2 as pb


def with_client(work: Callable[[Client, Served], Any], **fakes: Any) -> None:
    """Run `work` in a thread of its own beside the server's event loop."""

    async def main() -> None:
        async with serving(**fakes) as served:

            def run() -> None:
                with Client(served.address, timeout_s=20) as client:
                    work(client, served)

            await asyncio.to_thread(run)

    asyncio.run(main())


def test_workflows() -> None:
    def work(client: Client, served: Served) -> None:
        assert client.submit(YAML, {"who": "A"}, seed=1) == RECORD
        assert list(client.run(YAML, {"who": "A"})) == list(EVENTS)
        assert list(client.watch("wf-1", 3)) == [EVENTS[2], EVENTS[4]]
        assert client.wait("wf-1") == client.get("wf-1") == client.cancel("wf-1") == RECORD
        assert client.list(states=["succeeded"]) == ([RECORD], "7")
        assert client.complete_step("wf-1", "human", "text") == client.fail_step("wf-1", "human", "why") == RECORD
        assert client.status() == STATUS

    with_client(work)


def test_sessions() -> None:
    def work(client: Client, served: Served) -> None:
        with client.open_session(30) as session:
            message = session.prefill("hello", role="user")
            assert message == MESSAGE
            items = list(session.decode(view=[message], max_tokens=2))
            assert items[-1] == MESSAGE
            assert [item.text for item in items[:-1] if not isinstance(item, MessageRecord)] == ["te", "xt"]
            assert session.generate(view=[message.message_id]) == MESSAGE
            assert session.release(message) == 1
            assert session.get().messages == (MESSAGE,)
        assert served.sessions.open_sessions == set()
        with client.open_session() as session:
            session.close()  # closing again at the end of the block is no error

    with_client(work)


def test_errors() -> None:
    def work(client: Client, served: Served) -> None:
        with pytest.raises(NotFound) as missing:
            client.get("wf-9")
        assert (missing.value.field, missing.value.value) == ("workflow_id", "wf-9")
        with pytest.raises(NotFound):
            list(client.watch("wf-9"))
        with pytest.raises(WorkflowErrors):
            client.submit("version: 1")

    with_client(work)


def test_leaving_a_stream_early() -> None:
    from api_fakes import FakeExecutor

    executor = FakeExecutor(script=EVENTS[:2], hang=True)

    def work(client: Client, served: Served) -> None:
        stream = client.run(YAML, {"who": "A"}, cancel_on_disconnect=True)
        assert next(stream) == EVENTS[0]
        stream.close()

    async def main() -> None:
        async with serving(executor) as served:
            await asyncio.to_thread(lambda: work(Client(served.address), served))
            await eventually(lambda: executor.cancelled == ["wf-1"], "the workflow is cancelled")
            assert executor.watches_open == 0

    asyncio.run(main())


def test_nobody_there() -> None:
    with Client("127.0.0.1:1", timeout_s=10) as client:
        with pytest.raises(Unavailable, match=r"cannot reach 127\.0\.0\.1:1"):
            client.get("wf-1")
        with pytest.raises(Unavailable, match="cannot reach"):
            list(client.watch("wf-1"))


@pytest.mark.parametrize("address", ["", "localhost", "http://localhost:80", "a:b", "host:1234567", "two words:80"])
def test_addresses(address: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Client(address)
    assert caught.value.field == "address"


@pytest.mark.parametrize("address", ["localhost:80", "[::1]:80", "dns:///laban:80", "unix:/tmp/x"])
def test_addresses_that_will_do(address: str) -> None:
    Client(address).close()


def test_a_file_is_read_and_named(tmp_path: Path) -> None:
    path = tmp_path / "greet.yaml"
    path.write_text(YAML)
    request = submit_request(path)
    assert request.yaml == YAML.encode()
    assert request.source_name == str(path)
    with pytest.raises(NotFound):
        submit_request(tmp_path / "none.yaml")
    with pytest.raises(InvalidInput):
        submit_request(tmp_path)


def test_a_builder_is_taken_by_its_dict_form() -> None:
    class Builder:
        def to_dict(self) -> dict[str, Any]:
            return {"name": "x", "steps": [{"step": "a"}]}

    assert submit_request(Builder()).workflow.steps[0].step == "a"


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda: submit_request(3), "workflow"),  # type: ignore[arg-type]
        (lambda: submit_request("", {"x": object()}), "inputs.x"),
        (lambda: submit_request("", fidelity="perfect"), "overrides.fidelity"),
        (lambda: submit_request("", seed=2**70), "overrides.seed"),
        (lambda: submit_request("", overrides={"max_tokens": 1}), "overrides"),
        (lambda: submit_request("", overrides={"a.colour": 1}), "overrides.a.colour"),
        (lambda: submit_request("", overrides={"a.max_tokens": "many"}), "overrides.a.max_tokens"),
        (lambda: submit_request("", overrides={"a.max_tokens": 1.5}), "overrides.a.max_tokens"),
        (lambda: submit_request("", overrides={"a.stop": 1}), "overrides.a.stop"),
        (lambda: submit_request("", idempotency_key="\ud800"), "idempotency_key"),
        (lambda: submit_request("", overrides={"a.temperature": 10**400}), "overrides.a.temperature"),
        (lambda: submit_request("", overrides={"a.stop": ["\ud800"]}), "overrides.a.stop"),
        (lambda: submit_request("", {"\ud800": 1}), "inputs"),
        (lambda: submit_request(Path("a\0b")), "workflow"),
        (lambda: complete_request("\ud800", "a", "x"), "workflow_id"),
        (lambda: fail_request("wf-1", "\ud800", "x"), "address"),
        (lambda: complete_request("wf-1", "a", "\ud800"), "text"),
        (lambda: complete_request("wf-1", "a", None), "output"),
        (lambda: complete_request("wf-1", "a", "x", {}), "output"),
        (lambda: complete_request("wf-1", "a", None, {"x": [object()]}), "output.x[0]"),
        (lambda: lease_request(["\ud800"], "", "", 1), "tools"),
        (lambda: lease_request(["t"], "", "", 61), "wait_s"),
        (lambda: lease_request(["t"], "", "", float("nan")), "wait_s"),
        (lambda: release_request("s", ["\ud800"]), "message_ids"),
        (lambda: view_of(["\ud800"], "packed"), "view.placements[0].message_id"),
        (lambda: view_of([5], "packed"), "view.placements[0]"),  # type: ignore[list-item]
        (lambda: view_of(None, "packed"), "view"),  # type: ignore[arg-type]
        (lambda: view_of("m1", "packed"), "view"),
        (lambda: view_of(MESSAGE, "packed"), "view"),  # type: ignore[arg-type]
        (lambda: Client("127.0.0.1:1").get("\ud800"), "workflow_id"),
        (lambda: Client("127.0.0.1:1").watch("\ud800"), "workflow_id"),
        (lambda: Client("127.0.0.1:1").cancel("\ud800"), "workflow_id"),
        (lambda: prefill_request("s", None, None, {}), "content"),
        (lambda: prefill_request("s", "x", [1], {}), "content"),
        (lambda: prefill_request("s", None, [2**40], {}), "token_ids.ids"),
        (lambda: prefill_request("s", "\udcff", None, {}), "text"),
        (lambda: prefill_request("s", "x", None, {"layout": "spiral"}), "view.layout"),  # type: ignore[typeddict-item]
        (lambda: prefill_request("s", "x", None, {"fidelity": "x"}), "fidelity"),
        (
            lambda: prefill_request("s", "x", None, {"view": [SessionPlacement("m", 2**40)]}),
            "view.placements[0].position",
        ),
    ],
)
def test_what_cannot_be_sent(make: Callable[[], Any], path: str) -> None:
    with pytest.raises(LabanError) as caught:
        make()
    assert caught.value.field == path


def test_numbers_may_be_text() -> None:
    request = submit_request("", overrides={"a[b,2].max_tokens": "7", "a[b,2].temperature": "0.5", "c.stop": "x"})
    first, second = request.overrides.steps
    assert (first.address, first.sampling.max_tokens, first.sampling.temperature) == ("a[b,2]", 7, 0.5)
    assert list(second.sampling.stop) == ["x"]


def test_the_client_imports_grpc_and_protobuf_alone() -> None:
    script = (
        "import sys, laban.cluster.client\n"
        "heavy = {'torch', 'ray', 'transformers', 'tokenizers', 'pydantic', 'yaml', 'jinja2', 'numpy', 'rich'}\n"
        "heavy |= {'jsonschema', 're2'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_generated_code_loads_from_protobuf_6_31_on() -> None:
    source = (Path(__file__).parents[3] / "proto" / "laban_pb2.py").read_text()
    assert "# Protobuf Python Version: 6.31." in source


@pytest.mark.parametrize(
    ("target", "name", "value", "expected"),
    [
        (pb.CompleteStepRequest(), "text", 5, "text: expected text, without lone surrogates (got 5)"),
        (pb.CompleteStepRequest(), "text", "\ud800", "expected text, without lone surrogates"),
        (pb.Sampling(), "seed", 1.5, "seed: expected a whole number of 64 bits"),
        (pb.Sampling(), "seed", 2**64, "a whole number of 64 bits"),
        (pb.Sampling(), "temperature", "hot", "temperature: expected a number (got 'hot')"),
        (pb.Sampling(), "temperature", [1], "temperature: expected a number (got [1])"),
        (pb.ChatMessage(), "text", [{"type": "text", "text": "x"}], "text: expected text, without lone surrogates"),
        (pb.Sampling(), "stop", "abc", "stop: expected a list, each text, without lone surrogates"),
        (pb.Sampling(), "stop", ["a", 5], "stop: expected a list, each text, without lone surrogates"),
    ],
)
def test_a_value_that_a_field_cannot_hold_is_answered_with_what_it_can(
    target: object, name: str, value: object, expected: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        put(target, name, value)
    assert expected in str(caught.value)
