"""Tables 2, 3 and 4 of the paper with this project's numbers beside them, and all metrics of a benchmark."""

# ruff: noqa: RUF001
# γ, ×, − and – are meant: they are the paper's notation.
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from emigm.files import write_atomically
from emigm.model.schedules import elbo_weight, gamma
from emigm.report.results import (
    METRICS,
    NONE,
    NOT_RUN,
    PAPER_IMAGES,
    Results,
    bullets,
    count,
    extractor_text,
    features_text,
    fid_name,
    fid_text,
    floors,
    floors_text,
    gate_note,
    gate_text,
    metric,
    model_name,
    nfe_text,
    plus_minus,
    reported,
    spread_text,
    thousands,
    weights_note,
    weights_text,
)

PAPER_TABLES = {256: 2, 512: 3}
"""ImageNet resolution -> the paper's table."""
NFE_NOTE = (
    "NFE: N mask-prediction steps × forward passes of a step (measured mean; below 1 where an image's tokens ran out "
    "before the last step)."
)
NN_NOTE = (
    "NN distance: root mean square over pixels (grey levels 0..255) between an image and its nearest neighbour in the "
    "set named, mean over images; of the training images as many are searched as were held out."
)
FORMULAS: dict[str, tuple[str, str, Callable, Callable]] = {
    "linear": ("t", "1/t", lambda t: t, lambda t: 1 / t),
    "cosine": (
        "cos(π/2·(1−t))",
        "π/2·tan(π/2·(1−t))",
        lambda t: math.cos(math.pi / 2 * (1 - t)),
        lambda t: math.pi / 2 * math.tan(math.pi / 2 * (1 - t)),
    ),
    "exp": (
        "1 − exp(−5t)",
        "5·exp(−5t)/(1 − exp(−5t))",
        lambda t: 1 - math.exp(-5 * t),
        lambda t: 5 * math.exp(-5 * t) / (1 - math.exp(-5 * t)),
    ),
}
"""Table 4: name -> gamma and gamma'/gamma as printed, then as functions written out from the print."""


@dataclass(frozen=True, repr=False)
class Table:
    """A table with its title and notes; a notebook shows it as Markdown."""

    folder: Path
    """Where `save` writes."""
    name: str
    title: str
    frame: pd.DataFrame
    """All cells are text."""
    notes: tuple[str, ...]
    """What a reader must know; a list under the table."""
    below: Table | None = None
    """A second table of the same file."""

    def markdown(self, level: int = 2) -> str:
        """Heading of the given level, table and notes; a group's name stands in its first row only."""
        frame = self.frame.copy()
        if "Family" in frame:
            frame["Family"] = frame["Family"].mask(frame["Family"].duplicated(), "")
        grid = frame.to_markdown(index=False, disable_numparse=True)
        text = f"{'#' * level} {self.title}\n\n{grid}\n\n{bullets(self.notes)}\n"
        return text if self.below is None else f"{text}\n{self.below.markdown(level + 1)}"

    def save(self) -> list[Path]:
        """Write <name>.md (this table and the one below) and a <name>.csv of each."""
        page, tables = self.folder / f"{self.name}.md", [t for t in (self, self.below) if t is not None]
        write_atomically(page, lambda p: p.write_text(self.markdown(1), encoding="utf-8"))
        for table in tables:
            write_atomically(
                self.folder / f"{table.name}.csv",
                lambda p, frame=table.frame: frame.to_csv(p, index=False, lineterminator="\n", encoding="utf-8"),
            )
        return [page, *(self.folder / f"{table.name}.csv" for table in tables)]

    def __repr__(self) -> str:
        # What an executed notebook keeps beside the picture or table: no path of the machine that ran it.
        return f"<Table {self.name} of results/{self.folder.name}>"

    def _repr_markdown_(self) -> str:
        return self.markdown()


def table2(results: Results) -> Table:
    """Table 2: ImageNet 256×256 as reported, beside this benchmark; below it all metrics of the benchmark."""
    return _beside_reported(results, 256)


def table3(results: Results) -> Table:
    """Table 3: ImageNet 512×512 as reported, beside this benchmark; below it all metrics of the benchmark."""
    return _beside_reported(results, 512)


def metrics_table(results: Results, name: str = "metrics") -> Table:
    """Every metric by size and budget, with the floors and real images as last rows."""
    first, rows = f"Model on {results.label}", []
    for size in results.sizes:
        for budget in results.budgets:
            summary = results.get(f"evaluate-{size}", "results", budget, "summary")
            measured = {title: metric(summary, key) for key, title in METRICS.items()}
            model = {first: model_name(size), "N": budget, "NFE": nfe_text(results, size, budget)}
            rows.append(model | measured)
    rows += [
        {first: f"{label} ({f['images']:,})"} | _present({k: f.get(k) for k in METRICS})
        for label, f in floors(results).items()
    ]
    real = results.get("reference", "results", "real") or {}
    if "isc" in real:
        rows.append({first: f"Reference: real images ({real['images']:,})"} | _present({"isc": real["isc"]}))
    frame = pd.DataFrame(rows, columns=[first, "N", "NFE", *METRICS.values()]).fillna(NONE)
    frame = frame.drop(columns=[c for c in frame if len(frame) and (frame[c] == NONE).all()])
    if results.dry_run:
        frame = frame.rename(columns={title: f"{title} (DRY RUN)" for title in METRICS.values()})
    frame = frame.rename(columns={METRICS["fid"]: fid_name(results), f"{METRICS['fid']} (DRY RUN)": fid_name(results)})
    notes = results.notes(
        fid_text(results),
        features_text(results),
        weights_note(results),
        spread_text(results),
        NFE_NOTE,
        NN_NOTE if any("NN distance" in column for column in frame) else "",
        f"“{NOT_RUN}”: no record. “{NONE}”: does not apply or is not measured.",
    )
    return Table(results.folder, name, results.heading(f"All metrics on {results.name}"), frame, notes)


def table4(results: Results) -> Table:
    """Table 4: the mask schedules, with values of gamma and gamma'/gamma from `emigm.model.schedules`."""
    times = (0.2, 0.5, 0.8)
    rows = []
    for name, (value, ratio, closed_value, closed_ratio) in FORMULAS.items():
        ours = np.array([[gamma(name, t), elbo_weight(name, t)] for t in times])
        printed = np.array([[closed_value(t), closed_ratio(t)] for t in times])
        row = {"Schedule": name, "γ(t)": value, "γ′(t)/γ(t)": ratio}
        row |= {f"γ({t:g})": f"{v:.4f}" for t, v in zip(times, ours[:, 0], strict=True)}
        row |= {f"γ′/γ at {t:g}": f"{v:.4f}" for t, v in zip(times, ours[:, 1], strict=True)}
        row["Code = formula (1e-12)"] = "yes" if np.allclose(ours, printed, rtol=0, atol=1e-12) else "NO"
        rows.append(row)
    notes = results.notes(
        "γ(t): probability that a token is masked at time t (1: all masked, 0: none). The paper prints the ratio with "
        "a minus sign, since its time runs from 1 to 0. Values come from emigm.model.schedules; the last column "
        "compares them with the printed formulas at the three times.",
        _schedules_used(results),
    )
    return Table(results.folder, "table4", results.heading("Table 4: mask schedules"), pd.DataFrame(rows), notes)


def _beside_reported(results: Results, resolution: int) -> Table:
    own = results.name == f"imagenet{resolution}"  # the benchmark is what the paper's table is about
    data, where = f"ImageNet {resolution}×{resolution}", results.label
    name = f"table{PAPER_TABLES[resolution]}"
    rows, lines = [], reported().query("resolution == @resolution", local_dict={"resolution": str(resolution)})
    budgets = _budgets_for(results, lines, own)
    scale = fid_name(results) + ("" if own else f" ({extractor_text(results)}; not comparable with the paper's)")
    seen = set()
    for line in lines.itertuples():
        row = {
            "Family": line.family,
            "Method": line.method + (f" ({line.note})" if line.note else ""),
            "NFE (paper)": line.nfe.replace("x", "×"),
            f"FID-{thousands(PAPER_IMAGES)} (paper, {data})": line.fid,
            "Params (paper)": line.params or NONE,
        }
        measured = ("NFE", "Weights", "Params", "Context gate")
        nfe, weights, params, gate = (f"{what} on {where}" for what in measured)
        cells = dict.fromkeys((nfe, scale, weights, params, gate), NONE)
        if line.family == "Ours":
            size, budget = line.method.split("-")[1].lower(), budgets[_steps(line.nfe)]
            seen.add(size)
            parameters = results.get(f"train-{size}", "results", "parameters")
            cells = {
                nfe: nfe_text(results, size, str(budget)),
                scale: metric(results.get(f"evaluate-{size}", "results", str(budget), "summary"), "fid"),
                weights: weights_text(results, size),
                params: count(parameters),
                gate: gate_text(results, size),
            }
        rows.append(row | cells)
    title = f"Table {PAPER_TABLES[resolution]}: {data} as the paper reports it, "
    title += "and as measured here" if own else f"beside {results.name} as measured here"
    unseen = [size.upper() for size in results.sizes if size not in seen]
    notes = results.notes(
        f"“(paper)”: reported in Table {PAPER_TABLES[resolution]} of the paper, not measured here. "
        f"“on {where}”: measured by this project. “{NONE}”: not measured; the other methods are not run. "
        f"“{NOT_RUN}”: no record.",
        "" if own else _stand_in_text(results, data, budgets),
        fid_text(results),
        weights_note(results),
        spread_text(results),
        floors_text(results),
        NFE_NOTE,
        gate_note(results),
        f"Not in the paper's table: {', '.join(unseen)} (see all metrics below)." if unseen else "",
    )
    below = metrics_table(results, f"{name}-metrics")
    return Table(results.folder, name, results.heading(title), pd.DataFrame(rows), notes, below)


def _stand_in_text(results: Results, data: str, budgets: dict[int, str | None]) -> str:
    """How a benchmark's sizes and budgets were put beside another data set's."""
    pairs = [f"{f'N = {ours}' if ours else NOT_RUN} beside the paper's N = {n}" for n, ours in sorted(budgets.items())]
    return (
        f"The benchmark {results.name} is not {data}: other images, and other models under the same letters, so the "
        f"two FID columns share no scale. Budgets stand by rank: {'; '.join(pairs)}."
    )


def _budgets_for(results: Results, lines: pd.DataFrame, own: bool) -> dict[int, str | None]:
    """The paper's N -> the benchmark's budget in its place: the same N on the paper's data, else the same rank."""
    paper = sorted({_steps(nfe) for nfe in lines.loc[lines["family"] == "Ours", "nfe"]})
    if own:
        return {n: str(n) for n in paper}
    ours = results.budgets
    return {paper[0]: ours[0] if ours else None, paper[-1]: ours[-1] if len(ours) > 1 else None}


def _steps(nfe: str) -> int:
    """N of a printed "N x share"."""
    return int(nfe.split("x")[0])


def _present(values: dict[str, dict | float | None]) -> dict[str, str]:
    """Cells of the metrics that a row has; a bare number is a mean without spread."""
    summaries = {k: v if isinstance(v, dict) else {"mean": v} for k, v in values.items() if v is not None}
    return {METRICS[key]: plus_minus(summary) for key, summary in summaries.items()}


def _schedules_used(results: Results) -> str:
    """Which schedules the benchmark's records name."""
    trained = {results.get(f"train-{s}", "settings", "train", "schedule") for s in results.sizes} - {None}
    cells = [f"sample-{s}-{b}" for s in results.sizes for b in results.budgets]
    sampled = {results.get(cell, "settings", "sample", "schedule") for cell in cells} - {None}
    facts = {"trained": trained, "sampled": sampled}
    used = [f"{what} with {', '.join(sorted(names))}" for what, names in facts.items() if names]
    return f"{results.name} is {' and '.join(used)}." if used else ""
