"""Strict building of configuration dataclasses from plain trees, and of trees from YAML. No torch in this module."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import reprlib
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from ruamel.yaml import YAML

from emigm.config.errors import ConfigError


class Checked:
    """Base of configuration dataclasses: every field is converted to its type and held against its rules however the
    object is made, then `check` holds the fields against each other."""

    def __post_init__(self):
        for name, hint in _hints(type(self)).items():
            object.__setattr__(self, name, _convert(hint, getattr(self, name), name))
        self.check()

    def check(self) -> None:
        """Raise ConfigError, its message beginning with a field's name, where fields do not go together."""


@dataclass(frozen=True)
class Rule:
    """What a field's value must fulfil; used as `Annotated[int, Rule(...)]`."""

    holds: Callable[[Any], bool]
    text: str
    """What a value must do, for the message: "lie in [0, 1)"."""

    def __call__(self, value: Any, where: str) -> Any:
        if not self.holds(value):
            raise ConfigError(f"{where} = {show(value)}: must {self.text}")
        return value


def within(interval: str) -> Rule:
    """Rule of a number, or of all numbers of a tuple: an interval such as "(0, 1]"."""
    low, high = map(float, interval[1:-1].split(","))

    def holds(value: float) -> bool:
        above = value >= low if interval[0] == "[" else value > low
        return above and (value <= high if interval[-1] == "]" else value < high)

    return Rule(holds, f"lie in {interval}")


def matching(pattern: str, text: str) -> Rule:
    """Rule of a text: the whole of it matches the regular expression."""
    return Rule(lambda value: re.fullmatch(pattern, value, re.ASCII) is not None, text)


@dataclass(frozen=True)
class Part:
    """Rule of a mapping: some fields of `cls`, each of which must be right by itself."""

    cls: type

    def __call__(self, value: dict[str, Any], where: str) -> dict[str, Any]:
        return parse_part(self.cls, value, where)


def parse(cls: type, tree: Any, where: str) -> Any:
    """Build the dataclass `cls` from the mapping `tree`, strictly; `where` names the key in messages."""
    values = parse_part(cls, tree, where)
    for f in dataclasses.fields(cls):
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in values:
            raise ConfigError(f"{where}.{f.name} is missing")
    try:
        return cls(**values)
    except ConfigError as e:
        if not issubclass(cls, Checked):
            raise
        raise ConfigError(f"{where}.{e}") from None


def parse_part(cls: type, tree: Any, where: str) -> dict[str, Any]:
    """The fields of `cls` that the mapping `tree` has, each converted and held against its own rules."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: expected a mapping, found {show(tree)}")
    hints = _hints(cls)
    for key in tree:
        if key not in hints:
            raise ConfigError(f"unknown key {_below(where, key)}{suggest(str(key), hints)}")
    return {key: _convert(hints[key], value, f"{where}.{key}") for key, value in tree.items()}


def as_dict(cfg: Any) -> dict[str, Any]:
    """The dataclass as plain JSON types (tuples become lists)."""
    plain = dataclasses.asdict(cfg)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}


@cache
def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        value = _convert(args[0], value, where)
        for rule in args[1:]:
            value = rule(value, where)
        return value
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else parse(hint, value, where)
    if origin is Literal:
        if not any(type(value) is type(a) and value == a for a in args):
            raise ConfigError(f"{where} = {show(value)}{suggest(str(value), args)}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, found {show(value)}")
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise ConfigError(f"{where}: expected {len(args)} values, found {show(value)}")
        return tuple(_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a mapping, found {show(value)}")
        return {
            _convert(args[0], k, f"a key of {where}"): _convert(args[1], v, _below(where, k)) for k, v in value.items()
        }
    return value if hint is Any else _convert_plain(hint, value, where)


def _convert_plain(hint: type, value: Any, where: str) -> Any:
    """A text, a number or a truth value."""
    if hint is float and type(value) is int and abs(value) < 2**1000:
        value = float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where}: expected {hint.__name__}, found {show(value)}{_remedy(hint, value)}")
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{where} = {value}: must be a finite number")
    return value


def _remedy(hint: type, value: Any) -> str:
    """How a value that YAML reads as another type is written."""
    if hint is str and isinstance(value, (int, float)):
        return "; write it in quotes"
    if hint is int and isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"; write {int(value)}"
    if hint in (int, float) and isinstance(value, str) and re.fullmatch(r"[-+.\deE]{1,30}", value):
        return "; write a number, without quotes"
    return ""


def show(value: Any) -> str:
    """The value on one line that is never long, whatever it is."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python refuses to write out integers of more than 4,300 digits
        return "an integer of thousands of digits"


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxtuple, _SHORT.maxlist = 2, 80, 80, 12, 12


def _below(where: str, key: Any) -> str:
    return f"{where}.{key if isinstance(key, str) and key.isprintable() and len(key) <= 80 else show(key)}"


def suggest(name: str, allowed: Iterable[Any]) -> str:
    """The nearest of the allowed names, and all of them, for the end of a message."""
    allowed = [str(a) for a in allowed]
    close = difflib.get_close_matches(str(name)[:80], allowed, 1)
    return (f"; did you mean {close[0]!r}?" if close else "") + f" (allowed: {', '.join(allowed)})"


def known(what: str, name: str, allowed) -> None:
    """Raise ConfigError, with the nearest match, unless `name` is one of `allowed`."""
    if name not in allowed:
        raise ConfigError(f"unknown {what} {show(name)}{suggest(name, allowed)}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises ConfigError when the file is missing, damaged or holds something else."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; run from the repository's root, or name another with --params")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: cannot be read ({e}); restore it") from e
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping, found {show(tree)}")
    return tree


def parse_yaml(text: str, where: str) -> Any:
    """The tree of a YAML text, as DVC reads it too: YAML 1.2, where 1e-3 is a number, 010 is ten and yes is a text.

    Only plain types are built, so that no tag runs code; raises ConfigError for a key given twice and for anything
    that is not YAML.
    """
    try:
        return YAML(typ="safe").load(text)
    except Exception as e:  # a tag on a value that it does not suit raises many types
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(e).split())[:300]}") from e
