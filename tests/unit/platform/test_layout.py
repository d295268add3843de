"""What the linters cannot say of the source's layout."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[3]
SOURCES = [path for folder in ("cluster", "actors", "kvstore", "kernels") for path in (ROOT / folder).rglob("*.py")]


def test_one_file_calls_through_ray() -> None:
    callers = {path.relative_to(ROOT).as_posix() for path in SOURCES if ".remote(" in path.read_text()}
    assert callers == {"actors/remote.py"}


def test_what_the_documentation_names_is_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = [word for word in text.split("`") if word.endswith((".py", ".proto", ".yaml")) and "/" in word]
    paths = [part for word in named for part in word.split(" ") if "/" in part]
    assert len(paths) > 15
    assert [path for path in paths if not (ROOT / path).is_file()] == []
    linked = [part.split(")")[0] for part in (ROOT / "README.md").read_text().split("](")[1:]]
    assert [link for link in linked if not (ROOT / link).exists()] == []
