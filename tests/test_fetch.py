"""`emigm fetch` against a server on the loopback address: whole files or none, resumed, checked, recorded."""

import base64
import dataclasses
import hashlib
import http.server
import json
import shutil
import socket
import threading
from pathlib import Path

import pytest

from emigm import cli
from emigm.config.benchmark import is_random
from emigm.config.compose import compose_benchmark
from emigm.config.errors import ConfigError
from emigm.io import lock
from emigm.paper.settings import PAPER_MODELS
from emigm.tools import artefacts, doctor, fetch
from emigm.tools.fetch import Wanted, obtain, wanted
from emigm.tools.random_files import make_random

REPO = Path(__file__).parents[1]
CONTENT = bytes(range(256)) * 40_000  # ten blocks
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclasses.dataclass
class File:
    """What the server has under a path, and how it misbehaves."""

    content: bytes = CONTENT
    headers: dict = dataclasses.field(default_factory=lambda: {"ETag": '"1"'})
    status: int = 200
    ranges: bool = True
    cut: int | None = None
    """Bytes after which the connection breaks."""


class Server(http.server.ThreadingHTTPServer):
    """Keeps files and the requests it got."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests, self.sent = {}, [], 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server = self.server
        server.requests.append((self.command, self.path, self.headers.get("Range")))
        file = server.files.get(self.path, File(b"", {}, 404))
        start, status = 0, file.status
        asked, same = self.headers.get("Range"), self.headers.get("If-Range") in (None, file.headers.get("ETag"))
        if asked and file.ranges and same:
            start, status = int(asked.removeprefix("bytes=").removesuffix("-")), 206
        self.send_response(status)
        for name, value in file.headers.items():
            self.send_header(name, value)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(file.content) - 1}/{len(file.content)}")
        self.send_header("Content-Length", str(len(file.content) - start))
        self.end_headers()
        if self.command == "GET":
            body = file.content[start:][: file.cut]
            try:
                self.wfile.write(body)
            except ConnectionError:  # the client only wanted the headers
                return
            server.sent += len(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def checkout(tmp_path, monkeypatch):
    """An empty checkout with the repository's benchmarks; no proxy stands before the loopback address."""
    (tmp_path / "benchmarks").symlink_to(REPO / "benchmarks")
    (tmp_path / "params.yaml").symlink_to(REPO / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path


def item(server, *paths, published=None):
    return Wanted("weights", Path("weights/w.ckpt"), tuple(server.url + p for p in paths), published)


def parts():
    return list(Path("weights").glob(".*.part"))


def record():
    return json.loads(Path("weights/fetched.json").read_text())


def test_a_file_is_put_into_place_and_recorded(server):
    server.files["/w"] = File()
    assert obtain(item(server, "/w")) is None
    assert Path("weights/w.ckpt").read_bytes() == CONTENT and not parts()
    expected = {"sha256": SHA256, "bytes": len(CONTENT), "from": f"{server.url}/w"}
    assert record() == {"weights/w.ckpt": expected}
    assert artefacts.recorded("w.ckpt") == SHA256 and artefacts.recorded("other") is None


def test_an_interrupted_download_goes_on_where_it_stopped(server, monkeypatch):
    server.files["/w"] = File(cut=3_000_000)
    monkeypatch.setattr(fetch, "TRIES", 1)
    assert "no mirror gave it" in obtain(item(server, "/w"))
    assert not Path("weights/w.ckpt").exists() and not Path("weights/fetched.json").exists()
    (part,) = parts()
    assert 0 < part.stat().st_size < len(CONTENT)
    done = part.stat().st_size
    server.files["/w"].cut = None
    assert obtain(item(server, "/w")) is None
    assert Path("weights/w.ckpt").read_bytes() == CONTENT and not parts()
    assert server.requests[-1] == ("GET", "/w", f"bytes={done}-")


def test_a_connection_that_breaks_again_and_again_still_gets_there(server):
    server.files["/w"] = File(cut=1_500_000)
    assert obtain(item(server, "/w")) is None
    assert Path("weights/w.ckpt").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_again(server, monkeypatch):
    server.files["/w"] = File(cut=3_000_000, ranges=False)
    monkeypatch.setattr(fetch, "TRIES", 1)
    assert obtain(item(server, "/w")) is not None and parts()
    server.files["/w"].cut = None
    assert obtain(item(server, "/w")) is None
    assert Path("weights/w.ckpt").read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_is_not_mixed_with_the_old_one(server, monkeypatch):
    server.files["/w"] = File(cut=3_000_000)
    monkeypatch.setattr(fetch, "TRIES", 1)
    assert obtain(item(server, "/w")) is not None
    server.files["/w"] = File(CONTENT[::-1], {"ETag": '"2"'})
    assert obtain(item(server, "/w")) is None
    assert Path("weights/w.ckpt").read_bytes() == CONTENT[::-1] and not parts()


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (File(b"", {}, 404), "HTTP 404"),
        (File(b"", {}, 503), "HTTP 503"),
        (File(b"<html>", {"Content-Type": "text/html; charset=utf-8"}), "a web page came in place of the file"),
        (File(CONTENT[:-1]), "the published SHA-256 is"),
        (File(headers={"Content-MD5": base64.b64encode(bytes(16)).decode()}), "the server's MD5 is 0000"),
    ],
)
def test_what_is_wrong_is_named_and_the_next_mirror_is_asked(server, file, reason):
    server.files["/bad"], server.files["/good"] = file, File()
    problem = obtain(item(server, "/bad", published=SHA256))
    assert problem.startswith("weights/w.ckpt: no mirror gave it; put it there by hand.")
    assert f"{server.url}/bad (" in problem and reason in problem and "\n" not in problem
    assert not Path("weights/w.ckpt").exists() and not parts() and not Path("weights/fetched.json").exists()
    assert obtain(item(server, "/bad", "/good", published=SHA256)) is None
    assert record()["weights/w.ckpt"]["from"] == f"{server.url}/good"


def test_the_md5_that_a_server_says_is_checked(server):
    md5 = base64.b64encode(hashlib.md5(CONTENT).digest()).decode()
    server.files["/w"] = File(headers={"Content-MD5": md5})
    assert obtain(item(server, "/w")) is None


def test_no_network_is_one_clear_error():
    with socket.socket() as s:  # a port where nobody listens
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    problem = obtain(Wanted("weights", Path("weights/w.ckpt"), (f"http://127.0.0.1:{port}/w",)))
    assert f"http://127.0.0.1:{port}/w (Failed to establish a new connection: [Errno" in problem
    assert "\n" not in problem and not parts()


def test_a_file_that_is_there_is_checked_and_never_fetched_again(server):
    server.files["/w"] = File()
    assert obtain(item(server, "/w")) is None
    asked = len(server.requests)
    assert obtain(item(server, "/w")) is None and len(server.requests) == asked
    Path("weights/w.ckpt").write_bytes(b"damaged")
    assert f"has another SHA-256 than {SHA256}; move it away" in obtain(item(server, "/w"))


def test_another_file_than_was_fetched_first_is_refused(server):
    server.files["/w"] = File()
    assert obtain(item(server, "/w")) is None
    Path("weights/w.ckpt").unlink()
    server.files["/w"] = File(b"new", {"ETag": '"2"'})
    assert "the SHA-256 in weights/fetched.json is" in obtain(item(server, "/w"))
    assert not Path("weights/w.ckpt").exists()


def test_a_damaged_record_is_one_clear_error(server):
    Path("weights").mkdir()
    for text in ("{", "[]", '{"a": 1}', '{"a": {}}'):
        Path("weights/fetched.json").write_text(text)
        with pytest.raises(
            ConfigError, match=r"weights/fetched.json: .*; delete it, and `emigm fetch` writes it again"
        ):
            obtain(item(server, "/w"))


def test_a_disk_without_room_is_told_before_anything_is_written(server, monkeypatch):
    server.files["/w"] = File()
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("", (), {"free": 1})())
    assert "do not fit on this disk" in obtain(item(server, "/w")) and not parts()


@pytest.fixture
def hub(server, monkeypatch):
    """The server as the Hub: `hub(repository, name, published SHA-256)` puts a file there."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)

    def put(repository, name, published=SHA256, content=CONTENT, commit=COMMIT):
        headers = {"X-Repo-Commit": commit, "X-Linked-Etag": f'"{published}"', "ETag": '"1"'}
        for revision in ("main", commit):
            server.files[f"/{repository}/resolve/{revision}/{name}"] = File(content, headers)

    return put


COMMIT = "c" * 40


def test_a_file_of_the_hub_is_checked_by_its_published_checksum(server, hub):
    item = Wanted("checkpoint", Path("weights/w.ckpt"), (artefacts.HubFile("them/model", "256/w.pth"),))
    hub("them/model", "256/w.pth", "d" * 64)
    assert "the Hub's SHA-256 is dddd" in obtain(item)
    assert not parts() and not Path("weights/w.ckpt").exists()
    hub("them/model", "256/w.pth")
    assert obtain(item) is None
    assert record()["weights/w.ckpt"]["commit"] == COMMIT and Path("weights/w.ckpt").read_bytes() == CONTENT
    Path("weights/w.ckpt").unlink()
    server.files.clear()
    assert "huggingface.co/them/model" in obtain(item) and not parts()


def test_a_file_of_the_hub_is_fetched_again_as_it_was_the_first_time(server, hub):
    item = Wanted("checkpoint", Path("weights/w.ckpt"), (artefacts.HubFile("them/model", "w.pth"),))
    hub("them/model", "w.pth")
    assert obtain(item) is None
    Path("weights/w.ckpt").unlink()
    hub("them/model", "w.pth", hashlib.sha256(b"new").hexdigest(), b"new", "e" * 40)
    assert obtain(item) is None and Path("weights/w.ckpt").read_bytes() == CONTENT


def test_only_one_fetches_at_a_time(capsys):
    Path("weights").mkdir()
    with Path("weights/.fetch.lock").open("w") as other:
        assert lock(other.fileno())
        assert cli.main(["fetch", "imagenet256"]) == 1
    assert "another `emigm fetch` is at work here" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["imagenet256", "imagenet512"])
def test_all_that_doctor_misses_is_fetched_and_then_nothing_is_missing(server, hub, monkeypatch, capsys, name):
    benchmark = compose_benchmark(name)
    missing = [c for c in doctor.check_weights(benchmark) if c.state != doctor.OK]
    assert len(missing) == len(list(wanted(benchmark))) and all(f"emigm fetch {name}" in c.remedy for c in missing)

    mirrors = {kind: (*[f"{server.url}/none"] * (len(m) - 1), m[-1]) for kind, m in artefacts.MIRRORS.items()}
    mirrors["inception"] = (f"{server.url}/inception",)
    monkeypatch.setattr(fetch, "MIRRORS", mirrors)
    monkeypatch.setattr(fetch, "reference_mirrors", lambda resolution: (f"{server.url}/{resolution}.npz",))
    monkeypatch.setitem(artefacts.PUBLISHED, "inception", SHA256)
    server.files = {"/inception": File(), f"/{benchmark.data.resolution}.npz": File()}
    for item in wanted(benchmark):
        for mirror in item.mirrors:
            if isinstance(mirror, artefacts.HubFile):
                hub(mirror.repository, mirror.name)
    assert cli.main(["fetch", name]) == 0
    assert f"all {len(missing)} files are there" in capsys.readouterr().out
    assert all(c.state == doctor.OK for c in doctor.check_weights(benchmark))


def test_what_cannot_be_fetched_is_explained_and_embedded_data_need_nothing(capsys, monkeypatch):
    monkeypatch.setattr(fetch, "obtain", lambda item: None)
    assert cli.main(["fetch", "imagenet256", "-S", "benchmark.weights=trained"]) == 0
    out = capsys.readouterr().out
    assert "image-net.org" in out and "imagenet/train" in out and "1000 classes" in out
    assert cli.main(["fetch", "smoke"]) == 0
    assert capsys.readouterr().out == "smoke: nothing to fetch; `emigm doctor smoke` says what it takes to run\n"


def test_one_failure_does_not_keep_the_other_files_away(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(fetch, "obtain", lambda item: asked.append(item.what) or f"{item.what}: no")
    assert cli.main(["fetch", "imagenet256", "-S", "benchmark.sizes=[xs]"]) == 1
    assert asked == ["Inception", "autoencoder", "reference statistics", "checkpoint xs"]
    assert capsys.readouterr().err.count("error: ") == 4


@pytest.mark.parametrize("key", PAPER_MODELS, ids=str)
def test_released_names_are_the_files_of_the_benchmarks(key):
    resolution, size = key
    released = compose_benchmark(f"imagenet{resolution}").released
    file = artefacts.released_file(resolution, size)
    assert (file.repository, file.name) == (released.repository, released.files[size])


def test_the_files_of_a_dry_run_are_random_and_what_reads_the_real_ones_reads_them(checkout, capsys):
    import torch

    from emigm.autoencoders.autoencoder import load_autoencoder
    from emigm.data.photos import scan_photos
    from emigm.metrics.adm import AdmReference
    from emigm.metrics.features import load_extractor, write_source

    assert cli.main(["fetch", "imagenet256-dry"]) == 0
    out = capsys.readouterr().out
    assert "random/photos, random/statistics.npz, random/kl16.ckpt, random/inception.pth are there, nothing to" in out
    assert "image-net.org" not in out
    benchmark = compose_benchmark("imagenet256-dry")
    latents = load_autoencoder(benchmark.autoencoder).encode(torch.full((1, 3, 32, 32), 9, dtype=torch.uint8))
    assert latents.shape == (1, 32, 2, 2) and latents.isfinite().all()  # means and log variances
    write_source(Path("extractor"), Path(benchmark.extractor.weights))
    assert load_extractor(benchmark.extractor, Path("extractor")).identity["published"] is False
    reference = AdmReference(benchmark.evaluation.reference, 2048)
    assert reference.images == 16 and reference.pixels(3, 5).shape == (2, 3, 256, 256)
    photos = scan_photos(Path(benchmark.data.root), 64, "data.root", 1)
    assert len(photos["files"]) == 64 and photos["labels"] == list(range(64))
    times = [p.stat().st_mtime_ns for p in Path("random").iterdir()]
    assert cli.main(["fetch", "imagenet256-dry"]) == 0
    assert times == [p.stat().st_mtime_ns for p in Path("random").iterdir()] and "making" not in capsys.readouterr().out
    shutil.rmtree("random")  # 380 MB


@pytest.mark.parametrize(
    "key", ["data.root", "data.holdout_root", "evaluation.reference", "autoencoder.weights", "extractor.weights"]
)
def test_random_files_are_for_dry_runs_alone(checkout, key):
    """No stage and no command reads a benchmark that could take them for the real ones."""
    named = f"benchmark.{key}=random/a"
    with pytest.raises(ConfigError, match=f"{key} = random/a: only a dry run takes random files; name the real one"):
        compose_benchmark("imagenet256", [named])
    assert compose_benchmark("imagenet256", [named, "benchmark.dry_run=true"]).random_files == {key: Path("random/a")}


def test_random_files_that_cannot_be_made_are_refused(checkout):
    benchmark = compose_benchmark("imagenet512", ["benchmark.autoencoder.weights=random/a", "benchmark.dry_run=true"])
    with pytest.raises(ConfigError, match="random ones are made of kind: kl16, not of dcae; name real ones"):
        fetch.fetch(benchmark)
    assert not Path("random").exists()


def test_a_path_is_random_by_its_folder_however_it_is_written(checkout):
    Path("link").symlink_to("random")
    written = ("random/a", "./random/b/c", "weights/../random/a", "link/a", str(checkout / "random" / "a"))
    assert all(map(is_random, written))
    assert not any(map(is_random, (None, "random", "weights/random/a", "/random/a", "weights/kl16.ckpt")))


def test_random_photos_of_another_number_of_classes_are_to_be_deleted(checkout):
    settings = [f"benchmark.{part}.classes=3" for part in ("data", "model")]
    for part in ("class0000", "class0001"):
        (Path("random/photos") / part).mkdir(parents=True)
    only_photos = {"data.root": Path("random/photos")}
    with pytest.raises(ConfigError, match=r"random/photos: 2 class folders, not 3; delete it and fetch again"):
        make_random(compose_benchmark("imagenet256-dry", settings), only_photos)
    shutil.rmtree("random/photos")
    Path("random/.photos.begun/class0007").mkdir(parents=True)  # of a call that was killed
    make_random(compose_benchmark("imagenet256-dry", settings), only_photos)
    assert sorted(p.name for p in Path("random").rglob("*")) == ["0.jpeg"] * 3 + [
        "class0000", "class0001", "class0002", "photos",
    ]  # fmt: skip


@pytest.mark.parametrize(("locked", "status"), [(True, 0), (None, 0), (False, 1)])
def test_files_are_fetched_by_one_process_at_a_time_and_without_locks_too(checkout, monkeypatch, locked, status):
    """None: the file system has no locks."""
    monkeypatch.setattr(fetch, "lock", lambda handle: locked)
    monkeypatch.setattr(fetch, "obtain", lambda item: None)
    assert cli.main(["fetch", "imagenet512"]) == status
