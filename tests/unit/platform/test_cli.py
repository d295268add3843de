"""The command line without a cluster: arguments, files, lint, errors and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from command_line import QUESTION

from laban.actors.errors import InvalidInput, NotFound
from laban.cluster.cli import main
from laban.cluster.cli.arguments import EXAMPLES, parse
from laban.cluster.cli.files import parse_settings
from laban.cluster.cli.inputs import parse_inputs

COMMANDS = [
    "serve",
    "run",
    "submit",
    "watch",
    "get",
    "list",
    "cancel",
    "delete",
    "lint",
    "graph",
    "new",
    "config",
    "status",
    "explain",
    "workers",
    "tools",
    "complete",
    "fail",
    "dashboards",
    "trace",
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # main's handlers are not pytest's


@pytest.mark.parametrize("command", [*COMMANDS, "version"])
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


def test_a_pattern_is_a_list_of_texts_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.md", "odd[1].txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "d.txt").mkdir()
    assert parse_inputs(["docs=@[ab].txt"]) == {"docs": ["a.txt", "b.txt"]}
    assert parse_inputs(["docs=@*.txt"]) == {"docs": ["a.txt", "b.txt", "odd[1].txt"]}
    assert parse_inputs(["docs=@odd[1].txt"]) == {"docs": "odd[1].txt"}  # a name is taken by its letters first
    with pytest.raises(NotFound, match="no file matches"):
        parse_inputs(["docs=@*.pdf"])


def test_json_and_csv_files(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text("[1, true]")
    (tmp_path / "one.csv").write_text('\ufefftext\nplain\n\n"two\nlines, quoted"\n', encoding="utf-8")
    (tmp_path / "two.csv").write_text("id,text\r\n1,x\r\n2,y\r\n")
    assert parse_inputs(["d:=@d.json"]) == {"d": [1, True]}
    assert parse_inputs(["d:=@one.csv"]) == {"d": ["plain", "two\nlines, quoted"]}
    assert parse_inputs(["d:=@two.csv:text"]) == {"d": ["x", "y"]}
    (tmp_path / "bad.csv").write_text("id,text\n1\n")
    (tmp_path / "none.csv").write_text("")
    for bad, words in (
        ("two.csv", "2 columns, expected a column, one of id, text"),
        ("two.csv:txt", "no such column"),
        ("bad.csv:id", "row 1 has 1 cells, expected 2"),
        ("none.csv", "has no row"),
        ("one.csv.json", "no such file"),
    ):
        with pytest.raises((InvalidInput, NotFound), match=words):
            parse_inputs([f"d:=@{bad}"])


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
    assert "1 step instance\n" in out
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


def test_lint_names_the_model_that_the_longest_view_is_of(
    default_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "another"
    other.mkdir()
    for file in default_folder.iterdir():
        (other / file.name).symlink_to(file)
    models = f"models: {{large: {{path: {default_folder}}}, small: {{path: {other}}}}}\n"
    Path("laban.yaml").write_text(models)
    Path("flow.yaml").write_text(QUESTION.replace("read: [question]", "model: small\n    read: [question]"))
    assert main(["lint", "flow.yaml"]) == 0
    assert "(another)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "severity", "of_model"),
    [("", "warning", ""), ("adapters: {law: /adapters/law}", "error", "one of law, or ")],
)
def test_lint_says_which_adapters_and_models_are_not_served(
    config: str, severity: str, of_model: str, default_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A warning where nothing is configured: the file may be for another server."""
    Path("laban.yaml").write_text(config)
    Path("flow.yaml").write_text("version: 1\nname: t\nadapter: sql\nsteps:\n- {step: a}\n")
    assert main(["lint", "flow.yaml"]) == (2 if config else 0)
    said = capsys.readouterr().out
    assert (
        f"flow.yaml:3:10: {severity}: adapter: no such adapter is served (got 'sql'); expected {of_model}none" in said
    )
    Path("flow.yaml").write_text("version: 1\nname: t\nmodel: huge\nadapter: sql\nsteps:\n- {step: a}\n")
    assert main(["lint", "flow.yaml"]) == (2 if config else 0)
    assert f"flow.yaml:3:8: {severity}: model: no such model is served (got 'huge')" in capsys.readouterr().out


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


def test_a_new_file_runs_and_is_not_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "my-flow.yaml"]) == 0
    assert main(["lint", "my-flow.yaml"]) == 0
    assert "name: my_flow" in Path("my-flow.yaml").read_text()
    capsys.readouterr()
    assert main(["new", "my-flow.yaml"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["new", "7.yaml"]) == 2
    assert main(["new", "no/such/folder.yaml"]) == 2


def test_graph(capsys: pytest.CaptureFixture[str]) -> None:
    main(["new", "flow.yaml"])
    capsys.readouterr()
    assert main(["graph", "flow.yaml"]) == 0
    out = capsys.readouterr().out
    assert "1 answer   for each of ann, bob, 2 rounds  reads question, task, answer[others,previous]" in out
    assert main(["graph", "flow.yaml", "--svg", "flow.svg"]) == 0
    picture = ElementTree.parse("flow.svg").getroot()
    texts = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"flow", "question", "answer", "summary"} <= set(texts)
    Path("flow.yaml").write_text("version: 1\nname: x\nsteps: [{step: a, read: [b]}]\n")
    assert main(["graph", "flow.yaml"]) == 2
    assert main(["graph", "none.yaml"]) == 2
