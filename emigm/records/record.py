"""Result records: one JSON file a run, with its provenance, written atomically, read as a table. No torch."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from emigm.config.benchmark import Benchmark
from emigm.config.errors import ConfigError, check
from emigm.config.paths import results_folder
from emigm.config.schema import SampleConfig, TrainConfig
from emigm.io import read_json, write_json

Record = dict[str, Any]
SCHEMA = 2
TRAINING_IMAGES = "training images"
SCORED = ("reference", "sample", "evaluate", "snapshots")
"""Stages that depend on `benchmark.evaluation`; a record says nothing that its stage does not depend on."""
REPORTED_VERSIONS = ("torch", "torchvision", "numpy", "scikit-learn", "torch-fidelity", "clean-fid", "diffusers", "dvc")


def write_record(
    benchmark: Benchmark,
    stage: str,
    results: dict[str, Any],
    *,
    device: str,
    processes: int = 1,
    inputs: Mapping[str, str] = MappingProxyType({}),
    outputs: Mapping[str, str] = MappingProxyType({}),
    others_cpu_seconds: float = 0.0,
    **settings: Any,
) -> Path:
    """Write the record of one stage run, with what no number may be read without: whether it is a dry run's, whose
    weights, against which real images (None where the stage has nothing to do with them).

    Args:
        benchmark: what was run.
        stage: the record's name, such as "train-xs"; one file each.
        results: the measured numbers; of repeated ones their "values", to which a reader adds mean and deviation.
        device: where it was measured ("cpu", "cuda:0").
        processes: how many shared the work.
        inputs, outputs: file => checksum of what the stage read and wrote (`emigm.io.checksums`): what one stage's
            record has as an output, and another's as an input, chains them.
        others_cpu_seconds: processor time of the other processes (`cpu_seconds`).
        settings: what applied beside the settings of the benchmark (`stage_settings`), such as whose extractor it was;
            a value given here stands for that of the benchmark.
    """
    path = results_folder(benchmark.name) / "records" / f"{stage}.json"
    tree = {
        "schema": SCHEMA,
        "images_of": benchmark.images_of,
        "models_of": benchmark.models_of or benchmark.name,
        "title": benchmark.title,
        "stage": stage,
        **_follows(benchmark, stage, stage_settings(benchmark).get(stage, {}) | settings),
        "processes": processes,
        "results": results,
        "inputs": dict(sorted(inputs.items())),
        "outputs": dict(sorted(outputs.items())),
        "provenance": provenance(device) | {"cpu_seconds": cpu_seconds() + others_cpu_seconds},
    }
    write_json(path, tree)
    return path


def stage_settings(benchmark: Benchmark) -> dict[str, dict[str, Any]]:
    """Stage -> settings of its record that the benchmark gives, for every stage with a record."""
    evaluation, extractor = benchmark.evaluation, {"extractor": benchmark.extractor}
    stages: dict[str, dict[str, Any]] = {"encode": {"autoencoder": benchmark.autoencoder}}
    if benchmark.images_of == benchmark.name:
        stages |= {"prepare": {"data": benchmark.data}, "extractor": extractor}
    stages["reference"] = {"evaluation": evaluation, **extractor}
    for size in benchmark.sizes:
        model, train, snapshots = benchmark.model_config(size), benchmark.train_config(size), evaluation.snapshots
        seeds = {"train_seeds": train.seeds, "seeds": evaluation.seeds}
        recipe = {"train": train} if benchmark.weights == "trained" else {"train_seeds": train.seeds}
        gate = {"gate": benchmark.gate, "weights": benchmark.weights}
        if benchmark.models_of in (None, benchmark.name):
            stages[f"train-{size}"] = {"size": size, "model": model, **gate, **recipe}
        for budget in benchmark.budgets:
            sample = {"budget": budget, "sample": benchmark.sample_config(size, budget)}
            more = {"autoencoder": benchmark.autoencoder, "images": evaluation.images, "chunk": evaluation.chunk}
            stages[f"sample-{size}-{budget}"] = {"size": size, **sample, **more, **seeds}
        stages[f"evaluate-{size}"] = {"size": size, "images": evaluation.images, **extractor, **seeds}
        if snapshots is not None:
            budget, few = snapshots.budget, {"images": snapshots.images}
            sample = {"budget": budget, "sample": benchmark.sample_config(size, budget)}
            stages[f"snapshots-{size}"] = {"size": size, **sample, **few, **recipe, **extractor, **seeds}
    return stages


def expected_records(benchmark: Benchmark) -> dict[str, Record]:
    """Stage -> what its record must hold, as JSON gives it back."""
    return {
        stage: json.loads(json.dumps(_follows(benchmark, stage, settings)))
        for stage, settings in stage_settings(benchmark).items()
    }


def _follows(benchmark: Benchmark, stage: str, settings: Mapping[str, Any]) -> Record:
    """What a record holds that follows from the benchmark and the settings of the stage."""
    stored = benchmark.evaluation.reference
    reference = TRAINING_IMAGES if stored is None else Path(stored).name
    return {
        "benchmark": benchmark.name,
        "dry_run": benchmark.dry_run,
        "weights": benchmark.weights,
        "reference": reference if stage.split("-")[0] in SCORED else None,
        "settings": {k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in settings.items()},
    }


def differing(ours: Any, theirs: Any, name: str = "", listed: int = 0) -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, ours, theirs) of every leaf in which two trees differ; what is absent is None. In the first
    `listed` levels only what ours has is compared."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for key in ours if listed > 0 else dict.fromkeys((*ours, *theirs)):
            yield from differing(ours.get(key), theirs.get(key), f"{name}.{key}".lstrip("."), listed - 1)
    elif ours != theirs:
        yield name, ours, theirs


def provenance(device: str) -> dict[str, Any]:
    """Commit, time, versions and machine of this process."""
    return {
        **_commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in REPORTED_VERSIONS},
        "device": _device_name(device),
        "machine": platform.machine(),
        "cpu_cores": os.cpu_count(),
    }


def cpu_seconds() -> float:
    """Processor time (user and system) of this process and of its children that have ended, since it started."""
    return sum(os.times()[:4])


def read_record(path: str | Path) -> dict[str, Any]:
    """One record, with what follows from what it holds: mean, n and std of every list of values, and whether every
    training passed the context gate. Keys of the recipe and of sampling that did not exist when it was written have
    their defaults, which is what applied.

    Raises:
        ConfigError: it is missing, damaged or of another schema.
    """
    path = Path(path)
    check(path.is_file(), f"{path}: no such record; the stage that writes it has not run (dvc repro)")
    tree = read_json(path, "delete it and run dvc repro")
    if tree.get("schema") != SCHEMA:
        raise ConfigError(f"{path}: record schema {tree.get('schema')}, expected {SCHEMA}; run its stage again")
    try:
        settings = with_defaults(tree["settings"])
        results = with_derived(tree["results"], (settings.get("gate") or {}).get("max_ratio"))
        return tree | {"settings": settings, "results": results}
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as e:
        raise ConfigError(f"{path}: lacks what its stage writes ({type(e).__name__}: {e}); run dvc repro") from e


def with_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """A record's settings, with the defaults of the keys that its recipe and its sampling lack."""
    settings = dict(settings)
    for part, cls in (("train", TrainConfig), ("sample", SampleConfig)):
        if settings.get(part):
            defaults = {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}
            plain = {k: list(v) if isinstance(v, tuple) else v for k, v in defaults.items()}
            settings[part] = {**settings[part], **{k: v for k, v in plain.items() if k not in settings[part]}}
    return settings


def with_derived(tree: Any, max_ratio: float | None = None) -> Any:
    """A record's results with what `read_record` adds to them; `max_ratio` is the context gate's limit."""
    if isinstance(tree, list):
        return [with_derived(item, max_ratio) for item in tree]
    if not isinstance(tree, dict):
        return tree
    tree = {key: with_derived(value, max_ratio) for key, value in tree.items()}
    if values := tree.get("values"):
        mean = math.fsum(values) / len(values)
        tree |= {"mean": mean, "n": len(values)}
        if len(values) > 1:
            tree["std"] = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
    if max_ratio is not None and "values" in (tree.get("ratio") or {}):
        tree["passed"] = all(ratio <= max_ratio for ratio in tree["ratio"]["values"])
    return tree


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> dict[str, str | None]:
    """HEAD's hash, with "+changes" where tracked code differs from it; where git does not say, why.

    Composed files are no code, since records hold the settings that applied; nor are locks, which every stage changes.
    """
    code = ["emigm", "benchmarks", "notebooks", "dvc.yaml", ":(exclude)*params.yaml", ":(exclude)*dvc.lock"]
    try:
        head = git("rev-parse", "HEAD").decode().strip()
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *code)
    except GitError as e:
        return {"commit": None, "commit_missing": str(e)}
    return {"commit": head + ("+changes" if changed else "")}


class GitError(ConfigError):
    """Git is not there or refuses; the message is its reason, with the remedy that it names."""


def git(*arguments: str, root: Path = Path()) -> bytes:
    """Output of a git command in a checkout.

    Raises:
        GitError: it fails.
    """
    try:
        return subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True).stdout
    except OSError as e:
        raise GitError(f"git cannot be started ({e.strerror}); install git") from e
    except subprocess.CalledProcessError as e:
        said = [line.strip() for line in e.stderr.decode(errors="replace").splitlines()]
        reason = next((line for line in said if line.startswith("fatal:")), said[0] if said else f"exit {e.returncode}")
        remedy = next((f"; run {line}" for line in said if line.startswith("git config")), "")
        raise GitError(f"git: {reason.removeprefix('fatal: ')}{remedy}") from e


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch  # only a process that used it gets here

        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return f"CPU: {next(named, platform.processor() or platform.machine())}"
