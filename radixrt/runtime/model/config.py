"""A Hugging Face ``config.json`` → the frozen description that the decoder is built from.

Reads without torch. Both spellings of the format are understood: transformers 4 (``rope_theta``,
``rope_scaling``, ``torch_dtype``) and 5 (``rope_parameters``, ``layer_types``, ``dtype``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radixrt.errors import ModelError, UnsupportedModel
from radixrt.runtime.attention.base import AttentionSpec
from radixrt.runtime.model.families import FAMILIES, MULTIMODAL, SUPPORTED, Family
from radixrt.runtime.model.rope import RopeSpec

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
"""Config's name of the gate's activation → the name that ``Ops.gated_act`` takes."""

DTYPES = {"float32", "bfloat16", "float16"}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What a model is: sizes, what differs between families, and one spec a layer.

    ``context_length`` is the number of positions that the rotary embedding covers. ``dtype`` is the
    checkpoint's, by torch's name. ``embedding_scale`` multiplies the embeddings (1: none).
    ``norm_add_one`` scales norms by 1 + weight; ``post_norms`` normalises what attention and MLP
    return before it is added to the residual. ``final_softcap`` 0 is none. ``multimodal``: the text
    part of a checkpoint that holds more.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_length: int
    attention: tuple[AttentionSpec, ...]
    ropes: tuple[RopeSpec, ...]
    rms_norm_eps: float
    activation: str
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    post_norms: bool
    norm_add_one: bool
    embedding_scale: float
    tied_head: bool
    final_softcap: float
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    dtype: str
    multimodal: bool


def read_config(path: Path) -> ModelConfig:
    """Return the config of a model directory.

    Raises ``ModelError`` when config.json is missing or malformed, ``UnsupportedModel`` for an
    architecture or a feature that is not implemented.
    """
    outer = _read_json(path / "config.json")
    generation = path / "generation_config.json"
    end_ids = _read_json(generation).get("eos_token_id") if generation.exists() else None
    try:
        return parse_config(outer, _token_ids(end_ids))
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise ModelError(f"{path / 'config.json'} has a malformed field: {error}") from error


def parse_config(outer: Mapping[str, Any], more_eos_ids: tuple[int, ...] = ()) -> ModelConfig:
    """Return the config of a parsed config.json; errors as ``read_config``."""
    architectures = outer.get("architectures") or ["none named"]
    architecture = str(architectures[0])
    family = FAMILIES.get(architecture)
    if family is None:
        raise UnsupportedModel(
            f"architecture {architecture} is not supported; supported are {', '.join(SUPPORTED)}"
        )
    raw = Fields(outer, family)
    for feature in ("quantization_config", "use_bidirectional_attention"):
        if raw.get(feature):
            raise UnsupportedModel(
                f"{architecture} with {feature} is not supported; use an unquantised, causal "
                "checkpoint in float32 or bfloat16"
            )
    hidden = raw.integer("hidden_size")
    num_heads = raw.integer("num_attention_heads")
    num_kv_heads = raw.integer("num_key_value_heads", num_heads)
    head_dim = raw.integer("head_dim", hidden // num_heads)
    if num_heads % num_kv_heads:
        raise ModelError(
            f"config.json: num_attention_heads={num_heads} is not a multiple of "
            f"num_key_value_heads={num_kv_heads}"
        )
    if head_dim % 2:
        raise UnsupportedModel(f"head_dim={head_dim} is not supported; rotary needs an even one")
    positions = raw.integer("max_position_embeddings")
    layer_types = _layer_types(raw, family)
    scale = float(raw.get("query_pre_attn_scalar") or head_dim) ** -0.5
    window = family.window(raw.values)
    softcap = float(raw.get("attn_logit_softcapping") or 0.0) if family.softcaps else 0.0
    specs = {
        kind: AttentionSpec(num_heads, num_kv_heads, head_dim, scale, width, softcap)
        for kind, width in (("full_attention", 0), ("sliding_attention", window))
    }
    ropes = {kind: family.rope(raw.values, kind, positions) for kind in set(layer_types)}
    activation = str(raw.get("hidden_activation") or raw.get("hidden_act") or "silu")
    if activation not in ACTIVATIONS:
        raise UnsupportedModel(
            f"activation {activation!r} is not supported; supported are {', '.join(ACTIVATIONS)}"
        )
    dtype = str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch.")
    if dtype not in DTYPES:
        raise UnsupportedModel(f"dtype {dtype} is not supported; supported are {sorted(DTYPES)}")
    eos_ids = dict.fromkeys((*_token_ids(raw.get("eos_token_id")), *more_eos_ids))
    bos_ids = _token_ids(raw.get("bos_token_id"))
    attention_bias = bool(raw.get("attention_bias"))
    return ModelConfig(
        architecture=architecture,
        vocab_size=raw.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=raw.integer("intermediate_size"),
        num_layers=len(layer_types),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        context_length=max(_scaled_context(rope, positions) for rope in ropes.values()),
        attention=tuple(specs[kind] for kind in layer_types),
        ropes=tuple(ropes[kind] for kind in layer_types),
        rms_norm_eps=float(raw.get("rms_norm_eps") or 1e-6),
        activation=ACTIVATIONS[activation],
        qkv_bias=family.qkv_bias or attention_bias,
        output_bias=attention_bias and not family.qkv_bias,
        mlp_bias=bool(raw.get("mlp_bias")),
        qk_norm=family.qk_norm,
        post_norms=family.gemma,
        norm_add_one=family.gemma,
        embedding_scale=hidden**0.5 if family.gemma else 1.0,
        tied_head=bool(raw.get("tie_word_embeddings")),
        final_softcap=float(raw.get("final_logit_softcapping") or 0.0) if family.softcaps else 0.0,
        eos_token_ids=tuple(eos_ids),
        bos_token_id=bos_ids[0] if bos_ids else None,
        dtype=dtype,
        multimodal=architecture in MULTIMODAL,
    )


class Fields:
    """A config's fields: the text part's, then the whole model's, then the family's defaults."""

    def __init__(self, outer: Mapping[str, Any], family: Family) -> None:
        self.values: dict[str, Any] = {**family.defaults, **outer, **outer.get("text_config", {})}

    def get(self, name: str) -> Any:
        """Return the field's value, None where the config has none."""
        return self.values.get(name)

    def integer(self, name: str, default: int | None = None) -> int:
        """Return a positive integer field; raises ``ModelError`` when it is missing or is none."""
        value = self.values.get(name)
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ModelError(f"config.json: {name}={value!r}: a positive integer is needed")
        return value


def _layer_types(raw: Fields, family: Family) -> tuple[str, ...]:
    num_layers = raw.integer("num_hidden_layers")
    types = tuple(family.layer_types(raw.values, num_layers))
    unknown = set(types) - {"full_attention", "sliding_attention"}
    if unknown:
        raise UnsupportedModel(
            f"layer types {sorted(unknown)} are not supported; supported are full_attention and "
            "sliding_attention"
        )
    if len(types) != num_layers:
        raise ModelError(f"config.json: {len(types)} layer_types for {num_layers} layers")
    return types


def _scaled_context(rope: RopeSpec, positions: int) -> int:
    """YaRN configs give the context before scaling; the other kinds' have the final one."""
    if rope.kind == "yarn":
        return max(positions, int(rope.original_context * rope.factor))
    return positions


def _token_ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(int(token) for token in (value if isinstance(value, list) else [value]))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(
            f"{path} does not exist; a model is a directory in Hugging Face format with "
            "config.json, *.safetensors and tokenizer.json"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds {type(value).__name__}, not an object")
    return value
