"""Every number of a benchmark's records as a cell that a repetition must show again. No torch."""

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
Path = tuple[str, ...]
"""Keys that lead to a value of a record's results."""


@dataclass(frozen=True)
class Cell:
    """One number, or one fact, of a benchmark's records."""

    name: str
    """Such as "evaluate-xs 4 fid"; first the stage."""
    metric: str
    """Last part of the name: what says which differences matter."""
    group: str
    """Its metric over all sizes and sampling configurations: cells that are decided together."""
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
    cells = {}
    for stage, record in records.items():
        kind, size, *_ = (*stage.split("-"), "")
        cells[f"{stage} settings"] = Cell(f"{stage} settings", "settings", "", fact=_settings(record))
        fitted = record["settings"].get("autoencoder", {}).get("kind") == "kmeans"  # a codebook of this machine's own
        results = {k: v for k, v in record["results"].items() if not (fitted and k == "weights_sha256")}
        for path, value in _leaves(results):
            name = " ".join((stage, *path))
            group = " ".join((kind, *(p for p in path[1:] or path if not p.isdigit())))
            if not isinstance(value, dict):
                cells[name] = Cell(name, path[-1], group, fact=value)
            elif kind != "snapshots":  # scores before the end of training scatter too much
                if kind == "evaluate" and record.get("weights") == "released":  # what is repeated is sampling
                    value = {(sample, 0): v for (_, sample), v in value.items()}
                cells[name] = Cell(name, path[-1].split(" of ")[0], group, size, value)
    return cells


def _settings(record: Record) -> dict[str, Any]:
    """What a record was made with, without what each machine makes itself: a trained extractor's checksum."""
    settings = dict(record["settings"])
    identity = settings.get("extractor_identity") or {}
    if not identity.get("published", False):
        settings["extractor_identity"] = {k: v for k, v in identity.items() if k != "sha256"}
    return {**{k: record.get(k) for k in ("benchmark", "dry_run", "weights", "reference", "scale")}, **settings}


def _leaves(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """(path, values by seeds or a fact) of everything in a record's results that a repetition must show again."""
    if isinstance(tree, Mapping):
        if "runs" in tree:
            yield from _runs(tree, path)
        elif "mean" in tree:
            yield path, {(i, 0): float(v) for i, v in enumerate(tree.get("values", [tree["mean"]]))}
        else:
            own_bytes = not tree.get("published", "holdout_accuracy" not in tree)  # of a file that each machine makes
            for key, value in _by_extractor(tree).items():
                if key not in COSTS and not (own_bytes and key == "sha256"):
                    yield from _leaves(value, (*path, key))
    elif isinstance(tree, list) and tree and all(isinstance(item, Mapping) and "step" in item for item in tree):
        for item in tree:
            yield from _leaves({k: v for k, v in item.items() if k != "step"}, (*path, f"step {item['step']}"))
    elif path[-1] in ROUNDED or (isinstance(tree, float) and path[-1] not in EXACT):
        yield path, {(0, 0): float(tree)}
    else:
        yield path, tree


def _by_extractor(scored: Record) -> dict[str, Any]:
    """Scores, with FID by each further extractor as one of its own; that by the first one is FID itself."""
    others = list((scored.get("fid_by_extractor") or {}).items())[1:]
    rest = {key: value for key, value in scored.items() if key != "fid_by_extractor"}
    return rest | {f"fid of extractor {seed}": value for seed, value in others}


def _runs(scored: Record, path: Path) -> Iterator[tuple[Path, Any]]:
    tables = [(run, {k: v for k, v in _by_extractor(run).items() if k not in KEYS}) for run in scored["runs"]]
    for curve in scored.get("fid_by_images", ()):
        fewer = sorted(curve["fid"], key=int)[:-1]  # that of all images is the run's
        tables.append((curve, {f"fid of {n} images": curve["fid"][n] for n in fewer}))
    metrics: dict[str, dict[Unit, Any]] = {}
    for run, values in tables:
        for metric, value in values.items():
            metrics.setdefault(metric, {})[run["train_seed"], run["sample_seed"]] = value
    for name, values in metrics.items():
        if all(v is None for v in values.values()):
            yield (*path, name), "not measured"
        else:
            measured = all(isinstance(v, (int, float)) for v in values.values())
            yield (*path, name), values if measured else sorted(map(str, values.items()))
    yield from (((*path, k), v) for k, v in scored.items() if k not in ("runs", "summary", "fid_by_images"))
