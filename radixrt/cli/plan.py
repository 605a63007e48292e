"""``radixrt plan``."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from radixrt.cli.options import config_of, with_settings
from radixrt.cli.reporting import reporting
from radixrt.settings import Given

if TYPE_CHECKING:
    from radixrt.config import RuntimeConfig
    from radixrt.runtime.engine.forecast import Forecast, Machine
    from radixrt.runtime.model.config import ModelConfig

MODEL_HELP = (
    "Directory in Hugging Face format (its config.json is enough), or a shape: llama-3.1-8b, "
    "qwen2.5-0.5b; without it the model that ships."
)

GPU_SETTINGS = ("auto", "70%", "80%", "95%")
CPU_SETTINGS = ("auto", "25%", "50%", "75%")
"""Memory settings that are shown when none is asked for."""

Row = dict[str, Any]


def register(application: Any) -> None:
    """Add the command to the command line."""
    from radixrt.cli.serve_options import ServeOptions
    from radixrt.config import RuntimeConfig

    command = with_settings(plan, RuntimeConfig, ServeOptions, model_help=MODEL_HELP)
    application.command()(command)


def plan(
    given: dict[str, Given],
    context: Annotated[
        list[int] | None,
        typer.Option(help="Tokens of a request, prompt and answer; several for several columns."),
    ] = None,
    device_memory: Annotated[
        str, typer.Option(help="Plan for a device with so much memory, such as 80GiB.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a server with these options would have room for, without loading weights.

    It takes the options of serve. Without --memory it compares some settings. The exit status is 1
    when nothing fits.
    """
    with reporting():
        from radixrt.config import RuntimeConfig, parse_size
        from radixrt.errors import ConfigError
        from radixrt.runtime.engine.forecast import machine_here, machine_with, smaller

        config: RuntimeConfig = config_of(RuntimeConfig, given)
        if config.device.startswith("cuda") and device_memory:
            # No such device need be here.
            config = dataclasses.replace(config, device="auto")
        model = _model(config)
        if device_memory:
            num_bytes = parse_size("device_memory", device_memory)
            if not num_bytes:
                raise ConfigError("device_memory=0: give a size such as 80GiB")
            machine = machine_with(num_bytes, config)
        else:
            machine = machine_here(config)
        contexts = _contexts(context, config.context_length or model.context_length)
        is_asked = given["memory"].source != "default"
        choices = GPU_SETTINGS if machine.is_gpu else CPU_SETTINGS
        rows = [
            _row(dataclasses.replace(config, memory=memory), model, machine, contexts)
            for memory in ((config.memory,) if is_asked else choices)
        ]
        fits = any(row["forecast"] for row in rows)
        way_out = {} if fits else smaller(config, model, machine)
        if as_json:
            print(json.dumps(_as_json(model, machine, rows, way_out), indent=1))
        else:
            _show(config, model, machine, rows, contexts, way_out)
    if not fits:
        raise typer.Exit(1)


def _model(config: RuntimeConfig) -> ModelConfig:
    from radixrt.bench.models import SHAPES
    from radixrt.errors import ConfigError
    from radixrt.runtime.model.config import parse_config, read_config
    from radixrt.settings import did_you_mean

    name = str(config.model)
    if config.model_path.is_dir():
        return read_config(config.model_path)
    if name in SHAPES:
        return parse_config(SHAPES[name])
    raise ConfigError(
        f"model={name}: no such directory, and no shape of that name"
        f"{did_you_mean(name, SHAPES)}; shapes: {', '.join(SHAPES)}"
    )


def _contexts(asked: list[int] | None, longest: int) -> list[int]:
    from radixrt.errors import ConfigError

    for context in asked or ():
        if not 1 <= context <= longest:
            raise ConfigError(f"context={context}: the model's longest is {longest}")
    return asked or sorted({longest, min(longest, 2048), min(longest, 512)}, reverse=True)


def _row(config: RuntimeConfig, model: ModelConfig, machine: Machine, contexts: list[int]) -> Row:
    """Return what one memory setting gives, or why it gives nothing."""
    from radixrt.errors import ConfigError
    from radixrt.runtime.engine.forecast import forecast

    row: Row = {"memory": config.memory, "forecast": None, "problem": "", "requests": {}}
    try:
        found = row["forecast"] = forecast(config, model, machine)
    except ConfigError as error:
        row["problem"] = str(error)
    else:
        row["requests"] = {context: found.num_requests(context) for context in contexts}
    return row


def _show(
    config: RuntimeConfig,
    model: ModelConfig,
    machine: Machine,
    rows: list[Row],
    contexts: list[int],
    way_out: dict[str, object],
) -> None:
    found: Forecast | None = next((row["forecast"] for row in rows if row["forecast"]), None)
    print(f"model     {config.model or config.model_path.name}: {model.architecture}", end="")
    print(f", {model.num_layers} layers, context {model.context_length:,}")
    print(f"device    {machine.name}")
    if found is None:
        print(f"It does not fit: {rows[0]['problem']}")
        print(_advice(way_out))
        return
    memory, resolved = found.memory, found.config
    print(f"weights   {_size(memory.weights)} in {str(found.dtype).removeprefix('torch.')}")
    print(
        f"step      {_size(memory.step)} for {resolved.max_step_tokens:,} new tokens and "
        f"{resolved.max_running:,} requests at once (estimated; measured at the start)"
    )
    if memory.other:
        print(f"other     {_size(memory.other)} for the driver and libraries (estimated)")
    per_token = found.page_bytes // resolved.page_size
    print(f"KV        {_size(per_token)} a token, pages of {resolved.page_size} tokens", end="")
    print(f"; {found.host_tokens:,} more tokens in host memory" if found.host_tokens else "")
    print("\nmost concurrent requests, by their tokens:\n")
    titles = [f"of {context:,}" for context in contexts]
    print(
        f"{'--memory':>9}{'budget':>12}{'KV':>12}{'KV tokens':>14}", *(f"{t:>11}" for t in titles)
    )
    for row in rows:
        forecast = row["forecast"]
        if forecast is None:
            print(f"{row['memory']:>9}  does not fit")
            continue
        plan = forecast.memory
        counts = (f"{row['requests'][context]:>11,}" for context in contexts)
        print(
            f"{row['memory']:>9}{_size(plan.budget):>12}{_size(plan.kv):>12}{plan.kv_tokens:>14,}",
            *counts,
        )


def _advice(way_out: dict[str, object]) -> str:
    if not way_out:
        return "No option makes it fit here: use a device with more memory or a smaller model."
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in way_out.items())
    return f"It fits with: {flags}"


def _as_json(
    model: ModelConfig, machine: Machine, rows: list[Row], way_out: dict[str, object]
) -> dict[str, Any]:
    settings = []
    for row in rows:
        found: Forecast | None = row["forecast"]
        settings.append(
            {
                "memory": row["memory"],
                "fits": found is not None,
                "problem": row["problem"],
                "requests": row["requests"],
                "plan": None if found is None else dataclasses.asdict(found.memory),
                "kv_tokens": None if found is None else found.memory.kv_tokens,
                "host_tokens": None if found is None else found.host_tokens,
            }
        )
    return {
        "architecture": model.architecture,
        "device": machine.name,
        "device_bytes": machine.memory.total,
        "settings": settings,
        "fits_with": way_out,
    }


def _size(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}"
        size /= 1024
    return f"{size:,.2f} GiB"
