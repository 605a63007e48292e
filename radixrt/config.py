"""What the runtime is started with."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from radixrt.elsewhere import option_hint
from radixrt.errors import ConfigError
from radixrt.settings import did_you_mean

DEFAULT_MODEL = Path(__file__).parent / "models" / "nano"
"""The model that ships."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """Options of a runtime. Frozen: ``resolve`` returns a new one with everything derived."""

    model: Path | None = None
    """Directory in Hugging Face format; None is the model that ships."""

    endpoint: str = ""
    """Where clients connect (``ipc://…``, ``tcp://…``); empty: the server chooses an ipc path."""

    memory: str = "auto"
    """One budget for weights, working memory and KV: ``auto``, ``80%`` or ``4GiB``."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of weights and KV; ``auto`` is the checkpoint's."""

    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``; ``auto`` prefers a GPU."""

    page_size: int = 16
    """Tokens a KV page holds."""

    max_running: int = 0
    """Requests that are computed at the same time; 0 derives it: 256 on a CPU, 512 to 4096 on a GPU
    by its memory."""

    max_step_tokens: int = 0
    """New tokens of one step (the chunk budget); 0 derives it: 512 on a CPU, 8192 on a GPU."""

    mixed_step_tokens: int = 0
    """New tokens of a step in which requests decode, theirs included; prompts get an eighth of it
    at least, and a token for every four that decode. 0 derives it: 512 on a GPU, on a CPU as many
    as ``max_step_tokens``."""

    context_length: int = 0
    """Longest prompt plus generation; 0 is the model's."""

    load_format: Literal["auto", "dummy"] = "auto"
    """``dummy`` fills the weights with random numbers."""

    attention: str = "auto"
    """Attention backend by name."""

    ops: str = "auto"
    """Provider of the element-wise and linear operations by name."""

    cache: bool = True
    """False turns off every reuse of KV between requests, for comparisons."""

    eviction: Literal["learned", "lru"] = "learned"
    """What is evicted first: what is least worth keeping, by what was learned of reuse and what
    programs tell, or what was used least recently."""

    host_memory: str = "auto"
    """Memory for pages that the device has no room for: a size like ``4GiB``, ``0`` for none;
    ``auto`` is 4 GiB or an eighth of the available memory beside a GPU. On a CPU, where the pages
    are in the host's memory already, it is 256 MiB with a disk or a remote store and 0 without."""

    disk: Path | None = None
    """Directory that keeps pages over restarts; None keeps none."""

    disk_quota: str = "16GiB"
    """Most bytes of the directory; the pages used least recently go first."""

    remote: str = ""
    """URL of a Redis or Valkey server that keeps pages for several runtimes; empty for none."""

    store_on: Literal["twice", "once", "keep"] = "twice"
    """What goes to disk and the remote store: prefixes when they are seen a second time, everything
    at once, or only what programs ask for."""

    fetch_deadline_s: float = 5.0
    """Longest time that a request waits for pages from disk or the remote store."""

    overlap: int = -1
    """Steps in flight while the next one is prepared: 0 or 1; -1 derives it: 0 on a CPU, else 1."""

    graphs: bool = True
    """On a GPU: record decode steps once and replay them, which saves the host's launches."""

    lease_bias_s: float = 60.0
    """For how many seconds of disuse an idle branch's pages are kept before those of nobody."""

    kv_events: str = ""
    """Where routers subscribe to what the cache stores and gives up (``tcp://127.0.0.1:5557``,
    ``ipc://…``), in vLLM's form; empty for nowhere. Events show the tokens of prompts."""

    kv_events_replay: str = ""
    """Where a subscriber asks for batches of events that it has missed; empty for nowhere."""

    kv_events_topic: str = ""
    """Topic of the events."""

    seed: int = 0
    """Seed of dummy weights."""

    log_format: Literal["text", "json"] = "text"
    """Form of log lines."""

    max_clients: int = 256
    """Clients connected at the same time."""

    max_calls_per_client: int = 4096
    """Unfinished calls of one client."""

    max_queue: int = 16384
    """Unfinished calls of all clients that wait to be computed; more are refused as overloaded."""

    drain_s: float = 10.0
    """How long running calls may finish after a shutdown was asked for."""

    @classmethod
    def of(cls, **options: Any) -> RuntimeConfig:
        """Return a config from keyword options; ``ConfigError`` for one that does not exist."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(options.keys() - known)
        if unknown:
            other = option_hint(unknown[0])
            hint = f"; {other}" if other else did_you_mean(unknown[0], known)
            raise ConfigError(
                f"unknown option {', '.join(unknown)}{hint}; known: {', '.join(sorted(known))}"
            )
        return cls(**options)

    @property
    def model_path(self) -> Path:
        """The model's directory."""
        return DEFAULT_MODEL if self.model is None else Path(self.model)

    def resolve(
        self, *, device: str | None = None, memory_bytes: int | None = None
    ) -> RuntimeConfig:
        """Return a checked config with everything derived that is known here.

        ``device`` is what "auto" stands for and ``memory_bytes`` the memory it has; without them,
        what depends on the device stays open for the engine process to derive. ``context_length`` 0
        stays until the model is known. Raises ``ConfigError``.
        """
        name = device if device is not None and self.device == "auto" else self.device
        derived: dict[str, Any] = {}
        if name == "cpu" or (name != "auto" and memory_bytes is not None):
            derived = self._derive(name.startswith("cuda"), memory_bytes or 0)
        resolved = replace(
            self,
            model=self.model_path.expanduser().absolute(),
            disk=None if self.disk is None else Path(self.disk).expanduser().absolute(),
            device=name,
            **derived,
        )
        resolved._check()
        return resolved

    def _derive(self, is_gpu: bool, memory_bytes: int) -> dict[str, int]:
        max_running = self.max_running
        if not max_running:
            sizes = [(96 << 30, 4096), (64 << 30, 2048), (32 << 30, 1024), (0, 512)]
            by_memory = next(count for least, count in sizes if memory_bytes >= least)
            max_running = by_memory if is_gpu else 256
        least = max_running + self.page_size
        max_step_tokens = self.max_step_tokens or max(least, 8192 if is_gpu else 512)
        return {
            "max_running": max_running,
            "max_step_tokens": max_step_tokens,
            "mixed_step_tokens": self.mixed_step_tokens or (512 if is_gpu else max_step_tokens),
            "overlap": int(is_gpu) if self.overlap == -1 else self.overlap,
        }

    def _check(self) -> None:
        for name in (
            "page_size",
            "max_queue",
            "max_clients",
            "max_calls_per_client",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("max_running", "mixed_step_tokens"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)}: 0 derives it, or at least 1")
        least = self.max_running + self.page_size
        if self.max_running and self.max_step_tokens and self.max_step_tokens < least:
            raise ConfigError(
                f"max_step_tokens={self.max_step_tokens} is below max_running={self.max_running} + "
                f"page_size={self.page_size}: every running request takes a token of a step and a "
                f"prompt a page; raise max_step_tokens to {least} or lower max_running"
            )
        if self.eviction not in ("learned", "lru"):
            raise ConfigError(f"eviction={self.eviction!r}: use learned or lru")
        if self.store_on not in ("twice", "once", "keep"):
            raise ConfigError(f"store_on={self.store_on}: use twice, once or keep")
        if self.overlap not in (-1, 0, 1):
            raise ConfigError(f"overlap={self.overlap}: 0 or 1 steps can be in flight")
        if self.context_length < 0:
            raise ConfigError(
                f"context_length={self.context_length}: 0 is the model's, or a length"
            )
        if self.host_memory != "auto":
            parse_size("host_memory", self.host_memory)
        parse_size("disk_quota", self.disk_quota)
        if (self.disk or self.remote) and self.host_memory.strip() == "0":
            raise ConfigError(
                "host_memory=0 with a disk or a remote store: pages pass through the host's "
                "memory on their way; leave it at auto or give a size"
            )
        if self.remote and not self.remote.startswith(("redis://", "rediss://", "unix://")):
            raise ConfigError(f"remote={self.remote}: use redis://, rediss:// or unix://")
        if not self.kv_events and (self.kv_events_replay or self.kv_events_topic):
            raise ConfigError(
                "kv_events_replay and kv_events_topic belong to kv_events; give that endpoint too"
            )
        if self.fetch_deadline_s <= 0:
            raise ConfigError(f"fetch_deadline_s={self.fetch_deadline_s}: give seconds above 0")
        if self.drain_s < 0 or self.lease_bias_s < 0:
            raise ConfigError(
                f"drain_s={self.drain_s}, lease_bias_s={self.lease_bias_s}: give 0 or more seconds"
            )
        parse_memory(self.memory, total_bytes=1 << 40)


_UNITS = {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40, "b": 1}
_UNITS |= {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


def parse_size(option: str, text: str) -> int:
    """Return the bytes that "0", "512MiB" or "4GiB" mean; ``ConfigError`` for anything else."""
    if text.strip() == "0":
        return 0
    try:
        size = parse_memory(text, total_bytes=0)
    except ConfigError:
        size = None
    if size is None:
        raise ConfigError(f"{option}={text!r}: use a size like '4GiB', or '0'")
    return size


def parse_memory(memory: str, *, total_bytes: int) -> int | None:
    """Return the bytes that ``auto`` (None), ``80%`` or ``4GiB`` mean on a device with
    ``total_bytes``; ``ConfigError`` for anything else."""
    text = memory.strip().lower()
    if text == "auto":
        return None
    try:
        if text.endswith("%"):
            share = float(text[:-1]) / 100
            if 0 < share <= 1:
                return int(total_bytes * share)
        else:
            unit = next((u for u in sorted(_UNITS, key=len, reverse=True) if text.endswith(u)), "")
            num_bytes = int(float(text[: len(text) - len(unit)]) * _UNITS.get(unit, 1))
            if num_bytes > 0:
                return num_bytes
    except (ValueError, OverflowError):
        pass
    raise ConfigError(f"memory={memory!r}: use 'auto', a share like '80%' or a size like '4GiB'")
