"""vLLM on CPU as a peer: a server in a venv of its own (`make peer-vllm`), driven over its completions API.

Prompts are the token ids that Laban's exact views have; vLLM's own outputs go into the later prompts, so that
its prefix cache knows their history. A step is sent as soon as what it reads is there. While it is not
measured the whole server is stopped by a signal, so that it takes no core from anyone.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import ROOT, cores
from samples import Sample
from texts import FreshRun, prompt_ids
from workloads import FlatStep

from laban.actors.frames import Framing

VENV = ROOT / ".venv-vllm"
ARMS = {"vllm_prefix": False, "vllm_shared_first": True}  # name: whether shared messages come first
START_TIMEOUT_S = 300.0
MAX_LEN = 8192


@dataclass(frozen=True, slots=True)
class Completion:
    token_ids: list[int]
    ttft_s: float
    prompt_tokens: int
    cached_tokens: int


class VllmPeer:
    """The server, as its parent sees it. `close` ends it and all its processes."""

    def __init__(self, folder: Path, *, cache_gib: int) -> None:
        python = VENV / "bin" / "python"
        if not python.exists():
            raise FileNotFoundError(f"{python} does not exist: make peer-vllm")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port: int = probe.getsockname()[1]
        self._model = str(folder)
        self._log = tempfile.NamedTemporaryFile("w+", prefix="vllm-", suffix=".log")  # noqa: SIM115 - closed in close
        command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", folder]
        command += ["--host", "127.0.0.1", "--port", str(self._port), "--dtype", "float32", "--enforce-eager"]
        command += ["--block-size", "32", "--max-model-len", str(MAX_LEN), "--enable-prefix-caching"]
        command += ["--enable-prompt-tokens-details", "--disable-uvicorn-access-log"]
        environment = {
            **os.environ,
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores())),
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            "VLLM_CPU_KVCACHE_SPACE": str(cache_gib),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self._process = subprocess.Popen(
            list(map(str, command)),
            env=environment,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            self._wait_until_up()
            self._complete([1, 2, 3, 4], 2)  # the first call is slow
        except BaseException:
            self.close()
            raise
        self._signal(signal.SIGSTOP)

    def close(self) -> None:
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(15)
        finally:
            self._signal(signal.SIGKILL)  # its engine process may outlive it
            self._process.wait()
            self._log.close()

    def run(self, run: FreshRun, framing: Framing, arm: str, repetition: int) -> Sample:
        self._signal(signal.SIGCONT)
        try:
            return self._run(run, framing, arm, repetition)
        finally:
            self._signal(signal.SIGSTOP)

    def _run(self, run: FreshRun, framing: Framing, arm: str, repetition: int) -> Sample:
        steps = run.workload.steps
        keys = {step.key for step in steps}
        made: dict[str, Completion] = {}
        running: dict[Future[Completion], FlatStep] = {}
        waiting = list(steps)
        began = time.perf_counter()
        with ThreadPoolExecutor(len(steps)) as pool:
            while waiting or running:
                outputs = {key: done.token_ids for key, done in made.items()}
                for step in [s for s in waiting if all(key in made for key in s.reads if key in keys)]:
                    waiting.remove(step)
                    prompt = prompt_ids(run, step, framing, outputs, shared_first=ARMS[arm])
                    running[pool.submit(self._complete, prompt, step.num_tokens)] = step
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    made[running.pop(future).key] = future.result()
        wall_s = time.perf_counter() - began
        ttft_s = sum(done.ttft_s for done in made.values())
        read = sum(done.prompt_tokens for done in made.values())
        reused = sum(done.cached_tokens for done in made.values())
        return Sample(run.workload.name, arm, repetition, ttft_s, ttft_s, wall_s, read - reused, reused, read)

    def _complete(self, prompt: list[int], num_tokens: int) -> Completion:
        """Exactly `num_tokens`, streamed. Raises RuntimeError for any other answer."""
        body = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": num_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=1800)
        try:
            began = time.perf_counter()
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise RuntimeError(f"vLLM answered {response.status}: {response.read()[:500]!r}")
            token_ids: list[int] = []
            ttft_s = 0.0
            usage: dict[str, Any] = {}
            for line in response:
                data = line.decode().removeprefix("data: ").strip()
                if not data or data == "[DONE]":
                    continue
                event = json.loads(data)
                for choice in event.get("choices", ()):
                    if not token_ids and choice.get("token_ids"):
                        ttft_s = time.perf_counter() - began
                    token_ids += choice.get("token_ids") or ()
                usage = event.get("usage") or usage
        finally:
            connection.close()
        if len(token_ids) != num_tokens:
            raise RuntimeError(f"vLLM gave {len(token_ids)} tokens of {num_tokens}")
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Completion(token_ids, ttft_s, len(prompt), cached)

    def _wait_until_up(self) -> None:
        began = time.monotonic()
        while time.monotonic() - began < START_TIMEOUT_S:
            if self._process.poll() is not None:
                break
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                time.sleep(1.0)
            finally:
                connection.close()
        self._log.seek(0)
        tail = "".join(self._log.readlines()[-15:])
        raise RuntimeError(f"vLLM did not come up:\n{tail}")

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return
