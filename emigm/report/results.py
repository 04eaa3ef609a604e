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

from emigm.config.errors import ConfigError
from emigm.records.record import read_record

NOT_RUN, NONE = "not run", "–"
SIZES = ("xs", "s", "b", "l", "h")
EXTRACTORS = {
    "digits-cnn": ("a small CNN", "trained to classify the training images; total variance of the features set to 100"),
    "inception": ("Inception-v3", "the TensorFlow weights that FID is defined with, through torch-fidelity"),
}
"""Kind of extractor -> its name in headers, and what a note adds."""
FLOORS = {
    "holdout": ("Held-out real images", "never trained on"),
    "train_bootstrap": ("Training subset", "training images, as many as held out"),
    "class_shuffle": ("Class shuffle", "training images, each token exchanged with another image of the class"),
}
"""Keys of the reference record -> label and meaning of what is scored without any model."""
PAPER_IMAGES = 50_000
"""Generated images behind a FID of the paper's tables."""
METRICS = {
    "fid": "FID",
    "isc": "IS",
    "kid": "KID",
    "precision": "Precision",
    "recall": "Recall",
    "clean_fid": "Clean-FID",
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


def fid_name(results: Results) -> str:
    """FID with the number of generated images where all records have the same: "FID-50K on imagenet256"."""
    numbers = evaluated_images(results)
    number = f"-{thousands(numbers[0])}" if len(numbers) == 1 else ""
    return f"FID{number} on {results.label}"


def thousands(n: int) -> str:
    """50000 as 50K, 1500 as 1.5K, 60 as 60."""
    return f"{n / 1000:g}K" if n >= 1000 else str(n)


def evaluated_images(results: Results) -> list[int]:
    """Numbers of generated images of one sampling seed that FIDs rest on."""
    return sorted({results.get(f"evaluate-{s}", "settings", "images") for s, _ in evaluations(results)} - {None})


def weights_of(results: Results, size: str) -> str | None:
    """Whose weights a size has: "trained" or "released"; None: no record."""
    stage = f"train-{size}"
    return results.get(stage, "weights") or results.get(stage, "settings", "weights")


def weights_text(results: Results, size: str) -> str:
    """A size's weights in a cell."""
    return {"trained": "trained here", "released": "released", None: NOT_RUN}[weights_of(results, size)]


def weights_note(results: Results) -> str:
    """Where weights come from, and how much they were trained."""
    groups: dict[str, list[str]] = {}
    for size in results.sizes:
        groups.setdefault(_training(results, size), []).append(size.upper())
    texts = [f"{', '.join(sizes)}: {text}" for text, sizes in groups.items() if text]
    return f"Weights: {'; '.join(texts)}." if texts else ""


def _training(results: Results, size: str) -> str:
    """How a size came by its weights; empty without a record."""
    stage = f"train-{size}"
    if weights_of(results, size) == "released":
        return "released by the paper's authors, not trained here"
    images, steps = results.get(stage, "results", "images"), results.get(stage, "settings", "train", "steps")
    return f"trained here on {images:,} images in {steps:,} steps" if images and steps else ""


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
    with resources.files("emigm.paper").joinpath("reported.csv").open(encoding="utf-8") as f:
        return pd.read_csv(f, comment="#", dtype=str, keep_default_na=False)


def spread(summary: dict[str, Any]) -> float | None:
    """Standard deviation of a summary: over training seeds if there were several, else over samples; else None."""
    found = (summary.get(key) for key in ("train_std", "sample_std", "std"))
    return next((s for s in found if s is not None), None)


def metric(summary: dict[str, Any] | None, key: str) -> str:
    """A metric of an evaluation's summary: `NOT_RUN` without the evaluation, `NONE` where it was not measured."""
    if summary is not None and (summary.get(key) or {}).get("mean") is None:
        return NONE
    return plus_minus(summary and summary[key])


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
    if context is None:  # released weights without held-out images have a record, but no gate
        return NOT_RUN if results.get(f"train-{size}") is None else NONE
    return f"{'passed' if context['passed'] else 'FAILED'} ({plus_minus(context['ratio'])})"


def gate_note(results: Results) -> str:
    """What the context gate is, with its limit where all train records name the same."""
    limits = {results.get(f"train-{size}", "settings", "gate", "max_ratio") for size in results.sizes} - {None}
    limit = f"; every training seed must stay at or below {limits.pop():g}" if len(limits) == 1 else ""
    return (
        "Context gate: the head's least error with visible tokens over its error with the fewest, about 1 for a model "
        f"that ignores what is visible{limit}."
    )


def model_name(size: str) -> str:
    """What a row or panel calls a size: the paper's name, or that of an ablation's row."""
    return f"eMIGM-{size.upper()}" if size in SIZES else size


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
    source = results.get("reference", "results", "source") or {}
    if source.get("file"):
        return f"the real images whose statistics {source['file']} holds"
    images = results.get("reference", "results", "real", "images")
    if images is None:
        return "real images (no record)"
    kind = "training" if images == results.get("prepare", "results", "train_images") else "real"
    return f"{images:,} {kind} images"


def fid_text(results: Results) -> str:
    """What FID is on this benchmark: extractor, number of generated images, reference."""
    images = evaluated_images(results)
    number = " or ".join(f"{n:,}" for n in images) or "no"
    more = EXTRACTORS.get(_extractor(results), ("", ""))[1]
    text = (
        f"{fid_name(results)}: Fréchet distance of {extractor_text(results)}{f' ({more})' if more else ''}, between "
        f"{number} generated images (of one sampling seed) and {reference_text(results)}."
    )
    if images in ([], [PAPER_IMAGES]):
        return text
    return f"{text} The paper's FIDs are of {PAPER_IMAGES:,} images; the fewer, the larger FID comes out."


def features_text(results: Results) -> str:
    """The real images that KID, precision and recall compare with, where they are not FID's."""
    source = results.get("reference", "results", "source") or {}
    if not source.get("file"):
        return ""
    if source.get("feature_images") is None:
        return f"KID, precision and recall are not measured: {source['file']} holds no images."
    return (
        f"KID, precision, recall and Clean-FID compare with the {source['feature_images']:,} images that "
        f"{source['file']} holds beside its statistics."
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
    if not found and results.get("reference") is not None:
        return "FID of what no model made is not measured: there are no real images but the stored statistics."
    parts = [f"{x.lower()} ({meanings[x]}; {f['images']:,} images) {plus_minus(f['fid'])}" for x, f in found.items()]
    return f"FID of what no model made: {'; '.join(parts) or NOT_RUN}."


def plural(n: int, what: str) -> str:
    """`n` of something countable."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"
