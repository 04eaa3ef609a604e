"""Configuration of model, training and sampling: frozen dataclasses.

Every key of the YAML is a field here; an unknown key, a value outside its field's rule, or
an option that cannot apply is a `ConfigError` that names the key and what is allowed. No torch in this module.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple

from emigm.config.errors import ConfigError
from emigm.config.parsing import Checked, Rule, as_dict, matching, within

Name = Annotated[
    str, matching("[A-Za-z0-9][A-Za-z0-9_-]{0,63}", "be letters, digits, _ and -, and begin with a letter or a digit")
]
"""Of a benchmark, a size or a budget: part of paths, of shell commands and of DVC's keys."""
Text = Annotated[str, Rule(lambda v: v.isprintable() and not v.isspace() and 0 < len(v) <= 1000, "be one line of text")]
"""A title, a path."""
Count = Annotated[int, within("[1, 1000000]")]
Steps = Annotated[int, within("[1, 1000000000]")]
Width = Annotated[int, within("[1, 65536]")]
Blocks = Annotated[int, within("[1, 256]")]
Side = Annotated[int, within("[1, 4096]")]
Codes = Annotated[int, within("[2, 1048576]")]
Rate = Annotated[float, within("(0, 1]")]
Seed = Annotated[int, within("[0, 4294967295]")]
Momentum = Annotated[float, within("[0, 1)")]
Fraction = Annotated[float, within("[0, 1]")]
distinct = Rule(lambda v: 0 < len(v) == len(set(v)), "name at least one, and none twice")
Seeds = Annotated[tuple[Seed, ...], distinct]
Precision = Literal["float32", "tf32", "float16", "bf16"]
"""Of matrix products and convolutions: float32; on a GPU rounded to TensorFloat-32 (the mantissa of float16, the range
of float32; float32 on a CPU); float16 or bfloat16 under autocast, which leaves weights, norms and sums float32."""


def _splits(command: str) -> bool:
    try:
        return bool(shlex.split(command))
    except ValueError:  # an open quote
        return False


def _is_inside(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and parts[0] != "/" and ".." not in parts and "\\" not in path


class Images(NamedTuple):
    """What is known of a data set before it is read; None: the configuration says it."""

    channels: int
    side: int | None
    classes: int | None


IMAGES = {
    "digits": Images(1, 8, 10),
    "mnist": Images(1, None, 10),
    "cifar10": Images(3, 32, 10),
    "imagenet": Images(3, None, None),
    "folder": Images(3, None, None),
}


@dataclass(frozen=True)
class DataConfig(Checked):
    """Which images, and how they are split."""

    dataset: Literal["digits", "mnist", "cifar10", "imagenet", "folder"]
    """folder: one's own photos, decoded once into memory; imagenet: photos of any number, read when asked for."""
    root: Text | None = None
    """cifar10: folder with torchvision's or parquet files (downloaded there when absent); imagenet and folder: the
    training photos, one folder for each class."""
    holdout_root: Text | None = None
    """imagenet, and folder without `holdout`: photos that are never trained on (the validation set), in the same
    layout."""
    classes: Count | None = None
    """imagenet and folder: number of class folders there must be."""
    resolution: Annotated[int, within("[8, 4096]")] | None = None
    """Side in pixels of the square crop; of mnist at most 28."""
    holdout: Annotated[float, within("(0, 1)")] | None = None
    """digits, mnist, and folder without `holdout_root`: fraction of each class that is never trained on (cifar10: its
    test images are held out)."""
    split_seed: Seed = 0
    """Of the choice of that fraction."""
    flips: bool = False
    """Encode every training image with its horizontal flip, and train on either with equal chance."""

    def check(self) -> None:
        applies = {
            "digits": {"holdout"},
            "mnist": {"holdout", "resolution"},
            "cifar10": {"root"},
            "imagenet": {"root", "holdout_root", "classes", "resolution"},
            "folder": {"root", "classes", "resolution", "holdout" if self.holdout_root is None else "holdout_root"},
        }[self.dataset]
        for name in ("root", "holdout_root", "classes", "resolution", "holdout"):
            if (getattr(self, name) is not None) != (name in applies):
                verb = "is missing" if name in applies else "has no effect"
                raise ConfigError(f"{name} {verb} for dataset: {self.dataset}{self._class_folders(name)}")
        if self.dataset == "mnist" and self.resolution > 28:
            raise ConfigError(f"resolution = {self.resolution} is more than the 28 pixels of dataset: mnist; lower it")

    def _class_folders(self, key: str) -> str:
        """What to add to an error about `classes` of one's own photos: how many there are."""
        if key != "classes" or self.dataset != "folder" or self.root is None:
            return ""
        root = Path(os.path.expandvars(self.root)).expanduser()
        folders = [p for p in root.glob("*") if p.is_dir() and not p.name.startswith(".")]
        return f"; {self.root} has {len(folders)} class folders"

    @property
    def images(self) -> Images:
        """Channels, side and classes of the images."""
        channels, side, classes = IMAGES[self.dataset]
        return Images(channels, side or self.resolution, classes or self.classes)


@dataclass(frozen=True)
class AutoencoderConfig(Checked):
    """How pixels become latents."""

    kind: Literal["pixels", "kl16", "dcae", "kmeans", "vq"]
    """Numbers: pixels, kl16, dcae. Codes, for the categorical head: kmeans (the nearest of learned patches of pixels),
    vq."""
    scale: Annotated[float, within("(0, 1000]")] = 1.0
    """Raw latents times this have about unit standard deviation; codes have none."""
    weights: Text | None = None
    """Path of the autoencoder's weights; `pixels` has none. That of `kmeans` lies in the benchmark's
    folder of latents: the encode stage fits and writes it."""
    codebook: Codes | None = None
    """kmeans and vq: number of codes."""
    patch: Side | None = None
    """kmeans: side of the patch of pixels that makes one token."""
    precision: Precision = "float32"
    """kl16, dcae and vq: of encoding and decoding; what is stored, and the rounding to 8 bits, are float32's. It is a
    matter of rounding: latents and models of one precision are those of another."""

    def check(self) -> None:
        if self.precision != "float32" and self.kind not in ("kl16", "dcae", "vq"):
            raise ConfigError(f"precision: {self.precision} has no effect for kind: {self.kind}, which rounds nothing")
        for name, applies in (
            ("weights", self.kind != "pixels"),
            ("codebook", self.kind in ("kmeans", "vq")),
            ("patch", self.kind == "kmeans"),
        ):
            if (getattr(self, name) is not None) != applies:
                verb = "is missing" if applies else "has no effect"
                raise ConfigError(f"{name} {verb} for kind: {self.kind}")
        if self.codebook is not None and self.scale != 1:
            raise ConfigError(f"scale = {self.scale} has no effect on the codes of kind: {self.kind}")

    @property
    def space(self) -> dict[str, Any]:
        """What defines raw and unit latents: all but the precision."""
        return {name: value for name, value in as_dict(self).items() if name != "precision"}

    def latents(self, images: Images) -> tuple[int, int] | None:
        """Channels and side of the latents of such images; None: they depend on the weights (vq).

        Raises:
            ConfigError: the images do not suit the autoencoder.
        """
        if self.kind == "vq":
            return None
        taken, stride, channels = {
            "pixels": (images.channels, 1, images.channels),
            "kmeans": (images.channels, self.patch, 1),
            "kl16": (3, 16, 16),
            "dcae": (3, 32, 32),
        }[self.kind]
        if images.channels != taken or images.side % stride:
            raise ConfigError(
                f"benchmark.autoencoder.kind: {self.kind} takes images of {taken} channels with sides that are "
                f"multiples of {stride}, but data.dataset and data.resolution give {images.channels} channels and "
                f"sides of {images.side}; set another"
            )
        return channels, images.side // stride


@dataclass(frozen=True)
class ClassifierTraining(Checked):
    """Training of the classifier of small images."""

    steps: Steps
    batch: Count
    lr: Rate
    seed: Seed


@dataclass(frozen=True)
class ExtractorConfig(Checked):
    """The feature extractor behind FID, IS, KID, precision and recall."""

    kind: Literal["cnn", "inception"]
    weights: Text | None = None
    """inception: torch-fidelity's weights file."""
    training: ClassifierTraining | None = None
    """cnn: how the classifier is trained."""

    def check(self) -> None:
        for name, kind in (("weights", "inception"), ("training", "cnn")):
            if (getattr(self, name) is not None) != (self.kind == kind):
                verb = "is missing" if self.kind == kind else "has no effect"
                raise ConfigError(f"{name} {verb} for kind: {self.kind}")


@dataclass(frozen=True)
class SnapshotsConfig(Checked):
    """How the snapshots of `train.snapshots`, and the final weights beside them, are scored."""

    budget: Name
    """The one NFE budget their images are generated at, a key of `sampling`."""
    images: Annotated[int, within("[2, 1000000]")]
    """Images of one training and sampling seed."""


@dataclass(frozen=True)
class EvalConfig(Checked):
    """How many images are generated and scored."""

    images: Annotated[int, within("[2, 1000000]")]
    """Images of one sampling seed."""
    seeds: Seeds
    """Sampling seeds."""
    chunk: Count = 250
    """Consecutive image indices that share their reveal counts; the last may be smaller."""
    kid_subset: Annotated[int, within("[2, 1000000]")] = 200
    """Images of each of KID's subsets."""
    clean_fid: bool = True
    """inception: a second FID, of features behind clean-fid's resizing, which takes a second pass over all images. The
    classifier of small images resizes nothing, and has none."""
    reference: Text | None = None
    """Stored statistics of the real images (an ADM-style .npz with mu and sigma); None: those of the training
    images."""
    snapshots: SnapshotsConfig | None = None
    """None: snapshots are not scored."""


@dataclass(frozen=True)
class CompareConfig(Checked):
    """What `emigm compare` holds the results against."""

    resolution: Literal[256, 512]
    """ImageNet's, in pixels: 256 for the paper's Table 2, 512 for Table 3."""
    fid_tolerance: Rate
    """Greatest |ours - reported| / reported of a cell that counts as reproduced, where the weights are trained here."""
    fid_tolerance_released: Rate
    """The same of the authors' weights, which differ in their samples alone."""


@dataclass(frozen=True)
class GateConfig(Checked):
    """The context gate: head error at few and at many visible tokens, and what must separate them."""

    visible: Annotated[tuple[Annotated[int, within("[0, 16777216]")], ...], distinct]
    """Numbers of visible tokens the error is recorded at; the first and the best are compared."""
    max_ratio: Rate = 0.95
    """A run fails when error(best) / error(first) is above this."""
    images: Count = 512
    """Held-out images the error is measured on, at most."""
    repeats: Annotated[int, within("[1, 10000]")] = 16
    """Random orders drawn for each of them."""
    on_failure: Literal["stop", "mark"] = "stop"
    """mark: let the pipeline go on with a run that fails; its record, and every table it reaches, say so."""


@dataclass(frozen=True)
class ReleasedConfig(Checked):
    """Where released checkpoints come from."""

    repository: Annotated[str, matching(r"[\w-][\w.-]*/[\w-][\w.-]*", "be <owner>/<name>")]
    """On Hugging Face; a file that is absent is fetched from there."""
    folder: Text
    """Where the files lie."""
    files: dict[Name, Annotated[Text, Rule(_is_inside, "be a path inside the repository")]]
    """Size -> file name."""
    sha256: dict[Name, Annotated[str, matching("[0-9a-f]{64}", "be 64 hexadecimal digits")]] = field(
        default_factory=dict
    )
    """Size -> checksum the file must have, where it is known."""
    token: Literal["official", "ema"] = "official"
    """Which value of the shared fake and mask token is taken (`emigm import --help`)."""


@dataclass(frozen=True)
class RunConfig(Checked):
    """How the machine is used. Nothing here changes a result beyond rounding and dropout's masks; no stage depends on
    it."""

    launcher: Annotated[Text, Rule(_splits, "be a command")] | None = None
    """Command that starts a stage's processes, such as "torchrun --standalone --nproc-per-node=8" or "srun python";
    it is followed by `-m emigm.stages...`. None: one process."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is a GPU."""
    compile: bool = False
    """Compile backbone and head by torch.compile, anew in every process. Of use on a GPU, and where there is a C++
    compiler; on a CPU it gains nothing. Records say how many graphs were compiled."""
    train_batch: Count | None = None
    """Images one process takes in one forward pass of training, at most; a larger share is accumulated. None: as many
    as share a masking time (train.mask_group)."""
    sample_batch: Count = 256
    """Images one process generates at once, at most a chunk."""
    encode_batch: Count = 64
    """Images one process encodes, or decodes, at once."""
    score_batch: Count = 64
    """Images one process extracts features of at once."""
    workers: Annotated[int, within("[1, 1024]")] = 8
    """Threads of one process that decode photos."""


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
