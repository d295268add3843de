"""What the engine computes is what the definition says: chains, decodes, any DAG, shifts, permutations."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from engine_harness import (
    TOLERANCE,
    Driver,
    assert_same_encoding,
    force,
    interpreter,
    logprobs,
    make_engine,
    place_recorded,
)
from engine_reference import DRAWN_KINDS, KINDS, MAX_CONTEXT, VOCAB_SIZE, Placed, Recorded, random_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laban.actors.calls import Sampling
from laban.kvstore.encodings import EMPTY_VIEW, EncodingSpec, View, make_spec

pytestmark = pytest.mark.slow


def some_tokens(count: int, seed: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(VOCAB_SIZE) for _ in range(count)]


def split(tokens: list[int], cuts: list[int]) -> list[list[int]]:
    edges = [0, *sorted(cuts), len(tokens)]
    return [tokens[a:b] for a, b in itertools.pairwise(edges) if a < b]


@pytest.mark.parametrize("kind", [*KINDS, *DRAWN_KINDS])
def test_the_interpreter_is_the_model_itself_on_a_plain_prompt(kind: str) -> None:
    tokens = some_tokens(130, 8)
    model = random_model(kind).eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0]
    torch.testing.assert_close(interpreter(kind).encode(tokens, 0, []).logits, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", [*KINDS, *DRAWN_KINDS])
@pytest.mark.parametrize(("cuts", "chunk"), [([], 512), ([1, 2, 90], 7), ([16, 32, 48], 16), ([40, 41, 100], 64)])
def test_a_chain_of_messages_is_the_prefill_of_their_concatenation(kind: str, cuts: list[int], chunk: int) -> None:
    tokens = some_tokens(120, seed=len(cuts) * chunk)
    driver, oracle = Driver(make_engine(kind, max_batch_tokens=chunk)), interpreter(kind)
    whole = oracle.encode(tokens, 0, [])
    chain: list[EncodingSpec] = []
    for part in split(tokens, cuts):
        chain.append(driver.prefill(part, driver.chain(*chain)))
        keys, values = (
            whole.keys[:, chain[-1].start : chain[-1].stop],
            whole.values[:, chain[-1].start : chain[-1].stop],
        )
        assert_same_encoding(driver, oracle, chain[-1], Recorded(chain[-1].start, keys, values, whole.logits))
        assert chain[-1].exact
    # Its logits, too: the next token after the whole.
    call = driver.submit(tokens[:1], driver.chain(*chain), sampling=force([5]))
    driver.run()
    expected = oracle.encode(tokens + tokens[:1], 0, []).logits[-1].log_softmax(-1)
    torch.testing.assert_close(logprobs(driver.result(call))[0], expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_chain_is_encoded_with_the_call_that_reads_it(kind: str) -> None:
    """One call brings specs that nobody has computed, in chunks smaller than they are."""
    driver, oracle = Driver(make_engine(kind, max_batch_tokens=24)), interpreter(kind)
    tokens, view, at = some_tokens(130, 3), EMPTY_VIEW, 0
    for part in split(tokens, [10, 11, 70]):
        spec = make_spec("test", part, at, view, driver.specs)
        driver.specs[spec.encoding_id] = spec
        view, at = View(spec.encoding_id), spec.stop
    call = driver.submit([7, 8], view, sampling=force([9, 10, 11]))
    driver.run()
    result = driver.result(call)
    assert (result.tokens_read, result.tokens_reused, result.tokens_encoded) == (130, 0, 132)
    expected = oracle.encode([*tokens, 7, 8, 9, 10, 11], 0, []).logits[131:134].log_softmax(-1)
    torch.testing.assert_close(logprobs(result), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_decode_is_prefill_of_the_same_tokens(kind: str) -> None:
    header, generated, terminator = some_tokens(3, 1), some_tokens(20, 2), (1, 2)
    driver, oracle = Driver(make_engine(kind)), interpreter(kind)
    parent = driver.prefill(some_tokens(21, 0))
    view = driver.chain(parent)
    call = driver.submit(header, view, sampling=force(generated), terminator=terminator)
    driver.run()
    decoded = driver.result(call).encoding
    assert decoded.start == parent.stop  # no gap, no overlap
    message = [*header, *generated, *terminator]
    assert list(decoded.tokens) == message
    recorded = oracle.encode(message, parent.stop, [place_recorded(oracle.encode(list(parent.tokens), 0, []), 0)])
    assert_same_encoding(driver, oracle, decoded, recorded)
    torch.testing.assert_close(
        logprobs(driver.result(call)), recorded.logits[2:22].log_softmax(-1), atol=TOLERANCE, rtol=0
    )
    # A prefill of the same tokens in a fresh store has the same identity.
    again = Driver(make_engine(kind))
    prefilled = again.prefill(message, again.chain(again.prefill(list(parent.tokens))))
    assert prefilled.encoding_id == decoded.encoding_id
    assert_same_encoding(again, oracle, prefilled, recorded)


@st.composite
def dags(draw: st.DrawFn) -> list[tuple[list[int], list[tuple[int, int, int, int]], int]]:
    """Messages in order: (tokens, [(earlier message, position, begin, end)], start)."""
    messages: list[tuple[list[int], list[tuple[int, int, int, int]], int]] = []
    for i in range(draw(st.integers(2, 6))):
        size = draw(st.sampled_from([1, 2, 15, 16, 17, 40, 90]))
        reads = []
        for parent in draw(st.lists(st.integers(0, max(i - 1, 0)), max_size=4 if i else 0)):
            length = len(messages[parent][0])
            begin = draw(st.integers(0, length - 1)) if draw(st.booleans()) else 0
            end = draw(st.integers(begin + 1, length)) if draw(st.booleans()) else length
            home = messages[parent][2] + begin
            position = draw(st.one_of(st.just(home), st.integers(0, MAX_CONTEXT - length - 1)))
            reads.append((parent, position, begin, end))
        furthest = max((position + end - begin for _, position, begin, end in reads), default=0)
        start = draw(st.one_of(st.just(min(furthest, MAX_CONTEXT - size)), st.integers(0, MAX_CONTEXT - size)))
        messages.append(([(7 * i + 3 * j + size) % VOCAB_SIZE for j in range(size)], reads, start))
    return messages


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    messages=dags(),
    kind=st.sampled_from((*KINDS, *DRAWN_KINDS)),
    chunk=st.sampled_from([5, 33, 512]),
    together=st.booleans(),
)
def test_any_dag_is_what_the_interpreter_makes_of_it(
    messages: list[tuple[list[int], list[tuple[int, int, int, int]], int]], kind: str, chunk: int, together: bool
) -> None:
    """Any subset, order, ranges and explicit positions; encoded one by one, or all wanted by one batch of calls."""
    driver, oracle = Driver(make_engine(kind, max_batch_tokens=chunk)), interpreter(kind)
    specs: list[EncodingSpec] = []
    recorded: list[Recorded] = []
    for tokens, reads, start in messages:
        view = EMPTY_VIEW
        for parent, position, begin, end in reads:
            view = driver.place(view, specs[parent], position, begin, end)
        seen = [Placed(recorded[parent], position, begin, end) for parent, position, begin, end in reads]
        spec = make_spec("test", tokens, start, view, driver.specs)
        driver.specs[spec.encoding_id] = spec
        specs.append(spec)
        recorded.append(oracle.encode(tokens, start, seen))
        driver.submit(tokens, view, start)
        if not together:
            driver.run()
    driver.run()
    for spec, expected in zip(specs, recorded, strict=True):
        assert_same_encoding(driver, oracle, spec, expected)


def two_readers(driver: Driver, shift: int) -> torch.Tensor:
    """A call over two messages encoded and placed `shift` further on: its log-probabilities."""
    first = driver.prefill(some_tokens(30, 1), start=shift)
    second = driver.prefill(some_tokens(20, 2), driver.chain(first), start=30 + shift)
    view = driver.place(driver.place(EMPTY_VIEW, second, shift), first, 20 + shift)
    call = driver.submit(some_tokens(4, 3), view, 50 + shift, force(some_tokens(6, 4)))
    driver.run()
    return logprobs(driver.result(call))


def test_a_shift_of_all_positions_changes_nothing() -> None:
    shifted = [two_readers(Driver(make_engine("llama")), shift) for shift in (0, 1, 400)]
    torch.testing.assert_close(shifted[1], shifted[0], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(shifted[2], shifted[0], atol=TOLERANCE + 400e-6, rtol=0)


def test_the_order_of_placements_is_nothing_but_their_positions() -> None:
    driver = Driver(make_engine("llama"))
    specs = [driver.prefill(some_tokens(size, size)) for size in (10, 70, 33)]
    positions = [5, 120, 40]
    results = []
    for order in ((0, 1, 2), (2, 0, 1)):
        view = EMPTY_VIEW
        for i in order:
            view = driver.place(view, specs[i], positions[i])
        call = driver.submit([1, 2, 3], view, 200, force([4, 5, 6]))
        driver.run()
        results.append(logprobs(driver.result(call)))
    torch.testing.assert_close(results[0], results[1], atol=TOLERANCE, rtol=0)
    # Positions do matter, or the above says nothing.
    view = EMPTY_VIEW
    for i, position in enumerate([120, 5, 80]):
        view = driver.place(view, specs[i], position)
    call = driver.submit([1, 2, 3], view, 200, force([4, 5, 6]))
    driver.run()
    assert (logprobs(driver.result(call)) - results[0]).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_calls_with_conflicting_offsets_share_a_batch(kind: str) -> None:
    """Each of many parallel calls equals its solo run: ragged, with their own stops, samplers and positions."""
    shared = [some_tokens(size, size) for size in (80, 100, 20)]

    def prepared() -> tuple[Driver, list[View], list[int]]:
        driver = Driver(make_engine(kind, max_batch_tokens=48))
        specs = [driver.prefill(tokens) for tokens in shared]
        views, starts = [], []
        for i in range(6):
            order = [specs[(i + k) % 3] for k in range(3)]
            view, at = EMPTY_VIEW, i
            for spec in order:
                view = driver.place(view, spec, at)
                at = at + spec.num_tokens
            views.append(view)
            starts.append(at)
        return driver, views, starts

    samplings = [
        Sampling(max_tokens=4 + 3 * i, temperature=[0.0, 1.0, 0.7][i % 3], top_p=0.9, top_k=50, seed=i, num_logprobs=8)
        for i in range(6)
    ]
    headers = [some_tokens(1 + 9 * i, 50 + i) for i in range(6)]
    driver, views, starts = prepared()
    together = [driver.submit(headers[i], views[i], starts[i], samplings[i], (1,)) for i in range(6)]
    driver.run()
    for i in range(6):
        alone, views, starts = prepared()
        call = alone.submit(headers[i], views[i], starts[i], samplings[i], (1,))
        alone.run()
        expected, got = alone.result(call), driver.result(together[i])
        assert got.generated == expected.generated
        assert got.encoding.encoding_id == expected.encoding.encoding_id
        for a, b in zip(got.logprobs, expected.logprobs, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=TOLERANCE)


def test_a_private_message_reaches_a_reader_only_through_what_it_shaped() -> None:
    """private -> shared -> reader. Under the shared encoding its change is felt; encoded afresh, it is not."""
    results: dict[str, list[torch.Tensor]] = {"direct": [], "exact": []}
    for private in (some_tokens(30, 1), some_tokens(30, 2)):
        driver = Driver(make_engine("llama"))
        secret = driver.prefill(private)
        shared = driver.prefill(some_tokens(25, 3), driver.chain(secret))
        fresh = driver.prefill(some_tokens(25, 3))
        for name, spec in (("direct", shared), ("exact", fresh)):
            call = driver.submit([9], driver.place(EMPTY_VIEW, spec, 0), 25, force([3, 4]))
            driver.run()
            results[name].append(logprobs(driver.result(call)))
    assert torch.equal(*results["exact"])
    assert (results["direct"][0] - results["direct"][1]).abs().max() > 100 * TOLERANCE
