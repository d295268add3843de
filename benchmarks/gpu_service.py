"""The time to the first token that a gRPC client sees, from a cluster with one GPU, on a random Llama of 8B shapes.

    .venv/bin/python benchmarks/gpu_service.py [--tokenizer FOLDER] [--quick] [--json]      about 2 minutes on one H100

Eight messages of about 640 tokens are encoded once; then calls read them, each in an order of its own, and generate
one token. Real gateway, Ray actors and worker. `--tiny` tries it on a CPU.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from gpu_model import Size, random_model
from report import Clock, Row, add_arguments, finish, new_report
from workloads import Writer

from laban.actors.models import prepare_default_model
from laban.actors.tokenizer import Tokenizer
from laban.cluster.client import Client
from laban.cluster.config import EngineSection, LabanConfig, ServerSection
from laban.cluster.launch import start_cluster

MESSAGES, TOKENS = 8, 640
TTFT_MS = 11.0
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def save_model(folder: Path, tokenizer_folder: Path, size: Size, device: torch.device) -> None:
    """A random model of that size, with the tokenizer of another."""
    vocab_size = max(int(size.model["vocab_size"]), Tokenizer.from_folder(tokenizer_folder).vocab_size)  # type: ignore[call-overload]
    random_model(size, device, vocab_size=vocab_size).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (tokenizer_folder / name).is_file():
            shutil.copy(tokenizer_folder / name, folder / name)


def measure(client: Client, writer: Writer, tokens: int, reps: int, rng: random.Random) -> list[Row]:
    seen_ms, engine_ms, read = [], [], []
    with client.open_session() as session:
        messages = [session.prefill(writer.words(tokens, rng)) for _ in range(MESSAGES)]
        for repetition in range(reps + 3):
            view = rng.sample(messages, MESSAGES)
            began = time.perf_counter()
            first = 0.0
            for item in session.decode(view=view, fidelity="direct", max_tokens=1, seed=repetition):
                first = first or 1000 * (time.perf_counter() - began)
                record = item
            if repetition >= 3:  # the first ones warm up
                seen_ms.append(first)
                engine_ms.append(record.ttft_ms)  # type: ignore[union-attr]
                read.append(float(record.tokens_read))  # type: ignore[union-attr]
    return [
        Row("service.reordered.ttft", median(seen_ms), "ms", TTFT_MS, "lower"),
        Row("service.reordered.ttft_in_engine", median(engine_ms), "ms", 8.0, "lower"),
        Row("service.reordered.tokens_read", median(read), "tokens"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time to first token at a gRPC client of a cluster with one GPU.")
    add_arguments(parser)
    parser.add_argument("--tiny", action="store_true", help="on a CPU, with a small model")
    parser.add_argument(
        "--tokenizer", type=Path, help="a model folder whose tokenizer is used; else the default model's"
    )
    parser.add_argument("--scratch", type=Path, help="where the model is put for the run: 17 GB")
    args = parser.parse_args()
    clock, report, size = Clock(), new_report("gpu_service", args), Size(args.tiny)
    tokenizer = args.tokenizer or prepare_default_model(lambda doing, share: clock.say(doing))
    device = torch.device("cpu" if args.tiny else "cuda")
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        folder = Path(scratch) / ("tiny" if args.tiny else "llama-8b-random")
        clock.say("making a random model")
        save_model(folder, tokenizer, size, device)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        engine = EngineSection(device=device.type, pool_tokens=16_384 if args.tiny else None)
        clock.say("starting the cluster")
        with (
            start_cluster(LabanConfig(model=str(folder), engine=engine, server=ServerSection(port=0))) as cluster,
            Client(cluster.address) as client,
        ):
            worker = client.status().workers[0]
            report.machine += f"; engine: {worker.attention_backend}" if hasattr(worker, "attention_backend") else ""
            clock.say("measuring")
            writer, rng = Writer(Tokenizer.from_folder(folder)), random.Random(args.seed)
            report.rows += measure(client, writer, size.tokens(TOKENS), 3 if args.quick else 30, rng)
    finish(report, args, clock)


if __name__ == "__main__":
    main()
