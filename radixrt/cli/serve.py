"""``radixrt serve``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from radixrt.cli.reporting import reporting

if TYPE_CHECKING:
    from radixrt.runtime.endpoints import ServerCurve


def register(application: Any) -> None:
    """Add the command to the command line."""
    application.command()(serve)


def serve(
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="[MODEL_DIR]",
            help="Directory in Hugging Face format; without it the model that ships.",
        ),
    ] = None,
    endpoint: Annotated[
        str, typer.Option(help="Where clients connect: ipc://PATH or tcp://HOST:PORT.")
    ] = "",
    memory: Annotated[
        str, typer.Option(help="Budget for weights, work and KV: auto, 80% or 4GiB.")
    ] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    page_size: Annotated[int, typer.Option(help="Tokens a KV page holds.")] = 16,
    max_running: Annotated[
        int, typer.Option(help="Requests computed at the same time; 0 chooses by device.")
    ] = 0,
    mixed_step_tokens: Annotated[
        int, typer.Option(help="New tokens of a step beside decoding; 0 chooses by device.")
    ] = 0,
    max_step_tokens: Annotated[
        int, typer.Option(help="New tokens of one step; 0 chooses by device.")
    ] = 0,
    context_length: Annotated[
        int, typer.Option(help="Longest prompt plus generation; 0 is the model's.")
    ] = 0,
    load_format: Annotated[str, typer.Option(help="auto, or dummy for random weights.")] = "auto",
    attention: Annotated[str, typer.Option(help="Attention backend.")] = "auto",
    ops: Annotated[str, typer.Option(help="Provider of the other operations.")] = "auto",
    cache: Annotated[bool, typer.Option(help="Reuse KV between requests.")] = True,
    eviction: Annotated[
        str, typer.Option(help="What goes first: learned (worth least) or lru.")
    ] = "learned",
    host_memory: Annotated[
        str, typer.Option(help="Memory for pages the device has no room for: auto, 0 or 4GiB.")
    ] = "auto",
    disk: Annotated[
        Path | None, typer.Option(help="Directory that keeps pages over restarts.")
    ] = None,
    disk_quota: Annotated[str, typer.Option(help="Most bytes of the directory.")] = "16GiB",
    remote: Annotated[
        str, typer.Option(help="URL of a Redis server that shares pages between runtimes.")
    ] = "",
    store_on: Annotated[
        str, typer.Option(help="Store prefixes seen twice, once, or only what programs keep.")
    ] = "twice",
    fetch_deadline_s: Annotated[
        float, typer.Option(help="Seconds a request waits for stored pages at most.")
    ] = 5.0,
    overlap: Annotated[
        int, typer.Option(help="Steps in flight during preparation: 0 or 1; -1 chooses.")
    ] = -1,
    graphs: Annotated[
        bool, typer.Option(help="Replay decode steps as recorded graphs (GPU).")
    ] = True,
    lease_bias_s: Annotated[
        float, typer.Option(help="Seconds an idle branch's pages are preferred.")
    ] = 60.0,
    seed: Annotated[int, typer.Option(help="Seed of random weights.")] = 0,
    log_format: Annotated[str, typer.Option(help="text or json.")] = "text",
    max_clients: Annotated[int, typer.Option(help="Clients connected at once.")] = 256,
    max_calls_per_client: Annotated[
        int, typer.Option(help="Unanswered calls of one client.")
    ] = 4096,
    max_queue: Annotated[int, typer.Option(help="Unanswered calls of all clients.")] = 16384,
    drain_s: Annotated[
        float, typer.Option(help="Seconds running calls may take after SIGTERM.")
    ] = 10.0,
    ready_file: Annotated[
        Path | None, typer.Option(help="File that gets the endpoint when clients can connect.")
    ] = None,
    curve_secret: Annotated[
        Path | None, typer.Option(help="Certificate with the server's secret key (tcp).")
    ] = None,
    allow: Annotated[
        Path | None, typer.Option(help="File with the public keys of clients, one a line (tcp).")
    ] = None,
) -> None:
    """Serve a model to clients over ZeroMQ."""
    options = dict(locals())
    for name in ("ready_file", "curve_secret", "allow"):
        del options[name]
    from radixrt.config import RuntimeConfig

    with reporting():
        config = RuntimeConfig.of(**options)
        config.resolve()  # says what is wrong before anything is loaded
        curve = _curve(curve_secret, allow)
        from radixrt.runtime.server import Server

        Server(config, curve=curve, ready_file=ready_file).run()


def _curve(secret: Path | None, allow: Path | None) -> ServerCurve | None:
    from radixrt.errors import ConfigError

    if secret is None and allow is None:
        return None
    if secret is None or allow is None:
        raise ConfigError("--curve-secret and --allow belong together; give both")
    from radixrt.runtime.endpoints import ServerCurve

    return ServerCurve(secret, allow)
