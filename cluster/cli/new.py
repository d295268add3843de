"""`laban new`: a starting file that runs as it is and shows what the language can say."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path

from laban.actors.errors import Conflict, InvalidInput
from laban.cluster.workflow.names import NAME, NAME_RULE

STARTER = """\
# Two agents draft an answer apart, read each other's and revise; an editor makes one text of both.
#
#   laban lint {file}      what is wrong with it, and what its steps would read
#   laban graph {file}     its picture
#   laban run {file} --input question='Why is the sky blue?'
version: 1
name: {name}

inputs:
  question: {{default: "Should a small team write its own database?", description: What is asked.}}

sampling: {{max_tokens: 60, temperature: 0.7, seed: 1}}

messages:
  question: "{{{{ question }}}}"
  task: "Answer in two sentences. Where the other one is right, say so."

agents:
  ann: "You are Ann. You like to build things."
  bob: "You are Bob. You have kept databases running for years."
  editor: "You are an editor. You write short and clear."

steps:
  # One instance for each agent and round: answer[ann,1], answer[bob,1], answer[ann,2], ...
  # What a step reads stands in order; `direct` reuses a message as it was encoded, `exact` (the default) does not
  # change what the model sees.
  - step: answer
    for_each: [ann, bob]
    rounds: 2
    read: [question, task, "answer[others,previous]"]

  - step: summary
    agent: editor
    read: [question, {{read: "answer[all,last]", fidelity: direct}}]
    prefill: "In short,"

outputs:
  summary: summary
"""


def new(arguments: Namespace) -> int:
    path = Path(arguments.file)
    name = re.sub(r"[^A-Za-z0-9_]+", "_", path.stem)
    if NAME.fullmatch(name) is None:
        raise InvalidInput(f"gives the workflow no name: {NAME_RULE}", field="FILE", value=arguments.file)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(STARTER.format(name=name, file=arguments.file))
    except FileExistsError:
        raise Conflict("is there already; nothing was written", field="FILE", value=arguments.file) from None
    except OSError as error:
        raise InvalidInput(f"cannot be written ({error.strerror})", field="FILE", value=arguments.file) from None
    print(f"{path}: try `laban run {path}`")
    return 0
