"""Is what lies here whole? Records that follow from their runs and from one another, and files as they were written.

No torch: nothing is computed again but sums, means and checksums.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from emigm.config.benchmark import Benchmark
from emigm.config.errors import ConfigError
from emigm.io import sha256
from emigm.model.schedules import nfe
from emigm.records.record import SCORED, mean_and_spread, read_record, reference_name, scale
from emigm.records.summary import curves_table, fid_table, metrics_tree, summaries
from emigm.verify.cells import cells_of
from emigm.verify.findings import REMEDY, RESULTS, Findings, at, differing, same, short

MADE = ("data", "models", "samples")
"""Folders that stages fill and git does not track."""
Record = Mapping[str, Any]
Records = Mapping[str, Record]


def read_all(folder: Path, findings: Findings) -> dict[str, Record]:
    """Records of a `records` folder by stage; damaged ones are refused by name."""
    found = {}
    for path in sorted(folder.glob("[!.]*.json")):
        try:
            record = read_record(path)
        except ConfigError as e:
            findings.refuse(str(e))
            continue
        parts = ("settings", "results", "inputs", "outputs", "provenance")
        if missing := [k for k in parts if not isinstance(record.get(k), dict)]:
            findings.refuse(f"{path}: has no {missing[0]!r}")
        elif odd := [k for part in ("inputs", "outputs") for k, v in record[part].items() if not isinstance(v, str)]:
            findings.refuse(f"{path}: has no checksum of {odd[0]}")
        elif (record.get("stage"), record.get("benchmark")) != (path.stem, folder.parent.name):
            name = f"{record.get('benchmark')} {record.get('stage')}"
            findings.refuse(f"{path}: is the record of {name}, under another's name")
        elif not _finite(record["results"]):
            findings.refuse(f"{path}: its results hold NaN or infinity; {REMEDY}")
        else:
            found[path.stem] = record
    return found


def _finite(tree: Any) -> bool:
    try:
        json.dumps(tree, allow_nan=False)
    except ValueError:
        return False
    return True


def check_records(
    benchmark: Benchmark, records: Records, shared: Records, where: str, findings: Findings
) -> dict[str, Record]:
    """Refuse what does not follow: settings that are not the benchmark's, summaries that are not of their runs, inputs
    that are not what the stage before wrote.

    Args:
        benchmark: the settings that apply.
        records: of the benchmark, by stage.
        shared: records of the benchmark that makes the images and the extractor, where that is another.
        where: the folder they were read from, for messages.
        findings: what is found goes there.

    Returns:
        The records that hold all their stage writes, right or wrong.
    """
    expected, broken = expected_settings(benchmark), set()
    for stage, settings in expected.items():
        path = f"{where}/{stage}.json"
        if stage not in records:
            if not any(p.startswith(f"{path}:") for p in findings.problems):
                findings.refuse(f"{path}: missing; {REMEDY}")
            continue
        record = records[stage]
        for key, value in settings.items():
            for name, ours, theirs in differing(value, at(record, key), key):
                findings.refuse(f"{path}: made with {name} = {short(theirs)}, but the benchmark says {short(ours)}")
        try:
            cells_of({stage: record})
            for what in not_following(record):
                findings.refuse(f"{path}: {what}")
        except (KeyError, TypeError, AttributeError, ValueError, IndexError, ZeroDivisionError) as e:
            findings.refuse(f"{path}: lacks what its stage writes ({type(e).__name__}: {e})")
            broken.add(stage)
    check_chain(benchmark, {**shared, **records}, records, where, findings)
    return {stage: record for stage, record in records.items() if stage in expected and stage not in broken}


def expected_settings(benchmark: Benchmark) -> dict[str, dict[str, Any]]:
    """Stage -> dotted key of its record -> what the benchmark's settings make of it, for every stage's record."""
    evaluation, extractor = benchmark.evaluation, {"settings.extractor": benchmark.extractor}
    found: dict[str, dict[str, Any]] = {}
    if benchmark.images_of == benchmark.name:
        found["prepare"] = {"settings.data": benchmark.data}
        found["extractor"] = {**extractor}
    found["encode"] = {"settings.autoencoder": benchmark.autoencoder}
    found["reference"] = {"settings.evaluation": evaluation, **extractor}
    for size in benchmark.sizes:
        train = benchmark.train_config(size)
        gate = {"settings.gate": benchmark.gate, "settings.weights": benchmark.weights}
        recipe = {"settings.train": train} if benchmark.weights == "trained" else {}
        found[f"train-{size}"] = {"settings.size": size, "settings.model": benchmark.model_config(size)} | gate | recipe
        seeds = {"settings.train_seeds": train.seeds, "settings.seeds": evaluation.seeds}
        scored = {"settings.size": size, "settings.images": evaluation.images, **seeds}
        found[f"evaluate-{size}"] = scored | extractor
        if evaluation.snapshots is not None and train.snapshots:
            few, budget = {"settings.images": evaluation.snapshots.images}, evaluation.snapshots.budget
            sample = {"settings.budget": budget, "settings.sample": benchmark.sample_config(size, budget)}
            found[f"snapshots-{size}"] = scored | few | sample | recipe | extractor
        for budget in benchmark.budgets:
            sample = {"settings.sample": benchmark.sample_config(size, budget), "settings.chunk": evaluation.chunk}
            found[f"sample-{size}-{budget}"] = scored | sample | {"settings.budget": budget}
    for stage, settings in found.items():
        settings |= {"benchmark": benchmark.name, "dry_run": benchmark.dry_run, "weights": benchmark.weights}
        settings["reference"] = reference_name(benchmark) if stage.split("-")[0] in SCORED else None
        plain = {k.removeprefix("settings."): v for k, v in settings.items() if k.startswith("settings.")}
        settings["scale"] = scale(benchmark, plain)
    return {stage: {k: _plain(v) for k, v in settings.items()} for stage, settings in found.items()}


def not_following(record: Record) -> Iterator[str]:
    """What in a record's results is not what its own values and settings give."""
    results, settings = record["results"], record["settings"]
    for name, tree in _trees(results):
        if "mean" in tree and not isinstance(tree["mean"], (int, float)):
            raise TypeError(f"{name}.mean is {short(tree['mean'])}")
        if isinstance(tree.get("values"), list) and "mean" in tree:
            for key, value in mean_and_spread(tree["values"]).items():
                if not same(tree.get(key), value):
                    yield f"{name}.{key} is {short(tree.get(key))}, but its values give {short(value)}"
    kind = record["stage"].split("-")[0]
    if kind == "sample":
        cfg = settings["sample"]
        if not same(results["nfe"], nfe(cfg["steps"], cfg["cfg_scale"], tuple(cfg["cfg_interval"]))):
            yield f"nfe is {results['nfe']}, which is not that of its settings"
    if kind == "train" and results["context"] is not None:
        yield from _gate(results["context"], settings["gate"])
    if kind == "evaluate":
        for budget, scored in results.items():
            yield from _scores(budget, scored, settings)
    if kind == "snapshots":
        for point in results["points"]:
            yield from _scores(f"step {point['step']}", point, settings)


def _gate(context: Record, gate: Record) -> Iterator[str]:
    errors = {int(v): e["values"] for v, e in context["errors"].items()}
    fewest = min(errors)
    ratios = context["ratio"]["values"]
    for i, ratio in enumerate(ratios):
        if not same(ratio, min(e[i] for v, e in errors.items() if v != fewest) / errors[fewest][i]):
            yield f"context.ratio.values[{i}] is {short(ratio)}, which is not that of its errors"
    if context["passed"] != all(ratio <= gate["max_ratio"] for ratio in ratios):
        yield f"context.passed is {context['passed']}, but the ratios are {short(ratios)}"


def _scores(name: str, scored: Record, settings: Record) -> Iterator[str]:
    runs = scored["runs"]
    pairs = [(r["train_seed"], r["sample_seed"]) for r in runs]
    wanted = [(t, s) for t in settings["train_seeds"] for s in settings["seeds"]]
    if sorted(pairs) != sorted(wanted):
        yield f"{name}: has runs of the seeds {pairs}, but its settings name {wanted}"
        return
    summary = summaries(runs)
    for metric in sorted({*summary, *scored["summary"]}):
        for leaf, ours, theirs in differing(summary.get(metric), scored["summary"].get(metric), metric):
            yield f"{name}: {leaf} is {short(theirs)} in the summary, but the runs give {short(ours)}"
    fid = dict(zip(pairs, (r["fid"] for r in runs), strict=True))
    for curve in scored.get("fid_by_images", ()):
        whole, of_run = curve["fid"].get(str(settings["images"])), fid[curve["train_seed"], curve["sample_seed"]]
        if not same(whole, of_run):
            yield f"{name}: fid_by_images has {short(whole)} of all images, but the run has {short(of_run)}"


def check_chain(benchmark: Benchmark, every: Records, own: Records, where: str, findings: Findings) -> None:
    """Refuse an own record's input that is not, byte for byte, what another stage's record says it wrote."""
    makers = {path: (stage, checksum) for stage, r in every.items() for path, checksum in r["outputs"].items()}
    for stage, record in own.items():
        read_from = set()
        for path, checksum in record["inputs"].items():
            maker, written = makers.get(path, (None, None))
            read_from.add(maker)
            if maker is None and path.split("/")[0] in MADE:
                findings.refuse(f"{where}/{stage}.json: read {path}, which no record says it wrote")
            elif maker is not None and checksum != written:
                findings.refuse(
                    f"{where}/{stage}.json: read another {path} (sha256 {checksum[:8]}) than {maker}.json wrote "
                    f"({written[:8]})"
                )
        for before in _before(benchmark, stage):
            if before in every and before not in read_from:
                findings.refuse(f"{where}/{stage}.json: names nothing of what {before}.json wrote as its input")


def _before(benchmark: Benchmark, stage: str) -> list[str]:
    """Stages whose output a stage reads in any case."""
    kind, _, rest = stage.partition("-")
    size = next((s for s in benchmark.sizes if rest == s or rest.startswith(f"{s}-")), "")
    return {
        "encode": ["prepare"],
        "reference": ["extractor"] + ([] if benchmark.evaluation.reference else ["prepare"]),
        "train": ["encode"] if benchmark.weights == "trained" else [],
        "sample": [f"train-{size}"],
        "evaluate": ["reference", "extractor", *(f"sample-{size}-{b}" for b in benchmark.budgets)],
        "snapshots": ["reference", "extractor", f"train-{size}"],
    }.get(kind, [])


def check_artefacts(records: Records, root: Path, findings: Findings) -> None:
    """Compare what stages read and wrote, where it is here, with the checksums in the records."""
    seen: dict[str, str] = {}
    for stage, record in records.items():
        for path, checksum in {**record["outputs"], **record["inputs"]}.items():
            file = root / path
            if path not in seen:
                if not file.is_file():
                    findings.unchecked.append(path)
                    seen[path] = ""
                    continue
                seen[path] = sha256(file)
                findings.files += 1
            if seen[path] not in ("", checksum):
                findings.refuse(f"{path}: is not the file that {stage}.json names (sha256 {checksum[:8]})")


def check_derived(benchmark: Benchmark, records: Records, root: Path, findings: Findings) -> None:
    """Refuse metrics.json, fid.csv and curves.csv that do not follow from the records and curves."""
    folder, sizes, budgets = root / RESULTS / benchmark.name, benchmark.sizes, benchmark.budgets
    try:
        curves = {size: (folder / "curves" / f"{size}.csv").read_text(encoding="utf-8") for size in sizes}
        expected = {
            "metrics.json": json.dumps(metrics_tree(sizes, budgets, records), indent=2) + "\n",
            "fid.csv": fid_table(sizes, budgets, records),
            "curves.csv": curves_table(curves),
        }
    except (KeyError, OSError, UnicodeDecodeError, TypeError, AttributeError) as e:
        if not findings.problems:  # what is missing or damaged has not been named already
            findings.refuse(f"{folder.relative_to(root)}: holds no such records as its summary needs ({e!r})")
        return
    for name, text in expected.items():
        file = folder / name
        if file.is_file() and file.read_bytes() != text.encode():
            findings.refuse(f"{file.relative_to(root)}: does not follow from the records; {REMEDY}")


def _trees(tree: Any, name: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping in a tree, with its dotted name."""
    if isinstance(tree, Mapping):
        yield name, tree
        for key, value in tree.items():
            yield from _trees(value, f"{name}.{key}".lstrip("."))


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value))
