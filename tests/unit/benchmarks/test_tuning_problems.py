"""Variants of a problem to learn from: the same shape, other numbers and names."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

import pytest
from benchmark_modules import benchmark_modules

Varied = Callable[..., dict[str, str]]

OWN = {"begin": "Ann has 12 cats. Then Bob gives Ann 30 more.", "end": "How many cats does Ann have?"}
OTHER = {"begin": "a shop sells 5 pens, how nice, then more.", "end": "What does Carl pay for 7 of them?"}


@pytest.fixture
def varied() -> Iterator[Varied]:
    with benchmark_modules("tuning") as (module,):
        yield module.varied


def test_a_name_is_the_same_name_everywhere_and_other_words_stay(varied: Varied) -> None:
    for seed in range(20):
        made = varied(OWN, [OWN, OTHER], random.Random(seed))
        found = re.fullmatch(r"(\w+) has (\d+) cats\. Then (\w+) gives (\w+) (\d+) more\.", made["begin"])
        assert found is not None
        assert found[1] == found[4]
        assert (found[1], found[3]) != ("Ann", "Bob")
        assert 6 <= int(found[2]) <= 25
        assert made["end"] == f"How many cats does {found[1]} have?" or "of them?" in made["end"]


def test_half_of_them_end_as_another_problem_does(varied: Varied) -> None:
    ends = [varied(OWN, [OTHER], random.Random(seed))["end"] for seed in range(60)]
    assert 15 < sum("pay" in end for end in ends) < 45
    assert all("7 of" not in end or "Carl" not in end for end in ends)


def test_the_same_seed_gives_the_same(varied: Varied) -> None:
    assert varied(OWN, [OWN, OTHER], random.Random(4)) == varied(OWN, [OWN, OTHER], random.Random(4))
