"""The papers' own tables: KVCOMM's agents in a row, and Prompt Choreography's trees and debates.

    python benchmarks/papers.py [--quick] [--sections new,again,cost,choreography] [--model FOLDER] [--json]

Runs on the engine in this process: on a GPU, if there is one, a random model of Llama-3.1-8B's shapes, of which only
times mean anything; else, or with --model, a real one (SmolLM2-135M by default), with quality beside every time. Arms:

prefix               dense, with prefix caching: our own `exact`, of views as the paper orders them
prefix_shared_first  the same with what is shared in one order for all, and each reader's own text last
direct, corrected, blended   our levels; `corrected` at its usual tolerance, `blended` at its usual share
kvcomm               KVCOMM's published gate and weights over the same store, with full pools (peer_kvcomm.py)
kvcomm_all           the same with its gate open, as its own speed benchmark has it

Sections:

new           2 to 5 agents, each with a prefix that stays (512 tokens), who read a question (1,024) and all that was
              said before (512 each), all of which is new each time
again         the same texts, read before by others, by readers whose prefixes are new to them: `corrected`'s own case
cost          what `corrected` takes beside `direct` on messages of 1,024 tokens, where everything is predicted
choreography  tree of thoughts over branches and voters, debates in turns and at once; every token is decoded

`docs/papers.md` says what came of it. On a CPU `kvcomm` runs at a quarter of the lengths, as `new_quarter`: its anchors
would take 12 GiB, and an hour to fill.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from gpu_model import NAMESPACE, Size, describe, random_model, word_tokenizer
from paper_choreography import Choreography, debate_at_once, debate_in_turns, tree_of_thoughts
from paper_kvcomm import Lengths, Table
from paper_stage import ARMS, PREFIX, Frames, Prose, use_process_time
from report import ROOT, Clock, Report, Row, add_arguments, finish, new_report, num_cores

from laban.actors.engine.config import EngineConfig
from laban.actors.engine.engine import Engine
from laban.actors.engine.load import load_engine, make_engine
from laban.actors.framing import derive_framing
from laban.actors.models import prepare_default_model

CPU_POOL_TOKENS, TINY_POOL_TOKENS = 130_000, 16_384
COST_MESSAGES = (1024, 1024, 1024)
QUARTER = 4


@dataclass(slots=True)
class Bench:
    args: argparse.Namespace
    engine: Engine
    prose: Prose
    frames: Frames
    clock: Clock
    report: Report

    @property
    def on_card(self) -> bool:
        return self.engine.runner.device.type == "cuda"

    @property
    def is_real(self) -> bool:
        return bool(self.frames.around)

    @property
    def by(self) -> int:
        """What lengths are divided by."""
        return 16 if self.args.quick else self.args.divide

    @property
    def arms(self) -> list[str]:
        return str(self.args.arms).split(",")

    def table(self) -> Table:
        args = self.args
        return Table(
            self.engine, self.prose, self.frames, self.clock, args.compared, self.is_real, args.repetitions,
            self.arms, self.report.rows,
        )  # fmt: skip

    def new(self) -> None:
        lengths, table = Lengths().divided(self.by), self.table()
        anchors = self.args.anchors
        if self.on_card or self.by >= QUARTER:
            table.new("new", lengths, anchors, whole=self.args.whole)
            return
        table.new("new", lengths, 0, whole=self.args.whole)
        table.new("new_quarter", lengths.divided(QUARTER // self.by), anchors)

    def again(self) -> None:
        full = Lengths().divided(self.by)
        texts = [full.question, *[full.out] * (full.agents - 1)]
        self.table().again("again", texts, full.prefix, self._views)

    def cost(self) -> None:
        messages = [each // self.by for each in COST_MESSAGES]
        self.table().again("cost", messages, Lengths().prefix // self.by, min(8, self._views), is_cost=True)

    @property
    def _views(self) -> int:
        return 8 if self.args.quick else self.args.views

    def choreography(self) -> None:
        args = self.args
        by = 8 if args.quick else args.shorter
        section = Choreography(
            self.engine, self.prose, self.frames, self.clock, args.compared, self.is_real,
            1 if self.on_card else args.repetitions, by, self.arms,
        )  # fmt: skip
        if self.on_card:  # kernels are compiled at their first use
            section.measure(tree_of_thoughts(2, 2, 8))
            section.rows.clear()
        branches, voters = numbers(args.branches), numbers(args.voters)
        if args.quick:
            branches, voters = branches[:1], voters[:1]
        for b in branches:
            for v in voters:
                section.measure(tree_of_thoughts(b, v, by))
        section.measure(tree_of_thoughts(branches[-1], voters[-1], by, shuffled=True))
        for a in numbers(args.agents)[: 1 if args.quick else None]:
            section.measure(debate_at_once(a, by))
        section.measure(debate_in_turns(by))
        self.report.rows += section.rows


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "new": Bench.new,
    "again": Bench.again,
    "cost": Bench.cost,
    "choreography": Bench.choreography,
}


def numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The papers' own tables, quality beside speed.")
    add_arguments(parser)
    parser.add_argument("--sections", default=",".join(SECTIONS), help=f"by comma; default: {','.join(SECTIONS)}")
    parser.add_argument("--model", type=Path, help="a model's folder; default: see above")
    parser.add_argument("--repetitions", type=int, help="default: 3 on a GPU (1 of trees and debates), 2 on a CPU")
    parser.add_argument("--divide", type=int, default=1, help="the lengths of `new`, `again` and `cost`, by so much")
    parser.add_argument("--compared", type=int, default=24, help="tokens of an answer that are compared; default 24")
    parser.add_argument("--anchors", type=int, help="in each of KVCOMM's pools; 0: no such arm; default: 20")
    parser.add_argument("--views", type=int, default=16, help="that `corrected` learns from; 16 fill its pools")
    parser.add_argument("--branches", help="of the trees, by comma; default: 4,8 on a GPU, 2,8 on a CPU")
    parser.add_argument("--voters", help="default: 4,16")
    parser.add_argument("--agents", help="of the debates at once; default: 3")
    parser.add_argument(
        "--shorter", type=int, help="divides what trees and debates say; default: 1 on a GPU, 4 on a CPU"
    )
    parser.add_argument("--whole", action="store_true", help="also decode every token of `new`, for its end to end")
    names = ",".join(arm.name for arm in ARMS)
    parser.add_argument("--arms", default=names, help=f"besides KVCOMM's, by comma; default: {names}")
    parser.add_argument("--process-time", action="store_true", help="of this process alone, on a CPU that is shared")
    parser.add_argument("--tiny", action="store_true", help="a tiny random model and short texts, to try it on a CPU")
    parser.add_argument("--commit", help="that is measured, where git cannot tell")
    args = parser.parse_args(argv)
    unknown = [name for name in args.sections.split(",") if name not in SECTIONS]
    if unknown:
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    known = [arm.name for arm in ARMS]
    if strange := [name for name in args.arms.split(",") if name not in known]:
        parser.error(f"no arm {', '.join(strange)}; there are {', '.join(known)}")
    if PREFIX.name not in args.arms.split(","):
        parser.error(f"--arms: all is compared with {PREFIX.name}, expected it among them")
    args.quick |= args.tiny
    if args.anchors is None:
        args.anchors = 3 if args.quick else 20
    on_card = torch.cuda.is_available()
    usual = (3, "4,8", "4,16", "3", 1) if on_card else (2, "2,8", "4,16", "3", 4)
    for name, value in zip(("repetitions", "branches", "voters", "agents", "shorter"), usual, strict=True):
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def open_engine(args: argparse.Namespace, clock: Clock) -> tuple[Engine, Frames, Prose]:
    """Without tiers below the device: what is read is there."""
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    rng = random.Random(args.seed)
    if args.model is None and (device.type == "cuda" or args.tiny):
        clock.say("making a random model")
        torch.manual_seed(args.seed)
        model = random_model(Size(args.tiny), device)
        pool_tokens = TINY_POOL_TOKENS if args.tiny else None
        config = EngineConfig(pool_tokens=pool_tokens, drafting=False, host_bytes=0)
        config = config.settled(device.type, "bfloat16")
        tokenizer = word_tokenizer(model.config.vocab_size)
        engine = make_engine(model, tokenizer, config, device, namespace=NAMESPACE)
        prose = Prose(rng, engine.info.vocab_size)
        return engine, Frames.plain(prose), prose
    folder = args.model or prepare_default_model(lambda doing, share: clock.say(doing))
    pool_tokens = None if device.type == "cuda" else TINY_POOL_TOKENS if args.quick else CPU_POOL_TOKENS
    threads = None if device.type == "cuda" else num_cores()
    engine = load_engine(
        folder, EngineConfig(pool_tokens=pool_tokens, drafting=False, host_bytes=0, num_threads=threads)
    )
    framing = derive_framing(folder, engine.tokenizer)
    files = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    stream = engine.tokenizer.encode("\n\n".join(path.read_text(encoding="utf-8") for path in files))
    return engine, Frames.of(framing), Prose(rng, engine.info.vocab_size, stream)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if args.process_time:
        use_process_time()
    clock, names = Clock(), args.sections.split(",")
    report = new_report("papers", args, part=set(names) != set(SECTIONS) or len(args.arms.split(",")) < len(ARMS))
    engine, frames, prose = open_engine(args, clock)
    report.machine = f"{describe(engine.runner.device)}, {report.machine}; {engine.info.model_name or 'random 8B'}"
    report.commit = args.commit or report.commit
    report.rows.append(Row("pool", float(engine.info.pool_tokens), "tokens"))
    bench = Bench(args, engine, prose, frames, clock, report)
    for name in names:
        SECTIONS[name](bench)
        report.save_partial()
    try:
        from paper_chart import draw
    except ImportError as error:
        clock.say(f"not drawn: {error}")
    else:
        for path in draw(report, report.folder):
            clock.say(f"drawn: {path}")
    finish(report, args, clock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
