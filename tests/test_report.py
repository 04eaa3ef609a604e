"""Tables, figures and the index, on records made up here (no number in this file was measured)."""

# ruff: noqa: RUF001
# γ, × and – are meant: they are the paper's notation.
import ast
import copy
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
from emigm.report.convergence import convergence
from emigm.report.figures import figure1, figure4, figure5, figure6
from emigm.report.index import write_index
from emigm.report.results import Results, find_root, load, plus_minus, reported
from test_compare import write_paper_results

from emigm.config.benchmark import load_benchmark
from emigm.config.errors import ConfigError
from emigm.config.schema import GateConfig, ModelConfig, SampleConfig, TrainConfig
from emigm.model.schedules import nfe
from emigm.paper.settings import PAPER_MODELS
from emigm.pictures import save_grid
from emigm.records.record import mean_and_spread, write_record
from emigm.report.style import Picture, styled
from emigm.report.tables import Table, metrics_table, table2, table3, table4

REPO = Path(__file__).parents[1]
NOTEBOOKS = sorted(path.stem for path in (Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
FIGURES = (figure1, figure4, figure5, figure6)
TABLES = (table2, table3, table4)
LADDER = {"xs": 4.02, "s": 2.31, "b": 1.74, "l": 1.12, "h": 0.83}


def write_results(root, name="digits", *, dry_run=False, sizes=LADDER, budgets=("4", "16"), train_seeds=(0, 1)):
    """Records and grids as the stages write them, with made-up numbers; returns results/<name>."""
    here = Path.cwd()
    os.chdir(root)  # records go to the working directory's results/
    try:
        benchmark = dataclasses.replace(
            load_benchmark(REPO / "params.yaml"), name=name, title=name.capitalize(), dry_run=dry_run
        )
        return _write_results(benchmark, sizes, budgets, list(train_seeds))
    finally:
        os.chdir(here)


def falling(fid, train_seed, sample_seed):
    """FID of 2,000, 1,000 and 500 images; of infinitely many it is `fid` + training seed, but for the sampling seed."""
    limit = fid + train_seed + (0.2 if sample_seed else -0.2)
    return {str(n): limit + 700 / n for n in (2000, 1000, 500)}


def _write_results(bench, sizes, budgets, train_seeds):
    rng = np.random.default_rng(0)
    extractor = {"kind": "cnn", "steps": 600}

    def record(stage, results, **settings):
        return write_record(bench, stage, results, device="cpu", **settings)

    def around(mean, spread, n=3):
        return mean_and_spread([float(mean + spread * e) for e in rng.standard_normal(n)])

    record("prepare", {"train_images": 1348, "holdout_images": 449, "classes": 10})
    record("extractor", {"holdout_accuracy": 0.98, "train_accuracy": 1.0, "features": 64}, extractor=extractor)
    shuffle = {"fid": around(2.39, 0.08), "isc": around(5.33, 0.04), "label_accuracy": around(0.938, 0.004)}
    held_out = {"fid": {"mean": 0.42}, "isc": {"mean": 7.21}, "label_accuracy": {"mean": 0.98}, "images": 449}
    floors = {"holdout": held_out, "class_shuffle": shuffle | {"images": 1348}}
    floors["train_bootstrap"] = {"fid": around(0.25, 0.01), "images": 449}
    real = {"isc": 7.39, "images": 1348}
    record("reference", {"floors": floors, "real": real, "nearest": {"holdout_to_train": 1.71}}, extractor=extractor)
    for i, (size, fid) in enumerate(sizes.items()):
        model = ModelConfig(8, 1, 10, 24 + 8 * i, 1 + i // 2, 1 + i // 2, 4, 48, 2, patch=2)
        ratio = around(0.9 - 0.02 * i, 0.01, len(train_seeds))
        context = {"errors": {"0": around(0.18, 0.002), "8": around(0.16, 0.002)}, "ratio": ratio, "passed": i > 0}
        trained = {"parameters": 24_000 * 2**i, "seconds": around(60 * 2**i, 3), "flops": int(4e12 * 2**i)}
        trained |= {"flops_per_step": int(1e9 * 2**i), "images": 160_000, "final_loss": around(0.2, 0.01)}
        train = TrainConfig(2500, 64, 3e-3, seeds=tuple(train_seeds))
        gate = GateConfig((0, 8))
        record(f"train-{size}", trained | {"context": context}, size=size, model=model, train=train, gate=gate)
        scores = {}
        for budget in budgets:
            steps, cell = int(budget), {"size": size, "budget": budget}
            cell |= {"images": 2000, "seeds": [0, 1, 2], "train_seeds": train_seeds}
            sample = SampleConfig(steps, 12, 2.0, (0.1, 0.4))
            passes = nfe(steps, 2.0, (0.1, 0.4)) - 0.02
            seconds = around(0.0004 * steps * 1.5**i, 1e-5)
            sampled = {"nfe": nfe(steps, 2.0, (0.1, 0.4)), "passes": passes, "seconds_per_image": seconds}
            record(f"sample-{size}-{budget}", sampled, **cell, sample=sample)
            means = {"fid": fid * (1 + 2 / steps), "isc": 7 / (1 + 0.05 * fid), "kid": 0.0031 * fid, "precision": 0.81}
            means |= {"recall": 0.64, "label_accuracy": 0.97, "nearest_train": 1.52, "nearest_holdout": 1.77}
            train_std = {k: 0.05 * v for k, v in means.items()} if len(train_seeds) > 1 else dict.fromkeys(means)
            summary = {k: {"mean": v, "train_std": train_std[k], "sample_std": 0.02 * v} for k, v in means.items()}
            by_images = [
                {"train_seed": t, "sample_seed": s, "fid": falling(fid, t, s)} for t in train_seeds for s in (0, 1)
            ]
            scores[budget] = {"runs": [], "fid_by_images": by_images, "summary": summary}
            pixels = rng.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
            save_grid(Path("results") / bench.name / "grids" / f"{size}-{budget}.png", pixels, 10, 12)
        seeds = {"images": 2000, "seeds": [0, 1, 2], "train_seeds": train_seeds}
        record(f"evaluate-{size}", scores, size=size, **seeds, extractor=extractor)
    return Path.cwd() / "results" / bench.name


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A checkout with results of digits (all sizes) and of a dry run, smoke."""
    root = tmp_path_factory.mktemp("checkout")
    (root / "dvc.yaml").touch()
    write_results(root)
    write_results(root, "smoke", dry_run=True, sizes={"xs": 30.0, "s": 28.0}, train_seeds=(0,))
    return root


@pytest.fixture
def digits(root):
    return load("digits", root)


def code_of(name):
    notebook = nbformat.read(REPO / "notebooks" / f"{name}.ipynb", as_version=4)
    return notebook, [cell for cell in notebook.cells if cell.cell_type == "code"]


def remove(results, *stages):
    """The same results without some records."""
    kept = {stage: record for stage, record in results.records.items() if stage not in stages}
    return Results(results.root, results.name, kept)


def test_all_reported_rows_are_shown_in_the_papers_order(digits):
    rows = reported()
    for table, resolution in ((table2, "256"), (table3, "512")):
        frame, expected = table(digits).frame, rows[rows["resolution"] == resolution]
        assert frame["Family"].tolist() == expected["family"].tolist()
        assert frame.iloc[:, 3].tolist() == expected["fid"].tolist()
    assert len(rows) == 34 + 25


def test_reported_parameters_match_the_paper_models_sizes():
    ours = reported().query("family == 'Ours'")
    sizes = {(int(r.resolution), r.method.split("-")[1].lower()) for r in ours.itertuples()}
    assert sizes == set(PAPER_MODELS)


def test_own_numbers_stand_beside_the_row_of_their_size_and_budget_rank(digits):
    frame = table2(digits).frame.set_index(["Method", "NFE (paper)"])
    fid = next(c for c in frame if c.startswith("FID-2K on digits"))
    assert frame.loc[("eMIGM-H", "16×1.2"), fid] == "1.245 ± 0.062"  # N = 4: 0.83 × 1.5, train_std 5%
    assert frame.loc[("eMIGM-H", "128×1.4"), fid] == "0.934 ± 0.047"
    assert frame.loc[("eMIGM-H", "128×1.4"), "NFE on digits"] == "16×1.31"
    assert frame.loc[("eMIGM-H", "128×1.4"), "Params on digits"] == "384K"
    assert frame.loc[("eMIGM-XS", "16×1.2"), "Context gate on digits"].startswith("FAILED (0.")
    assert frame.loc[("eMIGM-S", "16×1.2"), "Context gate on digits"].startswith("passed (0.")


def test_other_methods_are_marked_as_not_ours_to_run(digits):
    table = table2(digits)
    others = table.frame[table.frame["Family"] != "Ours"]
    assert (others.iloc[:, 5:] == "–").all(axis=None)
    assert "“–”: not measured; the other methods are not run" in "".join(table.notes)


def test_fid_of_another_data_set_cannot_be_read_as_the_papers(digits):
    table = table2(digits)
    assert "FID-2K on digits (64 features of a small CNN; not comparable with the paper's)" in table.frame
    assert "digits is not ImageNet 256×256" in "".join(table.notes)
    assert "Held-out" in table.below.frame["Model on digits"].str.cat(sep=" ")
    assert "held-out real images (never trained on; 449 images) 0.42" in "".join(table.notes)


def test_the_papers_own_data_set_matches_budgets_by_their_steps(root, tmp_path):
    write_results(tmp_path, "imagenet256", sizes={"xs": 4.2}, budgets=("128",))
    frame = table2(load("imagenet256", tmp_path)).frame.set_index(["Method", "NFE (paper)"])
    assert "FID-2K on imagenet256" in frame
    assert frame.loc[("eMIGM-XS", "16×1.2"), "FID-2K on imagenet256"] == "not run"
    assert frame.loc[("eMIGM-XS", "128×1.4"), "FID-2K on imagenet256"].startswith("4.2")


def test_a_missing_record_reads_not_run(digits):
    partial = remove(digits, "evaluate-l", "sample-l-16", "train-l")
    frame = table2(partial).frame.set_index(["Method", "NFE (paper)"])
    assert (frame.loc[("eMIGM-L", "128×1.4")].iloc[3:] == "not run").all()
    metrics = metrics_table(partial).frame.set_index(["Model on digits", "N"])
    assert (metrics.loc[("eMIGM-L", "16")] == "not run").all()
    for make in TABLES:
        table = make(partial)
        for frame in (table.frame, table.below.frame if table.below is not None else table.frame):
            assert not frame.isin(["", "0", "0.00", "nan", "None"]).any(axis=None)


def test_without_any_record_everything_of_ours_reads_not_run(tmp_path):
    (tmp_path / "results" / "digits").mkdir(parents=True)
    empty = load("digits", tmp_path)
    ours = table3(empty).frame.query("Family == 'Ours'").iloc[:, 5:]
    assert (ours == "not run").all(axis=None)
    for make in (*TABLES, figure1):
        assert all(path.is_file() for path in make(empty).save())
    assert "not run" in figure1(empty).caption
    assert [text.get_text() for axes in figure4(empty).figure.axes for text in axes.texts] == ["not run"] * 3


def test_mean_and_spread_are_shown_and_explained(digits, root):
    table = metrics_table(digits)
    cells = table.frame.iloc[:10, 3:]
    assert cells.apply(lambda column: column.str.contains(" ± ")).all(axis=None)
    assert "± is the standard deviation over 2 training seeds (of their means over 3 sampling seeds)." in "".join(
        table.notes
    )
    smoke = " ".join(metrics_table(load("smoke", root)).notes)
    assert "3 sampling seeds of one training run (nothing of other training runs)" in smoke


def test_a_dry_run_is_marked_in_every_title_and_number_column(root):
    smoke = load("smoke", root)
    for make in (*TABLES, *FIGURES):
        made = make(smoke)
        assert made.title.startswith("DRY RUN: ")
        assert made.notes[0].startswith("DRY RUN: ")
        if isinstance(made, Picture):
            assert made.figure.get_suptitle() == made.title
            assert "DRY RUN" in [text.get_text() for text in made.figure.texts]  # over the picture itself
        elif made.below is not None:
            assert made.below.title.startswith("DRY RUN: ")
            assert all("DRY RUN" in column for column in made.frame.columns[5:])  # the CSV has no title
            assert all("DRY RUN" in column for column in made.below.frame.columns[3:])


def test_only_a_dry_run_is_marked(digits):
    for make in FIGURES:
        assert "DRY RUN" not in [text.get_text() for text in make(digits).figure.texts]


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Results of released weights against stored statistics: no floors, no gate, no training FLOPs."""
    root = tmp_path_factory.mktemp("released")
    write_paper_results(root)
    return load("imagenet256", root)


def test_every_table_and_figure_is_made_from_records_of_released_weights(released):
    for make in (*TABLES, figure1, figure4, figure5):
        made = make(released)
        assert all(path.stat().st_size > 100 for path in made.save())
        if isinstance(made, Table):
            frames = [made.frame, *([made.below.frame] if made.below is not None else [])]
            assert not any(f.isin(["", "0", "0.00", "nan", "None"]).any(axis=None) for f in frames)


def test_the_index_tells_whose_weights_and_how_many_processes(tmp_path):
    write_paper_results(tmp_path, "imagenet256", "benchmark.budgets=['16']")  # more steps make figure 6 slow
    text = write_index(tmp_path).read_text(encoding="utf-8")
    assert "Weights: released." in text and "(up to 8 processes)" in text and "None" not in text


def test_released_weights_and_the_number_of_images_are_told_in_the_papers_table(released):
    frame = table2(released).frame.set_index(["Method", "NFE (paper)"])
    row = frame.loc[("eMIGM-H", "128×1.4")]
    assert row["FID-50K (paper, ImageNet 256×256)"] == "1.57" and row["FID-50K on imagenet256"] == "1.57"
    assert row["Weights on imagenet256"] == "released"
    assert row["Params on imagenet256"] == "942M"
    assert row["Context gate on imagenet256"] == "–"  # nothing is held out, so that nothing was measured
    assert frame.loc[("MAR-H", "256×2"), "Weights on imagenet256"] == "–"
    notes = " ".join(table2(released).notes)
    assert "XS, S, B, L, H: released by the paper's authors, not trained here" in notes
    assert "the real images whose statistics VIRTUAL_imagenet256_labeled.npz holds" in notes
    assert "FID of what no model made is not measured" in notes


def test_metrics_that_were_not_measured_have_no_column(released):
    table = metrics_table(released)
    assert not any("NN distance" in column or "Label" in column for column in table.frame)
    assert "Clean-FID" in table.frame and not any("NN distance" in note for note in table.notes)
    assert "compare with the 10,000 images that VIRTUAL_imagenet256_labeled.npz holds" in " ".join(table.notes)


def test_a_metric_missing_from_one_row_alone_reads_as_not_measured(released):
    records = {stage: dict(record) for stage, record in released.records.items()}
    scores = records["evaluate-xs"]["results"]
    without = {k: v for k, v in scores["16"]["summary"].items() if k != "kid"}
    records["evaluate-xs"]["results"] = scores | {"16": {"runs": [], "summary": without}}
    frame = metrics_table(Results(released.root, released.name, records)).frame
    assert frame.set_index(["Model on imagenet256", "N"]).loc[("eMIGM-XS", "16"), "KID"] == "–"
    assert frame.set_index(["Model on imagenet256", "N"]).loc[("eMIGM-XS", "128"), "KID"] != "–"


def test_figure_4_says_why_released_weights_have_no_training_compute(released):
    panels = figure4(released).figure.axes
    texts = [[text.get_text() for text in axes.texts] for axes in panels]
    assert texts[0] == texts[1] == ["training FLOPs not known\n(released weights)"]
    assert texts[2] == ["XS", "S", "B", "L", "H"] * 2
    assert panels[0].get_ylabel() == "FID-50K on imagenet256"


def test_few_images_are_told_in_the_column_and_in_the_notes(tmp_path):
    write_paper_results(tmp_path, "imagenet256", "benchmark.evaluation.images=1000")
    table = table2(load("imagenet256", tmp_path))
    assert "FID-1K on imagenet256" in table.frame
    assert "The paper's FIDs are of 50,000 images; the fewer, the larger FID comes out." in " ".join(table.notes)


def test_a_dry_run_on_imagenet_is_no_row_of_the_papers_table(tmp_path):
    write_paper_results(tmp_path, "imagenet256-dry")
    results = load("imagenet256-dry", tmp_path)
    frame = table2(results).frame.set_index(["Method", "NFE (paper)"])
    fid = next(c for c in frame if c.startswith("FID-8 on imagenet256-dry (DRY RUN)"))
    assert "not comparable with the paper's" in fid
    assert frame.loc[("eMIGM-XS", "16×1.2"), fid] == "300.00"
    assert all(make(results).save() for make in (figure1, figure4))


def test_figure_1_labels_rows_as_classes_only_where_rows_are_classes(digits, released):
    assert [t.get_text() for t in figure1(digits).figure.axes[0].get_yticklabels()] == list("0123456789")
    picture = figure1(released)  # of 1000 classes no row holds one
    assert picture.figure.axes[0].get_yticklabels() == [] and "Rows are classes" not in picture.caption


def test_tracked_records_without_the_newer_keys_still_make_every_table(digits):
    records = {
        stage: {k: v for k, v in record.items() if k not in ("weights", "reference", "scale", "processes")}
        for stage, record in digits.records.items()
    }
    old = Results(digits.root, digits.name, records)
    assert (table2(old).frame.query("Family == 'Ours'")["Weights on digits"] == "not run").all()
    assert all(make(old).notes for make in (*TABLES, *FIGURES))


def test_schedule_table_agrees_with_the_printed_formulas(digits):
    frame = table4(digits).frame
    assert frame.iloc[:, -1].tolist() == ["yes"] * 3
    assert frame.set_index("Schedule").loc["exp", "γ(0.2)"] == "0.6321"
    assert "trained with exp and sampled with exp" in table4(digits).notes[-1]


def test_saved_tables_read_back(digits):
    paths = table2(digits).save()
    assert [p.name for p in paths] == ["table2.md", "table2.csv", "table2-metrics.csv"]
    page = paths[0].read_text(encoding="utf-8")
    assert page.startswith("# Table 2") and "## All metrics on digits" in page
    pd.testing.assert_frame_equal(pd.read_csv(paths[1], dtype=str), table2(digits).frame)


@pytest.mark.parametrize("make", FIGURES)
def test_a_figure_is_byte_identical_when_drawn_again(digits, make):
    first = {path: path.read_bytes() for path in make(digits).save()}
    assert {path.suffix for path in first} == {".png", ".svg"}
    assert first == {path: path.read_bytes() for path in make(digits).save()}


def test_single_budget_figure_4_says_that_training_compute_was_not_varied(digits):
    picture = figure4(digits)
    assert "one training budget" in picture.figure.axes[1].get_title()
    assert len(picture.figure.axes) == 3


def test_figure_4_joins_the_trainings_of_one_size_and_times_each_size_once(digits):
    longer = copy.deepcopy(digits.records)
    for stage in ("train-xs", "sample-xs-4", "sample-xs-16", "evaluate-xs"):
        longer[stage.replace("xs", "xs_long")] = copy.deepcopy(longer[stage])
    longer["train-xs_long"]["results"]["flops"] *= 8
    picture = figure4(dataclasses.replace(digits, records=longer))
    _, by_size, time = picture.figure.axes
    curves = [container[0].get_xdata() for container in by_size.containers]
    assert sorted(len(x) for x in curves) == [1, 1, 1, 1, 2]
    (joined,) = [x for x in curves if len(x) == 2]
    assert joined[1] == 8 * joined[0]
    assert [text.get_text() for text in time.texts] == ["XS", "S", "B", "L", "H"] * 2
    assert "one training budget was run" not in by_size.get_title()
    assert "XS_LONG is XS trained otherwise" in " ".join(picture.notes)


def test_an_unknown_benchmark_lists_what_exists(root):
    with pytest.raises(ConfigError, match=r"unknown benchmark 'digit': .*\(there are: digits, smoke\)"):
        load("digit", root)


def test_the_root_is_found_from_a_subfolder_and_its_absence_is_said(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root / "results" / "digits")
    assert find_root() == root
    monkeypatch.chdir(tmp_path.anchor)
    with pytest.raises(ConfigError, match=r"no dvc.yaml in .*checkout"):
        find_root()


def test_the_index_shows_tables_and_pictures_without_dry_runs(root, digits):
    for make in FIGURES:
        (digits.folder / f"{make.__name__}.png").touch()  # only linked, never read
    text = write_index(root).read_text(encoding="utf-8")
    assert "Generated" in text.splitlines()[0]
    assert "### Table 2: ImageNet 256×256" in text and "| eMIGM-XS " in text
    assert text.count("### All metrics on digits") == 1
    assert text.count("FID-2K on digits: Fréchet distance of 64 features of a small CNN (trained to classify") == 1
    for name in ("figure1", "figure4", "figure5", "figure6"):
        assert f"(digits/{name}.png)" in text
    assert "smoke" not in text and "DRY RUN" not in text
    assert "1,348 training images, 449 held-out images" in text
    assert "2,000 images × 3 sampling seeds × 2 training seeds" in text


def test_fid_against_the_number_of_images_ends_in_that_of_infinitely_many(digits):
    picture = convergence(digits)
    assert [axes.get_title() for axes in picture.figure.axes] == ["N = 4", "N = 16"]
    for axes in picture.figure.axes:
        points, end = axes.containers[:2]  # of XS
        assert list(points[0].get_ydata()) == pytest.approx([4.52 + 700 / n for n in (2000, 1000, 500)])
        assert list(end[0].get_ydata()) == pytest.approx([4.52])
    assert "FID of infinitely many images at N = 16: XS 4.52 ± 0.71, " in picture.caption


def test_without_fid_by_images_the_picture_says_not_run(digits):
    records = copy.deepcopy(digits.records)
    for size in LADDER:
        for budget in ("4", "16"):
            del records[f"evaluate-{size}"]["results"][budget]["fid_by_images"]
    panels = convergence(Results(digits.root, digits.name, records)).figure.axes
    assert [t.get_text() for axes in panels for t in axes.texts] == ["not run", "not run"]


def test_the_index_lists_digits_first(root, tmp_path):
    write_results(tmp_path, "cifar10", sizes={"xs": 9.0})
    write_results(tmp_path, "digits", sizes={"xs": 4.0})
    headings = [x for x in write_index(tmp_path).read_text(encoding="utf-8").splitlines() if x.startswith("## ")]
    assert headings == ["## Digits", "## Cifar10"]
    assert "Not run: `notebooks/figure1.ipynb` draws it." in (tmp_path / "results" / "README.md").read_text("utf-8")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_valid_thin_and_without_outputs(name):
    notebook, code = code_of(name)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    parameters = [cell.source for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert parameters == ['benchmark = "digits"']
    trees = [node for cell in code for node in ast.walk(ast.parse(cell.source))]
    modules = {n.module for n in trees if isinstance(n, ast.ImportFrom)}
    modules |= {alias.name for n in trees if isinstance(n, ast.Import) for alias in n.names}
    assert "emigm.report.results" in modules and len(modules) == 2
    assert all(module.startswith("emigm.report.") for module in modules)
    called = {n.func.id for n in trees if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert called >= {name, "load"} and "save" in {n.attr for n in trees if isinstance(n, ast.Attribute)}


def test_reports_never_import_torch():
    modules = [f"emigm.report.{path.stem}" for path in (REPO / "emigm" / "report").glob("*.py")]
    code = f"import sys, {', '.join(modules)}; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPO)


def test_a_notebook_runs_from_its_own_folder_with_results_only(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    write_results(tmp_path, sizes={"xs": 4.0})
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(REPO), prepend=os.pathsep)  # where the package is not installed
    done = papermill.execute_notebook(
        REPO / "notebooks" / "table2.ipynb",
        folder / "out.ipynb",
        {"benchmark": "digits"},
        cwd=folder,
        progress_bar=False,
    )
    assert "eMIGM-XS" in done.cells[-1].outputs[0].data["text/markdown"]
    assert (tmp_path / "results" / "digits" / "table2.csv").is_file()


def test_the_figures_style_does_not_leak_into_a_notebook():
    before = dict(matplotlib.rcParams)
    assert styled(lambda: matplotlib.rcParams["svg.hashsalt"])() == "emigm"
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("mean", "deviation", "text"),
    [
        (3.50389, 0.00075, "3.504 ± 0.001"),
        (3.91, 0.624, "3.91 ± 0.62"),
        (0.1154, 0.0087, "0.1154 ± 0.0087"),
        (49.8, 0.32, "49.80 ± 0.32"),
    ],
)
def test_a_chance_tiny_spread_does_not_add_digits(mean, deviation, text):
    assert plus_minus({"mean": mean, "train_std": deviation, "sample_std": None}) == text


def test_executed_notebooks_name_no_folder_of_the_machine_that_ran_them(root):
    results = load("digits", root)
    for made in (table2(results), figure5(results)):
        assert str(root) not in repr(made) and made.name in repr(made)
    for path in (REPO / "results").glob("*/*/*.ipynb"):
        assert "PosixPath" not in path.read_text(encoding="utf-8"), path
