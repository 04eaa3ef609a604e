"""The tidy frame of all runs, on records made up here and on those that this repository tracks."""

import shutil

import pandas as pd
import pytest
from made_up import LADDER, REPO, edit, write_results

from emigm.config.benchmark import load_benchmark
from emigm.config.errors import ConfigError
from emigm.records.frame import benchmarks_with_results, find_root, runs
from emigm.stages.summary import summary


def test_every_run_is_one_row_with_metrics_settings_and_gate_in_the_order_of_sizes_and_budgets(root):
    frame = runs(root, ["mnist"])
    assert len(frame) == 5 * 2 * 2 * 2
    assert not frame.duplicated(["benchmark", "size", "budget", "train_seed", "sample_seed", "snapshot"]).any()
    row = frame.query("size == 'h' and budget == '16' and train_seed == 1 and sample_seed == 1").squeeze()
    assert row["fid"] == pytest.approx(0.83 * 1.125 + 0.12)
    assert row["N"] == 16 and row["sample.cfg_interval"] == (0.1, 0.4) and row["train.steps"] == 2500
    assert row["model.width"] == 56 and row["parameters"] == 24_000 * 16 and row["train_images"] == 160_000
    assert row["fid_by_images"] == {1000: row["fid"], 500: row["fid"] + 1}
    assert row["fid_by_extractor"] == {0: row["fid"], 1: row["fid"] + 0.5} and row["cas"] == 0.9
    assert row["seconds_per_image"] == pytest.approx(0.0004 * 16 * 1.5**4 + 3e-6)
    assert row["train_seconds"] == 60 * 16 + 1
    assert (row["dataset"], row["weights"], row["scored_images"]) == ("mnist", "trained", 1000)
    assert row["resolution"] == load_benchmark(REPO / "params.yaml").data.resolution
    assert list(frame["size"].unique()) == list(LADDER) and list(frame["budget"].unique()) == ["4", "16"]
    gates = frame.drop_duplicates(["size", "train_seed"]).set_index(["size", "train_seed"])
    assert not gates.loc[("xs", 1), "gate_passed"] and gates.loc[("xs", 1), "gate_ratio"] == 0.97
    assert gates.loc[("xs", 0), "gate_passed"] and gates.loc[("h", 1), "gate_passed"]


def test_a_record_of_before_a_setting_existed_has_its_default(tmp_path):
    folder = write_results(tmp_path)
    edit(folder, "train-xs", lambda record: record["settings"]["train"].pop("ema_warmup"))
    assert runs(tmp_path)["train.ema_warmup"].eq(False).all()


def test_scores_that_are_not_there_of_all_models_are_not_summed_up(tmp_path, monkeypatch):
    (write_results(tmp_path) / "records" / "evaluate-h.json").unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="8 of 10 models and configurations have scores"):
        summary(load_benchmark(REPO / "params.yaml"))


def test_seeds_trained_since_the_scores_have_no_gate(tmp_path):
    folder = write_results(tmp_path, sizes={"xs": 4.0})
    edit(folder, "train-xs", lambda r: r["settings"]["train"].update(seeds=[7, 8]))
    assert runs(tmp_path)["gate_ratio"].isna().all()


def test_images_and_extractor_may_lie_with_another_benchmark(tmp_path):
    write_results(tmp_path)
    folder = write_results(tmp_path, "ladder", sizes={"xs": 4.0})
    for stage in ("prepare", "extractor"):
        (folder / "records" / f"{stage}.json").unlink()
    assert runs(tmp_path, ["ladder"])["dataset"].isna().all()
    for path in (folder / "records").glob("*.json"):
        edit(folder, path.stem, lambda r: r.update(images_of="mnist"))
    frame = runs(tmp_path, ["ladder"])
    assert (frame["dataset"] == "mnist").all() and (frame["features"] == 64).all()
    assert set(frame["benchmark"]) == {"ladder"} and set(frame["title"]) == {"Made-up ladder"}


def test_benchmarks_are_found_by_their_records_the_default_first(root):
    assert benchmarks_with_results(root) == ["mnist", "smoke", "snapshots"]
    assert runs(root)["benchmark"].unique().tolist() == ["mnist", "smoke", "snapshots"]
    assert runs(root, ["smoke"])["dry_run"].all() and not runs(root, ["mnist"])["dry_run"].any()
    with pytest.raises(ConfigError, match="mnst"):
        runs(root, ["mnst"])


def test_the_root_is_found_from_a_folder_of_a_benchmark(root, tmp_path, monkeypatch):
    (root / "benchmarks" / "ladder").mkdir(parents=True)
    shutil.copy(root / "dvc.yaml", root / "benchmarks" / "ladder" / "dvc.yaml")
    monkeypatch.chdir(root / "benchmarks" / "ladder")
    assert find_root() == root
    monkeypatch.chdir(tmp_path.anchor)
    with pytest.raises(ConfigError, match=r"no dvc.yaml beside a results"):
        find_root()


def test_the_tracked_results_make_a_frame():
    names = benchmarks_with_results(find_root())
    frame = runs()
    assert set(frame["benchmark"]) == set(names)
    if names:
        assert frame["fid"].notna().any() and pd.api.types.is_float_dtype(frame["fid"])
