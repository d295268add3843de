"""Workflows of every kind, for loads: small, greedy, and with logprobs so that near ties can be told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from laban.cluster.records import StepResult, WorkflowRecord

SURE = 4e-4
"""Of two tokens further apart none takes the other's place because sums were added in another order."""
TOOL = "look_up"

HEAD = """
version: 1
name: {name}
fidelity: exact
sampling: {{max_tokens: {max_tokens}, temperature: 0, logprobs: 2}}
inputs: {{topic: {{}}}}
messages:
  task: "Say something about {{{{ topic }}}}."
  more: "Go on."
  pick: "Which is the best? Answer with its number."
agents: {{ann: "You are Ann, a poet.", bob: "You are Bob, a farmer."}}
"""

STEPS = {
    "chain": """
steps:
  - {step: one, read: [task]}
  - {step: two, agent: ann, read: [task, one, more]}
  - {step: three, agent: bob, read: [two, task]}
outputs: {text: three}
""",
    "fan_out": """
steps:
  - {step: intro, read: [task]}
  - {step: part, for_each: 3, read: [task, intro], prefill: "#{{ index }}:"}
  - {step: whole, agent: bob, read: [task, part, more]}
outputs: {text: whole}
""",
    "debate": """
steps:
  - step: answer
    for_each: agents
    rounds: 2
    read: [task, "answer[self,all]", "answer[others,previous]"]
outputs: {answers: "answer[all,last]"}
""",
    "loop": """
steps:
  - loop: {name: drafts, until: "draft.text | length > 60", max: 3, on_max: continue}
    steps:
      - {step: draft, agent: ann, read: [task, "draft[previous]", "review[previous]"]}
      - {step: review, agent: bob, read: [draft, more]}
outputs: {text: draft}
""",
    "vote": """
steps:
  - {step: propose, for_each: 3, read: [task], prefill: "Idea {{ index }}:"}
  - step: judge
    for_each: agents
    read: [task, propose, pick]
    prefill: "Choice: idea"
    values: {choice: {regex: '[1-3]', type: integer, default: 2}}
    vote: {over: propose, value: choice}
  - {step: final, read: [task, "propose[winner(judge)]", more]}
outputs: {text: final}
""",
    "external": """
steps:
  - {step: plan, agent: ann, read: [task]}
  - {step: fact, external: {tool: look_up, args: {about: plan.text}, lease_s: 5}, read: [plan]}
  - {step: answer, agent: bob, read: [task, plan, fact]}
outputs: {text: answer}
""",
    "nested": """
workflows:
  inner:
    version: 1
    name: inner
    messages: {given: "Nothing."}
    steps:
      - {step: idea, read: [given]}
      - {step: better, read: [given, idea]}
    outputs: {text: better}
steps:
  - {step: start, agent: ann, read: [task]}
  - {step: inside, workflow: inner, messages: {given: start}}
  - {step: end, agent: bob, read: [task, inside]}
outputs: {text: end}
""",
}
KINDS = tuple(STEPS)
TOPICS = (
    "rain", "a ship", "bread", "the moon", "a red door", "old maps", "bees", "a long road", "snow", "a violin",
    "the sea", "an empty house", "clocks", "a garden", "wolves", "salt",
)  # fmt: skip


@dataclass(frozen=True)
class Flow:
    kind: str
    topic: str
    max_tokens: int = 8

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.topic}"

    @property
    def text(self) -> str:
        return HEAD.format(name=self.kind, max_tokens=self.max_tokens) + STEPS[self.kind]

    @property
    def inputs(self) -> dict[str, str]:
        return {"topic": self.topic}


def flows(kind: str, max_tokens: int = 8) -> Iterator[Flow]:
    """Of one kind, as many as there are topics."""
    return (Flow(kind, topic, max_tokens) for topic in TOPICS)


async def look_up(about: str) -> str:
    """The tool that external steps ask for: its answer depends on what it is asked alone."""
    return f"They wrote {len(about)} letters, the first of them {about.strip()[:1]!r}."


def apart(record: WorkflowRecord) -> float:
    """How far apart the two best tokens were where they were nearest to each other, in nats."""
    tokens = [token for step in record.steps for token in step.logprobs]
    return min((token.top[0][1] - token.top[1][1] for token in tokens), default=float("inf"))


@dataclass(frozen=True)
class Outcome:
    """What a run of a flow has to come to, whatever happens to it on its way."""

    state: str
    outputs: tuple[tuple[str, str], ...]
    steps: tuple[tuple[str, str, str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, record: WorkflowRecord) -> Outcome:
        return cls(record.state, record.outputs, tuple(_result(step) for step in record.steps))


def _result(step: StepResult) -> tuple[str, str, str, tuple[int, ...]]:
    return step.address, step.state, step.text, step.token_ids
