"""A benchmark: all that one composed configuration says, and the reader of its file. No torch in this module."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from emigm.config.errors import ConfigError
from emigm.config.parsing import Checked, Part, known, parse, read_yaml, show, suggest
from emigm.config.schema import (
    AutoencoderConfig,
    CompareConfig,
    DataConfig,
    EvalConfig,
    ExtractorConfig,
    GateConfig,
    ModelConfig,
    Name,
    ReleasedConfig,
    RunConfig,
    SampleConfig,
    Text,
    TrainConfig,
    distinct,
)

RANDOM = Path("random")
"""Folder of random files in place of released ones, for dry runs (`emigm.tools.random_files`)."""
ModelPart = Annotated[dict[str, Any], Part(ModelConfig)]
TrainPart = Annotated[dict[str, Any], Part(TrainConfig)]
SamplePart = Annotated[dict[str, Any], Part(SampleConfig)]


@dataclass(frozen=True)
class SizeConfig(Checked):
    """One rung of the ladder: what differs from the benchmark's `model` and `train`."""

    model: ModelPart = field(default_factory=dict)
    train: TrainPart = field(default_factory=dict)


@dataclass(frozen=True)
class BudgetConfig(Checked):
    """One NFE budget; `overrides` holds what differs for a size."""

    settings: SamplePart
    overrides: dict[Name, SamplePart] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark(Checked):
    """Everything a benchmark runs; see `benchmarks/*/benchmark.yaml`."""

    name: Name
    title: Text
    images_of: Name
    """The benchmark whose images and extractor are used; its own name where it makes them."""
    sizes: Annotated[tuple[Name, ...], distinct]
    budgets: Annotated[tuple[Name, ...], distinct]
    data: DataConfig
    autoencoder: AutoencoderConfig
    extractor: ExtractorConfig
    evaluation: EvalConfig
    gate: GateConfig
    model: ModelPart
    """Common to all sizes, as `train` is."""
    train: TrainPart
    ladder: dict[Name, SizeConfig]
    sampling: dict[Name, BudgetConfig]
    weights: Literal["trained", "released"] = "trained"
    """released: the train stage fetches and imports the authors' checkpoints; all after it is the same."""
    released: ReleasedConfig | None = None
    run: RunConfig = field(default_factory=RunConfig)
    compare: CompareConfig | None = None
    """None: the paper reports nothing to compare with."""
    dry_run: bool = False
    """True: the numbers only show that the machinery runs; every table and figure says so."""

    def check(self) -> None:
        self._check_names("sizes", self.sizes, "ladder", self.ladder)
        self._check_names("budgets", self.budgets, "sampling", self.sampling)
        if self.evaluation.snapshots is not None:
            wanted = [self.evaluation.snapshots.budget]
            self._check_names("evaluation.snapshots.budget", wanted, "sampling", self.sampling)
        for budget, cfg in self.sampling.items():
            self._check_names(f"sampling.{budget}.overrides", cfg.overrides, "ladder", self.ladder)
        runs = [f"{size}-{budget}" for size in self.sizes for budget in self.budgets]
        if doubled := next((run for run in runs if runs.count(run) > 1), None):
            raise ConfigError(f"sizes and budgets name two runs {doubled}, whose files would be one; rename one")
        for size in self.ladder:  # a bad value anywhere fails before any stage has run
            self.train_config(size)
            self._check_codes(size)
        for budget, cfg in self.sampling.items():
            for size in {*cfg.overrides, next((s for s in self.ladder if s not in cfg.overrides), None)} - {None}:
                self.sample_config(size, budget)
        for size in self.sizes:
            self._check_gate(size)
            self._check_sampling(size)
        if self.weights == "released":
            self._check_released()
        if self.random_files and not self.dry_run:
            key, path = next(iter(self.random_files.items()))
            raise ConfigError(f"{key} = {path}: only a dry run takes random files; name the real one")

    @property
    def random_files(self) -> dict[str, Path]:
        """The random files, and folders of random photos, that are named here: key -> path."""
        named = {
            "data.root": self.data.root,
            "data.holdout_root": self.data.holdout_root,
            "evaluation.reference": self.evaluation.reference,
            "autoencoder.weights": self.autoencoder.weights,
            "extractor.weights": self.extractor.weights,
        }
        return {key: Path(path) for key, path in named.items() if is_random(path)}

    def _check_names(self, where: str, names: Iterable[str], section: str, allowed: Iterable[str]) -> None:
        for name in names:
            if name not in allowed:
                raise ConfigError(f"{where}: {name} is not in {section}{suggest(name, allowed)}")

    def _check_released(self) -> None:
        if self.released is None:
            raise ConfigError("released is missing; weights: released needs to know where they are")
        for size in self.sizes:
            self._check_names("sizes", [size], "released.files", self.released.files)
            if len(seeds := self.train_config(size).seeds) > 1:
                raise ConfigError(
                    f"train.seeds = {show(list(seeds))}, but weights: released are one model; give one seed"
                )

    def _check_codes(self, size: str) -> None:
        codebook = self.model_config(size).codebook
        if codebook != self.autoencoder.codebook:
            raise ConfigError(
                f"ladder.{size}: model.codebook = {codebook}, but autoencoder.codebook = {self.autoencoder.codebook}; "
                "a model predicts the autoencoder's codes"
            )

    def _check_gate(self, size: str) -> None:
        """The token that the gate predicts must not be among the visible ones, and two counts must differ."""
        visible, tokens = self.gate.visible, self.model_config(size).tokens
        if len(visible) < 2 or max(visible) >= tokens:
            raise ConfigError(
                f"gate.visible = {show(list(visible))}: give two numbers of visible tokens at least, from 0 to "
                f"{tokens - 1} (by model.grid and model.patch, size {size} has {tokens} tokens)"
            )

    def _check_sampling(self, size: str) -> None:
        """The samplers must be able to draw the tokens of the model."""
        model, train = self.model_config(size), self.train_config(size)
        for budget in self.budgets:
            cfg, where = self.sample_config(size, budget), f"sampling.{budget} of size {size}"
            if (cfg.solver == "categorical") != (model.conditional == "categorical"):
                raise ConfigError(
                    f"{where}: solver: {cfg.solver} cannot draw tokens of a model with conditional: {model.conditional}"
                )
            if cfg.steps > model.tokens:
                raise ConfigError(
                    f"{where}: steps = {cfg.steps}, but every step reveals a token, and there are {model.tokens} (by "
                    "model.grid and model.patch); lower it"
                )
            if cfg.cfg_scale != 1 and self.weights == "trained" and train.label_dropout == 0:
                raise ConfigError(
                    f"{where}: cfg_scale = {cfg.cfg_scale}, but with train.label_dropout = 0 the model never learns to "
                    "do without a class; set cfg_scale: 1"
                )

    def model_config(self, size: str) -> ModelConfig:
        """Architecture of `size`; raises ConfigError for an unknown size."""
        known("size", size, self.ladder)
        return parse(ModelConfig, {**self.model, **self.ladder[size].model}, f"ladder.{size}.model")

    def train_config(self, size: str) -> TrainConfig:
        """Training recipe of `size`."""
        known("size", size, self.ladder)
        return parse(TrainConfig, {**self.train, **self.ladder[size].train}, f"ladder.{size}.train")

    def sample_config(self, size: str, budget: str) -> SampleConfig:
        """Sampling settings of `size` at `budget`."""
        known("size", size, self.ladder)
        known("budget", budget, self.sampling)
        cfg = self.sampling[budget]
        where = f"sampling.{budget}." + (f"overrides.{size}" if size in cfg.overrides else "settings")
        return parse(SampleConfig, {**cfg.settings, **cfg.overrides.get(size, {})}, where)


def is_random(path: str | Path | None) -> bool:
    """Whether this is the path of a random file, however it is written, and whether links lead there."""
    if path is None:
        return False
    written = Path(os.path.abspath(RANDOM)) in Path(os.path.abspath(path)).parents
    return written or RANDOM.resolve() in Path(path).resolve().parents


def parse_benchmark(tree: Any) -> Benchmark:
    """The benchmark that a composed configuration describes, held against what is known of its data set.

    Raises:
        ConfigError: a key is unknown, missing or of a wrong type, a value cannot be meant, or two do not go together.
    """
    benchmark = parse(Benchmark, tree, "benchmark")
    data, evaluation, compare = benchmark.data, benchmark.evaluation, benchmark.compare
    images = data.images
    takes = "inception" if data.dataset == "imagenet" else "cnn" if images.channels == 1 else None  # None: both
    if takes not in (None, benchmark.extractor.kind):
        why = "grey images" if takes == "cnn" else "photos that are not held in memory (set dataset: folder)"
        raise ConfigError(
            f"benchmark.extractor.kind: {benchmark.extractor.kind} does not take the {why} of data.dataset: "
            f"{data.dataset}; set extractor.kind: {takes}"
        )
    if evaluation.images < evaluation.kid_subset:
        raise ConfigError(
            f"benchmark.evaluation.images = {evaluation.images} is less than kid_subset = {evaluation.kid_subset}; "
            "generate more, or lower that"
        )
    if evaluation.images < images.classes and not benchmark.dry_run:
        raise ConfigError(
            f"benchmark.evaluation.images = {evaluation.images} is less than one of each of the {images.classes} "
            "classes (data.classes); generate more, or set dry_run: true"
        )
    if benchmark.weights == "released" and evaluation.reference is None:
        raise ConfigError("benchmark.evaluation.reference is missing, and weights: released come without real images")
    if compare is not None and compare.resolution != images.side:
        raise ConfigError(
            f"benchmark.compare.resolution = {compare.resolution}, but the images (data.dataset, data.resolution) have "
            f"sides of {images.side}; set both alike"
        )
    latents = benchmark.autoencoder.latents(images)
    for size in benchmark.ladder:
        model, where = benchmark.model_config(size), f"benchmark.ladder.{size}: model"
        if model.classes != images.classes:
            raise ConfigError(
                f"{where}.classes = {model.classes}, but there are {images.classes} (data.dataset: {data.dataset}, "
                "data.classes); set both alike"
            )
        if latents is not None and latents != (model.channels, model.grid):
            raise ConfigError(
                f"{where}.channels = {model.channels}, grid = {model.grid}, but the latents (data.dataset, "
                f"data.resolution, autoencoder.kind) have {latents[0]} channels and sides of {latents[1]}; set both "
                "alike"
            )
    return benchmark


KEYS = ("root", "params", "makes", "snapshots", "reveal", "notebooks", "benchmark")
"""Of a composed file: the repository's root as seen from it; the file as seen from there; the data sets that its
pipeline makes; the sizes scored along training; those whose generation is pictured; the notebooks that it runs; the
benchmark itself. All but the last are for dvc.yaml."""


def load_benchmark(path: str | Path = "params.yaml") -> Benchmark:
    """Read a composed configuration (`emigm compose`).

    Raises:
        ConfigError: the file is missing or not YAML, or a key in it is unknown, missing or of a wrong type.
    """
    return parse_params(read_yaml(Path(path)), str(path))


def parse_params(tree: dict[str, Any], where: str) -> Benchmark:
    """The benchmark in the tree of a composed file that is called `where` in messages."""
    if set(tree) != set(KEYS):
        raise ConfigError(f"{where}: expected the top-level keys {', '.join(KEYS)}, found {show(list(tree))}")
    return parse_benchmark(tree["benchmark"])
