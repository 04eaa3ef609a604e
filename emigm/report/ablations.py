"""Figures 2, 3 and 7 of the paper: choices of training and sampling, on the benchmark's family (`report.family`)."""

# ruff: noqa: RUF001
# γ, ′, ×, − and – are meant: they are the paper's notation.
from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from emigm.report.family import (
    LEVEL,
    Cell,
    Member,
    cell,
    clip_note,
    failed_seeds,
    floor_lines,
    gate_limit,
    gate_verdicts,
    interval_note,
    member,
    ratios,
    training_note,
)
from emigm.report.results import NOT_RUN, Results, extractor_text, fid_name, fid_text, floors_text
from emigm.report.statistics import t_interval
from emigm.report.style import (
    COLUMN,
    FLOOR_DASHES,
    FULL,
    MARKERS,
    SCHEDULE_COLOURS,
    Picture,
    explained,
    log_ticks,
    mark_dry_run,
    styled,
)

PREFERRED, OTHER = "#D55E00", "#0072B2"
"""Figure 2: what the paper prefers (orange, as it draws it), and the rest."""
FLOOR_COLOUR = "0.35"
DODGE, BESIDE = 1.14, 1.05
"""Factors on a log axis: between curves at one place, and from a mean to its training seeds."""
GUIDED = "8_guided"
"""Budget of Figure 2e: without guidance the fake token is not used in sampling."""


class Choice(NamedTuple):
    """One panel of Figure 2: training runs that differ in one setting."""

    title: str
    fixed: str
    """What the runs share, beside the benchmark's defaults."""
    setting: tuple[str, str]
    """Part of the configuration and key that differ."""
    variants: dict[str, str]
    """Size -> tick label, in the paper's order."""
    preferred: str
    """The paper's choice."""
    budget: str = "8"


CHOICES = (
    Choice(
        "(a) mask schedule",
        "no MAE trick",
        ("train", "schedule"),
        {"nomae_linear": "linear", "nomae_cosine": "cosine", "nomae_exp": "exp"},
        "nomae_cosine",
    ),
    Choice(
        "(b) loss weight",
        "no MAE trick, cosine",
        ("train", "weight"),
        {"nomae_cosine_elbo": "γ′/γ", "nomae_cosine": "1"},
        "nomae_cosine",
    ),
    Choice("(c) MAE trick", "exp", ("model", "mae"), {"nomae_exp": "off", "mae_exp": "on"}, "mae_exp"),
    Choice(
        "(d) time truncation",
        "exp, MAE trick",
        ("train", "t_min"),
        {"mae_exp": "0", "emigm": "0.2", "tmin4": "0.4"},
        "emigm",
    ),
    Choice(
        "(e) CFG with mask",
        "exp, t ≥ 0.2, guided",
        ("model", "cfg_with_mask"),
        {"fake_token": "off", "emigm": "on"},
        "emigm",
        GUIDED,
    ),
)
"""Figure 2 (a) to (e), of the benchmark of training choices."""


class Line(NamedTuple):
    """One curve of Figure 3: the budgets <prefix>_<N>."""

    prefix: str
    label: str
    colour: str
    marker: str


FIGURE3 = (
    (
        "(a) mask schedule",
        (2, 4, 8, 16),
        tuple(Line(name, name, SCHEDULE_COLOURS[i], MARKERS[i]) for i, name in enumerate(("linear", "cosine", "exp"))),
    ),
    (
        "(b) solver",
        (2, 4, 8, 16),
        (Line("exp", "DPM-Solver", SCHEDULE_COLOURS[2], MARKERS[2]), Line("ddpm", "DDPM", "#CC79A7", MARKERS[3])),
    ),
    (
        "(c) guidance interval",
        (4, 8, 16),
        (
            Line("tmin0", "$t_{min}$ = 0", "#000000", MARKERS[0]),
            Line("tmin2", "$t_{min}$ = 0.2", "#D55E00", MARKERS[1]),
            Line("tmin4", "$t_{min}$ = 0.4", "#56B4E9", MARKERS[4]),
        ),
    ),
)
"""Title, N and curves of the panels, of the benchmark of sampling choices."""
FIGURE7 = ("exp_16", "cfg125_16", "tmin2_16", "cfg20_16", "cfg30_16", "cfg40_16")
"""Budgets of Figure 7: the same N, guidance scales upward from none (1)."""


@styled
def figure2(results: Results) -> Picture:
    """Figure 2: FID at N = 8 of the training choices (a) to (e), and below it what each model gains from context."""
    found = member(results, "training")
    ours = found.results
    title = f"Figure 2 on {results.name}: choices of training"
    if found.reason:
        return explained(found.marked, "figure2", title, found.reason, found.asked.folder)
    figure = Figure(figsize=(FULL, 4.1), layout="constrained")
    rows = figure.subplots(2, len(CHOICES), sharey="row", sharex="col", height_ratios=(3, 2))
    cells = {(s, c.budget): cell(ours, s, c.budget) for c in CHOICES for s in c.variants}
    for axes, below, choice in zip(*rows, CHOICES, strict=True):
        failed = {s: failed_seeds(ours, s) for s in choice.variants}
        fid = {s: None if (c := cells[s, choice.budget]) is None else c.fid for s in choice.variants}
        _choices(axes, choice, fid, failed)
        _choices(below, choice, {s: ratios(ours, s) or None for s in choice.variants}, failed)
        axes.set_title(f"{choice.title}\n{choice.fixed}", fontsize=7)
        _floors(axes, ours)
        for limit in {gate_limit(ours, s) for s in choice.variants} - {None}:
            below.axhline(limit, color=PREFERRED, linewidth=0.8, linestyle=(0, (1, 1)))
    drawn = [c for c in cells.values() if c is not None]
    rows[0][0].set_ylabel(fid_name(ours))
    rows[1][0].set_ylabel("context ratio")
    _scale(rows[0][0], ours, drawn)
    handles = [
        _handle("mean, the paper's choice", PREFERRED, "D"),
        _handle("mean, another", OTHER, "D"),
        _handle("one training seed", "0.45", "o", markersize=3),
        _handle("seed that fails the context gate", "0.1", "x"),
        *_floor_handles(ours),
        Line2D([], [], color=PREFERRED, linewidth=0.8, linestyle=(0, (1, 1)), label="limit of the context gate"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, columnspacing=1.2, handletextpad=0.4)
    sizes = list(dict.fromkeys(s for c in CHOICES for s in c.variants))
    missing = sorted({s for (s, _), c in cells.items() if c is None})
    notes = (
        f"Top: FID at N = 8 of models that differ in one choice; (a) to (d) unguided, (e) guided (budget {GUIDED}). "
        "Below: context ratio, the head's least error with visible tokens over its error with the fewest. The paper "
        "plots FID over training epochs; here each model is measured once, at the end of training.",
        "Thin lines join runs of the same training seed: they share initialisation, data order and sampling noise, so "
        "that a difference can be surer than the bars of its two sides show.",
        *_common_notes(ours, drawn, sizes, [f"{s} at N = 8" for s in missing]),
    )
    return _finished(found, "figure2", f"{title} ({extractor_text(ours)})", figure, notes)


@styled
def figure3(results: Results) -> Picture:
    """Figure 3: FID against N for (a) sampling schedules, (b) solvers and (c) guidance intervals with their cost."""
    found = member(results, "sampling")
    ours = found.results
    title = f"Figure 3 on {results.name}: choices of sampling"
    if found.reason:
        return explained(found.marked, "figure3", title, found.reason, found.asked.folder)
    size = ours.sizes[-1]
    figure = Figure(figsize=(FULL, 3.3), layout="constrained")
    *panels, cost = figure.subplots(1, len(FIGURE3) + 1)
    for axes in panels[1:]:
        axes.sharey(panels[0])
        axes.tick_params(labelleft=False)
    cells = {}
    for axes, (name, steps, lines) in zip(panels, FIGURE3, strict=True):
        here = {line: [cell(ours, size, f"{line.prefix}_{n}") for n in steps] for line in lines}
        cells |= {f"{ln.prefix}_{n}": c for ln, row in here.items() for n, c in zip(steps, row, strict=True)}
        _curves(axes, here, lambda c: c.steps)
        _log_axis(axes, "N", steps)
        axes.set_title(name)
        _floors(axes, ours)
    _curves(cost, here, lambda c: c.steps, lambda c: c.passes)  # of the last panel
    _log_axis(cost, "N", FIGURE3[-1][1])
    cost.set(title="cost of (c)", ylabel="forward passes of an image", ylim=(0, None))
    drawn = [c for c in cells.values() if c is not None]
    panels[0].set_ylabel(fid_name(ours))
    _scale(panels[0], ours, drawn)
    _legend(figure, ours, drawn, columns=3)
    notes = (
        f"FID of one model (size {size.upper()}) against N, the number of mask-prediction steps: (a) mask schedule of "
        "the sampler, unguided; (b) DPM-Solver against DDPM at as many solver steps, schedule exp, unguided; (c) "
        f"guidance acting on t_min < s ≤ 1 only{_scale_text(drawn, 'tmin')}, and beside it its cost: measured "
        "forward passes of the network for an image (NFE). At one N, curves stand side by side.",
        clip_note(ours, size, [f"ddpm_{n}" for n in FIGURE3[1][1]]),
        *_common_notes(ours, drawn, [size], [b for b, c in cells.items() if c is None]),
    )
    return _finished(found, "figure3", f"{title} ({extractor_text(ours)})", figure, notes)


@styled
def figure7(results: Results) -> Picture:
    """Figure 7: FID against the guidance scale."""
    found = member(results, "sampling")
    ours = found.results
    title = f"Figure 7 on {results.name}: guidance scale"
    if found.reason:
        return explained(found.marked, "figure7", title, found.reason, found.asked.folder)
    size = ours.sizes[-1]
    cells = {b: cell(ours, size, b) for b in FIGURE7}
    drawn = [c for c in cells.values() if c is not None]
    figure = Figure(figsize=(COLUMN, 2.8), layout="constrained")
    axes = figure.subplots()
    _curves(axes, {Line("cfg", "mean and interval", PREFERRED, "o"): list(cells.values())}, lambda c: c.scale)
    _log_axis(axes, "guidance scale (1: none)", tuple(sorted({c.scale for c in drawn})))
    axes.set_ylabel(fid_name(ours))
    _floors(axes, ours)
    _scale(axes, ours, drawn)
    _legend(figure, ours, drawn, columns=2)
    intervals = {tuple(_sample(ours, c)["cfg_interval"]) for c in drawn if c.scale != 1}
    where = ", ".join(f"{low:g} < s ≤ {high:g}" for low, high in sorted(intervals))
    steps = " or ".join(str(n) for n in sorted({c.steps for c in drawn}))
    notes = (
        f"FID of one model (size {size.upper()}) at N = {steps} against the guidance scale, guidance acting on {where}."
        if drawn
        else "",
        "No scale of another table is picked here, on the metric that it is reported on.",
        *_common_notes(ours, drawn, [size], [b for b, c in cells.items() if c is None]),
    )
    return _finished(found, "figure7", title, figure, notes)


def _common_notes(ours: Results, cells: list[Cell], sizes: list[str], missing: list[str]) -> tuple[str, ...]:
    """What every figure says of its numbers."""
    return (
        interval_note(cells),
        gate_verdicts(ours, sizes),
        training_note(ours),
        fid_text(ours),
        floors_text(ours),
        f"“{NOT_RUN}”: {', '.join(missing)}." if missing else "",
    )


def _choices(
    axes: Axes, choice: Choice, values: dict[str, dict[int, float] | None], failed: dict[str, frozenset[int]]
) -> None:
    """A value by training seed of every variant: seeds joined by thin lines, the mean with its interval beside them."""
    there = {s: v for s, v in values.items() if v is not None}
    place = {s: i for i, s in enumerate(values)}
    for seed in sorted({seed for v in there.values() for seed in v}):
        pairs = [(place[s], v[seed]) for s, v in there.items() if seed in v]
        axes.plot(*zip(*pairs, strict=True), color="0.75", linewidth=0.6, zorder=1)
    for size, x in place.items():
        if size not in there:
            axes.text(x, 0.5, NOT_RUN, rotation=90, ha="center", va="center", transform=axes.get_xaxis_transform())
            continue
        found = there[size]
        colour = PREFERRED if size == choice.preferred else OTHER
        _seeds(axes, x, found, failed[size], "0.45")
        mean = t_interval(list(found.values()), LEVEL)
        axes.errorbar(
            [x + 0.22], [mean.effect], yerr=[mean.half or 0], color=colour, marker="D", markersize=3.5, elinewidth=0.9
        )
    axes.set_xticks(range(len(place)), list(choice.variants.values()))
    axes.set_xlim(-0.4, len(place) - 0.4)
    axes.grid(axis="y")


def _curves(
    axes: Axes,
    lines: dict[Line, list[Cell | None]],
    x: Callable[[Cell], float],
    y: Callable[[Cell], float] | None = None,
) -> None:
    """Curves over cells: FID with intervals and seeds, or `y`, which has neither. Missing cells are left out."""
    for i, (line, cells) in enumerate(lines.items()):
        there = [c for c in cells if c is not None]
        if not there:
            continue
        look = {"color": line.colour, "marker": line.marker, "label": line.label, "mfc": "white", "zorder": 3}
        look |= {"markersize": 3.5, "linewidth": 0.9}
        if y is not None:
            axes.plot([x(c) for c in there], [y(c) for c in there], **look)
            continue
        places = [x(c) * DODGE ** (i - (len(lines) - 1) / 2) for c in there]
        for place, c in zip(places, there, strict=True):
            _seeds(axes, place * BESIDE, c.fid, c.failed, line.colour, 1.8)
        axes.errorbar(places, [c.mean for c in there], yerr=[c.half for c in there], elinewidth=0.9, **look)
    if not any(c is not None for cells in lines.values() for c in cells):
        axes.text(0.5, 0.5, NOT_RUN, ha="center", va="center", transform=axes.transAxes)
    elif len(lines) > 1 and y is None:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.24), handlelength=1.8, borderaxespad=0)


def _seeds(
    axes: Axes, x: float, values: dict[int, float], failed: frozenset[int], colour: str, size: float = 3
) -> None:
    """One small mark a training seed; × where it fails the context gate."""
    for seed, value in values.items():
        look = {"marker": "o", "color": colour, "markersize": size, "alpha": 0.8, "zorder": 2}
        if seed in failed:
            look |= {"marker": "x", "color": "0.1", "markersize": 4, "zorder": 4}
        axes.plot([x], [value], linestyle="none", **look)


def _log_axis(axes: Axes, label: str, places: tuple[float, ...]) -> None:
    """A log axis across, labelled at the values that were run."""
    axes.set(xlabel=label, xscale="log")
    axes.set_xticks(places, [f"{x:g}" for x in places])
    axes.xaxis.set_minor_locator(NullLocator())
    if places:
        axes.set_xlim(places[0] / 1.3, places[-1] * 1.3)
    axes.grid(axis="y")


def _scale(axes: Axes, results: Results, cells: list[Cell]) -> None:
    """A log axis of FID where it spans much, unless an interval reaches 0."""
    values = [v for c in cells for v in (c.mean - c.half, c.mean + c.half, *c.fid.values())]
    values += floor_lines(results).values()
    if cells and max(values) > 5 * min(values) > 0:
        axes.set_yscale("log")
        log_ticks(axes.yaxis)
    else:
        # Not the automatic locator, whose labels change while the layout is sought.
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))


def _floors(axes: Axes, results: Results) -> None:
    for dashes, fid in zip(FLOOR_DASHES, floor_lines(results).values(), strict=False):
        axes.axhline(fid, color=FLOOR_COLOUR, linestyle=dashes, linewidth=0.9, zorder=1)


def _floor_handles(results: Results) -> list[Line2D]:
    return [
        Line2D([], [], color=FLOOR_COLOUR, linestyle=dashes, linewidth=0.9, label=label.lower())
        for dashes, label in zip(FLOOR_DASHES, floor_lines(results), strict=False)
    ]


def _legend(figure: Figure, results: Results, cells: list[Cell], columns: int) -> None:
    """Below the panels: the floors, and what marks a seed that fails the context gate where one does."""
    handles = _floor_handles(results)
    if any(c.failed for c in cells):
        handles.append(_handle("seed that fails the context gate", "0.1", "x"))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def _handle(label: str, colour: str, marker: str, **look: float) -> Line2D:
    return Line2D([], [], color=colour, marker=marker, linestyle="none", label=label, **({"markersize": 4} | look))


def _sample(results: Results, found: Cell) -> dict:
    """Sampling settings of a cell."""
    return results.get(f"sample-{found.size}-{found.budget}", "settings", "sample")


def _scale_text(cells: list[Cell], prefix: str) -> str:
    """The guidance scales of the budgets <prefix>..., in words."""
    scales = sorted({c.scale for c in cells if c.budget.startswith(prefix)})
    return f" (scale {' or '.join(f'{s:g}' for s in scales)})" if scales else ""


def _finished(found: Member, name: str, title: str, figure: Figure, notes: tuple[str, ...]) -> Picture:
    """The picture with its title and marks; its files lie with the benchmark that was asked for."""
    heading = found.marked.heading(title)
    figure.suptitle(heading)
    mark_dry_run(found.marked, figure)
    return Picture(found.asked.folder, name, heading, figure, found.marked.notes(*notes))
