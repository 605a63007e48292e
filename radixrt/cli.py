"""The ``radixrt`` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

try:
    import typer
except ImportError:  # the client alone has no command line
    typer = None  # type: ignore[assignment]

from radixrt.cache_commands import register

if TYPE_CHECKING:
    from radixrt.runtime.endpoints import ServerCurve


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; ``arguments`` are those of the process when None."""
    if typer is None:
        print("the radixrt command needs typer: pip install radixrt[runtime]", file=sys.stderr)
        sys.exit(1)
    _application()(args=None if arguments is None else list(arguments), prog_name="radixrt")


def _application() -> Any:
    application = typer.Typer(
        help="Language-model programs over a prefix-sharing runtime.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    application.command()(serve)
    application.command()(bench)
    application.command()(doctor)
    application.command()(keygen)
    application.command()(version)
    register(application)
    return application


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
    from radixrt.errors import RadixError

    try:
        config = RuntimeConfig.of(**options)
        config.resolve()  # says what is wrong before anything is loaded
        curve = _curve(curve_secret, allow)
        from radixrt.runtime.server import Server

        Server(config, curve=curve, ready_file=ready_file).run()
    except RadixError as error:
        print(f"radixrt: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except ImportError as error:
        print(f"radixrt: {error}; pip install radixrt[runtime]", file=sys.stderr)
        raise typer.Exit(1) from None


def bench(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Model directory, or a shape with random weights: llama-3.1-8b, qwen2.5-0.5b; "
            "without it the model that ships.",
        ),
    ] = "",
    only: Annotated[
        str,
        typer.Option(help="Comma-separated: single, batch, few_shot, multi_turn, tree."),
    ] = "",
    scale: Annotated[float, typer.Option(help="Factor that shortens every length.")] = 1.0,
    seeds: Annotated[
        str, typer.Option(help="Comma-separated; the better of these runs counts.")
    ] = "0,100",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="An option of the runtime; repeatable."),
    ] = None,
    engine: Annotated[bool, typer.Option(help="Measure the engine in process.")] = True,
    server: Annotated[bool, typer.Option(help="Measure through a server over ZeroMQ.")] = True,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File that gets the results.")
    ] = None,
) -> None:
    """Measure five workloads, on the engine in process and through a server."""
    from radixrt.errors import RadixError

    try:
        from radixrt.bench.command import run_bench

        run_bench(
            model,
            only=[name.strip() for name in only.split(",") if name.strip()],
            scale=scale,
            seeds=_numbers("--seeds", seeds),
            settings=settings or [],
            has_engine=engine,
            has_server=server,
            json_file=json_file,
        )
    except RadixError as error:
        print(f"radixrt: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except ImportError as error:
        print(f"radixrt: {error}; pip install radixrt[runtime]", file=sys.stderr)
        raise typer.Exit(1) from None


def doctor() -> None:
    """Say whether the runtime can run here, how well, and the one command that mends it."""
    from radixrt.doctor.command import run_doctor
    from radixrt.doctor.facts import gather

    if not run_doctor(gather(), sys.stdout):
        raise typer.Exit(1)


def keygen(
    directory: Annotated[Path, typer.Argument(help="Where the two files are written.")],
    name: Annotated[str, typer.Argument(help="Name of the key pair, such as server.")],
) -> None:
    """Make a key pair for encrypted tcp: NAME.key (public) and NAME.key_secret."""
    import zmq.auth

    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    public_file, secret_file = zmq.auth.create_certificates(directory, name)
    Path(secret_file).chmod(0o600)
    public, _ = zmq.auth.load_certificate(public_file)
    print(f"{public.decode()}  # {name}")


def version() -> None:
    """Print the version."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        print(installed("radixrt"))
    except PackageNotFoundError:
        print("not installed")


def _numbers(option: str, text: str) -> list[int]:
    from radixrt.errors import ConfigError

    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(f"{option} {text}: use whole numbers separated by commas") from None


def _curve(secret: Path | None, allow: Path | None) -> ServerCurve | None:
    from radixrt.errors import ConfigError

    if secret is None and allow is None:
        return None
    if secret is None or allow is None:
        raise ConfigError("--curve-secret and --allow belong together; give both")
    from radixrt.runtime.endpoints import ServerCurve

    return ServerCurve(secret, allow)
