"""Random adapters as PEFT saves them, and the models that PEFT makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from engine_reference import random_model
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from laban.actors.adapter_folder import TARGETS

ATTENTION_ONLY = ("q_proj", "k_proj", "v_proj", "o_proj")


def save_adapter(
    folder: Path,
    kind: str = "llama",
    *,
    targets: tuple[str, ...] = TARGETS,
    seed: int = 1,
    shape: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """A random adapter of `random_model(kind, **shape)`, in `folder`."""
    config = LoraConfig(**({"r": 4, "lora_alpha": 8, "target_modules": list(targets)} | settings))
    model = get_peft_model(random_model(kind, **(shape or {})), config)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    return folder


def merged_model(folder: Path, kind: str = "llama", **shape: Any) -> PreTrainedModel:
    """The model with the adapter's products added to its weights, by PEFT."""
    return PeftModel.from_pretrained(random_model(kind, **shape), folder).merge_and_unload()  # type: ignore[no-any-return]


def save_model(folder: Path, kind: str = "llama", **shape: Any) -> Path:
    """The weights alone, as a model's folder has them."""
    random_model(kind, **shape).save_pretrained(folder)
    return folder
