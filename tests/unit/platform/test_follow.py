from __future__ import annotations

import json
import random
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laban.actors.calls import TokenLogprob
from laban.cluster.cli.follow import Followed, document, in_their_places, shown_fidelity, sums
from laban.cluster.records import ErrorInfo, Event, FidelityNote, StepResult, TokenChunk, WorkflowRecord
from laban.cluster.render import PlainScreen, ended_line, live_line, print_results, visible
from laban.cluster.usage import Usage


def state(number: int, address: str, word: str, attempt: int = 1) -> Event:
    return Event(number, "wf", 0.0, "step_state", address=address, step_state=word, attempt=attempt, worker="w0")  # type: ignore[arg-type]


def chunk(index: int, text: str, *ids: int, attempt: int = 1) -> TokenChunk:
    return TokenChunk("wf", "a", attempt, index, ids, text)


RESULT = StepResult(
    "a", "a", attempt=1, state="succeeded", text="hi", token_ids=(5, 6), tokens_read=10, tokens_reused=4,
    tokens_encoded=7, tokens_generated=2, ttft_ms=20.0, wall_ms=50.0, worker="w0", finish_reason="stop",
)  # fmt: skip
RECORD = WorkflowRecord(
    "wf", "flow", "succeeded", 100.0, 100.25, (("out", "h[i]"),), (RESULT, replace(RESULT, address="b[x,1]"))
)


def test_chunks_add_up() -> None:
    followed = Followed()
    for item in (state(1, "a", "running"), chunk(0, "he", 1), chunk(1, "llo", 2, 3)):
        followed.apply(item)
    assert (followed.steps["a"].text, followed.steps["a"].num_tokens) == ("hello", 3)


def test_chunk_with_index_0_starts_anew() -> None:
    followed = Followed()
    for item in (chunk(0, "he", 1), chunk(1, "y", 2), chunk(0, "hey you", 1, 2, 3), chunk(3, "!", 4)):
        followed.apply(item)
    assert (followed.steps["a"].text, followed.steps["a"].num_tokens) == ("hey you!", 4)


def test_a_new_attempt_voids_the_old_ones_chunks() -> None:
    followed = Followed()
    followed.apply(chunk(0, "old", 1))
    followed.apply(state(1, "a", "ready", attempt=2))
    assert followed.steps["a"].text == ""
    followed.apply(chunk(1, " late", 2))
    assert followed.steps["a"].text == ""
    followed.apply(chunk(0, "new", 9, attempt=2))
    assert followed.steps["a"].text == "new"


def test_the_result_is_the_last_word() -> None:
    followed = Followed()
    followed.apply(chunk(0, "h", 1))
    followed.apply(Event(1, "wf", 0.0, "step_result", result=RESULT))
    followed.apply(chunk(1, "junk", 2))
    step = followed.steps["a"]
    assert (step.text, step.state, step.num_tokens) == ("hi", "succeeded", 2)


def test_the_end() -> None:
    followed = Followed()
    error = ErrorInfo("UNAVAILABLE", "no worker is up")
    assert followed.apply(Event(1, "wf", 0.0, "workflow_state", workflow_state="running"))
    assert not followed.ended
    followed.apply(Event(2, "wf", 0.0, "workflow_state", workflow_state="failed", error=error))
    assert followed.ended
    assert (followed.error, followed.last_event) == (error, 2)


def test_events_come_once() -> None:
    followed = Followed()
    followed.apply(state(2, "a", "running"))
    assert not followed.apply(state(1, "a", "ready"))
    assert followed.steps["a"].state == "running"


def test_begin_keeps_the_graphs_order() -> None:
    followed = Followed()
    waiting = StepResult("z", "z")
    followed.begin(replace(RECORD, steps=(waiting, RESULT)))
    followed.apply(state(1, "a", "running"))
    assert list(followed.steps) == ["z", "a"]
    assert followed.steps["a"].result == RESULT
    assert followed.counts()["waiting"] == 1


def test_document_has_exactly_the_keys() -> None:
    parsed = json.loads(document(RECORD))
    assert list(parsed) == [
        "workflow_id", "name", "state", "held", "error", "outputs", "wall_ms", "ttft_ms_sum", "steps", "notes",
    ]  # fmt: skip
    assert list(parsed["steps"][0]) == [
        "address", "agent", "state", "attempt", "finish_reason", "fidelity", "text", "values", "token_ids",
        "tokens_read", "tokens_reused", "tokens_loaded", "tokens_encoded", "tokens_generated", "ttft_ms", "wall_ms",
        "worker", "model", "adapter", "tokens_drafted", "tokens_accepted", "tool", "args", "error", "logprobs",
        "earlier_attempts",
    ]  # fmt: skip
    assert (parsed["wall_ms"], parsed["ttft_ms_sum"], parsed["outputs"]) == (250.0, 40.0, {"out": "h[i]"})
    assert "\n" not in document(RECORD)


def test_document_says_why_it_failed_and_how_likely_tokens_were() -> None:
    why = ErrorInfo("INVALID_ARGUMENT", "the text has no value 'score'", "values.score")
    logprobs = (TokenLogprob(5, -0.5, ((5, -0.5), (9, -1.25))),)
    failed = replace(RESULT, state="failed", finish_reason="error", error=why, logprobs=logprobs)
    waits = StepResult("ask", "ask", state="ready", tool="human", args={"n": 1})
    parsed = json.loads(document(replace(RECORD, state="failed", error=why, steps=(failed, waits))))
    said = {"status": "INVALID_ARGUMENT", "field": "values.score", "message": "the text has no value 'score'"}
    assert parsed["error"] == parsed["steps"][0]["error"] == said
    assert (parsed["name"], parsed["steps"][0]["finish_reason"]) == ("flow", "error")
    assert parsed["steps"][0]["logprobs"] == [{"token_id": 5, "logprob": -0.5, "top": [[5, -0.5], [9, -1.25]]}]
    assert (parsed["steps"][1]["tool"], parsed["steps"][1]["args"]) == ("human", {"n": 1})


def test_sums_and_words() -> None:
    assert sums(RECORD.steps) == (20, 8, 14, 4, 40.0, 100.0)
    assert shown_fidelity("exact") == "exact"
    assert shown_fidelity("mixed") == "mixed, unaudited"
    notes = [FidelityNote("a", 1, "direct", 9.0, 9), FidelityNote("a/b", None, "direct", 0.04, 120)]
    assert shown_fidelity("direct", "a[2]/b[bob,1]", notes) == "direct, KL 0.04 over 120 audited calls"
    assert shown_fidelity("direct", "a[2]", notes) == "direct, unaudited"


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_results(RECORD)
    out = capsys.readouterr().out
    assert "b[x,1]" in out  # brackets are no markup
    assert "h[i]" in out
    [total] = [line for line in out.splitlines() if "sum" in line]
    assert total.replace("│", " ").split() == ["sum", "2", "steps", "20", "8", "14", "4", "40", "ms", "100", "ms"]
    [whole] = [line for line in out.splitlines() if "start to end" in line]
    assert whole.replace("│", " ").split() == ["start", "to", "end", "250", "ms"]
    assert "cut at" not in out
    assert "loaded" not in out


def test_what_comes_from_outside_has_no_tokens_to_show(capsys: pytest.CaptureFixture[str]) -> None:
    asked = StepResult("ask", "ask", attempt=1, state="succeeded", wall_ms=40.0, finish_reason="external", tool="human")
    waits = StepResult("wait", "wait", attempt=1, state="cancelled", tool="human")
    within = StepResult("part", "part", attempt=1, state="succeeded", wall_ms=30.0, finish_reason="workflow")
    print_results(replace(RECORD, steps=(asked, waits, within)))
    rows = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    for row in (
        ["ask", "succeeded", "40", "ms"], ["wait", "cancelled", "0", "ms"], ["part", "succeeded", "30", "ms"],
    ):  # fmt: skip
        assert row in rows


def test_attempts_in_vain_are_shown_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = [random.randrange(1, 1000) for _ in range(6)]
    again = replace(RESULT, attempt=3, earlier_attempts=Usage(*numbers[:5], numbers[5] / 16), wall_ms=70.0)
    record = replace(RECORD, steps=(RESULT, again))
    read, reused, loaded, encoded, generated = (
        own + lost for own, lost in zip((10, 4, 0, 7, 2), numbers[:5], strict=True)
    )
    print_results(record)
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    shown = [str(read), str(reused), f"({loaded}", "loaded)", str(encoded), str(generated), "20", "ms", "70", "ms"]
    assert ["a", "succeeded", "exact", "3", *shown] in lines
    sums_of = [str(each) for each in (read + 10, reused + 4, encoded + 7, generated + 2)]
    assert ["sum", "2", "steps", "4", *sums_of, "40", "ms", "120", "ms"] in lines
    lost = [str(numbers[at]) for at in (0, 1, 3, 4)]
    assert ["earlier", "attempts", "1", "step", "2", *lost, f"{numbers[5] / 16:.0f}", "ms"] in lines
    print_results(replace(record, steps=(replace(again, state="failed", ttft_ms=0.0),)))
    rows = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["a", "failed", "exact", "3", *shown[:-4], "70", "ms"] in rows
    [first, second] = json.loads(document(record))["steps"]
    assert first["earlier_attempts"] == asdict(Usage())
    assert second["tokens_encoded"] + second["earlier_attempts"]["tokens_encoded"] == encoded
    assert ended_line(again).endswith(", attempt 3")


def test_texts_that_were_cut_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    print_results(replace(RECORD, steps=(replace(RESULT, finish_reason="length"),)))
    out = capsys.readouterr().out
    assert f"cut at max_tokens: {RESULT.address}" in out
    assert "1 step " in out


def test_what_was_loaded_is_said_where_there_was_any(capsys: pytest.CaptureFixture[str]) -> None:
    loaded = replace(RESULT, tokens_loaded=3)
    print_results(replace(RECORD, steps=(loaded,)))
    assert " 4 (3 loaded) " in capsys.readouterr().out
    assert ended_line(loaded) == "2 tokens in 50 ms, reused 4 of 10 read (40%), 3 of them loaded"


def test_steps_within_stand_behind_the_step_that_runs_them_and_count_once() -> None:
    within = replace(RESULT, finish_reason="workflow", tokens_read=0, tokens_reused=0, wall_ms=100.0)
    addresses = ["b[2]", "a", "b[1]", "b[1]/x", "b[2]/y", "b[2]/x", "b[1]/x/z"]
    steps = [replace(RESULT if "/" in each else within, address=each) for each in addresses]
    shown = [step.address for step in in_their_places(steps)]
    assert shown == ["b[2]", "b[2]/y", "b[2]/x", "a", "b[1]", "b[1]/x", "b[1]/x/z"]
    assert sums(steps)[-1] == 4 * RESULT.wall_ms


def test_plain_lines() -> None:
    lines: list[str] = []
    screen, followed = PlainScreen(lines.append), Followed()
    for phase in ("starting Ray", "starting Ray", "loading"):
        screen.phase(phase, None)
    for item in (state(1, "a", "running"), chunk(0, "h", 1), Event(2, "wf", 0.0, "step_result", result=RESULT)):
        followed.apply(item)
        screen.update(followed, item)
    assert lines == [
        "starting Ray ...",
        "loading ...",
        "a: running on w0",
        "a: 2 tokens in 50 ms, reused 4 of 10 read (40%)",
    ]


def test_live_lines() -> None:
    followed = Followed()
    followed.apply(state(1, "a", "running"))
    assert live_line(followed.steps["a"]) == "encoding on w0"
    followed.apply(chunk(0, "one\n two", 1, 2))
    assert live_line(followed.steps["a"]) == "2 tokens  one two"
    failed = replace(RESULT, state="failed", error=ErrorInfo("UNAVAILABLE", "gone"))
    assert ended_line(failed) == "failed: gone"


@given(
    states=st.lists(st.sampled_from(["waiting", "running", "succeeded", "failed"]), max_size=30),
    room=st.integers(1, 30),
)
def test_what_runs_is_visible(states: list[str], room: int) -> None:
    followed = Followed()
    for number, word in enumerate(states):
        followed.apply(state(number + 1, f"s[{number}]", word))
    steps = list(followed.steps.values())
    shown = visible(steps, room)
    assert len(shown) == min(room, len(steps))
    assert [step.address for step in steps if step in shown] == [step.address for step in shown]
    running = [step for step in steps if step.state == "running"]
    assert len([step for step in shown if step.state == "running"]) == min(room, len(running))
