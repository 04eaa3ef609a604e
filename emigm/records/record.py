"""Result records: one JSON file a run, with its provenance, written atomically, read as a table. No torch."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from emigm.config.benchmark import Benchmark
from emigm.config.errors import ConfigError
from emigm.config.paths import results_folder
from emigm.io import read_json, write_json

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
    """Write the record of one stage run.

    Beside what is passed it holds what no number may be read without: whether it is a dry run's, whose weights,
    against which real images (None where the stage has nothing to do with them), at which scale.

    Args:
        benchmark: what was run.
        stage: the record's name, such as "train-xs"; one file each.
        results: the measured numbers.
        device: where it was measured ("cpu", "cuda:0").
        processes: how many shared the work.
        inputs: file => checksum of what the stage read (`emigm.io.checksums`). What one stage's record has as an
            output, and another's as an input, chains them.
        outputs: file => checksum of what it wrote.
        others_cpu_seconds: processor time of the other processes (`cpu_seconds`).
        settings: the configuration that applied (dataclasses are expanded), seeds and sample counts.
    """
    path = results_folder(benchmark.name) / "records" / f"{stage}.json"
    tree = {
        "schema": SCHEMA,
        "benchmark": benchmark.name,
        "images_of": benchmark.images_of,
        "title": benchmark.title,
        "stage": stage,
        "dry_run": benchmark.dry_run,
        "weights": benchmark.weights,
        "reference": reference_name(benchmark) if stage.split("-")[0] in SCORED else None,
        "scale": scale(benchmark, settings),
        "processes": processes,
        "settings": {k: _plain(v) for k, v in settings.items()},
        "results": results,
        "inputs": dict(sorted(inputs.items())),
        "outputs": dict(sorted(outputs.items())),
        "provenance": provenance(device) | {"cpu_seconds": cpu_seconds() + others_cpu_seconds},
    }
    write_json(path, tree)
    return path


def reference_name(benchmark: Benchmark) -> str:
    """The real images that scores are computed against: a file of stored statistics by name, or the training images."""
    stored = benchmark.evaluation.reference
    return TRAINING_IMAGES if stored is None else Path(stored).name


def scale(benchmark: Benchmark, settings: dict[str, Any]) -> dict[str, Any] | None:
    """How large a run was, as far as its stage knows: training of one size, and its samples. None: neither.

    `images_trained_on` and `train_steps` are None for released weights: their authors know.
    """
    if "size" not in settings:
        return None
    train = benchmark.train_config(settings["size"])
    ours = benchmark.weights == "trained"
    found: dict[str, Any] = {
        "images_trained_on": train.steps * train.batch if ours else None,
        "train_steps": train.steps if ours else None,
        "train_seeds": list(train.seeds),
    }
    if "seeds" in settings:
        found |= {"images": settings["images"], "seeds": settings["seeds"]}
    return found


def provenance(device: str) -> dict[str, Any]:
    """Commit, time, versions and machine of this process."""
    return {
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in REPORTED_VERSIONS},
        "device": _device_name(device),
        "machine": platform.machine(),
        "cpu_cores": os.cpu_count(),
    }


def cpu_seconds() -> float:
    """Processor time (user and system) of this process and of its children that have ended, since it started."""
    total = time.process_time()
    if sys.platform != "win32":
        import resource  # absent there

        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        total += children.ru_utime + children.ru_stime
    return total


def read_record(path: str | Path) -> dict[str, Any]:
    """One record; raises ConfigError when it is missing, damaged or of another schema."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such record; the stage that writes it has not run (dvc repro)")
    tree = read_json(path, "delete it and run dvc repro")
    if tree.get("schema") != SCHEMA:
        raise ConfigError(f"{path}: record schema {tree.get('schema')}, expected {SCHEMA}; run its stage again")
    return tree


def mean_and_spread(values: list[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (absent for one value) and the values themselves, in order."""
    n = len(values)
    mean = math.fsum(values) / n
    summary: dict[str, Any] = {"mean": mean, "n": n, "values": list(values)}
    if n > 1:
        summary["std"] = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    return summary


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """HEAD's hash, with "+changes" where tracked code differs from it; None outside a git checkout.

    Composed files are no code, since records hold the settings that applied; nor are locks, which every stage changes.
    """
    code = ["emigm", "benchmarks", "notebooks", "dvc.yaml", ":(exclude)*params.yaml", ":(exclude)*dvc.lock"]
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("+changes" if _git("status", "--porcelain", "--untracked-files=no", "--", *code) else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*args: str) -> str:
    return subprocess.run(["git", *args], check=True, capture_output=True, text=True).stdout.strip()


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch  # only a process that used it gets here

        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return f"CPU: {line.split(':', 1)[1].strip()}"
    return f"CPU: {platform.processor() or platform.machine()}"
