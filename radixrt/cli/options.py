"""Commands whose options are the fields of configs."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from radixrt.settings import Given, Setting, effective, settings_of, unknown_variables

ARGUMENT = "model"
"""The setting that is the command's argument rather than an option."""

CONFIG_VARIABLE = "RADIXRT_CONFIG"

ELSEWHERE = ("RADIXRT_API_KEY", "RADIXRT_ADMIN_KEY", CONFIG_VARIABLE)
"""Variables of ours that are no settings: keys, which are never shown, and the file's name."""


def with_settings(run: Callable[..., None], *configs: type, model_help: str) -> Callable[..., None]:
    """Return a typer command that hands ``run`` the values of all fields of ``configs``.

    ``run`` gets ``given``, a ``Given`` for each field by its name, and by keyword what else its
    signature declares, which becomes options as typer makes them. ``--config`` names a TOML file.
    """
    settings = settings_of(*configs)
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(run, eval_str=True).parameters.values()
        if parameter.name != "given"
    ]
    parameters = [
        _parameter(
            "model", Annotated[str | None, typer.Argument(metavar="[MODEL]", help=model_help)]
        ),
        *own,
        _parameter("config", Annotated[Path | None, typer.Option(help=_CONFIG_HELP)]),
        *(_option(setting) for name, setting in settings.items() if name != ARGUMENT),
    ]

    def command(**flags: Any) -> None:
        others = {parameter.name: flags.pop(parameter.name) for parameter in own}
        run(given=_given(settings, flags), **others)

    command.__doc__ = run.__doc__
    command.__name__ = run.__name__
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def config_of(config: type[Any], given: Mapping[str, Given]) -> Any:
    """Return a config with the given values of its fields."""
    return config(**{name: given[name].value for name in settings_of(config)})


_CONFIG_HELP = (
    "TOML file with options: page_size = 16 for --page-size 16. Every option can also be set by a "
    "variable: RADIXRT_PAGE_SIZE=16. Flags come before variables, those before the file. "
    f"[variable: {CONFIG_VARIABLE}]"
)


def _given(settings: Mapping[str, Setting], flags: dict[str, Any]) -> dict[str, Given]:
    for line in unknown_variables(settings, os.environ, *ELSEWHERE):
        print(f"radixrt: {line}", file=sys.stderr)
    named = os.environ.get(CONFIG_VARIABLE)
    file = flags.pop("config") or (Path(named) if named else None)
    if flags.get(ARGUMENT) is not None:
        flags[ARGUMENT] = Path(flags[ARGUMENT])
    for name, value in flags.items():
        if settings[name].type is tuple:
            flags[name] = tuple(value) if value else None
    given = effective(settings, flags=flags, environment=os.environ, file=file)
    if given[ARGUMENT].source == settings[ARGUMENT].flag:
        given[ARGUMENT] = Given(given[ARGUMENT].value, "argument")
    return given


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
