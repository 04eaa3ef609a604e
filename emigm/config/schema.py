"""Configuration: frozen dataclasses, the parts of a benchmark.

Every key of the YAML is a field here; an unknown key, or an option that cannot apply, is a
`ConfigError` that names the key and what is allowed. No torch in this module.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from emigm.config.errors import ConfigError
from emigm.config.parsing import at_least


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
    """W, width of the head."""
    head_blocks: int
    """Residual blocks of the head."""
    conditional: Literal["diffusion", "categorical"] = "diffusion"
    """p(token | visible tokens) (Table 1): a diffusion model of C numbers, or a categorical one of a codebook."""
    codebook: int | None = None
    """categorical: number of codes a token can be."""
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
        if (self.codebook is None) != (self.conditional == "diffusion"):
            verb = "has no effect" if self.conditional == "diffusion" else "is missing"
            raise ConfigError(f"model.codebook {verb} for conditional: {self.conditional}")
        if self.conditional == "categorical" and (self.patch, self.channels) != (1, 1):
            raise ConfigError(
                f"model.patch = {self.patch} and model.channels = {self.channels}: a categorical token is one code, so "
                "both must be 1"
            )
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


Precision = Literal["float32", "tf32", "bf16"]
"""Of the network's matrix products: float32; on a GPU rounded to TensorFloat-32 (the mantissa of float16, the range of
float32; float32 on a CPU); bfloat16 under autocast."""


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
    masking: Literal["independent", "exact_count"] = "independent"
    """Masked tokens at t (Table 1): each with probability gamma(t), or ceil(L gamma(t)) of them."""
    schedule: Literal["linear", "cosine", "exp"] = "exp"
    """Mask schedule gamma(t) (Table 4)."""
    t_min: float = 0.2
    """Time truncation: t <- max(t, t_min)."""
    weight: Literal["one", "elbo"] = "one"
    """Loss weight: 1, or that of the ELBO, gamma'/gamma."""
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
    precision: Precision = "float32"
    """Of forward and backward; weights, EMA and optimizer stay float32."""

    def __post_init__(self):
        for name in ("steps", "batch", "diffusion_batch_mul", "checkpoint_every"):
            at_least(f"train.{name}", getattr(self, name), 1)
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
    solver_steps: int | None = None
    """K, evaluations of the diffusion head for one token."""
    cfg_scale: float = 1.0
    """Guidance scale; 1 means none."""
    cfg_interval: tuple[float, float] = (0.0, 1.0)
    """Guidance acts when t_min < s <= t_max."""
    schedule: Literal["linear", "cosine", "exp"] = "exp"
    order: Literal["binomial", "exact", "confidence"] = "binomial"
    """Which tokens a step reveals: each with its probability (eMIGM, MDM), an exact number at random positions (MAR),
    or an exact number where the model is most confident (MaskGIT)."""
    choice_temperature: float | None = None
    """confidence: factor on the Gumbel noise of log p, falling to 0 over the steps."""
    solver: Literal["dpm-solver", "ddpm", "categorical"] = "dpm-solver"
    """How a token is drawn: from the diffusion head by one of two solvers, or from the categorical head."""
    temperature: float | None = None
    """Factor on the DDPM noise (default 1); DPM-Solver has none."""
    x0_clip: float | None = None
    """Clip of the predicted x0 in unit latents (DDPM only; the official code does not clip)."""
    precision: Precision = "float32"
    """Of the network; the solver stays float32."""

    def __post_init__(self):
        at_least("sampling.steps", self.steps, 1)
        for name, applies in (
            ("solver_steps", self.solver != "categorical"),
            ("choice_temperature", self.order == "confidence"),
        ):
            if (getattr(self, name) is not None) != applies:
                verb = "is missing" if applies else "has no effect"
                raise ConfigError(f"sampling.{name} {verb} for solver: {self.solver}, order: {self.order}")
        if self.order == "confidence" and self.solver != "categorical":
            raise ConfigError("sampling.order: confidence needs solver: categorical; a diffusion head has no log p")
        if self.solver_steps is not None:
            at_least("sampling.solver_steps", self.solver_steps, 1)
        low, high = self.cfg_interval
        if not 0 <= low < high <= 1:
            raise ConfigError(f"sampling.cfg_interval = [{low}, {high}] is not an interval inside [0, 1]")
        if self.solver != "ddpm":
            for name in ("temperature", "x0_clip"):
                if getattr(self, name) is not None:
                    raise ConfigError(
                        f"sampling.{name} has no effect under solver: {self.solver}; remove it or set solver: ddpm"
                    )
        if self.solver == "dpm-solver" and self.solver_steps < 3:
            raise ConfigError("sampling.solver_steps < 3 is too few for the third-order DPM-Solver")


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are split."""

    dataset: Literal["digits", "mnist", "cifar10", "imagenet"]
    root: str | None = None
    """cifar10: folder with torchvision's or parquet files (downloaded there when absent); imagenet: the training
    photos, one folder for each class."""
    holdout_root: str | None = None
    """imagenet: photos that are never trained on (the validation set), in the same layout."""
    classes: int | None = None
    """imagenet: number of class folders there must be."""
    resolution: int | None = None
    """Side in pixels. imagenet: of the square crop; mnist: 28, or 14 for the means of 2 x 2 pixels."""
    holdout: float | None = None
    """digits and mnist: fraction of each class that is never trained on (cifar10: its test images are held out)."""
    split_seed: int = 0
    """digits and mnist: of the choice of held-out images."""
    flips: bool = False
    """Encode every training image with its horizontal flip, and train on either with equal chance."""

    def __post_init__(self):
        applies = {
            "digits": {"holdout"},
            "mnist": {"holdout", "resolution"},
            "cifar10": {"root"},
            "imagenet": {"root", "holdout_root", "classes", "resolution"},
        }[self.dataset]
        for name in ("root", "holdout_root", "classes", "resolution", "holdout"):
            if (getattr(self, name) is not None) != (name in applies):
                verb = "is missing" if name in applies else "has no effect"
                raise ConfigError(f"data.{name} {verb} for dataset: {self.dataset}")


@dataclass(frozen=True)
class AutoencoderConfig:
    """How pixels become latents."""

    kind: Literal["pixels", "kl16", "dcae", "levels", "vq"]
    """Numbers: pixels, kl16, dcae. Codes, for the categorical head: levels (of grey pixels), vq."""
    scale: float = 1.0
    """Raw latents times this have about unit standard deviation; codes have none."""
    weights: str | None = None
    """Path of the autoencoder's weights; `pixels` and `levels` have none."""
    codebook: int | None = None
    """levels and vq: number of codes."""

    def __post_init__(self):
        if (self.weights is None) != (self.kind in ("pixels", "levels")):
            verb = "is missing" if self.weights is None else "has no effect"
            raise ConfigError(f"autoencoder.weights {verb} for kind: {self.kind}")
        if (self.codebook is None) != (self.kind not in ("levels", "vq")):
            verb = "is missing" if self.codebook is None else "has no effect"
            raise ConfigError(f"autoencoder.codebook {verb} for kind: {self.kind}")
        if self.codebook is not None and self.scale != 1:
            raise ConfigError(f"autoencoder.scale = {self.scale} has no effect on the codes of kind: {self.kind}")


@dataclass(frozen=True)
class ClassifierTraining:
    """Training of the digits' classifier."""

    steps: int
    batch: int
    lr: float
    seed: int


@dataclass(frozen=True)
class ExtractorConfig:
    """The feature extractor behind FID, IS, KID, precision and recall."""

    kind: Literal["cnn", "inception"]
    weights: str | None = None
    """inception: torch-fidelity's weights file."""
    training: ClassifierTraining | None = None
    """cnn: how the classifier is trained."""

    def __post_init__(self):
        for name, kind in (("weights", "inception"), ("training", "cnn")):
            if (getattr(self, name) is not None) != (self.kind == kind):
                verb = "is missing" if self.kind == kind else "has no effect"
                raise ConfigError(f"extractor.{name} {verb} for kind: {self.kind}")


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
    """Images of each of KID's subsets."""
    reference: str | None = None
    """Stored statistics of the real images (an ADM-style .npz with mu and sigma); None: those of the training
    images."""

    def __post_init__(self):
        at_least("evaluation.images", self.images, 1)
        at_least("evaluation.chunk", self.chunk, 1)
        if not self.seeds:
            raise ConfigError("evaluation.seeds is empty; give at least one sampling seed, such as [0]")


@dataclass(frozen=True)
class CompareConfig:
    """What `emigm compare` holds the results against."""

    resolution: Literal[256, 512]
    """ImageNet's, in pixels: 256 for the paper's Table 2, 512 for Table 3."""
    fid_tolerance: float
    """Greatest |ours - reported| / reported of a cell that counts as reproduced."""

    def __post_init__(self):
        if self.fid_tolerance <= 0:
            raise ConfigError(f"compare.fid_tolerance = {self.fid_tolerance}: must be above 0")


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
    on_failure: Literal["stop", "mark"] = "stop"
    """mark: let the pipeline go on with a run that fails; its record, and every table it reaches, say so."""


@dataclass(frozen=True)
class ReleasedConfig:
    """Where released checkpoints come from."""

    repository: str
    """On Hugging Face; a file that is absent is fetched from there."""
    folder: str
    """Where the files lie."""
    files: dict[str, str]
    """Size -> file name."""
    sha256: dict[str, str] = field(default_factory=dict)
    """Size -> checksum the file must have, where it is known."""
    token: Literal["official", "ema"] = "official"
    """Which value of the shared fake and mask token is taken (`emigm import --help`)."""


@dataclass(frozen=True)
class RunConfig:
    """How the machine is used. Nothing here changes a result beyond rounding and dropout's masks; no stage depends on
    it."""

    launcher: str | None = None
    """Command that starts a stage's processes, such as "torchrun --standalone --nproc-per-node=8" or "srun python";
    it is followed by `-m emigm.stages...`. None: one process."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is a GPU."""
    train_batch: int | None = None
    """Images one process takes in one forward pass of training; a larger share is accumulated. None: all."""
    sample_batch: int = 256
    """Images one process generates at once, at most a chunk."""
    encode_batch: int = 64
    """Images one process encodes, or decodes, at once."""
    score_batch: int = 64
    """Images one process extracts features of at once."""
    workers: int = 8
    """Threads of one process that decode photos."""

    def __post_init__(self):
        for name in ("sample_batch", "encode_batch", "score_batch", "workers"):
            at_least(f"run.{name}", getattr(self, name), 1)
        if self.train_batch is not None:
            at_least("run.train_batch", self.train_batch, 1)
