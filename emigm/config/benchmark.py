"""A benchmark: all that one composed configuration says, and the reader of its file. No torch in this module."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import StrictBool

from emigm.config import schema
from emigm.config.errors import ConfigError
from emigm.config.parsing import config, known, parse, part_of, read_yaml, show, suggest
from emigm.config.schema import ModelConfig, Name, RunConfig, SampleConfig, Text, TrainConfig, distinct

RANDOM = Path("random")
"""Folder of random files in place of released ones, for dry runs (benchmarks/imagenet256-dry/make_files.py)."""
ModelPart, TrainPart, SamplePart = part_of(ModelConfig), part_of(TrainConfig), part_of(SampleConfig)


@config
class SizeConfig:
    """One model of the ladder: what differs from the benchmark's `model` and `train`."""

    model: ModelPart = field(default_factory=dict)
    train: TrainPart = field(default_factory=dict)


@config
class BudgetConfig:
    """One sampling configuration; `overrides` holds what differs for a model."""

    settings: SamplePart
    overrides: dict[Name, SamplePart] = field(default_factory=dict)


@config
class Benchmark:
    """Everything a benchmark runs; see `benchmarks/*/benchmark.yaml`."""

    name: Name
    title: Text
    images_of: Name  #: The benchmark whose images and extractor are used; its own name where it makes them
    sizes: Annotated[tuple[Name, ...], distinct]
    budgets: Annotated[tuple[Name, ...], distinct]
    data: schema.DataConfig
    autoencoder: schema.AutoencoderConfig
    extractor: schema.ExtractorConfig
    evaluation: schema.EvalConfig
    gate: schema.GateConfig
    model: ModelPart  #: Common to all sizes, as `train` is
    train: TrainPart
    ladder: dict[Name, SizeConfig]
    sampling: dict[Name, BudgetConfig]
    weights: Literal["trained", "released"] = "trained"
    """released: the train stage fetches and imports the authors' checkpoints; all after it is the same."""
    released: schema.ReleasedConfig | None = None
    run: RunConfig = field(default_factory=RunConfig)
    compare: schema.CompareConfig | None = None  #: None: the paper reports nothing to compare with
    dry_run: StrictBool = False  #: True: the numbers only show that the machinery runs; every table and figure says so

    def __post_init__(self):
        _check_names("sizes", self.sizes, "ladder", self.ladder)
        _check_names("budgets", self.budgets, "sampling", self.sampling)
        if self.evaluation.snapshots is not None:
            _check_names("evaluation.snapshots.budget", [self.evaluation.snapshots.budget], "sampling", self.sampling)
        runs = [f"{size}-{budget}" for size in self.sizes for budget in self.budgets]
        if doubled := next((run for run in runs if runs.count(run) > 1), None):
            raise ConfigError(f"sizes and budgets name two runs {doubled}, whose files would be one; rename one")
        for size in self.ladder:  # a bad value anywhere fails before any stage has run
            self.train_config(size)
            own, codebook = self.model_config(size).codebook, self.autoencoder.codebook
            if own != codebook:
                raise ConfigError(f"ladder.{size}: model.codebook = {own}, but autoencoder.codebook = {codebook}")
        for budget, cfg in self.sampling.items():
            _check_names(f"sampling.{budget}.overrides", cfg.overrides, "ladder", self.ladder)
            for size in [*cfg.overrides, *(s for s in self.ladder if s not in cfg.overrides)][: len(cfg.overrides) + 1]:
                self.sample_config(size, budget)
        for size in self.sizes:
            self._check_size(size)
        for key, path in self.random_files.items():
            if not self.dry_run:
                raise ConfigError(f"{key} = {path}: only a dry run takes random files; name the real one")

    def _check_size(self, size: str) -> None:
        """Gate, samplers and released files must suit the model."""
        model, train, visible = self.model_config(size), self.train_config(size), self.gate.visible
        if model.mae and train.mask_times == "image":
            needs = "model.mae: true needs equally many masked tokens in a group; set train.mask_times: auto"
            raise ConfigError(f"train.mask_times = image of size {size}, but {needs}")
        limit = f"there are {model.tokens} (by model.grid and model.patch)"
        if len(visible) < 2 or max(visible) >= model.tokens:
            wanted = f"two numbers of visible tokens at least, from 0 to {model.tokens - 1}"
            raise ConfigError(f"gate.visible = {show(list(visible))}: give {wanted}; {limit} of size {size}")
        for budget in self.budgets:
            cfg, where = self.sample_config(size, budget), f"sampling.{budget} of size {size}"
            if (cfg.solver == "categorical") != (model.conditional == "categorical"):
                raise ConfigError(
                    f"{where}: solver: {cfg.solver} cannot draw tokens of conditional: {model.conditional}"
                )
            if cfg.steps > model.tokens:
                raise ConfigError(
                    f"{where}: steps = {cfg.steps}, but every step reveals a token, and {limit}; lower it"
                )
            if cfg.cfg_scale != 1 and self.weights == "trained" and train.label_dropout == 0:
                lacks = "with train.label_dropout = 0 the model learns no null class"
                raise ConfigError(f"{where}: cfg_scale = {cfg.cfg_scale}, but {lacks}; set cfg_scale: 1")
        if self.weights == "released":
            if self.released is None:
                raise ConfigError("released is missing; weights: released needs to know where they are")
            _check_names("sizes", [size], "released.files", self.released.files)
            if len(train.seeds) > 1:
                seeds = show(list(train.seeds))
                raise ConfigError(f"train.seeds = {seeds}, but weights: released are one model; give one seed")

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
        where = f"sampling.{budget}.settings" + (f" + overrides.{size}" if size in cfg.overrides else "")
        return parse(SampleConfig, {**cfg.settings, **cfg.overrides.get(size, {})}, where)


def _check_names(where: str, names: Iterable[str], section: str, allowed: Iterable[str]) -> None:
    for name in names:
        if name not in allowed:
            raise ConfigError(f"{where}: {name} is not in {section}{suggest(name, allowed)}")


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
    images, source = data.images, f"data.dataset: {data.dataset}"
    takes = "inception" if data.dataset == "imagenet" else "cnn" if images.channels == 1 else None  # None: both
    if takes not in (None, benchmark.extractor.kind):
        why = "grey images" if takes == "cnn" else "photos that are not held in memory (set dataset: folder)"
        raise ConfigError(
            f"benchmark.extractor.kind: {benchmark.extractor.kind} does not take the {why} of {source}; set "
            f"extractor.kind: {takes}"
        )
    generated = f"benchmark.evaluation.images = {evaluation.images}"
    if evaluation.cas_steps is not None and benchmark.extractor.kind != "cnn":
        kind = f"extractor.kind: {benchmark.extractor.kind}"
        raise ConfigError(f"benchmark.evaluation.cas_steps has no effect for {kind}; remove it or set it to null")
    if evaluation.images < images.classes and not benchmark.dry_run:
        least = f"one of each of the {images.classes} classes (data.classes)"
        raise ConfigError(f"{generated} is less than {least}; generate more, or set dry_run: true")
    if benchmark.weights == "released" and evaluation.reference is None:
        raise ConfigError("benchmark.evaluation.reference is missing, and weights: released come without real images")
    if compare is not None and compare.resolution != images.side:
        sides = f"the images (data.dataset, data.resolution) have sides of {images.side}"
        raise ConfigError(f"benchmark.compare.resolution = {compare.resolution}, but {sides}; set both alike")
    latents = benchmark.autoencoder.latents(images)
    for size in benchmark.ladder:
        model, where = benchmark.model_config(size), f"benchmark.ladder.{size}: model"
        if model.classes != images.classes:
            there = f"there are {images.classes} ({source}, data.classes)"
            raise ConfigError(f"{where}.classes = {model.classes}, but {there}; set both alike")
        if latents != (model.channels, model.grid):
            ours = f"{where}.channels = {model.channels}, grid = {model.grid}"
            theirs = f"the latents ({source}, data.resolution, autoencoder.kind) have {latents[0]} channels"
            raise ConfigError(f"{ours}, but {theirs} and sides of {latents[1]}; set both alike")
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
