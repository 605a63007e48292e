"""A tiny tokenizer in a model directory, trained on the spot; no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

SPECIAL = ["<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] "
    "+ '<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

TEXT = [
    "The quick brown fox jumps over the lazy dog. Stop words and stop strings: STOP, END, ###.",
    "Answer: yes. Answer: no. Question: what is the answer to the question of the fox and the dog?",
    "London Paris Berlin organ organism one two three four five six seven eight nine ten",
]

VOCAB_SIZE = 400


def byte_level_tokenizer() -> Tokenizer:
    """A byte-level BPE: every byte is a token, so characters can be split over tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    return tokenizer


def sentencepiece_like_tokenizer() -> Tokenizer:
    """As Llama 2's: a space in front of every text, spaces as ▁, bytes as <0xNN>."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    # As such files have it: the bytes are ordinary entries of the vocabulary.
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = [
        entry for entry in spec["added_tokens"] if not entry["content"].startswith("<0x")
    ]
    return Tokenizer.from_str(json.dumps(spec))


def write_model_directory(
    path: Path,
    *,
    tokenizer: Tokenizer | None = None,
    chat_template: str | None = CHAT_TEMPLATE,
    add_bos: bool | None = True,
    **config: Any,
) -> Path:
    """Write tokenizer files to ``path`` and return it."""
    path.mkdir(parents=True, exist_ok=True)
    (tokenizer or byte_level_tokenizer()).save(str(path / "tokenizer.json"))
    tokenizer_config = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", **config}
    if add_bos is not None:
        tokenizer_config["add_bos_token"] = add_bos
    if chat_template is not None:
        tokenizer_config["chat_template"] = chat_template
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config), encoding="utf-8")
    return path
