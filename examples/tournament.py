"""A flow that is decided as it goes, through the choreography API: ideas compete pairwise until one is left.

Every idea is encoded once, when it is written. Which two meet next depends on who has won so far, and each match is
played twice, in both orders, since models favour what they read first; so an idea is read at many positions, next to
others each time. No prefix is shared, and yet with fidelity `direct` next to nothing is encoded again.

    laban serve                                             # in another terminal
    python examples/tournament.py --ideas 8
    python examples/tournament.py --fidelity exact          # the same, encoding every view anew
    python examples/tournament.py --svg tournament.svg      # what read what
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from laban.actors.errors import LabanError
from laban.cluster.client import AsyncClient, AsyncSession
from laban.cluster.records import MessageRecord

TASK = "Give one idea, in one sentence, for {topic}."
RULES = "Two ideas stand above. Which of them is better, the first or the second? Answer with one word."


@dataclass
class Trace:
    """What was made and read, for the sums and the picture."""

    made: dict[str, MessageRecord] = field(default_factory=dict)
    reads: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, message: MessageRecord, reads: list[str]) -> MessageRecord:
        self.made[name], self.reads[name] = message, reads
        return message

    def sums(self) -> str:
        made = list(self.made.values())
        read, reused = sum(m.tokens_read for m in made), sum(m.tokens_reused for m in made)
        encoded, ttft_ms = sum(m.tokens_encoded for m in made), sum(m.ttft_ms for m in made)
        return f"{read} tokens read, {reused} of them reused; {encoded} encoded; TTFT {ttft_ms / 1000:.1f} s in all"


async def judge(session: AsyncSession, trace: Trace, match: str, first: str, second: str, fidelity: str) -> str:
    """The better of two ideas; the first if the two orders do not agree."""
    rules = trace.made["rules"]

    async def ask(one: str, other: str) -> str:
        view = [trace.made[one], trace.made[other], rules]
        verdict = await session.generate(view=view, prefill="The better one is the", max_tokens=4, fidelity=fidelity)
        trace.add(f"{match}: {one}, {other}", verdict, [one, other, "rules"])
        return other if "second" in verdict.text.lower() else one

    one, other = await asyncio.gather(ask(first, second), ask(second, first))
    return one if one == other else first


async def play(session: AsyncSession, topic: str, num_ideas: int, fidelity: str) -> tuple[str, Trace]:
    trace = Trace()
    trace.add("task", await session.prefill(TASK.format(topic=topic)), [])
    trace.add("rules", await session.prefill(RULES), [])

    async def propose(number: int) -> str:
        name = f"idea {number}"
        idea = await session.generate(
            view=[trace.made["task"]], prefill="Idea:", max_tokens=32, temperature=0.9, top_k=40, seed=number
        )
        trace.add(name, idea, ["task"])
        return name

    left = list(await asyncio.gather(*(propose(number) for number in range(1, num_ideas + 1))))
    number = 0
    while len(left) > 1:
        number += 1
        pairs = list(zip(left[::2], left[1::2], strict=False))
        bye = left[2 * len(pairs) :]
        matches = (judge(session, trace, f"round {number}", one, other, fidelity) for one, other in pairs)
        left = [*await asyncio.gather(*matches), *bye]
        print(f"round {number}: {', '.join(left)}")
    return left[0], trace


def draw(trace: Trace, path: Path) -> None:
    """The flow as `laban graph` would draw it."""
    from laban.cluster.workflow.picture import Arrow, Box, Picture
    from laban.cluster.workflow.svg import svg_of

    ranks: dict[str, int] = {}
    for name, reads in trace.reads.items():
        ranks[name] = 1 + max((ranks[read] for read in reads), default=-1)
        if name.startswith("round"):
            ranks[name] = 1 + int(name.split()[1].rstrip(":"))
    fixed = ("task", "rules")
    boxes = tuple(
        Box(name, "message" if name in fixed else "generate", ranks[name], (f"{message.num_tokens} tokens",), ())
        for name, message in sorted(trace.made.items(), key=lambda item: ranks[item[0]])
    )
    arrows = tuple(Arrow(read, name, False) for name, reads in trace.reads.items() for read in reads if read != "rules")
    path.write_text(svg_of(Picture("tournament", boxes, arrows)), encoding="utf-8")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default=os.environ.get("LABAN_ADDRESS", "127.0.0.1:8470"), help="of the server")
    parser.add_argument("--topic", default="a birthday party in the rain", help="what to have ideas for")
    parser.add_argument("--ideas", type=int, default=8, help="how many compete, 2 or more (default 8)")
    parser.add_argument("--fidelity", default="direct", choices=["exact", "direct"], help="of the judges' reads")
    parser.add_argument("--svg", type=Path, help="draw what read what into this file")
    options = parser.parse_args()
    if options.ideas < 2:
        parser.error("--ideas: expected 2 or more")
    async with AsyncClient(options.address) as client, await client.open_session() as session:
        winner, trace = await play(session, options.topic, options.ideas, options.fidelity)
    print(f"{winner} wins: {trace.made[winner].text.strip()}")
    print(trace.sums())
    if options.svg is not None:
        draw(trace, options.svg)
        print(f"drawn: {options.svg}")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except LabanError as error:
        sys.exit(f"{error}\nIs a server up? `laban serve` starts one.")
