"""A tokenizer of 131,072 entries for benchmarks: Mistral's tekken as a Hugging Face tokenizer.

    python benchmarks/tekken.py TEKKEN_JSON OUT_DIRECTORY

``TEKKEN_JSON`` is a ``tekken_*.json`` of the package mistral-common. Writes ``tokenizer.json``
(about 8 MB) and ``tokenizer_config.json``. The file lists tokens by rank; a byte-pair tokenizer
needs the pairs they were merged from, which are found by merging each token's bytes with the tokens
of lower rank.
"""

from __future__ import annotations

import argparse
import base64
import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

VOCAB_SIZE = 131_072
NUM_SPECIAL = 1_000


def write_tokenizer(tekken: Path, out: Path) -> Path:
    """Write the tokenizer and return the path of ``tokenizer.json``."""
    data = json.loads(tekken.read_text(encoding="utf-8"))
    entries = data["vocab"][: VOCAB_SIZE - NUM_SPECIAL]
    tokens = [base64.b64decode(entry["token_bytes"]) for entry in entries]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    names = _byte_names()
    spelled = ["".join(names[byte] for byte in token) for token in tokens]
    special = [entry["token_str"] for entry in data.get("special_tokens") or []]
    special = special or ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]"]
    special += [f"<SPECIAL_{i}>" for i in range(len(special), NUM_SPECIAL)]
    vocab = {name: i for i, name in enumerate(special)}
    vocab |= {name: NUM_SPECIAL + rank for rank, name in enumerate(spelled)}
    merges = []
    for token in tokens:
        if len(token) > 1:
            left, right = _last_merge(token, ranks)
            merges.append(("".join(names[b] for b in left), "".join(names[b] for b in right)))
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(data["config"]["pattern"]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special])
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    config = {"bos_token": special[1], "eos_token": special[2], "add_bos_token": True}
    (out / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return out / "tokenizer.json"


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """Return the pair that a token is made of when lower ranks merge first."""
    limit = ranks[token]
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        best = min(
            range(len(parts) - 1),
            key=lambda i: _rank(ranks, parts[i] + parts[i + 1], limit),
        )
        if _rank(ranks, parts[best] + parts[best + 1], limit) >= limit:
            break
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], b"".join(parts[1:])


def _rank(ranks: dict[bytes, int], token: bytes, limit: int) -> int:
    rank = ranks.get(token, limit)
    return min(rank, limit)


def _byte_names() -> list[str]:
    """Return the printable character that stands for each byte in byte-level tokenizers."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names, spare = {}, 256
    for byte in range(256):
        if byte in kept:
            names[byte] = chr(byte)
        else:
            names[byte] = chr(spare)
            spare += 1
    return [names[byte] for byte in range(256)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tekken", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    written = write_tokenizer(arguments.tekken, arguments.out)
    print(f"{written}: {written.stat().st_size / 1e6:.1f} MB")
