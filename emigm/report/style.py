"""The one style of all figures: what each colour, line style and marker means, and the picture that is shown and saved.

One meaning each, in every figure:
    violets, light to dark  model sizes, XS to H (`size_colour`); greys, light to dark: training FLOPs
    marker shape            sampling configuration, fewest steps N first (`budget_marker`)
    blue solid line         the paper's choice; vermilion dashed, green dash-dotted: its alternatives (`choice`)
    grey dashed lines       what no model made: held-out images and class shuffle (`baseline_lines`)
    ×                       a model that fails the context gate (`FAILED`)
"""

# − is meant.
from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter, FixedLocator, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import offset_copy

from emigm.io import write_atomically
from emigm.records.frame import SIZES, ladder_size
from emigm.report.statistics import CELL, summarise, t_interval, unit_means

COLUMN, FULL = 3.25, 6.75
"""Widths of a figure in inches: one column, the whole page."""
DPI = 200
LARGEST_VECTOR = 300_000
"""Bytes of an SVG; a larger one holds thousands of pixels as shapes or photos, and its PNG stands alone."""
SIZE_COLOURS = ("#B8A7E8", "#8F7BD6", "#6A4FBF", "#45288F", "#1D0A4A")
"""Light to dark with the size: they tell apart in grey too."""
CHOICES: tuple[dict[str, Any], ...] = (
    {"color": "#0072B2", "linestyle": "-"},
    {"color": "#D55E00", "linestyle": "--"},
    {"color": "#009E73", "linestyle": "-."},
    {"color": "#CC79A7", "linestyle": (0, (3, 1, 1, 1, 1, 1))},
)
"""The paper's choice, then its alternatives (colours of Okabe and Ito, which colour-blind readers can tell apart)."""
SCHEDULES = {"exp": 0, "cosine": 1, "linear": 2, "log-exp": 3}
"""Mask schedule -> its place in CHOICES: exp is the paper's."""
MARKERS = ("o", "s", "^", "D", "v")
FAILED = {"marker": "x", "color": "#000000", "linestyle": "none", "zorder": 5}
BASELINE_LINES = {"class_shuffle": (0, (1, 1.2)), "holdout": (0, (6, 2)), "train_subset": (0, (6, 2, 1, 2))}
"""Key of a baseline -> dashes of its grey line."""
GREY = "0.45"
SEED, FAILS = "one training seed", "fails the context gate"
"""Labels of the dots beside a mean, and of the cross on it."""
STYLE = ["default", Path(__file__).with_name("figures.mplstyle")]
styled = style.context(STYLE)  # used as a decorator


def panels(rows: int = 1, columns: int = 1, *, width: float = FULL, height: float = 2.6, **options) -> tuple:
    """A figure in this style and its axes, as an array (rows, columns); `options` go to `Figure.subplots`.

    From here on everything is drawn in this style. The figure belongs to nobody but the caller: a notebook shows it
    once, as a `Picture`.
    """
    style.use(STYLE)
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def size_colour(size: str) -> str:
    """Colour of a model size, however it was trained (`xs_equal`); black for what is no size of the ladder."""
    known = ladder_size(size)
    return SIZE_COLOURS[SIZES.index(known[0])] if known else "#000000"


def budget_marker(budgets: Sequence[str], budget: str) -> str:
    """Marker of a sampling configuration among those of a figure, fewest steps first."""
    return MARKERS[list(budgets).index(budget) % len(MARKERS)]


def choice(place: int | str) -> dict[str, Any]:
    """Colour and line style of a choice: 0 for the paper's own, 1, 2, ... for alternatives; or a mask schedule."""
    return CHOICES[SCHEDULES.get(place, place) % len(CHOICES)]


def look(label: str, place: int) -> dict[str, Any]:
    """How the curve of a choice is drawn: in its schedule's colour where it names one ("exp", "cosine, ELBO"), hollow
    and dotted under the ELBO's weight; else by its place in the panel (`choice`)."""
    schedule, _, weight = label.partition(", ")
    if schedule not in SCHEDULES:
        return {"marker": MARKERS[place], "markersize": 3, **choice(place)}
    hollow = {"linestyle": ":", "markerfacecolor": "white"} if weight == "ELBO" else {"linestyle": "-"}
    return {"marker": "o", "markersize": 3, "color": choice(schedule)["color"], **hollow}


def baseline_lines(
    axes: Axes, baselines: pd.DataFrame, metric: str = "fid", which: Iterable[str] | None = None
) -> None:
    """A labelled grey line for each baseline that has the metric (`emigm.records.frame.baselines`)."""
    shown = baselines[baselines["metric"] == metric]
    for row in shown[shown["baseline"].isin(BASELINE_LINES if which is None else list(which))].itertuples():
        style = {"color": GREY, "linestyle": BASELINE_LINES[row.baseline], "linewidth": 0.9, "zorder": 0}
        axes.axhline(row.mean, label=row.label.lower(), **style)


def curve(axes: Axes, runs: pd.DataFrame, x: str, metric: str = "fid", *, seeds: bool = True, **style) -> pd.DataFrame:
    """Draw the mean of a metric over a column, with combined standard errors, and a dot for each training seed.

    The dots show two training seeds as two. Runs without the metric or the column are left out; a mean with a
    run that fails the context gate is marked with a ×.

    Args:
        runs: of one curve (`emigm.records.frame.runs`).
        x: the column along it; its mean within a cell is used.
        seeds: draw the dots.
        style: passed to `Axes.errorbar`.

    Returns:
        What was drawn: `statistics.summarise`, sorted by `x`.
    """
    runs = runs.dropna(subset=[x, metric])
    drawn = summarise(runs, metric, also=("N", "passes", x)).sort_values(x)
    if drawn.empty:
        return drawn
    axes.errorbar(drawn[x], drawn["mean"], drawn["error"].fillna(0), elinewidth=0.9, **style)
    places = runs.groupby([*CELL], sort=False, dropna=False)[x].transform("mean")
    dots = runs.assign(**{x: places}).groupby([*CELL, "train_seed"], sort=False, dropna=False)[[x, metric]].mean()
    if seeds and runs["train_seed"].nunique() > 1:
        beside = offset_copy(axes.transData, axes.figure, x=5, units="points")
        axes.scatter(*dots.to_numpy().T, s=3, linewidths=0, color=style.get("color"), transform=beside)
        axes.plot([], [], ".", markersize=2, color="black", label=SEED)
    failed = drawn.merge(runs.loc[runs["gate_passed"].eq(False), [*CELL]].drop_duplicates(), on=[*CELL])
    if len(failed):
        axes.plot(failed[x], failed["mean"], label=FAILS, **FAILED)
    return drawn


def paired(runs: pd.DataFrame, reference: pd.DataFrame, metric: str = "fid") -> pd.Series:
    """Differences of a metric from the reference's by seed (`unit_means`); empty where they share none."""
    known = [rows.dropna(subset=[metric]) for rows in (runs, reference)]
    if any(rows.empty for rows in known):
        return pd.Series(dtype=float)
    return (unit_means(known[0], metric) - unit_means(known[1], metric)).dropna()


def differences(axes: Axes, runs: dict[str, pd.DataFrame], looks: dict[str, Any], metric: str = "fid") -> None:
    """A row for each label: its metric minus that of the first, the vertical line, paired by seed, with its 95%
    interval and a dot for each seed.

    Args:
        runs: label -> runs of one cell each.
        looks: label -> how its curve is drawn.
    """
    reference, *others = runs
    axes.axvline(0, color=GREY, linewidth=0.9)
    axes.plot(0, 0, clip_on=False, **looks[reference])
    for place, label in enumerate(others, 1):
        values = paired(runs[label], runs[reference], metric)
        if values.empty:
            axes.text(0, place, " not run", va="center", fontsize=6)
            continue
        style, mean = looks[label] | {"linestyle": "none"}, t_interval(values)
        axes.scatter(values, [place + 0.3] * len(values), s=3, linewidths=0, color=style["color"])
        error = None if mean.low is None else [[mean.effect - mean.low], [mean.high - mean.effect]]
        axes.errorbar(mean.effect, place, xerr=error, **style)
    axes.set_yticks(range(len(runs)), list(runs), fontsize=6)
    axes.set(ylim=(len(runs) - 0.4, -0.6), xlabel=f"{'FID' if metric == 'fid' else metric} difference")
    axes.grid(axis="x")


def difference_curve(axes: Axes, runs: pd.DataFrame, reference: pd.DataFrame, x: str, **style) -> None:
    """FID minus the reference's at the same `x`, paired by seed, with its 95% interval."""
    points = []
    for at, rows in runs.dropna(subset=[x]).groupby(x):
        values = paired(rows, reference[reference[x] == at])
        if len(values):
            mean = t_interval(values)
            points.append((at, mean.effect, mean.effect if mean.low is None else mean.low))
    if points:
        at, effect, low = zip(*points, strict=True)
        axes.errorbar(at, effect, [e - bound for e, bound in zip(effect, low, strict=True)], elinewidth=0.9, **style)


def frame_of_cell(column: int, row: int) -> Rectangle:
    """A frame around a cell of a heat map."""
    return Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#D55E00", linewidth=2)


@dataclass(frozen=True, repr=False)
class Picture:
    """A drawn figure, or the bytes of a PNG that a stage has drawn; a notebook shows it as PNG."""

    name: str
    figure: Figure | bytes
    dry_run: bool = False
    """Written over the whole picture, so that no copy of it can be taken for a result."""

    def __post_init__(self):
        if self.dry_run:
            style = {"fontsize": 40, "color": "0.2", "alpha": 0.5, "rotation": 20, "weight": "bold", "zorder": 10}
            edge = [withStroke(linewidth=4, foreground="white")]  # to be read over images too
            self.figure.text(0.5, 0.5, "DRY RUN", ha="center", va="center", in_layout=False, path_effects=edge, **style)

    def save(self, out: str | Path | None) -> Picture:
        """Write out/<name>.png (200 dpi) and, up to `LARGEST_VECTOR` bytes, .svg, the same bytes for the same figure;
        `out` None: nothing."""
        for kind, data in {"png": self._repr_png_(), "svg": self._drawn("svg")}.items() if out is not None else ():
            if kind == "png" or 0 < len(data) <= LARGEST_VECTOR:
                write_atomically(Path(out) / f"{self.name}.{kind}", lambda path, data=data: path.write_bytes(data))
        return self

    @styled
    def _drawn(self, kind: str) -> bytes:
        """The figure as a file of that kind; of bytes, nothing."""
        buffer = io.BytesIO()
        drop = ("Software",) if kind == "png" else ("Date", "Creator")  # what changes with the day or the version
        if not isinstance(self.figure, bytes):
            self.figure.savefig(buffer, format=kind, dpi=DPI, metadata=dict.fromkeys(drop))
        return buffer.getvalue()

    def __repr__(self) -> str:
        return f"<Picture {self.name}>"  # an executed notebook names no path or address of its machine

    def _repr_png_(self) -> bytes:
        return self.figure if isinstance(self.figure, bytes) else self._drawn("png")


def common_legend(figure: Figure, columns: int = 5, own: dict[Axes, Iterable[str]] | None = None) -> None:
    """One legend below the panels with every label of any of them once, what is no model last, in as many columns as
    the figure is wide enough for.

    Args:
        columns: the most.
        own: panel -> labels that stand in a legend right below it instead; None: none do.
    """
    shared: dict[str, Any] = {}
    for axes in own or figure.axes:
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        if named := [label for label in (own or {}).get(axes, ()) if label in handles]:
            place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.22), "handlelength": 2.2}
            axes.legend([handles.pop(label) for label in named], named, **place)
        for label, handle in handles.items():
            shared.setdefault(label, handle[0] if isinstance(handle, ErrorbarContainer) else handle)
    last = [k for k, h in shared.items() if k in (SEED, FAILS) or (isinstance(h, Line2D) and h.get_color() == GREY)]
    shared |= {label: shared.pop(label) for label in last}
    for ncols in range(columns, 0, -1) if shared else ():
        look = {"loc": "outside lower center", "ncols": ncols, "columnspacing": 1.4}
        legend = figure.legend(shared.values(), shared.keys(), **look)
        if ncols == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()


def log_y_where_wide(axes: Axes, values: pd.Series, factor: float = 10) -> None:
    """A logarithmic y axis with labelled ticks (1, 2, 5, 10) where positive values span more than `factor`."""
    if len(values) and values.max() > factor * values.min() > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())


def log_x(axes: Axes, ticks: Sequence[float] | None = None, unit: str = "") -> None:
    """A logarithmic x axis with labelled ticks (100k, 2T, 5 ms), at `ticks` where given; a panel without points says
    "not run"."""
    if not axes.containers:
        axes.text(0.5, 0.5, "not run", ha="center", transform=axes.transAxes)
        axes.set_xticks([])
        return
    axes.set_xscale("log")
    axes.margins(x=0.1)
    axes.grid(axis="y")
    low, high = axes.get_xlim()
    locator = LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)) if high > 5 * low else MaxNLocator(4)
    if ticks is not None:  # those whose labels would touch are left out
        ticks = [t for i, t in enumerate(ticks) if i == len(ticks) - 1 or ticks[i + 1] > 1.6 * t]
    axes.xaxis.set_major_locator(FixedLocator(ticks) if ticks is not None else locator)
    axes.xaxis.set_major_formatter(EngFormatter(unit, sep=" " if unit else ""))
    axes.xaxis.set_minor_locator(NullLocator())
