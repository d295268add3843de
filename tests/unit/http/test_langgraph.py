"""The endpoint as LangGraph's chat model and its loop of tools drive it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from chat_rig import ChatRig, chat_rig
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from pydantic import BaseModel

from laban.cluster.chats import ChatBegun
from laban.cluster.records import MessageRecord, TokenChunk


def chat_model(rig: ChatRig, **options: Any) -> ChatOpenAI:
    address = f"http://127.0.0.1:{rig.port}/v1"
    return ChatOpenAI(base_url=address, api_key="none", model=rig.model, max_retries=0, **options)


def answering(rig: ChatRig, answers: list[str]) -> list[Any]:
    """The model gives these, one after the other; what it was asked is kept."""
    asked: list[Any] = []

    async def reply(ask: Any, *, tenant: str = "") -> Any:
        asked.append(ask)
        text = answers[len(asked) - 1]
        yield ChatBegun(7)
        for index in range(0, len(text), 5):
            yield TokenChunk("", "reply", 1, index, (index,), text[index : index + 5])
        yield MessageRecord("", "reply", "assistant", None, 0, 9, "exact", tokens_generated=3, text=text)

    rig.chats.reply = reply  # type: ignore[method-assign]
    return asked


def test_the_chat_model_whole_and_streamed() -> None:
    async def main() -> None:
        async with chat_rig() as rig:
            messages = [SystemMessage("be brief"), HumanMessage("hi there")]
            model = chat_model(rig, temperature=0, max_completion_tokens=8)
            whole = await model.ainvoke(messages)
            assert isinstance(whole, AIMessage)
            assert whole.usage_metadata is not None
            assert whole.usage_metadata["output_tokens"] == 8
            parts = [part async for part in model.astream(messages)]
            assert "".join(part.text for part in parts) == whole.text
            assert len(parts) > 2
            again = await model.ainvoke([*messages, whole, HumanMessage("more")])
            assert isinstance(again, AIMessage)
            assert again.usage_metadata is not None
            cached = again.usage_metadata["input_token_details"]["cache_read"]
            assert cached > whole.usage_metadata["input_tokens"]
            turned = chat_model(rig, max_completion_tokens=2, extra_body={"laban": {"fidelity": "direct"}})
            for texts, least in ((("one", "two"), 0), (("two", "one"), 10)):
                found = await turned.ainvoke([HumanMessage(text) for text in texts])
                assert found.usage_metadata["input_token_details"]["cache_read"] >= least

    asyncio.run(main())


def test_a_loop_of_tools() -> None:
    @tool
    def add(a: int, b: int) -> int:
        """Adds two numbers."""
        return a + b

    async def main() -> None:
        async with chat_rig(scripted=True) as rig:
            call = '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>'
            asked = answering(rig, [call, "It is 5."])
            model = chat_model(rig).bind_tools([add])

            async def ask(state: MessagesState) -> dict[str, Any]:
                return {"messages": [await model.ainvoke(state["messages"])]}

            graph = StateGraph(MessagesState)
            graph.add_node("model", ask)
            graph.add_node("tools", ToolNode([add]))
            graph.add_edge(START, "model")
            graph.add_conditional_edges("model", tools_condition, ["tools", END])
            graph.add_edge("tools", "model")
            found = (await graph.compile().ainvoke({"messages": [HumanMessage("2 + 3?")]}))["messages"]
            assert [type(message) for message in found] == [HumanMessage, AIMessage, ToolMessage, AIMessage]
            assert (found[2].content, found[3].text) == ("5", "It is 5.")
            [definition] = asked[0].tools
            assert definition["function"]["description"] == "Adds two numbers."
            assert [message.role for message in asked[1].messages] == ["user", "assistant", "tool"]

    asyncio.run(main())


def test_structured_output_is_enforced() -> None:
    class Verdict(BaseModel):
        verdict: str
        score: int

    async def main() -> None:
        async with chat_rig(scripted=True) as rig:
            asked = answering(rig, [json.dumps({"verdict": "ok", "score": 3})])
            model = chat_model(rig).with_structured_output(Verdict, method="json_schema")
            assert await model.ainvoke("judge") == Verdict(verdict="ok", score=3)
            schema = json.loads(asked[0].sampling.constraint.schema)
            assert set(schema["properties"]) == {"verdict", "score"}

    asyncio.run(main())
