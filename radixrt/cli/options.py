"""Commands whose options are the fields of configs."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from radixrt.cli.reporting import reporting
from radixrt.settings import DEFAULT, Given, Setting, effective, settings_of, unknown_variables

ARGUMENT = "model"
"""The setting that is the command's argument rather than an option."""

CONFIG_VARIABLE = "RADIXRT_CONFIG"

OTHER_VARIABLES = ("RADIXRT_API_KEY", "RADIXRT_ADMIN_KEY", "RADIXRT_TRACE", CONFIG_VARIABLE)
"""Variables of ours that are no settings: keys, which are never shown, and files' names."""


def with_settings(
    run: Callable[..., None],
    *configs: type,
    flags_only: type | None = None,
    model_help: str = "",
) -> Callable[..., None]:
    """Return a typer command that hands ``run`` the values of all fields of ``configs``.

    ``run`` gets ``given``, a ``Given`` for each field by its name, and by keyword what else its
    signature declares, which becomes options as typer makes them. ``--config`` names a TOML file.
    Fields of ``flags_only`` have a flag, and neither a variable nor a key of the file.
    """
    settings = settings_of(*configs)
    flag_settings = settings_of(flags_only) if flags_only is not None else {}
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(run, eval_str=True).parameters.values()
        if parameter.name != "given"
    ]
    model = Annotated[str | None, typer.Argument(metavar="[MODEL]", help=model_help)]
    parameters = [
        *([_parameter(ARGUMENT, model)] if ARGUMENT in settings else []),
        *own,
        *(_option(setting) for setting in flag_settings.values()),
        _parameter("config", Annotated[Path | None, typer.Option(help=_config_help(settings))]),
        *(_option(setting) for name, setting in settings.items() if name != ARGUMENT),
    ]

    def command(**flags: Any) -> None:
        others = {parameter.name: flags.pop(parameter.name) for parameter in own}
        given = {}
        for name, setting in flag_settings.items():
            value = _flag_value(setting, flags.pop(name))
            given[name] = (
                Given(setting.default, DEFAULT) if value is None else Given(value, setting.flag)
            )
        with reporting():
            given |= _given(settings, flags)
        run(given=given, **others)

    command.__doc__ = run.__doc__
    command.__name__ = run.__name__
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def config_of(config: type[Any], given: Mapping[str, Given]) -> Any:
    """Return a config with the given values of its fields."""
    return config(**{name: given[name].value for name in settings_of(config)})


def _config_help(settings: Mapping[str, Setting]) -> str:
    has_pages = "page_size" in settings
    setting = settings["page_size" if has_pages else "endpoint"]
    value, text = ("16", "16") if has_pages else ("ipc://PATH", '"ipc://PATH"')
    return (
        f"TOML file with the options that follow here: {setting.name} = {text} for {setting.flag} "
        f"{value}. Each of them can also be set by a variable: {setting.variable}={value}. Flags "
        f"come before variables, those before the file. [variable: {CONFIG_VARIABLE}]"
    )


def _every_setting() -> dict[str, Setting]:
    """The settings of all commands: one file, and one environment, may serve them all."""
    from radixrt.cli.client_options import ClientOptions
    from radixrt.cli.serve_options import ServeOptions
    from radixrt.config import RuntimeConfig

    return settings_of(RuntimeConfig, ServeOptions, ClientOptions)


def _given(settings: Mapping[str, Setting], flags: dict[str, Any]) -> dict[str, Given]:
    every = _every_setting()
    for line in unknown_variables(every, os.environ, *OTHER_VARIABLES):
        print(f"radixrt: {line}", file=sys.stderr)
    named = os.environ.get(CONFIG_VARIABLE)
    file = flags.pop("config") or (Path(named) if named else None)
    if flags.get(ARGUMENT) is not None:
        flags[ARGUMENT] = Path(flags[ARGUMENT])
    for name, value in flags.items():
        flags[name] = _flag_value(settings[name], value)
    given = effective(
        settings, flags=flags, environment=os.environ, file=file, elsewhere=every.keys()
    )
    if ARGUMENT in settings and given[ARGUMENT].source == settings[ARGUMENT].flag:
        given[ARGUMENT] = Given(given[ARGUMENT].value, "argument")
    return given


def _flag_value(setting: Setting, value: Any) -> Any:
    """Return what the command line set; None for nothing, as typer has an empty list for it."""
    if setting.type is tuple:
        return tuple(value) if value else None
    return value


def _option(setting: Setting) -> inspect.Parameter:
    kind = setting.type
    if kind is tuple:
        kind = list[str]
    elif setting.choices:
        kind = Literal[setting.choices]
    flag = f"{setting.flag}/--no-{setting.flag[2:]}" if kind is bool else setting.flag
    return _parameter(
        setting.name,
        # None: not on the command line; what it is then, environment and file have a say in.
        Annotated[
            kind | None, typer.Option(flag, help=setting.help + _shown(setting), show_default=False)
        ],
    )


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _shown(setting: Setting) -> str:
    default = setting.default
    if default in (None, "", ()):
        return ""
    if isinstance(default, bool):
        return f" [default: {'' if default else 'no-'}{setting.flag[2:]}]"
    return f" [default: {default}]"
