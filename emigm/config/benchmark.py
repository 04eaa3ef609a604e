"""A benchmark: all that one composed configuration says, and the reader of its file. No torch in this module."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from emigm.config.errors import ConfigError
from emigm.config.parsing import known, parse
from emigm.config.schema import (
    AutoencoderConfig,
    CompareConfig,
    DataConfig,
    EvalConfig,
    ExtractorConfig,
    GateConfig,
    ModelConfig,
    ReleasedConfig,
    RunConfig,
    SampleConfig,
    TrainConfig,
)


@dataclass(frozen=True)
class SizeConfig:
    """One rung of the ladder: what differs from the benchmark's `model` and `train`."""

    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BudgetConfig:
    """One NFE budget; `overrides` holds what differs for a size."""

    settings: dict[str, Any]
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """Everything a benchmark runs; see `benchmarks/*/benchmark.yaml`."""

    name: str
    title: str
    images_of: str
    """The benchmark whose images and extractor are used; its own name where it makes them."""
    sizes: tuple[str, ...]
    budgets: tuple[str, ...]
    data: DataConfig
    autoencoder: AutoencoderConfig
    extractor: ExtractorConfig
    evaluation: EvalConfig
    gate: GateConfig
    model: dict[str, Any]
    train: dict[str, Any]
    ladder: dict[str, SizeConfig]
    sampling: dict[str, BudgetConfig]
    weights: Literal["trained", "released"] = "trained"
    """released: the train stage fetches and imports the authors' checkpoints; all after it is the same."""
    released: ReleasedConfig | None = None
    run: RunConfig = field(default_factory=RunConfig)
    compare: CompareConfig | None = None
    """None: the paper reports nothing to compare with."""
    dry_run: bool = False
    """True: the numbers only show that the machinery runs; every table and figure says so."""

    def __post_init__(self):
        classes = self.model.get("classes")
        if self.data.classes is not None and self.data.classes != classes:
            raise ConfigError(
                f"benchmark.model.classes = {classes}, but benchmark.data.classes = {self.data.classes}; set both alike"
            )
        if self.weights == "released":
            if self.released is None:
                raise ConfigError("benchmark.released is missing; weights: released needs to know where they are")
            for size in self.sizes:
                known("size of benchmark.released.files", size, self.released.files)
        for size in self.sizes:
            known("benchmark.sizes", size, self.ladder)
            seeds = self.train_config(size).seeds
            if self.weights == "released" and len(seeds) > 1:
                raise ConfigError(
                    f"benchmark.train.seeds = {list(seeds)}: released weights are one model; give one seed"
                )
            self._check_gate(size)
        for budget in self.budgets:
            known("benchmark.budgets", budget, self.sampling)
        for budget, cfg in self.sampling.items():
            for size in cfg.overrides:
                known(f"benchmark.sampling.{budget}.overrides", size, self.ladder)
        for size in self.ladder:  # a bad value anywhere fails before any stage has run
            self.train_config(size)
            if self.model_config(size).codebook != self.autoencoder.codebook:
                raise ConfigError(
                    f"benchmark.ladder.{size}: model.codebook = {self.model_config(size).codebook}, but "
                    f"autoencoder.codebook = {self.autoencoder.codebook}; a model predicts the autoencoder's codes"
                )
            for budget in self.sampling:
                self.sample_config(size, budget)
        for size in self.sizes:
            for budget in self.budgets:
                solver, head = self.sample_config(size, budget).solver, self.model_config(size).conditional
                if (solver == "categorical") != (head == "categorical"):
                    raise ConfigError(
                        f"benchmark.sampling.{budget} of size {size}: solver: {solver} cannot draw tokens of a model "
                        f"with conditional: {head}"
                    )

    def _check_gate(self, size: str) -> None:
        """The token that the gate predicts must not be among the visible ones, and two counts must differ."""
        visible, tokens = self.gate.visible, self.model_config(size).tokens
        if len(set(visible)) < 2 or not all(0 <= v < tokens for v in visible):
            raise ConfigError(
                f"benchmark.gate.visible = {list(visible)}: give two numbers of visible tokens at least, from 0 to "
                f"{tokens - 1} (size {size} has {tokens} tokens)"
            )

    def model_config(self, size: str) -> ModelConfig:
        """Architecture of `size`; raises ConfigError for an unknown size."""
        known("size", size, self.ladder)
        return parse(ModelConfig, {**self.model, **self.ladder[size].model}, f"benchmark.ladder.{size}.model")

    def train_config(self, size: str) -> TrainConfig:
        """Training recipe of `size`."""
        known("size", size, self.ladder)
        return parse(TrainConfig, {**self.train, **self.ladder[size].train}, f"benchmark.ladder.{size}.train")

    def sample_config(self, size: str, budget: str) -> SampleConfig:
        """Sampling settings of `size` at `budget`."""
        known("size", size, self.ladder)
        known("budget", budget, self.sampling)
        cfg = self.sampling[budget]
        where = f"benchmark.sampling.{budget}"
        return parse(SampleConfig, {**cfg.settings, **cfg.overrides.get(size, {})}, where)


KEYS = ("root", "params", "makes", "notebooks", "benchmark")
"""Of a composed file: the repository's root as seen from it; the file as seen from there; the data sets that its
pipeline makes; the notebooks that it runs; the benchmark itself. All but the last are for dvc.yaml."""


def load_benchmark(path: str | Path = "params.yaml") -> Benchmark:
    """Read a composed configuration (`emigm compose`).

    Raises:
        ConfigError: the file is missing or not YAML, or a key in it is unknown, missing or of a wrong type.
    """
    return parse_params(read_yaml(Path(path)), str(path))


def parse_params(tree: dict[str, Any], where: str) -> Benchmark:
    """The benchmark in the tree of a composed file that is called `where` in messages."""
    if set(tree) != set(KEYS):
        raise ConfigError(f"{where}: expected the top-level keys {', '.join(KEYS)}, found {', '.join(map(str, tree))}")
    return parse(Benchmark, tree["benchmark"], "benchmark")


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file; raises ConfigError when the file is missing, damaged or holds something else."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; run from the repository's root, or name another with --params")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: not valid YAML: {e}") from e
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping, found {tree!r}")
    return tree
