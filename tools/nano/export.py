"""Writes the Hugging Face folder: weights, configuration, tokenizer and chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from tools.nano.document import CHAT_TEMPLATE, END, END_OF_TEXT, PAD, SPECIAL_TOKENS
from tools.nano.model import Llama, ModelConfig

END_OF_TEXT_ID, END_ID, PAD_ID = (SPECIAL_TOKENS.index(t) for t in (END_OF_TEXT, END, PAD))


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_tokenizer_files(tokenizer: Tokenizer, folder: Path) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "pad_token": PAD,
            "add_bos_token": False,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": ModelConfig.max_positions,
            "model_input_names": ["input_ids", "attention_mask"],
        },
    )


def write_model_files(model: Llama, folder: Path) -> None:
    """bfloat16 weights under Hugging Face's names; the tied head is left out."""
    c = model.config
    weights = {
        f"model.{name}": tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    _write_json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": c.vocab_size,
            "hidden_size": c.hidden_size,
            "intermediate_size": c.intermediate_size,
            "num_hidden_layers": c.num_layers,
            "num_attention_heads": c.num_heads,
            "num_key_value_heads": c.num_kv_heads,
            "head_dim": c.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": c.max_positions,
            "rope_theta": c.rope_theta,
            "rope_scaling": None,
            "rms_norm_eps": c.norm_eps,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "use_cache": True,
            "bos_token_id": END_OF_TEXT_ID,
            "eos_token_id": [END_OF_TEXT_ID, END_ID],
            "pad_token_id": PAD_ID,
            "torch_dtype": "bfloat16",
        },
    )
    _write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": END_OF_TEXT_ID,
            "eos_token_id": [END_OF_TEXT_ID, END_ID],
            "pad_token_id": PAD_ID,
            "do_sample": False,
        },
    )
