"""What `laban serve` shows of its processes' logs: their own lines as they are, and what Ray says as one of ours."""

from __future__ import annotations

import logging

import pytest

from laban.cluster.process_logs import ProcessLogs, take_over_rays_output

WARNED = "2026-11-23 14:04:18,266 WARNING laban.cluster.lives: the worker is lost: its process ended worker=worker-0"
TRACED = [
    "2026-11-23 14:04:19,000 ERROR laban.cluster.inbox: a move cannot be applied workflow=wf-1",
    "Traceback (most recent call last):",
    '  File "a.py", line 3, in apply',
    "ValueError: oops",
]


def test_lines_of_processes_are_shown_as_they_are_and_those_of_the_start_once_it_is_over() -> None:
    shown: list[str] = []
    logs = ProcessLogs(shown.append)
    logs.take({"pid": 7, "is_err": True, "actor_name": "HostProcess", "lines": [WARNED]}, ignore_prefix=False)
    assert shown == []
    logs.show()
    logs.take({"pid": 8, "is_err": True, "lines": TRACED})
    assert shown == [WARNED, *TRACED]
    logs.show()
    assert shown == [WARNED, *TRACED]


def test_what_is_not_of_our_logs_is_left_out() -> None:
    shown: list[str] = []
    logs = ProcessLogs(shown.append)
    logs.show()
    core = "[2026-11-23 14:04:20,001 E 21081 21090] core_worker.cc:720: :info_message: Attempting to recover"
    logs.take({"pid": 8, "is_err": True, "lines": [core, WARNED]})
    logs.take({"pid": 8, "is_err": False, "lines": ["printed by a library"]})
    logs.take({"pid": "autoscaler", "is_err": True, "lines": ["======== Autoscaler status"]})
    assert shown == [WARNED]


def test_what_ray_says_becomes_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    shown: list[str] = []
    said = "\x1b[33m(raylet)\x1b[0m 1 Workers killed\n  due to memory pressure (OOM)"
    with caplog.at_level(logging.WARNING):
        ProcessLogs(shown.append).take({"pid": "raylet", "is_err": False, "lines": [said]})
    assert caplog.messages == ["Ray: (raylet) 1 Workers killed due to memory pressure (OOM)"]
    assert shown == []


def test_ray_has_the_place_that_is_taken_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ray._private import worker

    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)
    shown: list[str] = []
    logs = ProcessLogs(shown.append)
    assert take_over_rays_output(logs)
    logs.show()
    worker.print_to_stdstream({"pid": 8, "is_err": True, "lines": [WARNED]}, ignore_prefix=False)
    assert shown == [WARNED]
    assert take_over_rays_output(None)
    worker.print_to_stdstream({"pid": 8, "is_err": True, "lines": [WARNED]}, ignore_prefix=False)
    assert capsys.readouterr() == ("", "")
