"""Sentences without which a number must not be read: data, images, extractor, baselines, spread, gate, dry run.

Each takes the frame of runs that a table or figure shows (`emigm.records.frame.runs`) and is empty where it has
nothing to say.
"""

# ruff: noqa: RUF001
# × is meant: it is the paper's notation.
from __future__ import annotations

import re

import pandas as pd

from emigm.paper.reported import PAPER_IMAGES
from emigm.report.statistics import summarise
from emigm.report.tables import NOT_RUN, missing, model_name, plural, plus_minus, thousands

DATA = {"mnist": "MNIST-5k", "digits": "8×8 digits", "cifar10": "CIFAR-10 {r}×{r}", "imagenet": "ImageNet {r}×{r}"}
"""Data set -> its name on axes and in headers; {r}: resolution in pixels. Own photos have the benchmark's title."""
_SIDES = re.compile(r"[\s,]*(\(\d+\s*[×x]\s*\d+[^()]*\)|\d+\s*[×x]\s*\d+)$")
"""The resolution at the end of a title: " (32×32 colour)", ", 32x32"."""
EXTRACTORS = {
    "cnn": ("a small CNN", "trained to classify the training images; total variance of the features set to 100"),
    "inception": ("Inception-v3", "the TensorFlow weights that FID is defined with, through torch-fidelity"),
}
"""Kind of extractor -> its name, and what a note adds."""
UNPUBLISHED = "NOT with the weights that FID is defined with: comparable with no published FID"
"""What a note adds for Inception with other weights."""
MEANINGS = {
    "holdout": "never trained on",
    "train_subset": "training images themselves",
    "reconstruction": "held-out images through the codes of the autoencoder: what these lose before any model",
    "class_shuffle": "training images, each token exchanged with another image of the class: what a model reaches "
    "that ignores context",
}
"""Key of a baseline -> what it is."""
METRICS = {
    "sfid": "sFID: FID of the first seven channels of Inception's mixed_6/conv at all positions, as ADM's evaluator "
    "has it.",
    "kid": "KID: squared maximum mean discrepancy under the cubic kernel (x·y / d + 1)³, in the kernel's unit (not "
    "× 1,000), unbiased, over all images: 0 on average where both sides are one distribution, so it can be negative.",
    "precision": "Precision and recall: shares of the generated images within the third-neighbour balls of the real "
    "ones, and the reverse, over all images of both sides.",
    "label_accuracy": "Label accuracy: share of the generated images that the extractor classifies as the class asked "
    "for.",
    "cas": "CAS (classification accuracy score): share of the held-out images that a classifier gets right when "
    "trained on the generated images of one training seed alone; of the training subset, on as many real ones.",
}
"""Column of the frame -> what a reader must know of the metric."""
NFE = (
    "NFE: N mask-prediction steps × forward passes of a step (measured mean; below 1 where an image's tokens ran out "
    "before the last step)."
)


def data_name(frame: pd.DataFrame) -> str:
    """The data of a frame in words: "MNIST-5k"; a dry run is marked."""
    names = {
        _SIDES.sub("", row.title) or row.title
        if row.dataset == "folder"
        else DATA.get(row.dataset, row.dataset or row.benchmark).format(r=row.resolution)
        for row in frame[["benchmark", "title", "dataset", "resolution"]].drop_duplicates().itertuples()
    }
    return " and ".join(sorted(names)) + (" (DRY RUN)" if is_dry_run(frame) else "")


def fid_name(frame: pd.DataFrame, budget: str | None = None) -> str:
    """FID as an axis or column names it, with the number of generated images where all agree and N where given.

    "FID-1K on MNIST-5k (N = 16)".
    """
    images = frame["scored_images"].dropna().unique()
    number = f"-{thousands(images[0])}" if len(images) == 1 else ""
    return f"FID{number} on {data_name(frame)}" + (f" (N = {budget})" if budget is not None else "")


def is_dry_run(frame: pd.DataFrame) -> bool:
    """True when any run is a dry run's: one is enough to spoil a table."""
    return bool(frame["dry_run"].any())


def dry_run(frame: pd.DataFrame) -> str:
    """The warning of a dry run; it comes first."""
    return "DRY RUN: the numbers only show that the machinery runs; they measure nothing." * is_dry_run(frame)


def heading(frame: pd.DataFrame, text: str) -> str:
    """`text` as a title: a dry run is marked in front."""
    return f"DRY RUN: {text}" if is_dry_run(frame) else text


def fid(frame: pd.DataFrame) -> str:
    """What FID is here: extractor, number of generated images, reference."""
    images = sorted(frame["scored_images"].dropna().unique())
    if not images:
        return "Nothing has been scored yet."
    named, more = [], set()
    for kind, features in frame[["extractor", "features"]].dropna(subset=["extractor"]).drop_duplicates().to_numpy():
        name, detail = EXTRACTORS.get(kind, (kind, ""))
        named.append((f"{features:g} " if not missing(features) else "") + f"features of {name}")
        more.add(detail)
    if "extractor_published" in frame and frame["extractor_published"].eq(False).any():
        more = more - {EXTRACTORS["inception"][1]} | {UNPUBLISHED}
    detail = f" ({'; '.join(sorted(filter(None, more)))})" if any(more) else ""
    text = (
        f"{fid_name(frame)}: Fréchet distance of {' and '.join(named)}{detail}, between "
        f"{' or '.join(f'{n:,.0f}' for n in images)} generated images (of one sampling seed) and the real ones "
        f"({' or '.join(sorted(frame['reference'].dropna().unique()))})."
    )
    if images == [PAPER_IMAGES]:
        return text
    return f"{text} The paper's FIDs are of {PAPER_IMAGES:,} images; the fewer, the larger FID comes out."


def sampling(row: pd.Series) -> dict[str, str]:
    """How a run was sampled, in the words of a table: its column -> what stands there; an order of revealing other than
    eMIGM's own stands beside the schedule."""
    low, high = row["sample.cfg_interval"]
    scale, steps, growth = row["sample.cfg_scale"], row["sample.solver_steps"], row.get("sample.cfg_schedule")
    grows = "" if growth in (None, "constant") else f", {growth},"
    return {
        "Schedule": row["sample.schedule"] + ("" if row["sample.order"] == "binomial" else f", {row['sample.order']}"),
        "Solver": row["sample.solver"] + ("" if missing(steps) else f", K = {steps:g}"),
        "Guidance": f"{scale:g}{grows} for {low:g} < s ≤ {high:g}" if scale != 1 else "none",
    }


def named_by_steps(frame: pd.DataFrame) -> list[str]:
    """Sampling configurations whose name is their N, fewest steps first."""
    known = frame.dropna(subset=["N"]).drop_duplicates("budget").sort_values("N", kind="stable")
    return [row.budget for row in known.itertuples() if row.budget == f"{row.N:g}"]


def same_extractor(frame: pd.DataFrame) -> str:
    """A warning where runs were scored with different features, so that their metrics share no scale."""
    number = frame["extractor_identity"].dropna().nunique() if "extractor_identity" in frame else 0
    return f"NOT COMPARABLE: the runs are scored with {number} different extractors." if number > 1 else ""


def baselines(real: pd.DataFrame) -> str:
    """FID of the baselines in a sentence, each with its number of images (`emigm.records.frame.baselines`)."""
    parts = [
        f"{row.label.lower()} ({MEANINGS[row.baseline]}; {row.images:,} images"
        + (f", {row.draws} draws with a standard deviation of {row.std:.2g}" if row.draws > 1 else "")
        + f") {plus_minus(row.mean)}"
        for row in real[real["metric"] == "fid"].itertuples()
    ]
    return f"Baselines that need no model: {'; '.join(parts)}." if parts else ""


def baselines_at_equal_images(frame: pd.DataFrame, real: pd.DataFrame) -> str:
    """A warning where a baseline was scored on another number of images than the models."""
    images = sorted(set(frame["scored_images"].dropna().astype(int)))
    scored = real[real["metric"] == "fid"].itertuples()
    unlike = [f"{row.label.lower()} {row.images:,}" for row in scored if images and [row.images] != images]
    if not unlike:
        return ""
    return (
        f"Not at equal numbers of images (models {' or '.join(f'{n:,}' for n in images)}; {', '.join(unlike)}): FID "
        "falls and IS rises with the number."
    )


def spread(frame: pd.DataFrame) -> str:
    """What ± is and over how many seeds."""
    cells = summarise(frame.dropna(subset=["fid"]), "fid")
    numbers = sorted(set(cells[["train_seeds", "sample_seeds"]].itertuples(index=False, name=None)))
    if numbers in ([], [(1, 1)]):
        return "No ±: one training and one sampling seed." if numbers else ""
    seeds = " or ".join(f"{plural(t, 'training seed')} × {plural(s, 'sampling seed')}" for t, s in numbers)
    text = (
        f"±: combined standard error of the mean over {seeds} (training-seed variance / training seeds + sampling-seed "
        "variance / sampling seeds)"
    )
    if numbers[0][0] == 1:
        return f"{text}; one training seed says nothing of other training runs."
    return f"{text}. With n = 2 training seeds it is itself imprecise." if numbers[0][0] == 2 else f"{text}."


def weights(frame: pd.DataFrame) -> str:
    """Where weights come from, and how much they were trained."""
    groups: dict[str, list[str]] = {}
    for row in frame[frame["snapshot"].isna()].drop_duplicates(["benchmark", "size"]).itertuples():
        trained = (
            NOT_RUN if missing(row.train_images) else f"trained here on {row.train_images:,.0f} images (with repeats)"
        )
        text = "released by the paper's authors, not trained here" if row.weights == "released" else trained
        groups.setdefault(text, []).append(model_name(row.size, ""))
    texts = [f"{', '.join(sizes)} {text}" for text, sizes in groups.items()]
    return f"Weights: {'; '.join(texts)}." if texts else ""


def metrics(frame: pd.DataFrame) -> tuple[str, ...]:
    """What the metrics are that were measured, beside FID."""
    return tuple(text for name, text in METRICS.items() if name in frame and frame[name].notna().any())


def gate(frame: pd.DataFrame) -> str:
    """What the context gate is, and which training seeds shown fail it."""
    tested = frame.dropna(subset=["gate_ratio"]).drop_duplicates(["benchmark", "size", "train_seed"])
    if tested.empty:
        return ""
    failed, seeds = tested[~tested["gate_passed"].astype(bool)], tested["size"].value_counts()
    listed = [f"{model_name(size, '')} ({len(group)} of {seeds[size]})" for size, group in failed.groupby("size")]
    limits = tested["gate.max_ratio"].dropna().unique() if "gate.max_ratio" in tested else []
    verdict = f"FAILED by training seeds of {', '.join(listed)}" if listed else "passed by every training seed shown"
    return (
        "Context gate: the head's least error with visible tokens over its error with the fewest, about 1 for a model "
        f"that ignores what is visible{f' (limit {limits[0]:g})' if len(limits) == 1 else ''}; here from "
        f"{tested['gate_ratio'].min():.2f} to {tested['gate_ratio'].max():.2f}, {verdict}."
    )


def all_of(frame: pd.DataFrame, real: pd.DataFrame | None = None) -> tuple[str, ...]:
    """Every note that a table or figure of FID needs, the most urgent first; `real`: its baselines."""
    notes = [dry_run(frame), same_extractor(frame), fid(frame)]
    notes += [baselines(real), baselines_at_equal_images(frame, real)] if real is not None else []
    return tuple(filter(None, (*notes, spread(frame), weights(frame), gate(frame))))
