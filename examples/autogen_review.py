"""A team in AutoGen, unchanged but for an address: a writer and two critics take turns until both are content.

Every turn sends the whole conversation again, each time under another agent's instructions.

    pip install autogen-agentchat 'autogen-ext[openai]'
    laban serve                                                    # in another terminal
    python examples/autogen_review.py --task "A slogan for a lighthouse museum."
    python examples/autogen_review.py --fidelity exact
"""

from __future__ import annotations

import argparse
import asyncio
import logging

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.base import TaskResult
from autogen_agentchat.conditions import MaxMessageTermination, TextMentionTermination
from autogen_agentchat.messages import TextMessage
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_core import EVENT_LOGGER_NAME
from autogen_core.logging import LLMCallEvent
from autogen_core.models import ModelFamily, ModelInfo
from autogen_ext.models.openai import OpenAIChatCompletionClient
from openai import AsyncOpenAI

AGENTS = {
    "writer": "You write what is asked for, and write it anew when it is criticised. Two sentences.",
    "stylist": "You criticise the style of the latest text in one sentence, or say APPROVED.",
    "checker": "You say in one sentence what the latest text gets wrong, or say APPROVED.",
}
INFO = ModelInfo(
    vision=False,
    function_calling=False,
    json_output=True,
    structured_output=True,
    family=ModelFamily.UNKNOWN,
    multiple_system_messages=True,
)


class Reuse(logging.Handler):
    """Adds up what the answers say was reused: AutoGen's own sums leave it out."""

    prompt = cached = 0

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.msg, LLMCallEvent):
            usage = record.msg.kwargs["response"]["usage"]
            self.prompt += usage["prompt_tokens"]
            self.cached += usage["prompt_tokens_details"]["cached_tokens"]


async def run(task: str, base_url: str, model: str, fidelity: str, turns: int) -> None:
    reuse, events = Reuse(), logging.getLogger(EVENT_LOGGER_NAME)
    events.addHandler(reuse)
    events.setLevel(logging.INFO)
    async with AsyncOpenAI(base_url=base_url, api_key="none") as plain:
        model = model or (await plain.models.list()).data[0].id
    client = OpenAIChatCompletionClient(
        model=model,
        base_url=base_url,
        api_key="none",
        model_info=INFO,
        max_tokens=60,
        temperature=0,
        extra_body={"laban": {"fidelity": fidelity}},
    )
    team = RoundRobinGroupChat(
        [AssistantAgent(name, model_client=client, system_message=system) for name, system in AGENTS.items()],
        termination_condition=TextMentionTermination("APPROVED") | MaxMessageTermination(1 + turns),
    )
    async for item in team.run_stream(task=task):
        if isinstance(item, TaskResult):
            print(f"\nended: {item.stop_reason}")
        elif isinstance(item, TextMessage):
            print(f"\n{item.source}: {item.content.strip()}")
    share = reuse.cached / reuse.prompt
    print(f"{fidelity}: {reuse.prompt} prompt tokens, {reuse.cached} of them ({share:.0%}) not encoded again")
    await client.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="A team in AutoGen on Laban.")
    parser.add_argument("--task", default="Describe a lighthouse to somebody who has never seen the sea.")
    parser.add_argument("--base-url", default="http://127.0.0.1:8471/v1")
    parser.add_argument("--model", default="", help="default: the one that is served")
    parser.add_argument("--fidelity", default="direct", help="how messages are reused beyond a prefix, or exact")
    parser.add_argument("--turns", type=int, default=6)
    options = parser.parse_args()
    asyncio.run(run(options.task, options.base_url, options.model, options.fidelity, options.turns))


if __name__ == "__main__":
    main()
