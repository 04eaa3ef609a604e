"""Do records say what they must: the benchmark's settings, and inputs that another record says it wrote? No torch.

That files are as they were written is DVC's to say (`emigm.verify.pipeline`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from emigm.config.benchmark import Benchmark
from emigm.config.errors import ConfigError
from emigm.records.record import SCORED, read_record, reference_name, scale
from emigm.verify.cells import Record, cells_of
from emigm.verify.findings import REMEDY, Findings
from emigm.verify.pipeline import MADE


def read_all(root: Path, folder: str, findings: Findings, label: str = "") -> dict[str, Record]:
    """Records of a `records` folder under `root` by stage; damaged ones are refused by name, after `label`."""
    records = {}
    for path in sorted((root / folder).glob("[!.]*.json")):
        try:
            record = read_record(path)
            if (record["stage"], record["benchmark"]) != (path.stem, path.parents[1].name):
                raise ConfigError(f"{path}: is the record of {record['benchmark']} {record['stage']}, under its name")
            for part in ("inputs", "outputs", "provenance"):
                dict.items(record[part])
            json.dumps(record["results"], allow_nan=False)
            cells_of({path.stem: record})
        except (ConfigError, KeyError, TypeError, AttributeError, ValueError, IndexError) as e:
            odd = "holds NaN or infinity" if "JSON compliant" in str(e) else f"{type(e).__name__}: {e}"
            problem = str(e) if isinstance(e, ConfigError) else f"{path}: lacks what its stage writes ({odd}); {REMEDY}"
            findings.refuse(problem.replace(f"{root}/", label))
        else:
            records[path.stem] = record
    return records


def check_records(
    benchmark: Benchmark, records: Mapping[str, Record], shared: Mapping[str, Record], where: str, findings: Findings
) -> None:
    """Refuse settings that are not the benchmark's, and inputs that are not what the stage before wrote.

    Args:
        benchmark: the settings that apply.
        records: of the benchmark, by stage.
        shared: records of the benchmark that makes the images and the extractor, where that is another.
        where: the folder they were read from, for messages.
        findings: what is found goes there.
    """
    for stage, settings in expected_settings(benchmark).items():
        path = f"{where}/{stage}.json"
        if stage not in records:
            if not any(p.startswith(f"{path}:") for p in findings.problems):
                findings.refuse(f"{path}: missing; {REMEDY}")
            continue
        for key, value in settings.items():
            for name, ours, theirs in differing(value, _at(records[stage], key), key):
                findings.refuse(f"{path}: made with {name} = {short(theirs)}, but the benchmark says {short(ours)}")
    written = {path: (s, c) for s, r in {**shared, **records}.items() for path, c in r["outputs"].items()}
    for stage, record in records.items():
        for path, checksum in record["inputs"].items():
            maker, expected = written.get(path, (None, None))
            if maker is None and path.split("/")[0] in MADE:
                findings.refuse(f"{where}/{stage}.json: read {path}, which no record says it wrote")
            elif maker is not None and checksum != expected:
                findings.refuse(f"{where}/{stage}.json: read another {path} than {maker}.json wrote; {REMEDY}")


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
        if benchmark.models_of in (None, benchmark.name):
            model = {"settings.size": size, "settings.model": benchmark.model_config(size)}
            found[f"train-{size}"] = model | gate | recipe
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


def differing(ours: Any, theirs: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """(name, ours, theirs) of every leaf in which two trees differ."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for key in dict.fromkeys((*ours, *theirs)):
            yield from differing(ours.get(key), theirs.get(key), f"{name}.{key}")
    elif ours != theirs:
        yield name, ours, theirs


def short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value))
