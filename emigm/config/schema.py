"""Configuration of model, training and sampling: frozen dataclasses.

Every key of the YAML is a field here or in `emigm.config.parts`; an unknown key, a value outside its field's rule, or
an option that cannot apply is a `ConfigError` that names the key and what is allowed. No torch in this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from emigm.config.errors import ConfigError
from emigm.config.parsing import Checked, within
from emigm.config.rules import Blocks, Codes, Count, Fraction, Momentum, Precision, Rate, Seeds, Side, Steps, Width


@dataclass(frozen=True)
class ModelConfig(Checked):
    """Architecture of one eMIGM: backbone (encoder and decoder) and per-token diffusion head."""

    grid: Side
    """Side of the square latent grid, in positions."""
    channels: Side
    """Latent channels at each position."""
    classes: Count
    """Number of classes."""
    width: Width
    """D, transformer width."""
    encoder_blocks: Blocks
    decoder_blocks: Blocks
    heads: Width
    """Attention heads; divides `width`."""
    head_width: Width
    """W, width of the head."""
    head_blocks: Blocks
    """Residual blocks of the head."""
    conditional: Literal["diffusion", "categorical"] = "diffusion"
    """p(token | visible tokens) (Table 1): a diffusion model of C numbers, or a categorical one of a codebook."""
    codebook: Codes | None = None
    """categorical: number of codes a token can be."""
    patch: Side = 1
    """Side of the square of positions that makes one token."""
    buffer: Side = 64
    """Positions in front of the tokens that hold the class embedding."""
    mlp_ratio: Annotated[float, within("(0, 64]")] = 4.0
    dropout: Momentum = 0.1
    """Dropout on attention and on both projections, in training only."""
    mae: bool = True
    """MAE trick: the encoder sees visible tokens only."""
    cfg_with_mask: bool = True
    """The fake class embedding of classifier-free guidance is the decoder's mask token."""
    init_std: Annotated[float, within("(0, 10]")] = 0.02
    """Standard deviation of the embeddings, positions and fake token at initialisation."""
    positions: Literal["normal", "sines"] = "normal"
    """Initial values of the learned positions of tokens: normal, or sines and cosines of both coordinates with as large
    a standard deviation."""

    def check(self) -> None:
        if (self.codebook is None) != (self.conditional == "diffusion"):
            verb = "has no effect" if self.conditional == "diffusion" else "is missing"
            raise ConfigError(f"codebook {verb} for conditional: {self.conditional}")
        if self.conditional == "categorical" and (self.patch, self.channels) != (1, 1):
            raise ConfigError(
                f"patch = {self.patch}, channels = {self.channels}, but a token of conditional: categorical is one "
                "code; set both to 1"
            )
        if self.grid % self.patch:
            raise ConfigError(f"patch = {self.patch} does not divide grid = {self.grid}")
        if self.tokens < 2:
            raise ConfigError(f"patch = {self.patch} leaves one token of grid = {self.grid}; give at least two")
        if self.width % self.heads:
            raise ConfigError(f"heads = {self.heads} does not divide width = {self.width}")
        if self.width * self.mlp_ratio < 1:
            raise ConfigError(f"mlp_ratio = {self.mlp_ratio} leaves nothing of width = {self.width}")

    @property
    def tokens(self) -> int:
        """L, tokens of an image."""
        return (self.grid // self.patch) ** 2

    @property
    def token_channels(self) -> int:
        """C, channels of a token."""
        return self.channels * self.patch**2


@dataclass(frozen=True)
class TrainConfig(Checked):
    """One training run (the paper's recipe is the default where it does not depend on scale)."""

    steps: Steps
    batch: Count
    """Images of one optimizer step, over all processes."""
    lr: Rate
    """Peak learning rate, for the global batch."""
    seeds: Seeds = (0,)
    """Training seeds; one run each."""
    masking: Literal["independent", "exact_count", "truncated_normal"] = "independent"
    """Masked tokens at t (Table 1): each with probability gamma(t), or ceil(L gamma(t)) of them; or, as MAR's code
    does, a share of them from a normal distribution (mean 1, deviation 0.25) truncated to [0.7, 1], without a time."""
    mask_group: Count = 64
    """Images that share one masking time and mask count, as the images of one GPU do in the official code; a batch
    smaller than that is one group. Without the MAE trick every image has its own, and the group is what the loss is
    averaged over first."""
    schedule: Literal["linear", "cosine", "exp"] | None = None
    """Mask schedule gamma(t) (Table 4), by default exp."""
    t_min: Annotated[float, within("[0, 1)")] | None = None
    """Time truncation: t <- max(t, t_min), by default 0.2."""
    weight: Literal["one", "elbo"] = "one"
    """Loss weight: 1, or that of the ELBO, gamma'/gamma."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: Annotated[int, within("[0, 1000000000]")] = 0
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
    weight_decay: Fraction = 0.02
    grad_clip: Annotated[float, within("(0, 1000000000000]")] = 3.0
    ema: Momentum = 0.9999
    label_dropout: Fraction = 0.1
    diffusion_batch_mul: Annotated[int, within("[1, 1000]")] = 4
    """Diffusion times (each with its own noise) a masked token is trained at in one step."""
    checkpoint_every: Steps = 1000
    """Steps between resume points."""
    snapshots: tuple[Annotated[float, within("(0, 1)")], ...] = ()
    """Shares of the steps after which the EMA weights are kept; the final weights always are."""
    precision: Precision = "float32"
    """Of forward and backward; weights, EMA and optimizer stay float32. Under float16 the loss is scaled, and a step
    whose gradients overflow is skipped and counted."""

    def check(self) -> None:
        if self.batch % min(self.mask_group, self.batch):
            raise ConfigError(
                f"batch = {self.batch} is not a multiple of mask_group = {self.mask_group}; change either, "
                "so that groups are equally large"
            )
        timed = self.masking != "truncated_normal"
        for name, default in (("schedule", "exp"), ("t_min", 0.2)):
            if getattr(self, name) is None and timed:
                object.__setattr__(self, name, default)
            elif getattr(self, name) is not None and not timed:
                raise ConfigError(f"{name} has no effect on masking: truncated_normal; set it to null")
        if not timed and self.weight == "elbo":
            raise ConfigError("weight: elbo needs a masking time, which masking: truncated_normal has not")
        if self.warmup_steps >= self.steps:
            raise ConfigError(f"warmup_steps = {self.warmup_steps} leaves nothing of steps = {self.steps}")
        if not all(0 < n < self.steps for n in self.snapshot_steps) or len(set(self.snapshot_steps)) < len(
            self.snapshots
        ):
            raise ConfigError(
                f"snapshots = {list(self.snapshots)}: give shares of the {self.steps:,} steps, above 0 and "
                "below 1, that come to different numbers of steps"
            )

    @property
    def snapshot_steps(self) -> tuple[int, ...]:
        """Numbers of steps after which the EMA weights are kept."""
        return tuple(round(share * self.steps) for share in self.snapshots)


@dataclass(frozen=True)
class SampleConfig(Checked):
    """How images are generated at one NFE budget."""

    steps: Count
    """N, mask-prediction steps."""
    solver_steps: Annotated[int, within("[1, 1000]")] | None = None
    """K, evaluations of the diffusion head for one token."""
    cfg_scale: Annotated[float, within("[0, 100]")] = 1.0
    """Guidance scale; 1 means none."""
    cfg_interval: tuple[Fraction, Fraction] = (0.0, 1.0)
    """Guidance acts when t_min < s <= t_max."""
    schedule: Literal["linear", "cosine", "exp"] = "exp"
    order: Literal["binomial", "exact", "confidence"] = "binomial"
    """Which tokens a step reveals: each with its probability (eMIGM, MDM), an exact number at random positions (MAR),
    or an exact number where the model is most confident (MaskGIT)."""
    choice_temperature: Annotated[float, within("[0, 1000]")] | None = None
    """confidence: factor on the Gumbel noise of log p, falling to 0 over the steps."""
    solver: Literal["dpm-solver", "ddpm", "categorical"] = "dpm-solver"
    """How a token is drawn: from the diffusion head by one of two solvers, or from the categorical head."""
    temperature: Annotated[float, within("[0, 10]")] | None = None
    """Factor on the DDPM noise (default 1); DPM-Solver has none."""
    x0_clip: Annotated[float, within("(0, 1000]")] | None = None
    """Clip of the predicted x0 in unit latents (DDPM only; the official code does not clip)."""
    precision: Precision = "float32"
    """Of the network; the solver and guidance stay float32. The paper's: float16."""

    def check(self) -> None:
        for name, applies in (
            ("solver_steps", self.solver != "categorical"),
            ("choice_temperature", self.order == "confidence"),
        ):
            if (getattr(self, name) is not None) != applies:
                verb = "is missing" if applies else "has no effect"
                raise ConfigError(f"{name} {verb} for solver: {self.solver}, order: {self.order}")
        if self.order == "confidence" and self.solver != "categorical":
            raise ConfigError("order: confidence needs solver: categorical; a diffusion head has no log p")
        low, high = self.cfg_interval
        if low >= high:
            raise ConfigError(f"cfg_interval = [{low}, {high}] is empty; give the lower bound first")
        if self.solver != "ddpm":
            for name in ("temperature", "x0_clip"):
                if getattr(self, name) is not None:
                    raise ConfigError(
                        f"{name} has no effect under solver: {self.solver}; remove it or set solver: ddpm"
                    )
        if self.solver == "dpm-solver" and self.solver_steps < 3:
            raise ConfigError(
                f"solver_steps = {self.solver_steps} is too few for solver: dpm-solver, of third order; give at least 3"
            )
