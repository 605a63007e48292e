"""Rotary position embedding: what a config asks for, and the table of cosines and sines.

Reads without torch. Scalings: none, linear (position interpolation, Chen et al. 2023), llama3
(Llama 3.1) and YaRN (Peng et al. 2023).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radixrt.errors import UnsupportedModel

SUPPORTED = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """The rotary embedding of a layer. Fields past ``factor`` matter to some kinds only."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0


def read_rope(parameters: Mapping[str, Any], theta: float, context_length: int) -> RopeSpec:
    """Return the spec of a config's ``rope_parameters`` (transformers 5) or ``rope_scaling`` (4).

    ``theta`` is used where the parameters have none; ``context_length`` where a scaling needs the
    original one and the parameters do not say. Raises ``UnsupportedModel`` for other rope types and
    for partial rotation.
    """
    kind = str(parameters.get("rope_type") or parameters.get("type") or "default")
    if kind not in SUPPORTED:
        raise UnsupportedModel(
            f"rope type {kind!r} is not supported; supported are {', '.join(SUPPORTED)}"
        )
    if float(parameters.get("partial_rotary_factor") or 1.0) != 1.0:
        raise UnsupportedModel(
            f"partial_rotary_factor={parameters['partial_rotary_factor']} is not supported; only 1"
        )
    base = float(parameters.get("rope_theta") or theta)
    if kind == "default":
        return RopeSpec(base)
    original = int(parameters.get("original_max_position_embeddings") or context_length)
    given = parameters.get("factor")
    if given is None and kind != "yarn":
        raise UnsupportedModel(f"rope type {kind!r} has no factor in the config")
    factor = float(given) if given is not None else context_length / original
    if kind == "linear":
        return RopeSpec(base, kind, factor)
    if kind == "llama3":
        return RopeSpec(
            base,
            kind,
            factor,
            original,
            low_freq_factor=float(parameters.get("low_freq_factor") or 1.0),
            high_freq_factor=float(parameters.get("high_freq_factor") or 4.0),
        )
    return RopeSpec(
        base,
        kind,
        factor,
        original,
        beta_fast=float(parameters.get("beta_fast") or 32.0),
        beta_slow=float(parameters.get("beta_slow") or 1.0),
        truncate=bool(parameters.get("truncate", True)),
        attention_factor=_yarn_attention_factor(parameters, factor),
    )


def cos_sin_table(spec: RopeSpec, head_dim: int, num_positions: int) -> NDArray[np.float32]:
    """Return f32 [num_positions, head_dim]: cosines in the first half, sines in the second."""
    frequencies = inverse_frequencies(spec, head_dim).astype(np.float32)
    # Angles are f32 products, as they were when the models were trained.
    angles = np.arange(num_positions, dtype=np.float32)[:, None] * frequencies
    table = np.empty((num_positions, head_dim), dtype=np.float32)
    np.cos(angles, out=table[:, : head_dim // 2])
    np.sin(angles, out=table[:, head_dim // 2 :])
    if spec.attention_factor != 1.0:
        table *= np.float32(spec.attention_factor)
    return table


def inverse_frequencies(spec: RopeSpec, head_dim: int) -> NDArray[np.float64]:
    """Return the radians a position turns each of the head_dim / 2 pairs by, float64."""
    plain = spec.theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    match spec.kind:
        case "linear":
            return np.asarray(plain / spec.factor)
        case "llama3":
            return _llama3(plain, spec)
        case "yarn":
            return _yarn(plain, spec, head_dim)
        case _:
            return np.asarray(plain)


def _llama3(plain: NDArray[np.float64], spec: RopeSpec) -> NDArray[np.float64]:
    """Interpolate pairs that turn less than ``low_freq_factor`` times over the original context,
    keep those that turn more than ``high_freq_factor`` times, blend in between."""
    turns = spec.original_context * plain / (2 * math.pi)
    span = spec.high_freq_factor - spec.low_freq_factor
    keep = np.clip((turns - spec.low_freq_factor) / span, 0.0, 1.0)
    return np.asarray(keep * plain + (1.0 - keep) * plain / spec.factor)


def _yarn(plain: NDArray[np.float64], spec: RopeSpec, head_dim: int) -> NDArray[np.float64]:
    """Keep pairs that turn more than ``beta_fast`` times over the original context, interpolate
    those that turn less than ``beta_slow`` times, blend linearly in the pair's index between."""

    def pair_that_turns(times: float) -> float:
        wavelengths = spec.original_context / (times * 2 * math.pi)
        return head_dim * math.log(wavelengths) / (2 * math.log(spec.theta))

    low, high = pair_that_turns(spec.beta_fast), pair_that_turns(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = (np.arange(head_dim // 2) - low) / max(high - low, 0.001)
    interpolate = np.clip(ramp, 0.0, 1.0)
    return np.asarray((1.0 - interpolate) * plain + interpolate * plain / spec.factor)


def _yarn_attention_factor(parameters: Mapping[str, Any], factor: float) -> float:
    given = parameters.get("attention_factor")
    if given is not None:
        return float(given)

    def temperature(weight: float) -> float:
        return 1.0 if factor <= 1.0 else 0.1 * weight * math.log(factor) + 1.0

    mscale, mscale_all = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if mscale and mscale_all:
        return temperature(float(mscale)) / temperature(float(mscale_all))
    return temperature(1.0)
