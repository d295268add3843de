"""A model folder: what Laban must know of one before it loads. Never imports torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from laban.actors.errors import InvalidInput, NotFound, UnsupportedModel
from laban.actors.model_shapes import ACTIVATIONS, head_dim, num_kv_heads, require_tensors

SERVED = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
# Frequencies of these do not change with the length, so an encoded key can be read at any offset.
TURNABLE_ROPE = ("default", "linear", "llama3", "yarn")
LAYER_TYPES = ("full_attention", "sliding_attention")
COUNTS = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size", "vocab_size",
          "max_position_embeddings")  # fmt: skip
STATE_SPACE_TYPES = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "jamba", "bamba", "zamba", "zamba2", "rwkv",
                     "recurrent_gemma", "nemotron_h", "granitemoehybrid", "qwen3_next", "lfm2")  # fmt: skip
STATE_SPACE_KEYS = ("ssm_cfg", "state_size", "mamba_d_state", "mamba_num_heads")
MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own limit
SAMPLES_PER_FILE, SAMPLE_BYTES = 64, 4096


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the files of a model folder say, read without loading the weights.

    `fingerprint` differs when the configuration, the tokenizer, a tensor's name, type or shape, or the
    sampled bytes of the weights differ. Counts are of layers and heads; `max_context` is in tokens.
    """

    folder: Path
    name: str
    architecture: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    max_context: int
    rope: str
    eos_ids: tuple[int, ...]
    dtype: str  # that the configuration says the weights are saved in; "" if it does not
    weight_bytes: int
    fingerprint: str


def check_model_folder(path: str | Path) -> ModelFacts:
    """The facts of the Hugging Face folder `path`, once everything that Laban needs is found in it.

    Raises NotFound for a missing folder or file, InvalidInput for one that cannot be read or is cut off and for a
    configuration that is not of these weights, and UnsupportedModel, with the reason, for a model that Laban does not
    serve.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise NotFound(f"the model folder {what}, expected a Hugging Face folder", field="model", value=str(folder))
    config = _read_json(folder, "config.json")
    _refuse_unserved(folder, config)
    tokenizer_bytes = _require(folder, "tokenizer.json").read_bytes()
    _parse_json(folder / "tokenizer.json", tokenizer_bytes)
    counts = {key: _count(folder, config, key) for key in COUNTS}
    for key in ("num_key_value_heads", "head_dim"):
        if config.get(key) is not None:
            _count(folder, config, key)
    headers = {file.name: read_header(file) for file in _weight_files(folder)}
    require_tensors(folder, config, _shapes(headers.values()))
    _check_computing(folder, config)

    digest = blake2b(digest_size=16)
    for part in (json.dumps(config, sort_keys=True).encode(), tokenizer_bytes):
        digest.update(len(part).to_bytes(8, "little") + part)
    for name in sorted(headers):
        _hash_weights(digest, folder / name)
    return ModelFacts(
        folder=folder.resolve(),
        name=folder.resolve().name,
        architecture=config["model_type"],
        num_layers=counts["num_hidden_layers"],
        num_heads=counts["num_attention_heads"],
        num_kv_heads=num_kv_heads(config),
        head_dim=head_dim(config),
        hidden_size=counts["hidden_size"],
        vocab_size=counts["vocab_size"],
        max_context=counts["max_position_embeddings"],
        rope=", ".join(rope_kinds(config)),
        eos_ids=eos_ids_of(folder),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or ""),
        weight_bytes=sum((folder / name).stat().st_size for name in headers),
        fingerprint=digest.hexdigest(),
    )


def rope_kinds(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The kinds of rotary embedding a configuration asks for, under any of transformers' spellings.

    One, or the distinct ones of its types of layers in order.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    by_layer_type = [value for key, value in rope.items() if key.endswith("_attention") and isinstance(value, dict)]
    kinds = [str(x.get("rope_type") or x.get("type") or "default") for x in by_layer_type or [rope]]
    return tuple(dict.fromkeys(kinds))


def eos_ids_of(folder: str | Path) -> tuple[int, ...]:
    """The ids that end a generation, as generation_config.json says, else config.json."""
    path = Path(folder).expanduser()
    for name in ("generation_config.json", "config.json"):
        value = _read_json(path, name).get("eos_token_id") if (path / name).is_file() else None
        if value is not None:
            return tuple(dict.fromkeys(int(item) for item in (value if isinstance(value, list) else [value])))
    return ()


def _refuse_unserved(folder: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("model_type")
    layer_types = set(config.get("layer_types") or ())

    def refuse(reason: str) -> UnsupportedModel:
        return UnsupportedModel(f"{folder}/config.json: {reason}", field="model", value=kind)

    if config.get("kv_lora_rank") is not None or str(kind).startswith("deepseek_v"):
        raise refuse("multi-head latent attention (MLA) is not served: its cached keys are not rotated per head")
    if kind in STATE_SPACE_TYPES or any(key in config for key in STATE_SPACE_KEYS) or "linear_attention" in layer_types:
        raise refuse("a state-space or recurrent model has no per-token keys and values to place")
    if kind == "gemma3":
        raise refuse(
            "this is Gemma 3 with its image encoder, which is not served; save its text part as a folder of its own, "
            "of model_type gemma3_text"
        )
    if kind not in SERVED:
        raise refuse(f"this architecture is not served; served are {', '.join(SERVED)}")
    for rope in rope_kinds(config):
        if rope not in TURNABLE_ROPE:
            known = {"dynamic": "dynamic-NTK", "longrope": "longrope", "su": "longrope"}.get(rope, repr(rope))
            raise refuse(
                f"{known} RoPE is not served: its frequencies depend on the length, so an encoding cannot be "
                f"read at another position; served are {', '.join(TURNABLE_ROPE)}"
            )
    if unknown := sorted(layer_types.difference(LAYER_TYPES)):
        raise refuse(f"{unknown[0]} layers are not served; served are {', '.join(LAYER_TYPES)}")
    windowed = kind in ("mistral", "gemma3_text") or config.get("use_sliding_window")
    if windowed and config.get("sliding_window") is not None:
        _count(folder, config, "sliding_window")
    if config.get("attn_logit_softcapping") is not None:
        raise refuse("attention scores that are capped (attn_logit_softcapping) are not served")
    if config.get("use_bidirectional_attention"):
        raise refuse("attention to later tokens (use_bidirectional_attention) is not served")
    if config.get("quantization_config"):
        raise refuse("quantized weights are not served; use the float32, float16 or bfloat16 folder")


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = _read_json(folder, index.name).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InvalidInput(f"{index} names no files, expected a weight_map", field="model")
        return [_require(folder, name) for name in sorted(set(weight_map.values()))]
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    others = sorted(file.name for pattern in ("*.bin", "*.gguf", "*.pt", "*.pth") for file in folder.glob(pattern))
    if others:
        raise UnsupportedModel(
            f"{folder} holds its weights as {others[0]}, expected safetensors; load and save_pretrained it once",
            field="model",
        )
    raise NotFound("the model folder has no model.safetensors", field="model", value=str(folder))


def weight_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Of every tensor of a model folder, by its name."""
    return _shapes(map(read_header, _weight_files(Path(path).expanduser())))


def _shapes(headers: Iterable[Mapping[str, Any]]) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(tensor["shape"]) for header in headers for name, tensor in header.items() if name != "__metadata__"
    }


def read_header(file: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file, whose size is checked against it."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        first = handle.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        if length == 0 or length > min(MAX_HEADER_BYTES, size - 8):
            raise InvalidInput(f"{file} is cut off or no safetensors file ({size} bytes)", field="model")
        header = _parse_json(file, handle.read(length))
    try:
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        _shapes([header])
    except (KeyError, IndexError, TypeError):
        raise InvalidInput(f"{file} has a header that is not safetensors'", field="model") from None
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        state = "cut off" if size < expected else "too long"
        raise InvalidInput(f"{file} is {state}: {size} bytes, expected {expected}; fetch it again", field="model")
    return header


def _check_computing(folder: Path, config: Mapping[str, Any]) -> None:
    """What a layer does besides its weights: its activation, the norms' epsilon, the kinds of layers."""
    key = "hidden_activation" if config["model_type"] == "gemma3_text" else "hidden_act"
    if key in config and config[key] not in ACTIVATIONS:
        expected = f"must be one of transformers' activations, such as {ACTIVATIONS[0]} and silu"
        raise InvalidInput(f"{folder}/config.json: {key} {expected}", field="model", value=config[key])
    epsilon = config.get("rms_norm_eps", 1e-6)
    if not isinstance(epsilon, float) or not 0 <= epsilon < 1:
        raise InvalidInput(f"{folder}/config.json: rms_norm_eps must be a small fraction", field="model", value=epsilon)
    layer_types, num_layers = config.get("layer_types"), config["num_hidden_layers"]
    if layer_types is not None and len(layer_types) != num_layers:
        message = f"layer_types names {len(layer_types)} layers, expected num_hidden_layers, {num_layers}"
        raise InvalidInput(f"{folder}/config.json: {message}", field="model")


def _hash_weights(digest: Any, file: Path) -> None:
    """Header, size and evenly spaced samples of `file`: two fine-tunings of one model have equal headers."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        length = struct.unpack("<Q", handle.read(8))[0]
        digest.update(f"{len(file.name)}:{file.name}|{size}|{length}|".encode())
        digest.update(handle.read(length))
        body = size - 8 - length
        for sample in range(SAMPLES_PER_FILE):
            handle.seek(8 + length + body * sample // SAMPLES_PER_FILE)
            digest.update(handle.read(SAMPLE_BYTES))


def _require(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise NotFound(f"the model folder has no {name}", field="model", value=str(folder))
    return folder / name


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    file = _require(folder, name)
    return _parse_json(file, file.read_bytes())


def _parse_json(file: Path, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise InvalidInput(f"{file} is not valid JSON ({error})", field="model") from None
    if not isinstance(value, dict):
        raise InvalidInput(f"{file} holds a {type(value).__name__}, expected an object", field="model")
    return value


def _count(folder: Path, config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidInput(f"{folder}/config.json: {key} must be a positive whole number", field="model", value=value)
    return value
