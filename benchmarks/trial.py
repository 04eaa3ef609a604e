"""Try settings of a benchmark on seeds that are not reported, and add a line to its trials.jsonl.

    python benchmarks/trial.py mnist --size h --seeds 100 101 -S benchmark.train.steps=2000

trains, samples and scores one model with the stages' own code, in a temporary folder, from the images, the latents and
the extractor that `dvc repro` has made. A line holds what was changed, CPU seconds and scores of each seed. What is
tunable is chosen from such lines, never on the seeds of a benchmark.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from emigm.config.benchmark import parse_params
from emigm.config.compose import overridden
from emigm.launching import in_one_line
from emigm.records.record import read_record

ROOT = Path(__file__).parents[1]
LEAST_SEED = 100
"""Seeds below are reported."""


def trial(name: str, size: str, seeds: list[int], overrides: list[str]) -> dict:
    """The line of one trial: what was changed and what came of it, values in the order of the seeds.

    Raises:
        ConfigError: the benchmark, the model or a setting is wrong; nothing has run.
    """
    tree = overridden(name, [*overrides, f"benchmark.train.seeds={seeds}"], ROOT)
    parse_params(tree, name).model_config(size)
    benchmark = tree["benchmark"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "params.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
        Path(folder, "data").symlink_to(ROOT / "data")
        commands = [("train", "--size", size)]
        commands += [("sample", "--size", size, "--budget", budget) for budget in benchmark["budgets"]]
        commands += [("evaluate", "--size", size)]
        commands += [("snapshots", "--size", size)] if benchmark["evaluation"].get("snapshots") else []
        for stage, *options in commands:
            command = [sys.executable, "-m", f"emigm.stages.{stage}", *options]
            subprocess.run(command, cwd=folder, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
        records = [read_record(path) for path in Path(folder, "results", benchmark["name"], "records").glob("*.json")]
    of = {record["stage"]: record for record in records}
    train, scores = of[f"train-{size}"], of[f"evaluate-{size}"]["results"]
    line = {
        "size": size, "changed": overrides, "seeds": seeds, "commit": commit(),
        "cpu_seconds": {stage: round(record["provenance"]["cpu_seconds"], 1) for stage, record in sorted(of.items())},
        "context_ratio": [round(v, 4) for v in train["results"]["context"]["ratio"]["values"]],
        "fid": {budget: fids(scored["runs"], seeds) for budget, scored in scores.items()},
    }  # fmt: skip
    if along := of.get(f"snapshots-{size}"):
        line["fid_along"] = [[point["step"], *fids(point["runs"], seeds)] for point in along["results"]["points"]]
    return line


def commit() -> str:
    """The commit whose code ran."""
    return subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()


def fids(runs: list[dict], seeds: list[int]) -> list[float]:
    """Mean FID over the sampling seeds, of each training seed."""
    of = {seed: [run["fid"] for run in runs if run["train_seed"] == seed] for seed in seeds}
    return [round(sum(values) / len(values), 3) for values in of.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("benchmark")
    parser.add_argument("--size", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[LEAST_SEED])
    parser.add_argument("-S", dest="overrides", action="append", default=[], metavar="benchmark.<key>=<value>")
    options = parser.parse_args()
    if min(options.seeds) < LEAST_SEED:
        parser.error(f"--seeds: those below {LEAST_SEED} are reported; take others")
    with in_one_line():
        line = trial(options.benchmark, options.size, options.seeds, options.overrides)
    with (ROOT / "benchmarks" / options.benchmark / "trials.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
