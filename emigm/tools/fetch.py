"""`emigm fetch`: the files of others that a benchmark needs, from the first mirror that has them, or random ones.

A file appears under its name when it is whole and its checksum is right. Until then it grows in a hidden `.part` file
beside it, from which the next call goes on.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import requests
from tqdm import tqdm

from emigm.config.benchmark import Benchmark, is_random
from emigm.config.errors import RunError
from emigm.io import fingerprint, lock, sha256, write_json
from emigm.tools.artefacts import FETCHED, MIRRORS, PUBLISHED, REFERENCES, HubFile, fetched, reference_mirrors

TIMEOUT = (10, 60)
"""Seconds to wait for a connection, and for the next bytes."""
TRIES, PAUSE = 3, 1.0
"""Tries of one mirror without a new byte, and seconds before the second of them; each pause doubles."""
TRANSIENT = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
BLOCK = 2**20
WEIGHTS = (".ckpt", ".pth", ".safetensors")
IMAGENET = """ImageNet itself cannot be fetched: its terms have to be accepted at image-net.org. Get ILSVRC2012's
training and validation images there, and put them, in one folder for each of the {classes} classes, into {places}
(or link what is named so to where they are)."""


class Wanted(NamedTuple):
    """A file that a benchmark needs."""

    what: str
    path: Path
    mirrors: tuple[str | HubFile, ...]
    published: str | None = None
    """SHA-256, where its author gives it."""


class Unavailable(Exception):
    """A mirror does not give the file; the message says why."""


def fetch(benchmark: Benchmark) -> int:
    """Fetch all that is absent, check what is there; 0 where all is there in the end, else 1.

    Proxies are taken from the environment as usual (HTTPS_PROXY, NO_PROXY), the Hub's settings too (HF_TOKEN,
    HF_ENDPOINT, HF_HUB_OFFLINE).

    Raises:
        ConfigError: random files are named that cannot be made.
        RunError: another `emigm fetch` is at work here.
    """
    random, problems = benchmark.random_files, []
    items = [item for item in wanted(benchmark) if not is_random(item.path)]
    if items or random:
        FETCHED.parent.mkdir(parents=True, exist_ok=True)
        with FETCHED.with_name(".fetch.lock").open("w") as one_at_a_time:
            if lock(one_at_a_time.fileno()) is False:
                raise RunError("another `emigm fetch` is at work here; let it finish")
            if random:
                from emigm.tools.random_files import make_random  # torch takes seconds

                make_random(benchmark, random)
            problems = [problem for item in items if (problem := obtain(item))]
    data = benchmark.data
    photos = [p for p in (data.root, data.holdout_root) if not is_random(p)]
    if photos and data.dataset == "imagenet" and benchmark.weights == "trained":
        print(IMAGENET.format(classes=data.classes, places=" and ".join(photos)))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not problems:
        there = f"all {len(items)} files are there" if items else "nothing to fetch"
        there = f"{', '.join(map(str, dict.fromkeys(random.values())))} are there, {there}" if random else there
        print(f"{benchmark.name}: {there}; `emigm doctor {benchmark.name}` says what it takes to run")
    return 1 if problems else 0


def wanted(benchmark: Benchmark) -> Iterator[Wanted]:
    """The files of others that a benchmark names."""
    autoencoder, extractor, reference = benchmark.autoencoder, benchmark.extractor, benchmark.evaluation.reference
    if extractor.kind == "inception":
        yield Wanted("Inception", Path(extractor.weights), MIRRORS["inception"], PUBLISHED["inception"])
    if autoencoder.kind in MIRRORS:
        mirrors, path = MIRRORS[autoencoder.kind], Path(autoencoder.weights)
        if path.suffix not in WEIGHTS:  # a folder, in which any weights will do
            here = [p for p in path.glob("*") if p.suffix in WEIGHTS]
            path = here[0] if here else path / mirrors[-1].name
        yield Wanted("autoencoder", path, mirrors)
    if reference is not None and Path(reference).name == REFERENCES.get(benchmark.data.resolution):
        yield Wanted("reference statistics", Path(reference), reference_mirrors(benchmark.data.resolution))
    if benchmark.weights == "released":
        released = benchmark.released
        for size in benchmark.sizes:
            name = released.files[size]
            source = HubFile(released.repository, name)
            yield Wanted(f"checkpoint {size}", Path(released.folder) / name, (source,), released.sha256.get(size))


def obtain(item: Wanted) -> str | None:
    """Have the file in its place, checked; returns what is wrong, None where it is all right."""
    known = item.published or fetched().get(str(item.path), {}).get("sha256")
    if item.path.is_file():
        if known is not None and sha256(item.path) != known:
            return f"{item.path}: has another SHA-256 than {known}; move it away and fetch again"
        print(f"{item.path}: there")
        return None
    reasons = []
    for mirror in item.mirrors:
        try:
            item.path.parent.mkdir(parents=True, exist_ok=True)
            take(item, mirror, known)
            return None
        except (Unavailable, requests.RequestException) as e:
            reasons.append(f"{mirror if isinstance(mirror, str) else page(mirror)} ({reason(e)})")
        except OSError as e:  # no room, no permission, no folder: no mirror can help
            return f"{item.path}: {e}"
    return f"{item.path}: no mirror gave it; put it there by hand. Tried: {'; '.join(reasons)}"


def take(item: Wanted, mirror: str | HubFile, known: str | None) -> None:
    """Download from one mirror, check, record, and put into place."""
    facts: dict[str, Any] = {}
    with requests.Session() as session:
        session.headers["Accept-Encoding"] = "identity"  # lengths and ranges are then the file's own
        url, published = mirror, None
        if isinstance(mirror, HubFile):
            before = fetched().get(str(item.path), {})
            if f"/{mirror.repository}/" in before.get("from", ""):  # the same file as the first time
                mirror = mirror._replace(revision=before["commit"])
            url, published, facts["commit"] = on_hub(mirror)
            session.headers.update(huggingface_hub.utils.build_hf_headers())
        part, md5 = download(session, url, item.path)
    found, found_md5 = sha256(part), file_md5(part) if md5 else None
    for ours, right, whose in (
        (found, published, "the Hub's SHA-256"),
        (found, known, "the published SHA-256" if item.published else f"the SHA-256 in {FETCHED}"),
        (found_md5, md5, "the server's MD5"),
    ):
        if right not in (None, ours):
            part.unlink()
            raise Unavailable(f"the file's checksum is {ours}, but {whose} is {right}")
    size = part.stat().st_size
    write_json(FETCHED, fetched() | {str(item.path): {"sha256": found, "bytes": size, "from": url, **facts}})
    part.replace(item.path)
    for other in item.path.parent.glob(f".{item.path.name}.*.part"):  # of other mirrors or versions
        other.unlink()
    print(f"{item.path}: fetched, SHA-256 {found}")


def on_hub(file: HubFile) -> tuple[str, str | None, str | None]:
    """(URL, published SHA-256, commit) of a file on the Hub; large files have a SHA-256 there."""
    hub = huggingface_hub
    try:
        meta = hub.get_hf_file_metadata(hub.hf_hub_url(file.repository, file.name, revision=file.revision))
    except Exception as e:  # the types differ with the Hub client's version and its HTTP library
        raise Unavailable(reason(e)) from e
    checksum = meta.etag if re.fullmatch(r"[0-9a-f]{64}", meta.etag or "") else None
    return hub.hf_hub_url(file.repository, file.name, revision=meta.commit_hash), checksum, meta.commit_hash


def page(file: HubFile) -> str:
    """Where a person finds the file."""
    return f"https://huggingface.co/{file.repository}"


def download(session: requests.Session, url: str, target: Path) -> tuple[Path, str | None]:
    """The whole file at `url` beside `target`, and its MD5 where the server says it.

    Raises:
        Unavailable: the mirror has no such file, or stays silent.
    """
    failures, size = 0, -1
    while True:
        try:
            return receive(session, url, target)
        except TRANSIENT as e:
            size, before = sum(p.stat().st_size for p in target.parent.glob(f".{target.name}.*.part")), size
            failures = failures + 1 if size <= before else 1
            if failures == TRIES:
                raise Unavailable(reason(e)) from e
            time.sleep(PAUSE * 2 ** (failures - 1))


def receive(session: requests.Session, url: str, target: Path) -> tuple[Path, str | None]:
    """One try; goes on with the part of the same version of the file that an earlier one left."""
    with answer(session, url) as reply:
        etag, length = reply.headers.get("ETag"), reply.headers.get("Content-Length")
        version, size = etag or reply.headers.get("Last-Modified"), int(length) if length else None
        md5 = reply.headers.get("Content-MD5")
        md5 = base64.b64decode(md5).hex() if md5 else None
        part = target.with_name(f".{target.name}.{fingerprint(url, version, size)}.part")
        done = part.stat().st_size if part.exists() and size is not None else 0
        if done == size:
            return part, md5
        if size is not None and shutil.disk_usage(target.parent).free < size - done:
            raise OSError(f"{size - done:,} bytes do not fit on this disk")
        if done == 0 or done > size:
            return save(reply, part, 0, size, target.name), md5
    headers = {"Range": f"bytes={done}-"}
    if version and not version.startswith("W/"):  # a weak tag cannot be asked for
        headers["If-Range"] = version
    with answer(session, url, headers) as reply:
        goes_on = reply.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        return save(reply, part, done if goes_on else 0, size, target.name), md5


def answer(session: requests.Session, url: str, headers: dict[str, str] | None = None) -> requests.Response:
    """The server's answer, its body still to come."""
    reply = session.get(url, headers=headers, stream=True, timeout=TIMEOUT)
    code = reply.status_code
    if code == 429 or code >= 500:
        raise requests.ConnectionError(f"HTTP {code} {reply.reason}")
    if code >= 400:
        raise Unavailable(f"HTTP {code} {reply.reason}")
    if reply.headers.get("Content-Type", "").startswith("text/html"):
        raise Unavailable("a web page came in place of the file")
    return reply


def save(reply: requests.Response, part: Path, done: int, size: int | None, label: str) -> Path:
    """Append the body to the first `done` bytes of the part."""
    bar = tqdm(total=size, initial=done, desc=label, unit="B", unit_scale=True, unit_divisor=1024)
    with part.open("ab" if done else "wb") as f, bar:
        for block in reply.iter_content(BLOCK):
            f.write(block)
            bar.update(len(block))
    if size is not None and part.stat().st_size != size:
        raise requests.ConnectionError(f"{part.stat().st_size:,} of {size:,} bytes came")
    return part


def file_md5(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "md5").hexdigest()


def reason(e: Exception) -> str:
    """What went wrong, in one line: of errors of connections the innermost, without the objects it happened in."""
    inner = getattr(e.args[0], "reason", None) if e.args else None
    text = str(inner or e).strip() or type(e).__name__
    return re.sub(r"^\w*Connection\w*\([^)]*\): ", "", text.splitlines()[0])
