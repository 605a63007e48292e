"""Every spelling of a Hugging Face config is read; what is not implemented is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from radixrt.errors import ModelError, UnsupportedModel
from radixrt.runtime.model.config import parse_config, read_config
from radixrt.runtime.model.rope import cos_sin_table, inverse_frequencies, read_rope

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
    "rope_theta": 500000.0,
    "eos_token_id": [7, 8],
    "bos_token_id": 1,
}


def with_(**changes: Any) -> dict[str, Any]:
    return {**LLAMA, **changes}


def test_derived_fields() -> None:
    config = parse_config(LLAMA)
    assert config.num_kv_heads == 4
    assert config.head_dim == 16
    assert config.dtype == "bfloat16"
    assert config.eos_token_ids == (7, 8)
    assert config.bos_token_id == 1
    assert config.context_length == 4096
    assert config.attention[0].scale == pytest.approx(0.25)
    assert parse_config(with_(head_dim=32, num_key_value_heads=2)).head_dim == 32


def test_both_spellings_of_rope_and_dtype_mean_the_same() -> None:
    scaling = {"factor": 8.0, "original_max_position_embeddings": 512}
    old = with_(rope_scaling={"type": "llama3", **scaling})
    new = with_(rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, **scaling})
    new["dtype"] = new.pop("torch_dtype")
    del new["rope_theta"]
    assert parse_config(old) == parse_config(new)
    assert parse_config(with_(rope_scaling=None)) == parse_config(LLAMA)


def test_old_and_new_gemma3_configs_mean_the_same() -> None:
    base = with_(
        architectures=["Gemma3ForCausalLM"],
        num_hidden_layers=6,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=32,
    )
    linear = {"rope_type": "linear", "factor": 8.0}
    old = base | {
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": linear,
        "sliding_window_pattern": 3,
    }
    new = base | {
        "layer_types": (["sliding_attention"] * 2 + ["full_attention"]) * 2,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {**linear, "rope_theta": 1e6},
        },
    }
    config = parse_config(old)
    assert config == parse_config(new)
    assert [spec.window for spec in config.attention] == [32, 32, 0, 32, 32, 0]
    assert [rope.theta for rope in config.ropes[1:3]] == [1e4, 1e6]
    assert [rope.factor for rope in config.ropes[1:3]] == [1.0, 8.0]


def test_windows_follow_each_familys_rule() -> None:
    def windows(**changes: Any) -> list[int]:
        return [spec.window for spec in parse_config(with_(**changes)).attention]

    qwen = {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 32, "max_window_layers": 3}
    assert windows(**qwen, use_sliding_window=False) == [0, 0, 0, 0]
    assert windows(**qwen, use_sliding_window=True) == [0, 0, 0, 32]
    mistral = {"architectures": ["MistralForCausalLM"]}
    assert windows(**mistral, sliding_window=32) == [32] * 4
    assert windows(**mistral, sliding_window=None) == [0] * 4
    gemma = {"architectures": ["Gemma2ForCausalLM"], "head_dim": 16, "sliding_window": 32}
    assert windows(**gemma) == [32, 0, 32, 0]
    assert windows(sliding_window=32) == [0] * 4


def test_a_null_turns_a_familys_default_off() -> None:
    gemma = with_(architectures=["Gemma2ForCausalLM"], head_dim=16)
    assert parse_config(gemma).final_softcap == 30.0
    assert parse_config(gemma | {"final_logit_softcapping": None}).final_softcap == 0.0


def test_end_tokens_of_the_generation_config_are_added(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [8, 9]}))
    assert read_config(tmp_path).eos_token_ids == (7, 8, 9)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM"),
        ({"architectures": None}, "none named"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"hidden_act": "relu"}, "relu"),
        ({"torch_dtype": "int8"}, "int8"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor",
        ),
        (
            {
                "architectures": ["Gemma2ForCausalLM"],
                "head_dim": 16,
                "layer_types": ["chunked_attention"] * 4,
            },
            "chunked_attention",
        ),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        parse_config(with_(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": None},
        {"num_hidden_layers": "four"},
        {"vocab_size": 0},
        {"num_key_value_heads": 3},
    ],
)
def test_a_malformed_field_is_named(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=next(iter(changes))):
        parse_config(with_(**changes))


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '"x"']
    + [
        json.dumps({**LLAMA, **changes})
        for changes in (
            {"rope_scaling": "linear"},
            {"eos_token_id": ["</s>"]},
            {"rms_norm_eps": "tiny"},
            {"text_config": 3},
            {"architectures": 3},
        )
    ],
)
def test_a_damaged_config_is_a_model_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        {
            "rope_type": "yarn",
            "factor": 16.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "truncate": False,
        },
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 4096,
            "mscale": 0.7,
            "mscale_all_dim": 1.2,
        },
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 4096,
            "attention_factor": 0.9,
        },
    ],
    ids=["linear", "llama3", "yarn", "yarn-betas", "yarn-mscale", "yarn-attention-factor"],
)
@pytest.mark.filterwarnings("ignore")
def test_frequencies_are_those_of_transformers(parameters: dict[str, Any]) -> None:
    theirs = transformers.LlamaConfig(
        hidden_size=512,
        num_attention_heads=4,
        max_position_embeddings=131_072,
        rope_parameters={**parameters, "rope_theta": 500_000.0},
    )
    expected, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](theirs)
    spec = read_rope(parameters, 500_000.0, 131_072)
    np.testing.assert_allclose(inverse_frequencies(spec, 128), expected.numpy(), rtol=2e-6)
    assert spec.attention_factor == pytest.approx(factor)
    table = cos_sin_table(spec, 128, 3)
    np.testing.assert_allclose(table[2, :64], (2 * expected).cos() * factor, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(table[2, 64:], (2 * expected).sin() * factor, rtol=1e-5, atol=1e-6)


def test_yarn_extends_the_context_that_the_config_names() -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    assert parse_config(with_(rope_scaling=yarn)).context_length == 16_384


def test_reading_a_config_loads_no_torch(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    code = (
        "import sys; from pathlib import Path; from radixrt.runtime.model.config import *; "
        "read_config(Path(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
