"""What random input is given to, and what must never come of it: a crash, a hang, INTERNAL, something half done."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import tempfile
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from executor_rig import Rig, rig
from fuzz_inputs import PLAIN, bent_bytes, documents, requests
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from grpc import aio
from hypothesis import strategies as st

from laban.actors.errors import LabanError
from laban.cluster.gateway import Gateway
from laban.cluster.lookout import Lookout
from laban.cluster.records import TERMINAL_WORKFLOW
from laban.cluster.sessions import Sessions
from laban.cluster.workflow.lint import lint
from laban.cluster.workflow.parse import WorkflowErrors, parse_yaml, to_dict
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.states import Overrides
from laban.kvstore.disk import DiskTier
from laban.kvstore.disk_files import MAGIC, VERSION, ChunkLayout, Header
from laban.kvstore.disk_folder import SUFFIX
from laban.proto import laban_pb2 as pb

UNFIT = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED)
"""The last one only of calls that do not wait for something to happen."""
HUNG_S = 60.0  # for one input
GLANCE_S = 0.05  # at a stream, or a lease that may never come
SERVICES = tuple(pb.DESCRIPTOR.services_by_name.values())
METHODS: tuple[tuple[ServiceDescriptor, MethodDescriptor], ...] = tuple(
    (service, method) for service in SERVICES for method in service.methods
)
ASK = """
version: 1
name: ask
messages: {q: "Well?"}
steps:
  - {step: human, external: {tool: t}, read: [q]}
  - {step: answer, read: [q, human], sampling: {max_tokens: 6}}
"""


def read_document(document: str | bytes) -> bool:
    """Whether it is a workflow that can run, without inputs. Raises what should never be raised."""
    try:
        workflow = parse_yaml(document)
    except WorkflowErrors:
        return False
    lint(workflow)
    to_dict(workflow)
    try:
        Run(workflow, {}, Overrides())
    except (LabanError, WorkflowErrors):
        return False
    return True


class Served:
    """A gateway over scripted workers in a thread of its own, called by raw bytes."""

    def __init__(self, made: Rig, channel: aio.Channel) -> None:
        self.rig = made
        self._channel = channel
        self.names = ["wf-none", "human", "answer", "t", "s-none"]

    async def call(self, service: ServiceDescriptor, method: MethodDescriptor, request: bytes) -> bytes | None:
        """The answer, or a stream's first; None: refused. Raises AssertionError for a status that says nothing."""
        path = f"/{service.full_name}/{method.name}"
        waits = method.server_streaming or method.name == "LeaseStep"
        try:
            if method.server_streaming:
                answers = self._channel.unary_stream(path)(request, timeout=GLANCE_S)
                return await anext(aiter(answers), None)
            return await self._channel.unary_unary(path)(request, timeout=GLANCE_S if waits else HUNG_S)
        except aio.AioRpcError as error:
            if error.code() in UNFIT[: 2 if waits else 3]:
                raise AssertionError(f"{path}: {error.code()} {error.details()} for {request!r}") from None
            return None

    async def settle(self) -> None:
        """Stop all that runs: each workflow's events are whole and end with its end."""
        executor = self.rig.executor
        for record in executor.list(page_size=1000)[0]:
            await executor.cancel(record.workflow_id)
            async with asyncio.timeout(HUNG_S):
                events = [item async for item in executor.watch(record.workflow_id) if hasattr(item, "number")]
            assert [event.number for event in events] == list(range(1, len(events) + 1))
            assert events[-1].workflow_state in TERMINAL_WORKFLOW
            assert executor.get(record.workflow_id).state == events[-1].workflow_state
            await executor.delete(record.workflow_id)
        assert executor.status().workflows_running == 0


@asynccontextmanager
async def serving() -> AsyncIterator[Served]:
    async with rig(2, max_active=64) as made:
        lookout = Lookout(made.dispatcher)
        foresight = lookout.foresight
        sessions = Sessions(made.dispatcher, made.executor.languages.of, hint_taker=foresight, onlooker=foresight)
        lookout.start()
        gateway = Gateway(made.executor, sessions, made.executor.status, fleet=made.dispatcher.fleet)
        port = await gateway.start()
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            served = Served(made, channel)
            try:
                yield served
                await served.settle()
            finally:
                await gateway.stop(0)
                await lookout.stop()


class Loop:
    """An event loop in a thread, with a server in it, so that one server takes many examples."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._serving = serving()
        self.served: Served = self.run(self._serving.__aenter__())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(2 * HUNG_S)

    def end(self) -> None:
        try:
            self.run(self._serving.__aexit__(None, None, None))
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(HUNG_S)


@contextmanager
def server() -> Iterator[Loop]:
    made = Loop()
    try:
        yield made
    finally:
        made.end()


def one_request(data: st.DataObject, loop: Loop) -> None:
    service, method = data.draw(st.sampled_from(METHODS))
    request = data.draw(requests(method.input_type, loop.served.names))
    loop.run(loop.served.call(service, method, request))


@dataclass
class Known:
    """What a sequence of calls has come by."""

    workflows: list[str] = field(default_factory=list)
    leases: list[str] = field(default_factory=list)
    sessions: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Pick:
    """One of what is known when it is asked for: what is drawn must not depend on what a server answers, and when."""

    kind: str
    number: int
    none: str

    def of(self, known: Known) -> str:
        options: list[str] = getattr(known, self.kind)
        return options[self.number % len(options)] if options and self.number else self.none


def some_calls(data: st.DataObject, loop: Loop) -> None:
    """Calls that make sense by themselves, in any order, of what those before them made; then all is stopped."""
    known = Known()
    calls = [("Submit", pb.SubmitRequest, {"yaml": ASK.encode()}), ("OpenSession", pb.OpenSessionRequest, {})]
    for name, kind, fields in [*calls, *data.draw(st.lists(_calls(), min_size=1, max_size=8))]:
        request = kind(**{key: _picked(value, known) for key, value in fields.items()})
        service, method = next(each for each in METHODS if each[1].name == name)
        answer = loop.run(loop.served.call(service, method, request.SerializeToString()))
        if answer is not None:
            _learn(known, name, answer)
    loop.run(loop.served.settle())


def _picked(value: Any, known: Known) -> Any:
    if isinstance(value, list):
        return [_picked(each, known) for each in value]
    return value.of(known) if isinstance(value, Pick) else value


def _calls() -> st.SearchStrategy[tuple[str, Any, dict[str, Any]]]:
    def pick(kind: str, none: str) -> st.SearchStrategy[Pick]:
        return st.builds(Pick, st.just(kind), st.integers(0, 7), st.just(none))

    workflow, lease = pick("workflows", "wf-none"), pick("leases", "")
    session, message = pick("sessions", "s-none"), pick("messages", "m-none")
    address, word = st.sampled_from(["human", "answer", "none"]), st.sampled_from(["yes", "no", ""])
    number = st.integers(-1, 9)

    def made(kind: Any, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.fixed_dictionaries(fields).map(lambda given: (kind, given))

    options: dict[str, st.SearchStrategy[Any]] = {
        "Submit": made(pb.SubmitRequest, yaml=st.just(ASK.encode()), idempotency_key=st.sampled_from(["", "k"])),
        "Watch": made(pb.WatchRequest, workflow_id=workflow, after_event=number),
        "Get": made(pb.GetRequest, workflow_id=workflow),
        "List": made(pb.ListRequest, page_size=number, page_token=word),
        "Cancel": made(pb.CancelRequest, workflow_id=workflow),
        "DeleteWorkflow": made(pb.DeleteWorkflowRequest, workflow_id=workflow),
        "LeaseStep": made(pb.LeaseStepRequest, tools=st.just(["t"]), workflow_id=st.one_of(st.just(""), workflow)),
        "RenewLease": made(pb.RenewLeaseRequest, lease_id=lease),
        "CompleteStep": made(pb.CompleteStepRequest, workflow_id=workflow, address=address, text=word, lease_id=lease),
        "FailStep": made(pb.FailStepRequest, workflow_id=workflow, address=address, message=word, lease_id=lease),
        "ExplainStep": made(pb.ExplainStepRequest, workflow_id=workflow, address=address),
        "OpenSession": made(pb.OpenSessionRequest),
        "Prefill": made(pb.PrefillRequest, session_id=session, role=st.just("user"), text=word),
        "Release": made(pb.ReleaseRequest, session_id=session, message_ids=st.lists(message, max_size=2)),
        "GetSession": made(pb.GetSessionRequest, session_id=session),
        "CloseSession": made(pb.CloseSessionRequest, session_id=session),
        "GetStatus": made(pb.GetStatusRequest),
    }
    return st.sampled_from(sorted(options)).flatmap(lambda name: options[name].map(lambda made: (name, *made)))


def _learn(known: Known, name: str, answer: bytes) -> None:
    match name:
        case "Submit":
            known.workflows.append(pb.WorkflowRecord.FromString(answer).workflow_id)
        case "LeaseStep":
            known.leases.append(pb.LeaseStepResponse.FromString(answer).lease.lease_id)
        case "OpenSession":
            known.sessions.append(pb.Session.FromString(answer).session_id)
        case "Prefill":
            known.messages.append(pb.MessageRecord.FromString(answer).message_id)


LAYOUT = ChunkLayout("int16", (2, -1, 3))
NUM_TOKENS = 10


def one_folder(data: st.DataObject) -> None:
    """A folder of the disk tier with a damaged, forged or foreign file: the tier opens, what it gives is as it was
    written, what is not its own stays."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = np.arange(2 * NUM_TOKENS * 3, dtype=np.int16).reshape(LAYOUT.of(NUM_TOKENS))
        with _tier(folder) as tier:
            for key in ("good", "hit"):
                assert tier.save(key, "model/a", NUM_TOKENS, lambda begin, end: whole[:, begin:end]).wait(HUNG_S)
        path = folder / f"hit{SUFFIX}"
        content = data.draw(st.one_of(bent_bytes(path.read_bytes()), _forged(), st.binary(max_size=80)))
        path.write_bytes(content)
        other = data.draw(st.sampled_from(["notes.txt", "x.kv", "x.kv.part", ".kv", "good.kv.part", "a" * 200]))
        (folder / other).write_bytes(foreign := data.draw(st.binary(max_size=40)))
        if data.draw(st.booleans()):
            os.symlink(folder / "good.kv", folder / "link.kv")
        with _tier(folder) as tier:
            assert tier.used_bytes >= 0
            for key in ("good", *tier.held()):
                found = np.zeros(LAYOUT.of(tier.held()[key][0]), np.int16)

                def take(begin: int, end: int, chunk: Any, into: Any = found) -> None:
                    into[:, begin:end] = chunk

                arrival = tier.load(key, take)
                assert arrival.wait(HUNG_S)
                done = arrival.num_tokens_done
                assert done == NUM_TOKENS or key != "good"
                if done and content != b"":
                    assert key not in ("good", "hit") or (found[:, :done] == whole[:, :done]).all()
        if not foreign.startswith(MAGIC[: max(1, len(foreign))]) and foreign:
            assert (folder / other).read_bytes() == foreign


@contextmanager
def _tier(folder: Path) -> Iterator[DiskTier]:
    tier = DiskTier(folder, 1 << 20, "model/", LAYOUT, chunk_tokens=4)
    try:
        yield tier
    finally:
        tier.close()


@st.composite
def _forged(draw: st.DrawFn) -> bytes:
    """A header with its right checksum that says anything."""
    sound = Header("hit", "model/a", NUM_TOKENS, LAYOUT.bytes_per_token, LAYOUT.dtype, LAYOUT.shape, 4)
    fields: dict[str, Any] = json.loads(sound.encoded()[16:-4])
    number = st.one_of(PLAIN, st.integers(), st.integers(0, 2**62), st.just("9" * 50))
    for name in draw(st.lists(st.sampled_from([*fields, "other"]), max_size=3)):
        fields[name] = draw(
            st.one_of(number, st.lists(number, max_size=4), st.sampled_from(["O", "f8", "V9", "int16"]))
        )
    text = draw(st.sampled_from([json.dumps(fields).encode()] * 4 + [b"[" * 60_000, b"NaN", b"{}", b"\xff"]))
    start = struct.pack("<8sII", MAGIC, VERSION, draw(st.sampled_from([len(text)] * 4 + [0, 2**32 - 1]))) + text
    return start + struct.pack("<I", zlib.crc32(start)) + draw(st.binary(max_size=200))


def one_document(data: st.DataObject) -> None:
    read_document(data.draw(documents()))


def one_schema(data: st.DataObject) -> None:
    """Texts made of any logits follow it, or it is refused."""
    from constrained_cases import check_schema, players

    check_schema(data.draw(st.integers(0, 2**48)), players())


TARGETS: dict[str, tuple[float, Callable[..., None], bool]] = {
    "documents": (0.40, one_document, False),
    "requests": (0.40, one_request, True),
    "sequences": (0.05, some_calls, True),
    "disk": (0.10, one_folder, False),
    "schemas": (0.05, one_schema, False),
}
"""Name: the share of inputs, what is done with one, whether it needs a server."""
