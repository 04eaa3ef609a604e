"""Configuration: mistakes are named at once, and the files agree with each other."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from emigm.config import Benchmark, SampleConfig, load_benchmark
from emigm.parsing import ConfigError, parse

ROOT = Path(__file__).parents[1]
BENCHMARKS = sorted(p.stem for p in (ROOT / "benchmarks" / "benchmark").glob("*.yaml"))


def composed(name: str, *overrides: str) -> dict:
    with initialize_config_dir(str(ROOT / "benchmarks"), version_base=None):
        return OmegaConf.to_container(compose("config", [f"benchmark={name}", *overrides]), resolve=True)


def edited(tmp_path, change) -> Path:
    tree = composed("digits")
    change(tree["benchmark"])
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def test_params_yaml_is_the_composed_digits_benchmark():
    assert yaml.safe_load((ROOT / "params.yaml").read_text()) == composed("digits")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_is_valid_and_named_after_its_file(name):
    assert parse(Benchmark, composed(name)["benchmark"], "benchmark").name == name


def test_an_unknown_benchmark_is_refused_with_the_known_ones():
    with pytest.raises(Exception, match="digits"):
        composed("imagenet64")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b["train"].update(stesp=3), r"benchmark\.ladder\.xs\.train\.stesp; did you mean 'steps'"),
        (lambda b: b["ladder"]["s"]["model"].update(widht=3), r"ladder\.s\.model\.widht; did you mean 'width'"),
        (lambda b: b.update(datta={}), r"benchmark\.datta; did you mean 'data'"),
        (lambda b: b["evaluation"].pop("images"), r"missing key benchmark\.evaluation\.images"),
        (lambda b: b["evaluation"].update(images=0), r"evaluation\.images = 0: must be at least 1"),
        (lambda b: b["evaluation"].update(images="many"), r"evaluation\.images: expected int, found 'many'"),
        (lambda b: b["train"].update(schedule="cosin"), r"schedule = 'cosin'; did you mean 'cosine'"),
        (lambda b: b["train"].update(seeds=[]), r"train\.seeds is empty"),
        (lambda b: b["ladder"]["b"]["model"].update(heads=7), r"heads = 7 does not divide"),
        (lambda b: b.update(sizes=["xs", "xl"]), r"unknown benchmark\.sizes 'xl'"),
        (
            lambda b: b["sampling"]["4"]["settings"].update(temperature=0.9),
            r"temperature has no effect under solver: dpm",
        ),
        (lambda b: b["sampling"]["4"]["settings"].update(cfg_interval=[0.5, 0.2]), r"cfg_interval"),
        (lambda b: b["gate"].update(enforce=False), r"gate\.enforce: false is for dry runs"),
        (lambda b: b["autoencoder"].update(weights="kl16.ckpt"), r"weights must not be given for kind: pixels"),
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
    with pytest.raises(ConfigError, match="solver_steps < 3"):
        SampleConfig(steps=4, solver_steps=2)


def lock_pins() -> dict[str, set[str]]:
    pins: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;\\]+)", (ROOT / "requirements.lock").read_text(), re.M):
        pins.setdefault(name, set()).add(version)
    return pins


def test_environment_yml_holds_the_pins_of_the_lock_file():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][-1]["pip"]
    pins, locked = [d.split("==") for d in listed if "==" in d], lock_pins()
    assert all(version in locked[name] for name, version in pins)
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {re.split(r"[<>=]", d)[0] for d in wanted} <= {name for name, _ in pins}


def test_the_lock_file_names_no_host_and_has_checksums():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert text.count("--hash=sha256:") > len(lock_pins())
