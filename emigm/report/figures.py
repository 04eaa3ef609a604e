"""Figures 1, 4, 5 and 6 of the paper for one benchmark, in one style."""

# ruff: noqa: RUF001
# γ, ×, − and – are meant: they are the paper's notation.
from __future__ import annotations

import functools
import math
from collections.abc import Container
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.image import imread

from emigm.model.schedules import SCHEDULES, elbo_weight, expected_reveal_counts, gamma
from emigm.report.family import head
from emigm.report.results import (
    NOT_RUN,
    SIZES,
    Results,
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
from emigm.report.style import (
    BUDGET_COLOURS,
    COLUMN,
    DASHES,
    DPI,
    FLOOR_DASHES,
    FULL,
    MARKERS,
    SCHEDULE_COLOURS,
    SIZE_COLOURS,
    Picture,
    explained,
    log_ticks,
    mark_dry_run,
    styled,
)

GRID_ROWS = 10
"""Classes in a sample grid, at most (emigm.pictures)."""
_reveal_counts = functools.cache(expected_reveal_counts)  # the paper's L and N return for every benchmark


class Point(NamedTuple):
    """One evaluated model."""

    size: str
    budget: str
    fid: float
    spread: float | None
    flops: float | None  # of one training run
    seconds: float | None  # for one image


@styled
def figure1(results: Results) -> Picture:
    """Figure 1: generated images. The largest size at the highest budget, then a strip of every size."""
    title = f"Figure 1 on {results.name}: generated images"
    sizes, budget = results.sizes, results.budgets[-1] if results.budgets else None
    grids = {s: _grid(results, s, budget) for s in sizes}
    largest = max(
        (s for s in sizes if grids[s] is not None),
        key=lambda s: results.get(f"train-{s}", "results", "parameters") or 0,
        default=None,
    )
    if largest is None:
        return explained(results, "figure1", title, f"no sample grid in results/{results.name}/grids: {NOT_RUN}")
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
    title = results.heading(title)
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
        title = f"Figure 4 on {results.name}: compute, sampling time and FID"
        why = f"{results.name} is no ladder of sizes: Figures 2, 3 and 7 on {other} draw its records"
        return explained(results, "figure4", title, why)
    points = [_point(results, size, budget) for size, budget in evaluations(results)]
    figure = Figure(figsize=(FULL, 2.8), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    budgets, trainings = results.budgets, _trainings(results)
    for i, budget in enumerate(budgets):
        here = [p for p in points if p.budget == budget]
        look = {"color": BUDGET_COLOURS[i % 3], "marker": MARKERS[i % 5], "label": f"N = {budget}"}
        _curve(panels[0], [(p.flops, p) for p in here], linestyle="none", named=trainings if i == 0 else (), **look)
        look["linestyle"] = DASHES[i % 3]
        _curve(panels[2], [(p.seconds, p) for p in here if p.size in trainings], named=trainings, **look)
    for i, same in enumerate(trainings.values()):
        here = [p for p in points if p.size in same and p.budget == budgets[-1]]
        along = sorted(((p.flops, p) for p in here if p.flops is not None), key=lambda pair: pair[0])
        _curve(panels[1], along, linestyle="-", named=trainings, color=SIZE_COLOURS[i % 5], marker=MARKERS[i % 5])
    panels[0].set(title="(a) training compute", xlabel="training FLOPs of one run", ylabel=fid_name(results))
    high = f", N = {budgets[-1]}" if budgets else ""
    single = all(len(same) == 1 for same in trainings.values())
    once = "\n(one training budget was run)" if single and any(p.flops for p in points) else ""
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
        + (
            "budget, one marker a size: each size was trained at one training budget only, so this panel shows no "
            "curve along training."
            if single
            else f"budget; a line joins the trainings of one size ({_trainings_text(trainings)}), of which the first "
            "alone is named and timed."
        )
        + f" (c) every sampling budget against measured seconds for one image ({devices}).",
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


def _trainings(results: Results) -> dict[str, list[str]]:
    """The sizes by architecture: the first of each, and all of it (the others differ in their training)."""
    found: dict[str, list[str]] = {}
    for size in results.sizes:
        model = results.get(f"train-{size}", "settings", "model")
        same = (s for s in found if model is not None and results.get(f"train-{s}", "settings", "model") == model)
        found.setdefault(next(same, size), []).append(size)
    return found


def _trainings_text(trainings: dict[str, list[str]]) -> str:
    return "; ".join(
        f"{s.upper()} is {one.upper()} trained otherwise" for one, same in trainings.items() for s in same[1:]
    )


def _grid(results: Results, size: str, budget: str | None) -> np.ndarray | None:
    """Grey levels or colours in [0, 1] of a sample grid at its own resolution."""
    path = results.folder / "grids" / f"{size}-{budget}.png"
    return imread(path) if path.is_file() else None


def _row_labels(results: Results, height: int) -> list[str]:
    """Classes of a grid's rows, where there are ten at most: of more the grid shows one image each, in turn."""
    classes = results.get("prepare", "results", "classes") or 0
    rows = 0 < classes <= GRID_ROWS and height % classes == 0
    return [str(c) for c in range(classes)] if rows else []


def _drawn(axes: Axes) -> bool:
    """Whether any point was drawn."""
    return any(isinstance(c, ErrorbarContainer) for c in axes.containers)


def _point(results: Results, size: str, budget: str) -> Point:
    fid = results.get(f"evaluate-{size}", "results", budget, "summary", "fid")
    seconds = results.get(f"sample-{size}-{budget}", "results", "seconds_per_image", "mean")
    flops = results.get(f"train-{size}", "results", "flops")
    return Point(size, budget, fid["mean"], spread(fid), flops, seconds)


def _curve(axes: Axes, points: list[tuple[float | None, Point]], named: Container[str], **look) -> None:
    """FID with error bars at the given abscissae (a point that lacks one is left out); `named`: sizes to write."""
    known = [(x, p) for x, p in points if x is not None]
    if not known:
        return
    x, ours = zip(*known, strict=True)
    bars = [p.spread or 0 for p in ours]
    axes.errorbar(x, [p.fid for p in ours], yerr=bars, elinewidth=0.9, barsabove=True, **({"mfc": "white"} | look))
    for place, p in ((place, p) for place, p in known if p.size in named):
        axes.annotate(p.size.upper(), (place, p.fid), xytext=(4, 3), textcoords="offset points", fontsize=7)


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
