"""Files damaged, swapped or edited between stages, and stages killed, interrupted or started twice: an error by name,
or the same numbers; the chain of checksums that records carry."""

import contextlib
import importlib.util
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
from safetensors.torch import load_file

from emigm.config.benchmark import load_benchmark
from emigm.config.errors import ConfigError, UserError
from emigm.io import (
    read_arrays,
    read_index,
    sha256,
    write_arrays,
    write_index,
)
from emigm.model.model import read_model_config, save_model
from emigm.stages.encode import encode
from emigm.stages.evaluate import evaluate
from emigm.stages.extractor import make_extractor
from emigm.stages.prepare import prepare
from emigm.stages.reference import make_reference
from emigm.stages.sample import sample
from emigm.stages.train import train_size

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("faults", ROOT / "benchmarks" / "faults" / "faults.py")
faults = importlib.util.module_from_spec(spec)
spec.loader.exec_module(faults)

STAGES = {
    "prepare": (prepare,),
    "extractor": (make_extractor,),
    "encode": (encode,),
    "reference": (make_reference,),
    "train-xs": (train_size, "xs"),
    "sample-xs-4": (sample, "xs", "4"),
    "evaluate-xs": (evaluate, "xs"),
}
"""Stage by the name of its record: function and arguments, in order."""


def run(name, benchmark=None):
    stage, *arguments = STAGES[name]
    stage(benchmark or load_benchmark(), *arguments)


def run_all(folder, **changes):
    """Make a workspace in which every stage has run."""
    here = Path.cwd()
    os.chdir(folder)
    try:
        tree = faults.BENCHMARK | {k: faults.BENCHMARK[k] | v for k, v in changes.items()}
        Path("params.yaml").write_text(yaml.safe_dump(faults.PARAMS | {"benchmark": tree}))
        for name in STAGES:
            run(name)
    finally:
        os.chdir(here)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run_all(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The same, of another split, other seeds and another latent scale."""
    training = {"steps": 20, "batch": 64, "lr": 0.001, "seed": 1}
    changes = {"data": {"split_seed": 1}, "extractor": {"training": training}, "autoencoder": {"scale": 1.0}}
    return run_all(tmp_path_factory.mktemp("other"), **changes)


@pytest.fixture
def workspace(whole, tmp_path, monkeypatch):
    """A copy of `whole` to damage."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def records(folder):
    return {p.stem: json.loads(p.read_text()) for p in (folder / "results/tiny/records").iterdir()}


# The chain


def test_every_record_names_what_its_stage_read_and_wrote(whole):
    found = records(whole)
    assert set(found) == set(STAGES)
    for name, record in found.items():
        assert record["outputs"] or name == "evaluate-xs"
        assert record["inputs"] or name == "prepare"
        for file, checksum in {**record["inputs"], **record["outputs"]}.items():
            assert sha256(whole / file) == checksum
        assert 0 < record["provenance"]["cpu_seconds"] < 1e4


def test_the_chain_of_records_closes(whole):
    """What a stage reads is what an earlier one wrote, and what is written is read or shown."""
    written, read = {}, set()
    found = records(whole)
    for name in STAGES:
        for file, checksum in found[name]["inputs"].items():
            assert written[file] == checksum
            read.add(file)
        written |= found[name]["outputs"]
    assert {Path(f).name for f in written.keys() - read} == {"xs.csv", "xs-4.png", "real.png"}


def test_records_name_the_files_that_numbers_depend_on(whole):
    found = records(whole)
    named = {name: set(record["inputs"]) for name, record in found.items()}
    latents = {f"data/tiny/latents/{part}/index.json" for part in ("train", "holdout")}
    images = {f"data/tiny/images/{part}.npz" for part in ("train", "holdout")}
    weights = {f"models/tiny/xs/seed{t}/model.safetensors" for t in (0, 1)}
    samples = {f"samples/tiny/xs/4/train{t}-seed{s}/index.json" for t in (0, 1) for s in (0, 1)}
    assert named["train-xs"] == latents and named["encode"] == named["extractor"] == images
    assert weights < named["sample-xs-4"] and images < named["reference"]
    assert samples | images | {"data/tiny/reference.npz"} < named["evaluate-xs"]
    assert "data/tiny/extractor/weights.safetensors" in named["evaluate-xs"] & named["reference"]


class Code:
    """What unpickles as a call."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)


# Damage

READ_BY = {
    "data/tiny/images/train.npz": ("extractor", "encode", "reference", "evaluate-xs"),
    "data/tiny/images/holdout.npz": ("extractor", "encode", "reference", "evaluate-xs"),
    "data/tiny/extractor/weights.safetensors": ("reference", "evaluate-xs"),
    "data/tiny/extractor/source.json": ("reference", "evaluate-xs"),
    "data/tiny/latents/train/index.json": ("reference", "train-xs"),
    "data/tiny/latents/train/latents-00000.npy": ("reference", "train-xs"),
    "data/tiny/latents/holdout/index.json": ("train-xs",),
    "data/tiny/latents/holdout/latents-00000.npy": ("train-xs",),
    "models/tiny/xs/seed0/model.safetensors": ("sample-xs-4",),
    "models/tiny/xs/seed1/config.json": ("sample-xs-4",),
    "samples/tiny/xs/4/train0-seed1/index.json": ("evaluate-xs",),
    "samples/tiny/xs/4/train0-seed1/000015-000030.npz": ("evaluate-xs",),
    "data/tiny/reference.npz": ("evaluate-xs",),
}
"""File => stages that read it."""
CASES = [(file, stage) for file, stages in READ_BY.items() for stage in stages]
IDS = [f"{Path(file).parent.name}/{Path(file).name} by {stage}" for file, stage in CASES]


def refused(stage, name):
    """The stage ends in one line that names the file, and has written no record."""
    record = Path("results/tiny/records") / f"{stage}.json"
    record.unlink(missing_ok=True)
    with pytest.raises(UserError) as error:
        run(stage)
    message = str(error.value)
    assert name in message and "\n" not in message and len(message) < 700
    assert not record.exists()
    return message


def refused_or_the_same(stage, name, expected):
    """Refused, or harmless: what a clock does not decide is as in the record of whole files."""
    try:
        run(stage)
    except UserError as e:
        assert name in str(e) and "\n" not in str(e)
    else:
        assert faults.outputs(stage, Path())["record"]["results"] == expected["record"]["results"]


@pytest.mark.parametrize(("file", "stage"), CASES, ids=IDS)
def test_a_flipped_bit_is_refused_or_changes_nothing(workspace, file, stage):
    expected, path = faults.outputs(stage, Path()), Path(file)
    whole, rng = path.read_bytes(), random.Random(file)
    for _ in range(6):
        content, bit = bytearray(whole), rng.randrange(8 * len(whole))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(content))
        refused_or_the_same(stage, path.name, expected)


@pytest.mark.parametrize(("file", "stage"), CASES, ids=IDS)
def test_a_cut_file_is_refused(workspace, file, stage):
    path = Path(file)
    whole = path.read_bytes()
    for left in (len(whole) - 1, len(whole) // 2, 0):
        path.write_bytes(whole[:left])
        if path.suffix != ".json" or left < len(whole) - 1:  # the last byte of JSON is a new line
            refused(stage, path.name)
    path.unlink()
    refused(stage, path.parent.name)


@pytest.mark.parametrize(("file", "stage"), [(f, s) for f, s in CASES if "images" not in f or s == "evaluate-xs"])
def test_a_file_of_another_run_is_refused(workspace, other, file, stage):
    """Images that extractor, encode and reference find are the data set to them: these name its checksum instead."""
    shutil.copy(other / file, file)
    refused(stage, Path(file).parent.name if file.endswith(".json") else "")


SAMPLES = "samples/tiny/xs/4"
PAIRS = [
    ("encode", "data/tiny/images", "train.npz", "holdout.npz"),
    ("train-xs", "data/tiny/latents", "train", "holdout"),
    ("sample-xs-4", "models/tiny/xs", "seed0", "seed1"),
    ("evaluate-xs", SAMPLES, "train0-seed0", "train0-seed1"),
    ("evaluate-xs", SAMPLES, "train0-seed0/000000-000015.npz", "train0-seed0/000015-000030.npz"),
    ("evaluate-xs", SAMPLES, "train0-seed0/000000-000015.npz", "train1-seed0/000000-000015.npz"),
]


@pytest.mark.parametrize(("stage", "folder", "one", "another"), PAIRS)
def test_two_files_or_folders_that_changed_places_are_refused(workspace, stage, folder, one, another):
    os.chdir(folder)
    Path(one).rename("moved")
    Path(another).rename(one)
    Path("moved").rename(another)
    os.chdir(workspace)
    refused(stage, Path(folder, one).parent.name)


def reseal(path, change):
    """Edit a file with a checksum of its content as somebody would who sets that right as well."""
    path = Path(path)
    if path.suffix == ".json":
        tree = read_index(path, "")
        change(tree)
        write_index(path, tree)
    else:
        arrays = read_arrays(path, (), "")
        change(arrays)
        write_arrays(path, **arrays)


def edit(path, change):
    """The same by an editor, or by numpy, which keeps the old checksum."""
    path = Path(path)
    if path.suffix == ".json":
        tree = json.loads(path.read_text())
        change(tree)
        path.write_text(json.dumps(tree))
    else:
        with np.load(path) as f:
            arrays = dict(f)
        change(arrays)
        np.savez(path, **arrays)


EDITS = {
    "labels reversed": ("data/tiny/latents/train/index.json", lambda t: t["labels"].reverse(), "train-xs"),
    "labels cut": ("data/tiny/latents/train/index.json", lambda t: t["labels"].pop(), "train-xs"),
    "no shards": ("data/tiny/latents/train/index.json", lambda t: t["shards"].clear(), "train-xs"),
    "labels outside the classes": (
        "data/tiny/latents/train/index.json", lambda t: t["labels"].__setitem__(0, 10), "train-xs",
    ),
    "labels below": ("data/tiny/latents/holdout/index.json", lambda t: t["labels"].__setitem__(0, -1), "train-xs"),
    "other latents": (
        "data/tiny/latents/train/index.json", lambda t: t["facts"]["autoencoder"].update(scale=2.0), "train-xs",
    ),
    "latent scale of the model": (
        "models/tiny/xs/seed0/config.json", lambda t: t["autoencoder"].update(scale=2.0), "sample-xs-4",
    ),
    "another size": ("models/tiny/xs/seed0/config.json", lambda t: t["model"].update(width=16), "sample-xs-4"),
    "half of the images": (
        "data/tiny/images/train.npz",
        lambda a: a.update(pixels=a["pixels"][::2], labels=a["labels"][::2]), "evaluate-xs",
    ),
    "images of floats": ("data/tiny/images/train.npz", lambda a: a.update(pixels=a["pixels"] / 2), "encode"),
    "labels of another length": ("data/tiny/images/train.npz", lambda a: a.update(labels=a["labels"][1:]), "encode"),
    "short labels": (
        "samples/tiny/xs/4/train0-seed0/000000-000015.npz", lambda a: a.update(labels=a["labels"][1:]), "evaluate-xs",
    ),
    "a chunk of half its images": (
        "samples/tiny/xs/4/train0-seed0/000000-000015.npz",
        lambda a: a.update(labels=a["labels"][:7], pixels=a["pixels"][:7]), "evaluate-xs",
    ),
    "a chunk left out": (
        "samples/tiny/xs/4/train0-seed0/index.json", lambda t: t["files"].popitem(), "evaluate-xs",
    ),
    "NaN in mu": ("data/tiny/reference.npz", lambda a: a["mu"].__setitem__(0, np.nan), "evaluate-xs"),
    "short mu": ("data/tiny/reference.npz", lambda a: a.update(mu=a["mu"][1:]), "evaluate-xs"),
    "negated sigma": ("data/tiny/reference.npz", lambda a: a.update(sigma=-a["sigma"]), "evaluate-xs"),
    "lopsided sigma": ("data/tiny/reference.npz", lambda a: a["sigma"].__setitem__((0, 1), 9.0), "evaluate-xs"),
    "no sigma": ("data/tiny/reference.npz", lambda a: a.pop("sigma"), "evaluate-xs"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("what", "by"), [(what, by) for what in EDITS for by in (edit, reseal) if (what, by) != ("labels reversed", reseal)]
)
def test_an_edit_is_refused_even_with_its_checksum_set_right(workspace, what, by):
    file, change, stage = EDITS[what]
    by(file, change)
    refused(stage, Path(file).parent.name if Path(file).name != "reference.npz" else "reference.npz")


def test_weights_that_are_not_numbers_are_refused(workspace):
    folder = Path("models/tiny/xs/seed0")
    (cfg, facts), state = read_model_config(folder), load_file(folder / "model.safetensors")
    name = next(iter(state))
    state[name].view(-1)[0] = float("nan")
    del facts["weights"]
    save_model(folder, state, cfg, **facts)
    assert f"tensor {name} holds NaN" in refused("sample-xs-4", "model.safetensors")


def test_an_extractor_that_is_not_the_reference_s_is_refused(workspace, other):
    shutil.rmtree("data/tiny/extractor")
    shutil.copytree(other / "data/tiny/extractor", "data/tiny/extractor")
    assert "was made with another data/tiny/extractor/" in refused("evaluate-xs", "reference.npz")


@pytest.mark.parametrize("text", [b"[]", b"5", b"null", b'"x"', b"\xff\xfe", b"", b"{", b"[" * 10**5])
@pytest.mark.parametrize("file", [f for f in READ_BY if f.endswith(".json")])
def test_what_is_no_json_object_is_refused(workspace, file, text):
    Path(file).write_bytes(text)
    refused(READ_BY[file][0], Path(file).name)


def test_arrays_of_objects_which_could_be_code_are_refused(workspace):
    objects = np.array([Code(), Code()], dtype=object)
    np.savez("data/tiny/images/train.npz", pixels=objects, labels=objects)
    refused("encode", "train.npz")
    shard = Path("data/tiny/latents/train/latents-00000.npy")
    np.save(shard, objects)
    facts = {"bytes": shard.stat().st_size, "sha256": sha256(shard)}
    reseal("data/tiny/latents/train/index.json", lambda t: t["shards"][0].update(facts))
    refused("train-xs", shard.name)
    np.savez("data/tiny/reference.npz", mu=objects, sigma=objects, facts=objects)
    refused("evaluate-xs", "reference.npz")
    assert not Path("ran").exists()


def test_a_configuration_that_holds_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = "!!python/object/apply:pathlib.Path [ran]"
    Path("params.yaml").write_text(f"benchmark: !!python/object/apply:pathlib.Path.touch [{path}]")
    with pytest.raises(ConfigError, match=r"params\.yaml: not valid YAML"):
        load_benchmark()
    assert not Path("ran").exists()


# What interrupted stages leave


class Stop(Exception):
    pass


def stopped(monkeypatch, stage, where, after):
    """Run a stage whose `after`-th call of `where` (module.function) fails."""
    module, name = where.rsplit(".", 1)
    real, calls = getattr(sys.modules[module], name), []

    def stop(*args, **options):
        calls.append(1)
        if len(calls) > after:
            raise Stop
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(where, stop)
        with pytest.raises(Stop):
            run(stage)


@pytest.fixture
def in_one_process(monkeypatch):
    monkeypatch.setattr("emigm.pools.cores", lambda: 1)
    monkeypatch.setattr("emigm.distributed.World.is_plain", property(lambda self: False))


def test_every_bit_of_a_resume_point_counts(workspace, in_one_process, monkeypatch):
    expected = faults.outputs("train-xs", Path())
    shutil.rmtree("models")
    stopped(monkeypatch, "train-xs", "emigm.stages.train.save_model", 0)
    (point,) = Path(".state/tiny/train-xs").rglob("*.pt")
    whole, rng = point.read_bytes(), random.Random(0)
    for _ in range(14):
        content, bit = bytearray(whole), rng.randrange(8 * len(whole))
        content[bit // 8] ^= 1 << bit % 8
        point.write_bytes(bytes(content))
        assert "damaged resume point (checksum differs); delete it to start this run over" in refused(
            "train-xs", point.name
        )
    point.write_bytes(whole)
    run("train-xs")
    assert faults.outputs("train-xs", Path()) == expected


def test_damaged_features_of_an_interrupted_evaluation_are_measured_again(workspace, monkeypatch):
    expected = faults.outputs("evaluate-xs", Path())
    stopped(monkeypatch, "evaluate-xs", "emigm.metrics.measuring.write_arrays", 3)
    for file in Path(".state/tiny/evaluate-xs").rglob("*.npz"):
        file.write_bytes(file.read_bytes()[:-40])
    run("evaluate-xs")
    assert faults.outputs("evaluate-xs", Path()) == expected


def test_a_damaged_chunk_of_an_interrupted_run_is_made_again(workspace, in_one_process, monkeypatch):
    expected = faults.outputs("sample-xs-4", Path())
    stopped(monkeypatch, "sample-xs-4", "emigm.sample.reveal", 3)
    files = sorted(p for p in Path(".state/tiny/sample-xs-4").rglob("*") if p.is_file())
    assert len(files) == 6
    for file in files[::2]:
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    run("sample-xs-4")
    assert faults.outputs("sample-xs-4", Path()) == expected


# Kills, Ctrl-C, two at once

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


@linux
@pytest.mark.parametrize("by_hand", [True, False], ids=["by hand", "dvc repro"])
@pytest.mark.parametrize("stage", ["encode", "reference", "train-xs", "sample-xs-4", "evaluate-xs"])
def test_a_killed_stage_goes_on_and_makes_the_same(workspace, stage, by_hand):
    """One of the trials that `python benchmarks/faults/faults.py` makes by the thousand."""
    faults.adopt_orphans()
    expected, rng = faults.outputs(stage, workspace), random.Random(stage)
    assert faults.trial(stage, workspace, expected, 2.0, rng, by_hand=by_hand)["lost"] is None


def test_the_page_of_kills_says_what_the_record_says():
    rows = {"encode": {"trials": 2, "kills": 3, "lost": 0}, "train-xs": {"trials": 1, "kills": 1, "lost": 1}}
    record = {"what": "Kills", "stages": {"by hand": rows}, "provenance": {"device": "CPU", "commit": "c0de"}}
    record["losses"] = [{"stage": "train-xs", "how": "by hand", "why": "left: .tmp"}]
    page = faults.table(record)
    assert "| encode | 2 | 3 | 0 |" in page and "| all | 3 | 4 | 1 |" in page
    assert page.endswith("- Lost: train-xs (by hand): left: .tmp\n")


@linux
@pytest.mark.parametrize("stage", ["train-xs", "sample-xs-4"])
def test_a_stage_of_two_processes_goes_on_when_one_of_them_is_killed(workspace, stage):
    faults.adopt_orphans()
    faults.remove_outputs(stage, workspace)
    expected, seconds = faults.timed(stage, workspace, 2)
    rng, kills = random.Random(stage), 0
    for _ in range(5):  # a kill can come when the stage has ended already
        found = faults.trial(stage, workspace, expected, seconds, rng, processes=2)
        assert found["lost"] is None
        kills += found["kills"]
        if kills:
            return
    pytest.fail("no kill hit in five trials")


@linux
@pytest.mark.parametrize(
    ("program", "seconds", "gone_on"), [("python", 0.3, 1), ("python", 60, 1), ("sleep", 0.3, 0), ("sleep", 60, 1)]
)
def test_a_process_that_goes_on_after_the_one_that_started_it_is_found(program, seconds, gone_on):
    """Whether it ends by itself soon or has to be killed; another program, such as git, may end by itself."""
    faults.adopt_orphans()
    go_on = {
        "python": f"import os, time; os.fork() or time.sleep({seconds})",
        "sleep": f"import subprocess; subprocess.Popen(['sleep', '{seconds}'])",
    }
    subprocess.run([sys.executable, "-c", go_on[program]], check=True)
    assert len(faults.orphans(wait=1.0)) == gone_on and faults.orphans(wait=0.1) == []


@pytest.fixture
def long_training(workspace):
    """Starts a training that takes hours, returns its process when it has got somewhere, and ends it in the end."""
    tree = yaml.safe_load(Path("params.yaml").read_text())
    tree["benchmark"]["train"] |= {"steps": 1_000_000}
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    faults.adopt_orphans()
    started = []

    def start():
        started.append(faults.start("train-xs", workspace))
        until = time.monotonic() + 60
        while len(list(Path(".state/tiny/train-xs").rglob("*.pt"))) < 2:
            assert time.monotonic() < until, Path("log.txt").read_text()
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


@linux
@pytest.mark.parametrize("send", [os.killpg, os.kill], ids=["terminal", "alone"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_stage_ends_in_one_line_with_its_workers(long_training, send, number):
    process = long_training()
    send(process, number)
    assert status_of(process) == 130 and faults.orphans() == []
    log = Path("log.txt").read_text()
    assert "Traceback" not in log
    assert log.splitlines()[-1] == "interrupted; type the same command again, and it goes on where it stopped"


@linux
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
    second = long_training()
    assert os.waitpid(second, os.WNOHANG) == (0, 0)


@linux
def test_a_stage_ends_with_the_dvc_that_started_it(workspace, long_training):
    """Also where that is killed while the stage still imports."""
    faults.adopt_orphans()
    command = [sys.executable, "-m", "emigm.stages.train", "--size", "xs"]
    code = f"import subprocess; subprocess.run({command})"
    environment = {**os.environ, "DVC_STAGE": "train", "PYTHONPATH": str(ROOT)}
    for seconds in (0.7, None):
        dvc = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while seconds is None and len(list(Path(".state/tiny/train-xs").rglob("*.pt"))) < 2:
            assert time.monotonic() < until
            time.sleep(0.05)
        time.sleep(seconds or 0)
        dvc.kill()
        dvc.wait()
        assert faults.orphans(wait=20) == []
