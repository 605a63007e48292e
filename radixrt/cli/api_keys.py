"""Keys of HTTP clients, from files and from the environment."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from radixrt.errors import ConfigError
from radixrt.gateway.settings import ApiKey

KEY_VARIABLE = "RADIXRT_API_KEY"
ADMIN_KEY_VARIABLE = "RADIXRT_ADMIN_KEY"


def read_keys(
    api_key_file: Path | None, admin_key_file: Path | None, environment: Mapping[str, str]
) -> tuple[ApiKey, ...]:
    """Return every key that was given; those of ``admin_key_file`` are admin keys.

    A client's key has a cache of its own, named after it, unless its table says another ``tenant``.
    Raises ``ConfigError``, which never quotes a key.
    """
    keys: list[ApiKey] = []
    for file, is_admin in ((api_key_file, False), (admin_key_file, True)):
        if file is not None:
            keys += [replace(key, admin=is_admin) for key in read_file(file)]
    for variable, is_admin in ((KEY_VARIABLE, False), (ADMIN_KEY_VARIABLE, True)):
        if text := environment.get(variable, "").strip():
            name = "admin" if is_admin else "environment"
            keys.append(ApiKey(name=name, key=text, tenant=name, admin=is_admin))
    return tuple(keys)


def read_file(file: Path) -> list[ApiKey]:
    """Return the keys of a file: tables ``[[keys]]`` in TOML, else lines ``NAME KEY`` or ``KEY``.

    Raises ``ConfigError``.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot read keys: {error}") from None
    keys = _tables(file, text) if file.suffix == ".toml" else _lines(file, text)
    if not keys:
        raise ConfigError(f"{file} has no keys: write a line NAME KEY for each")
    return keys


def _lines(file: Path, text: str) -> list[ApiKey]:
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) > 2:
            raise ConfigError(f"{file}:{number}: write NAME KEY, or the key alone")
        name = words[0] if len(words) == 2 else f"key-{number}"
        keys.append(ApiKey(name=name, key=words[-1], tenant=name))
    return keys


def _tables(file: Path, text: str) -> list[ApiKey]:
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not TOML: {error}") from None
    tables: Any = content.pop("keys", [])
    if content or not isinstance(tables, list):
        raise ConfigError(f"{file}: write a table [[keys]] with name and key for each key")
    return [_table(f"{file}: keys[{index}]", table) for index, table in enumerate(tables)]


def _table(where: str, table: Any) -> ApiKey:
    known = ("name", "key", "tenant", "max_concurrent", "requests_per_minute")
    if not isinstance(table, dict) or not table.keys() <= set(known):
        raise ConfigError(f"{where}: a key has {', '.join(known)}")
    try:
        return msgspec.convert({"tenant": table.get("name", ""), **table}, ApiKey)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from None
