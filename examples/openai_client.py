"""Two agents over the `openai` package: a writer and a critic, who read the same brief and each other's words.

    pip install openai
    laban serve                                        # in another terminal
    python examples/openai_client.py
    python examples/openai_client.py --fidelity direct # each message encoded once, wherever it stands

Nothing here is Laban's but the base URL, `extra_body`, and the `laban` object in the last chunk.
"""

from __future__ import annotations

import argparse
from typing import Any

from openai import OpenAI

BRIEF = "Write a slogan for a bakery that opens at four in the morning. One sentence, no more than ten words."
WRITER = "You write slogans. Answer with the slogan alone."
CRITIC = "You judge slogans. Say in one sentence what to change."


def ask(client: OpenAI, model: str, messages: list[Any], fidelity: str) -> tuple[str, int, int]:
    """The answer, printed as it comes; the tokens that it read, and those that were reused."""
    stream = client.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=40,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"laban": {"fidelity": fidelity}},
    )
    text, read, reused = "", 0, 0
    for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            print(choice.delta.content or "", end="", flush=True)
        if chunk.usage is not None:
            read = chunk.usage.prompt_tokens
            details = chunk.usage.prompt_tokens_details
            reused = (details.cached_tokens or 0) if details is not None else 0
    print(f"\n    {reused} of {read} prompt tokens reused\n")
    return text, read, reused


def main() -> None:
    parser = argparse.ArgumentParser(description="A writer and a critic.")
    parser.add_argument("--url", default="http://127.0.0.1:8471/v1", help="as `laban serve` prints it")
    parser.add_argument("--key", default="none", help="a token, where the server asks for one")
    parser.add_argument("--fidelity", default="exact", choices=["exact", "blended", "direct"])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    client = OpenAI(base_url=args.url, api_key=args.key)
    model = client.models.list().data[0].id
    brief = {"role": "user", "content": BRIEF}
    said: list[Any] = []
    sums = [0, 0]
    for _ in range(args.rounds):
        for rules in (WRITER, CRITIC):
            messages = [{"role": "system", "content": rules}, brief, *said]
            text, read, reused = ask(client, model, messages, args.fidelity)
            said.append({"role": "assistant" if rules == WRITER else "user", "content": text})
            sums = [sums[0] + read, sums[1] + reused]
    print(f"in all: {sums[1]} of {sums[0]} prompt tokens reused")


if __name__ == "__main__":
    main()
