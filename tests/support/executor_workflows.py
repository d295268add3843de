"""Small workflows for the executor, and a decorator for asynchronous tests."""

from __future__ import annotations

import asyncio
import functools

CHAIN = """
version: 1
name: chain
inputs: {question: {type: string}}
messages: {task: "{{ question }}"}
steps:
  - {step: draft, read: [task]}
  - {step: final, read: [task, draft]}
outputs: {answer: final}
"""

DEBATE = """
version: 1
name: debate
messages: {task: "What?"}
agents: {ann: "You are Ann", bob: "You are Bob", cyd: "You are Cyd"}
steps:
  - step: answer
    for_each: agents
    rounds: 2
    read: [task, "answer[others,previous]"]
outputs: {last: "answer[ann,2]"}
"""

EXTERNAL = """
version: 1
name: ask
messages: {task: "What?"}
steps:
  - {step: human, external: {}, read: [task]}
  - {step: final, read: [task, human]}
"""


def asynchronous(test):
    @functools.wraps(test)
    def run(*args, **kwargs):
        asyncio.run(test(*args, **kwargs))

    return run


def one_step(prefill: str = "", **sampling: object) -> str:
    values = ", ".join(f"{key}: {value}" for key, value in sampling.items())
    return f"""
version: 1
name: one
messages: {{task: "What?"}}
steps: [{{step: only, read: [task], prefill: "{prefill}", sampling: {{{values}}}}}]
"""


def tool_step(*, lease_s: float = 30.0, more: str = "", external: str = "", ends: str = "") -> str:
    """An external step `tests` of the tool `run_tests`, and one that reads it. `more` are keys of the step."""
    return f"""
version: 1
name: tool
messages: {{task: "What?"}}
steps:
  - step: tests
    external: {{tool: run_tests, args: {{n: 3}}, lease_s: {lease_s}{external}}}
    read: [task]
    {more}
  - {{step: final, read: [task, tests]}}
{ends}
"""
