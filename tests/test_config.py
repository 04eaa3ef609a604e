"""Configuration: mistakes are named at once, and the files agree with each other."""

import dataclasses
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from emigm.config.benchmark import parse_benchmark
from emigm.config.compose import compose, compose_benchmark, sources
from emigm.config.errors import ConfigError
from emigm.paper.settings import PAPER_MODELS, paper_sampling, paper_train

ROOT = Path(__file__).parents[1]
LOCK, SITE = "requirements.lock", "docs/requirements.lock"


def composed(name):
    return compose_benchmark(name, (), ROOT)


def test_every_benchmark_is_valid_and_named_after_its_file_and_random_files_are_a_dry_runs_alone():
    benchmarks = {name: composed(name) for name in sources(ROOT)}
    assert all(benchmark.name == name for name, benchmark in benchmarks.items())
    assert {name: len(b.random_files) for name, b in benchmarks.items() if b.random_files} == {"imagenet256-dry": 5}


@pytest.mark.parametrize(("resolution", "size"), PAPER_MODELS)
def test_the_imagenet_benchmarks_are_the_papers(resolution, size):
    benchmark = composed(f"imagenet{resolution}")
    assert benchmark.model_config(size) == PAPER_MODELS[resolution, size]
    assert set(benchmark.sizes) == {s for r, s in PAPER_MODELS if r == resolution}
    for budget in benchmark.budgets:
        paper = dataclasses.replace(paper_sampling(resolution, size, int(budget)), precision="float16")
        assert benchmark.sample_config(size, budget) == paper
    train = benchmark.train_config(size)
    machine = {"precision": "float32", "checkpoint_every": paper_train(size).checkpoint_every}
    assert dataclasses.replace(train, **machine) == paper_train(size)
    assert train.batch == (1024 if size in ("xs", "s") else 2048) and train.warmup_steps * 8 == train.steps
    assert (train.schedule, train.t_min, train.weight, train.ema) == ("exp", 0.2, "one", 0.9999)
    assert benchmark.evaluation.images == 50_000 and benchmark.compare.resolution == resolution


def test_the_imagenet_dry_run_is_small_and_marked_and_keeps_the_real_networks():
    dry, full = composed("imagenet256-dry"), composed("imagenet256")
    assert dry.dry_run and dry.weights == "trained"
    assert dry.model_config("xs") == dataclasses.replace(PAPER_MODELS[256, "xs"], classes=64)
    assert (dry.autoencoder.precision, full.autoencoder.precision) == ("float32", "float16")
    real = dataclasses.replace(dry.autoencoder, weights=full.autoencoder.weights, precision="float16")
    assert full.autoencoder == real
    assert full.extractor == dataclasses.replace(dry.extractor, weights=full.extractor.weights)
    trains = [dry.train_config(size) for size in dry.sizes]
    assert trains and all((train.steps, train.batch) == (2, 4) for train in trains)


def test_a_sampler_that_cannot_draw_the_models_tokens_is_refused_where_it_is_run():
    tree = compose("codes", ROOT)["benchmark"]
    tree["sampling"]["diffusion"] = {"settings": {"steps": 4, "solver_steps": 8}, "overrides": {}}
    assert parse_benchmark(tree).name == "codes"
    tree["budgets"].append("diffusion")
    with pytest.raises(ConfigError, match=r"benchmark\.sampling\.diffusion of size maskgit: .*cannot draw tokens"):
        parse_benchmark(tree)


def lock_pins(lock: str) -> dict[str, set[str]]:
    pins: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;\\]+)", (ROOT / lock).read_text(), re.M):
        pins.setdefault(name, set()).add(version)
    return pins


def test_lock_files_have_checksums_and_name_no_host_and_pins_agree():
    for lock in (LOCK, SITE):
        text = (ROOT / lock).read_text()
        assert "://" not in text and text.count("--hash=sha256:") > len(lock_pins(lock))
    locked, site, project = lock_pins(LOCK), lock_pins(SITE), tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][-1]["pip"]
    pins = [d.split("==") for d in listed if "==" in d]
    assert all(version in locked[name] for name, version in pins)
    wanted = {re.split(r"[<>=]", d)[0] for d in project["project"]["dependencies"]}
    assert wanted <= {name for name, _ in pins}
    assert all(versions <= locked[name] for name, versions in site.items() if name in locked)
    assert set(project["dependency-groups"]["site"]) <= set(site)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", "xs", "--seeds", "99"), "those below 100 are reported"),
        (("--size", "xxl"), "unknown size 'xxl'"),
        (("--size", "xs", "-S", "train.steps=3"), "write -S benchmark.<key>=<value>"),
    ],
)
def test_a_trial_that_cannot_be_meant_ends_before_anything_runs(arguments, message):
    before = (ROOT / "benchmarks/mnist/trials.jsonl").read_bytes()
    command = [sys.executable, "benchmarks/trial.py", "mnist", *arguments]
    options = {"cwd": ROOT, "env": os.environ | {"PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True}
    done = subprocess.run(command, **options)
    assert done.returncode and message in done.stderr and "Traceback" not in done.stderr
    assert (ROOT / "benchmarks/mnist/trials.jsonl").read_bytes() == before
