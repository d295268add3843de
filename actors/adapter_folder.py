"""An adapter's folder in PEFT's format: what Laban must know of one before it loads. Never imports torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from laban.actors.errors import InvalidInput, LabanError, NotFound, UnsupportedModel
from laban.actors.model_folder import read_header, weight_shapes

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MAX_RANK = 512
PREFIX = "base_model.model."
_NAME = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight$")
_REFUSED = {
    "use_dora": "DoRA is not served",
    "modules_to_save": "whole modules beside the low-rank factors are not served",
    "lora_bias": "biases of low-rank factors are not served",
    "alpha_pattern": "alphas that differ from module to module are not served",
    "fan_in_fan_out": "transposed weights are not served",
    "trainable_token_indices": "trained token embeddings are not served",
    "layer_replication": "replicated layers are not served",
    "alora_invocation_tokens": "adapters that act only after some tokens are not served",
}
_CHANGES_WEIGHTS = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What the files of an adapter's folder say. `fingerprint` differs where what it computes may."""

    folder: Path
    alpha: float
    by_root_of_rank: bool  # rank-stabilized: the scale is alpha / sqrt(rank)
    ranks: Mapping[str, int]  # by the path of the linear layer in the model, such as model.layers.0.self_attn.q_proj
    fingerprint: str

    def scale(self, rank: int) -> float:
        return self.alpha / (rank**0.5 if self.by_root_of_rank else rank)


def check_adapter_folder(path: str | Path, model_folder: str | Path, *, field: str = "adapters") -> AdapterFacts:
    """The facts of the adapter in `path`, once it is one that can be served with the model in `model_folder`.

    Raises NotFound for a missing folder or file, InvalidInput for one that cannot be read, is cut off, is of another
    model, or whose configuration is not of its weights, UnsupportedModel, with the reason, for a kind of adapter that
    is not served. All name `field`.
    """
    folder = Path(path).expanduser()
    try:
        config = _config(folder)
        header = read_header(_file(folder, WEIGHTS))
        shapes = weight_shapes(model_folder)
        ranks = _ranks(folder, header, shapes)
        _check_described(folder / CONFIG, config, ranks, shapes)
    except LabanError as error:
        raise type(error)(error.message, field=field, value=error.value) from None
    digest = blake2b(digest_size=8)
    alpha, by_root = float(config["lora_alpha"]), bool(config.get("use_rslora"))
    digest.update(f"{alpha!r}|{by_root}|".encode())
    with (folder / WEIGHTS).open("rb") as handle:
        while part := handle.read(1 << 20):
            digest.update(part)
    return AdapterFacts(folder.resolve(), alpha, by_root, ranks, digest.hexdigest())


def _file(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise NotFound("the adapter's folder does not exist", value=str(folder))
    if not (folder / name).is_file():
        raise NotFound(f"the folder has no {name}, expected an adapter as PEFT saves it", value=str(folder))
    return folder / name


def _config(folder: Path) -> dict[str, Any]:
    file = _file(folder, CONFIG)
    try:
        config = json.loads(file.read_bytes())
    except ValueError as error:
        raise InvalidInput(f"{file} is not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise InvalidInput(f"{file} holds a {type(config).__name__}, expected an object")
    if config.get("peft_type") != "LORA":
        raise UnsupportedModel(f"{file}: only LoRA is served", value=config.get("peft_type"))
    for key, why in _REFUSED.items():
        if config.get(key):
            raise UnsupportedModel(f"{file}: {key}: {why}", value=config[key])
    if config.get("bias", "none") != "none":
        raise UnsupportedModel(f"{file}: bias: trained biases are not served, expected none", value=config["bias"])
    initialized = config.get("init_lora_weights")
    if isinstance(initialized, str) and initialized.lower().startswith(_CHANGES_WEIGHTS):
        why = f"{file}: init_lora_weights: adapters beside changed weights are not served, save it converted to LoRA"
        raise UnsupportedModel(why, value=initialized)
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise InvalidInput(f"{file}: lora_alpha must be a number", value=alpha)
    return config


def _ranks(folder: Path, header: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The rank of each linear layer's factors, whose shapes are right for the model's weights."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        match = _NAME.match(name)
        if match is None:
            raise UnsupportedModel(f"{folder}/{WEIGHTS} holds a tensor that is no low-rank factor", value=name)
        shape = tuple(tensor.get("shape", ())) if isinstance(tensor, Mapping) else ()
        if len(shape) != 2:
            raise InvalidInput(f"{folder}/{WEIGHTS} holds a tensor that is no matrix", value=name)
        found.setdefault(match["module"], {})[match["factor"]] = shape
    if not found:
        raise InvalidInput(f"{folder}/{WEIGHTS} holds no low-rank factor")
    ranks: dict[str, int] = {}
    for module, factors in found.items():
        if module.rpartition(".")[2] not in TARGETS:
            raise UnsupportedModel(
                f"adapters of this layer are not served; served are {', '.join(TARGETS)}", value=module
            )
        weight = shapes.get(f"{module}.weight")
        if weight is None:
            raise InvalidInput("the adapter is of another model: this one has no such layer", value=module)
        if set(factors) != {"A", "B"}:
            raise InvalidInput(f"{folder}/{WEIGHTS}: one of lora_A and lora_B is missing", value=module)
        (rank, *_), expected = factors["A"], weight
        if factors["A"] != (rank, expected[1]) or factors["B"] != (expected[0], rank):
            shown = f"{list(factors['A'])} and {list(factors['B'])}"
            raise InvalidInput(
                f"the adapter is of another model: lora_A and lora_B are {shown}, expected [rank, {expected[1]}] and "
                f"[{expected[0]}, rank]", value=module,
            )  # fmt: skip
        if not 1 <= rank <= MAX_RANK:
            raise UnsupportedModel(f"ranks of 1 to {MAX_RANK} are served", value=rank)
        ranks[module] = rank
    return ranks


def _check_described(file: Path, config: Mapping[str, Any], ranks: Mapping[str, int], shapes: Iterable[str]) -> None:
    """Whether `config` gives the layers in `ranks` factors, of these ranks. `shapes` are the model's.

    As PEFT reads it: https://huggingface.co/docs/peft/package_reference/lora, LoraConfig.
    """
    targets, layers = config.get("target_modules"), config.get("layers_to_transform")
    for module, rank in ranks.items():
        key, stated = _stated_rank(config, module)
        if stated is not None and stated != rank:
            raise InvalidInput(f"{file}: {key} is {stated!r}, but lora_A and lora_B have rank {rank}", value=module)
        if not _is_target(module, targets):
            raise InvalidInput(f"{file}: target_modules leaves out a layer that has lora_A and lora_B", value=module)
        number = re.search(r"\.layers\.(\d+)\.", module)
        if layers not in (None, []) and number is not None and int(number[1]) not in _as_list(layers):
            raise InvalidInput(
                f"{file}: layers_to_transform leaves out a layer that has lora_A and lora_B", value=module
            )  # fmt: skip
    if isinstance(targets, list) and not config.get("exclude_modules"):
        modules = [name.removesuffix(".weight") for name in shapes]
        for target in targets:  # PEFT would begin anew with those that have none, and change nothing by them
            if any(_is_target(each, [target]) for each in modules) and not any(_is_target(x, [target]) for x in ranks):
                raise InvalidInput(f"{file}: target_modules names a layer that has no lora_A and lora_B", value=target)


def _stated_rank(config: Mapping[str, Any], module: str) -> tuple[str, object]:
    """What a module's rank is by the configuration, and by which of its keys."""
    for pattern, rank in (config.get("rank_pattern") or {}).items():
        if _matches(rf"(.*\.)?({pattern})$", module):
            return f"rank_pattern.{pattern}", rank
    return "r", config.get("r")


def _is_target(module: str, targets: object) -> bool:
    """`targets` None, and "all-linear", mean any that there is."""
    if isinstance(targets, str):
        return targets.lower() == "all-linear" or _matches(rf"(?:{targets})\Z", module)
    return targets is None or any(f".{module}".endswith(f".{target}") for target in _as_list(targets))


def _matches(pattern: str, module: str) -> bool:
    try:
        return re.match(pattern, module) is not None
    except re.error as error:
        raise InvalidInput(f"not a regular expression ({error})", value=pattern) from None


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]
