"""A model directory → a model on a device."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from radixrt.errors import ConfigError
from radixrt.runtime.model.config import ModelConfig, read_config
from radixrt.runtime.model.decoder import CausalLM, weight_shapes
from radixrt.runtime.model.weights import Checkpoint, DummyWeights, WeightSource, check_names
from radixrt.runtime.ops.base import Ops


def load_model(
    path: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    ops: Ops,
    load_format: Literal["auto", "dummy"] = "auto",
    seed: int = 0,
) -> CausalLM:
    """Return the model of a Hugging Face directory.

    "auto" maps its safetensors, and checks every name and shape before a weight is read; "dummy"
    needs only config.json and makes weights up from ``seed``. Raises ``UnsupportedModel``,
    ``WeightsMismatch`` or another ``ModelError``.
    """
    config = read_config(path)
    source: WeightSource
    if load_format == "dummy":
        source = DummyWeights(
            weight_shapes(config),
            seed,
            norm=0.0 if config.norm_add_one else 1.0,
            device=device,
            dtype=dtype,
        )
    elif load_format == "auto":
        source = open_checkpoint(path, config)
    else:
        raise ConfigError(f"load_format={load_format}: unknown; use auto or dummy")
    return CausalLM(config, source, device=device, dtype=dtype, ops=ops)


def open_checkpoint(path: Path, config: ModelConfig) -> Checkpoint:
    """Return the directory's checkpoint, its names and shapes checked against the config."""
    checkpoint = Checkpoint(path, multimodal=config.multimodal)
    check_names(weight_shapes(config), checkpoint.shapes, tied_head=config.tied_head)
    return checkpoint
