"""A model directory is loaded whole or refused with the names of what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from paged_runs import PagedRun
from safetensors.torch import load_file, save_file
from tiny_models import make_tiny, save_tiny

from radixrt.errors import ConfigError, ModelError, UnsupportedModel, WeightsMismatch
from radixrt.runtime.model.decoder import CausalLM
from radixrt.runtime.model.loader import load_model
from radixrt.runtime.model.weights import INDEX, fingerprint
from radixrt.runtime.ops.reference import ReferenceOps

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def load(path: Path, dtype: torch.dtype = torch.float32, **options: Any) -> CausalLM:
    return load_model(path, device=torch.device("cpu"), dtype=dtype, ops=ReferenceOps(), **options)


def logits(model: CausalLM) -> torch.Tensor:
    return PagedRun(model, max_len=16).step({0: PROMPT})


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to rounding: how a matrix is aligned in its file decides how it is summed."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def rewrite(path: Path, **changes: torch.Tensor | None) -> None:
    """Replace tensors of the checkpoint; None removes one. ``__`` stands for a dot in a name."""
    file = path / "model.safetensors"
    tensors = load_file(file)
    for key, tensor in changes.items():
        name = key.replace("__", ".")
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, file)


def test_a_sharded_checkpoint_is_the_single_one(tmp_path: Path) -> None:
    single = save_tiny(tmp_path / "single", "llama")
    sharded = save_tiny(tmp_path / "sharded", "llama", shard_size="100KB")
    assert (sharded / INDEX).exists()
    assert not (sharded / "model.safetensors").exists()
    assert_same(logits(load(sharded)), logits(load(single)))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    path = save_tiny(tmp_path, "llama", shard_size="100KB")
    shard = sorted(path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=shard.name):
        load(path)


def test_an_index_cannot_name_files_outside_the_directory(tmp_path: Path) -> None:
    outside = save_tiny(tmp_path / "outside", "llama")
    path = save_tiny(tmp_path / "model", "llama")
    (path / "model.safetensors").unlink()
    weight_map = {"lm_head.weight": "../outside/model.safetensors"}
    (path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert (outside / "model.safetensors").exists()
    with pytest.raises(ModelError, match="lacks files"):
        load(path)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    file = save_tiny(tmp_path, "llama") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read"):
        load(tmp_path)


def test_no_weights_at_all_says_what_to_do(tmp_path: Path) -> None:
    (save_tiny(tmp_path, "llama") / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="safetensors"):
        load(tmp_path)


def test_missing_left_over_and_misshaped_tensors_are_all_listed(tmp_path: Path) -> None:
    path = save_tiny(tmp_path, "llama")
    rewrite(
        path,
        model__layers__1__mlp__up_proj__weight=None,
        model__layers__0__self_attn__q_norm__weight=torch.ones(16),
        model__norm__weight=torch.ones(63),
    )
    with pytest.raises(WeightsMismatch) as caught:
        load(path)
    message = str(caught.value)
    assert "missing: model.layers.1.mlp.up_proj.weight" in message
    assert "left over: model.layers.0.self_attn.q_norm.weight" in message
    assert "wrongly shaped: model.norm.weight is [63], expected [64]" in message


def test_an_untied_model_without_a_head_is_refused(tmp_path: Path) -> None:
    path = save_tiny(tmp_path, "llama")
    rewrite(path, lm_head__weight=None)
    with pytest.raises(WeightsMismatch, match=r"missing: lm_head\.weight"):
        load(path)


def test_a_tied_model_ignores_a_stored_head_and_old_rotary_buffers(tmp_path: Path) -> None:
    path = save_tiny(tmp_path, "llama-tied")
    expected = logits(load(path))
    rewrite(
        path,
        lm_head__weight=torch.zeros(128, 64),
        model__layers__0__self_attn__rotary_emb__inv_freq=torch.zeros(8),
    )
    assert_same(logits(load(path)), expected)


def test_a_missing_directory_says_what_a_model_is(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Hugging Face"):
        load(tmp_path / "nothing")


def test_weights_keep_their_dtype_and_those_not_fused_stay_mapped(tmp_path: Path) -> None:
    path = save_tiny(tmp_path, "llama", dtype=torch.bfloat16)
    model = load(path, torch.bfloat16)
    expected = sum(tensor.nbytes for tensor in load_file(path / "model.safetensors").values())
    assert model.num_weight_bytes == expected
    mapped = {
        line.split()[0]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(path / "model.safetensors"))
    }
    ranges = [tuple(int(end, 16) for end in span.split("-")) for span in mapped]
    address = model.layers[0].down_proj.data_ptr()
    assert any(begin <= address < end for begin, end in ranges)


def test_conversion_to_another_dtype_is_by_value(tmp_path: Path) -> None:
    path = save_tiny(tmp_path, "qwen3")
    narrow, wide = load(path, torch.bfloat16), load(path)
    torch.testing.assert_close(
        narrow.layers[1].qkv_proj, wide.layers[1].qkv_proj.to(torch.bfloat16), rtol=0, atol=0
    )


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_dummy_weights_need_only_a_config_and_repeat_by_seed(tmp_path: Path, family: str) -> None:
    path = save_tiny(tmp_path, family)
    (path / "model.safetensors").unlink()
    first = logits(load(path, load_format="dummy", seed=1))
    again = logits(load(path, load_format="dummy", seed=1))
    other = logits(load(path, load_format="dummy", seed=2))
    assert torch.isfinite(first).all()
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.allclose(first, other)


def test_dummy_weights_larger_than_their_block_differ_by_name(tmp_path: Path) -> None:
    path = save_tiny(tmp_path, "llama", vocab_size=20_000, num_hidden_layers=1)
    model = load(path, load_format="dummy")
    assert model.embed_tokens.numel() > 1 << 20
    assert not torch.equal(model.embed_tokens, model.lm_head)
    assert 0.015 < float(model.embed_tokens.std()) < 0.025


def test_an_unknown_load_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="load_format=pickle"):
        load(save_tiny(tmp_path, "llama"), load_format="pickle")


def test_the_text_part_of_a_multimodal_checkpoint_is_the_text_model(tmp_path: Path) -> None:
    text = save_tiny(tmp_path / "text", "gemma3")
    config = json.loads((text / "config.json").read_text())
    tensors = load_file(text / "model.safetensors")
    whole = tmp_path / "whole"
    whole.mkdir()
    outer = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "dtype": config.pop("dtype"),
        "eos_token_id": [1, 106],
        "text_config": {key: value for key, value in config.items() if key != "eos_token_id"},
        "vision_config": {"hidden_size": 8},
    }
    (whole / "config.json").write_text(json.dumps(outer))
    vision = {
        "vision_tower.vision_model.head.weight": torch.zeros(2),
        "multi_modal_projector.mm_soft_emb_norm.weight": torch.zeros(2),
    }
    expected = logits(load(text))
    for prefix in ("language_model.model.", "model.language_model."):
        renamed = {name.replace("model.", prefix, 1): value for name, value in tensors.items()}
        save_file({**renamed, **vision}, whole / "model.safetensors")
        model = load(whole)
        assert model.config.eos_token_ids == (1, 106)
        assert_same(logits(model), expected)


def test_the_fingerprint_tells_weights_apart_and_ignores_where_they_lie(tmp_path: Path) -> None:
    one = save_tiny(tmp_path / "one", "llama")
    same = save_tiny(tmp_path / "same", "llama")
    other = save_tiny(tmp_path / "other", "llama", seed=1)
    assert fingerprint(one) == fingerprint(same)
    assert fingerprint(one) != fingerprint(other)
    rewrite(same, model__norm__weight=torch.zeros(64))
    assert fingerprint(one) != fingerprint(same)


def test_unsupported_architectures_list_those_that_are(tmp_path: Path) -> None:
    path = save_tiny(tmp_path, "llama")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "architectures": ["MambaForCausalLM"]}))
    with pytest.raises(UnsupportedModel, match=r"MambaForCausalLM.*LlamaForCausalLM.*Qwen3"):
        load(path)


def test_weights_are_those_of_the_checkpoint_by_name(tmp_path: Path) -> None:
    model = load(save_tiny(tmp_path, "qwen2"))
    theirs = dict(make_tiny("qwen2").named_parameters())
    q, k, v = (theirs[f"model.layers.2.self_attn.{part}_proj.bias"] for part in "qkv")
    bias = model.layers[2].qkv_bias
    assert bias is not None
    torch.testing.assert_close(bias, torch.cat((q, k, v)).detach(), rtol=0, atol=0)
