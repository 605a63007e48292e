"""Compare every family's logits and greedy tokens with transformers' on the same random weights.

    python benchmarks/parity.py [--tokens 64]

Prints one table: family, largest error of the logits relative to their largest magnitude, greedy
tokens that agree. f32, one thread, reference operations; ``--ops cpu`` compares the native ones.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from paged_runs import PagedRun
from tiny_models import FAMILIES, VOCAB_SIZE, make_tiny, save_tiny

from radixrt.runtime.attention import choose_attention
from radixrt.runtime.model.loader import load_model
from radixrt.runtime.ops import choose_ops


def main() -> int:
    """Print the table; return 1 when a family misses the bound of 1e-3 or a token."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=64, help="greedy tokens to compare")
    parser.add_argument("--prompt", type=int, default=48, help="prompt tokens")
    parser.add_argument("--ops", default="reference", help="reference, cpu or auto")
    parser.add_argument("--attention", default="reference", help="reference, cpu or auto")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cpu")
    failed = False
    print(f"{'family':<16}{'max relative logit error':>26}{'tokens equal':>16}")
    for family in FAMILIES:
        theirs = make_tiny(family)
        with tempfile.TemporaryDirectory() as folder:
            path = save_tiny(Path(folder), family)
            ops, _ = choose_ops(device, args.ops)
            model = load_model(path, device=device, dtype=torch.float32, ops=ops)
            backend, _ = choose_attention(
                args.attention, model.config.attention, 16, device, torch.float32
            )
            prompt = torch.randint(3, VOCAB_SIZE, (1, args.prompt), generator=_seeded())
            with torch.inference_mode():
                expected_tokens = greedy(theirs, prompt, args.tokens)
                whole = torch.cat((prompt, torch.tensor([expected_tokens])), dim=1)
                expected = theirs(whole).logits[0]
            run = PagedRun(model, attention=backend, max_len=args.prompt + args.tokens)
            actual = run.step({0: whole[0].tolist()}, all_logits=True)
            error = float((actual - expected).abs().max() / expected.abs().max())
            run = PagedRun(model, attention=backend, max_len=args.prompt + args.tokens)
            tokens = run.greedy(prompt[0].tolist(), args.tokens)
            equal = sum(a == b for a, b in zip(tokens, expected_tokens, strict=True))
        failed |= error > 1e-3 or equal != args.tokens
        print(f"{family:<16}{error:>26.1e}{f'{equal}/{args.tokens}':>16}", flush=True)
    return int(failed)


def greedy(model: torch.nn.Module, prompt: torch.Tensor, num_tokens: int) -> list[int]:
    """Return transformers' greedy continuation; end-of-sequence is a token like any other."""
    ids, cache, out = prompt, None, []
    for _ in range(num_tokens):
        result = model(ids, past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        ids = result.logits[:, -1:].argmax(-1)
        out.append(int(ids))
    return out


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


if __name__ == "__main__":
    sys.exit(main())
