"""Convert the weights and tokenizer inside a GGUF file into a Hugging Face folder.

Run as a program (`python -m laban.actors.convert_gguf FILE FOLDER`), so that torch and transformers load
in a process of their own. Each line on stdout is a JSON object: what is being done and the share done.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def convert(gguf_file: Path, folder: Path) -> None:
    """Write config, tokenizer, chat template and float32 safetensors of `gguf_file` into `folder`."""
    say("loading torch and transformers", 0.0)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    torch.set_num_threads(min(4, torch.get_num_threads()))

    say("reading the tokenizer", 0.1)
    tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    tokenizer.save_pretrained(folder)

    say("reading the weights", 0.35)
    packed = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32)
    # transformers refuses to save what it read from GGUF; the same weights in a fresh model it saves.
    config = packed.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(packed)(config)
    model.load_state_dict(packed.state_dict())
    model.generation_config = packed.generation_config

    say("writing the weights", 0.85)
    model.save_pretrained(folder)
    say("done", 1.0)


def say(doing: str, share: float) -> None:
    print(json.dumps({"doing": doing, "share": share}), flush=True)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
