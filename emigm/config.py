"""Configuration: frozen dataclasses, and the loader of `params.yaml`.

Every key of the YAML is a field here; an unknown key, or an option that cannot apply, is a
`ConfigError` that names the key and what is allowed. No torch in this module.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml


class UserError(Exception):
    """Something the user can mend; stages show its message alone, without a traceback."""


class ConfigError(UserError, ValueError):
    """A mistake in a configuration, a command line or a file; the message names it and the remedy."""


class RunError(UserError, RuntimeError):
    """A run that went wrong; the message says why."""


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of one eMIGM: backbone (encoder and decoder) and per-token diffusion head."""

    grid: int
    """Side of the square latent grid, in positions."""
    channels: int
    """Latent channels at each position."""
    classes: int
    """Number of classes."""
    width: int
    """D, transformer width."""
    encoder_blocks: int
    decoder_blocks: int
    heads: int
    """Attention heads; divides `width`."""
    head_width: int
    """W, width of the diffusion head."""
    head_blocks: int
    """Residual blocks of the diffusion head."""
    patch: int = 1
    """Side of the square of positions that makes one token."""
    buffer: int = 64
    """Positions in front of the tokens that hold the class embedding."""
    mlp_ratio: float = 4.0
    dropout: float = 0.1
    """Dropout on attention and on both projections, in training only."""
    mae: bool = True
    """MAE trick: the encoder sees visible tokens only."""
    cfg_with_mask: bool = True
    """The fake class embedding of classifier-free guidance is the decoder's mask token."""
    init_std: float = 0.02
    """Standard deviation of the embeddings, positions and fake token at initialisation."""

    def __post_init__(self):
        if self.grid % self.patch:
            raise ConfigError(f"model.patch = {self.patch} does not divide model.grid = {self.grid}")
        if self.width % self.heads:
            raise ConfigError(f"model.heads = {self.heads} does not divide model.width = {self.width}")

    @property
    def tokens(self) -> int:
        """L, tokens of an image."""
        return (self.grid // self.patch) ** 2

    @property
    def token_channels(self) -> int:
        """C, channels of a token."""
        return self.channels * self.patch**2


@dataclass(frozen=True)
class TrainConfig:
    """One training run (the paper's recipe is the default where it does not depend on scale)."""

    steps: int
    batch: int
    """Images of one optimizer step, over all processes."""
    lr: float
    """Peak learning rate, for the global batch."""
    seeds: tuple[int, ...] = (0,)
    """Training seeds; one run each."""
    schedule: Literal["linear", "cosine", "exp"] = "exp"
    """Mask schedule gamma(t) (Table 4)."""
    t_min: float = 0.2
    """Time truncation: t <- max(t, t_min)."""
    weight: Literal["one", "elbo"] = "one"
    """Loss weight: 1, or gamma'/gamma."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.02
    grad_clip: float = 3.0
    ema: float = 0.9999
    label_dropout: float = 0.1
    diffusion_batch_mul: int = 4
    """Diffusion times (each with its own noise) a masked token is trained at in one step."""
    checkpoint_every: int = 1000
    """Steps between resume points."""

    def __post_init__(self):
        for name in ("steps", "batch", "diffusion_batch_mul", "checkpoint_every"):
            _at_least(f"train.{name}", getattr(self, name), 1)
        if not self.seeds:
            raise ConfigError("train.seeds is empty; give at least one seed, such as [0]")
        if not 0 <= self.t_min < 1:
            raise ConfigError(f"train.t_min = {self.t_min} is outside [0, 1)")
        if self.warmup_steps >= self.steps:
            raise ConfigError(f"train.warmup_steps = {self.warmup_steps} leaves nothing of train.steps = {self.steps}")


@dataclass(frozen=True)
class SampleConfig:
    """How images are generated at one NFE budget."""

    steps: int
    """N, mask-prediction steps."""
    solver_steps: int
    """K, evaluations of the head for one token."""
    cfg_scale: float = 1.0
    """Guidance scale; 1 means none."""
    cfg_interval: tuple[float, float] = (0.0, 1.0)
    """Guidance acts when t_min < s <= t_max."""
    schedule: Literal["linear", "cosine", "exp"] = "exp"
    solver: Literal["dpm-solver", "ddpm"] = "dpm-solver"
    temperature: float | None = None
    """Factor on the DDPM noise (default 1); DPM-Solver has none."""
    x0_clip: float | None = None
    """Clip of the predicted x0 in unit latents (DDPM only; the official code does not clip)."""

    def __post_init__(self):
        _at_least("sampling.steps", self.steps, 1)
        _at_least("sampling.solver_steps", self.solver_steps, 1)
        low, high = self.cfg_interval
        if not 0 <= low < high <= 1:
            raise ConfigError(f"sampling.cfg_interval = [{low}, {high}] is not an interval inside [0, 1]")
        if self.solver == "dpm-solver":
            for name in ("temperature", "x0_clip"):
                if getattr(self, name) is not None:
                    raise ConfigError(
                        f"sampling.{name} has no effect under solver: dpm-solver; remove it or set solver: ddpm"
                    )
            if self.solver_steps < 3:
                raise ConfigError("sampling.solver_steps < 3 is too few for the third-order DPM-Solver")


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are split."""

    dataset: Literal["digits"]
    holdout: float = 0.25
    """Fraction of each class that is never trained on."""
    split_seed: int = 0
    flips: bool = False
    """Encode every training image with its horizontal flip, and train on either with equal chance."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """How pixels become latents."""

    kind: Literal["pixels", "kl16", "dcae"]
    scale: float
    """Raw latents times this have about unit standard deviation."""
    weights: str | None = None
    """Path of the autoencoder's weights; `pixels` has none."""

    def __post_init__(self):
        if (self.weights is None) != (self.kind == "pixels"):
            raise ConfigError(
                f"autoencoder.weights must {'not ' if self.kind == 'pixels' else ''}be given for kind: {self.kind}"
            )


@dataclass(frozen=True)
class ExtractorConfig:
    """The feature extractor behind FID, IS, KID, precision and recall."""

    kind: Literal["digits-cnn"]
    steps: int = 600
    batch: int = 128
    lr: float = 3e-3
    seed: int = 0


@dataclass(frozen=True)
class EvalConfig:
    """How many images are generated and scored."""

    images: int
    """Images of one sampling seed."""
    seeds: tuple[int, ...]
    """Sampling seeds."""
    chunk: int = 250
    """Consecutive image indices that share their reveal counts; the last may be smaller."""
    kid_subset: int = 200

    def __post_init__(self):
        _at_least("evaluation.images", self.images, 1)
        _at_least("evaluation.chunk", self.chunk, 1)
        if not self.seeds:
            raise ConfigError("evaluation.seeds is empty; give at least one sampling seed, such as [0]")


@dataclass(frozen=True)
class GateConfig:
    """The context gate: head error at few and at many visible tokens, and what must separate them."""

    visible: tuple[int, ...]
    """Numbers of visible tokens the error is recorded at; the first and the best are compared."""
    max_ratio: float = 0.95
    """A run fails when error(best) / error(first) is above this."""
    images: int = 512
    """Held-out images the error is measured on, at most."""
    repeats: int = 16
    """Random orders drawn for each of them."""
    enforce: bool = True
    """False: record the ratio and mark the run, but let the pipeline go on (dry runs only)."""


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
    """Everything a benchmark runs; see `benchmarks/benchmark/*.yaml`."""

    name: str
    title: str
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
    dry_run: bool = False
    """True: the numbers only show that the machinery runs; every table and figure says so."""

    def __post_init__(self):
        if not self.gate.enforce and not self.dry_run:
            raise ConfigError("benchmark.gate.enforce: false is for dry runs; set benchmark.dry_run: true as well")
        for size in self.sizes:
            known("benchmark.sizes", size, self.ladder)
        for budget in self.budgets:
            known("benchmark.budgets", budget, self.sampling)
        for budget, cfg in self.sampling.items():
            for size in cfg.overrides:
                known(f"benchmark.sampling.{budget}.overrides", size, self.ladder)
        for size in self.ladder:  # a bad value anywhere fails before any stage has run
            self.model_config(size), self.train_config(size)
            for budget in self.sampling:
                self.sample_config(size, budget)

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


def load_benchmark(path: str | Path = "params.yaml") -> Benchmark:
    """Read the composed configuration that DVC keeps in `params.yaml`.

    Raises:
        ConfigError: the file is missing or not YAML, or a key in it is unknown, missing or of a wrong type.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; run from the repository's root, or name another with --params")
    try:
        tree = yaml.safe_load(path.read_text())
    except yaml.YAMLError as e:
        raise ConfigError(f"{path}: not valid YAML: {e}") from e
    if not isinstance(tree, dict) or set(tree) != {"benchmark"}:
        raise ConfigError(f"{path}: expected the one top-level key 'benchmark', found {sorted(tree or {})}")
    return parse(Benchmark, tree["benchmark"], "benchmark")


def parse(cls: type, tree: Any, where: str) -> Any:
    """Build the dataclass `cls` from the mapping `tree`, strictly; `where` names the key in messages."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: expected a mapping, found {tree!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in tree:
        if key not in fields:
            raise ConfigError(f"unknown key {where}.{key}{_suggest(str(key), fields)}")
    required = [
        n
        for n, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and n not in tree
    ]
    if required:
        raise ConfigError(f"missing key {where}.{required[0]}")
    return cls(**{key: _convert(hints[key], value, f"{where}.{key}") for key, value in tree.items()})


def as_dict(cfg: Any) -> dict[str, Any]:
    """The dataclass as plain JSON types (tuples become lists)."""
    plain = dataclasses.asdict(cfg)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return parse(hint, value, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where} = {value!r}{_suggest(str(value), args)}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, found {value!r}")
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise ConfigError(f"{where}: expected {len(args)} values, found {list(value)}")
        return tuple(_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a mapping, found {value!r}")
        return {str(k): _convert(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where}: expected {hint.__name__}, found {value!r}")
    return value


def _suggest(name: str, allowed) -> str:
    allowed = [str(a) for a in allowed]
    close = difflib.get_close_matches(name, allowed, 1)
    return (f"; did you mean {close[0]!r}?" if close else "") + f" (allowed: {', '.join(allowed)})"


def known(what: str, name: str, allowed) -> None:
    """Raise ConfigError, with the nearest match, unless `name` is one of `allowed`."""
    if name not in allowed:
        raise ConfigError(f"unknown {what} {name!r}{_suggest(name, allowed)}")


def _at_least(what: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{what} = {value}: must be at least {least}")
