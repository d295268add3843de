"""Random input, much of it: documents, requests to every call, sequences of calls, files of the disk tier.

    make fuzz [ARGS="--inputs 100000 --seed 1 --minutes 60 --json"]

Documents are workflows bent in their lines, their structure or their bytes, and such as never were one; they are
parsed, linted and begun. Requests are messages with anything in their fields, bent ones and random bytes, sent by gRPC
to a gateway whose workers follow a script. Sequences are calls that make sense, in an order that need not; then all is
stopped, and each workflow's events must be whole. A folder of the disk tier gets a damaged, forged or foreign file.
Nothing may crash, hang, answer INTERNAL or UNKNOWN, be half done, or give back what was not written. The first input
that does is made small and shown, and ends the program.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence

from fuzz_runs import BATCH, fuzz
from fuzz_targets import TARGETS
from report import Clock, Row, add_arguments, finish, new_report


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Random input to whatever reads input.")
    add_arguments(parser)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=240.0, help="after which no more are begun")
    parser.add_argument("--only", choices=[*TARGETS], help="one of the targets, with all inputs")
    args = parser.parse_args(arguments)
    if args.quick:
        args.inputs = 400
    logging.disable(logging.WARNING)  # what it says of bad input is right
    shares = {args.only: 1.0} if args.only else {name: share for name, (share, _, _) in TARGETS.items()}
    left = {name: max(1, round(args.inputs * share)) for name, share in shares.items()}
    done = dict.fromkeys(left, 0)
    clock, until_s = Clock(), time.monotonic() + 60 * args.minutes
    report = new_report("fuzz", args, part=args.only is not None)
    began_s, failed = time.monotonic(), 0
    while any(left.values()) and time.monotonic() < until_s and not failed:
        name = max(left, key=lambda each: left[each] / shares[each])  # so all get on alike
        count = min(left[name], BATCH)
        try:
            fuzz(name, count, args.seed * 10**9 + done[name])
        except Exception as error:  # whatever it is, it is what was looked for
            logging.disable(logging.NOTSET)
            logging.getLogger("fuzz").exception("%s after %d inputs: %s", name, done[name], str(error)[:2000])
            failed = 1
        left[name] -= count
        done[name] += count
        clock.say(", ".join(f"{number} {each}" for each, number in done.items()))
    report.rows += [Row(f"inputs.{name}", number, "inputs") for name, number in done.items()]
    report.rows += [
        Row("inputs", sum(done.values()), "inputs"),
        Row("seconds", time.monotonic() - began_s, "s", better="lower"),
        Row("failures", failed, "inputs", 0, "lower"),
    ]
    finish(report, args, clock)
    return failed


if __name__ == "__main__":
    sys.exit(main())
