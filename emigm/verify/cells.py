"""Every number of a benchmark's records as a cell that a repetition must show again: a fact, or measured. No torch.

A cell's name is such as "evaluate-xs 4 fid": the stage, then keys of its results.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from emigm.records.record import Record

COSTS = ("seconds", "images_per_second", "seconds_per_image", "peak_memory", "process_seconds", "compiled_graphs")
"""Keys that say how fast a machine is, which no other has to reproduce."""
EXACT = ("nfe", "passes", "flops", "flops_per_step")
"""Floating-point numbers that are counts."""
ROUNDED = ("codes_used",)
"""Counts that depend on rounding."""
COLUMNS = ("cell", "metric", "group", "size", "seed", "sample", "value")
Path = tuple[str, ...]
"""Keys that lead to a value of a record's results."""


class Measured(dict[tuple[Any, Any], float]):
    """Values by what pairs them with those of another side: training seed and sampling seed; position, or sampling seed
    of released weights, and 0."""


def cells_of(records: Mapping[str, Record]) -> tuple[dict[str, Any], pd.DataFrame]:
    """All cells of a benchmark's records.

    Returns:
        facts: by name; of a measured cell what its values belong to.
        measured: a row a value. `metric` says which differences matter; cells of one `group` (a metric over all models
            and sampling configurations) are decided together; `size`: whose trainings it is of; `seed` and `sample`: as
            of `Measured`.
    """
    facts, rows = {}, []
    for stage, record in records.items():
        kind, size, *_ = (*stage.split("-"), "")
        facts[f"{stage} settings"] = _settings(record)
        fitted = record["settings"].get("autoencoder", {}).get("kind") == "kmeans"  # a codebook of this machine's own
        results = {k: v for k, v in record["results"].items() if not (fitted and k == "weights_sha256")}
        for path, value in _leaves(results):
            name = " ".join((stage, *path))
            if not isinstance(value, Measured):
                facts[name] = value
            elif kind != "snapshots":  # scores before the end of training scatter too much
                group = " ".join((kind, *(p for p in path[1:] or path if not p.isdigit())))
                facts[name] = f"measured with seeds {', '.join(map(str, sorted(value)))}"
                released = kind == "evaluate" and record.get("weights") == "released"  # what is repeated is sampling
                of = (name, path[-1].split(" of ")[0], group, size)
                rows += [(*of, *((s, 0) if released else (t, s)), float(v)) for (t, s), v in value.items()]
    return facts, pd.DataFrame(rows, columns=COLUMNS)


def _settings(record: Record) -> dict[str, Any]:
    """What a record was made with, without what each machine makes itself: a trained extractor's checksum."""
    settings = dict(record["settings"])
    identity = settings.get("extractor_identity") or {}
    if not identity.get("published", False):
        settings["extractor_identity"] = {k: v for k, v in identity.items() if k != "sha256"}
    return {**{k: record.get(k) for k in ("benchmark", "dry_run", "weights", "reference")}, **settings}


def _leaves(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """(keys, values by seeds or a fact) of everything in a record's results that a repetition must show again."""
    if isinstance(tree, Mapping):
        if "runs" in tree:
            yield from _runs(tree, path)
        elif "mean" in tree:
            yield path, Measured({(i, 0): v for i, v in enumerate(tree.get("values", [tree["mean"]]))})
        else:
            own_bytes = not tree.get("published", "holdout_accuracy" not in tree)  # of a file that each machine makes
            for key, value in by_extractor(tree).items():
                if key not in COSTS and not (own_bytes and key == "sha256"):
                    yield from _leaves(value, (*path, key))
    elif isinstance(tree, list) and tree and all(isinstance(item, Mapping) and "step" in item for item in tree):
        for item in tree:
            yield from _leaves({k: v for k, v in item.items() if k != "step"}, (*path, f"step {item['step']}"))
    elif path[-1] in ROUNDED or (isinstance(tree, float) and path[-1] not in EXACT):
        yield path, Measured({(0, 0): tree})
    else:
        yield path, tree


def by_extractor(scored: Record) -> dict[str, Any]:
    """Scores, with FID by each further extractor as one of its own; that by the first one is FID itself."""
    others = list((scored.get("fid_by_extractor") or {}).items())[1:]
    rest = {key: value for key, value in scored.items() if key != "fid_by_extractor"}
    return rest | {f"fid of extractor {seed}": value for seed, value in others}


def _runs(scored: Record, path: Path) -> Iterator[tuple[Path, Any]]:
    """Of every metric of a list of runs its values by seeds, and its FIDs of fewer images."""
    metrics: dict[str, Measured] = defaultdict(Measured)
    for run in scored["runs"]:
        for metric, value in by_extractor(run).items():
            if metric not in ("train_seed", "sample_seed"):
                metrics[metric][run["train_seed"], run["sample_seed"]] = value
    for curve in scored.get("fid_by_images", ()):
        for n in sorted(curve["fid"], key=int)[:-1]:  # that of all images is the run's
            metrics[f"fid of {n} images"][curve["train_seed"], curve["sample_seed"]] = curve["fid"][n]
    for name, values in metrics.items():
        if all(v is None for v in values.values()):
            yield (*path, name), "not measured"
        else:
            measured = all(isinstance(v, (int, float)) for v in values.values())
            yield (*path, name), values if measured else sorted(map(str, values.items()))
    yield from (((*path, k), v) for k, v in scored.items() if k not in ("runs", "fid_by_images"))
