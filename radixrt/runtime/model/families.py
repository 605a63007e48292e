"""What differs between the supported model families; all of it is data for the one decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from radixrt.runtime.model.rope import RopeSpec, read_rope

Raw = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """The plain Llama; subclasses and fields say what others do differently.

    ``defaults`` stand for fields that a config.json may leave out. ``qkv_bias``: always (others:
    when the config says attention_bias). ``gemma``: norms scale by 1 + weight and follow attention
    and MLP too, embeddings are scaled by sqrt(hidden_size).
    """

    defaults: Raw = field(default_factory=dict)
    theta: float = 10_000.0
    qkv_bias: bool = False
    qk_norm: bool = False
    gemma: bool = False
    softcaps: bool = False

    def window(self, raw: Raw) -> int:
        """Return the window of sliding layers; 0: none slides."""
        return 0

    def layer_types(self, raw: Raw, num_layers: int) -> Sequence[str]:
        """Return "full_attention" or "sliding_attention" for each layer."""
        return ["full_attention"] * num_layers

    def rope(self, raw: Raw, layer_type: str, context_length: int) -> RopeSpec:
        """Return the rotary embedding of the layers of one type."""
        parameters = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        theta = float(raw.get("rope_theta") or self.theta)
        return read_rope(parameters, theta, context_length)


class Mistral(Family):
    """All layers slide, or none."""

    def window(self, raw: Raw) -> int:
        return int(raw.get("sliding_window") or 0)

    def layer_types(self, raw: Raw, num_layers: int) -> Sequence[str]:
        slides = bool(self.window(raw))
        return ["sliding_attention" if slides else "full_attention"] * num_layers


class Qwen(Family):
    """Layers from ``max_window_layers`` on slide, if any does."""

    def window(self, raw: Raw) -> int:
        return int(raw.get("sliding_window") or 0) if raw.get("use_sliding_window") else 0

    def layer_types(self, raw: Raw, num_layers: int) -> Sequence[str]:
        if not self.window(raw):
            return ["full_attention"] * num_layers
        first = int(raw.get("max_window_layers") or 0)
        return raw.get("layer_types") or [
            "sliding_attention" if layer >= first else "full_attention"
            for layer in range(num_layers)
        ]


class Gemma(Family):
    """Every n-th layer is full, the others slide."""

    def window(self, raw: Raw) -> int:
        return int(raw.get("sliding_window") or 0)

    def layer_types(self, raw: Raw, num_layers: int) -> Sequence[str]:
        every = int(raw.get("sliding_window_pattern") or raw["_sliding_window_pattern"])
        return raw.get("layer_types") or [
            "full_attention" if (layer + 1) % every == 0 else "sliding_attention"
            for layer in range(num_layers)
        ]


class Gemma3(Gemma):
    """Sliding ("local") layers have a rotary base of their own and no scaling."""

    def rope(self, raw: Raw, layer_type: str, context_length: int) -> RopeSpec:
        parameters = raw.get("rope_parameters") or {}
        if layer_type in parameters:
            parameters = parameters[layer_type] or {}
        elif layer_type == "full_attention" and not parameters:
            parameters = raw.get("rope_scaling") or {}
        elif layer_type == "sliding_attention":
            parameters = {}
        is_local = layer_type == "sliding_attention"
        theta = raw.get("rope_local_base_freq" if is_local else "rope_theta")
        return read_rope(
            parameters, float(theta or (10_000.0 if is_local else self.theta)), context_length
        )


_GEMMA: Raw = {
    "vocab_size": 256_000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
    "bos_token_id": 2,
}

_GEMMA2 = Gemma(
    defaults={
        **_GEMMA,
        "_sliding_window_pattern": 2,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    gemma=True,
    softcaps=True,
)
_GEMMA3 = Gemma3(
    defaults={
        **_GEMMA,
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
        "_sliding_window_pattern": 6,
    },
    theta=1_000_000.0,
    qk_norm=True,
    gemma=True,
    softcaps=True,
)
_POSITIONS: Raw = {"max_position_embeddings": 32_768}

FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(defaults={"max_position_embeddings": 2048}),
    "MistralForCausalLM": Mistral(defaults={"max_position_embeddings": 131_072}),
    "Qwen2ForCausalLM": Qwen(defaults=_POSITIONS, qkv_bias=True),
    "Qwen3ForCausalLM": Qwen(defaults={**_POSITIONS, "head_dim": 128}, qk_norm=True),
    "Gemma2ForCausalLM": _GEMMA2,
    "Gemma3ForCausalLM": _GEMMA3,
    "Gemma3ForConditionalGeneration": _GEMMA3,
}
"""Architecture's name in config.json → its family."""

MULTIMODAL = frozenset({"Gemma3ForConditionalGeneration"})
"""Architectures whose checkpoints hold more than the text model."""

SUPPORTED = tuple(FAMILIES)
