"""`emigm compare`: this project's numbers against those that the paper reports, cell by cell.

A cell is comparable where the settings of its records are the paper's: `differences` lists those that are not, by key.
"""

# ruff: noqa: RUF001
# × is meant: it is the paper's notation.
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from tabulate import tabulate

from emigm.config.benchmark import Benchmark
from emigm.config.errors import ConfigError
from emigm.config.parsing import as_dict
from emigm.config.paths import results_folder
from emigm.config.schema import CompareConfig
from emigm.paper.reported import PAPER_IMAGES, reported
from emigm.paper.settings import INCEPTION_SHA256, PAPER_MODELS, paper_sampling, paper_train
from emigm.records.frame import Records, read_all
from emigm.report.tables import NONE, NOT_RUN, count, nfe_text, plural
from emigm.tools.doctor import how_to_run
from emigm.tools.fetch import REFERENCES, recorded

WITHIN, OUTSIDE, INCOMPARABLE = "within", "OUTSIDE", "not comparable"
PRECISIONS = ("float16", "tf32", "float32")
"""The official evaluation's, in which it samples and decodes, and those that round no coarser (bfloat16 does, eight
times): with them a cell is judged, and a note says so."""
OWN_TRAINING = ("steps", "batch", "lr", "warmup_steps", "seeds", "checkpoint_every", "snapshots", "precision")
"""What of the training settings may follow the machine: the number of images must be the paper's."""


@dataclass(frozen=True)
class Cell:
    """One of the paper's models at one of its two budgets: its row of the paper's table, our FID (the mean over seeds;
    None: not run), the greatest |difference| that counts as reproduced, why it is not comparable, and what of a
    comparable one is not the paper's and rounds no coarser."""

    size: str
    budget: str
    reported: dict[str, str]
    fid: float | None
    tolerance: float
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def difference(self) -> float | None:
        """(Ours - reported) / reported."""
        return None if self.fid is None else self.fid / float(self.reported["fid"]) - 1

    @property
    def verdict(self) -> str:
        if self.fid is None:
            return NOT_RUN
        if self.reasons:
            return INCOMPARABLE
        return WITHIN if abs(self.difference) <= self.tolerance else OUTSIDE


def compare(benchmark: Benchmark, allow_missing: bool = False) -> int:
    """Print the comparison of what lies in `results/`; 0 where every cell that the paper reports, or that has run
    (`allow_missing`), is within the tolerance, else 1. Raises ConfigError where there is nothing to compare."""
    name, cfg = benchmark.name, benchmark.compare
    if cfg is None:
        raise ConfigError(f"{name} has no benchmark.compare: the paper has no such; compare imagenet256 or imagenet512")
    if not any((results_folder(name) / "records").glob("*.json")):
        todo = f"`emigm doctor {name}` says what it needs, and `{how_to_run(name)}` runs it"
        raise ConfigError(f"{name}: not run yet, so there is nothing to compare; {todo}")
    results = read_all(Path(), name)
    cells = compare_cells(results, cfg)
    print(table(name, results, cells, cfg))
    counts = {v: sum(c.verdict == v for c in cells) for v in (WITHIN, OUTSIDE, INCOMPARABLE, NOT_RUN)}
    print("\n" + ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n))
    problem = failure(counts, allow_missing)
    within = f"{plural(counts[WITHIN], 'FID')} within the tolerance of the paper's"
    print(f"`emigm verify {name}` says whether these results are whole and belong together")
    print(f"not reproduced: {problem}" if problem else f"reproduced: {within}")
    return 1 if problem else 0


def failure(counts: dict[str, int], allow_missing: bool) -> str | None:
    """Why a comparison does not count as a reproduction; None: it does."""
    if counts[OUTSIDE]:
        return f"{plural(counts[OUTSIDE], 'FID')} outside the tolerance"
    if not counts[WITHIN]:
        return "nothing was comparable with the paper"
    if counts[INCOMPARABLE]:
        return f"{plural(counts[INCOMPARABLE], 'cell')} not comparable with the paper"
    if counts[NOT_RUN] and not allow_missing:
        return f"{plural(counts[NOT_RUN], 'cell')} not run (--allow-missing if that is meant)"
    return None


def compare_cells(results: Records, cfg: CompareConfig) -> list[Cell]:
    """A cell for every row of the paper's own models at the resolution."""
    cells = []
    for row in reported(cfg.resolution).query("family == 'Ours'").to_dict("records"):
        size, budget = row["size"], row["budget"]
        scored = results.at(f"evaluate-{size}", "results", budget, "runs")
        fid = scored and fmean(run["fid"] for run in scored)
        released = results.at(f"train-{size}", "weights") == "released"
        tolerance = cfg.fid_tolerance_released if released else cfg.fid_tolerance
        reasons, notes = ([], []) if fid is None else differences(results, cfg.resolution, size, budget)
        cells.append(Cell(size, budget, row, fid, tolerance, tuple(reasons), tuple(notes)))
    return cells


def differences(results: Records, resolution: int, size: str, budget: str) -> tuple[list[str], list[str]]:
    """What of a measured cell is not as in the paper: what makes it incomparable, and what only has to be noted."""
    stages = (f"train-{size}", f"sample-{size}-{budget}", f"evaluate-{size}")
    if missing := [f"no record {stage}" for stage in stages if stage not in results]:
        return missing, []
    reasons, notes = [], []
    for key, (ours, paper) in settings(results, resolution, size, int(budget), *stages).items():
        if ours == paper or (key == "train.images" and abs((ours or 0) / paper - 1) <= 0.01):
            continue  # another batch leaves out another part of an epoch
        noted = key.endswith(".precision") and ours in PRECISIONS
        text = f"{key} = {ours}, the paper's: {paper}"
        (notes if noted else reasons).append(f"{text}, which rounds no finer" if noted else text)
    return reasons, notes


def settings(
    results: Records, resolution: int, size: str, budget: int, train: str, sample: str, evaluate: str
) -> dict[str, tuple[Any, Any]]:
    """Key -> (ours, the paper's) of all that a cell's number rests on; the last three name its records."""
    at, name, weights = results.at, REFERENCES[resolution], results.at(train, "weights")
    sampling = as_dict(paper_sampling(resolution, size, budget)) | {"precision": PRECISIONS[0]}
    theirs = paper_train(size)
    recipe = {k: v for k, v in as_dict(theirs).items() if k not in OWN_TRAINING} if weights == "trained" else {}
    parts = [("model", train, as_dict(PAPER_MODELS[resolution, size])), ("sample", sample, sampling)]
    parts.append(("train", train, recipe))
    pairs = {
        f"{part}.{key}": (at(stage, "settings", part, key), value)
        for part, stage, paper in parts
        for key, value in paper.items()
    }
    if weights == "trained":
        if at(train, "settings", "model", "mae") and pairs["train.mask_times"][0] == "group":
            del pairs["train.mask_times"]  # the paper's auto comes to the same
        pairs["train.images"] = at(train, "results", "images"), theirs.steps * theirs.batch
    else:
        pairs["released.token"] = at(train, "settings", "source", "shared_token", "used"), "official"
    whose, known = {str(at(stage, "weights")) for stage in (train, sample, evaluate)}, recorded(name)
    reference = at(evaluate, "settings", "reference_source", "sha256") if known else at(evaluate, "reference")
    return pairs | {
        "weights": (" and ".join(sorted(whose)), weights or "released or trained"),
        "autoencoder.precision": (at(sample, "settings", "autoencoder", "precision"), PRECISIONS[0]),
        "extractor.kind": (at(evaluate, "settings", "extractor", "kind"), "inception"),
        "extractor.sha256": (at(evaluate, "settings", "extractor_identity", "sha256"), INCEPTION_SHA256),
        "reference": (reference, known or name),
        "evaluation.images": (at(evaluate, "settings", "images"), PAPER_IMAGES),
        "dry_run": (any(at(stage, "dry_run") for stage in (train, sample, evaluate)), False),
    }


def table(name: str, results: Records, cells: list[Cell], cfg: CompareConfig) -> str:
    """The comparison as text, with the reasons below."""
    at, rows = results.at, []
    for c in cells:
        sample, train = f"sample-{c.size}-{c.budget}", f"train-{c.size}"
        rows.append({
            "model": c.reported["method"],
            "NFE (paper)": c.reported["nfe"].replace("x", "×"),
            "NFE": nfe_text(at(sample, "settings", "sample", "steps"), at(sample, "results", "passes")),
            "params (paper)": c.reported["params"],
            "params": count(at(train, "results", "parameters")),
            "weights": at(train, "weights") or NOT_RUN,
            "FID (paper)": c.reported["fid"],
            "FID": NOT_RUN if c.fid is None else f"{c.fid:.2f}",
            "difference": NONE if c.difference is None else f"{100 * c.difference:+.1f}%",
            "tolerance": f"±{100 * c.tolerance:g}%",
            "verdict": c.verdict,
        })  # fmt: skip
    notes = [
        f"Tolerance, of the reported FID: {100 * cfg.fid_tolerance_released:g}% for released weights "
        f"(benchmark.compare.fid_tolerance_released), {100 * cfg.fid_tolerance:g}% for trained ones (fid_tolerance)."
    ]
    if recorded(REFERENCES[cfg.resolution]) is None:
        notes.append(f"Reference statistics: known by their name alone; `emigm fetch {name}` records their checksum.")
    reasons: dict[tuple[str, ...], list[str]] = {}
    for c in cells:
        if c.reasons:
            reasons.setdefault(c.reasons, []).append(f"{c.reported['method']} N={c.budget}")
    notes += [f"not comparable: {', '.join(names)}: {'; '.join(why)}" for why, names in reasons.items()]
    notes += sorted({f"note: {note}" for c in cells for note in c.notes})
    mark = "DRY RUN: " if any(record["dry_run"] for record in results.values()) else ""
    title = f"{mark}{name} against the paper's Table {2 if cfg.resolution == 256 else 3}"
    return "\n".join([title, "", tabulate(rows, "keys", "simple", disable_numparse=True), "", *notes])
