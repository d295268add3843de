"""`laban status`, `explain` and `workers` against a gateway over fakes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict, replace

import pytest
from api_fakes import DRAINED, EXPLANATION, STATUS, WORKER, FakeFleet, serving

from laban.actors.errors import Exhausted
from laban.cluster.cli import main
from laban.cluster.cli.arguments import parse
from laban.cluster.records import ClusterStatus, Divergence
from laban.cluster.render_cluster import print_status

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _no_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)  # main's handlers are not pytest's


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command against a gateway of its own: its exit code, stdout and stderr."""

    def run(*arguments: str, fleet: FakeFleet | None = None) -> tuple[int, str, str]:
        async def against() -> int:
            async with serving(fleet=fleet) as served:
                return await asyncio.to_thread(main, [*arguments, "--address", served.address])

        code = asyncio.run(against())
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("│┃ ").replace("┃", "│").split("│")]


def test_status_shows_tiers_rates_and_what_the_cache_did(run: Run) -> None:
    code, out, _ = run("status")
    assert code == 0
    lines = out.splitlines()
    assert "3 workflows running (1 of them held back until there is memory), 2 sessions open" in out
    assert "routing cost, eviction steps, directory of 2 shards: 40 encodings watched" in out
    assert "990 of 1000 tokens were where they were expected (99%)" in out
    rows = [cells(line) for line in lines if "w0" in line]
    assert rows[0][1] == "draining"
    assert rows[1] == [
        "w0", "3.0 MiB of 1.0 GiB", "20.0 GiB of 1.0 TiB", "900", "80", "70", "60", "50", "250 ms"
    ]  # fmt: skip
    assert rows[2] == ["w0", "4", "3", "2", "7", "6", "5", "1"]
    fetched = "cma 2.00 GB/s, object_store 0.50 GB/s"
    assert rows[3] == ["w0", "1200 tokens/s", "7.0 ms", "25.00 GB/s", "3.00 GB/s", fetched]
    code, out, _ = run("status", "--json")
    found = json.loads(out)
    assert found["workers"][0]["cache"]["tokens_loaded_disk"] == 70
    assert found["directory"] == asdict(STATUS.directory)


def test_status_names_the_workflows_that_left_their_tolerance(capsys: pytest.CaptureFixture[str]) -> None:
    lost = Divergence("acme", "debate", 0.0, 0.1234, 40, 0.05, falls_back=True)
    print_status(replace(STATUS, divergences=(lost, replace(lost, tenant="", falls_back=False))))
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("degraded: ")]
    first = "degraded: workflow debate of acme has left its tolerance 0.05: KL 0.123 over 40 audited calls, since "
    assert told[0].startswith(first)
    assert told[0].endswith("; what is submitted of it is exact")
    assert told[1].startswith("degraded: workflow debate has left")
    assert "submitted" not in told[1]


def test_status_says_why_a_lost_worker_is_not_back(capsys: pytest.CaptureFixture[str]) -> None:
    print_status(replace(STATUS, workers=(WORKER, replace(WORKER, worker_id="w1", alive=False))))
    told = [line for line in capsys.readouterr().out.splitlines() if "2 tries" in line]
    assert told == ["degraded: w1 is lost: 2 tries have failed"]


def test_clear_asks_the_server_to_forget(run: Run) -> None:
    code, out, err = run("clear", "debate")
    assert code != 0
    assert out == ""
    assert "this server runs no audits" in err


def test_status_of_workers_without_lower_tiers(capsys: pytest.CaptureFixture[str]) -> None:
    bare = replace(WORKER, draining=False, host_bytes=0, disk_bytes=0, rates=type(WORKER.rates)(), problem="")
    print_status(ClusterStatus("0.1.0", True, "tiny", 64, (bare, replace(bare, alive=False)), 0, 0, 1.0))
    rows = [cells(line) for line in capsys.readouterr().out.splitlines() if "w0" in line]
    assert [row[1] for row in rows[:2]] == ["up", "lost"]
    assert rows[2][1:3] == ["none", "none"]
    assert rows[6][1:] == ["-"] * 4 + ["cma, object_store"]


def test_explain_shows_every_candidate_and_its_key(run: Run) -> None:
    code, out, _ = run("explain", "wf-1", "answer[bob,2]")
    assert code == 0
    assert "answer[bob,2] of wf-1, attempt 2: to w1 at " in out
    assert "by the policy cost; the best 2 of 9 workers" in out
    assert "key (ttft_ms, successor_ms)" in out
    chosen, other = (cells(line) for line in out.splitlines() if line.startswith("│ w"))
    assert chosen == ["w1", "chosen", "12, 0", "1.5 ms", "3.5 ms", "4.5 ms", "2.5 ms", "100", "90", "80", "70", "60"]
    assert other[:4] == ["w0", "", "40.25, 3", "38.0 ms"]
    [use] = [cells(line) for line in out.splitlines() if "task" in line]
    assert use == ["task", "2", "750 ms", "50%"]
    code, out, _ = run("explain", "wf-1", "answer[bob,2]", "--json")
    assert json.loads(out)["decision"]["candidates"][1]["key"] == list(EXPLANATION.decision.candidates[1].key)
    code, _, error = run("explain", "wf-1", "final")
    assert (code, error) == (2, "laban: address: was not routed yet (got 'final')\n")


def test_workers_are_listed(run: Run) -> None:
    code, out, _ = run("workers")
    assert code == 0
    assert [cells(line)[1] for line in out.splitlines() if "w0" in line] == ["draining"]
    code, out, _ = run("workers", "--json")
    assert [worker["worker_id"] for worker in json.loads(out)["workers"]] == ["w0"]


def test_a_worker_is_added(run: Run) -> None:
    code, out, error = run("workers", "add")
    assert (code, out) == (0, "w0: up on cpu\n")
    assert "starting a worker" in error
    code, out, _ = run("workers", "add", "--json")
    assert json.loads(out)["device"] == "cpu"
    code, _, error = run(
        "workers", "add", fleet=FakeFleet(error=Exhausted("Ray has no room", field="workers", value=2))
    )
    assert code == 1
    assert error.splitlines()[-1] == "laban: workers: Ray has no room (got 2)"


def test_a_worker_is_drained(run: Run) -> None:
    code, out, error = run("workers", "drain", "w0")
    assert (code, out) == (0, "w0: gone\n")
    assert error.splitlines() == [
        "w0: draining, 2 calls to end, 7 encodings to hand over",
        "w0: draining, 0 calls to end, 3 encodings to hand over",
    ]
    code, out, error = run("workers", "drain", "w0", "--json")
    assert json.loads(out) == asdict(DRAINED[-1])
    code, out, error = run("workers", "drain", "w0", "--no-wait", fleet=FakeFleet(hang=True))
    assert (code, out, error) == (0, "w0: draining, 2 calls to end, 7 encodings to hand over\n", "")
    for worker, said in (("w9", "no such worker (got 'w9')"), ("last", "is the last worker (got 'last')")):
        code, out, error = run("workers", "drain", worker)
        assert (code, error) == (2, f"laban: worker_id: {said}\n")


def test_what_is_said_before_an_action_stands() -> None:
    asked = parse(["workers", "--address", "a:1", "--json", "drain", "w0"])
    assert (asked.address, asked.json, asked.worker, asked.no_wait) == ("a:1", True, "w0", False)
    assert parse(["workers", "add", "--address", "b:2"]).address == "b:2"
    assert parse(["workers"]).action is None
