"""The simulator's workloads: KVFlow's two, declared graphs drawn at random, and what nobody declares."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from sim_flows import Flow, Join, Message, Step, Workload

WAIT_SHARE = 0.2
"""Of a graph's steps, those that a tool's answer comes before."""
TOOLS_S = {"lookup": 0.5, "search": 2.0, "code": 5.0}
"""What tools take on average, and by how much it varies: the deviation of its logarithm."""
SPREAD = 0.4
STAGES = ("chain", "fan", "fan", "branch", "loop", "race")
Maker = Callable[[random.Random, float], Workload]


def cyclic(rng: random.Random, scale: float = 1.0) -> Workload:
    """KVFlow's: ten agents in sequence, 8,192 fixed, 32 dynamic, 32 output tokens, round after round."""
    return Workload("cyclic", (_rounds("c", 10, max(2, round(20 * scale)), 8192, 32, 32),), live=1)


def concurrent(rng: random.Random, scale: float = 1.0) -> Workload:
    """KVFlow's: 64 workflows of ten agents each that share nothing; 1,024 fixed, 256 dynamic, 256 output tokens."""
    flows = []
    for number in range(64):
        flow = _rounds(f"w{number}", 10, max(2, round(4 * scale)), 1024, 256, 256)
        flows.append(Flow(flow.name, flow.steps, arrive_s=rng.uniform(0, 4)))
    return Workload("concurrent", tuple(flows))


def _rounds(name: str, num_agents: int, num_rounds: int, fixed: int, dynamic: int, output: int) -> Flow:
    agents = [Message(f"{name}.agent{n}", fixed, fixed=True) for n in range(num_agents)]
    steps: list[Step] = []
    for number in range(num_agents * num_rounds):
        agent = agents[number % num_agents]
        made = Message(f"{name}.out{number}", dynamic + output, needs=(agent,))
        after = (number - 1,) if number else ()
        steps.append(Step(f"turn{dynamic}+{output}", (agent,), dynamic, output, made, after))
    return Flow(name, tuple(steps))


def graphs(rng: random.Random, scale: float = 1.0) -> Workload:
    """Declared graphs of AND and OR joins, branches, loops and tool waits: 24 long ones that share sixty prompts."""
    prompts = [Message(f"agent{n}", rng.choice((512, 1024, 2048, 4096, 8192)), fixed=True) for n in range(60)]
    stages = max(6, round(30 * scale))
    flows = [graph(f"g{number}", prompts, rng, num_stages=stages) for number in range(24)]
    return Workload("graphs", tuple(Flow(flow.name, flow.steps, rng.uniform(0, 2)) for flow in flows))


def arrivals(rng: random.Random, scale: float = 1.0) -> Workload:
    """Short declared graphs that come and go, 24 at once: of those to come nobody knows anything."""
    prompts = [Message(f"agent{n}", rng.choice((512, 1024, 2048, 4096, 8192)), fixed=True) for n in range(60)]
    flows = [graph(f"a{number}", prompts, rng) for number in range(max(30, round(400 * scale)))]
    return Workload("arrivals", tuple(flows), live=24)


def graph(name: str, prompts: list[Message], rng: random.Random, *, num_stages: int | None = None) -> Flow:
    """Some agents of those there are, a task of its own, and stages: three to six of them unless said otherwise."""
    agents = rng.sample(prompts, min(len(prompts), rng.randint(3, 7)))
    task = Message(f"{name}.task", rng.choice((128, 512, 2048)), fixed=True, given=True)
    steps: list[Step] = []

    def add(
        agent: Message, reads: list[Message], after: tuple[int, ...], join: Join = "all", likelihood: float = 1.0,
        runs: bool = True,
    ) -> int:  # fmt: skip
        number = len(steps)
        seen = tuple(dict.fromkeys((agent, task, *reads)))
        output = rng.choice((32, 128, 256, 512))
        made = Message(f"{name}.{number}", output + 16, needs=seen)
        tool = rng.choice(list(TOOLS_S)) if after and rng.random() < WAIT_SHARE else None
        wait_s = 0.0 if tool is None else TOOLS_S[tool] * rng.lognormvariate(-SPREAD * SPREAD / 2, SPREAD)
        kind = f"{output}" if tool is None else f"{output} after {tool}"
        steps.append(Step(kind, seen, 16, output, made, after, join, wait_s, likelihood, runs))
        return number

    ends = [add(agents[0], [], ())]
    for _ in range(num_stages or rng.randint(3, 6)):
        stage = rng.choice(STAGES)
        before = [steps[end].output for end in ends][-3:]
        after = tuple(ends)
        if stage == "chain":
            ends = [add(rng.choice(agents), before, after, _join(steps, ends))]
        elif stage == "fan":
            agents_here = rng.sample(agents, rng.randint(2, min(4, len(agents))))
            ends = [add(agent, before, after, _join(steps, ends)) for agent in agents_here]
        elif stage == "race":
            racers = [add(agent, before, after, _join(steps, ends)) for agent in rng.sample(agents, 2)]
            ends = [add(rng.choice(agents), [], tuple(racers), "any")]
        elif stage == "branch":
            gate = add(rng.choice(agents), before, after, _join(steps, ends))
            share = rng.uniform(0.1, 0.9)
            taken = rng.random() < share
            yes = add(rng.choice(agents), [steps[gate].output], (gate,), "all", share, taken)
            no = add(rng.choice(agents), [steps[gate].output], (gate,), "all", 1 - share, not taken)
            ends = [yes, no]
        else:
            writer, critic = rng.sample(agents, 2)
            again = rng.uniform(0.3, 0.8)
            last = add(writer, before, after, _join(steps, ends))
            rounds, going, likelihood = [last], True, 1.0
            for _ in range(3):
                going = going and rng.random() < again
                judged = add(critic, [steps[last].output], (last,), "all", likelihood, going)
                last = add(writer, [steps[judged].output], (judged,), "all", 1.0, going)
                rounds.append(last)
                likelihood = again
            ends = rounds
    add(agents[0], [steps[end].output for end in ends][-3:], tuple(ends), "settled")
    return Flow(name, tuple(steps))


def _join(steps: list[Step], ends: list[int]) -> Join:
    """Whoever comes after branches goes on with what there is."""
    return "settled" if any(steps[end].likelihood < 1 or not steps[end].runs for end in ends) else "all"


class Drawn(Sequence[Flow]):
    """Flows that are made when they are asked for, the same each time: a hundred thousand are too many to keep."""

    def __init__(self, count: int, make: Callable[[int], Flow]) -> None:
        self._count = count
        self._make = make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        return self._make(number)


def fleet(rng: random.Random, num_flows: int, live: int, *, num_prompts: int = 2000) -> Workload:
    """For many workers: short declared graphs over thousands of agents' prompts, a few of them everybody's.

    Tools take most of the time, so most of those that live wait.
    """
    prompts = [Message(f"agent{n}", rng.choice((512, 1024, 2048, 4096)), fixed=True) for n in range(num_prompts)]
    weights = list(accumulate((rank + 1) ** -0.8 for rank in range(num_prompts)))
    seed = rng.randrange(1 << 30)

    def make(number: int) -> Flow:
        own = random.Random(seed * 1_000_003 + number)
        agents = list(dict.fromkeys(own.choices(prompts, cum_weights=weights, k=4)))
        task = Message(f"f{number}.task", own.choice((64, 256, 1024)), fixed=True, given=True)
        steps: list[Step] = []
        ends: list[int] = []
        for stage in range(own.randint(2, 4)):
            before = tuple(steps[end].output for end in ends)
            begun = []
            for agent in own.sample(agents, min(len(agents), own.choice((1, 1, 2)))):
                reads = (agent, task, *before)
                output = own.choice((32, 64, 128, 256))
                made = Message(f"f{number}.{len(steps)}", output + 16, needs=reads)
                wait_s = own.lognormvariate(3.2, 0.4) if stage else 0.0
                begun.append(len(steps))
                steps.append(Step(f"{output}", reads, 16, output, made, tuple(ends), wait_s=wait_s))
            ends = begun
        return Flow(f"f{number}", tuple(steps))

    return Workload("fleet", Drawn(num_flows, make), live=live, ramp_s=30.0)


def zipf(rng: random.Random, scale: float = 1.0) -> Workload:
    """Single calls, undeclared: each reads one of a thousand shared prompts, some far more often than others."""
    prompts = [Message(f"prompt{n}", rng.choice((512, 1024, 2048, 4096)), fixed=True) for n in range(1000)]
    weights = list(accumulate(1 / (rank + 1) for rank in range(len(prompts))))
    flows, now_s = [], 0.0
    for number in range(round(6000 * scale)):
        now_s += rng.expovariate(20.0)
        prompt = rng.choices(prompts, cum_weights=weights)[0]
        made = Message(f"z{number}.out", 64 + 128, needs=(prompt,))
        flows.append(Flow(f"z{number}", (Step("zipf", (prompt,), 64, 128, made),), now_s, declared=False))
    return Workload("zipf", tuple(flows))


def chat(rng: random.Random, scale: float = 1.0) -> Workload:
    """People in conversation, undeclared: each turn reads all that went before; they think, and leave when they like."""  # noqa: E501
    system = Message("system", 1024, fixed=True)
    flows, now_s = [], 0.0
    for number in range(round(800 * scale)):
        now_s += rng.expovariate(1.2)
        flows.append(_chat(f"t{number}", system, rng, now_s))
    return Workload("chat", tuple(flows))


def _chat(name: str, system: Message, rng: random.Random, arrive_s: float) -> Flow:
    seen = [system]
    steps: list[Step] = []
    while not steps or rng.random() < 0.85:
        new, output = rng.choice((32, 128, 512, 1024)), rng.choice((64, 256, 512))
        made = Message(f"{name}.{len(steps)}", new + output, needs=tuple(seen))
        wait_s = rng.lognormvariate(2.5, 1.0) if steps else 0.0
        after = (len(steps) - 1,) if steps else ()
        steps.append(Step("chat", tuple(seen), new, output, made, after, wait_s=wait_s))
        seen.append(made)
    return Flow(name, tuple(steps), arrive_s, declared=False)


def uniform(rng: random.Random, scale: float = 1.0) -> Workload:
    """No pattern at all, undeclared: each call reads one to four of 500 messages, any of them."""
    messages = [Message(f"u{n}", rng.choice((256, 1024, 4096)), fixed=True) for n in range(500)]
    flows, now_s = [], 0.0
    for number in range(round(4000 * scale)):
        now_s += rng.expovariate(8.0)
        reads = tuple(rng.sample(messages, rng.randint(1, 4)))
        made = Message(f"x{number}.out", 160, needs=reads)
        flows.append(Flow(f"x{number}", (Step("uniform", reads, 32, 128, made),), now_s, declared=False))
    return Workload("uniform", tuple(flows))


def mixed(rng: random.Random, scale: float = 1.0) -> Workload:
    """Declared graphs, chats and shared prompts on one worker, a third each."""
    prompts = [Message(f"agent{n}", rng.choice((512, 1024, 2048, 4096)), fixed=True) for n in range(40)]
    flows: list[Flow] = []
    chats = [flow for flow in chat(rng, 0.4 * scale).flows]
    singles = [flow for flow in zipf(rng, 0.4 * scale).flows]
    until_s = max(flow.arrive_s for flow in (*chats, *singles))
    for number in range(round(160 * scale)):
        drawn = graph(f"m{number}", prompts, rng)
        flows.append(Flow(drawn.name, drawn.steps, rng.uniform(0, until_s)))
    flows += chats + [Flow(f.name, f.steps, f.arrive_s * 2, declared=False) for f in singles]
    return Workload("mixed", tuple(sorted(flows, key=lambda flow: flow.arrive_s)))


WORKLOADS: dict[str, Maker] = {
    "cyclic": cyclic,
    "concurrent": concurrent,
    "graphs": graphs,
    "arrivals": arrivals,
    "zipf": zipf,
    "chat": chat,
    "uniform": uniform,
    "mixed": mixed,
}
