"""Strict building of configuration dataclasses from plain trees. No torch in this module."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from typing import Any, Literal

from emigm.config.errors import ConfigError


def parse(cls: type, tree: Any, where: str) -> Any:
    """Build the dataclass `cls` from the mapping `tree`, strictly; `where` names the key in messages."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: expected a mapping, found {tree!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in tree:
        if key not in fields:
            raise ConfigError(f"unknown key {where}.{key}{_suggest(str(key), fields)}")
    required = [
        n
        for n, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and n not in tree
    ]
    if required:
        raise ConfigError(f"missing key {where}.{required[0]}")
    return cls(**{key: _convert(hints[key], value, f"{where}.{key}") for key, value in tree.items()})


def as_dict(cfg: Any) -> dict[str, Any]:
    """The dataclass as plain JSON types (tuples become lists)."""
    plain = dataclasses.asdict(cfg)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return parse(hint, value, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where} = {value!r}{_suggest(str(value), args)}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, found {value!r}")
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise ConfigError(f"{where}: expected {len(args)} values, found {list(value)}")
        return tuple(_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a mapping, found {value!r}")
        return {str(k): _convert(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where}: expected {hint.__name__}, found {value!r}")
    return value


def _suggest(name: str, allowed) -> str:
    allowed = [str(a) for a in allowed]
    close = difflib.get_close_matches(name, allowed, 1)
    return (f"; did you mean {close[0]!r}?" if close else "") + f" (allowed: {', '.join(allowed)})"


def known(what: str, name: str, allowed) -> None:
    """Raise ConfigError, with the nearest match, unless `name` is one of `allowed`."""
    if name not in allowed:
        raise ConfigError(f"unknown {what} {name!r}{_suggest(name, allowed)}")


def at_least(what: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{what} = {value}: must be at least {least}")
