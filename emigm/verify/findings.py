"""What a verification finds wrong, and what it could not look at. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field

RESULTS = "results"
REMEDY = "run dvc repro"


@dataclass
class Findings:
    """What is wrong, each by name, and what could not be looked at."""

    problems: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    files: int = 0
    """Files and folders whose bytes were compared."""

    def refuse(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


def count(n: int, noun: str) -> str:
    """Such as "1 cell" and "2 cells"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
