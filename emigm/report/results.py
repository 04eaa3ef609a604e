"""What the records of a benchmark say, in the words that tables, figures and the index share.

A cell without a record reads `NOT_RUN`; a cell that is nobody's to measure reads `NONE`. Never 0, never blank.
"""

# ruff: noqa: RUF001
# γ, ×, − and – are meant: they are the paper's notation.
from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from emigm.records import ConfigError, read_record

NOT_RUN, NONE = "not run", "–"
SIZES = ("xs", "s", "b", "l", "h")
EXTRACTORS = {
    "digits-cnn": ("a small CNN", "trained to classify the training images; total variance of the features set to 100")
}
"""Kind of extractor -> its name in headers, and what a note adds."""
FLOORS = {
    "holdout": ("Held-out real images", "never trained on"),
    "train_bootstrap": ("Training subset", "training images, as many as held out"),
    "class_shuffle": ("Class shuffle", "training images, each token exchanged with another image of the class"),
}
"""Keys of the reference record -> label and meaning of what is scored without any model."""
METRICS = {
    "fid": "FID",
    "isc": "IS",
    "kid": "KID",
    "precision": "Precision",
    "recall": "Recall",
    "label_accuracy": "Label accuracy",
    "nearest_train": "NN distance to training images",
    "nearest_holdout": "NN distance to held-out images",
}
"""Keys of the evaluate records -> column headers."""


@dataclass(frozen=True)
class Results:
    """All records of one benchmark."""

    root: Path
    """The repository's root."""
    name: str
    records: dict[str, dict[str, Any]]
    """By stage."""

    @property
    def folder(self) -> Path:
        """results/<benchmark>."""
        return self.root / "results" / self.name

    @property
    def dry_run(self) -> bool:
        """True when any record is a dry run's: one is enough to spoil a table."""
        return any(record["dry_run"] for record in self.records.values())

    @property
    def title(self) -> str:
        """The benchmark's name in headings."""
        return next((record["title"] for record in self.records.values()), self.name)

    @property
    def label(self) -> str:
        """The benchmark's name in column headers and axes."""
        return self.name + (" (DRY RUN)" if self.dry_run else "")

    @property
    def sizes(self) -> list[str]:
        """Model sizes with any record, smallest first."""
        known = {stage.split("-")[1] for stage in self.records if stage.startswith(("train-", "sample-", "evaluate-"))}
        return sorted(known, key=lambda s: (SIZES.index(s) if s in SIZES else len(SIZES), s))

    @property
    def budgets(self) -> list[str]:
        """NFE budgets with any record, lowest first."""
        known = {stage.split("-")[2] for stage in self.records if stage.startswith("sample-")}
        return sorted(known, key=lambda b: (int(b) if b.isdigit() else math.inf, b))

    def get(self, stage: str, *keys: str) -> Any:
        """The value under nested `keys` of a stage's record; None where the record or a key is absent."""
        tree: Any = self.records.get(stage)
        for key in keys:
            tree = tree.get(key) if isinstance(tree, dict) else None
        return tree

    def heading(self, text: str) -> str:
        """`text` as a title of this benchmark: a dry run is marked in front."""
        return f"DRY RUN: {text}" if self.dry_run else text

    def notes(self, *notes: str) -> tuple[str, ...]:
        """The notes under a table or figure (empty ones left out), with a dry run's warning first."""
        warning = "DRY RUN: the numbers only show that the machinery runs; they measure nothing."
        return tuple(note for note in (warning if self.dry_run else "", *notes) if note)


def bullets(notes: tuple[str, ...]) -> str:
    """Notes as a Markdown list."""
    return "\n".join(f"- {note}" for note in notes)


def find_root() -> Path:
    """The repository's root: the nearest folder at or above the working directory that holds `dvc.yaml`."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file():
            return folder
    raise ConfigError(f"no dvc.yaml in {here} or a folder above it; start this inside a checkout of the repository")


def load(benchmark: str, root: Path | None = None) -> Results:
    """Read every record of results/<benchmark> (`root` is found from the working directory by default).

    Raises:
        ConfigError: there is no such folder, or a record is damaged or of another schema.
    """
    root = find_root() if root is None else Path(root)
    known = benchmarks(root)
    if benchmark not in known:
        exist = ", ".join(known) or "none; dvc repro makes them"
        raise ConfigError(f"unknown benchmark {benchmark!r}: no folder results/{benchmark} (there are: {exist})")
    paths = sorted((root / "results" / benchmark / "records").glob("*.json"))
    records = [read_record(path) for path in paths]
    return Results(root, benchmark, {record["stage"]: record for record in records})


def benchmarks(root: Path) -> list[str]:
    """Folders of results/, digits first."""
    found = [path.name for path in (root / "results").glob("*") if path.is_dir() and not path.name.startswith(".")]
    return sorted(found, key=lambda name: (name != "digits", name))


def reported() -> pd.DataFrame:
    """Tables 2 and 3 as the paper prints them, all columns text: resolution, family, method, nfe, fid, params, note."""
    with resources.files("emigm").joinpath("reported.csv").open(encoding="utf-8") as f:
        return pd.read_csv(f, comment="#", dtype=str, keep_default_na=False)


def spread(summary: dict[str, Any]) -> float | None:
    """Standard deviation of a summary: over training seeds if there were several, else over samples; else None."""
    found = (summary.get(key) for key in ("train_std", "sample_std", "std"))
    return next((s for s in found if s is not None), None)


def plus_minus(summary: dict[str, Any] | None) -> str:
    """ "mean ± spread" with two significant digits of the spread (of a tenth of the mean where there is no spread).

    At most four of the mean, though: the spread of two seeds can be tiny by chance.
    """
    if summary is None:
        return NOT_RUN
    mean, deviation = summary["mean"], spread(summary)
    scale = deviation or abs(mean) / 10
    four = 3 - math.floor(math.log10(abs(mean))) if mean else 2
    digits = max(2, min(1 - math.floor(math.log10(scale)), four)) if scale > 0 else 2
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if deviation is not None else "")


def count(n: int | None) -> str:
    """Number of parameters with three significant digits, as 24.0K or 478M."""
    if n is None:
        return NOT_RUN
    unit, letter = next(((u, c) for u, c in ((1e9, "B"), (1e6, "M"), (1e3, "K")) if n >= u), (1, ""))
    value = n / unit
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}{letter}" if letter else str(n)


def nfe_text(results: Results, size: str, budget: str) -> str:
    """Measured forward passes of an image as "N×passes/N", the way Tables 2 and 3 print NFE (16×1.2)."""
    stage = f"sample-{size}-{budget}"
    passes, steps = results.get(stage, "results", "passes"), results.get(stage, "settings", "sample", "steps")
    return NOT_RUN if passes is None or steps is None else f"{steps}×{passes / steps:.3g}"


def gate_text(results: Results, size: str) -> str:
    """Verdict of the context gate with the error ratio it rests on."""
    context = results.get(f"train-{size}", "results", "context")
    if context is None:
        return NOT_RUN
    return f"{'passed' if context['passed'] else 'FAILED'} ({plus_minus(context['ratio'])})"


def gate_note(results: Results) -> str:
    """What the context gate is, with its limit where all train records name the same."""
    limits = {results.get(f"train-{size}", "settings", "gate", "max_ratio") for size in results.sizes} - {None}
    limit = f"; every training seed must stay at or below {limits.pop():g}" if len(limits) == 1 else ""
    return (
        "Context gate: the head's least error with visible tokens over its error with the fewest, about 1 for a model "
        f"that ignores what is visible{limit}."
    )


def evaluations(results: Results) -> list[tuple[str, str]]:
    """Every evaluated (size, budget)."""
    return [(s, b) for s in results.sizes for b in results.budgets if results.get(f"evaluate-{s}", "results", b)]


def spread_text(results: Results) -> str:
    """What ± is and over how many training and sampling seeds."""
    groups: dict[tuple[int, int], dict[str, list[str]]] = {}
    for size, budget in evaluations(results):
        settings = results.get(f"evaluate-{size}", "settings")
        numbers = len(settings["train_seeds"]), len(settings["seeds"])
        groups.setdefault(numbers, {}).setdefault(size, []).append(budget)
    texts = []
    for (train, sample), cells in groups.items():
        seeds = plural(sample, "sampling seed")
        if train > 1:
            text = f"the standard deviation over {train} training seeds (of their means over {seeds})"
        elif sample > 1:
            text = f"the standard deviation over {seeds} of one training run (nothing of other training runs)"
        else:
            text = "absent (one training and one sampling seed)"
        where = ", ".join(f"{size.upper()} (N = {', '.join(budgets)})" for size, budgets in cells.items())
        texts.append(f"{text}, for {where}" if len(groups) > 1 else text)
    return f"± is {'; '.join(texts)}." if texts else "Nothing has been evaluated yet."


def extractor_text(results: Results) -> str:
    """The feature extractor behind FID, such as "64 features of a small CNN"."""
    kind, features = _extractor(results), results.get("extractor", "results", "features")
    return (f"{features} " if features else "") + f"features of {EXTRACTORS.get(kind, (kind,))[0]}"


def _extractor(results: Results) -> str:
    """Kind of the extractor, from the first record that names one."""
    settings = [results.get(stage, "settings", "extractor") for stage in ("extractor", *results.records)]
    return next((s["kind"] for s in settings if s), "an extractor that no record names")


def reference_text(results: Results) -> str:
    """The real images that FID compares with."""
    images = results.get("reference", "results", "real", "images")
    if images is None:
        return "real images (no record)"
    kind = "training" if images == results.get("prepare", "results", "train_images") else "real"
    return f"{images:,} {kind} images"


def fid_text(results: Results) -> str:
    """What FID is on this benchmark: extractor, number of generated images, reference."""
    images = {results.get(f"evaluate-{s}", "settings", "images") for s, _ in evaluations(results)}
    number = " or ".join(f"{n:,}" for n in sorted(images)) or "no"
    more = EXTRACTORS.get(_extractor(results), ("", ""))[1]
    return (
        f"FID on {results.label}: Fréchet distance of {extractor_text(results)}{f' ({more})' if more else ''}, between "
        f"{number} generated images (of one sampling seed) and {reference_text(results)}."
    )


def floors(results: Results) -> dict[str, dict[str, Any]]:
    """What needs no model, by row label: {"fid": summary, other metrics, "images": int}."""
    found = results.get("reference", "results", "floors") or {}
    between = results.get("reference", "results", "nearest", "holdout_to_train")
    more = {"holdout": {"nearest_train": between}}
    return {label: found[key] | more.get(key, {}) for key, (label, _) in FLOORS.items() if key in found}


def floors_text(results: Results) -> str:
    """The floors in a sentence."""
    found, meanings = floors(results), dict(FLOORS.values())
    parts = [f"{x.lower()} ({meanings[x]}; {f['images']:,} images) {plus_minus(f['fid'])}" for x, f in found.items()]
    return f"FID of what no model made: {'; '.join(parts) or NOT_RUN}."


def plural(n: int, what: str) -> str:
    """`n` of something countable."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"
