"""Constrained calls: what they make follows its schema or is one of its choices, and nobody else notices."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from constrained_cases import (
    STOP,
    byte_level_tokenizer,
    check_schema,
    constrained,
    players,
    problem_with_text,
)
from constrained_checks import (
    CHOICES,
    REVIEW,
    check_masked_draws,
    engine,
    mixed_calls,
    play,
    play_constrained,
    told,
)
from engine_harness import Driver, make_engine
from sampling_cases import random_rows
from shard_processes import run_shards, sharded_engine

from laban.actors.calls import CallFinished, Constraint, Sampling
from laban.actors.engine.constraining import Constraining, Matcher
from laban.actors.engine.sampler import Masks, sampling_params
from laban.kernels import row_attention
from laban.kernels.sampling import Allowed, SamplingParams, keep_allowed, sample_rows


def check_schemas(seeds: range) -> None:
    ends = [check_schema(seed, players()) for seed in seeds]
    assert ends.count("followed") > 0.7 * len(seeds)
    assert ends.count("refused") < 0.25 * len(seeds)


def test_random_schemas_are_followed_by_any_logits_or_refused() -> None:
    check_schemas(range(100))


@pytest.mark.slow
def test_a_thousand_random_schemas() -> None:
    check_schemas(range(100, 1100))


def test_texts_are_among_their_choices() -> None:
    draw = random.Random(0)
    letters = ["a", "b", " ", "no", "é", "日本", "\n", "{2}", "&&", *'.*(\\"/[|^$-']
    for _ in range(40):
        texts = {"".join(draw.choices(letters, k=draw.randrange(1, 6))).strip() for _ in range(6)} - {""}
        constraint = Constraint(choices=tuple(sorted(texts)))
        for player in players():
            made = {player.play(constraint, draw) for _ in range(12)}
            assert made <= texts
            assert len(made) > 1 or len(texts) == 1


def test_every_choice_can_be_made_even_one_that_begins_another() -> None:
    for player in players():
        made = {player.play(Constraint(choices=tuple(CHOICES)), random.Random(seed)) for seed in range(200)}
        assert made == set(CHOICES)


@pytest.mark.parametrize("text", ["<|end|>", "x</s>y", "a <s><|end|> b", "<unk>"])
def test_texts_may_spell_special_tokens(text: str) -> None:
    """Also where nothing else can follow, so that the library reads tokens off the spelling."""
    for player in players():
        assert player.play(Constraint(choices=(text,)), random.Random(0)) == text
        schema = {"type": "object", "properties": {text: {"const": text}}, "required": [text]}
        schema |= {"additionalProperties": False}
        made = player.play(Constraint(schema=json.dumps(schema)), random.Random(1))
        assert made is not None
        assert json.loads(made) == {text: text}


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 1000])
def test_masks_bar_what_has_no_bit(vocab_size: int) -> None:
    draw = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn(6, vocab_size, generator=draw)
    words = torch.randint(-(2**31), 2**31, (3, -(-vocab_size // 32) + 1), generator=draw, dtype=torch.int64).int()
    before = logits.clone()
    kept = keep_allowed(logits, Allowed(torch.tensor([4, 0, 5]), words))
    assert torch.equal(logits, before)
    for row in range(6):
        for token in range(vocab_size):
            place = {4: 0, 0: 1, 5: 2}.get(row)
            may = place is None or (int(words[place, token // 32]) >> (token % 32)) & 1
            assert kept[row, token] == (logits[row, token] if may else -torch.inf)


@pytest.mark.parametrize("seed", range(8))
def test_rows_without_a_mask_are_as_they_would_be_without_the_others(seed: int) -> None:
    """To the bit, whatever they ask for."""
    logits, samplings, indices = random_rows(seed, 200, 24)
    plain, _ = sample_rows(logits, sampling_params(samplings, indices, logits.device))
    rows = [row for row in range(24) if row % 3 == 0]
    words = torch.randint(-(2**31), 2**31, (len(rows), 7)).int().numpy()
    masked, sound = sample_rows(logits, sampling_params(samplings, indices, logits.device, Masks(rows, words)))
    others = [row for row in range(24) if row % 3]
    assert torch.equal(masked[others], plain[others])
    assert sound.all()


def test_draws_follow_the_softmax_over_what_is_allowed() -> None:
    check_masked_draws(torch.device("cpu"))


def test_greedy_rows_take_the_best_of_what_is_allowed() -> None:
    logits = torch.tensor([[5.0, 4.0, 3.0, 2.0]])
    params = SamplingParams(allowed=Allowed(torch.tensor([0]), torch.tensor([[0b1100]], dtype=torch.int32)))
    assert sample_rows(logits, params)[0].tolist() == [2]


@pytest.mark.parametrize("fused", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_mixed_batch_says_what_each_call_says_alone(fused: bool) -> None:
    together = Driver(engine(fused=fused))
    asked = [([1, 40 + number, 50], each) for number, each in enumerate(mixed_calls())]
    calls = [together.submit(tokens, sampling=each, terminator=(STOP,)) for tokens, each in asked]
    together.run()
    for call_id, (tokens, each) in zip(calls, asked, strict=True):
        alone = Driver(engine())
        own = alone.submit(tokens, sampling=each, terminator=(STOP,))
        alone.run()
        assert told(alone, own) == told(together, call_id), each
        result = together.result(call_id)
        if each.constraint is None:
            continue
        if each.constraint.choices:
            assert result.text in CHOICES
        elif result.finish_reason == "stop":
            assert problem_with_text(json.loads(each.constraint.schema), result.text) == ""
        assert result.finish_reason in ("stop", "length")


def test_what_is_cut_off_is_said_to_be() -> None:
    driver = Driver(engine())
    cut = driver.submit([1, 2], sampling=constrained(schema=REVIEW, max_tokens=5))
    exact = driver.submit([1, 2], sampling=constrained(choices=["b"], max_tokens=1))
    stopped = driver.submit([1, 2], sampling=constrained(choices=["yes or no"], stop=("or",)))
    forced = driver.submit([1, 2], sampling=constrained(choices=["yes"], forced=(65, 66)))
    driver.run()
    assert driver.result(cut).finish_reason == "length"
    assert len(driver.result(cut).generated) == 5
    assert (driver.result(exact).finish_reason, driver.result(exact).text) == ("stop", "b")
    assert (driver.result(stopped).finish_reason, driver.result(stopped).text) == ("stop", "yes ")
    assert (driver.result(forced).finish_reason, driver.result(forced).text) == ("forced", "AB")


@pytest.mark.parametrize("fused", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_call_that_makes_room_goes_on_with_the_same_text(fused: bool) -> None:
    """Its text so far is encoded again, its place in the grammar kept."""
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 20, "maxItems": 20}
    asked = constrained(schema=schema, max_tokens=300, seed=3)
    alone = Driver(engine(fused=fused))
    own = alone.submit([1, 2, 3], sampling=asked, rank=5)
    alone.run()
    driver = Driver(engine(fused=fused, pool_tokens=384))
    call = driver.submit([1, 2, 3], sampling=asked, rank=5)
    for _ in range(9):
        driver.step()
    older = driver.submit([4] * 100, sampling=Sampling(max_tokens=100), rank=1)
    driver.run()
    assert driver.engine.tiers.counters.totals().preemptions == 1
    assert driver.result(older).finish_reason == "length"
    assert told(driver, call) == told(alone, own)


def test_calls_that_can_never_run_are_answered() -> None:
    driver = Driver(engine())
    asked = constrained(choices=["a"])
    broken = driver.submit([1], sampling=replace(asked, constraint=Constraint(schema="[1]")))
    unsound = driver.submit([1], sampling=replace(asked, constraint=Constraint(schema='{"not": {}}')))
    endless = '{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}'
    impossible = driver.submit([1], sampling=replace(asked, constraint=Constraint(schema=endless)))
    endless_text = driver.submit([1], sampling=replace(asked, stop_token_ids=()))
    driver.run()
    for call_id in (broken, unsound, impossible):
        failure = driver.failure(call_id)
        assert (failure.status, failure.message.split(":")[0]) == ("INVALID_ARGUMENT", "response_schema")
    assert driver.failure(endless_text).status == "INVALID_ARGUMENT"
    other = Driver(make_engine())  # its tokenizer says nothing of bytes
    call = other.submit([1], sampling=asked)
    other.run()
    assert other.failure(call).status == "FAILED_PRECONDITION"
    assert "choices" in other.failure(call).message


def test_a_call_may_be_aborted_while_its_grammar_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(engine())
    monkeypatch.setattr(Constraining, "ready", ())
    held = driver.submit([1], sampling=constrained(choices=["a"]))
    other = driver.submit([1], sampling=Sampling(max_tokens=3))
    while not driver.events[other] or not isinstance(driver.events[other][-1], CallFinished):
        driver.step()  # others do not wait for it
    assert driver.engine.has_work()
    assert driver.engine.step().load.num_waiting == 1
    driver.engine.abort(held)
    driver.run()
    assert not driver.events[held]


class Panic(BaseException):
    """As what is written in Rust fails with: no Exception."""


def fails(*anything: object) -> None:
    raise Panic("index out of bounds")


@pytest.mark.parametrize("place", ["grammar_of", "fill", "consume_token", "deep_copy"])
def test_a_library_that_fails_fails_its_call_alone(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    driver = Driver(engine())
    other = driver.submit([1], sampling=Sampling(max_tokens=6))
    driver.step()
    if place in ("consume_token", "deep_copy"):
        failing = SimpleNamespace(is_error=lambda: False, **{place: fails})
        failing.deep_copy = fails if place == "deep_copy" else lambda: failing
        monkeypatch.setattr(Constraining, "_compile", lambda self, constraint: failing)
        monkeypatch.setattr(Matcher, "fill", lambda self, words: words.fill(-1))
    elif place == "fill":
        monkeypatch.setattr("llguidance.numpy.fill_next_token_bitmask", fails)
    else:
        monkeypatch.setattr("laban.actors.engine.constraining.grammar_of", fails)
    call = driver.submit([1], sampling=constrained(choices=["a"]))
    driver.run()
    assert driver.failure(call).status == "INTERNAL"
    assert driver.failure(call).message.startswith("choices: keeping the model to it failed: Panic: index out")
    assert len(driver.result(other).generated) == 6
    monkeypatch.undo()
    if place in ("grammar_of", "fill"):  # nothing of it was kept
        again = driver.submit([1], sampling=constrained(choices=["a"]))
        driver.run()
        assert driver.result(again).text == "a"


@pytest.mark.slow
def test_shards_make_the_same_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_attention, "compiled", None)
    whole = play(Driver(sharded_engine("llama", None, byte_level_tokenizer(128))))
    assert run_shards(2, play_constrained)[0] == whole
