"""A benchmark: all that one composed configuration says, and the reader of its file. No torch in this module."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import field
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import StrictBool

from emigm.config import schema
from emigm.config.errors import ConfigError, check
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
    models_of: Name | None = None
    """The benchmark whose trained models are used, all of them with this one's settings; None: its own."""
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
            agree = f"ladder.{size}: model.codebook = {own}, but autoencoder.codebook = {codebook}"
            check(own == codebook, agree)
        for budget, cfg in self.sampling.items():
            _check_names(f"sampling.{budget}.overrides", cfg.overrides, "ladder", self.ladder)
            for size in {**cfg.overrides, **self.ladder}:
                self.sample_config(size, budget)
        for size in self.sizes:
            self._check_size(size)
        for key, path in self.random_files.items():
            check(self.dry_run, f"{key} = {path}: only a dry run takes random files; name the real one")

    def _check_size(self, size: str) -> None:
        """Gate, samplers and released files must suit the model."""
        model, train, visible = self.model_config(size), self.train_config(size), self.gate.visible
        needs = "model.mae: true needs equally many masked tokens in a group; set train.mask_times: auto"
        shares = not model.mae or train.mask_times != "image"
        check(shares, f"train.mask_times = image of size {size}, but {needs}")
        limit = f"there are {model.tokens} (by model.grid and model.patch)"
        wanted = f"give two numbers of visible tokens at least, from 0 to {model.tokens - 1}; {limit} of size {size}"
        check(len(visible) >= 2 and max(visible) < model.tokens, f"gate.visible = {show(list(visible))}: {wanted}")
        for budget in self.budgets:
            cfg, where = self.sample_config(size, budget), f"sampling.{budget} of size {size}"
            draws = (cfg.solver == "categorical") == (model.conditional == "categorical")
            check(draws, f"{where}: solver: {cfg.solver} cannot draw tokens of conditional: {model.conditional}")
            too_many = f"{where}: steps = {cfg.steps}, but every step reveals a token, and {limit}; lower it"
            check(cfg.steps <= model.tokens, too_many)
            has_null = cfg.cfg_scale == 1 or self.weights == "released" or train.label_dropout > 0
            lacks = "with train.label_dropout = 0 the model learns no null class; set cfg_scale: 1"
            check(has_null, f"{where}: cfg_scale = {cfg.cfg_scale}, but {lacks}")
        if self.weights == "released":
            check(self.released is not None, "released is missing; weights: released needs to know where they are")
            _check_names("sizes", [size], "released.files", self.released.files)
            one = f"train.seeds = {show(list(train.seeds))}, but weights: released are one model; give one seed"
            check(len(train.seeds) == 1, one)

    @property
    def random_files(self) -> dict[str, Path]:
        """The random files, and folders of random photos, that are named here: key -> path."""
        keys = ("data.root", "data.holdout_root", "evaluation.reference", "autoencoder.weights", "extractor.weights")
        named = {key: attrgetter(key)(self) for key in keys}
        return {key: Path(path) for key, path in named.items() if is_random(path)}

    def model_config(self, size: str) -> ModelConfig:
        """Architecture of the model `size`; raises ConfigError for an unknown one, as the next two do."""
        known("size", size, self.ladder)
        return parse(ModelConfig, {**self.model, **self.ladder[size].model}, f"ladder.{size}.model")

    def train_config(self, size: str) -> TrainConfig:
        """Training recipe of `size`."""
        known("size", size, self.ladder)
        return parse(TrainConfig, {**self.train, **self.ladder[size].train}, f"ladder.{size}.train")

    def sample_config(self, size: str, budget: str) -> SampleConfig:
        """The sampling configuration `budget` of `size`."""
        known("size", size, self.ladder)
        known("budget", budget, self.sampling)
        cfg = self.sampling[budget]
        where = f"sampling.{budget}.settings" + (f" + overrides.{size}" if size in cfg.overrides else "")
        return parse(SampleConfig, {**cfg.settings, **cfg.overrides.get(size, {})}, where)

    def finest_sampling(self, size: str) -> SampleConfig:
        """Sampling settings of `size` with the most mask-prediction steps."""
        return max((self.sample_config(size, budget) for budget in self.budgets), key=lambda cfg: cfg.steps)


def _check_names(where: str, names: Iterable[str], section: str, allowed: Iterable[str]) -> None:
    for name in names:
        check(name in allowed, f"{where}: {name} is not in {section}{suggest(name, allowed)}")


def is_random(path: str | Path | None) -> bool:
    """Whether this is the path of a random file, however it is written, and whether links lead there."""
    ways = (os.path.abspath, os.path.realpath)
    return path is not None and any(Path(way(RANDOM)) in Path(way(path)).parents for way in ways)


def parse_benchmark(tree: Any) -> Benchmark:
    """The benchmark that a composed configuration describes, held against what is known of its data set.

    Raises:
        ConfigError: a key is unknown, missing or of a wrong type, a value cannot be meant, or two do not go together.
    """
    benchmark = parse(Benchmark, tree, "benchmark")
    data, evaluation, compare = benchmark.data, benchmark.evaluation, benchmark.compare
    images, source = data.images, f"data.dataset: {data.dataset}"
    kind = benchmark.extractor.kind
    takes = "inception" if data.dataset == "imagenet" else "cnn" if images.channels == 1 else kind
    why = "grey images" if takes == "cnn" else "photos that are not held in memory (set dataset: folder)"
    remedy = f"set extractor.kind: {takes}"
    check(takes == kind, f"benchmark.extractor.kind: {kind} does not take the {why} of {source}; {remedy}")
    generated, remedy = f"benchmark.evaluation.images = {evaluation.images}", "remove it or set it to null"
    has_cas = evaluation.cas_steps is None or kind == "cnn"
    check(has_cas, f"benchmark.evaluation.cas_steps has no effect for extractor.kind: {kind}; {remedy}")
    least = f"one of each of the {images.classes} classes (data.classes); generate more, or set dry_run: true"
    check(benchmark.dry_run or evaluation.images >= images.classes, f"{generated} is less than {least}")
    has_real = benchmark.weights == "trained" or evaluation.reference is not None
    check(has_real, "benchmark.evaluation.reference is missing, and weights: released come without real images")
    if compare is not None:
        sides = f"the images (data.dataset, data.resolution) have sides of {images.side}; set both alike"
        fits = compare.resolution == images.side
        check(fits, f"benchmark.compare.resolution = {compare.resolution}, but {sides}")
    channels, side = benchmark.autoencoder.latents(images)
    for size in benchmark.ladder:
        model, where = benchmark.model_config(size), f"benchmark.ladder.{size}: model"
        ours = f"{where}.classes = {model.classes}, but there are {images.classes} ({source}, data.classes)"
        check(model.classes == images.classes, f"{ours}; set both alike")
        ours = f"{where}.channels = {model.channels}, grid = {model.grid}, but the latents ({source}, data.resolution,"
        theirs = f"autoencoder.kind) have {channels} channels and sides of {side}"
        check((channels, side) == (model.channels, model.grid), f"{ours} {theirs}; set both alike")
    return benchmark


KEYS = ("root", "params", "makes", "models_of", "trains", "snapshots", "reveal", "tracked", "notebooks")
KEYS += ("benchmark",)
"""Of a composed file: the repository's root as seen from it; the file as seen from there; the data sets that its
pipeline makes; whose models it samples; the sizes that it trains; those scored along training; those whose generation
is pictured; those whose weights git tracks; the notebooks that it runs; the benchmark itself. All but the last are for
dvc.yaml."""


def load_benchmark(path: str | Path = "params.yaml") -> Benchmark:
    """Read a composed configuration (`emigm compose`); raises ConfigError as `parse_benchmark`, or for no YAML."""
    return parse_params(read_yaml(Path(path)), str(path))


def parse_params(tree: dict[str, Any], where: str) -> Benchmark:
    """The benchmark in the tree of a composed file that is called `where` in messages."""
    expected = f"expected the top-level keys {', '.join(KEYS)}, found {show(list(tree))}"
    check(set(tree) == set(KEYS), f"{where}: {expected}")
    return parse_benchmark(tree["benchmark"])
