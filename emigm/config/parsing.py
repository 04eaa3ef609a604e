"""Strict configuration: validated dataclasses, the messages of their mistakes, and the reading of YAML. No torch here.

`config` makes a pydantic dataclass, `parse` builds one from a plain tree. However one is made, a mistake is a
ConfigError of one line that names the key, its value and the remedy (`explain`).
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import reprlib
from collections.abc import Callable, Iterable
from functools import cache, partial, reduce, wraps
from pathlib import Path
from typing import Annotated, Any, dataclass_transform, get_type_hints

import pydantic
from pydantic import AfterValidator, BeforeValidator, ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic_core import ArgsKwargs, PydanticCustomError
from ruamel.yaml import YAML
from typing_extensions import TypedDict  # pydantic takes that of `typing` from Python 3.12 on

from emigm.config.errors import ConfigError, check


@dataclass_transform(frozen_default=True)
def config(cls: type | None = None, *, kw_only: bool = False) -> Any:
    """Decorator: a frozen pydantic dataclass that refuses unknown keys, and whose mistakes are ConfigErrors.

    In `__post_init__` the class holds its fields against each other: a ConfigError raised there begins with a field's
    name. Numbers, texts and truth values are strict where their annotations say so.
    """
    if cls is None:
        return partial(config, kw_only=kw_only)
    cls.refuse_unknown_keys = model_validator(mode="before")(classmethod(_refuse_unknown_keys))
    cls = pydantic.dataclasses.dataclass(frozen=True, kw_only=kw_only, config=ConfigDict(extra="forbid"))(cls)
    build, names = cls.__init__, [f.name for f in dataclasses.fields(cls)]

    @wraps(build)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        named = dict(zip(names, args, strict=False))  # so that messages name what is given by its place
        try:
            build(self, *args[len(names) :], **named, **kwargs)
        except ValidationError as e:
            raise ConfigError(explain(e)) from None

    cls.__init__ = __init__
    return cls


def part_of(cls: type) -> Any:
    """Type of a mapping that holds some fields of the dataclass `cls`, each of which must be right by itself."""
    fields = TypedDict(f"{cls.__name__}Part", get_type_hints(cls, include_extras=True), total=False)
    return Annotated[fields, BeforeValidator(partial(_refuse_unknown_keys, cls))]


def _refuse_unknown_keys(cls: type, values: Any) -> Any:
    allowed = [f.name for f in dataclasses.fields(cls)]
    keys = values.kwargs if isinstance(values, ArgsKwargs) else values
    for key in keys if isinstance(keys, dict) else ():
        if key not in allowed:
            raise PydanticCustomError("unknown_key", "unknown key", {"key": key, "allowed": allowed})
    return values


def rule(holds: Callable[[Any], Any], text: str) -> AfterValidator:
    """What a value must fulfil beside its type, and in words after "must": "be one line of text"."""

    def validate(value: Any) -> Any:
        check(holds(value), f"must {text}")
        return value

    return AfterValidator(validate)


def matching(pattern: str, text: str) -> AfterValidator:
    """Rule of a text: the whole of it matches the regular expression."""
    return rule(re.compile(pattern, re.ASCII).fullmatch, text)


_adapter = cache(TypeAdapter)


def parse(cls: type, tree: Any, where: str) -> Any:
    """Build the dataclass `cls` from the mapping `tree`, strictly; `where` names the key in messages."""
    try:
        return _adapter(cls).validate_python(tree)
    except ValidationError as e:
        raise ConfigError(explain(e, where)) from None


def as_dict(cfg: Any) -> dict[str, Any]:
    """The dataclass as plain JSON types (tuples become lists)."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(cfg).items()}


EXPECTED = {"int_type": "int", "float_type": "float", "string_type": "str", "bool_type": "bool", "tuple_type": "a list"}
EXPECTED |= {"dict_type": "a mapping", "dataclass_type": "a mapping"}
MUST_BE = {"greater_than": "above {gt}", "greater_than_equal": "at least {ge}", "finite_number": "a finite number"}
MUST_BE |= {"less_than": "below {lt}", "less_than_equal": "at most {le}"}


def explain(error: ValidationError, where: str = "") -> str:
    """The first mistake in one line: the dotted key below `where`, its value, what is allowed, and how it is mended."""
    first = min(error.errors(include_url=False), key=lambda e: e["type"] == "missing")  # a key of a wrong type first
    kind, value, facts, path = first["type"], first["input"], first.get("ctx", {}), first["loc"]
    key = reduce(_below, path, where)
    if path[-1:] == ("[key]",):
        key = f"a key of {reduce(_below, path[:-2], where)}"
    if kind == "unknown_key":
        return f"unknown key {_below(key, facts['key'])}{suggest(facts['key'], facts['allowed'])}"
    if kind == "missing":
        return f"{key} is missing"
    if kind == "literal_error":
        return f"{key} = {show(value)}{suggest(value, re.findall(r'[^ ,]+', facts['expected'].replace(' or ', ' ')))}"
    if kind in EXPECTED:
        return f"{key}: expected {EXPECTED[kind]}, found {show(value)}{_remedy(kind, value)}"
    if kind in MUST_BE:
        return f"{key} = {show(value)}: must be {MUST_BE[kind].format(**facts)}"
    message = str(facts.get("error", first["msg"]))
    if isinstance(value, (dict, ArgsKwargs)):  # of fields that do not go together
        return message if not key or message.startswith(f"{where}:") else f"{key}.{message}"
    return f"{key} = {show(value)}: {message}"


def _remedy(kind: str, value: Any) -> str:
    """How a value that YAML reads as another type is written."""
    if kind == "string_type" and isinstance(value, (int, float)):
        return "; write it in quotes"
    if kind == "int_type" and isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"; write {int(value)}"
    if kind in ("int_type", "float_type") and isinstance(value, str) and re.fullmatch(r"[-+.\deE]{1,30}", value):
        return "; write a number, without quotes"
    return ""


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxtuple, _SHORT.maxlist = 2, 80, 80, 12, 12
show = _SHORT.repr
"""The value on one line that is never long, whatever it is."""


def _below(where: str, key: Any) -> str:
    if type(key) is int:
        return f"{where}[{key}]"
    name = key if isinstance(key, str) and key.isprintable() and len(key) <= 80 else show(key)
    return f"{where}.{name}" if where else name


LISTED = 30
"""Allowed names that a message lists at most."""


def suggest(name: Any, allowed: Iterable[Any]) -> str:
    """The nearest of the allowed names, and what they are, for the end of a message."""
    allowed = [str(a).strip("'") for a in allowed]
    close = difflib.get_close_matches((name if isinstance(name, str) else show(name))[:80], allowed, 1)
    listed = ", ".join(allowed[:LISTED]) + (f", and {len(allowed) - LISTED} more" if len(allowed) > LISTED else "")
    return (f"; did you mean {close[0]!r}?" if close else "") + f" (allowed: {listed})"


def known(what: str, name: str, allowed: Iterable[str]) -> None:
    """Raise ConfigError, with the nearest match, unless `name` is one of `allowed`."""
    if name not in allowed:
        raise ConfigError(f"unknown {what} {show(name)}{suggest(name, allowed)}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises ConfigError when the file is missing, damaged or holds something else."""
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        where = "run from the repository's root, or name another with --params"
        raise ConfigError(f"{path}: no such file; {where}") from None
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: cannot be read ({e}); restore it") from e
    check(isinstance(tree, dict), f"{path}: expected a mapping, found {show(tree)}")
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
