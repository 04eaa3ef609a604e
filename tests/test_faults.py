"""Files damaged, swapped or edited between stages, and stages killed, interrupted or started twice: an error by name,
or the same numbers; the chain of checksums that records carry."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from stored import ROOT, Code

from benchmarks.faults import faults
from emigm.io import read_arrays, read_index, sha256, write_arrays, write_index

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
IMAGES, LATENTS, REFERENCE = "data/tiny/images/train.npz", "data/tiny/latents/train", "data/tiny/reference.npz"
EXTRACTOR, MODELS, SAMPLES = "data/tiny/extractor", "models/tiny/xs", "samples/tiny/xs/4"
INDEX, CONFIG = f"{LATENTS}/index.json", f"{MODELS}/seed0/config.json"
CHUNK = f"{SAMPLES}/train0-seed0/000000-000015.npz"


def run_all(folder, **changes):
    """A workspace in which every stage has run."""
    tree = faults.BENCHMARK | {k: faults.BENCHMARK[k] | v for k, v in changes.items()}
    (folder / "params.yaml").write_text(yaml.safe_dump(faults.PARAMS | {"benchmark": tree}))
    for stage in faults.STAGES:
        faults.timed(stage, folder, 1)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    faults.adopt_orphans()
    return run_all(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The same, of another split, other seeds and another latent scale."""
    training = {"steps": 25, "batch": 64, "lr": 0.001, "seeds": [0, 1]}
    changes = {"data": {"split_seed": 1}, "extractor": {"training": training}, "autoencoder": {"scale": 1.0}}
    return run_all(tmp_path_factory.mktemp("other"), **changes)


def test_the_chain_of_records_closes(whole):
    """Records name what their stage read and wrote; what a stage reads is what an earlier one wrote, and what is
    written is read or shown."""
    written, read, named = {}, set(), {}
    for stage in faults.STAGES:
        record = json.loads((whole / "results/tiny/records" / f"{stage}.json").read_text())
        assert record["outputs"] or stage == "evaluate-xs"
        assert 0 < record["provenance"]["cpu_seconds"] < 1e4
        assert all(sha256(whole / file) == sum_ for file, sum_ in (record["inputs"] | record["outputs"]).items())
        assert record["inputs"].items() <= written.items()
        named[stage] = set(record["inputs"])
        read |= named[stage]
        written |= record["outputs"]
    assert {Path(f).name for f in written.keys() - read} == {"xs.csv", "xs-4.png", "real.png"}
    latents = {f"data/tiny/latents/{part}/index.json" for part in ("train", "holdout")}
    images = {f"data/tiny/images/{part}.npz" for part in ("train", "holdout")}
    samples = {f"{SAMPLES}/train{t}-seed{s}/index.json" for t in (0, 1) for s in (0, 1)}
    assert named["prepare"] == set() and named["train-xs"] == latents
    assert named["encode"] == named["extractor"] == images and images < named["reference"]
    assert {f"{MODELS}/seed{t}/model.safetensors" for t in (0, 1)} < named["sample-xs-4"]
    assert samples | images | {REFERENCE} < named["evaluate-xs"]
    assert f"{EXTRACTOR}/seed0.safetensors" in named["evaluate-xs"] & named["reference"]


# Damage

READ_BY = {
    "extractor encode reference evaluate-xs": (IMAGES, "data/tiny/images/holdout.npz"),
    "reference evaluate-xs": (f"{EXTRACTOR}/seed0.safetensors", f"{EXTRACTOR}/source.json"),
    "reference train-xs": (INDEX, f"{LATENTS}/latents-00000.npy"),
    "train-xs": ("data/tiny/latents/holdout/index.json", "data/tiny/latents/holdout/latents-00000.npy"),
    "sample-xs-4": (f"{MODELS}/seed0/model.safetensors", f"{MODELS}/seed1/config.json"),
    "evaluate-xs": (f"{SAMPLES}/train0-seed1/index.json", f"{SAMPLES}/train0-seed1/000015-000030.npz", REFERENCE),
}
"""Stages => files that each of them reads."""
CASES = [(file, stage) for stages, files in READ_BY.items() for file in files for stage in stages.split()]
NO_OBJECTS = (b"[]", b"5", b"null", b'"x"', b"\xff\xfe", b"", b"{", b"[" * 10**5)
"""What is no JSON object."""


def error_of(stage, name):
    """What the stage says where it ends in one line that names the file, and has written no record; None: it ran."""
    record = Path("results/tiny/records") / f"{stage}.json"
    record.unlink(missing_ok=True)
    status, log = faults.run(stage, Path.cwd()), Path(faults.LOG).read_text()
    if status == 0:
        return None
    message = log.splitlines()[-1]
    assert status == 1 and message.startswith("error: ") and "Traceback" not in log
    assert name in message and len(message) < 700 and not record.exists()
    return message


def stops(stage, name):
    """Assert that the stage ends in such an error; returns it."""
    message = error_of(stage, name)
    assert message is not None
    return message


def flip_a_bit(content, rng):
    content, bit = bytearray(content), rng.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    return bytes(content)


@pytest.mark.parametrize(("file", "stage"), CASES)
def test_a_damaged_file_is_refused_or_changes_nothing(workspace, file, stage):
    expected, path, rng = faults.outputs(stage, workspace), Path(file), random.Random(file)
    content = path.read_bytes()
    for _ in range(3):
        path.write_bytes(flip_a_bit(content, rng))
        if error_of(stage, path.name) is None:
            assert faults.outputs(stage, workspace)["record"]["results"] == expected["record"]["results"]
    cuts = [content[:-1], content[: len(content) // 2]] if path.suffix != ".json" else NO_OBJECTS
    for damaged in (b"", *cuts):
        path.write_bytes(damaged)
        stops(stage, path.name)
    path.unlink()
    stops(stage, path.parent.name)


@pytest.mark.parametrize(("file", "stage"), [(f, s) for f, s in CASES if "images" not in f or s == "evaluate-xs"])
def test_a_file_of_another_run_is_refused(workspace, other, file, stage):
    """Images that extractor, encode and reference find are the data set to them: these name its checksum instead."""
    shutil.copy(other / file, file)
    stops(stage, Path(file).parent.name if file.endswith(".json") else "")


def test_an_extractor_that_is_not_the_reference_s_is_refused(workspace, other):
    shutil.copytree(other / EXTRACTOR, EXTRACTOR, dirs_exist_ok=True)
    assert f"was made with another {EXTRACTOR}/" in stops("evaluate-xs", "reference.npz")


@pytest.mark.parametrize(
    ("stage", "one", "another"),
    [
        ("encode", IMAGES, "data/tiny/images/holdout.npz"),
        ("train-xs", LATENTS, "data/tiny/latents/holdout"),
        ("sample-xs-4", f"{MODELS}/seed0", f"{MODELS}/seed1"),
        ("evaluate-xs", f"{SAMPLES}/train0-seed0", f"{SAMPLES}/train0-seed1"),
        ("evaluate-xs", CHUNK, f"{SAMPLES}/train0-seed0/000015-000030.npz"),
        ("evaluate-xs", CHUNK, f"{SAMPLES}/train1-seed0/000000-000015.npz"),
    ],
)
def test_two_files_or_folders_that_changed_places_are_refused(workspace, stage, one, another):
    for before, after in ((one, "moved"), (another, one), ("moved", another)):
        Path(before).rename(after)
    stops(stage, Path(one).parent.name)


def edit(file, change, seal=True):
    """Edit a file as somebody would who sets the checksum of its content right as well; without `seal`, as by an editor
    or by numpy, which keep the old one."""
    path = Path(file)
    if path.suffix == ".json":
        tree = read_index(path, "") if seal else json.loads(path.read_text())
        change(tree)
        write_index(path, tree) if seal else path.write_text(json.dumps(tree))
    else:
        arrays = read_arrays(path, (), "") if seal else dict(np.load(path))
        change(arrays)
        write_arrays(path, **arrays) if seal else np.savez(path, **arrays)


def halve(arrays):
    arrays.update({name: arrays[name][::2] for name in ("pixels", "labels")})


SEALED = [
    ("train-xs", INDEX, lambda tree: tree["labels"].pop()),
    ("train-xs", INDEX, lambda tree: tree["shards"].clear()),
    ("train-xs", INDEX, lambda tree: tree["labels"].__setitem__(0, 10)),  # classes are 0 to 9
    ("train-xs", INDEX, lambda tree: tree["labels"].__setitem__(0, -1)),
    ("train-xs", INDEX, lambda tree: tree["facts"]["autoencoder"].update(scale=2.0)),
    ("sample-xs-4", CONFIG, lambda tree: tree["autoencoder"].update(scale=2.0)),
    ("sample-xs-4", CONFIG, lambda tree: tree["model"].update(width=16)),
    ("evaluate-xs", IMAGES, halve),
    ("evaluate-xs", CHUNK, lambda arrays: arrays.update(labels=arrays["labels"][1:])),
    ("evaluate-xs", CHUNK, halve),
    ("evaluate-xs", f"{SAMPLES}/train0-seed0/index.json", lambda tree: tree["files"].popitem()),
    ("evaluate-xs", REFERENCE, lambda arrays: arrays["mu"].__setitem__(0, np.nan)),
    ("evaluate-xs", REFERENCE, lambda arrays: arrays.update(mu=arrays["mu"][1:])),
    ("evaluate-xs", REFERENCE, lambda arrays: arrays["sigma"].__setitem__((0, 1), 9.0)),  # not symmetric
    ("evaluate-xs", REFERENCE, lambda arrays: arrays.pop("sigma")),
]
UNSEALED = [
    ("train-xs", INDEX, lambda tree: tree["labels"].reverse()),
    ("sample-xs-4", CONFIG, lambda tree: tree.update(note="edited")),
    ("encode", IMAGES, lambda arrays: arrays.update(labels=arrays["labels"][::-1])),
    ("evaluate-xs", CHUNK, lambda arrays: arrays.update(labels=arrays["labels"][::-1])),
    ("evaluate-xs", REFERENCE, lambda arrays: arrays.update(mu=2 * arrays["mu"])),
]
"""Edits that leave a file plausible."""
EDITS = [*((*e, True) for e in SEALED), *((*e, False) for e in UNSEALED)]


@pytest.mark.parametrize(("stage", "file", "change", "seal"), EDITS)
def test_an_edit_is_refused_even_with_its_checksum_set_right(workspace, stage, file, change, seal):
    edit(file, change, seal)
    stops(stage, Path(file).name if file == REFERENCE else Path(file).parent.name)


def test_arrays_of_objects_which_could_be_code_are_refused(workspace):
    objects = np.array([Code(), Code()], dtype=object)
    np.savez(IMAGES, pixels=objects, labels=objects)
    stops("encode", "train.npz")
    np.savez(REFERENCE, mu=objects, sigma=objects, facts=objects)
    stops("evaluate-xs", "reference.npz")
    assert not Path("ran").exists()


# What interrupted stages leave


def state():
    """Files that a stage under way keeps, and when they were written."""
    files = (p for p in sorted(Path(".state").rglob("[!.]*")) if p.is_file() and p.suffix != ".lock")
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize("after", [2, 5])
@pytest.mark.parametrize("stage", faults.IN_SEVERAL)
def test_damaged_files_of_an_interrupted_stage_are_refused_or_made_again(workspace, monkeypatch, stage, after):
    expected, rng, replaced = faults.outputs(stage, workspace), random.Random(stage), []
    monkeypatch.setattr("emigm.launching.cores", lambda: 1)
    faults.remove_outputs(stage, workspace)
    with monkeypatch.context() as patch:

        def replace(*paths, plain=os.replace):
            replaced.append(paths)
            if len(replaced) > after:
                raise KeyboardInterrupt  # between two files, each of which is moved to its name when it is whole
            plain(*paths)

        patch.setattr(os, "replace", replace)
        assert faults.run(stage, workspace) == 130
    kept = {path: path.read_bytes() for path in state()}
    assert kept or stage == "reference"
    for path, content in kept.items():
        path.write_bytes(flip_a_bit(content, rng))
    while (message := error_of(stage, "")) is not None:
        (named,) = [path for path in kept if str(path) in message]
        assert "delete it" in message
        named.write_bytes(kept.pop(named))
    assert faults.outputs(stage, workspace) == expected and faults.leftovers(workspace) == []


# Kills, Ctrl-C, two at once


KILLED = [(stage, 1, by_hand) for stage in faults.IN_SEVERAL for by_hand in (True, False)]


@pytest.mark.parametrize(("stage", "processes", "by_hand"), [*KILLED, ("train-xs", 2, True), ("sample-xs-4", 2, True)])
def test_a_killed_stage_goes_on_and_makes_the_same(workspace, stage, processes, by_hand):
    """One of the trials that `python benchmarks/faults/faults.py` makes by the thousand."""
    expected = faults.outputs(stage, workspace), 2.0
    if processes > 1:
        faults.remove_outputs(stage, workspace)
        expected = faults.timed(stage, workspace, processes)
    _, lost = faults.trial(stage, workspace, expected, random.Random(stage), processes, by_hand)
    assert lost is None


def test_a_process_that_goes_on_after_the_one_that_started_it_is_found():
    faults.adopt_orphans()
    go_on = "import os, time; os.fork() or time.sleep(60)"
    subprocess.run([sys.executable, "-c", go_on], check=True)
    assert len(faults.orphans(wait=0.5)) == 1 and faults.orphans() == []


@pytest.fixture
def long_training(workspace):
    """Starts a training that takes hours, returns its process when it has got somewhere, and ends it in the end."""
    tree = yaml.safe_load(Path("params.yaml").read_text())
    tree["benchmark"]["train"] |= {"steps": 1_000_000}
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    started = []

    def start(begin=lambda: faults.start("train-xs", Path.cwd())):
        before, until = state(), time.monotonic() + 60
        started.append(begin())
        while state() == before:
            assert time.monotonic() < until, Path(faults.LOG).read_text()
            time.sleep(0.05)
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(ChildProcessError, ProcessLookupError):  # ended: its number may be another's by now
            os.waitpid(process, os.WNOHANG)
            os.killpg(process, signal.SIGKILL)
    assert faults.orphans() == []


def status_of(process):
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.mark.parametrize("send", [os.killpg, os.kill], ids=["terminal", "alone"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_stage_ends_in_one_line_with_its_workers(long_training, send, number):
    process = long_training()
    send(process, number)
    assert status_of(process) == 130 and faults.orphans() == []
    log = Path(faults.LOG).read_text()
    assert "Traceback" not in log
    assert log.splitlines()[-1] == "interrupted; type the same command again, and it goes on where it stopped"


def test_a_second_run_of_a_stage_is_refused_and_a_killed_one_blocks_nothing(long_training, workspace, monkeypatch):
    monkeypatch.setattr("emigm.launching.LOCK_TRIES", 3)
    first = long_training()
    assert faults.run("train-xs", workspace, "second.txt") == 1
    (message,) = Path("second.txt").read_text().splitlines()
    assert "train-xs.lock: stage train-xs of benchmark tiny is running already in this folder; wait" in message
    assert os.waitpid(first, os.WNOHANG) == (0, 0)  # the first goes on
    os.kill(first, signal.SIGKILL)
    status_of(first)
    assert faults.orphans() == []
    assert os.waitpid(long_training(), os.WNOHANG) == (0, 0)


def test_a_stage_ends_with_the_dvc_that_started_it(long_training):
    """Also where that is killed while the stage still imports."""
    command = [sys.executable, "-m", "emigm.stages.train", "--size", "xs"]
    code = f"import subprocess; subprocess.run({command})"
    environment = {**os.environ, "DVC_STAGE": "train", "PYTHONPATH": str(ROOT)}

    def begin():
        dvc = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL).pid
        while not any("libtorch" in Path(f"/proc/{p}/maps").read_text() for p in faults.children(dvc)):
            time.sleep(0.01)
        return dvc

    for start in (begin, lambda: long_training(begin)):
        process = start()
        os.kill(process, signal.SIGKILL)
        status_of(process)
        assert faults.orphans(wait=90) == []
