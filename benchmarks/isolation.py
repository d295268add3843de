"""Can a tenant tell by timing what another has encoded?

    .venv/bin/python benchmarks/isolation.py [--quick] [--json]      about 3 minutes (make bench-isolation)

Over a served cluster: a victim encodes one of two fresh texts, the other is never sent. Then somebody else sends both,
in random order, and times each call. The area under the ROC curve says how well "the faster one was there" tells
the two apart: 0.5 is guessing. As a control the same is done with another token of the victim's own tenant, who does
share its encodings and should see it plainly: else the measurement could not tell anything.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import yaml
from report import Clock, Row, add_arguments, finish, new_report
from workloads import Writer

from laban.actors.models import prepare_default_model
from laban.actors.tokenizer import Tokenizer
from laban.cluster.client import Client
from laban.cluster.client_credentials import Credentials
from laban.cluster.client_session import Session
from laban.cluster.config import AuthSection, JournalSection, LabanConfig, MetricsSection, ServerSection
from laban.cluster.launch import start_cluster
from laban.cluster.tokens import hash_token

TARGET = 0.55
CONTROL = 0.9
NUM_TOKENS = 32
TENANTS = {"victim": "acme", "stranger": "other", "same_tenant": "acme"}


def auc(there: Sequence[float], not_there: Sequence[float]) -> float:
    """How likely a time of `there` is below one of `not_there`; equal ones count half.

    >>> auc([1, 2], [2, 3])
    0.875
    """
    below = sum((a < b) + 0.5 * (a == b) for a in there for b in not_there)
    return below / (len(there) * len(not_there))


def time_prefill(session: Session, text: str) -> float:
    """Seconds, as the client sees them."""
    begin = time.perf_counter()
    session.prefill(text)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description="Whether timing tells what another tenant has encoded.")
    add_arguments(parser)
    parser.add_argument("--trials", type=int, default=400, help="pairs of texts that each of the two times")
    args = parser.parse_args()
    if args.quick:
        args.trials = 30
    clock = Clock()
    report = new_report("isolation", args)
    rng = random.Random(args.seed)
    writer = Writer(Tokenizer.from_folder(prepare_default_model(lambda doing, share: clock.say(doing))))
    there: dict[str, list[float]] = {"stranger": [], "same_tenant": []}
    not_there: dict[str, list[float]] = {"stranger": [], "same_tenant": []}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        tokens = Path(folder) / "tokens.yaml"
        entries = [
            {"name": name, "sha256": hash_token(name), "tenant": tenant, "roles": ["submit"]}
            for name, tenant in TENANTS.items()
        ]
        tokens.write_text(yaml.safe_dump({"tokens": entries}))
        config = LabanConfig(
            server=ServerSection(port=0),
            metrics=MetricsSection(port=None),
            journal=JournalSection(url="none"),
            auth=AuthSection(tokens_file=str(tokens)),
        )
        clock.say("starting a cluster")
        cluster = stack.enter_context(start_cluster(config))
        sessions = {}
        for name in TENANTS:
            client = stack.enter_context(Client(cluster.address, credentials=Credentials(name)))
            sessions[name] = stack.enter_context(client.open_session())
        for trial in range(args.trials):
            if trial % 50 == 0:
                clock.say(f"{trial} of {args.trials} trials")
            for name in there:
                known, fresh = (writer.words(NUM_TOKENS, rng) for _ in range(2))
                time_prefill(sessions["victim"], known)
                asked = [(known, there[name]), (fresh, not_there[name])]
                rng.shuffle(asked)
                for text, times in asked:
                    times.append(time_prefill(sessions[name], text))
    report.rows += [
        Row("isolation.auc", auc(there["stranger"], not_there["stranger"]), "probability", TARGET, "lower"),
        Row("isolation.auc_same_tenant", auc(there["same_tenant"], not_there["same_tenant"]), "probability", CONTROL),
        Row("isolation.trials", float(args.trials), "pairs"),
    ]
    finish(report, args, clock)


if __name__ == "__main__":
    main()
