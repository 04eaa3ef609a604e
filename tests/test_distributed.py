"""Several processes do what one does: training, sampling, and the errors on the way."""

import dataclasses
import datetime
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo  # every optimizer imports it, for seconds; forked processes have it from here
from made_up import contents
from stored import FORK, ROOT, answers, connect, free_port, together, write_latents
from test_model import random_model
from test_training import EXACT, LATENTS, MUON, RECIPE, Killed, images, run
from torch import nn

from emigm import launching, stages
from emigm import sample as sampling
from emigm.autoencoders.autoencoder import KL16
from emigm.config.benchmark import load_benchmark
from emigm.config.errors import ConfigError, RunError
from emigm.config.parsing import as_dict
from emigm.config.paths import model_folder
from emigm.config.schema import RunConfig
from emigm.data.samples import SampleSet, chunk_ranges
from emigm.distributed import ALONE, World, join
from emigm.launching import place, run_stage
from emigm.model.model import save_model
from emigm.model.precision import autocast, products
from emigm.stages.context import StageRun
from emigm.stages.sample import sample, sample_run
from emigm.stages.train import train_size

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks processes")


def trained(world, folder, options):
    """(weights, curve, steps done before) of a run; the processes leave together, when the last file is written."""
    begun = []
    result = run(folder, world=world, on_start=begun.append, **options)
    world.barrier()
    return {k: t.numpy() for k, t in result.ema.items()}, result.curve, begun


def test_processes_that_wait_for_one_that_never_comes_end(monkeypatch):
    monkeypatch.setattr("emigm.distributed.MEETING", datetime.timedelta(seconds=2))
    for raised, error in answers(None, started=2, size=3):
        assert raised and "DistStoreError" in error  # which `in_one_line` says in a line


def close(a, b, tolerance=2e-6):
    assert dict(a[1]) == pytest.approx(dict(b[1]), rel=tolerance / 2)
    return max(np.abs(a[0][k] - b[0][k]).max() for k in a[0]) < tolerance


FLIPPED = torch.stack([LATENTS, LATENTS.flip(3)], dim=1)
POSTERIOR = torch.cat([FLIPPED, torch.full_like(FLIPPED, -1.0)], dim=2)  # mean and log-variance


@pytest.mark.parametrize(("recipe", "micro_batch"), [(RECIPE, None), (RECIPE, 3), (MUON, None)])
def test_two_processes_train_as_one(tmp_path, recipe, micro_batch):
    """Flips and posterior noise included: 12 steps on the same batches end in the same weights."""
    options = {"data": images(POSTERIOR, views=2), "autoencoder": KL16(nn.Identity(), 1.0)}
    options |= {"recipe": recipe, "model": EXACT}
    alone = trained(ALONE, tmp_path / "one", options)
    one, other = together(trained, tmp_path / "two", {**options, "micro_batch": micro_batch})
    # Muon works in bfloat16; a step of its own moves a weight by several thousandths.
    assert one[1] == other[1] and all(np.array_equal(one[0][k], other[0][k]) for k in one[0])
    assert close(one, alone, tolerance=5e-4 if recipe is MUON else 2e-6)


def rank_of_four(rank, port, folder):
    """A process as torchrun starts it: trains, step by step slowly, and says in a file how it ended."""
    stages.STARTED_BY = os.getppid()
    os.dup2(os.open(folder / f"{rank}.txt", os.O_WRONLY | os.O_CREAT), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    connect(rank, 4, port)
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    with launching.in_one_line():
        run(folder, world=join(RunConfig(device="cpu")), on_step=lambda step: time.sleep(0.1))


@pytest.mark.parametrize("victim", [0, 2])
def test_when_one_of_four_processes_is_killed_all_end_with_one_line_and_the_run_goes_on(tmp_path, victim):
    port = free_port()
    ranks = [FORK.Process(target=rank_of_four, args=(r, port, tmp_path), daemon=True) for r in range(4)]
    for process in ranks:
        process.start()
    # Kept by torchrun, and not before the fork, since it has threads.
    store = torch.distributed.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    until = time.monotonic() + 60
    while not list(tmp_path.rglob("*.pt")):  # the resume point after 5 of 12 steps
        assert time.monotonic() < until
        time.sleep(0.02)
    ranks[victim].kill()
    for process in ranks:
        process.join(60)
    assert [p.exitcode for p in ranks] == [-signal.SIGKILL if r == victim else 1 for r in range(4)]
    (line,) = "".join(f.read_text() for f in tmp_path.glob("?.txt")).splitlines()
    assert line.startswith("error: another process of this stage has ended; type the same command again, and it goes")
    del store
    whole = together(trained, tmp_path / "whole", {}, size=4)[0]
    resumed = together(trained, tmp_path, {}, size=4)[0]
    assert resumed[2] == [5] and close(whole, resumed)  # the first step adds four gradients up in another order


def test_what_one_process_cannot_go_on_with_ends_all(tmp_path):
    latents = LATENTS.clone()
    latents[::2] = float("nan")  # in the first process or the second, or both

    def job(world):
        with pytest.raises(RunError, match="loss is nan at step 0"):
            run(tmp_path, data=images(latents), world=world)
        with pytest.raises(Killed):
            run(tmp_path, world=world, kill_at=8)
        world.barrier()
        with pytest.raises(ConfigError, match=r"not seen by every process.*file system"):
            run(tmp_path if world.is_main else tmp_path / "elsewhere", world=world)

    together(job)


def test_processes_share_gather_and_average(tmp_path):
    def job(world):
        world.check_shared(tmp_path / "shared")
        with pytest.raises(ConfigError, match=r"process 1 does not see.*file system"):
            world.check_shared(tmp_path / f"of-{world.rank}")
        mean = world.mean(torch.tensor(float(world.rank)))
        return list(world.share(5)), world.gather(world.rank), mean.item(), world.is_main, world.peak_memory()

    assert together(job) == [([0, 2, 4], [0, 1], 0.5, True, None), ([1, 3], [0, 1], 0.5, False, None)]
    assert list(ALONE.share(3)) == [0, 1, 2] and ALONE.gather("x") == ["x"]


def benchmark(**changes):
    """A benchmark of one tiny model on 4 x 4 images, 22 of them generated."""
    base = load_benchmark(ROOT / "benchmarks/smoke/params.yaml")
    sizes = {"ladder": {"xs": dataclasses.replace(base.ladder["xs"], model={}, train={})}, "sizes": ("xs",)}
    evaluation = dataclasses.replace(base.evaluation, images=22, seeds=(0, 1), chunk=5)
    sampling = {"4": dataclasses.replace(base.sampling["4"], overrides={})}
    changes = {"evaluation": evaluation, "model": as_dict(EXACT), "sampling": sampling, "budgets": ("4",), **changes}
    return dataclasses.replace(base, name="tiny", images_of="tiny", dry_run=True, **sizes, **changes)


def in_folder(world, folder, stage, *arguments):
    os.chdir(folder)
    stage(*arguments)


@pytest.fixture
def model_in(tmp_path, monkeypatch):
    """Puts a random model where stages that run in a folder look for it."""

    def put(name, tiny):
        folder = tmp_path / name
        for seed in tiny.train_config("xs").seeds:
            model = random_model(tiny.model_config("xs"), seed=seed)
            save_model(folder / model_folder(tiny, "xs", seed), model.state_dict(), model.cfg)
        return folder

    monkeypatch.chdir(tmp_path)
    return put


def test_two_processes_generate_the_same_files_as_one(model_in, monkeypatch):
    tiny = benchmark()
    one, two = model_in("one", tiny), model_in("two", tiny)
    together(in_folder, two, sample, tiny, "xs", "4")
    monkeypatch.chdir(one)
    sample(tiny, "xs", "4")
    found = contents(one / "samples", "*.npz")
    assert len(found) == 2 * 2 * len(chunk_ranges(22, 5)) and found == contents(two / "samples", "*.npz")
    pixels, labels = SampleSet(two / "samples" / "tiny" / "xs" / "4" / "train1-seed0", 22).all()
    assert len(pixels) == 22 and labels.tolist() == [i % EXACT.classes for i in range(22)]
    records = [json.loads((f / "results/tiny/records/sample-xs-4.json").read_text()) for f in (one, two)]
    assert [r["processes"] for r in records] == [1, 2]
    assert records[0]["results"]["passes"] == records[1]["results"]["passes"]
    assert not (two / ".state" / "tiny" / "sample-xs-4").exists()

    small = dataclasses.replace(tiny, run=RunConfig(device="cpu", sample_batch=2, encode_batch=2))
    monkeypatch.chdir(model_in("small", small))  # and other batches give the same images within rounding
    sample(small, "xs", "4")
    again, _ = SampleSet(Path("samples/tiny/xs/4/train1-seed0"), 22).all()
    assert np.abs(again.astype(int) - pixels).max() <= 1


def test_a_killed_sampling_run_makes_only_the_missing_chunks(model_in, monkeypatch):
    tiny, firsts, done, real = benchmark(), [], [], sampling.draw_images
    monkeypatch.chdir(model_in("a", tiny))

    def draw(*args):
        firsts.append(args[-1].start)
        if len(firsts) == 4:
            raise Killed
        return real(*args)

    monkeypatch.setattr(sampling, "draw_images", draw)
    work = (StageRun(tiny, "sample-xs-4"), "xs", "4", (0, 0))
    with pytest.raises(Killed):
        sample_run(*work, lambda done: None)
    chunks = sample_run(*work, done.append)
    assert firsts == [0, 5, 10, 15, 15, 20] and done[0] == 13 and done[-1] == 22
    assert [cost["images"] for cost in chunks.finish()] == [5, 5, 5, 5, 2] and len(SampleSet(chunks.files, 22)) == 22


def encoded(folder, tiny, images=48):
    """Raw latents of both splits, with flips, where the stages look for them."""
    for part, seed in (("train", 0), ("holdout", 1)):
        latents = torch.randn(images, 2, 1, 4, 4, generator=torch.Generator().manual_seed(seed)).numpy()
        write_latents(folder / "data" / tiny.name / "latents" / part, latents, np.arange(images) % 2, {})


def test_the_train_stage_under_two_processes_writes_what_one_writes(tmp_path, monkeypatch):
    gate = dataclasses.replace(benchmark().gate, visible=(0, 8), on_failure="mark", images=16, repeats=2)
    tiny = benchmark(train=as_dict(dataclasses.replace(RECIPE, seeds=(0, 1))), gate=gate)
    for name in ("one", "two"):
        encoded(tmp_path / name, tiny)
    together(in_folder, tmp_path / "two", train_size, tiny, "xs")
    monkeypatch.chdir(tmp_path / "one")
    train_size(tiny, "xs")
    records = []
    for name in ("one", "two"):
        folder = tmp_path / name
        record = json.loads((folder / "results/tiny/records/train-xs.json").read_text())
        assert record["results"]["images"] == 12 * 8 and record["results"]["images_per_second"]["values"][0] > 0
        assert (folder / "models/tiny/xs/seed1/model.safetensors").is_file()
        assert (folder / "results/tiny/curves/xs.csv").is_file() and not (folder / ".state/tiny/train-xs").exists()
        records.append(record)
    assert [r["processes"] for r in records] == [1, 2]
    losses = [r["results"]["final_loss"]["values"] for r in records]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    ratios = [r["results"]["context"]["ratio"]["values"] for r in records]
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-4)


def test_large_latents_are_verified_before_training(tmp_path, monkeypatch):
    tiny = benchmark()
    encoded(tmp_path, tiny)
    monkeypatch.setattr("emigm.data.latents.CHECKED_ON_OPENING", 0)
    monkeypatch.chdir(tmp_path)
    shard = next((tmp_path / "data/tiny/latents/train").glob("*.npy"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(ConfigError, match="checksum differs"):
        train_size(tiny, "xs")


def test_places_are_those_of_torchrun_or_of_srun_where_the_launcher_was_used(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    slurm, torchrun = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"), ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    for names, values, expected in (
        (slurm, "581", (0, 1, 0)),  # an interactive allocation
        ((launching.LAUNCHED,), "1", (5, 8, 1)),
        (torchrun, "240", (2, 4, 0)),
    ):
        for name, value in zip(names, values, strict=True):
            monkeypatch.setenv(name, value)
        assert place() == expected
    with pytest.raises(ConfigError, match=r"4 processes.*MASTER_ADDR and MASTER_PORT.*export"):
        join(RunConfig(device="cpu"))


@pytest.mark.parametrize(
    ("gpus", "wanted", "environment", "expected"),
    [
        (2, "auto", {"LOCAL_RANK": "0"}, "cuda:0"),
        (2, "auto", {"LOCAL_RANK": "1"}, "cuda:1"),
        (2, "cpu", {"LOCAL_RANK": "1"}, "cpu"),
        (1, "auto", {launching.LAUNCHED: "1", "SLURM_LOCALID": "3"}, "cuda:0"),  # srun can show each its own alone
        (0, "auto", {}, "cpu"),
        (0, "cuda", {}, r"run\.device: cuda.*no GPU"),
        (2, "auto", {"LOCAL_RANK": "2"}, r"process 3 on a machine with 2 GPUs"),
    ],
)
def test_each_process_of_a_machine_takes_its_own_gpu(monkeypatch, gpus, wanted, environment, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if " " in expected or "*" in expected:
        with pytest.raises(ConfigError, match=expected):
            join(RunConfig(device=wanted))
    else:
        assert join(RunConfig(device=wanted)) == World(0, 1, expected)


def test_bf16_on_a_gpu_without_it_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(ConfigError, match=r"bf16.*Tesla T4.*float16"):
        autocast("bf16", "cuda:0")


@pytest.mark.parametrize(("rank", "held_back"), [("0", False), ("1", True)])
def test_an_error_is_printed_at_once_by_the_main_process_and_held_back_by_others(monkeypatch, capsys, rank, held_back):
    def stage_with_a_mistake(benchmark):
        raise ConfigError("something is missing")

    slept = []
    monkeypatch.setattr(launching.time, "sleep", slept.append)
    monkeypatch.setattr(sys, "argv", ["stage", "--params", str(ROOT / "params.yaml")])
    monkeypatch.setattr(launching.signal, "signal", lambda number, handler: None)
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit):
        run_stage(stage_with_a_mistake)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: something is missing" + " (process 1)" * held_back and bool(slept) == held_back


def launched(monkeypatch, launcher):
    """The command that takes this process's place, if any."""
    commands = []
    monkeypatch.setattr(launching.os, "execvp", lambda file, command: commands.append(command))
    monkeypatch.setattr(launching.shutil, "which", lambda name: None if name == "srum" else f"/usr/bin/{name}")
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", type("Spec", (), {"name": "emigm.stages.train"}))
    monkeypatch.setattr(sys, "argv", ["train.py", "--size", "xs"])
    monkeypatch.setenv(launching.LAUNCHED, "")
    monkeypatch.delenv(launching.LAUNCHED)
    launching.launch(launcher)
    return commands


def test_the_launcher_starts_the_same_stage_once(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    (command,) = launched(monkeypatch, "torchrun --standalone --nproc-per-node=2")
    assert command == ["torchrun", "--standalone", "--nproc-per-node=2", "-m", "emigm.stages.train", "--size", "xs"]
    assert launching.LAUNCHED in os.environ
    monkeypatch.setenv("MASTER_ADDR", "node7")
    (command,) = launched(monkeypatch, "torchrun --rdzv-endpoint=$MASTER_ADDR:29500")
    assert command[1] == "--rdzv-endpoint=node7:29500"
    assert launched(monkeypatch, None) == []
    with pytest.raises(ConfigError, match=r"run\.launcher: no command 'srum'"):
        launched(monkeypatch, "srum python")
    monkeypatch.setenv("LOCAL_RANK", "0")  # started by hand
    assert launched(monkeypatch, "torchrun --nproc-per-node=2") == []


def flags():
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


def test_products_of_float32_are_rounded_under_tf32_alone_convolutions_included():
    before = flags()
    with autocast("tf32", "cpu"):
        assert flags() == before
    with autocast("tf32", "cuda:0"):
        assert flags() == ("high", True)
        with products("float32", "cuda:0"):
            assert flags() == ("highest", False)
        assert flags() == ("high", True)
    assert flags() == before
