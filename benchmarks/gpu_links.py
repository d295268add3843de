"""Copies between a card and its host, by size and by way, and what they cost a decode that runs beside them.

    .venv/bin/python benchmarks/gpu_links.py [--only NAMES] [--quick] [--json]      about 2 minutes on one H100

Keys and values of an 8B Llama in bfloat16: 128 KiB a token. A message is in one run on both sides, or scattered over
pages of 16 tokens. Ways: `dma` asks the copy engines for all layers at once, `slices` for each layer, `kernel` reads
or writes the host's memory from the card, `auto` is what serves. Rates are of one direction.
`--tiny` tries it on a CPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from gpu_links_beside import measure_beside
from gpu_links_pools import DIRECTIONS, Links
from gpu_model import Size, describe
from report import Clock, Row, add_arguments, finish, new_report

from laban.actors.engine.copier import Copier, Copy
from laban.actors.engine.disk_folder import chunk_of, open_disk, rows_of
from laban.actors.engine.host_memory import HostBlock

TARGET_TOKENS, TARGET_RATE = 8192, 45.0
LIMITS = (5e9, 2e9)


def taken_s(copy: Copy) -> float:
    copy.wait()
    assert copy.seconds is not None, copy.problem()
    return copy.seconds


def measure_pinning(links: Links) -> list[Row]:
    """Of as much memory as two of the largest messages."""
    num_bytes = links.host.num_bytes
    on_card = links.device.type == "cuda"

    def seconds(take: Callable[[], object]) -> float:
        began = time.perf_counter()
        take()
        return (time.perf_counter() - began) / (num_bytes / 2**30)

    blocks: list[HostBlock] = []
    rows = [
        Row("pin", seconds(lambda: blocks.append(HostBlock(num_bytes, pinned=on_card))), "s/GiB", better="lower"),
        Row("pin.torch", seconds(lambda: torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=on_card)), "s/GiB",
            better="lower"),
    ]  # fmt: skip
    blocks[0].close()
    return rows


def measure_messages(links: Links) -> list[Row]:
    """One message at a time, as the card measures it, and what to start it takes of the engine's thread."""
    rows = []
    for direction in DIRECTIONS:
        for layout, tokens, way in links.cases():
            count = links.size.tokens(tokens)
            rates, starts = [], []
            for _ in range(2 + links.reps):
                runs = links.runs(direction, count, layout)
                began = time.perf_counter()
                copy = links.copier.start(direction, *runs, path=way)
                starts.append(time.perf_counter() - began)
                rates.append(copy.num_bytes / max(taken_s(copy), 1e-9) / 1e9)
            name = f"{direction}.{layout}.{tokens}.{way}"
            target = TARGET_RATE if way == "auto" and tokens == TARGET_TOKENS and not links.size.tiny else None
            rows.append(Row(name, median(rates[2:]), "GB/s", target))
            rows.append(Row(f"{name}.start", 1e6 * median(starts[2:]), "us", better="lower"))
    return rows


def measure_streams(links: Links) -> list[Row]:
    """Messages one after another in one direction, and in both at once, by the host's clock."""
    rows = []
    for layout, tokens, way in links.cases():
        count = links.size.tokens(tokens)
        times = max(2, min(32, 2 * TARGET_TOKENS // tokens))
        if links.size.tiny:
            times = 2
        for name, directions in (("load", ("load",)), ("save", ("save",)), ("both", DIRECTIONS)):
            rates = []
            for _ in range(1 + links.reps):
                began = time.perf_counter()
                copies = [links.start(d, count, layout, way) for _ in range(times) for d in directions]
                for copy in copies:
                    copy.wait()
                moved = sum(copy.num_bytes for copy in copies) / len(directions)
                rates.append(moved / (time.perf_counter() - began) / 1e9)
            rows.append(Row(f"stream.{name}.{layout}.{tokens}.{way}", median(rates[1:]), "GB/s"))
    return rows


def measure_limits(links: Links) -> list[Row]:
    """What a limited rate comes to: of one message, and of each direction while both are busy."""
    rows = []
    tokens = links.size.tokens(1024)
    for limit in LIMITS:
        copier = Copier(links.k, links.v, links.host, limit_bytes_per_s=limit)
        one = copier.start("load", *links.runs("load", tokens, "contiguous"))
        rate = one.num_bytes / taken_s(one)
        rows.append(Row(f"limit_{limit / 1e9:g}.load", rate / 1e9, "GB/s"))
        began = time.perf_counter()
        copies = [copier.start(d, *links.runs(d, tokens, "scattered")) for _ in range(4) for d in DIRECTIONS]
        for copy in copies:
            copy.wait()
        rate = sum(copy.num_bytes for copy in copies) / 2 / (time.perf_counter() - began)
        rows.append(Row(f"limit_{limit / 1e9:g}.both", rate / 1e9, "GB/s"))
        copier.close()
    return rows


def measure_disk(links: Links) -> list[Row]:
    """One of the largest messages to a file and back, which the system then still has in memory."""
    tokens = links.size.tokens(TARGET_TOKENS)
    with tempfile.TemporaryDirectory() as folder:
        disk = open_disk(Path(folder) / "kv", 2 * links.host.num_bytes, "", links.host)
        write = disk.save("a", "", tokens, lambda begin, end: chunk_of(links.host.read([(begin, end - begin)])))
        write.wait()
        dtype = links.host.k.dtype
        read = disk.load("a", lambda begin, end, chunk: links.host.write([(begin, end - begin)], rows_of(chunk, dtype)))
        read.wait()
        disk.close()
    for name, arrival in (("write", write), ("read", read)):
        if arrival.problem is not None:
            raise RuntimeError(f"{name}: {arrival.problem}")
    return [
        Row("disk.write", write.num_bytes / max(write.seconds, 1e-9) / 1e9, "GB/s"),
        Row("disk.read_cached", read.num_bytes / max(read.seconds, 1e-9) / 1e9, "GB/s"),
    ]


SECTIONS: dict[str, Callable[[Links], list[Row]]] = {
    "pinning": measure_pinning,
    "messages": measure_messages,
    "streams": measure_streams,
    "beside": measure_beside,
    "limits": measure_limits,
    "disk": measure_disk,
}


def main(argv: Sequence[str] | None = None) -> int:
    """The number of sections that failed."""
    args = _arguments(argv)
    device = torch.device("cpu" if args.tiny else "cuda:0")
    clock = Clock()
    report = new_report("gpu_links", args, part=args.tiny or args.only != list(SECTIONS))
    report.machine = f"{describe(device)}, {report.machine}"
    report.commit = args.commit or report.commit
    clock.say("taking host memory")
    links = Links.open(Size(args.tiny), device, args.reps, args.seed)
    num_failed = 0
    for name in args.only:
        clock.say(name)
        try:
            report.rows += SECTIONS[name](links)
        except Exception:  # the others' numbers are worth having: a card may be lent for minutes only
            traceback.print_exc()
            num_failed += 1
        report.save_partial()
    links.close()
    finish(report, args, clock)
    return num_failed


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Rates of copies between a card and its host.")
    add_arguments(parser)
    parser.add_argument("--only", help=f"sections, by comma: {','.join(SECTIONS)}")
    parser.add_argument("--reps", type=int, help="repetitions that count (default: 5, with --quick 2)")
    parser.add_argument("--tiny", action="store_true", help="small pools, on a CPU")
    parser.add_argument("--commit", help="that is measured, where git cannot tell")
    args = parser.parse_args(argv)
    args.only = args.only.split(",") if args.only else list(SECTIONS)
    if unknown := set(args.only) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    args.reps = args.reps or (2 if args.quick else 5)
    if not args.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU; --tiny tries everything on a CPU")
    return args


if __name__ == "__main__":
    sys.exit(main())
