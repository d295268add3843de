"""The command line without a cluster: arguments, files, lint, errors and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import QUESTION

from laban.actors.errors import InvalidInput, NotFound
from laban.cluster.cli import main
from laban.cluster.cli.arguments import EXAMPLES, parse
from laban.cluster.cli.files import parse_inputs, parse_settings

COMMANDS = ("serve", "run", "submit", "watch", "get", "list", "cancel", "lint", "config", "status", "version")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # main's handlers are not pytest's


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse([command, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "examples:" in out
    assert EXAMPLES[command].splitlines()[0].strip() in out


def test_bad_arguments_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["fly"], ["run"], ["run", "f", "--seed", "x"], ["run", "f", "--js"]):
        with pytest.raises(SystemExit) as ended:
            parse(argv)
        assert ended.value.code == 2


def test_inputs(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("lines\n")
    assert parse_inputs(["a=1", "b=x=y", "c=@long.txt", 'd:=["p", 2]', "e="]) == {
        "a": "1",
        "b": "x=y",
        "c": "lines\n",
        "d": ["p", 2],
        "e": "",
    }
    for bad in (["a"], ["=1"], ["a=1", "a=2"], ["d:=["]):
        with pytest.raises(InvalidInput, match="--input"):
            parse_inputs(bad)
    with pytest.raises(NotFound, match="no such file"):
        parse_inputs(["a=@none.txt"])


def test_settings() -> None:
    given = ["answer[bob,2].max_tokens=64", "answer.stop=a=b"]
    assert parse_settings(given) == {"answer[bob,2].max_tokens": "64", "answer.stop": "a=b"}
    for bad in (["answer=1"], ["max_tokens"], [".x=1"], ["a.=1"], ["a.x=1", "a.x=2"]):
        with pytest.raises(InvalidInput, match="--set"):
            parse_settings(bad)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out.startswith("laban ")


def test_config_prints_what_is_resolved(capsys: pytest.CaptureFixture[str]) -> None:
    Path("laban.yaml").write_text("workers: 3\n")
    assert main(["config"]) == 0
    assert "workers: 3  # model replicas (set by laban.yaml)" in capsys.readouterr().out
    assert main(["config", "--workers", "none"]) == 2
    assert "laban: workers: " in capsys.readouterr().err


def test_errors_are_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "none.yaml"]) == 2
    assert capsys.readouterr().err == "laban: FILE: no such file (got 'none.yaml')\n"
    assert main(["status", "--address", "127.0.0.1:1"]) == 1
    assert capsys.readouterr().err.startswith("laban: no Laban answers at 127.0.0.1:1; start one with `laban serve`")


def test_a_bug_is_said_to_be_one(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> bytes:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("laban.cluster.cli.commands.read_file", broken)
    assert main(["submit", "flow.yaml"]) == 1
    assert capsys.readouterr().err == "laban: a bug in Laban: ZeroDivisionError: oh (LABAN_DEBUG=1 shows where)\n"


def test_lint(default_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("flow.yaml").write_text(QUESTION)
    assert main(["lint", "flow.yaml"]) == 0
    out = capsys.readouterr().out
    assert "1 step instances" in out
    assert "longest view: answer" in out
    assert out.endswith("no errors\n")
    Path("flow.yaml").write_text(QUESTION.replace("[question]", "[qestion]"))
    assert main(["lint", "flow.yaml"]) == 2
    assert "flow.yaml:9:12: error: steps[0].read[0]" in capsys.readouterr().out


def test_lint_finds_views_that_are_too_long(default_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("flow.yaml").write_text(QUESTION.replace("max_tokens: 16", "max_tokens: 9000"))
    assert main(["lint", "flow.yaml", "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"]
    assert not report["views"][0]["fits"]
    assert "outgrow" in report["diagnostics"][0]["message"]
    assert report["diagnostics"][0]["line"] == 8


def test_lint_without_a_model_estimates_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    Path("flow.yaml").write_text(QUESTION)
    assert main(["lint", "flow.yaml"]) == 0
    assert "lengths are estimates" in capsys.readouterr().out
    assert main(["lint", "flow.yaml", "--model", "none"]) == 2


def test_the_command_line_is_light() -> None:
    heavy = "{'torch', 'transformers', 'ray', 'pydantic', 'rich', 'yaml', 'jinja2'}"
    code = f"import sys, laban.cluster.cli, laban.cluster.client; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
