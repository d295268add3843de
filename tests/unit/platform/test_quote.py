"""Mistakes are shown with the line that they stand in."""

from __future__ import annotations

from pathlib import Path

import pytest

from laban.cluster.cli.quote import WIDTH, quoted
from laban.cluster.workflow.diagnostics import WorkflowErrors
from laban.cluster.workflow.parse import parse_yaml

HEAD = "version: 1\nname: x\nmessages: {m: hi}\nsteps:\n"


def lines(text: str, source: str, beside: str = "") -> list[str]:
    with pytest.raises(WorkflowErrors) as caught:
        parse_yaml(text, source)
    return list(quoted(caught.value.diagnostics[0], beside))


@pytest.mark.parametrize("before", ["", "\u00e9\u00e9, ", "x" * 300 + ", "])
def test_the_mark_stands_under_the_mistake(tmp_path: Path, before: str) -> None:
    text = HEAD + f'- {{step: a, prefill: "{before}", read: [nothing]}}\n'
    (tmp_path / "flow.yaml").write_text(text, encoding="utf-8")
    said, line, mark = lines(text, str(tmp_path / "flow.yaml"))
    assert "unknown message or step 'nothing'" in said
    assert line[mark.index("^") :].startswith("nothing")
    assert len(line) <= WIDTH + 9


def test_a_file_in_the_folder_of_another_is_found(tmp_path: Path) -> None:
    text = HEAD + "- {step: a, read: [nothing]}\n"
    (tmp_path / "part.yaml").write_text(text)
    assert len(lines(text, "part.yaml", str(tmp_path / "flow.yaml"))) == 3


def test_what_cannot_be_read_is_not_quoted(tmp_path: Path) -> None:
    text = HEAD + "- {step: a, read: [nothing]}\n"
    assert len(lines(text, str(tmp_path / "gone.yaml"))) == 1
    (tmp_path / "short.yaml").write_text("version: 1\n")  # changed meanwhile
    assert len(lines(text, str(tmp_path / "short.yaml"))) == 1
