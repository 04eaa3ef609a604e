"""`emigm fetch`: the files of others that a benchmark needs, from the first mirror that has them, or random ones.

A file appears under its name when it is whole and its checksum is right. Until then it grows in a hidden `.part` file
beside it, from which the next call goes on. Files of the Hub take the same way (`hf_hub_download` drops what a killed
download has received). HTTPS_PROXY, NO_PROXY, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE hold.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import huggingface_hub as hub
import requests
from tqdm import tqdm

from emigm.config.benchmark import Benchmark, is_random
from emigm.config.errors import ConfigError, RunError
from emigm.config.paths import results_folder, weights_folder
from emigm.config.schema import ReleasedConfig
from emigm.io import fingerprint, lock, read_index, sha256, write_json
from emigm.records.record import read_record
from emigm.tools.artefacts import FETCHED, HubFile, ReleasedFile, checkpoint, fetched, released_files

TIMEOUT = (10, 60)
"""Seconds to wait for a connection, and for the next bytes."""
TRIES, PAUSE = 3, 1.0
"""Tries of one mirror without a new byte, and seconds before the second of them; each pause doubles."""
TRANSIENT = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
MAKE_RANDOM = "benchmarks.imagenet256-dry.make_files"
"""The module of the checkout, no part of the package, that makes a dry run's random files."""
IMAGENET = """ImageNet itself cannot be fetched: its terms have to be accepted at image-net.org. Get ILSVRC2012's
training and validation images there, and put them, in one folder for each of the {classes} classes, into {places}
(or link what is named so to where they are)."""


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
        print(f"{benchmark.name}: {', '.join(results)}; `emigm doctor {benchmark.name}` says what it takes to run")
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
    known = file.checksum
    if file.path.is_file():
        if known is not None and sha256(file.path) != known:
            return f"{file.path}: has another SHA-256 than {known}; move it away and fetch again"
        print(f"{file.path}: there")
        return None
    reasons = []
    for mirror in file.mirrors:
        try:
            file.path.parent.mkdir(parents=True, exist_ok=True)
            take(file, mirror, known)
            return None
        except (Unavailable, requests.RequestException) as e:
            reasons.append(f"{mirror} ({reason(e)})")
        except OSError as e:  # no room, no permission, no folder: no mirror can help
            return f"{file.path}: {e}"
    return f"{file.path}: no mirror gave it; put it there by hand. Tried: {'; '.join(reasons)}"


def take(file: ReleasedFile, mirror: str | HubFile, known: str | None) -> None:
    """Download from one mirror, check, record, and put into place."""
    url, published, facts, headers = str(mirror), None, {}, {}
    if isinstance(mirror, HubFile):
        before = fetched().get(str(file.path), {})
        if f"/{mirror.repository}/" in before.get("from", ""):  # the same file as the first time
            mirror = mirror._replace(revision=before["commit"])
        url, published, facts["commit"] = on_hub(mirror)
        headers = hub.utils.build_hf_headers()
    part = download(url, file.path, headers)
    ours = sha256(part)
    recorded = "the published SHA-256" if file.published else f"the SHA-256 in {FETCHED}"
    for right, whose in ((published, "the Hub's SHA-256"), (known, recorded)):
        if right not in (None, ours):
            part.unlink()
            raise Unavailable(f"the file's SHA-256 is {ours}, but {whose} is {right}")
    entry = {"sha256": ours, "bytes": part.stat().st_size, "from": url, **facts}
    write_json(FETCHED, fetched() | {str(file.path): entry})
    part.replace(file.path)
    print(f"{file.path}: fetched, SHA-256 {ours}")


def on_hub(file: HubFile) -> tuple[str, str | None, str | None]:
    """(URL, published SHA-256, commit) of a file on the Hub; large files have a SHA-256 there."""
    try:
        meta = hub.get_hf_file_metadata(hub.hf_hub_url(file.repository, file.name, revision=file.revision))
    except Exception as e:  # the types differ with the Hub client's version and its HTTP library
        raise Unavailable(reason(e)) from e
    checksum = meta.etag if re.fullmatch(r"[0-9a-f]{64}", meta.etag or "") else None
    return hub.hf_hub_url(file.repository, file.name, revision=meta.commit_hash), checksum, meta.commit_hash


def download(url: str, target: Path, headers: dict[str, Any]) -> Path:
    """The whole file at `url`, beside `target`; raises Unavailable where the mirror has none, or stays silent."""
    failures, size = 0, -1
    while True:
        try:
            return receive(url, target, headers)
        except TRANSIENT as e:
            size, before = sum(p.stat().st_size for p in _parts(target)), size
            failures = failures + 1 if size <= before else 1
            if failures == TRIES:
                raise Unavailable(reason(e)) from e
            time.sleep(PAUSE * 2 ** (failures - 1))


def receive(url: str, target: Path, headers: dict[str, Any]) -> Path:
    """One try; goes on behind the bytes that an earlier one left, where the server still has that version."""
    left = next(iter(_parts(target)), None)
    done = left.stat().st_size if left else 0
    headers = {**headers, "Accept-Encoding": "identity"}  # lengths and ranges are then the file's own
    headers |= {"Range": f"bytes={done}-"} if done else {}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as reply:
        if left and reply.status_code == 416:
            if reply.headers.get("Content-Range") == f"bytes */{done}":
                return left  # nothing is missing; checksums say whether it is the same version
            left.unlink()
        check_reply(reply)
        partial, length = reply.status_code == 206, reply.headers.get("Content-Length")
        size = int(length) + done * partial if length else None
        version = reply.headers.get("ETag") or reply.headers.get("Last-Modified")
        part = target.with_name(f".{target.name}.{fingerprint(url, version, size)}.part")
        if left and (left != part or not partial):
            left.unlink()
            done = 0
        if partial and not (done and reply.headers.get("Content-Range", "").startswith(f"bytes {done}-")):
            raise requests.ConnectionError("the file is another one than that of which a part is here")
        if size is not None and shutil.disk_usage(target.parent).free < size - done:
            raise OSError(f"{size - done:,} bytes do not fit on this disk")
        bar = tqdm(total=size, initial=done, desc=target.name, unit="B", unit_scale=True, unit_divisor=1024)
        with part.open("ab" if done else "wb") as f, bar:
            for block in reply.iter_content(2**20):
                f.write(block)
                bar.update(len(block))
    if size is not None and part.stat().st_size != size:
        raise requests.ConnectionError(f"{part.stat().st_size:,} of {size:,} bytes came")
    return part


def _parts(target: Path) -> list[Path]:
    return list(target.parent.glob(f".{target.name}.*.part"))


def check_reply(reply: requests.Response) -> None:
    """Raise ConnectionError where another try may help, Unavailable where none can."""
    if (code := reply.status_code) >= 400:
        kind = requests.ConnectionError if code in (416, 429) or code >= 500 else Unavailable
        raise kind(f"HTTP {code} {reply.reason}")
    if reply.headers.get("Content-Type", "").startswith("text/html"):
        raise Unavailable("a web page came in place of the file")


def reason(e: Exception) -> str:
    """What went wrong, in one line: of errors of connections the innermost, without the objects it happened in."""
    inner = getattr(e.args[0], "reason", None) if e.args else None
    text = str(inner or e).strip() or type(e).__name__
    return re.sub(r"^\w*Connection\w*\([^)]*\): ", "", text.splitlines()[0])
