"""`emigm doctor`: what a benchmark needs, what of it is here, and what running it will cost."""

from __future__ import annotations

import configparser
import math
import shlex
import shutil
from collections.abc import Iterator
from typing import NamedTuple

from tabulate import tabulate

from emigm.config.benchmark import Benchmark, is_random
from emigm.config.compose import DEFAULT
from emigm.config.errors import ConfigError
from emigm.config.paths import expand
from emigm.data.photos import class_names
from emigm.io import sha256
from emigm.pools import cores
from emigm.tools import estimates
from emigm.tools.artefacts import ReleasedFile, released_files
from emigm.tools.estimates import Cost, Device

OK, MISSING, FETCH = "ok", "MISSING", "to fetch"
A_WEEK = 7 * 24 * 3600


class Check(NamedTuple):
    """One thing that a benchmark needs: whether it is right, what is here, and how it is mended."""

    what: str
    right: bool
    status: str
    remedy: str = ""
    otherwise: str = MISSING
    """The state where it is not right; FETCH: a stage gets it from the network."""

    @property
    def state(self) -> str:
        return OK if self.right else self.otherwise


def doctor(benchmark: Benchmark, gpus: int | None = None) -> int:
    """Print checks, costs and remedies; 0 where nothing is missing, else 1. With `gpus`: how these share the work."""
    if gpus is not None:
        print(shares(benchmark, gpus))
        return 0
    device = find_device(benchmark)
    costs = list(estimates.costs(benchmark, device))
    checks = [
        *check_data(benchmark),
        *check_files(benchmark),
        *check_launcher(benchmark),
        check_device(benchmark, device, estimates.total(costs).seconds),
        check_disk(costs),
    ]
    wrong = [c for c in checks if not c.right]
    print(f"{benchmark.name}: {benchmark.title}, weights: {benchmark.weights}\n")
    print(tabulate([(c.what, c.state, c.status) for c in checks], ("needed", "state", "found"), "simple"))
    print(f"\n{cost_table(benchmark, device, costs)}\n")
    for c in wrong:
        print(f"{c.state}: {c.what}: {c.remedy}.")
    missing, then = sum(c.state == MISSING for c in wrong), how_to_run(benchmark.name)
    if any(f"emigm fetch {benchmark.name}" in c.remedy for c in wrong):
        then = f"emigm fetch {benchmark.name} && {then}"
    print(f"{missing} missing; then: {then}" if missing else f"nothing missing: {then}")
    return 1 if missing else 0


def how_to_run(name: str) -> str:
    """The command that runs a benchmark."""
    return "dvc repro" if name == DEFAULT else f"dvc repro benchmarks/{name}/dvc.yaml"


def check_data(benchmark: Benchmark) -> list[Check]:
    """The images."""
    data = benchmark.data
    if data.dataset in estimates.EMBEDDED:
        return [Check("images", True, f"{estimates.EMBEDDED[data.dataset][0]} brings them")]
    if data.dataset == "cifar10":
        root = expand(data.root)
        here = any(root.glob("*.parquet")) or (root / "cifar-10-batches-py").is_dir()
        remedy = f"the prepare stage downloads CIFAR-10 into {data.root} (170 MB), or put its parquet files there"
        return [Check("images", here, data.root if here else f"nothing in {data.root}", remedy, FETCH)]
    if benchmark.weights == "released":
        return [Check("photos", True, "none needed with released weights")]
    folders = {"root": ("training photos", data.root), "holdout_root": ("held-out photos", data.holdout_root)}
    return [check_photos(benchmark, what, key, root) for key, (what, root) in folders.items() if root is not None]


def check_photos(benchmark: Benchmark, what: str, key: str, root: str) -> Check:
    """A folder with one folder for each class."""
    classes = benchmark.data.classes
    photos = "ILSVRC2012 from image-net.org" if benchmark.data.dataset == "imagenet" else "photos"
    remedy = f"put {photos}, one folder for each of {classes} classes, into {root}"
    if is_random(root):
        remedy = f"`emigm fetch {benchmark.name}` makes random ones once {root} is away"
    remedy += f", or name others with -S benchmark.data.{key}=<folder>"
    if not expand(root).is_dir():
        return Check(what, False, f"no folder {root}", remedy)
    number = len(class_names(root))
    status = f"{number} class folders in {root}" + ("" if number == classes else f", not {classes}")
    return Check(what, number == classes, status, remedy)


def check_files(benchmark: Benchmark) -> list[Check]:
    """Files of others: autoencoder, feature extractor, reference statistics, released checkpoints."""
    return [check_file(benchmark.name, file) for file in released_files(benchmark)]


def check_file(name: str, file: ReleasedFile) -> Check:
    """Whether a file of others is there, and is the published one, or the one that `emigm fetch` got."""
    path, here, known = file.path, file.path.is_file(), file.checksum
    status, remedy = f"{path}" if here else f"no {path}", f"put it at {path}"
    if is_random(path):
        return Check(file.what, here, f"{status}, random", f"`emigm fetch {name}` makes it")
    if here and known is not None and sha256(path) != known:
        status = f"{path} has another SHA-256 than {known[:8]}..."
        remedy = f"move it away, then `emigm fetch {name}`; with another file, no number is the paper's"
        return Check(file.what, False, status, remedy)
    if file.mirrors:
        remedy = f"`emigm fetch {name}` gets it, or {remedy}; it lies at {' and '.join(map(str, file.mirrors))}"
    return Check(file.what, here, status, remedy)


def find_device(benchmark: Benchmark) -> Device:
    """What the stages will compute on: with a launcher all GPUs of this machine, else one."""
    import torch  # seconds to import

    if benchmark.run.device == "cpu" or not torch.cuda.is_available():
        return estimates.cpu(cores(), benchmark.data.dataset)
    facts = torch.cuda.get_device_properties(0)
    number = 1 if benchmark.run.launcher is None else torch.cuda.device_count()
    return estimates.gpu(facts.name, number, facts.total_memory)


def check_launcher(benchmark: Benchmark) -> Iterator[Check]:
    """The command that starts a stage's processes, where there is one."""
    if (launcher := benchmark.run.launcher) is not None:
        command = shlex.split(launcher)[0]
        here = shutil.which(command) is not None
        remedy = f"install {command}, or set run.launcher to another command, or to null for one process"
        yield Check("launcher", here, launcher if here else f"no {command}", remedy)


def check_device(benchmark: Benchmark, device: Device, seconds: float) -> Check:
    """A GPU; a CPU is enough where it takes days at most."""
    if device.memory is not None:
        return Check("GPU", True, f"{device.count} x {device.name}, {gigabytes(device.memory)} each")
    if benchmark.run.device == "cuda":
        return Check("GPU", False, "none", "run.device: cuda needs one; set -S benchmark.run.device=auto")
    enough = seconds <= A_WEEK
    remedy = f"the CPU would take {duration(seconds)}; run this on a machine with a GPU, or fewer benchmark.sizes"
    return Check("GPU", enough, f"none{' needed' if enough else ''}; {device.name}", remedy)


def check_disk(costs: list[Cost]) -> Check:
    """Free space against what the stages leave, and DVC's cache of it."""
    config = configparser.ConfigParser()
    config.read([".dvc/config", ".dvc/config.local"])
    linked = "link" in config.get("cache", "type", fallback="").replace("reflink", "")
    needed, free = estimates.total(costs).disk * (1 if linked else 2), shutil.disk_usage(".").free
    text = f"{gigabytes(free)} free, about {gigabytes(needed)} needed" + ("" if linked else " (DVC keeps a copy)")
    remedy = "make room, or keep DVC's cache elsewhere (dvc cache dir <folder>) or without copies "
    return Check("disk", needed < free, text, remedy + "(dvc config cache.type hardlink)")


def cost_table(benchmark: Benchmark, device: Device, costs: list[Cost]) -> str:
    """Time and disk of every stage on this machine, and on a reference GPU where a CPU would take hours."""
    columns = {f"{device.count} x {device.name}" if device.memory else device.name: (device, costs)}
    if device.memory is None and estimates.total(costs).seconds > 3600:
        reference = estimates.gpu(estimates.REFERENCE_GPU, 1, None)
        columns[f"1 x {reference.name}"] = reference, list(estimates.costs(benchmark, reference))
    rows = [
        (row[0].stage, *(duration(cost.seconds) for cost in row), gigabytes(row[0].disk))
        for row in zip(*([*column, estimates.total(column)] for _, column in columns.values()), strict=True)
    ]
    headers = ("stage", *(f"on {name}" for name in columns), "disk")
    rates = "; ".join(
        f"{name}: {d.float32 / 1e12:.3g} in float32, {d.bf16 / 1e12:.3g} in bf16{d.note}"
        for name, (d, _) in columns.items()
    )
    return (
        f"{tabulate(rows, headers, 'simple', disable_numparse=True)}\n"
        f"Estimates, not measurements: counted FLOPs over an assumed throughput of each unit (TFLOP/s; {rates}), "
        f"start-up left out. Disk: what stages leave, without DVC's cache. {estimates.images(benchmark)[0]:,} training "
        f"images; a view's latents are {estimates.latent_bytes(benchmark):,} bytes."
    )


def shares(benchmark: Benchmark, gpus: int) -> str:
    """How that many GPUs share training's batches, and the time they take; raises ConfigError where they cannot."""
    from emigm.train import micro_batches  # torch takes seconds

    train = {size: benchmark.train_config(size) for size in benchmark.sizes}
    batches = sorted({cfg.batch for cfg in train.values()})
    if gpus < 1 or math.gcd(*batches) % gpus:
        able = [n for n in range(1, batches[0] + 1) if math.gcd(*batches) % n == 0]
        near = [*[n for n in able if n < gpus][-1:], *[n for n in able if n > gpus][:1]]
        text = f"--gpus {gpus}: no equal shares of train.batch = {', '.join(map(str, batches))}"
        raise ConfigError(f"{text}; take {' or '.join(map(str, near))}")
    device = find_device(benchmark)
    device = (device if device.memory else estimates.gpu(estimates.REFERENCE_GPU, 1, None))._replace(count=gpus)
    seconds = {c.stage: c.seconds for c in estimates.costs(benchmark, device)}
    rows = []
    for size, cfg in train.items():
        share = cfg.batch // gpus
        parts = (slice(start, start + share) for start in range(0, cfg.batch, share))
        passes = max(len(micro_batches(part, cfg.mask_group, benchmark.run.train_batch)) for part in parts)
        sampling = sum(seconds[f"sample {size} N={budget}"] for budget in benchmark.budgets)
        training = duration(seconds[f"train {size}"]) if benchmark.weights == "trained" else "none"
        rows.append((size, cfg.batch, share, passes, training, duration(sampling)))
    headers = ("size", "train.batch", "images a GPU and step", "forward passes", "training", "sampling")
    return (
        f"{benchmark.name}, weights: {benchmark.weights}; estimated time on one {device.name} / {gpus}\n\n"
        f"{tabulate(rows, headers, 'simple')}\n\n"
        "Not divided, and not counted: start-up, the exchange of gradients, what one process writes, and scores of "
        "gathered features.\nSampling is shared by whole chunks of images."
    )


def duration(seconds: float) -> str:
    """Such as "45 s", "12 min", "3.4 h" or "12 days"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    days, hours = seconds / 86400, seconds / 3600
    value, unit = (days, "days") if days >= 2 else (hours, "h") if hours >= 1 else (seconds / 60, "min")
    return f"{value:.1f} {unit}" if value < 10 else f"{value:,.0f} {unit}"


def gigabytes(n: float) -> str:
    """Bytes in GB (1e9), or in MB below one."""
    return f"{n / 1e9:,.0f} GB" if n >= 1e10 else f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"
