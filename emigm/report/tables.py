"""Tables and readings that a notebook shows as Markdown and saves, and how numbers are written in their cells."""

# ruff: noqa: RUF001
# × and – are meant.
from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from emigm.io import read_json, write_atomically, write_json
from emigm.records.frame import ladder_size

NOT_RUN, NONE = "not run", "–"
"""What a cell without a record reads, and one that is nobody's to measure. Never 0, never blank."""
METRICS = {
    "fid": "FID",
    "sfid": "sFID",
    "isc": "IS",
    "kid": "KID",
    "precision": "Precision",
    "recall": "Recall",
    "clean_fid": "Clean-FID",
    "label_accuracy": "Label accuracy",
    "cas": "CAS",
    "nearest_train": "NN distance to training images",
    "nearest_holdout": "NN distance to held-out images",
}
"""Metric columns of the frame -> column headers."""


@dataclass(frozen=True, repr=False)
class Table:
    """A table with its title and notes."""

    name: str
    title: str
    frame: pd.DataFrame
    """All cells are text; a missing one (NaN) is shown as `NONE`."""
    notes: tuple[str, ...] = ()
    """What a reader must know; a list under the table. Empty ones are left out."""

    @property
    def body(self) -> str:
        """The table alone."""
        return self.frame.fillna(NONE).to_markdown(index=False, disable_numparse=True)

    def markdown(self, level: int = 2) -> str:
        """Heading of the given level, table and notes."""
        return "\n\n".join(filter(None, [f"{'#' * level} {self.title}", self.body, bullets(self.notes)])) + "\n"

    def save(self, out: str | Path | None) -> Table:
        """Write out/<name>.md for readers and, for `load`, .csv and .json (title and notes); `out` None: nothing."""
        if out is not None:
            csv = self.frame.to_csv(index=False, lineterminator="\n", na_rep=NONE)
            _save(Path(out) / self.name, self.markdown(1), {"title": self.title, "notes": [*filter(None, self.notes)]})
            write_text(Path(out) / f"{self.name}.csv", csv)
        return self

    def __repr__(self) -> str:
        return f"<Table {self.name}>"  # an executed notebook names no path or address of its machine

    _repr_markdown_ = markdown


@dataclass(frozen=True, repr=False)
class Reading:
    """What came out, in sentences that were computed from the records."""

    sentences: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What the numbers rest on; a list below."""

    @property
    def body(self) -> str:
        """The sentences alone, a paragraph each."""
        return "\n\n".join(filter(None, self.sentences))

    def markdown(self) -> str:
        """The sentences and, as a list, the notes."""
        return "\n\n".join(filter(None, [self.body, bullets(self.notes)])) + "\n"

    def save(self, out: str | Path | None) -> Reading:
        """Write out/reading.md for readers and, for `load`, .json; `out` None: nothing."""
        if out is not None:
            parts = {"sentences": [*filter(None, self.sentences)], "notes": [*filter(None, self.notes)]}
            _save(Path(out) / "reading", self.markdown(), parts)
        return self

    def __repr__(self) -> str:
        return "<Reading>"

    _repr_markdown_ = markdown


def load(path: Path) -> Table | Reading | None:
    """What was saved as `path`, whose suffix does not matter; None where nothing was."""
    path = path.with_suffix(".json")
    if not path.is_file():
        return None
    tree = read_json(path, "execute its notebook again (dvc repro)")
    if "sentences" in tree:
        return Reading(tuple(tree["sentences"]), tuple(tree["notes"]))
    frame = pd.read_csv(path.with_suffix(".csv"), dtype=str, keep_default_na=False)
    return Table(path.stem, tree["title"], frame, tuple(tree["notes"]))


def body(path: Path) -> str:
    """A saved table or reading without its title and notes; that it has not run where there is none."""
    saved = load(path)
    return NOT_RUN if saved is None else saved.body


def _save(path: Path, markdown: str, tree: dict[str, Any]) -> None:
    write_text(path.with_suffix(".md"), markdown)
    write_json(path.with_suffix(".json"), tree)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def bullets(notes: Iterable[str]) -> str:
    """Notes as a Markdown list, without the empty ones."""
    return "\n".join(f"- {note}" for note in notes if note)


def plus_minus(mean: float | None, error: float | None = None, absent: str = NOT_RUN) -> str:
    """ "mean ± error" with two significant digits of the error (of a tenth of the mean where there is none), but four
    of the mean at most: an error of few seeds can be tiny by chance."""
    if mean is None or math.isnan(mean):
        return absent
    error = None if error is None or math.isnan(error) else error
    scale = error or abs(mean) / 10
    four = 3 - math.floor(math.log10(abs(mean))) if mean else 2
    digits = max(2, min(1 - math.floor(math.log10(scale)), four)) if scale > 0 else 2
    return f"{mean:.{digits}f}" + (f" ± {error:.{digits}f}" if error is not None else "")


def count(n: float | None) -> str:
    """A number of parameters with three significant digits, as 24.0K or 478M."""
    if missing(n):
        return NOT_RUN
    unit, letter = next(((u, c) for u, c in ((1e9, "B"), (1e6, "M"), (1e3, "K")) if n >= u), (1, ""))
    value = n / unit
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}{letter}" if letter else f"{n:.0f}"


def thousands(n: float) -> str:
    """50000 as 50K, 1500 as 1.5K, 60 as 60."""
    return f"{n / 1000:g}K" if n >= 1000 else f"{n:g}"


def nfe_text(steps: float | None, passes: float | None) -> str:
    """Measured forward passes of an image as "N×passes/N", the way Tables 2 and 3 print NFE (16×1.2)."""
    return NOT_RUN if missing(steps) or missing(passes) else f"{steps:g}×{passes / steps:.3g}"


def model_name(size: str, prefix: str = "eMIGM-") -> str:
    """What a row or panel calls a size: the paper's name, that of one trained in another way (`xs_equal`), or that of
    an ablation's row."""
    known = ladder_size(size)
    if known is None:
        return size
    model, variant = known
    return f"{prefix}{model.upper()}" + (f" ({variant})" if variant else "")


def plural(n: float, noun: str) -> str:
    """`n` of something countable."""
    return f"{n:,.0f} {noun}{'' if n == 1 else 's'}"


def missing(value: Any) -> bool:
    """Whether a cell of the frame holds nothing."""
    return value is None or (isinstance(value, float) and math.isnan(value))
