"""Bad input: whatever stands in a configuration, it is refused in one line that names the key, or makes sense."""

import copy
import re
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from emigm.config.benchmark import load_benchmark, parse_benchmark
from emigm.config.errors import ConfigError
from emigm.config.parsing import parse_yaml, read_yaml
from emigm.config.schema import GateConfig, ModelConfig, SampleConfig, TrainConfig
from emigm.model.model import EMIGM

ROOT = Path(__file__).parents[1]
BENCHMARKS = sorted(p.stem for p in (ROOT / "benchmarks" / "benchmark").glob("*.yaml"))
NOT_NAMES = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "/tmp/x",
    "-x",
    ".x",
    "a b",
    "a;b",
    "$(a)",
    "`a`",
    "a\n",
    "a\\b",
    "é",
    "a.b",
    "~",
]
NONSENSE = [None, True, False, -1, 0, 1, 2, 3, 7, 10**6, 2**40, 10**400, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 1e-30, 1e30]
NONSENSE += [
    float("nan"),
    float("inf"),
    float("-inf"),
    "1e-3",
    "4",
    "linear",
    "cosine",
    "ddpm",
    "categorical",
    "released",
]
NONSENSE += [[], {}, [[]], [None], [0], [0, 0], [0, 1], [1.0, 0.0], {"a": 1}, {1: 2}, {"xs": {}}, "a" * 10_000, b"x"]

KNOWN = [*NONSENSE, *NOT_NAMES]


@cache
def shipped(name: str) -> dict:
    with initialize_config_dir(str(ROOT / "benchmarks"), version_base=None):
        return OmegaConf.to_container(compose("config", [f"benchmark={name}"]), resolve=True)["benchmark"]


def leaves(tree, path=()):
    """Paths of everything below the root: mappings and lists too."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from leaves(value, (*path, key))


def replaced(tree, path: tuple, value):
    """A copy of the tree with another value at the path."""
    if not path:
        return value
    node = copy.copy(tree)
    node[path[0]] = replaced(tree[path[0]], path[1:], value)
    return node


@cache
def built(cfg: ModelConfig) -> EMIGM:
    with torch.device("meta"):
        return EMIGM(cfg)


def refused_or_sensible(tree: dict, path: tuple) -> None:
    """The benchmark is refused by the name of the key, in one line; or all that stages need of it can be made."""
    try:
        benchmark = parse_benchmark(tree)
    except ConfigError as e:
        key = next(k for k in reversed(path) if isinstance(k, str))
        assert key in str(e) and "\n" not in str(e) and len(str(e)) < 1000, f"{path}: {e}"
        return
    for size in benchmark.ladder:
        benchmark.train_config(size)
        built(benchmark.model_config(size))
        for budget in benchmark.sampling:
            benchmark.sample_config(size, budget)


values = st.recursive(
    st.sampled_from(KNOWN) | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=2),
    max_leaves=4,
)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_nonsense_at_every_key_is_refused_by_name_or_makes_sense(name):
    tree, start = shipped(name), BENCHMARKS.index(name)
    for i, path in enumerate(leaves(tree)):
        for value in (KNOWN[(start + 5 * i) % len(KNOWN)], KNOWN[(start + 5 * i + 29) % len(KNOWN)]):
            refused_or_sensible(replaced(tree, path, value), path)


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_generated_nonsense_at_any_key_is_refused_by_name_or_makes_sense(data):
    tree = shipped(data.draw(st.sampled_from(BENCHMARKS)))
    path = data.draw(st.sampled_from(list(leaves(tree))))
    refused_or_sensible(replaced(tree, path, data.draw(values)), path)
