"""Options written as flags, environment variables and TOML keys, all made of dataclass fields.

A field of a config is defined once, with its type, default and docstring. ``settings_of`` reads
them; ``effective`` says what value each has and who set it: the command line before the
environment before the file before the default.

============  =====================  ============================
field         flag                   variable and key of the file
============  =====================  ============================
``page_size`` ``--page-size 16``     ``RADIXRT_PAGE_SIZE=16``, ``page_size = 16``
``cache``     ``--no-cache``         ``RADIXRT_CACHE=false``, ``cache = false``
``allow``     ``--allow PATH``       ``RADIXRT_ALLOW=PATH``, ``allow = "PATH"`` (from the file's folder)
============  =====================  ============================
"""  # noqa: E501

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import textwrap
import tomllib
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from radixrt.errors import ConfigError

PREFIX = "RADIXRT_"
"""What the names of environment variables begin with."""

DEFAULT = "default"
"""Source of a value that nobody set."""

_WORDS = {"true": True, "yes": True, "on": True, "1": True}
_WORDS |= {"false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True, slots=True)
class Setting:
    """One option: a field of a config. ``type`` is ``str``, ``int``, ``float``, ``bool``, ``Path``,
    a ``Literal`` of strings or ``tuple`` for several strings."""

    name: str
    type: Any
    default: Any
    help: str

    @property
    def flag(self) -> str:
        """``--page-size`` for ``page_size``."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """``RADIXRT_PAGE_SIZE`` for ``page_size``."""
        return PREFIX + self.name.upper()

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that the option may be, if it is one of some words."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    def parse(self, text: str, source: str) -> Any:
        """Return the value that a text means; ``ConfigError`` names ``source`` and the way out."""
        if self.choices:
            return self._chosen(text, source)
        if self.type is bool:
            if text.strip().lower() not in _WORDS:
                raise ConfigError(f"{source}={text}: use true or false")
            return _WORDS[text.strip().lower()]
        if self.type in (int, float):
            try:
                return self.type(text)
            except ValueError:
                kind = "a whole number" if self.type is int else "a number"
                raise ConfigError(f"{source}={text}: use {kind}") from None
        if self.type is tuple:
            return tuple(part.strip() for part in text.split(",") if part.strip())
        if self.type is Path:
            return Path(text).expanduser() if text else None
        return text

    def check(self, value: Any, source: str, folder: Path) -> Any:
        """Return the value of a TOML file; ``ConfigError`` when it has another type. Paths are
        relative to ``folder``."""
        if self.choices and isinstance(value, str):
            return self._chosen(value, source)
        if self.type is tuple:
            if isinstance(value, list) and all(isinstance(item, str) for item in value):
                return tuple(value)
            raise ConfigError(f"{source}: use a list of texts, such as {self.name} = ['a', 'b']")
        if self.type is Path and isinstance(value, str):
            return folder / Path(value).expanduser() if value else None
        if self.type is float and type(value) is int:
            return float(value)
        wanted = str if self.choices or self.type is Path else self.type
        if type(value) is not wanted:  # a bool is an int, and no number here
            kinds = {bool: "true or false", int: "a whole number", float: "a number"}
            raise ConfigError(f"{source}={value!r}: use {kinds.get(wanted, 'a text in quotes')}")
        return value

    def _chosen(self, text: str, source: str) -> str:
        if text not in self.choices:
            raise ConfigError(f"{source}={text}: use {', '.join(self.choices)}")
        return text


@dataclass(frozen=True, slots=True)
class Given:
    """The value of an option and who set it: a flag, a variable, a file, or ``DEFAULT``."""

    value: Any
    source: str


def settings_of(*configs: type) -> dict[str, Setting]:
    """Return the settings of dataclasses, by name, in the order of their fields."""
    settings: dict[str, Setting] = {}
    for config in configs:
        hints, texts = get_type_hints(config), _docstrings(config)
        for field in dataclasses.fields(config):
            default = () if field.default_factory is not dataclasses.MISSING else field.default
            kind = _plain(hints[field.name])
            settings[field.name] = Setting(field.name, kind, default, texts.get(field.name, ""))
    return settings


def effective(
    settings: Mapping[str, Setting],
    *,
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    file: Path | None = None,
    elsewhere: Iterable[str] = (),
) -> dict[str, Given]:
    """Return the value of every setting and where it came from.

    ``flags`` has what the command line set, by name; None is not set. The file may have keys that
    are settings ``elsewhere``. Raises ``ConfigError`` for a file that cannot be read, an unknown
    key in it, and values of the wrong type.
    """
    in_file = {} if file is None else _read(settings, file, [*settings, *elsewhere])
    found: dict[str, Given] = {}
    for name, setting in settings.items():
        text = environment.get(setting.variable)
        if flags.get(name) is not None:
            is_off = flags[name] is False
            flag = f"--no-{setting.flag[2:]}" if is_off else setting.flag
            found[name] = Given(flags[name], flag)
        elif text is not None and text != "":
            found[name] = Given(_from_environment(setting, text), setting.variable)
        elif name in in_file:
            found[name] = Given(in_file[name], str(file))
        else:
            found[name] = Given(setting.default, DEFAULT)
    return found


def unknown_variables(
    settings: Mapping[str, Setting], environment: Mapping[str, str], *others: str
) -> list[str]:
    """Return a line for every variable that looks like ours and sets nothing; ``others`` are names
    of ours that are no settings."""
    known = {setting.variable for setting in settings.values()} | set(others)
    strange = sorted(name for name in environment if name.startswith(PREFIX) and name not in known)
    return [
        f"{name} sets no option{did_you_mean(name, known)}"
        for name in strange
        if not _is_service_link(name)
    ]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean …?" for the known name that resembles ``name`` most, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _from_environment(setting: Setting, text: str) -> Any:
    if setting.type is int and "://" in text:
        # Kubernetes sets RADIXRT_PORT for a service named radixrt.
        raise ConfigError(
            f"{setting.variable}={text}: use a whole number; Kubernetes sets this variable for a "
            "service named radixrt: give the pod enableServiceLinks: false"
        )
    return setting.parse(text, setting.variable)


def _is_service_link(name: str) -> bool:
    """Whether Kubernetes sets a variable of this name for a service named radixrt."""
    rest = name.removeprefix(PREFIX)
    return rest.startswith(("SERVICE_", "PORT_"))


def _read(settings: Mapping[str, Setting], file: Path, known: list[str]) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            table = tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"config={file}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config={file} is not TOML: {error}") from None
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name in settings:
            values[name] = settings[name].check(value, f"{file}: {key}", file.parent)
        elif name not in known:
            hint = did_you_mean(name, known) or f"; known: {', '.join(dict.fromkeys(known))}"
            raise ConfigError(f"config={file}: unknown key {key!r}{hint}")
    return values


def _plain(hint: Any) -> Any:
    """Return the type of an option without ``None``, and ``tuple`` for any tuple."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    return tuple if get_origin(hint) is tuple else hint


def _docstrings(config: type) -> dict[str, str]:
    """Return the texts under the fields of a class, each on one line and without markup."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(tree, ast.ClassDef)
    texts: dict[str, str] = {}
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            texts[field.target.id] = " ".join(str(text.value.value).replace("``", "").split())
    return texts
