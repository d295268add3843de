"""The inputs of an audit: one JSON object a line, each a whole set of input values."""

from __future__ import annotations

import json
from collections.abc import Mapping

from laban.actors.errors import InvalidInput
from laban.cluster.workflow.diagnostics import hint
from laban.cluster.workflow.inputs import check_inputs
from laban.cluster.workflow.schema import Workflow

MAX_LINES = 10_000


def read_data(
    text: str, workflow: Workflow, base: Mapping[str, object], source: str
) -> list[tuple[int, dict[str, object]]]:
    """Line numbers, from 1, and the values of each line over those of `base`. Blank lines are passed over.

    Raises InvalidInput for a line that is not an object, or whose values are not what the workflow declares.
    """
    found: list[tuple[int, dict[str, object]]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{source}:{number}"
        try:
            given = json.loads(line)
        except ValueError as error:
            raise InvalidInput(f"is not JSON ({error}), expected an object a line", field=where) from None
        if not isinstance(given, dict):
            raise InvalidInput("expected an object, one value for each input", field=where, value=given)
        values = {**base, **given}
        _, problems = check_inputs(workflow, values)
        if problems:
            problem = problems[0]
            name = ".".join(map(str, problem.loc[1:]))
            raise InvalidInput(
                f"{problem.message}{hint(problem.expected)}", field=f"{where}: {name}", value=problem.value
            )
        found.append((number, values))
        if len(found) > MAX_LINES:
            raise InvalidInput(f"more than {MAX_LINES} lines", field=source)
    if not found:
        raise InvalidInput("holds no line, expected a JSON object a line", field=source)
    return found
