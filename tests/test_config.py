"""Configuration: mistakes are named at once, and the files agree with each other."""

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from emigm.config.benchmark import load_benchmark, parse_benchmark
from emigm.config.compose import compose, compose_benchmark, sources
from emigm.config.errors import ConfigError
from emigm.config.schema import SampleConfig
from emigm.paper.settings import PAPER_MODELS, PAPER_TRAINING_IMAGES, paper_sampling

ROOT = Path(__file__).parents[1]
BENCHMARKS = sources(ROOT)


def composed(name: str) -> dict:
    return compose(name, ROOT)


def edited(tmp_path, change) -> Path:
    tree = composed("mnist")
    change(tree["benchmark"])
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


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
    train = benchmark.train_config(size)
    assert train.steps * train.batch == PAPER_TRAINING_IMAGES
    assert train.lr == 1e-4 * train.batch / 256 and train.warmup_steps * 8 == train.steps
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.pop("released"), r"benchmark\.released is missing"),
        (lambda b: b["released"]["files"].pop("h"), r"benchmark\.sizes: h is not in released\.files"),
        (
            lambda b: b["train"].update(seeds=[0, 1]),
            r"benchmark\.train\.seeds = \[0, 1\], but weights: released are one model",
        ),
        (lambda b: b["compare"].update(fid_tolerance=0.0), r"fid_tolerance = 0\.0: must be above 0"),
        (lambda b: b["compare"].update(resolution=128), r"compare\.resolution = 128.*\(allowed: 256, 512\)"),
        (lambda b: b["extractor"].pop("weights"), r"extractor\.weights is missing for kind: inception"),
        (lambda b: b["data"].pop("holdout_root"), r"data\.holdout_root is missing for dataset: imagenet"),
        (lambda b: b["data"].update(holdout=0.1), r"data\.holdout has no effect for dataset: imagenet"),
    ],
)
def test_a_mistake_in_an_imagenet_yaml_is_named(change, message):
    tree = composed("imagenet256")["benchmark"]
    change(tree)
    with pytest.raises(ConfigError, match=message):
        parse_benchmark(tree)


def test_an_unknown_benchmark_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown benchmark 'imagenet64'; did you mean 'imagenet256'.*mnist"):
        composed("imagenet64")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b["train"].update(stesp=3), r"unknown key benchmark\.train\.stesp; did you mean 'steps'"),
        (lambda b: b["ladder"]["s"]["model"].update(widht=3), r"ladder\.s\.model\.widht; did you mean 'width'"),
        (lambda b: b.update(datta={}), r"benchmark\.datta; did you mean 'data'"),
        (lambda b: b["evaluation"].pop("images"), r"benchmark\.evaluation\.images is missing"),
        (lambda b: b["evaluation"].update(images=0), r"evaluation\.images = 0: must be at least 2"),
        (lambda b: b["evaluation"].update(images="many"), r"evaluation\.images: expected int, found 'many'"),
        (lambda b: b["train"].update(schedule="cosin"), r"schedule = 'cosin'; did you mean 'cosine'"),
        (lambda b: b["train"].update(seeds=[]), r"train\.seeds = \(\): must name at least one"),
        (lambda b: b["ladder"]["b"]["model"].update(heads=7), r"heads = 7 does not divide"),
        (lambda b: b.update(sizes=["xs", "xl"]), r"benchmark\.sizes: xl is not in ladder; did you mean 'l'"),
        (
            lambda b: b["sampling"]["4"]["settings"].update(temperature=0.9),
            r"temperature has no effect under solver: dpm",
        ),
        (lambda b: b["sampling"]["4"]["settings"].update(cfg_interval=[0.5, 0.2]), r"cfg_interval"),
        (lambda b: b["gate"].update(on_failure="skip"), r"gate\.on_failure = 'skip'"),
        (lambda b: b["gate"].update(visible=[0, 49]), r"gate\.visible = \[0, 49\]: .* from 0 to 48"),
        (lambda b: b["gate"].update(visible=[4]), r"gate\.visible = \[4\]: give two"),
        (lambda b: b["autoencoder"].update(weights="kl16.ckpt"), r"weights has no effect for kind: pixels"),
    ],
)
def test_a_mistake_in_a_yaml_is_named(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        load_benchmark(edited(tmp_path, change))


def test_unknown_sizes_and_budgets_name_the_known_ones():
    benchmark = load_benchmark(ROOT / "params.yaml")
    with pytest.raises(ConfigError, match=r"unknown size 'xxl'.*xs, s, b, l, h"):
        benchmark.model_config("xxl")
    with pytest.raises(ConfigError, match=r"unknown budget '128'.*4, 16"):
        benchmark.sample_config("xs", "128")


def test_missing_and_malformed_params_are_named(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_benchmark(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("benchmark: [")
    with pytest.raises(ConfigError, match=r"params\.yaml: not valid YAML"):
        load_benchmark(tmp_path / "params.yaml")


def test_too_few_solver_steps_are_refused():
    with pytest.raises(ConfigError, match="solver_steps = 2 is too few"):
        SampleConfig(steps=4, solver_steps=2)


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
