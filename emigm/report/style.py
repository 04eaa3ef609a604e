"""The one style of all figures, the picture that a notebook shows and saves, and its axes."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

from matplotlib import style
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, NullLocator

from emigm.files import write_atomically
from emigm.report.results import Results, bullets

COLUMN, FULL = 3.25, 6.75
"""Widths of a figure in inches: one column, the whole page."""
DPI = 200
BUDGET_COLOURS = ("#0072B2", "#D55E00", "#000000")
SIZE_COLOURS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colour-blind-safe palette, split so that a budget and a size never share a colour in a figure."""
SCHEDULE_COLOURS = ("#0072B2", "#D55E00", "#009E73")
MARKERS = ("o", "s", "^", "D", "v")
DASHES = ("-", "--", "-.")
FLOOR_DASHES = ((0, (4, 2)), (0, (4, 1.5, 1, 1.5)), (0, (1, 1.5)))
STYLE = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same glyphs everywhere
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "figure.titlesize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 3,  # shows a whole period of the dashes beside the marker
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "grid.linewidth": 0.4,
    "grid.alpha": 0.4,
    "errorbar.capsize": 2,
    "svg.hashsalt": "emigm",  # fixed identifiers, so that the same records give the same file
}
styled = style.context(["default", STYLE])  # used as a decorator


@dataclass(frozen=True, repr=False)
class Picture:
    """A drawn figure with its title and notes; a notebook shows it as PNG."""

    folder: Path
    """Where `save` writes."""
    name: str
    title: str
    figure: Figure
    notes: tuple[str, ...]

    @property
    def caption(self) -> str:
        """The notes as text."""
        return bullets(self.notes)

    def save(self) -> list[Path]:
        """Write <name>.png (200 dpi) and <name>.svg; the same figure gives the same bytes."""
        paths = [self.folder / f"{self.name}.{kind}" for kind in ("png", "svg")]
        for path in paths:
            write_atomically(path, lambda p, kind=path.suffix[1:]: self._write(p, kind))
        return paths

    @styled
    def _write(self, path: Path | io.BytesIO, kind: str) -> None:
        drop = ("Software",) if kind == "png" else ("Date", "Creator")  # what changes with the day or the version
        self.figure.savefig(path, format=kind, dpi=DPI, metadata=dict.fromkeys(drop))

    def __repr__(self) -> str:
        # What an executed notebook keeps beside the picture or table: no path of the machine that ran it.
        return f"<Picture {self.name} of results/{self.folder.name}>"

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self._write(buffer, "png")
        return buffer.getvalue()


@styled
def explained(results: Results, name: str, title: str, why: str, folder: Path | None = None) -> Picture:
    """A picture that says in words why there is nothing in it; `folder`: of another benchmark, where that asked."""
    figure = Figure(figsize=(FULL, 1.2))
    figure.text(0.5, 0.35, why, ha="center")
    heading = results.heading(title)
    figure.suptitle(heading)
    mark_dry_run(results, figure)
    return Picture(folder or results.folder, name, heading, figure, results.notes(f"{why[0].upper()}{why[1:]}."))


def mark_dry_run(results: Results, figure: Figure) -> None:
    """Write over the whole picture that it measures nothing, so that no copy of it can be taken for a result."""
    if results.dry_run:
        look = {"fontsize": 40, "color": "0.2", "alpha": 0.5, "rotation": 20, "weight": "bold", "zorder": 10}
        edge = [withStroke(linewidth=4, foreground="white")]  # to be read over images too
        figure.text(0.5, 0.5, "DRY RUN", ha="center", va="center", in_layout=False, path_effects=edge, **look)


def log_ticks(axis: Axis) -> None:
    """Labelled ticks of a log axis: round numbers within a decade, as many as leave room for their labels; else the
    fewest of 1; 1, 3; 1, 2, 5 per decade that give three in view."""
    low, high = axis.get_view_interval()
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    nice = [[d * 10.0**k for k in range(first, last) for d in digits] for digits in ((1,), (1, 3), (1, 2, 5))]
    if high < 10 * low:
        nice = [MaxNLocator(6, steps=(1, 2, 5, 10)).tick_values(low, high)]
    shown = [[t for t in ticks if low <= t <= high] for ticks in nice]
    ticks = next((t for t in shown if len(t) >= 3), shown[-1])
    room = 0.22 if axis.axis_name == "x" else 0.08  # of the axis, from one label to the next
    ticks = [t for i, t in enumerate(ticks) if i == 0 or math.log(t / ticks[i - 1]) > room * math.log(high / low)]
    axis.set_ticks(ticks, [_power(t) for t in ticks])
    axis.set_minor_locator(NullLocator())


def _power(value: float) -> str:
    """A tick's label: plain from 0.001 to 1000, else as a power of ten."""
    if 1e-3 <= value <= 1e3:
        return f"{value:.4g}"
    digits, exponent = f"{value:.2e}".split("e")
    factor = "" if float(digits) == 1 else rf"{float(digits):g}$\times$"
    return factor + f"$10^{{{int(exponent)}}}$"
