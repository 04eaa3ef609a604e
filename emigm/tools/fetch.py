"""The files that others released: where they lie, where they go, the checksums they are known by; and `emigm fetch`,
which gets those that a benchmark needs from the first mirror that has them, or makes random ones. No torch.

A checksum is *published* where its author or the host gives one, and *recorded* where `emigm fetch` saw the file first.
A file appears under its name when it is whole and its checksum is right; until then it lies in a hidden `.part` folder
beside it. HTTPS_PROXY, NO_PROXY, HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE hold.
"""

from __future__ import annotations

import http.client
import re
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from emigm.config.benchmark import Benchmark, is_random
from emigm.config.errors import ConfigError, RunError
from emigm.config.paths import expand, results_folder, weights_folder
from emigm.config.schema import ReleasedConfig
from emigm.io import lock, read_index, read_json, sha256, write_json
from emigm.paper.settings import INCEPTION_SHA256
from emigm.records.record import read_record

TIMEOUT = 60
"""Seconds to wait for a connection, and for the next bytes."""
MAKE_RANDOM = "benchmarks.imagenet256-dry.make_files"
"""The module of the checkout, no part of the package, that makes a dry run's random files."""
IMAGENET = """ImageNet itself cannot be fetched: its terms have to be accepted at image-net.org. Get ILSVRC2012's
training and validation images there, and put them, in one folder for each of the {classes} classes, into {places}
(or link what is named so to where they are)."""


class HubFile(NamedTuple):
    """A file of a model repository on the Hugging Face Hub, which publishes the SHA-256 of large files."""

    repository: str
    name: str
    revision: str | None = None
    """Branch, tag or commit; None: the repository's main branch."""

    def __str__(self) -> str:
        return f"https://huggingface.co/{self.repository}"


_LONG = {"xs": "xsmall", "s": "small", "b": "base", "l": "large", "h": "huge"}
PUBLISHED = {"inception": INCEPTION_SHA256}
"""SHA-256 by kind."""
MIRRORS: dict[str, tuple[str | HubFile, ...]] = {
    "kl16": (
        # MAR's own link first (github.com/LTH14/mar, util/download.py).
        "https://www.dropbox.com/scl/fi/hhmuvaiacrarfg28qxhwz/kl16.ckpt?rlkey=l44xipsezc8atcffdp4q7mwmh&dl=1",
        HubFile("xwen99/mar-vae-kl16", "kl16.ckpt"),
    ),
    "dcae": (HubFile("mit-han-lab/dc-ae-f32c32-in-1.0", "model.safetensors"),),
    "inception": (
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    ),
}
"""By kind of autoencoder or extractor, in the order in which they are tried."""
REFERENCES = {256: "VIRTUAL_imagenet256_labeled.npz", 512: "VIRTUAL_imagenet512.npz"}
"""ADM's statistics of ImageNet's training images, by resolution."""
REFERENCE_HOST = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet"
FETCHED = Path("weights") / "fetched.json"
"""What `emigm fetch` got: path -> SHA-256, bytes and where from."""


class ReleasedFile(NamedTuple):
    """A file of others that a benchmark needs."""

    what: str
    path: Path
    mirrors: tuple[str | HubFile, ...] = ()
    """Where it can be fetched; empty: the user brings it."""
    published: str | None = None
    """SHA-256, where its author gives it."""

    @property
    def checksum(self) -> str | None:
        """The SHA-256 it must have: the published or the recorded one; None: nothing is known."""
        return self.published or fetched().get(str(self.path), {}).get("sha256")


def released_files(benchmark: Benchmark) -> Iterator[ReleasedFile]:
    """The files of others that a benchmark names, a dry run's random ones included."""
    autoencoder, extractor, reference = benchmark.autoencoder, benchmark.extractor, benchmark.evaluation.reference
    if autoencoder.weights is not None and autoencoder.kind != "kmeans":  # the encode stage makes that
        mirrors, path = MIRRORS.get(autoencoder.kind, ()), expand(autoencoder.weights)
        if mirrors and path.suffix not in (suffixes := (".ckpt", ".pth", ".safetensors")):  # a folder
            path = next((p for s in suffixes for p in path.glob(f"*{s}")), path / mirrors[-1].name)
        yield ReleasedFile("autoencoder", path, mirrors)
    if extractor.weights is not None:
        yield ReleasedFile("Inception", expand(extractor.weights), MIRRORS["inception"], PUBLISHED["inception"])
    if reference is not None:
        resolution, name = benchmark.data.resolution, Path(reference).name
        mirrors = (f"{REFERENCE_HOST}/{resolution}/{name}",) if name == REFERENCES.get(resolution) else ()
        yield ReleasedFile("reference statistics", expand(reference), mirrors)
    for size in benchmark.sizes if benchmark.weights == "released" else ():
        yield checkpoint(benchmark.released, size)


def checkpoint(released: ReleasedConfig, size: str) -> ReleasedFile:
    """The released checkpoint of a size."""
    name = released.files[size]
    source = HubFile(released.repository, name)
    return ReleasedFile(f"checkpoint {size}", expand(released.folder) / name, (source,), released.sha256.get(size))


def released_file(resolution: int, size: str) -> HubFile:
    """The authors' checkpoint of one of the paper's nine models."""
    return HubFile("GSAI-ML/eMIGM", f"{resolution}_model/eMIGM_{_LONG[size]}_{resolution}_checkpoint.pth")


def fetched() -> dict[str, dict[str, Any]]:
    """The record of `emigm fetch`; raises ConfigError where it is damaged."""
    if not FETCHED.is_file():
        return {}
    remedy = "delete it, and `emigm fetch` writes it again"
    tree = read_json(FETCHED, remedy)
    if not all(isinstance(entry, dict) and isinstance(entry.get("sha256"), str) for entry in tree.values()):
        raise ConfigError(f"{FETCHED}: an entry has no sha256; {remedy}")
    return tree


def recorded(name: str) -> str | None:
    """SHA-256 that `emigm fetch` recorded of a file of this name, whatever its folder; None: it has fetched none."""
    return next((entry["sha256"] for path, entry in fetched().items() if Path(path).name == name), None)


class Unavailable(Exception):
    """A mirror does not give the file; the message says why."""


def fetch(benchmark: Benchmark) -> int:
    """Fetch all that is absent, check what is there; 0 where all is there in the end, else 1.

    Raises:
        ConfigError: random files are named that cannot be made.
        RunError: another `emigm fetch` is at work here.
    """
    random, problems = benchmark.random_files, []
    files = [file for file in released_files(benchmark) if file.mirrors and not is_random(file.path)]
    if files or random:
        FETCHED.parent.mkdir(parents=True, exist_ok=True)
        with FETCHED.with_name(".fetch.lock").open("w") as one_at_a_time:
            if lock(one_at_a_time.fileno()) is False:
                raise RunError("another `emigm fetch` is at work here; let it finish")
            if random:
                import_module(MAKE_RANDOM).make_random(benchmark, random)  # torch takes seconds
            problems = [problem for file in files if (problem := obtain(file))]
    data = benchmark.data
    photos = [p for p in (data.root, data.holdout_root) if not is_random(p)]
    if photos and data.dataset == "imagenet" and benchmark.weights == "trained":
        print(IMAGENET.format(classes=data.classes, places=" and ".join(photos)))
    tracked = [folder for size in benchmark.sizes if (folder := weights_folder(benchmark.name, size)).is_dir()]
    problems += [problem for folder in tracked if (problem := check_tracked(benchmark, folder))]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not problems:
        results = [f"{', '.join(map(str, dict.fromkeys(random.values())))} are there"] if random else []
        results.append(f"all {len(files)} files are there" if files else "nothing to fetch")
        results += [f"{len(tracked)} models came with the repository"] if tracked else []
        print(f"{benchmark.name}: {', '.join(results)}; `emigm doctor {benchmark.name}` says what else it needs")
    return 1 if problems else 0


def check_tracked(benchmark: Benchmark, folder: Path) -> str | None:
    """Say what a model that came with the repository is; returns what is wrong, None where it is all right."""
    from emigm.model.model import CONFIG_FILE, WEIGHTS_FILE  # torch takes seconds

    remedy = f"get it back by `git checkout -- {folder.as_posix()}`"
    try:
        facts = read_index(folder / CONFIG_FILE, remedy)
        file, record = folder / WEIGHTS_FILE, results_folder(benchmark.name) / "records" / f"train-{folder.name}.json"
        if not file.is_file() or sha256(file) != facts["weights"]:
            return f"{file}: not the weights that {CONFIG_FILE} beside it names; {remedy}"
        source = facts["source"]
        if read_record(record)["outputs"].get(source["file"]) != source["sha256"]:
            return f"{folder}: of another training than {record} tells of; run dvc repro, or {remedy}"
    except ConfigError as e:
        return str(e)
    size = f"{file.stat().st_size / 1e6:.1f} MB"
    print(f"{folder}: there ({size}, {facts['rounded']}; trained as {record} says, seed {facts['seed']})")
    print(f"  emigm generate {benchmark.name}-{folder.name} --classes 0-{facts['model']['classes'] - 1} --out grid.png")
    return None


def fetch_official(released: ReleasedConfig, size: str) -> Path:
    """The released checkpoint of `size`, fetched where it is absent; raises ConfigError where that fails."""
    file = checkpoint(released, size)
    if not file.path.is_file() and (problem := obtain(file)):
        raise ConfigError(problem)
    return file.path


def obtain(file: ReleasedFile) -> str | None:
    """Have the file in its place, checked; returns what is wrong, None where it is all right."""
    known, path, reasons = file.checksum, file.path, []
    if path.is_file():
        if known is not None and sha256(path) != known:
            return f"{path}: has another SHA-256 than {known}; move it away and fetch again"
        print(f"{path}: there")
        return None
    part = path.with_name(f".{path.name}.part")
    for mirror in file.mirrors:
        try:
            part.mkdir(parents=True, exist_ok=True)
            received, published, facts = (from_hub if isinstance(mirror, HubFile) else from_web)(mirror, part, path)
            checksum = sha256(received)
            recorded = "the published SHA-256" if file.published else f"the SHA-256 in {FETCHED}"
            for right, whose in ((published, "the Hub's SHA-256"), (known, recorded)):
                if right not in (None, checksum):
                    raise Unavailable(f"the file's SHA-256 is {checksum}, but {whose} is {right}")
            entry = {"sha256": checksum, "bytes": received.stat().st_size, **facts}
            write_json(FETCHED, fetched() | {str(path): entry})
            received.replace(path)
            print(f"{path}: fetched, SHA-256 {checksum}")
            return None
        except (Unavailable, OSError, http.client.HTTPException) as e:
            reasons.append(f"{mirror} ({reason(e)})")
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return f"{path}: no mirror gave it; put it there by hand. Tried: {'; '.join(reasons)}"


def from_hub(mirror: HubFile, part: Path, path: Path) -> tuple[Path, str | None, dict[str, Any]]:
    """(the file received into `part`, its published SHA-256, what is to be recorded of it); large files have a SHA-256
    on the Hub. What was fetched before comes from the same commit."""
    import huggingface_hub as hub  # takes a second, and only files of the Hub need it

    before = fetched().get(str(path), {})
    same = f"/{mirror.repository}/" in before.get("from", "")
    url = hub.hf_hub_url(mirror.repository, mirror.name, revision=before["commit"] if same else mirror.revision)
    try:
        meta = hub.get_hf_file_metadata(url)
        revision = {"revision": meta.commit_hash}
        received = hub.hf_hub_download(mirror.repository, mirror.name, local_dir=part, **revision)
    except Exception as e:  # the types differ with the Hub client's version and its HTTP library
        raise Unavailable(reason(e)) from e
    published = meta.etag if re.fullmatch(r"[0-9a-f]{64}", meta.etag or "") else None
    url = hub.hf_hub_url(mirror.repository, mirror.name, **revision)
    return Path(received), published, {"from": url, "commit": meta.commit_hash}


def from_web(url: str, part: Path, path: Path) -> tuple[Path, None, dict[str, Any]]:
    """The same of a plain address; raises Unavailable, OSError or HTTPException where the whole file does not come."""
    received = part / path.name
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response, received.open("wb") as file:
        if response.headers.get_content_type() == "text/html":
            raise Unavailable("a web page came in place of the file")
        shape = {"total": response.length, "desc": path.name, "unit": "B", "unit_scale": True, "unit_divisor": 1024}
        with tqdm.wrapattr(response, "read", **shape) as body:
            shutil.copyfileobj(body, file)
        if response.length:  # what is left of the length that the server gave
            raise Unavailable(f"the connection ended {response.length:,} bytes before the end of the file")
    return received, None, {"from": url}


def cached(file: HubFile) -> Path:
    """The file in the Hub's cache, downloaded where it is absent; raises ConfigError where it cannot be had."""
    import huggingface_hub as hub  # takes a second, and only names of the Hub need it

    try:
        return Path(hub.hf_hub_download(file.repository, file.name, revision=file.revision))
    except Exception as e:  # the types differ with the Hub client's version and its HTTP library
        text = f"{file.repository}: {file.name} is neither in the Hub's cache nor to be had from the Hub"
        raise hub_error(text, e) from e


def reason(e: Exception) -> str:
    """What went wrong, in one line."""
    return (str(e).strip() or type(e).__name__).splitlines()[0].strip("<>")


def hub_error(what: str, e: Exception) -> ConfigError:
    """The error that says what went wrong at the Hub, and what to check."""
    return ConfigError(f"{what} ({reason(e)}); check the name, the network, HF_TOKEN and HF_HUB_OFFLINE")
