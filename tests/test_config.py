"""Configuration: mistakes are named at once, and the files agree with each other."""

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from emigm.config.benchmark import parse_benchmark
from emigm.config.compose import compose, compose_benchmark, sources
from emigm.config.errors import ConfigError
from emigm.paper.settings import PAPER_MODELS, paper_sampling, paper_train

ROOT = Path(__file__).parents[1]
BENCHMARKS = sources(ROOT)


def composed(name: str) -> dict:
    return compose(name, ROOT)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_is_valid_and_named_after_its_file(name):
    assert parse_benchmark(composed(name)["benchmark"]).name == name


@pytest.mark.parametrize(("resolution", "size"), PAPER_MODELS, ids=lambda v: str(v))
def test_the_imagenet_benchmarks_are_the_papers(resolution, size):
    benchmark = parse_benchmark(composed(f"imagenet{resolution}")["benchmark"])
    assert benchmark.model_config(size) == PAPER_MODELS[resolution, size]
    assert set(benchmark.sizes) == {s for r, s in PAPER_MODELS if r == resolution}
    for budget in benchmark.budgets:
        paper = dataclasses.replace(paper_sampling(resolution, size, int(budget)), precision="float16")
        assert benchmark.sample_config(size, budget) == paper
    train, paper = benchmark.train_config(size), paper_train(size)
    assert (train.steps, train.batch, train.lr, train.warmup_steps) == (
        paper.steps, paper.batch, paper.lr, paper.warmup_steps
    )  # fmt: skip
    assert (train.schedule, train.t_min, train.weight, train.ema) == ("exp", 0.2, "one", 0.9999)
    assert benchmark.evaluation.images == 50_000 and benchmark.compare.resolution == resolution


def test_the_imagenet_dry_run_is_small_and_marked_and_keeps_the_real_networks():
    benchmark = parse_benchmark(composed("imagenet256-dry")["benchmark"])
    assert benchmark.dry_run and benchmark.gate.on_failure == "mark" and benchmark.weights == "trained"
    assert benchmark.data.root == benchmark.data.holdout_root
    real = dataclasses.replace(PAPER_MODELS[256, "xs"], classes=64)
    assert benchmark.model_config("xs") == real
    full = parse_benchmark(composed("imagenet256")["benchmark"])
    for part in ("autoencoder", "extractor"):
        assert getattr(full, part) == dataclasses.replace(
            getattr(benchmark, part),
            weights=getattr(full, part).weights,
            **({"precision": "float16"} if part == "autoencoder" else {}),
        )
    assert (benchmark.autoencoder.precision, full.autoencoder.precision) == ("float32", "float16")


def test_random_files_of_a_dry_run_never_lie_where_a_benchmark_expects_released_ones():
    named = {name: parse_benchmark(composed(name)["benchmark"]).random_files for name in BENCHMARKS}
    assert len(named.pop("imagenet256-dry")) == 5 and not any(named.values())


def test_an_override_replaces_a_key_of_the_composed_benchmark():
    changes = ["benchmark.weights=trained", "benchmark.sampling.16.settings.precision=bf16"]
    benchmark = compose_benchmark("imagenet256", changes, ROOT)
    assert benchmark.weights == "trained" and benchmark.sample_config("h", "16").precision == "bf16"


def test_an_unknown_benchmark_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown benchmark 'imagenet64'; did you mean 'imagenet256'.*mnist"):
        composed("imagenet64")


def lock_pins(lock: str = "requirements.lock") -> dict[str, set[str]]:
    pins: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;\\]+)", (ROOT / lock).read_text(), re.M):
        pins.setdefault(name, set()).add(version)
    return pins


def test_environment_yml_holds_the_pins_of_the_lock_file():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][-1]["pip"]
    pins, locked = [d.split("==") for d in listed if "==" in d], lock_pins()
    assert all(version in locked[name] for name, version in pins)
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {re.split(r"[<>=]", d)[0] for d in wanted} <= {name for name, _ in pins}


LOCKS = ("requirements.lock", "docs/requirements.lock")


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_file_names_no_host_and_has_checksums(lock):
    text = (ROOT / lock).read_text()
    assert "://" not in text
    assert text.count("--hash=sha256:") > len(lock_pins(lock))


def test_the_sites_dependencies_change_no_version_of_the_others():
    site, others = map(lock_pins, LOCKS[::-1])
    assert all(versions <= others[name] for name, versions in site.items() if name in others)
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["site"]
    assert set(wanted) <= set(site)


@pytest.mark.parametrize("run", [True, False])
def test_a_sampler_that_cannot_draw_the_models_tokens_is_refused_where_it_is_run(run):
    tree = composed("codes")["benchmark"]
    tree["sampling"]["diffusion"] = {"settings": {"steps": 4, "solver_steps": 8}, "overrides": {}}
    tree["budgets"] += ["diffusion"] * run
    if not run:
        assert parse_benchmark(tree).name == "codes"
        return
    with pytest.raises(ConfigError, match=r"benchmark\.sampling\.diffusion of size maskgit: .*cannot draw tokens"):
        parse_benchmark(tree)
