"""Statistics against brute force, and a report put together from audits made up here."""

from __future__ import annotations

import itertools
import math
import random
from html.parser import HTMLParser

import pytest

from laban.actors.errors import InvalidInput
from laban.cluster.audit.advice import advise
from laban.cluster.audit.data import read_data
from laban.cluster.audit.page import page
from laban.cluster.audit.records import Decision, Replayed, StepAudit
from laban.cluster.audit.report import AuditedInput, summarize
from laban.cluster.audit.statistics import Z, bootstrap, pooled_mean, quantile, ratio_of_sums, wilson
from laban.cluster.audit.table import lines
from laban.cluster.workflow.parse import parse_yaml


@pytest.mark.parametrize("trials", [1, 2, 7, 40])
def test_wilson_holds_just_the_shares_that_a_score_test_would_not_reject(trials: int) -> None:
    for successes in range(trials + 1):
        low, high = wilson(successes, trials)
        found = successes / trials
        for thousandth in range(1, 1000):
            share = thousandth / 1000
            rejected = abs(found - share) > Z * math.sqrt(share * (1 - share) / trials)
            if low + 1e-9 < share < high - 1e-9:
                assert not rejected
            if share < low - 1e-9 or share > high + 1e-9:
                assert rejected


def test_the_bootstrap_comes_near_all_resamples_there_are() -> None:
    rng = random.Random(1)
    units = [[rng.random() for _ in range(rng.randint(1, 4))] for _ in range(5)]
    every = sorted(pooled_mean(drawn) for drawn in itertools.product(units, repeat=5))
    found = bootstrap(units, pooled_mean)
    assert found is not None
    assert found == bootstrap(units, pooled_mean)  # the same every time
    for end, share in zip(found, (0.025, 0.975), strict=True):
        assert quantile(every, share - 0.015 if share > 0.5 else 0.0) - 1e-9 <= end
        assert end <= quantile(every, share + 0.015 if share < 0.5 else 1.0) + 1e-9
    assert bootstrap(units[:1], pooled_mean) is None


def test_quantiles_and_ratios() -> None:
    numbers = sorted(random.Random(2).random() for _ in range(101))
    assert quantile(numbers, 0.95) == pytest.approx(numbers[95])
    assert ratio_of_sums([(2.0, 1.0), (4.0, 2.0)]) == 2.0
    assert quantile([], 0.5) == ratio_of_sums([]) == pooled_mean([]) == 0.0


def audited(step: str, kl: float, *, level: str = "direct", read: int | None = None, reused: int = 80) -> StepAudit:
    tokens = (kl,) * 4
    return StepAudit(step, step, level, read, tokens, (True, True, True, False), (-0.1,) * 4, 100, reused)


def inputs() -> list[AuditedInput]:
    first = (
        audited("draft", 0.001), audited("judge", 0.2), audited("judge", 0.01, read=0), audited("judge", 0.3, read=1),
        Decision("judge", "judge", "direct", "vote of judge", '"a"', '"a"'),
        Replayed("exact", 10.0, 100.0, 50, 40), Replayed("direct", 5.0, 80.0, 50, 10),
    )  # fmt: skip
    second = (
        audited("draft", 0.003), audited("judge", 0.4),
        Decision("judge", "judge", "direct", "vote of judge", '"a"', '"<b>"'),
        Replayed("exact", 20.0, 100.0, 50, 40), Replayed("direct", 10.0, 120.0, 50, 10),
    )  # fmt: skip
    return [AuditedInput(1, first), AuditedInput(2, second), AuditedInput(3, (), "it broke")]


def test_a_report_puts_the_inputs_together() -> None:
    report = summarize("flow", inputs())
    rows = {row.step: row for row in report.steps}
    assert report.num_inputs == 2
    assert [one.line for one in report.failed] == [3]
    assert rows["draft"].kl_mean == pytest.approx(0.002)
    assert rows["draft"].kl_interval == pytest.approx((0.001, 0.003))
    assert rows["judge"].agreement == 0.75
    assert rows["judge"].logprob_change == pytest.approx(-0.1)
    assert (rows["judge"].num_decisions, rows["judge"].num_flips) == (2, 1)
    assert report.wholes[0].reencoded_share == pytest.approx(0.2)
    assert [flip.line for flip in report.flips] == [2]
    gain = report.gains[0]
    assert (gain.ttft, gain.wall, gain.encoded) == (2.0, 1.0, 4.0)


def test_the_cheapest_level_within_the_tolerance_is_chosen() -> None:
    blended = [audited(step, 0.0005, level="blended", reused=60) for step in ("draft", "judge")]
    more = [AuditedInput(one.line, (*one.items, *blended)) for one in inputs() if not one.error]
    found = {one.step: one for one in advise(summarize("flow", more), 0.01)}
    assert found["draft"].level == "direct"
    assert found["judge"].level == "blended"
    assert found["judge"].is_sure
    found = {one.step: one for one in advise(summarize("flow", more), 0.0)}
    assert {one.level for one in found.values()} == {"exact"}


def test_reads_that_cost_little_are_chosen_where_no_decision_flips() -> None:
    audits = [audited("draft", 0.5), *(audited("draft", kl, read=read) for read, kl in enumerate((0.03, 0.4, 0.01)))]
    [advice] = advise(summarize("flow", [AuditedInput(1, tuple(audits))]), 0.05)
    assert (advice.level, advice.reads) == ("direct", (0, 2))
    assert advice.kl == pytest.approx(0.04)
    [advice] = advise(summarize("flow", inputs()[:2]), 0.25)[1:]
    assert advice.level == "exact"  # half of its decisions flip


def test_table_and_page_say_it_and_the_page_needs_nothing_else() -> None:
    report = summarize("flow <&>", inputs(), ["leakage: <script>"])
    advice = advise(report, 0.05)
    text = "\n".join(lines(report, advice, 0.05))
    assert "1 of 2" in text
    assert "line 3: left out, its run under exact failed: it broke" in text
    html = page(report, advice, 0.05)
    tags: list[str] = []
    attributes: list[tuple[str, str | None]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)
            attributes.extend(attrs)

    Reader().feed(html)
    assert "script" not in tags
    assert "svg" in tags
    assert not [value for name, value in attributes if name in ("src", "href")]
    assert "url(" not in html


FLOW = parse_yaml("""
version: 1
name: flow
inputs: {count: {type: integer}, question: {default: why}}
messages: {q: "{{ question }} {{ count }}"}
steps: [{step: one, read: [q]}]
""")


def test_data_lines_are_checked_one_by_one() -> None:
    assert read_data('{"count": 1}\n\n{"question": "x"}\n', FLOW, {"count": 7}, "d.jsonl") == [
        (1, {"count": 1}), (3, {"count": 7, "question": "x"})]  # fmt: skip
    breaks = "a\u2028b\x85c"  # which JSON has as they are
    assert read_data(f'{{"count": 1, "question": "{breaks}"}}\r\n', FLOW, {}, "d.jsonl") == [
        (1, {"count": 1, "question": breaks})]  # fmt: skip
    for text, said in (
        ('{"count": 1}\n{"count"', "d.jsonl:2: is not JSON"),
        ("[1]", "d.jsonl:1: expected an object"),
        ('{"count": "many"}', "d.jsonl:1: count: wrong type or size; expected a whole number"),
        ('{"count": 1, "other": 2}', "d.jsonl:1: other: unknown input"),
        ('{"count": 1, "countt": 2}', "unknown input 'countt'; did you mean 'count'?"),
        ("{}", "d.jsonl:1: count: input 'count' is not given"),
        ("\n", "d.jsonl: holds no line"),
    ):
        with pytest.raises(InvalidInput) as raised:
            read_data(text, FLOW, {}, "d.jsonl")
        assert said in str(raised.value)
