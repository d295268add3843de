"""transformers `generate` as a peer: a process of its own that holds the model and sleeps unless it is measured.

echo '{"prompts": [[1, 2, 3]], "num_tokens": 4}' | .venv/bin/python benchmarks/peer_transformers.py FOLDER
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from report import num_cores
from samples import Sample
from texts import FreshRun, prompt_ids

from laban.actors.frames import Framing

if TYPE_CHECKING:
    import torch

ARM = "transformers"


@dataclass(frozen=True, slots=True)
class Generated:
    """`token_times_s`: when each token's logits were there, from the start of the call."""

    outputs: list[list[int]]
    token_times_s: list[float]
    wall_s: float


class Generator:
    """A model whose `generate` is timed through a hook on its logits. Greedy, float32, any batch."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        torch.set_num_threads(num_cores())
        loader: Any = AutoModelForCausalLM
        self.model = loader.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        self.model.train(False)
        self._times: list[float] = []
        self.model.get_output_embeddings().register_forward_hook(self._note)

    def _note(self, *_: Any) -> None:
        self._times.append(time.perf_counter())

    def generate(self, prompts: list[list[int]], num_tokens: int) -> Generated:
        """Exactly `num_tokens` for each prompt, padded on the left to the longest."""
        import torch

        longest = max(map(len, prompts))
        ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
        mask: torch.Tensor = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        self._times.clear()
        began = time.perf_counter()
        with torch.inference_mode():
            out = self.model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                min_new_tokens=num_tokens,
                max_new_tokens=num_tokens,
                pad_token_id=0,
            )
        wall_s = time.perf_counter() - began
        return Generated(out[:, longest:].tolist(), [at - began for at in self._times], wall_s)


class TransformersPeer:
    """The process, as its parent sees it. `close` ends it."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C is for the parent, which then closes it
        )
        self._generate([[1, 2, 3, 4]], 2)  # the first call is slow

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def run(self, run: FreshRun, framing: Framing, repetition: int) -> Sample:
        """The workload in waves: steps that are ready together are one batch."""
        made: dict[str, list[int]] = {}
        ttft_s, num_encoded = 0.0, 0
        began = time.perf_counter()
        for wave in run.workload.waves():
            for num_tokens in sorted({step.num_tokens for step in wave}):
                steps = [step for step in wave if step.num_tokens == num_tokens]
                prompts = [prompt_ids(run, step, framing, made) for step in steps]
                generated = self._generate(prompts, num_tokens)
                made.update(zip((step.key for step in steps), generated.outputs, strict=True))
                ttft_s += generated.token_times_s[0] * len(steps)
                num_encoded += sum(map(len, prompts))
        wall_s = time.perf_counter() - began
        name = run.workload.name
        return Sample(name, ARM, repetition, ttft_s, ttft_s, wall_s, num_encoded, 0, num_encoded)

    def _generate(self, prompts: list[list[int]], num_tokens: int) -> Generated:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"prompts": prompts, "num_tokens": num_tokens}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of transformers ended with {self._process.wait()}")
        return Generated(**json.loads(line))


def main() -> None:
    generator = Generator(Path(sys.argv[1]))
    for line in sys.stdin:
        request = json.loads(line)
        generated = generator.generate(request["prompts"], request["num_tokens"])
        answer = {
            "outputs": generated.outputs,
            "token_times_s": generated.token_times_s,
            "wall_s": generated.wall_s,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
