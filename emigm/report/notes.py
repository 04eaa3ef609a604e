"""Sentences without which a number must not be read: data, images, extractor, baselines, spread, gate, dry run.

Each takes the frame of runs that a table or figure shows (`emigm.records.frame.runs`) and is empty where it has
nothing to say.
"""

# ruff: noqa: RUF001
# × is meant: it is the paper's notation.
from __future__ import annotations

import pandas as pd

from emigm.paper.reported import PAPER_IMAGES
from emigm.report.statistics import summarise
from emigm.report.tables import NOT_RUN, missing, model_name, plural, plus_minus, thousands

DATA = {"mnist": "MNIST-5k", "digits": "8×8 digits", "cifar10": "CIFAR-10", "imagenet": "ImageNet {r}×{r}"}
"""Data set -> its name on axes and in headers; {r}: resolution in pixels."""
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
SAMPLING = (
    "Solver: with K evaluations of the head for a token. Guidance: its scale, at steps that end at a time s (1: all "
    "tokens masked, 0: none) in the interval."
)
NFE = (
    "NFE: N mask-prediction steps × forward passes of a step (measured mean; below 1 where an image's tokens ran out "
    "before the last step)."
)

NEIGHBOURS = (
    "NN distance: root mean square over pixels (grey levels 0..255) between an image and its nearest neighbour in the "
    "set named, mean over images; of the training images as many are searched as were held out."
)


def data_name(frame: pd.DataFrame) -> str:
    """The data of a frame in words: "MNIST-5k"; a dry run is marked."""
    names = {
        DATA.get(row.dataset, row.dataset or row.benchmark).format(r=row.resolution)
        for row in frame[["benchmark", "dataset", "resolution"]].drop_duplicates().itertuples()
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
    warning = "DRY RUN: the numbers only show that the machinery runs; they measure nothing."
    return warning if is_dry_run(frame) else ""


def heading(frame: pd.DataFrame, text: str) -> str:
    """`text` as a title: a dry run is marked in front."""
    return f"DRY RUN: {text}" if is_dry_run(frame) else text


def extractor(frame: pd.DataFrame) -> str:
    """The feature extractor behind the metrics, such as "64 features of a small CNN"."""
    kinds = frame[["extractor", "features"]].dropna(subset=["extractor"]).drop_duplicates()
    return " and ".join(
        (f"{row.features:g} " if row.features == row.features and row.features is not None else "")
        + f"features of {EXTRACTORS.get(row.extractor, (row.extractor,))[0]}"
        for row in kinds.itertuples()
    )


def fid(frame: pd.DataFrame) -> str:
    """What FID is here: extractor, number of generated images, reference."""
    images = sorted(frame["scored_images"].dropna().unique())
    if not images:
        return "Nothing has been scored yet."
    more = {EXTRACTORS[kind][1] for kind in frame["extractor"].dropna().unique() if kind in EXTRACTORS}
    if "extractor_published" in frame and frame["extractor_published"].eq(False).any():
        more = more - {EXTRACTORS["inception"][1]} | {UNPUBLISHED}
    number = " or ".join(f"{n:,.0f}" for n in images)
    reference = " or ".join(sorted(frame["reference"].dropna().unique()))
    detail = f" ({'; '.join(sorted(more))})" if more else ""
    text = (
        f"{fid_name(frame)}: Fréchet distance of {extractor(frame)}{detail}, "
        f"between {number} generated images (of one sampling seed) and the real ones ({reference})."
    )
    if images == [PAPER_IMAGES]:
        return text
    return f"{text} The paper's FIDs are of {PAPER_IMAGES:,} images; the fewer, the larger FID comes out."


def sampling(row: pd.Series) -> dict[str, str]:
    """How a run was sampled, in the words of a table: its column -> what stands there; an order of revealing other than
    eMIGM's own stands beside the schedule."""
    low, high = row["sample.cfg_interval"]
    scale, steps = row["sample.cfg_scale"], row["sample.solver_steps"]
    return {
        "Schedule": row["sample.schedule"] + ("" if row["sample.order"] == "binomial" else f", {row['sample.order']}"),
        "Solver": row["sample.solver"] + ("" if missing(steps) else f", K = {steps:g}"),
        "Guidance": f"{scale:g} for {low:g} < s ≤ {high:g}" if scale != 1 else "none",
    }


def named_by_steps(frame: pd.DataFrame) -> list[str]:
    """Sampling budgets whose name is their N, fewest steps first."""
    known = frame.dropna(subset=["N"]).drop_duplicates("budget").sort_values("N", kind="stable")
    return [row.budget for row in known.itertuples() if row.budget == f"{row.N:g}"]


def same_extractor(frame: pd.DataFrame) -> str:
    """A warning where runs were scored with different features, so that their metrics share no scale."""
    found = frame["extractor_identity"].dropna().nunique() if "extractor_identity" in frame else 0
    return f"NOT COMPARABLE: the runs are scored with {found} different extractors." if found > 1 else ""


def baselines(found: pd.DataFrame, metric: str = "fid") -> str:
    """The baselines in a sentence, each with its number of images (`emigm.records.frame.baselines`)."""
    shown = found[found["metric"] == metric]
    parts = [
        f"{row.label.lower()} ({MEANINGS[row.baseline]}; {row.images:,} images"
        + (f", {row.draws} draws with a standard deviation of {row.std:.2g}" if row.draws > 1 else "")
        + f") {plus_minus(row.mean)}"
        for row in shown.itertuples()
    ]
    return f"Baselines that need no model: {'; '.join(parts)}." if parts else ""


def baselines_at_equal_images(frame: pd.DataFrame, found: pd.DataFrame) -> str:
    """A warning where a baseline was scored on another number of images than the models."""
    images = set(frame["scored_images"].dropna().astype(int))
    unlike = [f"{row.label.lower()} {row.images:,}" for row in found[found["metric"] == "fid"].itertuples()
              if images and set([row.images]) != images]  # fmt: skip
    if not unlike:
        return ""
    ours = " or ".join(f"{n:,}" for n in sorted(images))
    return (
        f"Not at equal numbers of images (models {ours}; {', '.join(unlike)}): FID falls and IS rises with the number."
    )


def spread(frame: pd.DataFrame) -> str:
    """What ± is and over how many seeds."""
    cells = summarise(frame.dropna(subset=["fid"]), "fid")
    numbers = set(cells[["train_seeds", "sample_seeds"]].itertuples(index=False, name=None))
    if not numbers:
        return ""
    seeds = " or ".join(f"{plural(t, 'training seed')} × {plural(s, 'sampling seed')}" for t, s in sorted(numbers))
    if numbers == {(1, 1)}:
        return "No ±: one training and one sampling seed."
    text = f"±: combined standard error of the mean over {seeds} (training-seed variance / training seeds + "
    text += "sampling-seed variance / sampling seeds)"
    if any(t == 1 for t, _ in numbers):
        return f"{text}; one training seed says nothing of other training runs."
    return f"{text}. Of two training seeds it is itself uncertain." if min(numbers)[0] == 2 else f"{text}."


def weights(frame: pd.DataFrame) -> str:
    """Where weights come from, and how much they were trained."""
    groups: dict[str, list[str]] = {}
    final = frame[frame["snapshot"].isna()].drop_duplicates(["benchmark", "size"])
    for row in final.itertuples():
        if row.weights == "released":
            text = "released by the paper's authors, not trained here"
        elif row.train_images == row.train_images and row.train_images is not None:
            text = f"trained here on {row.train_images:,.0f} images (with repeats)"
        else:
            text = NOT_RUN
        groups.setdefault(text, []).append(model_name(row.size, ""))
    texts = [f"{', '.join(sizes)} {text}" for text, sizes in groups.items()]
    return f"Weights: {'; '.join(texts)}." if texts else ""


def gate(frame: pd.DataFrame) -> str:
    """What the context gate is, and which training seeds shown fail it."""
    tested = frame.dropna(subset=["gate_ratio"]).drop_duplicates(["benchmark", "size", "train_seed"])
    if tested.empty:
        return ""
    failed = tested[~tested["gate_passed"].astype(bool)]
    listed = ", ".join(
        f"{model_name(size, '')} ({len(group)} of {len(tested[tested['size'] == size])})"
        for size, group in failed.groupby("size")
    )
    limits = tested["gate.max_ratio"].dropna().unique() if "gate.max_ratio" in tested else []
    limit = f" (limit {limits[0]:g})" if len(limits) == 1 else ""
    verdict = f"FAILED by training seeds of {listed}" if listed else "passed by every training seed shown"
    return (
        "Context gate: the head's least error with visible tokens over its error with the fewest, about 1 for a model "
        f"that ignores what is visible{limit}; here from {tested['gate_ratio'].min():.2f} to "
        f"{tested['gate_ratio'].max():.2f}, {verdict}."
    )


def all_of(frame: pd.DataFrame, found: pd.DataFrame | None = None) -> tuple[str, ...]:
    """Every note that a table or figure of FID needs, the most urgent first; `found`: its baselines."""
    notes = [dry_run(frame), same_extractor(frame), fid(frame)]
    notes += [baselines(found), baselines_at_equal_images(frame, found)] if found is not None else []
    return tuple(note for note in (*notes, spread(frame), weights(frame), gate(frame)) if note)
