"""Every number of a benchmark's records as a cell that a repetition must show again, but speed, and the scores of
snapshots, which scatter too much before the end of training. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from emigm.records.summary import KEYS

COSTS = ("seconds", "images_per_second", "seconds_per_image", "peak_memory", "process_seconds", "compiled_graphs")
"""Keys that say how fast a machine is, which no other has to reproduce."""
EXACT = ("nfe", "passes", "flops", "flops_per_step")
"""Floating-point numbers that are counts."""
ROUNDED = ("codes_used",)
"""Counts that depend on rounding."""
Unit = tuple[Any, Any]
"""What pairs the runs of two sides: training seed and sampling seed; position, or sampling seed of released weights,
and 0."""
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One number, or one fact, of a benchmark's records."""

    name: str
    """Such as "evaluate-xs 4 fid"."""
    metric: str
    """Last part of the name: what says which differences matter."""
    group: str
    """Its metric over all sizes and budgets: cells whose scatter is pooled, and that are decided together."""
    size: str = ""
    """Whose trainings it is of."""
    values: Mapping[Unit, float] | None = None
    """Measured values by seeds; None: a fact."""
    fact: Any = None

    @property
    def mean(self) -> float:
        return math.fsum(self.values.values()) / len(self.values)


def cells_of(records: Mapping[str, Record]) -> dict[str, Cell]:
    """All cells of a benchmark's records, by name."""
    found = {}
    for stage, record in records.items():
        facts = _settings(record)
        found[f"{stage} settings"] = Cell(f"{stage} settings", "settings", "", fact=facts)
        fitted = record["settings"].get("autoencoder", {}).get("kind") == "kmeans"  # a codebook of this machine's own
        results = {k: v for k, v in record["results"].items() if not (fitted and k == "weights_sha256")}
        for path, value in _cells(results):
            if stage.startswith("snapshots-") and isinstance(value, dict):
                continue
            if stage.startswith("evaluate-") and record.get("weights") == "released" and isinstance(value, dict):
                value = {(sample, 0): v for (_, sample), v in value.items()}  # what is repeated is sampling
            name = " ".join((stage, *path))
            group = " ".join((stage.split("-")[0], *(p for p in path[1:] or path if not p.isdigit())))
            if isinstance(value, dict):
                found[name] = Cell(name, _metric(path), group, (*stage.split("-"), "")[1], value)
            else:
                found[name] = Cell(name, path[-1], group, fact=value)
    return found


def _settings(record: Record) -> dict[str, Any]:
    """What a record was made with, without what each machine makes itself: a trained extractor's checksum."""
    settings = dict(record["settings"])
    identity = settings.get("extractor_identity") or {}
    if not identity.get("published", False):
        settings["extractor_identity"] = {k: v for k, v in identity.items() if k != "sha256"}
    keys = ("benchmark", "dry_run", "weights", "reference", "scale")
    return {**{k: record.get(k) for k in keys}, **settings}


def _cells(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, values by seeds or a fact) of everything in a record's results that a repetition must show again."""
    if isinstance(tree, Mapping):
        if "runs" in tree:
            yield from _runs(tree, path)
        elif "mean" in tree:
            values = tree.get("values", [tree["mean"]])
            yield path, {(i, 0): float(v) for i, v in enumerate(values)}
        else:
            for key, value in tree.items():
                own_bytes = key == "sha256" and not tree.get("published", True)
                trained = key == "sha256" and "holdout_accuracy" in tree
                if key not in COSTS and not own_bytes and not trained:
                    yield from _cells(value, (*path, key))
    elif isinstance(tree, list) and tree and all(isinstance(item, Mapping) and "step" in item for item in tree):
        for item in tree:
            yield from _cells({k: v for k, v in item.items() if k != "step"}, (*path, f"step {item['step']}"))
    elif path[-1] in ROUNDED or (isinstance(tree, float) and path[-1] not in EXACT):
        yield path, {(0, 0): float(tree)}
    else:
        yield path, tree


def _runs(scored: Record, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    tables = [(run, {k: v for k, v in run.items() if k not in KEYS}) for run in scored["runs"]]
    for curve in scored.get("fid_by_images", ()):
        fewer = sorted(curve["fid"], key=int)[:-1]  # that of all images is the run's
        tables.append((curve, {f"fid of {n} images": curve["fid"][n] for n in fewer}))
    found: dict[str, dict[Unit, Any]] = {}
    for run, metrics in tables:
        for metric, value in metrics.items():
            found.setdefault(metric, {})[run["train_seed"], run["sample_seed"]] = value
    for name, values in found.items():
        if all(v is None for v in values.values()):
            yield (*path, name), "not measured"
        elif not all(isinstance(v, (int, float)) for v in values.values()):
            yield (*path, name), sorted(map(str, values.items()))
        else:
            yield (*path, name), values
    yield from (((*path, k), v) for k, v in scored.items() if k not in ("runs", "summary", "fid_by_images"))


def _metric(path: tuple[str, ...]) -> str:
    return path[-1].split(" of ")[0]
