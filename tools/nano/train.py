"""Trains nano from nothing; every batch is generated on the fly from its own seed.

python -m tools.nano.train OUT_FOLDER --tokenizer radixrt/models/nano
"""

from __future__ import annotations

import argparse
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from tools.nano.corpus import WEIGHT_SHIFT, packed_batch
from tools.nano.document import LOSS_WEIGHTS
from tools.nano.encoder import Encoder
from tools.nano.export import write_model_files
from tools.nano.model import Llama, ModelConfig
from tools.nano.muon import Muon

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class Batches(Dataset[Tensor]):
    """Batch i, made by a worker from seed + i: the same whatever the number of workers."""

    def __init__(self, tokenizer: Path, seed: int, count: int, rows: int, length: int) -> None:
        self._tokenizer, self._seed, self._count = tokenizer, seed, count
        self._shape = (rows, length + 1)
        self._encoder: Encoder | None = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tensor:
        if self._encoder is None:
            self._encoder = Encoder.load(self._tokenizer)
        batch = packed_batch(self._encoder, self._seed + index, *self._shape)
        return torch.from_numpy(batch.astype(np.int32))


def weighted_loss(model: torch.nn.Module, batch: Tensor, weights: Tensor) -> Tensor:
    """Mean cross entropy over a batch of packed elements [B, T+1], each token by its weight."""
    ids = batch & ((1 << WEIGHT_SHIFT) - 1)
    weight = weights[batch[:, 1:] >> WEIGHT_SHIFT]
    logits = model(ids[:, :-1])
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1), ids[:, 1:].flatten().long(), reduction="none"
    )
    return (losses * weight.flatten()).sum() / weight.sum()


def learning_rate(progress: float, step: int, warmup: int = 150, decay_from: float = 0.6) -> float:
    """Factor of the peak rate: warm-up, plateau, linear decay to zero."""
    return min(1.0, (step + 1) / warmup, max(0.0, (1 - progress) / (1 - decay_from)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, default=Path("radixrt/models/nano"))
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--seconds", type=float, default=1e9, help="end the decay by then")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--seed", type=int, default=20_261_123)
    parser.add_argument("--matrix-lr", type=float, default=4e-3)
    parser.add_argument("--embedding-lr", type=float, default=3e-3)
    parser.add_argument("--layers", type=int, default=ModelConfig.num_layers)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()

    start = time.monotonic()
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    model = Llama(ModelConfig(num_layers=args.layers)).to(args.device)
    count = sum(p.numel() for p in model.parameters())
    print(f"{count:,} parameters, {asdict(model.config)}", flush=True)
    matrices = [p for name, p in model.named_parameters() if "proj" in name]
    others = [p for name, p in model.named_parameters() if "proj" not in name]
    optimizers: list[tuple[torch.optim.Optimizer, float]] = [
        (Muon(matrices, args.matrix_lr), args.matrix_lr),
        (
            torch.optim.AdamW(others, args.embedding_lr, betas=(0.9, 0.95), weight_decay=0.0),
            args.embedding_lr,
        ),
    ]
    weights = torch.tensor(LOSS_WEIGHTS, device=args.device)
    batches = Batches(args.tokenizer, args.seed, args.steps, args.rows, args.length)
    loader = DataLoader(
        batches,
        batch_size=None,
        num_workers=args.workers,
        prefetch_factor=16 if args.workers else None,
        pin_memory=args.device == "cuda",
    )
    loss_of = weighted_loss if args.no_compile else torch.compile(weighted_loss)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (args.out / name).resolve() != (args.tokenizer / name).resolve():
            shutil.copy(args.tokenizer / name, args.out / name)

    mean_loss = torch.zeros((), device=args.device)
    for step, batch in enumerate(loader):
        progress = max(step / args.steps, (time.monotonic() - start) / args.seconds)
        if progress >= 1:
            break
        factor = learning_rate(progress, step)
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
        with torch.autocast(args.device, torch.bfloat16):
            loss = loss_of(model, batch.to(args.device, non_blocking=True), weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        mean_loss += (loss.detach() - mean_loss) / min(step + 1, 50)
        if step % 100 == 99 or step < 3:
            elapsed = time.monotonic() - start
            tokens = (step + 1) * args.rows * args.length
            print(
                f"step {step + 1} loss {mean_loss.item():.4f} rate {factor:.3f} "
                f"{tokens / 1e6:.1f}M tokens {elapsed:.0f} s {tokens / elapsed / 1e6:.2f}M tok/s",
                flush=True,
            )
        if step % 1000 == 999:
            write_model_files(model, args.out)
    write_model_files(model, args.out)
    print(f"done after {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
