"""Shards as plain processes, for tests: each runs a function of its group; the answers come back in order of rank."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from engine_harness import Driver, byte_tokenizer, force, logprobs
from engine_reference import MAX_CONTEXT, random_model

from laban.actors.calls import Sampling
from laban.actors.engine.config import EngineConfig
from laban.actors.engine.engine import Engine
from laban.actors.engine.load import make_engine
from laban.actors.engine.lockstep import Lockstep, follow
from laban.actors.engine.runner import Runner
from laban.actors.engine.shard_group import ShardGroup, open_rendezvous
from laban.actors.engine.sharding import shard_model
from laban.actors.shards import ShardPlace
from laban.actors.tokenizer import Tokenizer
from laban.kernels import row_attention
from laban.kvstore.encodings import EMPTY_VIEW

HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2}
POOL_TOKENS = 1024  # small enough for the scenario to evict
HOST_BYTES = 1 << 24  # of a worker on cards; pinning a quarter of a machine's memory would take longer than the test


def run_shards(
    size: int, body: Callable[..., Any], *arguments: Any, timeout_s: float = 100.0, device: str = "cpu"
) -> list[Any]:
    """`body(group, *arguments)` in `size` processes, on "cuda" with a GPU each. Raises what one of them raised."""
    answers = outcomes(size, body, *arguments, timeout_s=timeout_s, device=device)
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


def outcomes(
    size: int, body: Callable[..., Any], *arguments: Any, timeout_s: float = 100.0, device: str = "cpu"
) -> list[Any]:
    """As `run_shards`, but what one raises is in its place of the answer."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["laban.actors.engine.load", "transformers.models.auto.modeling_auto", "numba.np.npyimpl"]
    )
    server, address = open_rendezvous("127.0.0.1")
    pipes = [context.Pipe(duplex=False) for _ in range(size)]
    processes = [
        context.Process(target=_run, args=(ShardPlace(rank, size, address), pipes[rank][1], device, body, arguments))
        for rank in range(size)
    ]
    try:
        for process, (_, sending) in zip(processes, pipes, strict=True):
            process.start()
            sending.close()
        answers = []
        for rank, (receiving, _) in enumerate(pipes):
            if not receiving.poll(timeout_s):
                raise TimeoutError(f"shard {rank} has not answered")
            answers.append(receiving.recv())
        return answers
    finally:
        for process in processes:
            if process.is_alive():
                process.join(5)
            process.kill()
            process.join()
        del server


def _run(
    place: ShardPlace, sending: Connection, device: str, body: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    row_attention.compiled = None  # each number of heads would be compiled first
    try:
        group = ShardGroup.join(place, torch.device(f"cuda:{place.rank}" if device == "cuda" else "cpu"))
        sending.send(body(group, *arguments))
    except Exception as error:
        sending.send(RuntimeError(f"{type(error).__name__}: {error}"))


def sharded_engine(kind: str, group: ShardGroup | None, tokenizer: Tokenizer | None = None) -> Engine:
    """An engine over a random model of 8 query and 2 KV heads, or over this shard's slice of it."""
    # Capturing takes a minute with nothing compiled yet: graphs of one kind tell as much as those of three.
    captured = kind == "llama"
    settings = EngineConfig(
        pool_tokens=POOL_TOKENS, max_batch_tokens=96, dtype="float32", cuda_graphs=captured, host_bytes=HOST_BYTES
    )
    model, tokenizer = random_model(kind, **HEADS), tokenizer or byte_tokenizer()
    if group is not None and group.device.type == "cuda":
        identity = {"namespace": "test", "max_context": MAX_CONTEXT}
        return make_engine(model, tokenizer, settings, group.device, group, **identity)
    if group is not None:
        shard_model(model, group)
    runner = Runner(model, POOL_TOKENS, group)
    return Engine(runner, tokenizer, settings, namespace="test", max_context=MAX_CONTEXT)


class DrivenLockstep(Lockstep):
    """A Lockstep that a Driver may look into."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def play_all(group: ShardGroup, kinds: tuple[str, ...]) -> list[tuple[Any, Any]]:
    """For each kind, what rank 0 answered (None elsewhere) and how this shard's store ended."""
    answers = []
    for kind in kinds:
        engine = sharded_engine(kind, group)
        answer = None
        if group.rank == 0:
            lockstep = DrivenLockstep(engine, group)
            answer = play(Driver(lockstep))  # type: ignore[arg-type]
            lockstep.close()
        else:
            follow(engine, group)
        entries = [(e.key, e.num_tokens, tuple(e.pages), e.last_use) for e in engine.store._entries.values()]
        totals = engine.tiers.tallying.totals()
        entries.append(("drafted", totals.tokens_drafted, (), totals.tokens_accepted))
        answers.append((answer, entries))
        engine.close()
        engine.runner.close()
    group.close()
    return answers


def play(driver: Driver) -> tuple[list[np.ndarray], list[tuple[int, ...]], list[str]]:
    """A few calls of every sort: log-probabilities that were forced, tokens that were chosen, how calls ended."""
    texts = [[(7 * i + 3 * size) % 128 for i in range(size)] for size in (140, 9, 70)]
    long, short, middle = (driver.prefill(text) for text in texts)
    after = driver.prefill([5, 6, 7], driver.chain(middle))
    forced, chosen = [], []
    for turn in range(3):
        view = driver.place(EMPTY_VIEW, (long, short, middle)[turn], 0)
        view = driver.place(view, (short, middle, long)[turn], 150)
        view = driver.place(view, after, 300 + turn, 1, 3)
        forced.append(driver.submit([1, 2 + turn], view, 310, force([3, 4, 5 + turn]), (9,)))
        sampling = Sampling(max_tokens=6, temperature=0.8 * turn, top_k=40, top_p=0.9, seed=turn)
        chosen.append(driver.submit([8], view, 310, sampling))
    forced.append(driver.submit([1], driver.place(EMPTY_VIEW, long, 0), 150, force(texts[0][4:34])))  # may be drafted
    dropped = driver.submit([1, 2], driver.chain(long), sampling=Sampling(max_tokens=400))
    for _ in range(4):
        driver.step()
    driver.engine.abort(dropped)
    driver.run()
    for number in range(4):  # more than fits: evicts, in the order of last uses
        driver.prefill([number + 1] * 200)
    back = driver.submit([1], driver.chain(middle, after), sampling=force([2]))
    driver.run()
    results = [driver.result(call) for call in (*forced, *chosen, back)]
    told = [logprobs(result).numpy() for result in results if result.logprobs]
    return told, [result.generated for result in results], [result.finish_reason for result in results]


def compare_dense(group: ShardGroup, changes: dict[str, Any]) -> tuple[float, bool]:
    """How far this shard's logits are from the whole model's, and whether its head lies in the embedding's memory."""
    tokens = torch.arange(3, 23)[None]
    whole, model = (random_model("llama", **HEADS, **changes) for _ in range(2))
    for parameter, other in zip(whole.parameters(), model.parameters(), strict=True):
        if parameter.dim() == 1:  # biases begin at zero
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(parameter.shape[0]))
            other.data.copy_(parameter.data)
    shard_model(model, group)
    with torch.no_grad():
        expected, logits = whole(tokens).logits, model(tokens).logits
    head = model.get_output_embeddings().linear.weight
    shares = head.untyped_storage().data_ptr() == model.get_input_embeddings().weight.untyped_storage().data_ptr()
    group.close()
    return float((expected - logits).abs().max()), shares


def fail_on_one(group: ShardGroup) -> str:
    """The last shard's third iteration fails; what each shard says of it."""
    engine = sharded_engine("llama", group)
    if group.rank == group.size - 1:
        forward, count = engine.runner.forward, iter(range(1, 100))

        def failing(batch: Any) -> Any:
            if next(count) == 3:
                raise MemoryError("out of memory, says the test")
            return forward(batch)

        engine.runner.forward = failing  # type: ignore[method-assign]
        follow(engine, group)
    elif group.rank:
        follow(engine, group)
    else:
        play(Driver(DrivenLockstep(engine, group)))  # type: ignore[arg-type]
    return "nothing failed"
