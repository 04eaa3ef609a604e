"""Figures 1, 4, 5 and 6 of the paper for one benchmark, in one style."""

# ruff: noqa: RUF001
# γ, ×, − and – are meant: they are the paper's notation.
from __future__ import annotations

import functools
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, NullLocator

from emigm.core.records import write_atomically
from emigm.model.schedules import SCHEDULES, elbo_weight, expected_reveal_counts, gamma
from emigm.report.family import head
from emigm.report.results import (
    NOT_RUN,
    SIZES,
    Results,
    bullets,
    evaluations,
    extractor_text,
    fid_name,
    fid_text,
    floors,
    floors_text,
    model_name,
    spread,
    spread_text,
    weights_note,
    weights_of,
)

COLUMN, FULL = 3.25, 6.75
"""Widths of a figure in inches: one column, the whole page."""
DPI = 200
GRID_ROWS = 10
"""Classes in a sample grid, at most (emigm.pictures)."""
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
_reveal_counts = functools.cache(expected_reveal_counts)  # the paper's L and N return for every benchmark
styled = style.context(["default", STYLE])  # used as a decorator


class Point(NamedTuple):
    """One evaluated model."""

    size: str
    budget: str
    fid: float
    spread: float | None
    flops: float | None  # of one training run
    seconds: float | None  # for one image


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
            write_atomically(path, self._write)
        return paths

    @styled
    def _write(self, path: Path | io.BytesIO, kind: str | None = None) -> None:
        kind = kind or path.suffix[1:]
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
def figure1(results: Results) -> Picture:
    """Figure 1: generated images. The largest size at the highest budget, then a strip of every size."""
    title = results.heading(f"Figure 1 on {results.name}: generated images")
    sizes, budget = results.sizes, results.budgets[-1] if results.budgets else None
    grids = {s: _grid(results, s, budget) for s in sizes}
    largest = next((s for s in reversed(sizes) if grids[s] is not None), None)
    if largest is None:
        figure = Figure(figsize=(FULL, 1.2))
        figure.text(0.5, 0.4, f"no sample grid in results/{results.name}/grids: {NOT_RUN}", ha="center")
        figure.suptitle(title)
        mark_dry_run(results, figure)
        return Picture(results.folder, "figure1", title, figure, results.notes(f"No sample grid: {NOT_RUN}."))
    main = grids[largest]
    labels = _row_labels(results, main.shape[0])
    cell = main.shape[0] / (len(labels) or GRID_ROWS)  # pixels of an image; ten rows unless there are fewer classes
    taken = min(round(2 * cell), main.shape[1])  # pixels of a strip: two images wide
    gap = 0.35 * cell
    left, right, top, bottom = 0.35, 0.05, 0.5, 0.05  # inches
    pixels = main.shape[1] + len(sizes) * (taken + gap)
    inch = min((FULL - left - right) / pixels, 0.45 / cell)  # of a pixel
    width, height = pixels * inch + left + right, main.shape[0] * inch + top + bottom
    figure = Figure(figsize=(width, height))

    def place(image: np.ndarray | None, x: float, columns: int, heading: str) -> Axes:
        box = ((left + x * inch) / width, bottom / height, columns * inch / width, main.shape[0] * inch / height)
        axes = figure.add_axes(box)
        axes.set(xticks=[], yticks=[])
        axes.set_title(heading, pad=3)
        axes.spines[:].set_visible(False)
        if image is None:
            axes.text(0.5, 0.5, NOT_RUN, ha="center", va="center", rotation=90, transform=axes.transAxes)
        else:
            times = max(1, math.ceil(2 * DPI * inch))  # a pixel repeated like this is smoothed by no viewer
            big = image.repeat(times, axis=0).repeat(times, axis=1)
            shrunk = "nearest" if times > 1 else "auto"
            axes.imshow(big, cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation=shrunk)
        return axes

    axes = place(main, 0, main.shape[1], f"{model_name(largest)}, N = {budget}")
    if labels:
        rows = (np.arange(len(labels)) + 0.5) / len(labels)
        low, high = axes.get_ylim()  # image axes: row 0 at the top
        axes.set_yticks(high + rows * (low - high), labels)
        axes.tick_params(left=False, pad=1)
        axes.annotate("class", (0, 1), (-4, 3), "axes fraction", "offset points", ha="right", fontsize=7)
    for i, size in enumerate(sizes):
        strip = None if grids[size] is None else grids[size][:, :taken]
        place(strip, main.shape[1] + gap + i * (taken + gap), taken, size.upper() if size in SIZES else size)
    figure.suptitle(title, y=1 - 0.06 / height, va="top")
    notes = results.notes(
        ("Rows are classes. " if labels else "")
        + f"Left: the whole grid of {model_name(largest)} at N = {budget}. Right: the first two columns of every "
        "size's grid at the same N. Images are in the order in which the sample stage made them.",
        weights_note(results),
    )
    mark_dry_run(results, figure)
    return Picture(results.folder, "figure1", title, figure, notes)


@styled
def figure4(results: Results) -> Picture:
    """Figure 4: FID against training FLOPs, the same by size, and FID against the time to sample an image."""
    if other := head(results):
        return _no_ladder(results, other)
    points = [_point(results, size, budget) for size, budget in evaluations(results)]
    figure = Figure(figsize=(FULL, 2.8), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    budgets, sizes = results.budgets, results.sizes
    for i, budget in enumerate(budgets):
        here = [p for p in points if p.budget == budget]
        look = {"color": BUDGET_COLOURS[i % 3], "marker": MARKERS[i % 5], "label": f"N = {budget}"}
        _curve(panels[0], [(p.flops, p) for p in here], linestyle="none", named=i == 0, **look)
        look["linestyle"] = DASHES[i % 3]
        _curve(panels[2], [(p.seconds, p) for p in here], named=True, **look)
    for i, size in enumerate(sizes):
        here = [p for p in points if p.size == size and p.budget == budgets[-1]]
        look = {"color": SIZE_COLOURS[i % 5], "marker": MARKERS[i % 5]}
        _curve(panels[1], [(p.flops, p) for p in here], linestyle="none", named=True, **look)
    panels[0].set(title="(a) training compute", xlabel="training FLOPs of one run", ylabel=fid_name(results))
    high = f", N = {budgets[-1]}" if budgets else ""
    once = "\n(one training budget was run)" if any(p.flops for p in points) else ""
    panels[1].set(title=f"(b) by size{high}{once}", xlabel="training FLOPs of one run")
    panels[2].set(title="(c) sampling time", xlabel="seconds for one image")
    for axes in panels:
        for dashes, (label, floor) in zip(FLOOR_DASHES, floors(results).items(), strict=False):
            if floor["fid"]["mean"] > 0:
                name = label.lower() if axes is panels[0] else None
                axes.axhline(floor["fid"]["mean"], color="0.35", linestyle=dashes, linewidth=0.9, label=name)
        if not _drawn(axes):
            released = any(weights_of(results, p.size) == "released" for p in points)
            reason = "training FLOPs not known\n(released weights)" if released and axes is not panels[2] else NOT_RUN
            axes.text(0.5, 0.5, reason, ha="center", transform=axes.transAxes)
            axes.set_xticks([])
            continue
        axes.set_xscale("log")
        axes.margins(x=0.18, y=0.12)
        axes.grid(axis="y")
        log_ticks(axes.xaxis)
    if any(map(_drawn, panels)):
        if min(p.fid - (p.spread or 0) for p in points) > 0:
            panels[0].set_yscale("log")
            log_ticks(panels[0].yaxis)
        found: dict[str, Any] = {}
        for axes in panels:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                # The marker without its bar.
                found.setdefault(label, handle[0] if isinstance(handle, ErrorbarContainer) else handle)
        figure.legend(
            found.values(), found.keys(), loc="outside lower center", ncols=5, columnspacing=1.4, handletextpad=0.4
        )
    title = results.heading(f"Figure 4 on {results.name}: compute, sampling time and FID ({extractor_text(results)})")
    figure.suptitle(title)
    machines = {results.get(f"sample-{p.size}-{p.budget}", "provenance", "device") for p in points} - {None}
    devices = ", ".join(sorted(machines)) or NOT_RUN
    notes = results.notes(
        "(a) every size at every sampling budget against the training FLOPs of one run. (b) the highest sampling "
        "budget, one marker a size: each size was trained at one training budget only, so this panel shows no curve "
        f"along training. (c) every sampling budget against measured seconds for one image ({devices}).",
        "A size without a record is left out.",
        weights_note(results),
        fid_text(results),
        "Error bars are the ± of the tables.",
        spread_text(results),
        floors_text(results),
    )
    mark_dry_run(results, figure)
    return Picture(results.folder, "figure4", title, figure, notes)


@styled
def figure5(results: Results) -> Picture:
    """Figure 5: gamma(t) (left) and the weight of the ELBO, gamma'(t)/gamma(t) (right), of the three schedules."""
    figure = Figure(figsize=(FULL, 2.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    t = np.linspace(0, 1, 401)
    for name, colour, dashes, marker in zip(SCHEDULES, SCHEDULE_COLOURS, DASHES, MARKERS, strict=False):
        look = {"color": colour, "linestyle": dashes, "marker": marker, "markevery": (20, 60), "label": name}
        left.plot(t, gamma(name, t), **look)
        right.plot(t[4:], elbo_weight(name, t[4:]), **look)  # it grows without bound towards t = 0
    left.set(title="probability that a token is masked", xlabel="t", ylabel="γ(t)", xlim=(0, 1), ylim=(0, 1.03))
    right.set(title="weight of the ELBO", xlabel="t", ylabel="γ′(t)/γ(t)", xlim=(0, 1), yscale="log", ylim=(0.02, 120))
    left.legend()
    title = results.heading("Figure 5: mask schedules")
    figure.suptitle(title)
    notes = results.notes(
        "Left: γ(t), the probability that a token is masked at time t. Right: γ′(t)/γ(t), the weight of the loss in "
        "the ELBO, on a log axis. Computed from emigm.model.schedules, not from records."
    )
    mark_dry_run(results, figure)
    return Picture(results.folder, "figure5", title, figure, notes)


@styled
def figure6(results: Results) -> Picture:
    """Figure 6: mean number of tokens revealed at each sampling step, for the paper's L and N and the benchmark's."""
    plans = {(256, 16): "the paper"} | {plan: results.name for plan in _plans(results) if plan != (256, 16)}
    figure = Figure(figsize=(FULL if len(plans) > 1 else COLUMN, 2.3), layout="constrained")
    panels = figure.subplots(1, len(plans), squeeze=False)[0]
    for axes, ((tokens, steps), whose) in zip(panels, plans.items(), strict=True):
        for name, colour, dashes, marker in zip(SCHEDULES, SCHEDULE_COLOURS, DASHES, MARKERS, strict=False):
            counts = _reveal_counts(name, steps, tokens)
            look = {"color": colour, "linestyle": dashes, "marker": marker, "label": name, "markersize": 3.5}
            axes.plot(np.arange(1, steps + 1), counts, markevery=max(1, steps // 16), **look)
        axes.set(title=f"{whose}: L = {tokens}, N = {steps}", xlabel="sampling step")
        axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[0].set_ylabel("tokens revealed (mean)")
    panels[0].legend()
    title = results.heading("Figure 6: tokens revealed at each step")
    figure.suptitle(title)
    notes = results.notes(
        "Mean number of tokens revealed at each step (exact expectation, at least one a step while any is masked), "
        "from emigm.model.schedules; L tokens, N steps. The L and N of a benchmark come from its records."
    )
    mark_dry_run(results, figure)
    return Picture(results.folder, "figure6", title, figure, notes)


def _no_ladder(results: Results, other: str) -> Picture:
    """Figure 4 of a benchmark whose rows are no sizes, and whose budgets no numbers of steps."""
    text = f"{results.name} is no ladder of sizes: Figures 2, 3 and 7 on {other} draw its records"
    figure = Figure(figsize=(FULL, 1.2))
    figure.text(0.5, 0.35, text, ha="center")
    title = results.heading(f"Figure 4 on {results.name}: compute, sampling time and FID")
    figure.suptitle(title)
    mark_dry_run(results, figure)
    return Picture(results.folder, "figure4", title, figure, results.notes(f"{text}."))


def _grid(results: Results, size: str, budget: str | None) -> np.ndarray | None:
    """Grey levels or colours in [0, 1] of a sample grid at its own resolution."""
    path = results.folder / "grids" / f"{size}-{budget}.png"
    return imread(path) if path.is_file() else None


def _row_labels(results: Results, height: int) -> list[str]:
    """Classes of a grid's rows, where there are ten at most: of more the grid shows one image each, in turn."""
    classes = results.get("prepare", "results", "classes") or 0
    rows = 0 < classes <= GRID_ROWS and height % classes == 0
    return [str(c) for c in range(classes)] if rows else []


def mark_dry_run(results: Results, figure: Figure) -> None:
    """Write over the whole picture that it measures nothing, so that no copy of it can be taken for a result."""
    if results.dry_run:
        look = {"fontsize": 40, "color": "0.2", "alpha": 0.5, "rotation": 20, "weight": "bold", "zorder": 10}
        edge = [withStroke(linewidth=4, foreground="white")]  # to be read over images too
        figure.text(0.5, 0.5, "DRY RUN", ha="center", va="center", in_layout=False, path_effects=edge, **look)


def _drawn(axes: Axes) -> bool:
    """Whether any point was drawn."""
    return any(isinstance(c, ErrorbarContainer) for c in axes.containers)


def _point(results: Results, size: str, budget: str) -> Point:
    fid = results.get(f"evaluate-{size}", "results", budget, "summary", "fid")
    seconds = results.get(f"sample-{size}-{budget}", "results", "seconds_per_image", "mean")
    flops = results.get(f"train-{size}", "results", "flops")
    return Point(size, budget, fid["mean"], spread(fid), flops, seconds)


def _curve(axes: Axes, points: list[tuple[float | None, Point]], named: bool = False, **look) -> None:
    """FID with error bars at the given abscissae (a point that lacks one is left out); `named` writes the sizes."""
    known = [(x, p) for x, p in points if x is not None]
    if not known:
        return
    x, ours = zip(*known, strict=True)
    bars = [p.spread or 0 for p in ours]
    axes.errorbar(x, [p.fid for p in ours], yerr=bars, elinewidth=0.9, barsabove=True, **({"mfc": "white"} | look))
    for place, p in known if named else ():
        axes.annotate(p.size.upper(), (place, p.fid), xytext=(4, 3), textcoords="offset points", fontsize=7)


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


def _plans(results: Results) -> list[tuple[int, int]]:
    """(L, N) of the benchmark's largest model with records, at every budget."""
    found = []
    for size in reversed(results.sizes):
        model = results.get(f"train-{size}", "settings", "model")
        steps = [results.get(f"sample-{size}-{b}", "settings", "sample", "steps") for b in results.budgets]
        if model and any(steps):
            tokens = (model["grid"] // model["patch"]) ** 2
            found = [(tokens, n) for n in steps if n]
            break
    return found
