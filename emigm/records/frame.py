"""Every run of every benchmark as one tidy table, a row a run, from the records under results/. No torch.

What has not run is absent (NaN), never 0: a cell of a table made from this frame reads "not run" where it is NaN.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from emigm.config.compose import DEFAULT
from emigm.config.errors import ConfigError
from emigm.config.parsing import known
from emigm.records.record import Record, read_record

SIZES = ("xs", "s", "b", "l", "h")
VARIANTS = {"equal": "equal FLOPs"}
"""How a size of the ladder was trained otherwise (`xs_equal`): for as many FLOPs as the largest."""
BASELINES = {
    "holdout": "Held-out real images",
    "train_subset": "Training subset",
    "reconstruction": "Reconstructions",
    "class_shuffle": "Class shuffle",
}
"""Key in the reference record -> label of what is scored without any model, nearest to the data first."""
RUN, TRAINING = ["benchmark", "size", "budget", "train_seed", "sample_seed"], ["benchmark", "size", "train_seed"]
COLUMNS = ["benchmark", "title", "dataset", "dry_run", "size", "budget", "snapshot", "train_seed", "sample_seed"]
COLUMNS += ["weights", "resolution", "N", "fid", "nfe", "passes", "flops", "parameters", "train_images", "gate_ratio"]
COLUMNS += ["gate_passed", "seconds_per_image", "scored_images", "fid_by_images", "fid_by_extractor", "isc"]
COLUMNS += ["extractor", "features", "reference", "sample.cfg_scale", "sample.cfg_interval", "sample.x0_clip"]
COLUMNS += ["sample.temperature"]
"""The first columns, which are there without any results too."""


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
        train_device, sample_device, evaluate_device; device: of the last stage that has run.

    A size that was only trained has one row a training seed; one only sampled has rows without metrics.

    Args:
        root: of the checkout; found from the working directory by default.
        benchmarks: their names; default: all that have results, the default benchmark first.

    Raises:
        ConfigError: an unknown benchmark, or a damaged record, by name.
    """
    root = find_root() if root is None else Path(root)
    present = benchmarks_with_results(root)
    for name in benchmarks or ():
        known(f"benchmark (results/*/records under {root})", name, present)
    of = {name: read_all(root, name) for name in (present if benchmarks is None else benchmarks)}
    rows: dict[str, list[Record]] = {kind: [] for kind in ROWS}
    for name, records in of.items():
        for stage, record in records.items():
            if (kind := stage.split("-")[0]) in ROWS:
                facts = {"benchmark": name, "size": record["settings"]["size"]}
                rows[kind] += [facts | row for row in ROWS[kind](record)]
    scored, sampled = pd.DataFrame(rows["evaluate"] + rows["snapshots"]), pd.DataFrame(rows["sample"])
    frame = _joined(_joined(scored, sampled, RUN, RUN[:3]), pd.DataFrame(rows["train"]), TRAINING, TRAINING[:2])
    if not frame.empty:
        about = pd.DataFrame([{"benchmark": name} | _about(name, records) for name, records in of.items()])
        frame = frame.merge(about, "left", "benchmark")
    devices = [f"{kind}_device" for kind in ("evaluate", "sample", "train")]
    frame = frame.reindex(columns=list(dict.fromkeys([*COLUMNS, *devices, *frame.columns]))).astype({"snapshot": float})
    frame["device"] = frame[devices].bfill(axis=1)["evaluate_device"]

    share = frame["snapshot"].fillna(1)
    for key in ("flops", "train_images") if (share < 1).any() else ():
        frame[key] = frame[key].astype(float) * share
    frame["seconds_per_image"] = frame["seconds_per_image"].where(frame["snapshot"].isna())
    for key in ("gate_ratio", "gate_passed"):
        frame[key] = frame[key].where(share == 1)
    ranks = {
        "benchmark": frame["benchmark"].map(list(of).index),
        "ladder": frame["size"].map({size: i for i, size in enumerate(SIZES)}),
        "size": frame["size"],
        "snapshot": frame["snapshot"].notna(),
        "steps": pd.to_numeric(frame["budget"], errors="coerce"),
        "budget": frame["budget"],
    }
    return frame.loc[pd.DataFrame(ranks).sort_values(list(ranks), kind="stable").index].reset_index(drop=True)


def _joined(left: pd.DataFrame, right: pd.DataFrame, keys: list[str], whole: list[str]) -> pd.DataFrame:
    """Runs of a later stage (`left`) with the columns of the one before, and that one's rows of which the later has
    none by the keys `whole`."""
    if left.empty or right.empty:
        return right if left.empty else left
    rest = right.merge(left[whole].drop_duplicates(), "left", indicator="of")
    rest, both = rest[rest.pop("of") == "left_only"], left.merge(right, "left", keys)
    return both if rest.empty else pd.concat([both, rest], ignore_index=True)


def _about(name: str, records: Records) -> Record:
    """What the records say of the whole benchmark."""
    data, shape = records.at("prepare", "settings", "data") or {}, records.at("prepare", "results", "shape")
    own = next(r for r in records.values() if r["benchmark"] == name)
    return {
        "title": own["title"],
        "weights": own.get("weights"),
        "dataset": data.get("dataset"),
        "resolution": data.get("resolution") or (shape[-1] if shape else None),
        "dry_run": any(r["dry_run"] for r in records.values()),
        "features": records.at("extractor", "results", "features"),
    }


def _facts(record: Record, kind: str, *parts: str) -> Record:
    """The device and the settings of a record as columns."""
    facts = {f"{kind}_device": record["provenance"]["device"]}
    for part in parts:
        settings = record["settings"].get(part) or {}
        facts |= {f"{part}.{k}": tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    return facts


def _scored(record: Record) -> Iterator[Record]:
    """Rows of an evaluation, or of the snapshots of a training, the last of them the final weights (snapshot 1)."""
    settings, results = record["settings"], record["results"]
    identity = settings.get("extractor_identity")
    facts = _facts(record, "evaluate") | {"scored_images": settings["images"], "reference": record.get("reference")}
    facts["extractor"] = settings.get("extractor", {}).get("kind")
    facts["extractor_identity"] = json.dumps(identity, sort_keys=True)
    facts["extractor_published"] = (identity or {}).get("published")
    sets = [({"budget": budget}, scored) for budget, scored in results.items() if "runs" in scored]
    for point in results.get("points", ()):
        of = {"budget": settings["budget"], "snapshot": point["step"] / settings["train"]["steps"]}
        sets.append((of, point))
    for of, scored in sets:
        curves = {(c["train_seed"], c["sample_seed"]): c["fid"] for c in scored.get("fid_by_images", ())}
        for run in scored["runs"]:
            curve = curves.get((run["train_seed"], run["sample_seed"]))
            several = {"fid_by_images": curve, "fid_by_extractor": run.get("fid_by_extractor")}
            yield facts | of | run | {k: v and {int(n): fid for n, fid in v.items()} for k, v in several.items()}


def _sampled(record: Record) -> Iterator[Record]:
    """Rows of a sample stage; seconds are the mean of all runs where the record does not list them by run."""
    settings, results = record["settings"], record["results"]
    facts = _facts(record, "sample", "sample") | {"budget": settings["budget"]}
    facts |= {k: results.get(k) for k in ("nfe", "passes", "images_per_second")} | {"N": facts.pop("sample.steps")}
    pairs = list(itertools.product(settings["train_seeds"], settings["seeds"]))
    seconds = results.get("seconds_per_image", {})
    values = seconds.get("values", ())
    for i, pair in enumerate(pairs):
        of = dict(zip(("train_seed", "sample_seed"), pair, strict=True))
        yield facts | of | {"seconds_per_image": values[i] if len(values) == len(pairs) else seconds.get("mean")}


def _trained(record: Record) -> Iterator[Record]:
    """Rows of a train stage, one a training seed; released weights are one model."""
    settings, results = record["settings"], record["results"]
    facts = _facts(record, "train", "model", "train", "gate")
    facts |= {"parameters": results["parameters"], "flops": results["flops"], "train_images": results["images"]}
    seconds = (results.get("seconds") or {}).get("values")
    ratios = (results.get("context") or {}).get("ratio", {})
    for i, seed in enumerate(facts.get("train.seeds") or settings["train_seeds"]):
        row = facts | {"train_seed": seed} | ({"train_seconds": seconds[i]} if seconds else {})
        if ratios:
            row["gate_ratio"] = ratios.get("values", [ratios["mean"]])[i]
            row["gate_passed"] = row["gate_ratio"] <= settings["gate"]["max_ratio"]
        yield row


ROWS = {"evaluate": _scored, "snapshots": _scored, "sample": _sampled, "train": _trained}
"""Kind of stage -> what gives the rows of its record."""


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
    """Records of a benchmark by stage; those of its images, extractor and models may lie with others (`images_of`,
    `models_of`)."""
    own = shared = _read_folder(root / "results" / benchmark / "records")
    for key, stages in (("images_of", ("prepare", "extractor")), ("models_of", ("train-",))):
        home = next((r.get(key) for r in own.values()), None) or benchmark
        others = _read_folder(root / "results" / home / "records") if home != benchmark else {}
        shared = {stage: record for stage, record in others.items() if stage.startswith(stages)} | shared
    sizes = {r["settings"]["size"] for r in own.values() if "size" in r["settings"]}
    return Records({k: r for k, r in shared.items() if k in own or r["settings"].get("size", None) in {*sizes, None}})


def _read_folder(folder: Path) -> dict[str, Record]:
    return {record["stage"]: record for record in map(read_record, sorted(folder.glob("*.json")))}
