"""`emigm bench` on a tiny model, its record, and the notebook that reads it."""

import dataclasses
import functools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL
from test_notebooks import reading, run

from benchmarks.speed import bench, embedded, timing
from benchmarks.speed.timing import Variant
from emigm import cli
from emigm.autoencoders.autoencoder import KL16, KL16_CONFIG
from emigm.config.compose import compose_benchmark
from emigm.config.schema import ModelConfig, SampleConfig
from emigm.io import write_json
from emigm.records.record import SCHEMA, read_record
from tests.official import oracle

MODEL = ModelConfig(
    grid=2, channels=16, classes=5, width=16, encoder_blocks=1, decoder_blocks=1, heads=2, head_width=16, head_blocks=1
)
SAMPLE = SampleConfig(2, 3, 2.0, (0.2, 0.6))
EMBEDDED = {
    "matrix_rates": {"float32": 1e11},
    "training": {"xs": {"steps_per_cpu_second": 20.0, "spread": 0.1, "flops": 2e9, "share_of_matrix_rate": 0.4}},
    "start_up": {"train": {"cpu_seconds": 2.0, "spread": 0.1}, "index": {"cpu_seconds": 0.5, "spread": 0.1}},
    "spent_cpu_seconds": {"train-xs": 50.0, "train-s": 40.0, "index": 10.0},
}


def subject(code=None):
    torch.manual_seed(0)
    narrow = AutoencoderKL(**KL16_CONFIG | {"block_out_channels": (32,) * 5, "layers_per_block": 1}).eval()
    autoencoder = functools.partial(KL16, narrow, 0.2325, "cpu")
    return bench.Subject("256-xs", "cpu", MODEL, SAMPLE, autoencoder, 32, code, 2)  # 16 pixels a latent


@pytest.fixture(scope="module")
def results():
    return bench.bench_model(subject(), repeats=2)


def test_every_item_is_measured_and_judged_by_the_rate_of_its_precision_and_precisions_differ_by_rounding(results):
    assert list(results["items"]) == list(bench.ITEMS)
    for name, item in results["items"].items():
        assert all(len(row["seconds"]) == 2 and row["median"] > 0 for row in item["variants"])
        best = min(item["variants"], key=lambda row: row["median"])
        assert item["best"] == {"ours": best["precision"]} and item["speedup"] is None
        if name in ("reading latents", "sampling without head"):
            assert item["share_of_matrix_rate"] is None
        else:
            share = item["flops"] / best["median"] / results["matrix_rates"][best["precision"]]
            assert item["share_of_matrix_rate"] == pytest.approx(share)
    rows = {row["precision"]: row for row in results["differences"]}
    assert set(rows) == {"float16", "bf16", "8 bits from float16"}
    for measure, most in (("latents", 0.2), ("moved", 1)):
        assert 0 < rows["float16"][measure] < rows["bf16"][measure] < most
    assert rows["8 bits from float16"]["moved"] == pytest.approx(0.04, abs=0.005)


def test_variants_run_in_turn_after_one_call_each_and_the_fastest_precisions_are_compared(monkeypatch):
    ran = []
    variants = [Variant(code, "float32", lambda code=code: ran.append(code[1])) for code in ("ours", "official")]
    ticks = iter([0, 1, 10, 13, 20, 21, 30, 37])
    monkeypatch.setattr(timing, "clock", lambda device: next(ticks))
    rows = timing.measure(variants, "cpu", 2)
    assert "".join(ran) == "uf" * 3
    assert [(row["seconds"], row["median"], row["spread"]) for row in rows] == [([1, 1], 1, 0), ([3, 7], 5, 0.8)]
    measured = (("ours", "float32", 4.0), ("ours", "bf16", 2.0), ("official", "float32", 6.0))
    rows = [dict(zip(("code", "precision", "median"), row, strict=True)) for row in measured]
    best = bench.summary(rows, 8e9, {"float32": 8e9, "bf16": 16e9})
    assert best["best"] == {"ours": "bf16", "official": "float32"}
    assert (best["speedup"], best["share_of_matrix_rate"]) == (3.0, 0.25)


def test_memory_is_that_of_the_call_alone():
    for _ in range(3):  # also where the process has had as much and has freed it
        # 128 MiB in pieces that the C library keeps when freed
        taken = timing.peak_bytes(lambda: [torch.ones(2**18) for _ in range(128)], "cpu")
        assert taken is None or 0.9 * 2**27 < taken < 1.5 * 2**27


def test_the_official_code_masks_as_many_tokens_runs_in_its_precisions_and_prints_nothing(capsys):
    theirs = SimpleNamespace(random_masking=lambda tokens: (torch.zeros(tokens.shape[:2]), "t", "exp"))
    mask, *rest = oracle.fixed_masking(theirs, 3)(torch.zeros(4, 9, 2))
    assert mask.sum(1).tolist() == [3.0] * 4 and rest == ["t", "exp"] and mask.dtype == torch.float32
    seen = []

    def official():
        print("official")
        seen.append(torch.is_autocast_enabled("cpu"))

    work, item = bench.Work(lambda precision: None, lambda: official, None), bench.ITEMS["sampling"]
    variants = bench.variants_of(item, work, subject(SimpleNamespace()), ["float32", "bf16"])[2:]
    assert [(v.code, v.precision) for v in variants] == [("official", "float32"), ("official", "bf16")]
    for variant in variants:
        variant.run()
    assert seen == [False, True] and capsys.readouterr().out == ""


def test_scoring_is_compared_with_torch_fidelity_s_own_reading_of_files(tmp_path):
    work = bench.scoring(subject(), 2, tmp_path)
    assert work.flops == 2 * 11.4e9
    ours, theirs = work.ours("float32")(), work.official()()
    assert torch.allclose(ours["pool"], theirs["2048"], rtol=1e-4, atol=1e-4) and "clean" not in ours


def test_the_notebook_reads_the_records_and_says_what_has_not_run(tmp_path, results, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "results").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "Speed: not run." in reading(run("speed", tmp_path, monkeypatch))
    settings = {"model": "256-xs", "device": "cpu", "repeats": 2, "threads": 1, "clock": "CPU seconds"}
    compared = json.loads(json.dumps(results))
    for name, item in compared["items"].items():
        row = dict(item["variants"][0], code="official", precision="float32", median=1e6)
        variants = [v | {"spread": 2.0 if name == "reading latents" else 0.1} for v in (*item["variants"], row)]
        item |= {"variants": variants, "best": item["best"] | {"official": "float32"}, "speedup": 2.5}
    path = bench.write_speed(cli.SPEED, "256-xs", compared, settings, "cpu")
    assert path.as_posix() == "results/speed/measured/cpu-256-xs.json"
    assert read_record(path)["provenance"]["commit"] is None
    bench.write_speed(cli.SPEED, "embedded", EMBEDDED, {"benchmark": "mnist", "steps": 5, "threads": 1}, "cpu")
    space = run("speed", tmp_path, monkeypatch, out=str(tmp_path / "out"))
    text = reading(space)
    assert "sampling 2.5×" in text and "XS 20 (40%)" in text and "0.5 to 2.0 CPU seconds to start" in text  # noqa: RUF001
    assert "Of the 2 CPU minutes of its 3 stages with a record: train 90%, index 10%; start-up is 4%." in text
    assert "On a GPU: not run." in text and "nan" not in text
    seconds = [results["items"][f"sampling{x}"]["variants"] for x in ("", " without head")]
    added = min(v["median"] for v in seconds[0]) / min(v["median"] for v in seconds[1]) - 1
    assert f"the head adds {added:.0%} to the time of the transformer at N = 16 (the paper: about 14%" in text
    shares = space["heads"].set_index(["Model", "N"])["Head beside the transformer"]
    assert shares["512 XS", "16"] == "65%" and shares["256 H", "128"] == "2%"  # 8 and 14 evaluations a token
    assert "reading latents 2.5" not in text and "repeats differ by more than their median: reading latents." in text
    written = {path.name for path in Path("out").iterdir()}
    assert {"speed.md", "speed.csv", "rounding.md", "speed.png", "reading.md"} <= written
    assert len(space["_shown"][0].frame) == len(bench.ITEMS)


def test_the_default_benchmark_is_trained_for_a_few_steps_and_its_stages_are_started(monkeypatch):
    assert {"prepare", "train", "sample", "evaluate"} < set(embedded.STAGES)
    assert 0 < embedded.start_up("summary") < 60  # in a process of its own
    benchmark = compose_benchmark("smoke")
    benchmark = dataclasses.replace(benchmark, sizes=benchmark.sizes[:1])
    monkeypatch.setattr(embedded, "start_up", lambda stage: 1.0)
    threads = torch.get_num_threads()
    try:
        measured = embedded.bench_embedded(benchmark, steps=3, repeats=2)
    finally:
        torch.set_num_threads(threads)
    (speed,) = measured["training"].values()
    assert speed["steps_per_cpu_second"] > 0 and speed["share_of_matrix_rate"] > 0
    assert set(measured["start_up"]) == set(embedded.STAGES) and measured["start_up"]["train"]["cpu_seconds"] == 1.0
    assert "of the record's speed" not in embedded.beside(measured, None)


@pytest.mark.parametrize("slower", [1, 2])
def test_speed_is_compared_relative_to_the_matrix_rate(slower):
    """A machine of half the rate that trains and starts at half the speed is as fast, at a quarter half as fast."""
    now = {
        "matrix_rates": {"float32": 5e10},
        "training": {"xs": {"steps_per_cpu_second": 10.0 / slower, "share_of_matrix_rate": 0.4 / slower}},
        "start_up": {"train": {"cpu_seconds": 4.0 * slower}, "reveal": {"cpu_seconds": 1.0}},
    }
    first, second, third = embedded.beside(now, EMBEDDED).splitlines()
    relative = f"{1 / slower:.2f} of the record's speed, relative to the matrix rate"
    speed = f"xs: {10 / slower:.1f} training steps a CPU second, {0.4 / slower:.0%} of the matrix rate"
    assert (first, second) == (f"{speed}; {relative}", f"train: {4 * slower:.1f} CPU seconds to start; {relative}")
    assert third == "reveal: 1.0 CPU seconds to start"


def test_the_record_is_written_with_what_stages_took_and_compared_with_the_tracked_one(checkout, monkeypatch):
    assert embedded.spent("mnist") == {}
    record = {"schema": SCHEMA, "settings": {}, "results": {}, "provenance": {"cpu_seconds": 50.0}}
    write_json(Path("results/mnist/records/train-xs.json"), record)
    assert embedded.spent("mnist") == {"train-xs": 50.0}
    monkeypatch.setattr(embedded, "bench_embedded", lambda *_: EMBEDDED)
    text = embedded.measure_beside(checkout / "tracked", checkout / "tracked", 1, 1)
    assert "of the record's speed" not in text and text.endswith("tracked/cpu-embedded.json: written")
    text = embedded.measure_beside(checkout / "tracked", checkout / "out", 1, 1)
    assert "1.00 of the record's speed" in text and (checkout / "out" / "cpu-embedded.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--embedded --compile", "--compile has no effect with --embedded"),
        ("--steps 3", "--steps has no effect without --embedded"),
        *((f"--{name} 0", f"--{name} 0: must be at least 1") for name in ("repeats", "threads", "batch", "steps")),
    ],
)
def test_options_that_do_nothing_or_are_too_small_are_refused(refused, arguments, message):
    assert refused("bench", *arguments.split()).startswith(f"error: {message}")
