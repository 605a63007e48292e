"""Which model is measured: a directory, or a named shape with random weights."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from radixrt.config import RuntimeConfig
from radixrt.elsewhere import option_hint
from radixrt.errors import ConfigError
from radixrt.settings import did_you_mean, settings_of

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "tie_word_embeddings": False,
    },
    "qwen2.5-0.5b": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "num_hidden_layers": 24,
        "hidden_size": 896,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "tie_word_embeddings": True,
    },
}
"""Name → the config.json of its checkpoint."""


@contextlib.contextmanager
def model_config(model: str, settings: Sequence[str] = ()) -> Iterator[RuntimeConfig]:
    """Yield the config of a model directory, or of a named shape with random weights, with
    ``OPTION=VALUE`` settings; a shape's files are there until the context ends.

    An empty ``model`` is the one that ships. Raises ``ConfigError``.
    """
    options = parse_settings(settings)
    if "model" in options:
        raise ConfigError("--set model=…: give the model as the argument")
    if model not in SHAPES:
        if model and not Path(model).is_dir():
            raise ConfigError(
                f"model={model}: no such directory, and no shape of that name; "
                f"shapes with random weights: {', '.join(SHAPES)}"
            )
        yield RuntimeConfig(model=Path(model) if model else None, **options)
        return
    with tempfile.TemporaryDirectory(prefix="radixrt-bench-") as folder:
        path = Path(folder, model)
        write_shape(path, SHAPES[model])
        yield RuntimeConfig(**{"model": path, "load_format": "dummy", **options})


def write_shape(path: Path, config: dict[str, Any]) -> None:
    """Write a model directory without weights: ``config`` and a tokenizer of as many entries."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = _tokenizer(config["vocab_size"], config["bos_token_id"], config["eos_token_id"])
    (path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Return the options that ``OPTION=VALUE`` texts set, as ``RuntimeConfig`` types them; raises
    ``ConfigError`` for an unknown option or a value it cannot have."""
    known = settings_of(RuntimeConfig)
    options: dict[str, Any] = {}
    for item in settings:
        name, equals, value = item.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise ConfigError(f"--set {item}: write OPTION=VALUE, such as --set memory=80%")
        if name not in known:
            other = option_hint(name)
            hint = f"; {other}" if other else did_you_mean(name, known)
            raise ConfigError(
                f"--set {item}: unknown option{hint}; known: {', '.join(sorted(known))}"
            )
        options[name] = known[name].parse(value.strip(), f"--set {name}")
    return options


def _tokenizer(vocab_size: int, bos: int, eos: int) -> dict[str, Any]:
    """Return a byte-level tokenizer of ``vocab_size`` entries: the bytes, then made-up words that
    no text is split into but that have a text of their own."""
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    special = {bos: "<|begin|>", eos: "<|end|>"}
    texts = _byte_characters() + [f"Ġw{number}" for number in range(256, vocab_size)]
    for token_id, text in special.items():
        texts[token_id] = text
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token_id,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token_id, text in special.items()
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {text: token_id for token_id, text in enumerate(texts)},
            "merges": [],
        },
    }


def _byte_characters() -> list[str]:
    """Return the character that stands for each byte in byte-level vocabularies: a printable one
    for itself, the others one by one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
