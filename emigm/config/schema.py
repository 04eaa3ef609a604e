"""Configuration of data, model, training, sampling and scoring: frozen dataclasses, validated by pydantic.

Every key of the YAML is a field here. An unknown key, a value out of bounds, or an option that cannot apply is a
`ConfigError` that names the key and what is allowed. No torch in this module.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection
from dataclasses import field
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, StrictBool

from emigm.config.errors import ConfigError, check
from emigm.config.parsing import as_dict, config, matching, rule
from emigm.config.paths import expand

Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
String = Annotated[str, Field(strict=True)]

Name = Annotated[
    String, matching("[A-Za-z0-9][A-Za-z0-9_-]{0,63}", "be letters, digits, _ and -, and begin with a letter or digit")
]
"""Of a benchmark, a model or a sampling configuration: part of paths, of shell commands and of DVC's keys."""
Text = Annotated[String, rule(lambda v: v.isprintable() and 0 < len(v.strip()) <= 1000, "be one line of text")]
"""A title, a path."""
Count = Annotated[Whole, Field(ge=1, le=1_000_000)]
Plural = Annotated[Whole, Field(ge=2, le=1_000_000)]
Steps = Annotated[Whole, Field(ge=1, le=1_000_000_000)]
Width = Annotated[Whole, Field(ge=1, le=65_536)]
Thousand = Annotated[Whole, Field(ge=1, le=1000)]
Side = Annotated[Whole, Field(ge=1, le=4096)]
Rate = Annotated[Number, Field(gt=0, le=1)]
Share = Annotated[Number, Field(gt=0, lt=1)]
Momentum = Annotated[Number, Field(ge=0, lt=1)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Factor = Annotated[Number, Field(gt=0, le=1000)]
Seed = Annotated[Whole, Field(ge=0, lt=2**32)]
distinct = rule(lambda v: 0 < len(v) == len(set(v)), "name at least one, and none twice")
Seeds = Annotated[tuple[Seed, ...], distinct]
Schedule = Literal["linear", "cosine", "exp", "log-exp"]
Precision = Literal["float32", "tf32", "float16", "bf16"]
"""Of matrix products and convolutions: float32; TensorFloat-32 on a GPU (float32 on a CPU); float16 or bfloat16 under
autocast, which leaves weights, norms and sums float32."""


def _require(cfg: Any, by: str, *, optional: bool = False, **fields: Collection[str]) -> None:
    """Refuse a field that is set where `cfg.<by>` is none of its values, or (but where `optional`) None elsewhere."""
    choice = getattr(cfg, by)
    for name, choices in fields.items():
        is_set, applies = getattr(cfg, name) is not None, choice in choices
        check(applies or not is_set, f"{name} has no effect for {by}: {choice}; remove it or set it to null")
        check(is_set or not applies or optional, f"{name} is missing for {by}: {choice}")


class Images(NamedTuple):
    """What is known of a data set before it is read; None: the configuration says it."""

    channels: int
    side: int | None
    classes: int | None


IMAGES = {"digits": Images(1, 8, 10), "mnist": Images(1, None, 10), "cifar10": Images(3, 32, 10)}
PHOTOS = Images(3, None, None)


@config
class DataConfig:
    """Which images, and how they are split."""

    dataset: Literal["digits", "mnist", "cifar10", "imagenet", "folder"]
    """folder: one's own photos, decoded once into memory; imagenet: photos of any number, read when asked for."""
    root: Text | None = None
    """cifar10: torchvision's or parquet files (downloaded where absent); imagenet, folder: a folder for each class."""
    holdout_root: Text | None = None
    """imagenet, and folder without `holdout`: photos that are never trained on, in the same layout."""
    classes: Count | None = None  #: imagenet and folder: number of class folders there must be
    resolution: Annotated[Whole, Field(ge=8, le=4096)] | None = None
    """Pixels of a side: of the crop; mnist: at most 28; cifar10: 16 or 8, of the means of squares (null: all 32)."""
    per_class: Count | None = None  #: cifar10: the first images of each class alone, so many of each part (null: all)
    holdout: Share | None = None  #: digits, mnist, folder without `holdout_root`: share of a class never trained on
    split_seed: Seed = 0  #: Of the choice of that share
    flips: StrictBool = False  #: Train on an image or its horizontal flip with equal chance

    def __post_init__(self):
        photos, split = {"imagenet", "folder"}, {"digits", "mnist"}
        held_out = {"imagenet"}
        if self.dataset == "folder":
            (split if self.holdout_root is None else held_out).add("folder")
            if self.classes is None and self.root is not None:
                folders = [p for p in expand(self.root).glob("[!.]*") if p.is_dir()]
                has = f"{self.root} has {len(folders)} class folders"
                raise ConfigError(f"classes is missing for dataset: folder; {has}")
        _require(self, "dataset", root={"cifar10", *photos}, holdout_root=held_out, classes=photos)
        _require(self, "dataset", holdout=split)
        _require(self, "dataset", optional=self.dataset == "cifar10", resolution={"mnist", "cifar10", *photos})
        _require(self, "dataset", optional=True, per_class={"cifar10"})
        has = f"resolution = {self.resolution}: dataset: cifar10 has 16, 8 or null, which is 32; set one of these"
        check(self.dataset != "cifar10" or self.resolution in (None, 8, 16), has)
        fits = self.dataset != "mnist" or self.resolution <= 28
        check(fits, f"resolution = {self.resolution} is more than the 28 pixels of dataset: mnist; lower it")

    @property
    def images(self) -> Images:
        """Channels, side and classes of the images."""
        channels, side, classes = IMAGES.get(self.dataset, PHOTOS)
        return Images(channels, self.resolution or side, classes or self.classes)


@config
class AutoencoderConfig:
    """How pixels become latents."""

    kind: Literal["pixels", "kl16", "dcae", "kmeans"]
    """Numbers: pixels, kl16, dcae. Codes, for the categorical head: kmeans (the nearest learned patch)."""
    scale: Factor = 1.0  #: Raw latents times this have about unit standard deviation; codes have none
    weights: Text | None = None  #: Those of kmeans are fitted by the encode stage, into the folder of latents
    codebook: Plural | None = None  #: kmeans: number of codes
    patch: Side | None = None  #: kmeans: side of the patch of pixels that makes one token
    precision: Precision = "float32"  #: kl16 and dcae: of encoding and decoding; what is stored stays float32

    def __post_init__(self):
        rounds = self.precision == "float32" or self.kind in ("kl16", "dcae")
        check(rounds, f"precision: {self.precision} has no effect for kind: {self.kind}, which rounds nothing")
        _require(self, "kind", weights={"kl16", "dcae", "kmeans"}, codebook={"kmeans"}, patch={"kmeans"})
        scaled = self.codebook is None or self.scale == 1
        check(scaled, f"scale = {self.scale} has no effect on the codes of kind: {self.kind}")

    @property
    def space(self) -> dict[str, Any]:
        """What defines raw and unit latents: all but the precision."""
        return {name: value for name, value in as_dict(self).items() if name != "precision"}

    def latents(self, images: Images) -> tuple[int, int]:
        """Channels and side of the latents of such images; raises ConfigError for images that do not suit it."""
        own, rgb = images.channels, 3
        kinds = {"pixels": (own, 1, own), "kmeans": (own, self.patch, 1), "kl16": (rgb, 16, 16), "dcae": (rgb, 32, 32)}
        taken, stride, channels = kinds[self.kind]
        takes = f"takes images of {taken} channels with sides that are multiples of {stride}"
        given = f"data.dataset and data.resolution give {images.channels} channels and sides of {images.side}"
        suits = images.channels == taken and images.side % stride == 0
        check(suits, f"benchmark.autoencoder.kind: {self.kind} {takes}, but {given}; set another")
        return channels, images.side // stride


@config
class ClassifierTraining:
    """Training of the classifiers of small images."""

    steps: Steps
    batch: Count
    lr: Rate
    seeds: Seeds  #: One classifier each; the first is the extractor of every metric, the others measure FID alone


@config
class ExtractorConfig:
    """The feature extractor behind FID, sFID, IS, KID, precision and recall."""

    kind: Literal["cnn", "inception"]
    weights: Text | None = None  #: inception: torch-fidelity's weights file
    training: ClassifierTraining | None = None  #: cnn: how the classifier is trained

    def __post_init__(self):
        _require(self, "kind", weights={"inception"}, training={"cnn"})


@config
class SnapshotsConfig:
    """How the snapshots of `train.snapshots`, and the final weights beside them, are scored."""

    budget: Name  #: The one NFE budget their images are generated at, a key of `sampling`
    images: Plural  #: Images of one training and sampling seed


@config
class EvalConfig:
    """How many images are generated and scored."""

    images: Plural  #: Images of one sampling seed
    seeds: Seeds  #: Sampling seeds
    chunk: Count = 250  #: Consecutive image indices that share their reveal counts; the last may be smaller
    cas_steps: Steps | None = None
    """cnn: training steps of the classifier behind the classification accuracy score; None: it is not computed."""
    clean_fid: StrictBool = True
    """inception: a second FID, of features behind clean-fid's resizing, which takes a second pass over all images."""
    reference: Text | None = None
    """Statistics of the real images (an ADM-style .npz with mu and sigma); None: those of the training images."""
    snapshots: SnapshotsConfig | None = None  #: None: snapshots are not scored


@config
class CompareConfig:
    """What `emigm compare` holds the results against."""

    resolution: Literal[256, 512]  #: ImageNet's, in pixels: 256 for the paper's Table 2, 512 for Table 3
    fid_tolerance: Rate  #: Greatest |ours - reported| / reported that counts as reproduced, of weights trained here
    fid_tolerance_released: Rate  #: The same of the authors' weights, which differ in their samples alone


@config
class GateConfig:
    """The context gate: head error at few and at many visible tokens, and what must separate them."""

    visible: Annotated[tuple[Annotated[Whole, Field(ge=0, le=16_777_216)], ...], distinct]
    """Numbers of visible tokens the error is recorded at; the first and the best are compared."""
    max_ratio: Rate = 0.95  #: A run fails when error(best) / error(first) is above this
    images: Count = 512  #: Held-out images the error is measured on, at most
    repeats: Thousand = 16  #: Random orders drawn for each of them
    on_failure: Literal["stop", "mark"] = "stop"  #: mark: go on with a run that fails; its record and tables say so


Checksum = Annotated[String, matching("[0-9a-f]{64}", "be 64 hexadecimal digits")]


@config
class ReleasedConfig:
    """Where released checkpoints come from."""

    repository: Annotated[String, matching(r"[\w-][\w.-]*/[\w-][\w.-]*", "be <owner>/<name>")]  #: On Hugging Face
    folder: Text  #: Where the files lie
    files: dict[Name, Annotated[Text, matching(r"(?!/)(?!.*\.\.)[^\\]+", "be a path inside the repository")]]
    sha256: dict[Name, Checksum] = field(default_factory=dict)  #: By model, where it is known
    token: Literal["official", "ema"] = "official"  #: Value of the shared fake and mask token (`emigm import --help`)


@config
class RunConfig:
    """How the machine is used. Nothing here changes a result beyond rounding and dropout's masks."""

    launcher: Annotated[Text, rule(shlex.split, "be a command")] | None = None
    """What starts a stage's processes, such as "torchrun --standalone --nproc-per-node=8". None: one process."""
    device: Literal["auto", "cpu", "cuda"] = "auto"  #: auto: CUDA where there is a GPU
    compile: StrictBool = False  #: Backbone and head by torch.compile, anew in every process; on a CPU it gains nothing
    train_batch: Count | None = None  #: Images of a forward pass of training in one process. None: train.mask_group
    sample_batch: Count = 256  #: Images one process generates at once, at most a chunk
    encode_batch: Count = 64  #: Images one process encodes, or decodes, at once
    score_batch: Count = 64  #: Images one process extracts features of at once
    workers: Thousand = 8  #: Threads of one process that decode photos


@config
class ModelConfig:
    """Architecture of one eMIGM: backbone (encoder and decoder) and per-token diffusion head."""

    grid: Side  #: Side of the square latent grid, in positions
    channels: Side  #: Latent channels at each position
    classes: Count  #: Number of classes
    width: Width  #: D, transformer width
    encoder_blocks: Thousand
    decoder_blocks: Thousand
    heads: Width  #: Attention heads; divides `width`
    head_width: Width  #: W, width of the head
    head_blocks: Thousand  #: Residual blocks of the head
    conditional: Literal["diffusion", "categorical"] = "diffusion"
    """p(token | visible tokens) (Table 1): a diffusion model of C numbers, or a categorical one of a codebook."""
    codebook: Plural | None = None  #: categorical: number of codes a token can be
    patch: Side = 1  #: Side of the square of positions that makes one token
    buffer: Side = 64  #: Positions in front of the tokens that hold the class embedding
    mlp_ratio: Annotated[Number, Field(gt=0, le=64)] = 4.0
    dropout: Momentum = 0.1  #: Dropout on attention and on both projections, in training only
    mae: StrictBool = True  #: MAE trick: the encoder sees visible tokens only
    cfg_with_mask: StrictBool = True  #: The null class embedding of guidance is the decoder's mask token
    init_std: Factor = 0.02  #: Standard deviation of embeddings, positions and null class embedding at initialisation
    positions: Literal["normal", "sines"] = "normal"
    """Initial values of learned positions: normal, or sines and cosines of both coordinates, equally large."""

    def __post_init__(self):
        _require(self, "conditional", codebook={"categorical"})
        one_code = self.conditional == "diffusion" or self.patch == self.channels == 1
        given = f"patch = {self.patch}, channels = {self.channels}"
        check(one_code, f"{given}, but a token of conditional: categorical is one code; set both to 1")
        check(self.grid % self.patch == 0, f"patch = {self.patch} does not divide grid = {self.grid}")
        check(self.tokens > 1, f"patch = {self.patch} leaves one token of grid = {self.grid}; give at least two")
        check(self.width % self.heads == 0, f"heads = {self.heads} does not divide width = {self.width}")
        check(self.width * self.mlp_ratio >= 1, f"mlp_ratio = {self.mlp_ratio} leaves nothing of width = {self.width}")

    @property
    def tokens(self) -> int:
        """L, tokens of an image."""
        return (self.grid // self.patch) ** 2

    @property
    def token_channels(self) -> int:
        """C, channels of a token."""
        return self.channels * self.patch**2


@config
class TrainConfig:
    """One training run (the paper's recipe is the default where it does not depend on scale)."""

    steps: Steps
    batch: Count  #: Images of one optimizer step, over all processes
    lr: Rate  #: Peak learning rate of AdamW, for the global batch
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: Muon on the matrices of all blocks, of `decoder_embed` and `cond_embed`; AdamW on the rest."""
    muon_lr: Rate | None = None  #: muon: peak learning rate of Muon, for the global batch
    seeds: Seeds = (0,)  #: Training seeds; one run each
    masking: Literal["independent", "exact_count", "truncated_normal"] = "independent"
    """Masked tokens at t (Table 1): each with probability gamma(t), or ceil(L gamma(t)) of them; or, without a time, as
    MAR's code does, a share from a normal distribution (mean 1, deviation 0.25) truncated to [0.7, 1]."""
    mask_group: Count = 64
    """Images that share one masking time and mask count, as those of one GPU do in the official code; at most a batch.
    The loss is averaged over a group first, also where every image has its own time (`mask_times`)."""
    mask_times: Literal["auto", "group", "image"] = "auto"
    """What has a masking time and mask count of its own; auto: a group with the MAE trick, an image without."""
    schedule: Schedule | None = None  #: Mask schedule gamma(t) (Table 4), by default exp
    t_min: Annotated[Number, Field(ge=0, lt=1)] | None = None  #: Time truncation: t <- max(t, t_min), by default 0.2
    weight: Literal["one", "elbo"] = "one"  #: Loss weight: 1, or that of the ELBO, gamma'/gamma
    lr_schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: Annotated[Whole, Field(ge=0, le=1_000_000_000)] = 0
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
    weight_decay: Fraction = 0.02
    grad_clip: Annotated[Number, Field(gt=0, le=1_000_000_000_000)] = 3.0
    ema: Momentum = 0.9999
    ema_warmup: StrictBool = False
    """Decay min(ema, (1 + s) / (10 + s)) after s steps: the average of a short run forgets its initial weights."""
    label_dropout: Fraction = 0.1
    diffusion_batch_mul: Thousand = 4  #: Diffusion times, each with its noise, of a masked token in one step
    checkpoint_every: Steps = 1000  #: Steps between resume points
    snapshots: tuple[Share, ...] = ()  #: Shares of the steps after which the EMA weights are kept beside the final ones
    precision: Precision = "float32"
    """Of forward and backward; weights, EMA and optimizer stay float32. Under float16 the loss is scaled, and a step
    whose gradients overflow is skipped and counted."""

    def __post_init__(self):
        whole = self.batch % min(self.mask_group, self.batch) == 0
        check(whole, f"batch = {self.batch} is not a multiple of mask_group = {self.mask_group}; change either")
        timed = {"independent", "exact_count"}
        if self.masking in timed:
            object.__setattr__(self, "schedule", self.schedule or "exp")
            object.__setattr__(self, "t_min", 0.2 if self.t_min is None else self.t_min)
        can_weigh = self.masking in timed or self.weight == "one"
        check(can_weigh, "weight: elbo needs a masking time, which masking: truncated_normal has not")
        _require(self, "masking", schedule=timed, t_min=timed)
        _require(self, "optimizer", muon_lr={"muon"})
        left = self.warmup_steps < self.steps
        check(left, f"warmup_steps = {self.warmup_steps} leaves nothing of steps = {self.steps}")
        kept = set(self.snapshot_steps)
        wanted = f"shares of the {self.steps:,} steps, above 0 and below 1, that come to different numbers of steps"
        differ = len(kept) == len(self.snapshots) and not kept & {0, self.steps}
        check(differ, f"snapshots = {list(self.snapshots)}: give {wanted}")

    @property
    def snapshot_steps(self) -> tuple[int, ...]:
        """Numbers of steps after which the EMA weights are kept."""
        return tuple(round(share * self.steps) for share in self.snapshots)

    def shares_times(self, model: ModelConfig) -> bool:
        """Whether the images of a group share one masking time and mask count."""
        return self.mask_times == "group" or (self.mask_times == "auto" and model.mae)


@config
class SampleConfig:
    """One sampling configuration: how images are generated."""

    steps: Count  #: N, mask-prediction steps
    solver_steps: Thousand | None = None  #: K, evaluations of the diffusion head for one token
    cfg_scale: Annotated[Number, Field(ge=0, le=100)] = 1.0  #: Guidance scale; 1 means none
    cfg_interval: tuple[Fraction, Fraction] = (0.0, 1.0)  #: Guidance acts when t_min < s <= t_max
    cfg_schedule: Literal["constant", "linear", "power", "cubic", "exp", "cosine"] = "constant"
    """How the scale of a guided step grows from 1 to `cfg_scale` with the share of tokens revealed, those of the step
    included. The paper takes linear up to its section 5.2, constant from 5.3 on."""
    schedule: Schedule = "exp"
    order: Literal["binomial", "exact", "confidence"] = "binomial"
    """Which tokens a step reveals: each with its probability (eMIGM, MDM), an exact number at random positions (MAR),
    or an exact number where the model is most confident (MaskGIT)."""
    choice_temperature: Annotated[Number, Field(ge=0, le=1000)] | None = None
    """confidence: factor on the Gumbel noise of log p, falling to 0 over the steps."""
    solver: Literal["dpm-solver", "ddpm", "categorical"] = "dpm-solver"
    """How a token is drawn: from the diffusion head by one of two solvers, or from the categorical head."""
    temperature: Annotated[Number, Field(ge=0, le=10)] | None = None  #: ddpm: factor on the noise (default 1)
    x0_clip: Factor | None = None  #: ddpm: clip of the predicted x0 in unit latents; the official code does not clip
    precision: Precision = "float32"  #: Of the network; the solver and guidance stay float32. The paper's: float16.

    def __post_init__(self):
        _require(self, "solver", solver_steps={"dpm-solver", "ddpm"})
        _require(self, "order", choice_temperature={"confidence"})
        _require(self, "solver", optional=True, temperature={"ddpm"}, x0_clip={"ddpm"})
        has_log_p = self.order != "confidence" or self.solver == "categorical"
        check(has_log_p, "order: confidence needs solver: categorical; a diffusion head has no log p")
        low, high = self.cfg_interval
        check(low < high, f"cfg_interval = [{low}, {high}] is empty; give the lower bound first")
        enough = self.solver != "dpm-solver" or self.solver_steps >= 3
        check(enough, f"solver_steps = {self.solver_steps} is too few for solver: dpm-solver; give at least 3")
