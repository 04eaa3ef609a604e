"""FID against the number of generated images, and what it would be of infinitely many. The paper has no such figure."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from emigm.records.record import mean_and_spread
from emigm.report.results import NOT_RUN, Results, extractor_text, fid_text, plus_minus, spread_text, weights_note
from emigm.report.statistics import fid_infinity, unit_means
from emigm.report.style import FULL, MARKERS, SIZE_COLOURS, Picture, mark_dry_run, styled

SHIFT = 0.015
"""Share of the axis by which a size stands beside the one before it."""


@styled
def convergence(results: Results) -> Picture:
    """FID over the reciprocal of the number of images, with a line to 0: one panel a budget, one curve a size."""
    title = results.heading(f"FID on {results.name} against the number of images ({extractor_text(results)})")
    budgets, sizes = results.budgets, results.sizes
    figure = Figure(figsize=(FULL, 2.8), layout="constrained")
    panels = figure.subplots(1, max(1, len(budgets)), sharey=True, squeeze=False)[0]
    evaluated = {b: {s: runs for s in sizes if (runs := _runs(results, s, b))} for b in budgets}
    numbers = {int(n) for row in evaluated.values() for runs in row.values() for n in runs[0]["fid"]}
    step = SHIFT / min(numbers, default=1)
    limits = {}
    for axes, (budget, row) in zip(panels, evaluated.items(), strict=False):
        axes.set_title(f"N = {budget}")
        found = {s: _curve(axes, row[s], s, i, i * step) for i, s in enumerate(sizes) if s in row}
        limits |= {budget: found} if found else {}
    for axes in panels:
        if not axes.containers:
            axes.text(0.5, 0.5, NOT_RUN, ha="center", transform=axes.transAxes)
            axes.set_xticks([])
            continue
        places = sorted(numbers, reverse=True)
        axes.set_xticks([0, *(1 / n for n in places)], ["∞", *map(str, places)])
        axes.set_xlabel("generated images (scale: 1 over their number)")
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
        axes.grid(axis="y")
    panels[0].set_ylabel(f"FID on {results.label}")
    handles, labels = next((axes.get_legend_handles_labels() for axes in panels if axes.containers), ([], []))
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=5)
    figure.suptitle(title)
    mark_dry_run(results, figure)
    notes = results.notes(
        "FID of all images of a sampling seed, and the mean FID of its disjoint halves and quarters. FID of n images "
        "is too high by about a constant over n; a line through each run's values ends, at ∞, in its FID of infinitely "
        "many images (Chong and Forsyth, arXiv 1911.07023). The number of real images is not corrected for.",
        *(_limits_text(budget, found) for budget, found in limits.items()),
        spread_text(results),
        weights_note(results),
        fid_text(results),
    )
    return Picture(results.folder, "convergence", title, figure, notes)


def _runs(results: Results, size: str, budget: str) -> list[dict[str, Any]]:
    """FID by number of images of every run; none where it was not measured, or at one number only."""
    found = results.get(f"evaluate-{size}", "results", budget, "fid_by_images") or []
    return [run for run in found if len(run["fid"]) > 1]


def _curve(axes: Axes, runs: list[dict[str, Any]], size: str, place: int, shift: float) -> dict[str, Any]:
    """Draw one size's values with the line to infinitely many images; returns the summary of the latter."""
    numbers = sorted(map(int, runs[0]["fid"]), reverse=True)
    values = {n: _summary([(r["train_seed"], r["sample_seed"], r["fid"][str(n)]) for r in runs]) for n in numbers}
    lines = [fid_infinity(numbers, [r["fid"][str(n)] for n in numbers]) for r in runs]
    end = _summary([(r["train_seed"], r["sample_seed"], line.effect) for r, line in zip(runs, lines, strict=True)])
    colour = SIZE_COLOURS[place % len(SIZE_COLOURS)]
    look = {"color": colour, "marker": MARKERS[place % len(MARKERS)], "markersize": 3.5, "elinewidth": 0.9}
    x = [1 / n + shift for n in numbers]
    bars = [v.get("std", 0) for v in values.values()]
    means = [v["mean"] for v in values.values()]
    axes.errorbar(x, means, yerr=bars, linestyle="none", label=size.upper(), **look)
    axes.errorbar([shift], [end["mean"]], yerr=[end.get("std", 0)], linestyle="none", mfc="white", **look)
    # The mean of the runs' lines: a line is fixed by its value at 0 and at the mean of 1/n, where it meets the data's.
    middle = math.fsum(1 / n for n in numbers) / len(numbers)
    slope = (math.fsum(means) / len(means) - end["mean"]) / middle
    axes.plot([shift, x[-1]], [end["mean"], end["mean"] + slope / numbers[-1]], color=colour, linewidth=0.7, zorder=1)
    return end


def _summary(runs: list[tuple[int, int, float]]) -> dict[str, Any]:
    """Mean and standard deviation over training seeds, or over sampling seeds where there is one training seed."""
    return mean_and_spread(list(unit_means(runs)[1].values()))


def _limits_text(budget: str, found: dict[str, dict[str, Any]]) -> str:
    """The extrapolated FIDs of one budget in a sentence."""
    listed = ", ".join(f"{size.upper()} {plus_minus(summary)}" for size, summary in found.items())
    return f"FID of infinitely many images at N = {budget}: {listed}."
