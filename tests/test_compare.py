"""Comparison with the paper, on records made up here (no number in this file was measured)."""

import contextlib
import functools
import itertools
import operator
from pathlib import Path

import numpy as np
import pytest

from emigm import cli
from emigm.config.compose import compose_benchmark
from emigm.flops import parameters
from emigm.io import write_json
from emigm.model.schedules import nfe
from emigm.paper.reported import reported
from emigm.pictures import grid_of, save_png
from emigm.records.frame import read_all
from emigm.records.record import read_record, write_record
from emigm.tools.compare import compare, compare_cells
from emigm.tools.fetch import PUBLISHED


def paper_fid(resolution, size, budget):
    rows = reported().query("family == 'Ours' and resolution == @r", local_dict={"r": str(resolution)})
    row = rows[(rows.method == f"eMIGM-{size.upper()}") & rows.nfe.str.startswith(f"{budget}x")]
    return float(row.fid.item())


def write_paper_results(root, name="imagenet256", *overrides, factor=1.0):
    """Records as the stages write them with stored statistics, FIDs being the reported ones times `factor`."""
    benchmark = compose_benchmark(name, overrides)
    with contextlib.chdir(root):  # records go to the working directory's results/
        _write(benchmark, factor)
    return benchmark


def _write(benchmark, factor):
    released, evaluation = benchmark.weights == "released", benchmark.evaluation
    write = functools.partial(write_record, benchmark, device="cpu", processes=8)
    reason = {"none": "released weights"} if released else {"train_images": 1_281_167, "holdout_images": 50_000}
    write("prepare", reason | {"classes": benchmark.data.classes})
    write("extractor", {"features": 2048, "published": True})
    source = {"kind": "stored statistics", "file": Path(evaluation.reference).name, "feature_images": 10_000}
    stored = {"images": 10_000, "isc": 230.1, "fid": 2.0}
    write("reference", {"source": source, "floors": {}, "stored_images": stored})
    identity = {"extractor_identity": {"kind": "inception", "sha256": PUBLISHED["inception"], "published": True}}
    identity["reference_source"] = {"kind": "stored statistics", "sha256": "a" * 64}
    token = {"sha256": "b" * 64, "shared_token": {"used": released and benchmark.released.token}}
    for size in benchmark.sizes:
        train, trained = benchmark.train_config(size), {"flops": None, "images": None, "context": None}
        if not released:
            context = {"ratio": {"mean": 0.9}, "passed": True}
            trained = {"flops": 10**21, "images": train.steps * train.batch, "context": context}
        trained["parameters"], scores = parameters(benchmark.model_config(size)), {}
        write(f"train-{size}", trained, **({"source": token} if released else {}))
        for budget in benchmark.budgets:
            sample = benchmark.sample_config(size, budget)
            cost = nfe(sample.steps, sample.cfg_scale, sample.cfg_interval)
            seconds = {"mean": 0.01 * sample.steps, "n": 1}
            write(f"sample-{size}-{budget}", {"nfe": cost, "passes": cost, "seconds_per_image": seconds})
            named = budget in ("16", "64", "128")
            fid = factor * paper_fid(benchmark.compare.resolution, size, budget) if named else 300.0
            means = {"fid": fid, "isc": 250.0, "kid": 0.001, "precision": 0.8, "recall": 0.6, "clean_fid": 4.0}
            pairs = itertools.product(train.seeds, evaluation.seeds)
            scores[budget] = {"runs": [{"train_seed": t, "sample_seed": s} | means for t, s in pairs]}
            pixels = np.random.default_rng(0).integers(0, 256, (120, 3, 32, 32), dtype=np.uint8)
            grid = Path("results") / benchmark.name / "grids" / f"{size}-{budget}.png"
            save_png(grid, grid_of(pixels, 10, 12))
        write(f"evaluate-{size}", scores, **identity)


def change(stage, key, *, to):
    """Overwrite the value at a dotted key of a record."""
    path, (*above, last) = Path(f"results/imagenet256/records/{stage}.json"), key.split(".")
    tree = read_record(path)
    functools.reduce(operator.getitem, above, tree)[last] = to
    write_json(path, tree)


def verdicts(benchmark):
    return {(c.size, c.budget): c for c in compare_cells(read_all(Path(), benchmark.name), benchmark.compare)}


@pytest.mark.parametrize(("name", "table", "cells"), [("imagenet256", 2, 10), ("imagenet512", 3, 8)])
def test_the_papers_own_numbers_are_within_the_tolerance(checkout, capsys, name, table, cells):
    assert compare(write_paper_results(checkout, name)) == 0
    out = capsys.readouterr().out
    assert f"{cells} within" in out and "OUTSIDE" not in out and f"against the paper's Table {table}" in out


ONE = ("benchmark.sizes=[xs]", "benchmark.budgets=['16']")


@pytest.mark.parametrize(("weights", "tolerance"), [("released", 0.018), ("trained", 0.04)])
def test_the_verdict_changes_at_the_tolerance_of_the_weights(checkout, capsys, weights, tolerance):
    for sign in (1, -1):
        for factor, code in ((1 + sign * (tolerance - 0.001), 0), (1 + sign * (tolerance + 0.001), 1)):
            settings = (*ONE, f"benchmark.weights={weights}")
            benchmark = write_paper_results(checkout, "imagenet256", *settings, factor=factor)
            assert compare(benchmark, allow_missing=True) == code
    out = capsys.readouterr().out
    assert f"±{100 * tolerance:g}%" in out and out.endswith("\nnot reproduced: 1 FID outside the tolerance\n")


def test_cells_that_have_not_run_fail_unless_that_is_allowed(checkout, capsys):
    benchmark = write_paper_results(checkout, "imagenet256", *ONE)
    assert compare(benchmark) == 1
    printed = capsys.readouterr().out
    assert "1 within, 9 not run" in printed and "--allow-missing" in printed.splitlines()[-1]
    assert compare(benchmark, allow_missing=True) == 0
    *_, hint, verdict = capsys.readouterr().out.splitlines()
    assert "`emigm verify imagenet256`" in hint and verdict == "reproduced: 1 FID within the tolerance of the paper's"


@pytest.mark.parametrize(
    ("stage", "key", "value", "reason"),
    [
        ("evaluate-b", "dry_run", True, "dry_run = True, the paper's: False"),
        ("evaluate-b", "settings.images", 10_000, "evaluation.images = 10000, the paper's: 50000"),
        ("evaluate-b", "reference", "training images", "reference = training images, the paper's: VIRTUAL"),
        ("evaluate-b", "settings.extractor.kind", "cnn", "extractor.kind = cnn"),
        ("evaluate-b", "settings.extractor_identity.sha256", "0", "extractor.sha256 = 0"),
        ("evaluate-b", "weights", "trained", "weights = released and trained"),
        ("sample-b-16", "settings.sample.solver_steps", 14, "sample.solver_steps = 14, the paper's: 8"),
        ("sample-b-16", "settings.sample.precision", "bf16", "sample.precision = bf16, the paper's: float16"),
        ("sample-b-16", "settings.autoencoder.precision", "bf16", "autoencoder.precision = bf16"),
        ("train-b", "settings.source.shared_token.used", "ema", "released.token = ema"),
        ("train-b", "settings.model.width", 704, "model.width = 704, the paper's: 768"),
    ],
)
def test_a_cell_that_came_about_otherwise_is_not_comparable(checkout, capsys, stage, key, value, reason):
    benchmark = write_paper_results(checkout)
    change(stage, key, to=value)
    cell = verdicts(benchmark)["b", "16"]
    assert cell.verdict == "not comparable" and any(reason in r for r in cell.reasons)
    assert verdicts(benchmark)["xs", "16"].verdict == "within"
    assert compare(benchmark, allow_missing=True) == 1 and reason in capsys.readouterr().out


def test_the_papers_precision_is_float16_and_what_rounds_no_coarser_is_noted(checkout, capsys):
    benchmark = write_paper_results(checkout)
    assert compare(benchmark) == 0 and "note:" not in capsys.readouterr().out
    for part in ("sample", "autoencoder"):
        change("sample-b-16", f"settings.{part}.precision", to="tf32")
        assert compare(benchmark) == 0
        note = f"note: {part}.precision = tf32, the paper's: float16, which rounds no finer"
        assert note in capsys.readouterr().out


def test_a_file_that_fetch_recorded_is_known_by_its_checksum_and_not_by_its_name(checkout, capsys):
    benchmark = write_paper_results(checkout)
    assert compare(benchmark) == 0 and "known by their name alone" in capsys.readouterr().out
    for stage in [f"evaluate-{size}" for size in benchmark.sizes]:
        change(stage, "reference", to="renamed.npz")
    assert "reference = renamed.npz" in verdicts(benchmark)["b", "16"].reasons[0]
    write_json("weights/fetched.json", {"reference/VIRTUAL_imagenet256_labeled.npz": {"sha256": "a" * 64}})
    assert compare(benchmark) == 0 and "known by their name alone" not in capsys.readouterr().out
    change("evaluate-b", "settings.reference_source.sha256", to="c" * 64)
    assert "reference = cccc" in verdicts(benchmark)["b", "16"].reasons[0]
    assert verdicts(benchmark)["xs", "16"].verdict == "within"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ([], ()),
        (["benchmark.train.steps=100000"], ("train.images = 204800000, the paper's: 1024000000",)),
        (["benchmark.train.mask_times=group"], ()),  # what auto comes to
        (["benchmark.train.schedule=linear"], ("train.schedule = linear, the paper's: exp",)),
    ],
)
def test_trained_weights_count_at_the_papers_scale_only(checkout, override, expected):
    results = write_paper_results(checkout, "imagenet256", "benchmark.weights=trained", *override)
    assert {c.reasons for (size, _), c in verdicts(results).items() if size not in ("xs", "s")} == {expected}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("smoke", "smoke has no benchmark.compare"),
        ("imagenet256", "imagenet256: not run yet, so there is nothing to compare; `emigm doctor imagenet256`"),
    ],
)
def test_what_cannot_be_compared_is_one_line(checkout, refused, arguments, message):
    assert message in refused("compare", *arguments.split())


def test_npz_exports_the_samples_of_the_first_or_the_named_seed(checkout, refused, monkeypatch):
    calls, command = [], ("npz", "imagenet256", "xs", "16", "out.npz")
    monkeypatch.setattr("emigm.metrics.adm.export_npz", lambda *arguments: calls.append(arguments))
    write_paper_results(checkout, "imagenet256", "benchmark.evaluation.seeds=[3,4]")
    assert cli.main([*command]) == cli.main([*command, "--seed", "4"]) == 0
    folder = Path("samples/imagenet256/xs/16")
    assert calls == [(folder / f"train0-seed{s}", Path("out.npz"), 50_000) for s in (3, 4)]
    assert "sampled with seeds 3, 4, not 7" in refused(*command, "--seed", 7)
    Path("results/imagenet256/records/sample-xs-16.json").unlink()
    assert "no such record; the stage that writes it has not run" in refused(*command)
    assert "unknown size of imagenet256 'q' (allowed: xs, s, b, l, h)" in refused("npz", "imagenet256", "q", "16", "a")
    assert "unknown budget of imagenet256 '32' (allowed: 16, 128)" in refused("npz", "imagenet256", "xs", "32", "a")
