"""What a verification finds, and how two trees of plain values are compared. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

RESULTS = "results"
REMEDY = "run dvc repro"


@dataclass
class Findings:
    """What is wrong, each by name, and what could not be looked at."""

    problems: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    earlier: list[str] = field(default_factory=list)
    """What earlier code made, and stands."""
    files: int = 0
    """Files and folders whose bytes were compared."""

    def refuse(self, what: str) -> None:
        if what not in self.problems:
            self.problems.append(what)


def same(a: Any, b: Any) -> bool:
    """Equal, but for the rounding of a sum."""
    if isinstance(a, (int, float)) and isinstance(b, (int, float)) and not isinstance(a, bool):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def differing(ours: Any, theirs: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """(name, ours, theirs) of every leaf in which two trees differ."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for key in dict.fromkeys((*ours, *theirs)):
            yield from differing(ours.get(key), theirs.get(key), f"{name}.{key}")
    elif not same(ours, theirs):
        yield name, ours, theirs


def at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def count(n: int, what: str) -> str:
    """Such as "1 cell" and "2 cells"."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"
