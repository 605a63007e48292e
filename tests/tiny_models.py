"""Tiny random models of every family, saved in Hugging Face format: shared by tests and benchmarks.

``save_tiny(path, "llama")`` writes config.json and model.safetensors and returns the path. The
weights are drawn so that greedy decoding wanders instead of repeating a token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

VOCAB_SIZE = 128
"""Of every tiny model."""

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 32,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-biased": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-llama3": ("Llama", {"rope_parameters": _LLAMA3, "head_dim": 32}),
    "llama-yarn": ("Llama", {"rope_parameters": _YARN}),
    "llama-linear": ("Llama", {"rope_parameters": _LINEAR}),
    "mistral-window": ("Mistral", {"sliding_window": 11, "head_dim": 24}),
    "mistral-full": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 24,
            "sliding_window": 10,
            "tie_word_embeddings": True,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 8.0,
        },
    ),
    "gemma3": (
        "Gemma3Text",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 24,
            "num_hidden_layers": 4,
            "sliding_window": 10,
            "layer_types": [
                "sliding_attention",
                "sliding_attention",
                "full_attention",
                "sliding_attention",
            ],
            "tie_word_embeddings": True,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
                "full_attention": {
                    "rope_type": "linear",
                    "factor": 4.0,
                    "rope_theta": 1_000_000.0,
                },
            },
        },
    ),
}
"""Name → (prefix of transformers' config class, what differs from the common sizes)."""

_MODEL_CLASSES = {"Gemma3Text": "Gemma3ForCausalLM"}


def make_tiny(family: str, *, seed: int = 0, **overrides: Any) -> transformers.PreTrainedModel:
    """Return a random transformers model of the family in f32; ``overrides`` go to its config."""
    prefix, differences = FAMILIES[family]
    config = getattr(transformers, f"{prefix}Config")(**{**_COMMON, **differences, **overrides})
    config._attn_implementation = "eager"
    model = getattr(transformers, _MODEL_CLASSES.get(prefix, f"{prefix}ForCausalLM"))(config)
    gemma = prefix.startswith("Gemma")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name and not gemma else 0.0
            if gemma and "post_" in name:
                # Else the scaled embedding outweighs the layers, and each token predicts itself.
                centre = 6.0
            width = 0.15 if parameter.dim() == 2 else 0.1
            parameter.copy_(centre + width * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def save_tiny(
    path: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "1GB",
    **overrides: Any,
) -> Path:
    """Save ``make_tiny(family, …)`` in ``path`` and return it; a small ``shard_size`` ("100KB")
    makes a sharded checkpoint with an index."""
    model = make_tiny(family, seed=seed, **overrides).to(dtype)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(path, max_shard_size=shard_size)
    return Path(path)
