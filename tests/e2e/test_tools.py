"""External steps done by shell commands, on the default model."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from command_line import Cli, document, write

pytestmark = pytest.mark.e2e

FLOW = """\
version: 1
name: checked
messages: {task: "Name a colour."}
steps:
  - {step: draft, read: [task], timeout_s: 120, sampling: {max_tokens: 8}}
  - {step: check, external: {tool: check, args: {least: 3}}, read: [draft], retries: {max: 2}}
  - {step: final, read: [task, draft, check], sampling: {max_tokens: 8}}
"""


def test_a_tool_is_served_while_the_run_goes_on(cli: Cli, address: str) -> None:
    command = "test -e once || { touch once; exit 1; }; echo at least $LABAN_ARG_LEAST"
    done = cli("run", write(cli, FLOW), "--address", address, "--json", "--tool", f"check={command}")
    assert done.returncode == 0, done.stderr
    draft, check, final = document(done.stdout)["steps"]
    assert (check["text"], check["attempt"], draft["attempt"]) == ("at least 3", 2, 1)
    assert final["tokens_reused"] > 0


def test_an_interrupted_run_takes_its_tools_along(cli: Cli, address: str) -> None:
    process = cli.start("run", write(cli, FLOW), "--address", address, "--tool", "check=touch began; sleep 600")
    deadline = time.monotonic() + 120
    while not Path(cli.folder, "began").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.splitlines()[-1] == "laban: interrupted"
    assert cli.leftovers() == []
