"""`laban graph`: the step graph of a file, as lines in the terminal or as an SVG picture."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from laban.actors.errors import InvalidInput
from laban.cluster.cli.files import read_file
from laban.cluster.client_files import files_named_in
from laban.cluster.workflow.build import build_graph
from laban.cluster.workflow.diagnostics import WorkflowErrors
from laban.cluster.workflow.parse import parse_yaml
from laban.cluster.workflow.picture import lines_of, picture_of
from laban.cluster.workflow.svg import svg_of


def graph(arguments: Namespace) -> int:
    text = read_file(arguments.file)
    workflow = parse_yaml(text, arguments.file, files_named_in(text, Path(arguments.file)))
    found, problems = build_graph(workflow)
    if found is None:
        raise WorkflowErrors(workflow.marks.locate(problems))
    picture = picture_of(found)
    if arguments.svg is None:
        print("\n".join(lines_of(picture)))
        return 0
    try:
        Path(arguments.svg).write_text(svg_of(picture), encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"cannot be written ({error.strerror})", field="--svg", value=arguments.svg) from None
    print(f"drawn: {arguments.svg}")
    return 0
