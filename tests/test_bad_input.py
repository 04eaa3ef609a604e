"""Bad input: whatever stands in a configuration, it is refused in one line that names the key, or makes sense."""

import copy
import itertools
from functools import cache
from pathlib import Path

import pytest
import torch
from dvc.utils.serialize import parse_yaml as dvc_yaml

from emigm.config.benchmark import KEYS, Benchmark, load_benchmark, parse_benchmark
from emigm.config.compose import compose, sources
from emigm.config.errors import ConfigError
from emigm.config.parsing import parse_yaml
from emigm.config.schema import GateConfig, ModelConfig, SampleConfig
from emigm.model.model import EMIGM

ROOT = Path(__file__).parents[1]
BENCHMARKS = sources(ROOT)
NOT_NAMES = ["", ".", "..", "../x", "a/b", "/tmp/x", "-x", ".x", "a b", "a;b", "$(a)", "`a`", "a\n", "a\\b", "é", "a.b"]
NOT_NAMES += ["~"]
NONSENSE = [None, True, False, -1, 0, 1, 2, 3, 7, 10**6, 2**40, 10**400, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 1e-30, 1e30]
NONSENSE += [float("nan"), float("inf"), float("-inf"), "1e-3", "4", "linear", "cosine", "ddpm", "categorical"]
NONSENSE += ["released", [], {}, [[]], [None], [0], [0, 0], [0, 1], [1.0, 0.0], {"a": 1}, {1: 2}, {"xs": {}}, b"x"]
KNOWN = [*NONSENSE, "a" * 10_000, *NOT_NAMES]
GONE = object()
"""In place of a value: the key is left out."""


@cache
def shipped(name: str) -> dict:
    return compose(name, ROOT)["benchmark"]


def leaves(tree, path=()):
    """Paths of everything below the root of a tree of mappings and lists, these too."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*path, key)
        yield from leaves(value, (*path, key))


def replaced(tree, path: tuple, value):
    """A copy of the tree with another value at the path."""
    node = copy.copy(tree)
    if value is GONE and len(path) == 1:
        del node[path[0]]
    else:
        node[path[0]] = value if len(path) == 1 else replaced(tree[path[0]], path[1:], value)
    return node


def edited(name: str, changes: dict) -> Benchmark:
    """A shipped benchmark with other values at dotted paths."""
    tree = shipped(name)
    for dotted, value in changes.items():
        tree = replaced(tree, tuple(dotted.split(".")), value)
    return parse_benchmark(tree)


@cache
def built(cfg: ModelConfig) -> EMIGM:
    with torch.device("meta"):
        return EMIGM(cfg)


def refused_or_sensible(tree: dict, path: tuple) -> None:
    """The benchmark is refused by the name of the key, in one line; or all that stages need of it can be made."""
    try:
        benchmark = parse_benchmark(tree)
    except ConfigError as e:
        keys = [k for k in path if isinstance(k, str)][-2:]  # the key, or what lacks it
        assert any(key in str(e) for key in keys) and "\n" not in str(e) and len(str(e)) < 1000, f"{path}: {e}"
        return
    for size in benchmark.ladder:
        benchmark.train_config(size)
        built(benchmark.model_config(size))
        for budget in benchmark.sampling:
            benchmark.sample_config(size, budget)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_nonsense_at_every_key_is_refused_by_name_or_makes_sense(name):
    tree, start = shipped(name), BENCHMARKS.index(name)
    for i, path in enumerate(leaves(tree)):
        for value in (KNOWN[(start + 5 * i) % len(KNOWN)], KNOWN[(start + 5 * i + 29) % len(KNOWN)]):
            refused_or_sensible(replaced(tree, path, value), path)


@pytest.mark.parametrize("bad", NOT_NAMES)
def test_a_name_that_is_no_plain_file_name_is_refused_wherever_it_becomes_part_of_a_path(bad):
    ladder, sampling = ({**shipped("mnist")[key], bad: shipped("mnist")[key][one]} for key, one in
                        (("ladder", "xs"), ("sampling", "4")))  # fmt: skip
    for key, changes in {
        "name": {"name": bad},
        "sizes": {"sizes": ["xs", bad], "ladder": ladder},
        "ladder": {"ladder": ladder},
        "budgets": {"budgets": [bad], "sampling": sampling},
        "sampling": {"sampling": sampling},
    }.items():
        with pytest.raises(ConfigError, match=rf"benchmark\.{key}.*must be letters, digits, _ and -"):
            edited("mnist", changes)


def test_two_runs_whose_files_would_have_one_name_are_refused():
    ladder, sampling = shipped("mnist")["ladder"], shipped("mnist")["sampling"]
    changes = {"ladder": {"a": ladder["xs"], "a-b": ladder["s"]}, "sizes": ["a", "a-b"]}
    changes |= {"sampling": {"b-c": sampling["4"], "c": sampling["4"]}, "budgets": ["b-c", "c"]}
    with pytest.raises(ConfigError, match=r"sizes and budgets name two runs a-b-c"):
        edited("mnist", changes)


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("mnist", "train.lr", "0.001", r"train\.lr: expected float, found '0\.001'; write a number, without quotes"),
        ("mnist", "train.steps", 1e3, r"train\.steps: expected int, found 1000\.0; write 1000"),
        ("mnist", "train.stesp", 3, r"unknown key benchmark\.train\.stesp; did you mean 'steps'"),
        ("mnist", "train.schedule", "cosin", r"= 'cosin'; did you mean 'cosine'\? \(allowed: linear, .*, log-exp"),
        ("mnist", "train.mask_times", "image", r"train\.mask_times = image of size xs, but model\.mae: true needs"),
        ("mnist", "train.batch", 100, r"train\.batch = 100 is not a multiple of mask_group = 16"),
        ("mnist", "train.snapshots", [0.5, 0.5001], r"snapshots = \[0\.5, 0\.5001\]: give shares of the 1,500 steps"),
        ("smoke", "train.optimizer", "muon", r"ladder\.xs\.train\.muon_lr is missing for optimizer: muon"),
        ("smoke", "train.muon_lr", 0.01, r"train\.muon_lr has no effect for optimizer: adamw; remove it"),
        ("mnist", "train.lr", 1.5, r"^benchmark\.train\.lr = 1\.5.*: must "),
        ("mnist", "train.ema", float("nan"), r"^benchmark\.train\.ema = nan.*: must "),
        ("mnist", "sampling.4.settings.cfg_scale", -1, r"^benchmark\.sampling\.4\.settings\.cfg_scale = -1.*: must "),
        ("mnist", "train.betas", [0.9], r"train\.betas\[1\] is missing"),
        ("mnist", "train.seeds", [0, 1, 0], r"train\.seeds = \[0, 1, 0\]: must name at least one, and none twice"),
        ("mnist", "train.warmup_steps", 3000, r"ladder\.xs\.train\.warmup_steps = 3000 leaves nothing of steps = 1500"),
        ("mnist", "model.patch", 21, r"ladder\.xs\.model\.patch = 21 leaves one token"),
        ("mnist", "model.classes", 11, r"model\.classes = 11, but there are 10"),
        ("mnist", "model.channels", 3, r"channels = 3, grid = 21, but the latents .* have 1 channels and sides of 21"),
        ("mnist", "ladder.b.model.heads", 7, r"heads = 7 does not divide"),
        ("mnist", "autoencoder.weights", "kl16.ckpt", r"weights has no effect for kind: pixels"),
        ("mnist", "extractor", {"kind": "inception", "weights": "x"}, r"kind: inception does not take the grey"),
        ("mnist", "sampling.4.settings.temperature", 0.9, r"temperature has no effect for solver: dpm-solver"),
        ("mnist", "sampling.4.settings.cfg_interval", [0.5, 0.2], r"cfg_interval = \[0\.5, 0\.2\] is empty"),
        ("mnist", "sampling.4.settings.solver_steps", 2, r"solver_steps = 2 is too few"),
        ("mnist", "sampling.16.settings.steps", 50, r"steps = 50, but every step reveals a token, and there are 49"),
        ("mnist", "train.label_dropout", 0, r"cfg_scale = 2\.0, but with train\.label_dropout = 0"),
        ("mnist", "gate.visible", [0, 49], r"gate\.visible = \[0, 49\]: .* from 0 to 48"),
        ("mnist", "gate.visible", [4], r"gate\.visible = \[4\]: give two"),
        ("smoke", "evaluation.snapshots.budget", "99", r"evaluation\.snapshots\.budget: .*99"),
        ("mnist", "evaluation.images", GONE, r"benchmark\.evaluation\.images is missing"),
        ("mnist", "evaluation.images", 9, r"evaluation\.images = 9 is less than"),
        ("cifar10", "evaluation.cas_steps", 9, r"evaluation\.cas_steps has no effect for extractor\.kind: inception"),
        ("mnist", "sizes", ["xs", "xl"], r"benchmark\.sizes: xl is not in ladder; did you mean 'l'"),
        ("mnist", "budgets", [4], r"benchmark\.budgets\[0\]: expected str, found 4; write it in quotes"),
        ("mnist", "run.launcher", 'a "b', r"run\.launcher = 'a \"b': No closing quotation"),
        ("imagenet256", "released", GONE, r"benchmark\.released is missing"),
        ("imagenet256", "released.files.h", GONE, r"benchmark\.sizes: h is not in released\.files"),
        ("imagenet256", "train.seeds", [0, 1], r"train\.seeds = \[0, 1\], but weights: released are one model"),
        ("imagenet256", "compare.resolution", 128, r"compare\.resolution = 128.*\(allowed: 256, 512\)"),
        ("imagenet256", "extractor.weights", GONE, r"extractor\.weights is missing for kind: inception"),
        ("imagenet256", "data.holdout_root", GONE, r"data\.holdout_root is missing for dataset: imagenet"),
        ("imagenet256", "data.holdout", 0.1, r"data\.holdout has no effect for dataset: imagenet"),
    ],
    ids=lambda v: v if isinstance(v, str) and len(v) < 40 else "",
)  # fmt: skip
def test_a_value_that_cannot_be_meant_is_refused_by_name(name, key, value, message):
    with pytest.raises(ConfigError, match=message):
        edited(name, {key: value})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SampleConfig("4", 8), r"^steps: expected int, found '4'; write a number, without quotes"),
        (lambda: SampleConfig(4, 8, stesp=3), r"^unknown key stesp; did you mean 'steps'"),
        (lambda: GateConfig(visible=(0, 0, 8)), r"^visible = \(0, 0, 8\)"),
    ],
)  # fmt: skip
def test_what_is_made_without_a_file_is_held_against_the_same_rules(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_yaml_is_read_as_dvc_reads_it():
    text = "a: 1e-3\nb: 010\nc: yes\nd: 1:30"
    assert parse_yaml(text, "x") == {"a": 0.001, "b": 10, "c": "yes", "d": "1:30"} == dvc_yaml(text, "x")


ALIASES = "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in itertools.pairwise("abcdefghi"))
ALIASES = "a: &a [x, x]\n" + ALIASES
"""Eight levels of nine aliases each: 86 million values where a reader follows them all."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("benchmark: {name: a, name: b}", "duplicate key"),
        ("benchmark: !!python/object/apply:os.mkdir [ran]", "could not determine a constructor"),
        ("benchmark: " + "[" * 5000, "not valid YAML"),
        ("benchmark: [1, 2]", "benchmark: expected a mapping"),
        ("", "expected a mapping, found None"),
        ("{benchmark: {}, 5: 6}", "expected the top-level keys"),
        ("benchmark: {[1]: 2}", "unknown key benchmark"),
        (ALIASES + "benchmark: {name: x, title: *i}", "top-level key"),
        ("x: &x {a: *x}\nbenchmark: *x", "top-level key"),
        ("benchmark: {sizes: &a [*a]}", r"benchmark\.sizes\[0\]: expected str"),
        (b"benchmark: \xff", "cannot be read"),
        (b"\x00", "not valid YAML"),
        (None, r"params\.yaml: no such file"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_plain_yaml_is_refused_in_one_line_and_runs_nothing(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    if isinstance(text, str):
        others = "".join(f"{key}: []\n" for key in KEYS[:-1]) if text.startswith("benchmark:") else ""
        text = (others + text).encode()
    if text is not None:
        Path("params.yaml").write_bytes(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_benchmark()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert not Path("ran").exists()
