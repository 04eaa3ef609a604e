"""The notebooks of tables and figures, executed cell by cell on records made up here; the stage that runs them; the
notebook for trying a model by hand."""

# ruff: noqa: RUF001
# ×, – and ± are meant: they are the paper's notation.
import ast
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import pytest
from made_up import REPO, cells_of, checkout, contents, run_notebook, write_results
from PIL import Image
from test_compare import write_paper_results
from test_model import random_model

from emigm.config.compose import compose, compose_benchmark
from emigm.config.errors import ConfigError, RunError
from emigm.model.model import save_model
from emigm.paper.reported import reported
from emigm.stages.notebooks import execute

ALL = sorted(path.stem for path in (REPO / "notebooks").glob("*.ipynb") if path.stem != "explore")
MINE = ("_template", "figure1", "figure4", "figure5", "figure6", "scores", "table2", "table3", "table4", "training")
ALLOWED = {"IPython", "math", "matplotlib", "numpy", "pandas", "pathlib", "re", "scipy", "textwrap", "yaml"}
ROOMS = ("emigm.report", "emigm.records", "emigm.config", "emigm.paper", "emigm.model.schedules", "emigm.flops")


def run(name, root, monkeypatch, benchmark="mnist", out=None):
    """`run_notebook`, and from now on `root` is the working directory."""
    monkeypatch.chdir(root)
    return run_notebook(name, root, benchmark=benchmark, out=out)


def reading(space):
    return space["_shown"][-1].markdown()


def tables(space):
    return [shown for shown in space["_shown"] if hasattr(shown, "frame")]


def table(space):
    return tables(space)[0].frame


def axes_of(space):
    return space["_shown"][0].figure.axes


@pytest.mark.parametrize("name", ALL)
def test_a_notebook_asks_a_question_is_without_outputs_and_imports_what_reads_and_draws_alone(name):
    notebook, code = cells_of(name)
    nbformat.validate(notebook)
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ") and "?" in first.source.splitlines()[0]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    (parameters,) = [cell.source for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert "out = None" in parameters
    assert "Reading(" in code[-1].source and ".save(out)" in code[-1].source
    nodes = [node for cell in code for node in ast.walk(ast.parse(cell.source))]
    modules = {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
    modules |= {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    assert all(m.split(".")[0] in ALLOWED or m.startswith(ROOMS) for m in modules), modules


@pytest.mark.parametrize("name", MINE)
def test_a_notebook_writes_its_reading_and_its_table_or_picture_into_an_output_folder_alone(
    name, root, monkeypatch, tmp_path
):
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    assert reading(run(name, root, monkeypatch)).strip()
    run(name, root, monkeypatch, out=str(tmp_path))
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before
    kinds = ("md", "csv") if name.startswith(("table", "scores", "_")) else ("png", "svg")
    assert {"reading.md", *(f"{name}.{kind}" for kind in kinds)} <= {p.name for p in tmp_path.iterdir()}


@pytest.mark.parametrize("name", MINE)
def test_what_has_not_run_reads_so_and_is_never_a_number(name, tmp_path, monkeypatch):
    folder = write_results(tmp_path, sizes={"xs": 4.0, "s": 2.0})
    for stage in ("evaluate-xs", "sample-s-16", "train-s", "reference"):
        (folder / "records" / f"{stage}.json").unlink()
    shutil.rmtree(folder / "grids")
    space = run(name, tmp_path, monkeypatch)
    for frame in (made.frame.drop(columns="Family", errors="ignore") for made in tables(space)):
        assert not frame.isin(["", "0", "0.00", "nan", "None", "nan %"]).any(axis=None)
    assert "nan" not in reading(space).lower().split()
    if name == "scores":
        xs = table(space).set_index("Model on MNIST-5k").loc["eMIGM-XS", ["FID", "IS", "KID"]]
        assert len(xs) == 2 and (xs == "not run").all(axis=None)


def test_scores_stand_between_the_baselines_and_say_how_far_each_model_is(root, monkeypatch):
    space = run("scores", root, monkeypatch)
    frame = table(space).set_index(["Model on MNIST-5k", "N"])
    row = frame.loc[("eMIGM-H", "16")]  # 0.83 × 1.125 + 0.05 + 0.01
    assert row["FID"].startswith("0.994 ± ") and row["NFE"] == "16×1.31"
    ways = [f"Way by {metric}" for metric in ("FID", "precision", "recall")]
    assert row[ways].tolist() == ["102 ± 1 %", "50 ± 0 %", "100 ± 0 %"]
    assert frame.loc[("eMIGM-XS", "16"), ways[1:]].tolist() == ["0 ± 0 %", "20 ± 0 %"]
    assert frame.loc[("Class shuffle", "–"), ways].tolist() == ["0 %"] * 3
    assert frame.loc[("Held-out real images", "–"), ["FID", *ways]].tolist() == ["1.20", *["100 %"] * 3]
    further = space["more"].frame.set_index(["Model on MNIST-5k", "N"])  # what is the same in all rows
    assert further.loc[("eMIGM-H", "16"), ["Seeds", "Images"]].tolist() == ["2×2", "1,000"]
    assert further.loc[("eMIGM-H", "16"), "FID, 2 extractors"] == "0.994 to 1.49"  # 0.5 apart
    assert further.loc[("Held-out real images", "–"), "FID, 2 extractors"] == "1.20 to 1.70"
    assert {"sFID", "Label accuracy", "CAS"} <= set(further)
    text = reading(space)
    assert "102 ± 1 % by FID, 50 ± 0 % by precision, 100 ± 0 % by recall" in text and "1 of 1 other extractor" in text
    assert "From N = 4 to N = 16 FID falls by" in text
    assert "by more than two standard errors of the difference for 5 of 5 models." in text
    assert "Every model is better than class shuffle, which uses no context, by FID (11.2)" in text
    assert "Worse than class shuffle, which uses no context, are by KID (0.032): XS at N = 4" in text


def test_the_skeleton_to_copy_runs_through_the_stage_and_shows_one_figure_and_one_table(tmp_path, monkeypatch):
    write_results(tmp_path)
    (tmp_path / "notebooks").symlink_to(REPO / "notebooks")
    monkeypatch.chdir(tmp_path)
    folder = execute("_template", "mnist", "mnist")
    assert {path.suffix for path in folder.glob("_template.*")} == {".ipynb", ".png", ".svg", ".csv", ".md", ".json"}
    rows = (folder / "_template.csv").read_text().splitlines()
    assert rows[0] == "Model,N = 4,N = 16" and rows[-1].startswith("eMIGM-H,1.305 ± ")  # 0.83 × 1.5 + 0.05 + 0.01
    assert "Lowest FID: eMIGM-H at N = 16, 0.994 ± " in (folder / "reading.md").read_text()


def test_training_shows_each_curve_how_far_the_error_falls_and_whether_fid_is_on_its_plateau(
    root, tmp_path, monkeypatch
):
    folder = write_results(tmp_path)
    (folder / "curves").mkdir()
    for size, loss in (("xs", 0.5), ("h", 0.25)):
        rows = [f"{step},{loss + 1 / step},{loss},{loss + 2 / step}" for step in range(50, 2501, 50)]
        (folder / "curves" / f"{size}.csv").write_text("\n".join(["step,loss,least,greatest", *rows]))
    space = run("training", tmp_path, monkeypatch)
    loss, context = axes_of(space)  # and no panel of snapshots that there are not
    assert [line.get_label() for line in loss.get_lines()] == ["eMIGM-XS", "eMIGM-H"]
    assert [t.get_text() for t in context.texts] == []
    assert "the error falls to 0.62 to 0.97 of that with the fewest; 9 of 10 trainings pass" in reading(space)
    assert "Loss at the end of training: XS 0.5004, H 0.2504." in reading(space)
    space = run("training", root, monkeypatch, "snapshots")
    assert len(axes_of(space)) == 3
    slope = math.log((3 * 1.125 + 0.06 + 1) / (3 * 1.125 + 0.06 + 2)) / math.log(2)  # of S
    text = reading(space)
    assert f"Log-slope of FID over steps from 50 % of the training to its end: XS -0.24, S {slope:.2f}" in text
    assert "Not on their plateau (below -0.7): none." in text


def test_tables_2_and_3_of_other_data_show_the_papers_rows_alone_and_say_so(root, monkeypatch):
    for name, resolution in (("table2", 256), ("table3", 512)):
        space = run(name, root, monkeypatch)
        assert len(table(space)) == len(reported(resolution)) and not any("ours" in column for column in table(space))
        assert "mnist is MNIST-5k, not this data set; its own scores are in the notebook `scores`" in reading(space)


# test_reveal.py has that of pictures that a stage draws.
@pytest.mark.parametrize("name", [name for name in compose("imagenet256", REPO)["notebooks"] if name != "reveal"])
def test_each_notebook_of_a_gpu_run_reads_results_of_released_weights(name, released, monkeypatch, tmp_path):
    run(name, released, monkeypatch, "imagenet256", out=str(tmp_path))
    text = (tmp_path / "reading.md").read_text()
    assert text.strip() and "nan" not in text.lower().split() and "standard errors" not in text
    if name == "scores":  # one seed
        assert re.search(r"From N = 16 to N = 128 FID falls by [\d.]+ to [\d.]+; of one seed, so without", text)


def test_on_the_papers_data_our_numbers_stand_beside_its_rows(released, monkeypatch):
    space = run("table2", released, monkeypatch, "imagenet256")
    frame = table(space).set_index(["Method", "NFE"])
    row, fid = frame.loc[("eMIGM-H", "128×1.4")], "FID-50K on ImageNet 256×256, ours"
    assert row["FID-50K"] == "1.57" and row[fid].startswith("1.57") and row["Params, ours"] == "942M"
    assert row["NFE, ours"] == "128×1.4"
    assert (frame.loc[("MAR-H", "256×2")].filter(like="ours") == "–").all()
    assert "Measured here: 10 of 10 eMIGM rows, +0.0 % to +0.0 %" in reading(space)
    space = run("table3", released, monkeypatch, "imagenet256")
    assert not any("ours" in column for column in table(space))


def test_rows_that_have_not_run_read_so_and_a_dry_run_is_no_row_of_the_papers_table(tmp_path, monkeypatch):
    write_paper_results(checkout(tmp_path), "imagenet256-dry")
    write_paper_results(tmp_path, "imagenet256", "benchmark.sizes=[xs]", "benchmark.budgets=['128']")
    frame = table(run("table2", tmp_path, monkeypatch, "imagenet256")).set_index(["Method", "NFE"])
    fid = next(c for c in frame if c.startswith("FID-50K on"))
    assert frame.loc[("eMIGM-XS", "16×1.2"), fid] == frame.loc[("eMIGM-XS", "16×1.2"), "Seeds, ours"] == "not run"
    assert frame.loc[("eMIGM-XS", "128×1.4"), fid].startswith("3.62")
    assert not any("ours" in column for column in table(run("table2", tmp_path, monkeypatch, "imagenet256-dry")))


@pytest.mark.parametrize("name", ["figure1", "figure4", "scores"])
def test_a_dry_run_is_marked_wherever_its_numbers_are(name, root, monkeypatch):
    made = run(name, root, monkeypatch, "smoke")["_shown"]
    assert "DRY RUN" in made[-1].markdown() if name != "scores" else "DRY RUN" in made[0].title
    pictures = [one for one in made if hasattr(one, "figure")]
    assert all("DRY RUN" in [t.get_text() for t in one.figure.texts] for one in pictures)
    if name == "scores":
        assert "DRY RUN" in made[0].frame.columns[0]  # the CSV has no title


def test_figure_4_has_no_panel_that_says_nothing_new(root, monkeypatch):
    space = run("figure4", root, monkeypatch)
    assert [axes.get_title() for axes in axes_of(space)] == ["(a) training compute", "(c) sampling compute"]
    assert axes_of(space)[0].get_ylabel().startswith("FID-1K on MNIST-5k\n(N = 16")
    text = reading(space)
    assert "(b) not run" in text and "of the trained models (training FLOPs): XS 4.582 ± 0.051 (4.00e+12), S " in text


def test_figure_4_reads_across_at_equal_flops_along_snapshots(root, monkeypatch):
    space = run("figure4", root, monkeypatch, "snapshots")
    assert [axes.get_title()[:3] for axes in axes_of(space)] == ["(a)", "(b)", "(c)"]
    across = space["across"].set_index(["flops", "model"])["fid"]
    # XS ends at 4e12 FLOPs, where S is half trained; a point is 1 / (share of the training) above the final weights
    assert across[("4.00e+12", "s")] == pytest.approx(3 * 1.125 + 0.06 + 2)
    assert across[("4.00e+12", "xs")] == pytest.approx(4 * 1.125 + 0.06 + 1)
    assert "(b) At 4.00e+12 training FLOPs the best is eMIGM-S: XS 5.560 ± " in reading(space)


def test_figure_4_computes_the_training_flops_of_released_weights_and_says_so(released, monkeypatch):
    space = run("figure4", released, monkeypatch, "imagenet256")
    flops = [line[0].get_xdata()[0] for line in axes_of(space)[0].containers]
    assert len(flops) == 5 and flops == sorted(flops) and 1e19 < flops[0] < flops[-1] < 1e22
    assert "computed from the paper's recipe; they were not trained here" in reading(space)


def test_figures_of_images_and_schedules_show_what_the_records_have(root, monkeypatch):
    axes = axes_of(run("figure1", root, monkeypatch))
    titles = [panel.get_title() for panel in axes if panel.get_title()]
    assert titles == ["real", *(f"eMIGM-{size}" for size in ("XS", "S", "B", "L", "H"))]
    assert [panel.get_ylabel() for panel in axes if panel.get_ylabel()] == ["N = 4", "N = 16"]
    titles = [axes.get_title() for axes in axes_of(run("figure6", root, monkeypatch))]
    assert titles == ["the paper: 256 tokens, N = 16", "MNIST-5k: 49 tokens, N = 16"]
    space = run("table4", root, monkeypatch)
    assert table(space).set_index("Schedule").loc["exp", "γ(0.2)"] == "0.6321"
    assert "Code and printed formulas agree" in reading(space)
    assert "trained with exp and sampled with exp" in reading(space)


def start(name, benchmark, **environment):
    """The stage as a process in the working directory."""
    command = [sys.executable, "-m", "emigm.stages.notebooks", name, "--benchmark", benchmark]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | environment, **pipes)


def finished(process):
    stdout, stderr = process.communicate(timeout=120)
    return process.returncode, stdout, stderr[-2000:]


def write_notebook(root, name, *sources):
    """A small notebook with parameters and these cells."""
    parameters = nbformat.v4.new_code_cell("benchmark, out = None, None", metadata={"tags": ["parameters"]})
    cells = [parameters, *map(nbformat.v4.new_code_cell, sources)]
    (root / "notebooks").mkdir(exist_ok=True)
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), root / "notebooks" / f"{name}.ipynb")


SAVES = "from emigm.report.tables import Reading\nReading((f'Of {benchmark}.',)).save(out)"


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A checkout, the working directory, with a notebook `saves`."""
    write_notebook(checkout(tmp_path), "saves", SAVES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    return tmp_path


def test_the_stage_gives_the_same_bytes_twice_and_prints_nothing(small):
    shutil.copy(REPO / "notebooks" / "figure5.ipynb", small / "notebooks")
    folder, runs = small / "results" / "mnist" / "notebooks" / "figure5", []
    for _ in range(2):
        assert finished(start("figure5", "mnist")) == (0, "", "")
        runs.append(contents(folder))
    assert set(runs[0]) == {"figure5.ipynb", "figure5.png", "figure5.svg", "reading.json", "reading.md"}
    assert runs[0] == runs[1] and list(folder.parent.iterdir()) == [folder]
    text = (folder / "figure5.ipynb").read_text()
    assert str(small) not in text and "start_time" not in text and 'out = \\"results/mnist/notebooks/figure5\\"' in text


def test_stages_at_once_in_one_folder_do_not_meet_and_run_this_interpreter(small):
    """Whatever a user has installed as `python3`; and no kernel leaves anything in the repository."""
    kernel = small / "jupyter" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps({"argv": ["/no/such/python"], "display_name": "a user's", "language": "python"}))
    names, before = ("a", "b", "c"), set(small.iterdir())
    for _ in range(2):
        stages = [start("saves", name, JUPYTER_DATA_DIR=str(kernel.parents[2])) for name in names]
        assert list(map(finished, stages)) == [(0, "", "")] * 3
    for name in names:
        assert (small / "results" / name / "notebooks" / "saves" / "reading.md").read_text() == f"Of {name}.\n"
    assert set(small.iterdir()) - before <= {small / ".state"}


FAILURES = {
    "a mistake": ("from emigm.config.errors import ConfigError\nraise ConfigError('no such thing')", "no such thing$"),
    "an error": ("1 / 0", "ZeroDivisionError"),
    "a kill": ("import os\nos.kill(os.getpid(), 9)", "its kernel died.*type the same command again$"),
}


@pytest.mark.parametrize(("source", "message"), FAILURES.values(), ids=FAILURES)
def test_a_notebook_that_fails_says_why_and_leaves_the_earlier_results_as_they_were(small, source, message):
    before = contents(execute("saves", "x", "x"))
    (small / "results/x/notebooks/saves/old.png").write_bytes(b"of an earlier version")
    write_notebook(small, "saves", SAVES, source)
    with pytest.raises(RunError, match=rf"(?s)saves.ipynb, for results/x: .*{message}"):
        execute("saves", "x", "x")
    assert contents(small / "results/x/notebooks/saves") == before | {"old.png": b"of an earlier version"}
    write_notebook(small, "saves", "1")
    assert set(contents(execute("saves", "x", "x"))) == {"saves.ipynb"}  # and what is no more goes with a success


def test_an_unknown_notebook_is_named(small):
    with pytest.raises(ConfigError, match=r"unknown notebook 'save'.*saves"):
        execute("save", "mnist", "mnist")


def test_executed_notebooks_name_no_folder_of_the_machine_that_ran_them():
    for path in (REPO / "results").glob("*/notebooks/*/*.ipynb"):
        text = path.read_text(encoding="utf-8")
        assert "PosixPath" not in text and str(REPO) not in text, path


MODEL = "models/smoke/xs/seed1"


# Trying a model by hand


@pytest.fixture
def modelled(tmp_path):
    """A checkout with one model."""
    benchmark = compose_benchmark("smoke", (), REPO)
    cfg = benchmark.model_config("xs")
    save_model(checkout(tmp_path) / MODEL, random_model(cfg).state_dict(), cfg, seed=1,
               autoencoder=benchmark.autoencoder.space)  # fmt: skip
    return tmp_path


def pictures(space):
    """What the controls show: images, and the first one's steps."""
    return [np.asarray(Image.open(io.BytesIO(space["shown"][i].value))) for i in (0, 2)]


def test_the_notebook_asks_a_question_is_without_outputs_and_answers_no_widget_while_a_cell_runs():
    """nbclient answers Output widgets through a second handle of the socket that it awaits a cell's end from, which can
    take the news of that end away: it waits for ever."""
    notebook, cells = cells_of("explore")
    nbformat.validate(notebook)
    assert "?" in notebook.cells[0].source.splitlines()[0]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    assert not re.search(r"Output\(|interact|capture\(", "".join(cell.source for cell in cells))


def test_the_same_parameters_give_the_same_pictures_and_each_control_changes_them(modelled, monkeypatch):
    monkeypatch.chdir(modelled)
    first, space = (run_notebook("explore", modelled, model=MODEL, steps=4, images=3) for _ in range(2))
    before = pictures(space)
    assert all(map(np.array_equal, before, pictures(first)))
    assert np.array_equal(before[0][:, :88], before[1][:, -88:])  # the last step is the first image
    changes = {"label": 7, "steps": 8, "schedule": "linear", "scale": 4.0, "interval": (0.0, 1.0), "seed": 5}
    for name, value in changes.items():
        space["controls"][name].value = value
        images, strip = pictures(space)
        assert images.shape == before[0].shape and not np.array_equal(images, before[0]), name
        assert np.array_equal(images[:, :88], strip[:, -88:])
        before = [images, strip]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"label": 12}, rf"^label = 12: {MODEL} takes 0 to 9$"),
        ({"steps": 17}, rf"^steps = 17: {MODEL} takes 1 to 16$"),
        ({"model": "nowhere"}, "nowhere"),
    ],
)
def test_a_parameter_that_cannot_be_meant_is_an_error(modelled, parameters, message):
    with pytest.raises(ConfigError, match=message):
        run_notebook("explore", modelled, **parameters)


def test_without_a_trained_model_it_takes_the_one_that_came_with_the_repository(modelled):
    (modelled / "results" / "smoke" / "weights").mkdir(parents=True)
    (modelled / "models" / "smoke" / "xs" / "seed1").rename(modelled / "results" / "smoke" / "weights" / "xs")
    space = run_notebook("explore", modelled, steps=4, images=3)
    assert space["model"].as_posix() == "results/smoke/weights/xs" and len(pictures(space)) == 2


def test_without_a_model_it_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match=r"models: none is here yet; run `dvc repro`, or set model to a released one"):
        run_notebook("explore", checkout(tmp_path))
