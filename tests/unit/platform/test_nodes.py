"""Waiting for a Ray cluster, without one."""

from __future__ import annotations

import socket

import pytest

from laban.cluster.nodes import SAY_EVERY_S, main, no_answer, too_few, until


def test_waits_until_nothing_is_missing_and_says_now_and_then_what_is(capsys):
    slept: list[float] = []
    left = iter(["two", *["one"] * 20, ""])
    until(lambda: next(left), timeout_s=3600, sleep=slept.append)
    assert len(slept) == 21
    said = capsys.readouterr().err.splitlines()
    assert said == ["two", "one"]
    assert sum(slept) < 2 * SAY_EVERY_S


def test_gives_up_with_what_is_missing():
    with pytest.raises(TimeoutError, match="one"):
        until(lambda: "one", timeout_s=10, sleep=lambda seconds: None)


def test_counts_what_all_nodes_have_together():
    assert too_few(8, "GPU", {"GPU": 8.0}) == ""
    assert "4 GPUs, waiting for 8" in too_few(8, "GPU", {"GPU": 4.0})
    assert "0 GPUs" in too_few(1, "GPU", {"CPU": 4.0})


def test_a_head_that_listens_answers():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert no_answer(f"127.0.0.1:{port}") == ""
    assert f"waiting for 127.0.0.1:{port}" in no_answer(f"127.0.0.1:{port}")


def test_the_command_fails_where_nobody_comes(capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert main(["--address", address]) == 0
    assert main(["--address", address, "--timeout-s", "0"]) == 1
    assert "gave up" in capsys.readouterr().err
