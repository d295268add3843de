"""A debate in LangGraph, unchanged but for an address: three agents answer, read each other, and a judge decides.

Each agent has instructions of its own, so no two prompts begin alike and a prefix cache finds next to nothing. Asked
for "direct", Laban reads every message as it was encoded first, whoever wrote it and wherever it stands.

    pip install langgraph langchain-openai
    laban serve                                                    # in another terminal
    python examples/langgraph_debate.py --question "Tabs or spaces?"
    python examples/langgraph_debate.py --fidelity exact           # the same answers as from any engine
"""

from __future__ import annotations

import argparse
import operator
from typing import Annotated, Any, TypedDict

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

AGENTS = {
    "Ann": "You are Ann, an engineer who likes to build things. Answer in two sentences.",
    "Bob": "You are Bob, who has run large systems for years. Answer in two sentences.",
    "Cleo": "You are Cleo, who pays the bills. Answer in two sentences.",
}
JUDGE = "You are the judge. Say in two sentences whose answer is best, and why."


class Debate(TypedDict):
    question: str
    opinions: Annotated[list[str], operator.add]
    replies: Annotated[list[str], operator.add]
    usage: Annotated[list[dict[str, int]], operator.add]
    verdict: str


def build(model: ChatOpenAI) -> Any:
    """Opinions side by side, then replies that read all opinions, then the verdict."""

    def ask(system: str, messages: list[str], name: str) -> tuple[str, dict[str, int]]:
        answer = model.invoke([SystemMessage(system), *(HumanMessage(text) for text in messages)])
        assert isinstance(answer, AIMessage)
        assert answer.usage_metadata is not None
        used = answer.usage_metadata
        cached = used.get("input_token_details", {}).get("cache_read", 0)
        print(f"\n{name}: {answer.text.strip()}")
        return f"{name} said: {answer.text}", {"prompt": used["input_tokens"], "cached": cached}

    def opinion(state: dict[str, str]) -> dict[str, Any]:
        text, used = ask(AGENTS[state["agent"]], [state["question"]], state["agent"])
        return {"opinions": [text], "usage": [used]}

    def reply(state: dict[str, Any]) -> dict[str, Any]:
        text, used = ask(AGENTS[state["agent"]], [state["question"], *state["opinions"]], state["agent"])
        return {"replies": [text], "usage": [used]}

    def judge(state: Debate) -> dict[str, Any]:
        text, used = ask(JUDGE, [state["question"], *state["opinions"], *state["replies"]], "The judge")
        return {"verdict": text, "usage": [used]}

    graph = StateGraph(Debate)
    graph.add_node("opinion", opinion)
    graph.add_node("gather", lambda state: {})
    graph.add_node("reply", reply)
    graph.add_node("judge", judge)
    graph.add_conditional_edges(
        START, lambda state: [Send("opinion", {"agent": each, "question": state["question"]}) for each in AGENTS]
    )
    graph.add_edge("opinion", "gather")
    graph.add_conditional_edges("gather", lambda state: [Send("reply", {**state, "agent": each}) for each in AGENTS])
    graph.add_edge("reply", "judge")
    graph.add_edge("judge", END)
    return graph.compile()


def main() -> None:
    parser = argparse.ArgumentParser(description="A debate in LangGraph on Laban.")
    parser.add_argument("--question", default="Should a small team write its own database?")
    parser.add_argument("--base-url", default="http://127.0.0.1:8471/v1")
    parser.add_argument("--model", default="", help="default: the one that is served")
    parser.add_argument("--fidelity", default="direct", help="how messages are reused beyond a prefix, or exact")
    options = parser.parse_args()
    model = ChatOpenAI(
        base_url=options.base_url,
        api_key="none",
        model=options.model or served_model(options.base_url),
        max_completion_tokens=80,
        temperature=0,
        extra_body={"laban": {"fidelity": options.fidelity}},
    )
    found = build(model).invoke({"question": options.question, "opinions": [], "replies": [], "usage": []})
    prompt, cached = (sum(used[name] for used in found["usage"]) for name in ("prompt", "cached"))
    print(f"\n{options.fidelity}: {prompt} prompt tokens, {cached} of them ({cached / prompt:.0%}) not encoded again")


def served_model(base_url: str) -> str:
    from openai import OpenAI

    return OpenAI(base_url=base_url, api_key="none").models.list().data[0].id


if __name__ == "__main__":
    main()
