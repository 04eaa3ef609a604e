"""Every run of every benchmark as one tidy table, a row a run, from the records under results/. No torch.

What has not run is absent (NaN), never 0: a cell of a table made from this frame reads "not run" where it is NaN.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from emigm.config.compose import DEFAULT
from emigm.config.errors import ConfigError
from emigm.config.parsing import known
from emigm.records.record import read_record

SIZES = ("xs", "s", "b", "l", "h")
VARIANTS = {"equal": "equal FLOPs"}
"""How a size of the ladder was trained otherwise (`xs_equal`): for as many FLOPs as the largest."""
KEYS = ("train_seed", "sample_seed", "snapshot")
"""What tells the runs of one size and budget apart."""
BASELINES = {
    "holdout": "Held-out real images",
    "train_subset": "Training subset",
    "reconstruction": "Reconstructions",
    "class_shuffle": "Class shuffle",
}
"""Key in the reference record -> label of what is scored without any model, nearest to the data first."""
Record = dict[str, Any]


class Records(dict[str, Record]):
    """Records of one benchmark by stage."""

    def at(self, stage: str, *keys: str) -> Any:
        """The value under nested `keys` of a stage's record; None where the record or a key is absent."""
        tree: Any = self.get(stage)
        for key in keys:
            tree = tree.get(key) if isinstance(tree, dict) else None
        return tree


def runs(root: Path | None = None, benchmarks: Sequence[str] | None = None) -> pd.DataFrame:
    """One row for each (benchmark, size, budget, training seed, sampling seed, snapshot).

    Columns:
        benchmark, title, dataset, resolution (pixels), dry_run, weights ("trained", "released"), size, budget,
        train_seed, sample_seed; snapshot: share of the training done, NaN for the final weights. Where snapshots were
        scored, so were the final weights with them (snapshot 1), on as many images; compare those with each other.
        fid, sfid, isc, kid, precision, recall, label_accuracy, cas, ...: every metric of the evaluation; fid_by_images:
        {number of images: FID}, of the same images; fid_by_extractor: {seed of the extractor: FID}, the first of them
        fid itself. CAS is of all sampling seeds of a training together, and stands in each of its runs.
        scored_images, extractor, features, reference: what the metrics rest on.
        parameters; train_images: images a model has seen (of released weights unknown), with repeats; flops: of that
        training; gate_ratio and gate_passed of the training seed; train_seconds.
        N (mask-prediction steps), nfe (paper's definition), passes (measured forward passes an image),
        seconds_per_image, images_per_second.
        model.*, train.*, gate.*, sample.*: every setting of the records (lists as tuples; sample.steps is N).
        device, commit: of the last stage that has run; train_device, sample_device.

    A size that was only trained has one row a training seed; one only sampled has rows without metrics.

    Args:
        root: of the checkout; found from the working directory by default.
        benchmarks: their names; default: all that have results, the default benchmark first.

    Raises:
        ConfigError: an unknown benchmark, or a damaged record, by name.
    """
    root = find_root() if root is None else Path(root)
    there = benchmarks_with_results(root)
    for name in benchmarks or ():
        known(f"benchmark (results/*/records under {root})", name, there)
    rows = [row for name in (there if benchmarks is None else benchmarks) for row in _benchmark_rows(root, name)]
    first = ["benchmark", "title", "dataset", "dry_run", "size", "budget", "snapshot", "train_seed", "sample_seed"]
    frame = pd.DataFrame(rows)
    needed = [*first, "weights", "resolution", "N", "fid", "nfe", "passes", "flops", "parameters", "train_images"]
    needed += ["gate_ratio", "gate_passed", "seconds_per_image", "scored_images", "fid_by_images", "fid_by_extractor"]
    frame = frame.reindex(columns=list(dict.fromkeys([*needed, *frame.columns])))
    return frame.astype({"snapshot": float})


def baselines(root: Path | None, benchmark: str) -> pd.DataFrame:
    """What is scored without any model: held-out images, a training subset, class shuffle.

    Columns: baseline (key), label, metric ("fid_by_extractor 1": FID by the extractor of seed 1), mean, std (over
    draws; NaN for one), draws, images (of one draw; a classifier of CAS is trained on those of all sampling seeds).
    Empty where the reference stage has not run or had no images.
    """
    root = find_root() if root is None else Path(root)
    reference = read_all(root, benchmark).at("reference", "results") or {}
    found = reference.get("baselines") or {}
    rows = [
        {"baseline": key, "label": label, "metric": metric, "mean": value["mean"], "std": value.get("std"),
         "draws": value.get("n", 1), "images": found[key]["images"]}
        for key, label in BASELINES.items() if key in found
        for metric, value in _one_level(found[key]) if isinstance(value, dict) and "mean" in value
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["baseline", "label", "metric", "mean", "std", "draws", "images"])


def _one_level(scored: Record) -> Iterator[tuple[str, Any]]:
    """Metrics of a baseline; of one that is several, each."""
    for metric, value in scored.items():
        if isinstance(value, dict) and "mean" not in value:
            yield from ((f"{metric} {key}", one) for key, one in value.items())
        else:
            yield metric, value


def find_root() -> Path:
    """The checkout: the nearest folder at or above the working directory with both `dvc.yaml` and `results/`."""
    for folder in (here := Path.cwd(), *here.parents):
        if (folder / "dvc.yaml").is_file() and (folder / "results").is_dir():
            return folder
    raise ConfigError(f"no dvc.yaml beside a results/ in {here} or above it; start this inside a checkout")


def ladder_size(size: str) -> tuple[str, str] | None:
    """ "xs_equal" => ("xs", "equal FLOPs"): the size of the ladder and how it was trained otherwise; None: no such."""
    model, _, variant = size.partition("_")
    return (model, VARIANTS.get(variant, variant)) if model in SIZES else None


def benchmarks_with_results(root: Path) -> list[str]:
    """Benchmarks that have records, the default one first."""
    found = {path.parent.parent.name for path in (root / "results").glob("*/records/*.json")}
    return sorted(found, key=lambda name: (name != DEFAULT, name))


def read_all(root: Path, benchmark: str) -> Records:
    """Records of a benchmark by stage; those of its images and extractor may lie with another (`images_of`)."""
    own = _read_folder(root / "results" / benchmark / "records")
    home = next((r["images_of"] for r in own.values()), benchmark)
    shared = _read_folder(root / "results" / home / "records") if home != benchmark else {}
    return Records({stage: shared[stage] for stage in ("prepare", "extractor") if stage in shared} | own)


def _read_folder(folder: Path) -> dict[str, Record]:
    return {record["stage"]: record for record in map(read_record, sorted(folder.glob("*.json")))}


def _benchmark_rows(root: Path, name: str) -> list[dict[str, Any]]:
    records = read_all(root, name)
    of: dict[str, list[Record]] = {"train": [], "sample": [], "evaluate": []}
    for stage, record in records.items():
        of.get(stage.split("-")[0], []).append(record)
    sizes = {r["settings"]["size"] for kind in of.values() for r in kind}
    common = {
        "benchmark": name,
        "title": next((r["title"] for r in records.values() if r["benchmark"] == name), name),
        "dataset": records.at("prepare", "settings", "data", "dataset"),
        "resolution": records.at("prepare", "settings", "data", "resolution")
        or (records.at("prepare", "results", "shape") or [None])[-1],
        "dry_run": any(r["dry_run"] for r in records.values()),
        "features": records.at("extractor", "results", "features"),
    }
    rows = []
    for size in sorted(sizes, key=lambda s: (SIZES.index(s) if s in SIZES else len(SIZES), s)):
        train, evaluate = records.get(f"train-{size}"), records.get(f"evaluate-{size}")
        samples = {r["settings"]["budget"]: r for r in of["sample"] if r["settings"]["size"] == size}
        scored = [b for b, found in evaluate["results"].items() if "runs" in found] if evaluate else []
        budgets = {*samples, *scored} or {None}
        for budget in sorted(budgets, key=lambda b: (float(b) if (b or "").isdigit() else math.inf, b or "")):
            for run in _runs_of(train, samples.get(budget), evaluate, budget):
                rows.append(common | {"size": size, "budget": budget} | run)
        if along := records.get(f"snapshots-{size}"):
            budget, scored = along["settings"]["budget"], _as_evaluation(along)
            for run in _runs_of(train, samples.get(budget), scored, budget):
                rows.append(common | {"size": size, "budget": budget} | run)
    return rows


def _runs_of(train: Record | None, sample: Record | None, evaluate: Record | None, budget: str | None) -> list[Record]:
    """The runs of one size at one budget, each with all that its three records say of it."""
    measured = (evaluate or {}).get("results", {}).get(budget, {"runs": []})
    shared: Record = {}
    for record in filter(None, (train, sample, evaluate)):
        provenance, settings = record["provenance"], record["settings"]
        shared |= {"device": provenance["device"], "commit": provenance["commit"]}
        shared |= {f"{record['stage'].split('-')[0]}_device": provenance["device"]}
        shared |= {"weights": record.get("weights") or settings.get("weights") or shared.get("weights")}
        for part in ("model", "train", "gate", "sample"):
            shared |= {f"{part}.{k}": tuple(v) if isinstance(v, list) else v
                       for k, v in (settings.get(part) or {}).items()}  # fmt: skip
    if evaluate:
        shared |= {"scored_images": evaluate["settings"]["images"], "reference": evaluate.get("reference")}
        shared["extractor"] = evaluate["settings"].get("extractor", {}).get("kind")
        identity = evaluate["settings"].get("extractor_identity")
        shared["extractor_identity"] = json.dumps(identity, sort_keys=True)
        shared["extractor_published"] = (identity or {}).get("published")
    if "sample.steps" in shared:
        shared["N"] = shared.pop("sample.steps")
    if sample:
        shared |= {k: sample["results"].get(k) for k in ("nfe", "passes", "images_per_second")}
    curves = {tuple(map(r.get, KEYS)): {int(n): f for n, f in r["fid"].items()}
              for r in measured.get("fid_by_images", ())}  # fmt: skip
    found = []
    for run in measured["runs"] or _unscored(train, sample):
        key = tuple(map(run.get, KEYS))
        row = shared | _training(train, run["train_seed"], run.get("snapshot")) | run
        row |= {"fid_by_images": curves.get(key), "snapshot": key[2]}
        row |= {"fid_by_extractor": {int(s): f for s, f in (run.get("fid_by_extractor") or {}).items()} or None}
        row["seconds_per_image"] = _seconds(sample, run) if key[2] is None else None
        found.append(row)
    return found


def _as_evaluation(along: Record) -> Record:
    """The record of an evaluation whose runs are the snapshots of one, the last of them the final weights (share 1)."""
    steps, points = along["settings"]["train"]["steps"], along["results"]["points"]
    runs = [run | {"snapshot": point["step"] / steps} for point in points for run in point["runs"]]
    return along | {"stage": "evaluate-along", "results": {along["settings"]["budget"]: {"runs": runs}}}


def _unscored(train: Record | None, sample: Record | None) -> list[Record]:
    """Runs that have no scores yet."""
    if sample:
        pairs = itertools.product(sample["settings"]["train_seeds"], sample["settings"]["seeds"])
        return [{"train_seed": t, "sample_seed": s} for t, s in pairs]
    seeds = (train["settings"].get("train") or {}).get("seeds", [None]) if train else [None]
    return [{"train_seed": seed, "sample_seed": None} for seed in seeds]


def _training(train: Record | None, seed: int | None, snapshot: float | None) -> Record:
    """What a training record says of one seed's weights, or of those at a snapshot (a share of the training)."""
    if train is None:
        return {}
    results, share = train["results"], 1 if snapshot is None else snapshot
    seeds = (train["settings"].get("train") or {}).get("seeds") or []
    at = seeds.index(seed) if seed in seeds else None
    if at is None and len(seeds) < 2:  # released weights are one model
        at = 0
    row = {"parameters": results["parameters"]}
    row |= {name: results[key] * share if results.get(key) else None
            for name, key in (("flops", "flops"), ("train_images", "images"))}  # fmt: skip
    if at is None:  # trained again since with other seeds
        return row
    if values := (results.get("seconds") or {}).get("values"):
        row["train_seconds"] = values[at]
    if snapshot in (None, 1) and (context := results.get("context")):
        ratios, limit = context["ratio"], train["settings"].get("gate", {}).get("max_ratio")
        ratio = ratios["values"][at] if "values" in ratios else ratios["mean"]
        row |= {"gate_ratio": ratio, "gate_passed": context["passed"] if limit is None else ratio <= limit}
    return row


def _seconds(sample: Record | None, run: Record) -> float | None:
    """Seconds for one image of a run; the mean of all where the record does not list them by run."""
    if sample is None or "seconds_per_image" not in sample["results"]:
        return None
    seconds, settings = sample["results"]["seconds_per_image"], sample["settings"]
    pairs = list(itertools.product(settings["train_seeds"], settings["seeds"]))
    values, pair = seconds.get("values", []), (run["train_seed"], run["sample_seed"])
    return values[pairs.index(pair)] if len(values) == len(pairs) and pair in pairs else seconds["mean"]
