"""Where a model's tensors come from: safetensors files mapped into memory, or made up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from radixrt.errors import ModelError, WeightsMismatch
from radixrt.runtime.device import HostStream
from radixrt.runtime.model.config import ModelConfig

Shapes = Mapping[str, tuple[int, ...]]

INDEX = "model.safetensors.index.json"
SAMPLE_BYTES = 4096
MAX_LISTED = 20


class WeightSource(Protocol):
    """Tensors by the checkpoint's names, whose shapes are in ``shapes``."""

    @property
    def shapes(self) -> Shapes: ...

    def read(self, name: str) -> torch.Tensor:
        """Return the tensor; the caller must not write to it."""
        ...

    def copy(self, name: str, out: torch.Tensor) -> None:
        """Write the tensor to ``out``, of its shape, converted to the dtype there."""
        ...


class Checkpoint:
    """The safetensors of a model directory, single or sharded.

    Tensors are views of the mapped files: nothing is read before it is used, and what is not copied
    stays the page cache's. Raises ``ModelError`` when a file is missing or damaged.
    """

    def __init__(self, path: Path, *, multimodal: bool = False) -> None:
        self._files: dict[str, Any] = {}
        self._stream: HostStream | None = None
        self._stored: dict[str, tuple[str, str]] = {}  # name → (file, its name in there)
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in checkpoint_files(path):
            try:
                opened: Any = safe_open(file, framework="pt", device="cpu")
            except (OSError, SafetensorError) as error:
                raise ModelError(f"{file} cannot be read: {error}") from error
            self._files[file.name] = opened
            for stored in opened.keys():  # noqa: SIM118 (not a mapping)
                name = text_name(stored) if multimodal else stored
                if name is None or name.endswith(".rotary_emb.inv_freq"):
                    continue
                self._stored[name] = (file.name, stored)
                self.shapes[name] = tuple(opened.get_slice(stored).get_shape())

    def read(self, name: str) -> torch.Tensor:
        """See ``WeightSource.read``."""
        file, stored = self._stored[name]
        tensor: torch.Tensor = self._files[file].get_tensor(stored)
        return tensor

    def copy(self, name: str, out: torch.Tensor) -> None:
        """See ``WeightSource.copy``."""
        stored = self.read(name)
        if out.device.type == "cpu" or stored.dtype != out.dtype:
            out.copy_(stored)
            return
        if self._stream is None:
            self._stream = HostStream()
        self._stream.copy(stored, out)


class DummyWeights:
    """Made-up tensors, the same for the same seed: norms at identity, others small and random.

    All are cut out of one random block, so that making them costs a copy and no more.
    """

    def __init__(
        self,
        shapes: Shapes,
        seed: int,
        *,
        norm: float,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        block = torch.randn((1 << 20) + 7, generator=generator) * 0.02
        self._block = block.to(device, dtype)
        self.shapes = shapes
        self._norm = norm

    def read(self, name: str) -> torch.Tensor:
        """See ``WeightSource.read``."""
        out = torch.empty(self.shapes[name], dtype=self._block.dtype, device=self._block.device)
        self.copy(name, out)
        return out

    def copy(self, name: str, out: torch.Tensor) -> None:
        """See ``WeightSource.copy``; ``out`` is contiguous."""
        if name.endswith("norm.weight"):
            out.fill_(self._norm)
            return
        flat = out.view(-1)
        size = self._block.numel()
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        start = int.from_bytes(digest, "little") % size
        rolled = self._block.roll(-start)
        whole = flat.numel() // size * size
        flat[:whole].view(-1, size).copy_(rolled)
        flat[whole:].copy_(rolled[: flat.numel() - whole])


def checkpoint_files(path: Path) -> list[Path]:
    """Return the safetensors files of a model directory; raises ``ModelError`` when one is missing
    or there is none."""
    index = path / INDEX
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index} is not an index of safetensors files: {error}") from error
        # A shard is a name, never a path that leads out of the directory.
        files = [path / Path(str(name)).name for name in names]
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise ModelError(f"{path} lacks files that {INDEX} names: {', '.join(missing)}")
        return files
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"{path} has no *.safetensors file; convert the checkpoint to safetensors, or try "
            "load_format=dummy for made-up weights"
        )
    single = path / "model.safetensors"
    return [single] if single in files else files


def check_names(expected: Shapes, found: Shapes, *, tied_head: bool) -> None:
    """Raise ``WeightsMismatch`` with the names of missing, left-over and wrongly shaped tensors."""
    optional = {"lm_head.weight"} if tied_head else set()
    missing = sorted(expected.keys() - found.keys())
    left_over = sorted(found.keys() - expected.keys() - optional)
    misshaped = [
        f"{name} is {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    problems = [
        f"{kind}: {_listing(names)}"
        for kind, names in (
            ("missing", missing),
            ("left over", left_over),
            ("wrongly shaped", misshaped),
        )
        if names
    ]
    if problems:
        raise WeightsMismatch("the weights do not fit config.json; " + "; ".join(problems))


def text_name(stored: str) -> str | None:
    """Return the text model's name for a tensor of a multimodal checkpoint, None if it has none."""
    for prefix, replacement in (
        ("language_model.model.", "model."),
        ("language_model.lm_head.", "lm_head."),
        ("model.language_model.", "model."),
        ("lm_head.", "lm_head."),
    ):
        if stored.startswith(prefix):
            return replacement + stored[len(prefix) :]
    return None


def fingerprint(path: Path, config: ModelConfig | None = None) -> str:
    """Return a hex digest that tells checkpoints apart: it covers the names, shapes and dtypes of
    all tensors and the first 4 KiB of each. Costs a page read a tensor."""
    digest = hashlib.blake2b(repr(config).encode() if config else b"", digest_size=16)
    for file in checkpoint_files(path):
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = stream.read(size)
            digest.update(header)
            try:
                entries = json.loads(header)
            except ValueError as error:
                raise ModelError(f"{file} cannot be read: {error}") from error
            for name in sorted(entries.keys() - {"__metadata__"}):
                begin, end = entries[name]["data_offsets"]
                stream.seek(8 + size + begin)
                digest.update(stream.read(min(SAMPLE_BYTES, end - begin)))
    return digest.hexdigest()


def _listing(names: list[str]) -> str:
    more = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
