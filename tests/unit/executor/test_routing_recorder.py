"""Calls written down, and read again."""

from __future__ import annotations

import json
import logging

import pytest

from laban.actors.calls import Call, CallFinished, Sampling
from laban.actors.errors import InvalidInput, NotFound
from laban.cluster.routing import recorder as recorder_module
from laban.cluster.routing.recorder import EndedCall, Recorder, line_of, read_calls
from laban.kvstore.encodings import EMPTY_VIEW, Placement, View, make_spec
from laban.kvstore.uses import Use


def ended(number: int = 0, **changes) -> EndedCall:
    specs = {}
    for name in ("shared", "other"):
        spec = make_spec("model/secret-tenant", tuple(map(ord, name)), 0, EMPTY_VIEW, specs)
        specs[spec.encoding_id] = spec
    first, second = specs.values()
    view = View(first.encoding_id, (Placement(second.encoding_id, 6, 1, 4),))
    call = Call(
        f"wf-1/answer[{number}]", "model/secret-tenant", view, 9, (1, 2), tuple(specs.values()), Sampling(4), rank=3
    )
    made = make_spec(call.namespace, (1, 2, 7, 8, 9), 9, view, specs)
    finished = CallFinished("x", "stop", made, (7, 8), "text that is private", 9, 6, 3, 12.5, 80.0, tokens_loaded=6)
    known = {first.encoding_id: Use(2, 1.5, 0.5, True)}
    fields = {"attempt": 2, "worker": "w0", "waited_ms": 1.25, "uses": known, "end": finished}
    return EndedCall(call=call, ordered_at=1e9 + number, **(fields | changes))


def test_what_is_written_is_read_again(tmp_path):
    path = tmp_path / "calls.jsonl"
    all_ended = [ended(0), ended(1, end="UNAVAILABLE")]
    for one in all_ended:  # appended to by whoever comes next
        recorder = Recorder(str(path))
        recorder.put(one)
        recorder.close()
    read = list(read_calls(path))
    assert read == [one.record() for one in all_ended]
    call = read[0]
    assert (call.source, call.address, call.attempt, call.rank) == ("wf-1", "answer[0]", 2, 3)
    assert [(r.num_tokens, r.position, r.begin, r.end) for r in call.reads] == [(6, 0, 0, 6), (5, 6, 1, 4)]
    assert (call.start, call.num_tokens, call.num_generated) == (9, 2, 3)
    assert (call.tokens_read, call.tokens_reused, call.tokens_loaded, call.tokens_encoded) == (9, 6, 6, 3)
    assert (call.uses[0].steps, call.uses[0].in_s, call.uses[0].fixed) == (2, 1.5, True)
    assert (read[1].error, read[1].encoding_id) == ("UNAVAILABLE", "")
    assert "secret" not in path.read_text()
    assert "private" not in path.read_text()


def test_a_line_cut_off_at_the_end_is_left_out(tmp_path):
    path = tmp_path / "calls.jsonl"
    line = line_of(ended().record())
    path.write_text(f"{line}\n{line[:50]}")
    assert len(list(read_calls(path))) == 1


@pytest.mark.parametrize("length", [1, 12, 50, -1])
def test_recording_goes_on_behind_a_line_that_was_cut_off(tmp_path, length, monkeypatch):
    monkeypatch.setattr(recorder_module, "CHUNK_BYTES", 7)
    path = tmp_path / "calls.jsonl"
    line = line_of(ended().record())
    path.write_text(f"{line}\n{line[:length]}")
    recorder = Recorder(str(path))
    recorder.put(ended(1))
    recorder.close()
    assert list(read_calls(path)) == [ended().record(), ended(1).record()]
    path.write_text("notes, and no newline")  # somebody else's
    Recorder(str(path)).close()
    assert path.read_text() == "notes, and no newline"


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        (lambda plain: plain.pop("worker"), "line 2: worker", "is missing"),
        (lambda plain: plain.update(num_tokens="2"), "line 2: num_tokens", "expected a whole number"),
        (lambda plain: plain.update(num_tokens=True), "line 2: num_tokens", "expected a whole number"),
        (lambda plain: plain.update(attempt=-1), "line 2: attempt", "0 or more"),
        (lambda plain: plain.update(ttft_ms=float("inf")), "line 2: ttft_ms", "expected a number"),
        (lambda plain: plain.update(reads=[1]), r"line 2: reads\[0\]", "expected a list of encoding_id, num_tokens"),
        (lambda plain: plain["reads"][1].__setitem__(2, None), r"line 2: reads\[1\].position", "a whole number"),
        (lambda plain: plain.update(uses={}), "line 2: uses", "expected a list"),
        (lambda plain: plain.update(version=9), "line 2: version", "expected 1"),
        (lambda plain: plain.update(text="x"), "line 2: text", "no such field"),
    ],
)
def test_what_is_no_such_call_names_its_line_and_field(tmp_path, change, field, says):
    path = tmp_path / "calls.jsonl"
    line = line_of(ended().record())
    plain = json.loads(line)
    change(plain)
    path.write_text(f"{line}\n{json.dumps(plain)}\n")
    with pytest.raises(InvalidInput, match=field) as caught:
        list(read_calls(path))
    assert says in str(caught.value)


def test_what_is_no_json_and_no_file(tmp_path):
    path = tmp_path / "calls.jsonl"
    path.write_text("{\n")
    with pytest.raises(InvalidInput, match="line 1"):
        list(read_calls(path))
    path.write_text("[]\n")
    with pytest.raises(InvalidInput, match="expected an object"):
        list(read_calls(path))
    with pytest.raises(NotFound, match="nowhere"):
        list(read_calls(tmp_path / "nowhere"))
    with pytest.raises(InvalidInput, match=r"routing\.record"):
        Recorder(str(tmp_path / "no" / "folder"))


class FullDisk:
    """Takes so many lines."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.lines = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def write(self, line):
        if len(self.lines) == self.room:
            raise OSError(28, "No space left on device")
        self.lines.append(line)

    def flush(self):
        pass


def test_a_full_disk_stops_recording_with_one_line(caplog):
    disk = FullDisk(2)
    recorder = Recorder("calls.jsonl", open_file=lambda path: disk)
    with caplog.at_level(logging.ERROR):
        for number in range(5):
            recorder.put(ended(number))
        recorder.close()
        recorder.put(ended(9))
    assert len(disk.lines) == 2
    assert len(caplog.records) == 1
    assert "No space left" in caplog.text
