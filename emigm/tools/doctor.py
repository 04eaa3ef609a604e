"""`emigm doctor`: what a benchmark needs, what of it is here, and what running it will cost."""

from __future__ import annotations

import configparser
import importlib.metadata
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from emigm.config.benchmark import Benchmark, is_random
from emigm.config.compose import DEFAULT
from emigm.data.photos import class_names, expand
from emigm.flops import parameters as count_parameters
from emigm.io import sha256
from emigm.pools import cores
from emigm.records.record import REPORTED_VERSIONS
from emigm.tools.artefacts import PUBLISHED, fetched
from emigm.tools.estimates import (
    CPU_RATE,
    CPU_RATES,
    EMBEDDED,
    REFERENCE_GPU,
    Cost,
    Device,
    costs,
    cpu,
    gpu,
    images,
    latent_bytes,
    listed,
    sampling_bytes,
    training_bytes,
)

OK, MISSING, FETCH = "ok", "MISSING", "to fetch"
A_WEEK = 7 * 24 * 3600

WHERE_FROM = {
    "kl16": "kl16.ckpt is linked from README.md of the official code (github.com/ML-GSAI/eMIGM) and of MAR "
    "(github.com/LTH14/mar)",
    "dcae": "get the folder with config.json and model.safetensors from huggingface.co/mit-han-lab/dc-ae-f32c32-in-1.0",
    "inception": "get it from github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth (torch-fidelity has it as weights-inception-2015-12-05-6726825d.pth)",
    "reference": "get it from openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/"
    "{resolution}/{name}",
    "imagenet": "ILSVRC2012 from image-net.org, one folder for each of {classes} classes",
}


@dataclass(frozen=True)
class Check:
    """One thing that a benchmark needs."""

    what: str
    state: str
    """OK, MISSING, or FETCH (a stage gets it from the network)."""
    found: str
    remedy: str = ""
    """Where it belongs and how to get it; empty where nothing is to be done."""


def doctor(benchmark: Benchmark) -> int:
    """Print checks, costs and remedies; 0 where nothing is missing, else 1."""
    device = find_device(benchmark)
    parameters = {size: count_parameters(benchmark.model_config(size)) for size in benchmark.sizes}
    estimated = list(costs(benchmark, device, parameters))
    checks = [
        *check_data(benchmark),
        *check_weights(benchmark),
        *check_machine(benchmark, device, parameters, total(estimated)),
        check_disk(estimated),
        *check_software(benchmark),
    ]
    print(f"{benchmark.name}: {benchmark.title}, weights: {benchmark.weights}\n")
    print(tabulate([(c.what, c.state, c.found) for c in checks], ("needed", "state", "found"), "simple"))
    print(f"\n{cost_table(benchmark, device, estimated, parameters)}\n")
    open_points = [c for c in checks if c.remedy]
    for c in open_points:
        print(f"{c.state}: {c.what}: {c.remedy}.")
    missing = sum(c.state == MISSING for c in checks)
    then = how_to_run(benchmark.name)
    if any(f"emigm fetch {benchmark.name}" in c.remedy for c in open_points):
        then = f"emigm fetch {benchmark.name} && {then}"
    print(f"{missing} missing; then: {then}" if missing else f"nothing missing: {then}")
    return 1 if missing else 0


def how_to_run(name: str) -> str:
    """The command that runs a benchmark."""
    return "dvc repro" if name == DEFAULT else f"dvc repro benchmarks/{name}/dvc.yaml"


def check_data(benchmark: Benchmark) -> Iterator[Check]:
    """The images."""
    data = benchmark.data
    if data.dataset in EMBEDDED:
        yield Check("images", OK, f"{EMBEDDED[data.dataset][0]} brings them")
    elif data.dataset == "cifar10":
        here = any(Path(data.root).glob("*.parquet")) or (Path(data.root) / "cifar-10-batches-py").is_dir()
        remedy = f"the prepare stage downloads CIFAR-10 into {data.root} (170 MB), or put its parquet files there"
        yield Check("images", OK, data.root) if here else Check("images", FETCH, f"nothing in {data.root}", remedy)
    elif benchmark.weights == "released":
        yield Check("photos", OK, "none needed with released weights")
    else:
        yield check_photos(benchmark, "training photos", "data.root", data.root)
        if data.holdout_root is not None:
            yield check_photos(benchmark, "held-out photos", "data.holdout_root", data.holdout_root)


def check_photos(benchmark: Benchmark, what: str, key: str, root: str) -> Check:
    """A folder with one folder for each class."""
    folder, classes = expand(root), benchmark.data.classes
    where = f"photos, one folder for each of {classes} classes"
    if benchmark.data.dataset == "imagenet":
        where = WHERE_FROM["imagenet"].format(classes=classes)
    if is_random(root):
        remedy = f"`emigm fetch {benchmark.name}` makes random ones once {root} is away"
        remedy += f", or name others, -S benchmark.{key}=<folder>"
    else:
        remedy = f"put {where}, into {root}, or name the place with -S benchmark.{key}=<folder>"
    if not folder.is_dir():
        return Check(what, MISSING, f"no folder {root}", remedy)
    found = len(class_names(root))
    if found != classes:
        return Check(what, MISSING, f"{found} class folders in {root}, not {classes}", remedy)
    return Check(what, OK, f"{found} class folders in {root}")


def check_weights(benchmark: Benchmark) -> Iterator[Check]:
    """Files of others: autoencoder, feature extractor, reference statistics, released checkpoints."""
    autoencoder, extractor = benchmark.autoencoder, benchmark.extractor
    if autoencoder.weights is not None:
        path = Path(autoencoder.weights)
        found = [path] if path.is_file() else [p for pattern in ("*.ckpt", "*.safetensors") for p in path.glob(pattern)]
        where = WHERE_FROM.get(autoencoder.kind, f"weights of an autoencoder of kind: {autoencoder.kind}")
        yield foreign(benchmark, "autoencoder", path, where, found[0] if found else path)
    if extractor.weights is not None:
        path = Path(extractor.weights)
        yield foreign(benchmark, "Inception", path, WHERE_FROM["inception"], published=PUBLISHED["inception"])
    if benchmark.evaluation.reference is not None:
        path = Path(benchmark.evaluation.reference)
        where = WHERE_FROM["reference"].format(resolution=benchmark.data.resolution, name=path.name)
        yield foreign(benchmark, "reference statistics", path, where)
    if benchmark.weights == "released":
        released = benchmark.released
        where = f"huggingface.co/{released.repository} has it"
        for size in benchmark.sizes:
            path = Path(released.folder) / released.files[size]
            yield foreign(benchmark, f"checkpoint {size}", path, where, published=released.sha256.get(size))


def foreign(
    benchmark: Benchmark, what: str, path: Path, where: str, file: Path | None = None, published: str | None = None
) -> Check:
    """A file of others: whether it is there, and is the published one, or the one that `emigm fetch` got."""
    file = file or path
    if is_random(path):
        remedy = f"`emigm fetch {benchmark.name}` makes it"
        return Check(what, OK, f"{path}, random") if path.is_file() else Check(what, MISSING, f"no {path}", remedy)
    if not file.is_file():
        remedy = f"`emigm fetch {benchmark.name}` gets it, or put it at {path}; {where}"
        return Check(what, MISSING, f"no {path}", remedy)
    known = published or fetched().get(str(file), {}).get("sha256")
    if known is not None and sha256(file) != known:
        remedy = f"move it away, then `emigm fetch {benchmark.name}`; with another file, no number is the paper's"
        return Check(what, MISSING, f"{file} has another SHA-256 than {known[:8]}...", remedy)
    return Check(what, OK, str(file))


def find_device(benchmark: Benchmark) -> Device:
    """What the stages will compute on; its processes are those of `run.launcher`."""
    import torch  # seconds to import

    if benchmark.run.device == "cpu" or not torch.cuda.is_available():
        return cpu(cores(), CPU_RATES.get(benchmark.data.dataset, CPU_RATE))
    facts = torch.cuda.get_device_properties(0)
    return gpu(facts.name, processes(benchmark, torch.cuda.device_count()), facts.total_memory)


def processes(benchmark: Benchmark, gpus: int) -> int:
    """Processes that `run.launcher` starts, as far as it tells: with a launcher that does not, one for each GPU."""
    if benchmark.run.launcher is None:
        return 1
    told = re.search(r"(?:--nproc[-_]per[-_]node|--ntasks|-n)[= ](\d+)", benchmark.run.launcher)
    return int(told[1]) if told else max(gpus, 1)


def check_machine(benchmark: Benchmark, device: Device, parameters: dict[str, int], seconds: float) -> Iterator[Check]:
    """Processors, their memory, and the launcher."""
    run = benchmark.run
    if device.memory is None:
        yield check_no_gpu(benchmark, device, seconds)
    else:
        yield Check("GPU", OK, f"{device.name}, {gigabytes(device.memory)} each, {device.count} in use")
        for size in benchmark.sizes:
            yield check_memory(benchmark, size, device, parameters[size])
    if run.launcher is not None:
        command = shlex.split(run.launcher)[0]
        remedy = f"install {command}, or set run.launcher to another command, or to null for one process"
        here = shutil.which(command) is not None
        yield Check("launcher", OK, run.launcher) if here else Check("launcher", MISSING, f"no {command}", remedy)
    if device.memory is not None:
        import torch

        if device.count > torch.cuda.device_count():
            remedy = f"start at most {torch.cuda.device_count()} processes on this machine"
            yield Check("GPUs for the processes", MISSING, str(torch.cuda.device_count()), remedy)
        if any(benchmark.train_config(s).precision == "bf16" for s in benchmark.sizes):
            able = torch.cuda.is_bf16_supported(including_emulation=False)
            remedy = "this GPU has no bfloat16; set benchmark.train.precision=float16"
            yield Check("bfloat16", OK, "supported") if able else Check("bfloat16", MISSING, "not supported", remedy)


def check_no_gpu(benchmark: Benchmark, device: Device, seconds: float) -> Check:
    """A CPU is enough where it takes days at most."""
    if benchmark.run.device == "cuda":
        return Check("GPU", MISSING, "none", "run.device: cuda needs one; set -S benchmark.run.device=auto")
    if seconds > A_WEEK:
        remedy = f"the CPU would take {duration(seconds)}; run this on a machine with a GPU, or fewer benchmark.sizes"
        return Check("GPU", MISSING, f"none; {device.name}", remedy)
    return Check("GPU", OK, f"none needed; {device.name}")


def check_memory(benchmark: Benchmark, size: str, device: Device, parameters: int) -> Check:
    """Whether one process's share fits its GPU."""
    run, train = benchmark.run, benchmark.train_config(size)
    sampling = sampling_bytes(benchmark, size, parameters)
    needs, remedy = {"sampling": sampling}, "lower run.sample_batch or run.encode_batch"
    if benchmark.weights == "trained":
        share = min(-(-train.batch // device.count), train.mask_group)
        batch = min(run.train_batch or share, share)
        needs["training"] = training_bytes(benchmark.model_config(size), train, parameters, batch)
        if needs["training"] > sampling:
            remedy = f"lower run.train_batch (now {batch})"
    text = ", ".join(f"{what} {gigabytes(value)}" for what, value in needs.items())
    fits = max(needs.values()) < device.memory
    return Check(f"memory for {size}", OK if fits else MISSING, f"about {text}", "" if fits else remedy)


def check_disk(estimated: list[Cost]) -> Check:
    """Free space against what the stages leave, and DVC's cache of it."""
    needed = sum(c.disk for c in estimated) * (1 if cache_links() else 2)
    free = shutil.disk_usage(".").free
    text = f"{gigabytes(free)} free, about {gigabytes(needed)} needed" + (
        "" if cache_links() else " (DVC keeps a copy)"
    )
    if needed < free:
        return Check("disk", OK, text)
    remedy = "make room, or keep DVC's cache elsewhere (dvc cache dir <folder>) or without copies "
    return Check("disk", MISSING, text, remedy + "(dvc config cache.type hardlink)")


def cache_links() -> bool:
    """Whether DVC is told to link its cache rather than copy."""
    parser = configparser.ConfigParser()
    parser.read([".dvc/config", ".dvc/config.local"])
    return "link" in parser.get("cache", "type", fallback="").replace("reflink", "")


def check_software(benchmark: Benchmark) -> Iterator[Check]:
    """Python, and the packages that records name."""
    version = ".".join(map(str, sys.version_info[:3]))
    right = (3, 11) <= sys.version_info[:2] <= (3, 13)
    remedy = "" if right else "3.11 to 3.13 is needed; make reproduce PYTHON=python3.12"
    yield Check("Python", OK if right else MISSING, version, remedy)
    found, absent = [], []
    for name in REPORTED_VERSIONS:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            absent.append(name)
    yield Check("packages", OK, ", ".join(found))
    if absent:
        yield Check("packages", MISSING, f"no {', '.join(absent)}", "install the environment: make test, or README.md")


def cost_table(benchmark: Benchmark, device: Device, estimated: list[Cost], parameters: dict[str, int]) -> str:
    """Time and disk of every stage on this machine, and on a reference GPU where a CPU would take hours."""
    columns = [(f"{device.count} x {device.name}" if device.memory else device.name, device, estimated)]
    if device.memory is None and total(estimated) > 3600:
        reference = gpu(REFERENCE_GPU, 1, None)
        columns.append((f"1 x {REFERENCE_GPU}", reference, list(costs(benchmark, reference, parameters))))
    rows = [
        (cost.stage, *(duration(there[i].seconds) for _, _, there in columns), gigabytes(cost.disk))
        for i, cost in enumerate(estimated)
    ]
    rows.append(
        ("all", *(duration(total(there)) for _, _, there in columns), gigabytes(sum(c.disk for c in estimated)))
    )
    headers = ("stage", *(f"on {name}" for name, _, _ in columns), "disk")
    unknown = device.memory is not None and listed(device.name) is None
    assumed = "; ".join(f"{d.float32 / 1e12:.3g} in float32, {d.bf16 / 1e12:.3g} in bf16" for _, d, _ in columns)
    note = (
        "Estimates, not measurements: counted FLOPs over an assumed throughput of each unit "
        f"({assumed} TFLOP/s{f'; unknown GPU, taken for an {REFERENCE_GPU}' if unknown else ''}), start-up left out. "
        f"Disk: what stages leave, without DVC's cache. {images(benchmark)[0]:,} training images; a view's latents are "
        f"{latent_bytes(benchmark):,} bytes."
    )
    return f"{tabulate(rows, headers, 'simple', disable_numparse=True)}\n{note}"


def total(estimated: list[Cost]) -> float:
    """Seconds of all stages."""
    return sum(c.seconds for c in estimated)


def duration(seconds: float) -> str:
    """Such as "45 s", "12 min", "3.4 h" or "12 days"."""
    days, hours = seconds / 86400, seconds / 3600
    value, unit = (days, "days") if days >= 2 else (hours, "h") if hours >= 1 else (seconds / 60, "min")
    if seconds < 60:
        value, unit = seconds, "s"
    return f"{value:.1f} {unit}" if value < 10 and unit != "s" else f"{value:,.0f} {unit}"


def gigabytes(n: float) -> str:
    """Bytes in GB (1e9), or in MB below one."""
    return f"{n / 1e9:,.0f} GB" if n >= 1e10 else f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"
