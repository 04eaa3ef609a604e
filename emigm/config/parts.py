"""Configuration of all that surrounds the model: images, autoencoder, evaluation, the gate, the machine. No torch in
this module."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple

from emigm.config.errors import ConfigError
from emigm.config.parsing import Checked, Rule, as_dict, matching, within
from emigm.config.rules import Codes, Count, Name, Precision, Rate, Seed, Seeds, Side, Steps, Text, distinct


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
}


@dataclass(frozen=True)
class DataConfig(Checked):
    """Which images, and how they are split."""

    dataset: Literal["digits", "mnist", "cifar10", "imagenet"]
    root: Text | None = None
    """cifar10: folder with torchvision's or parquet files (downloaded there when absent); imagenet: the training
    photos, one folder for each class."""
    holdout_root: Text | None = None
    """imagenet: photos that are never trained on (the validation set), in the same layout."""
    classes: Count | None = None
    """imagenet: number of class folders there must be."""
    resolution: Annotated[int, within("[8, 4096]")] | None = None
    """Side in pixels of the square crop; of mnist at most 28."""
    holdout: Annotated[float, within("(0, 1)")] | None = None
    """digits and mnist: fraction of each class that is never trained on (cifar10: its test images are held out)."""
    split_seed: Seed = 0
    """digits and mnist: of the choice of held-out images."""
    flips: bool = False
    """Encode every training image with its horizontal flip, and train on either with equal chance."""

    def check(self) -> None:
        applies = {
            "digits": {"holdout"},
            "mnist": {"holdout", "resolution"},
            "cifar10": {"root"},
            "imagenet": {"root", "holdout_root", "classes", "resolution"},
        }[self.dataset]
        for name in ("root", "holdout_root", "classes", "resolution", "holdout"):
            if (getattr(self, name) is not None) != (name in applies):
                verb = "is missing" if name in applies else "has no effect"
                raise ConfigError(f"{name} {verb} for dataset: {self.dataset}")
        if self.dataset == "mnist" and self.resolution > 28:
            raise ConfigError(f"resolution = {self.resolution} is more than the 28 pixels of dataset: mnist; lower it")

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
