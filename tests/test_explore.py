"""The notebook for trying a model by hand, on a tiny one of random weights."""

import io
import os
import re
import subprocess
import sys

import nbformat
import numpy as np
import pytest
from made_up import REPO, checkout
from PIL import Image
from test_model import random_model

from emigm.config.compose import compose_benchmark
from emigm.config.errors import ConfigError
from emigm.model.model import save_model

NOTEBOOK = REPO / "notebooks" / "explore.ipynb"


@pytest.fixture
def root(tmp_path):
    """A checkout with one model."""
    benchmark = compose_benchmark("smoke", (), REPO)
    cfg = benchmark.model_config("xs")
    folder = checkout(tmp_path) / "models" / "smoke" / "xs" / "seed1"
    save_model(folder, random_model(cfg).state_dict(), cfg, seed=1, autoencoder=benchmark.autoencoder.space)
    return tmp_path


def cells():
    return [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]


def run(monkeypatch, root, **parameters):
    """Execute the cells in this process; returns their variables."""
    monkeypatch.chdir(root)
    space = {}
    for i, cell in enumerate(cells()):
        exec(compile(cell.source, f"cell {i}", "exec"), space)
        if "parameters" in cell.metadata.get("tags", []):
            space |= parameters
    return space


def pictures(space):
    """What the controls show: images, and the first one's steps."""
    return [np.asarray(Image.open(io.BytesIO(space["shown"][i].value))) for i in (0, 2)]


def test_the_notebook_asks_a_question_and_is_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert "?" in notebook.cells[0].source.splitlines()[0]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells())


def test_papermill_runs_it_with_its_defaults_on_the_model_that_is_there(root):
    command = [sys.executable, "-m", "papermill", NOTEBOOK, "out.ipynb", "--no-progress-bar"]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    notebook = nbformat.read(root / "out.ipynb", 4)
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    data = [out.get("data", {}) for out in outputs]
    assert "models/smoke/xs/seed1: 10 classes, 16 tokens" in data[0]["text/plain"]
    assert sum("image/png" in one for one in data) == 2
    assert "application/vnd.jupyter.widget-view+json" in data[-1]
    assert not any(out.output_type == "error" for out in outputs)


def test_nothing_of_a_widget_is_answered_while_a_cell_runs():
    """nbclient answers Output widgets through a second handle of the socket that it awaits a cell's end from, which can
    take the news of that end away: it waits for ever."""
    assert not re.search(r"Output\(|interact|capture\(", "".join(cell.source for cell in cells()))


def test_the_same_parameters_give_the_same_pictures_and_each_control_changes_them(root, monkeypatch):
    parameters = {"model": "models/smoke/xs/seed1", "steps": 4, "images": 3}
    space = run(monkeypatch, root, **parameters)
    before = pictures(space)
    assert all(map(np.array_equal, before, pictures(run(monkeypatch, root, **parameters))))
    assert np.array_equal(before[0][:, :88], before[1][:, -88:])  # the last step is the first image
    for name, value in (("label", 7), ("steps", 8), ("schedule", "linear"), ("scale", 4.0), ("interval", (0.0, 1.0)),
                        ("seed", 5)):  # fmt: skip
        space["controls"][name].value = value
        images, strip = pictures(space)
        assert images.shape == before[0].shape and not np.array_equal(images, before[0]), name
        assert np.array_equal(images[:, :88], strip[:, -88:])
        before = [images, strip]


def test_without_a_trained_model_it_takes_the_one_that_came_with_the_repository(root, monkeypatch):
    (root / "results" / "smoke" / "weights").mkdir(parents=True)
    (root / "models" / "smoke" / "xs" / "seed1").rename(root / "results" / "smoke" / "weights" / "xs")
    space = run(monkeypatch, root, steps=4, images=3)
    assert space["model"].as_posix() == "results/smoke/weights/xs" and len(pictures(space)) == 2


@pytest.mark.parametrize(("name", "value", "range_"), [("label", 12, "0 to 9"), ("steps", 17, "1 to 16")])
def test_a_parameter_out_of_range_is_an_error(root, monkeypatch, name, value, range_):
    with pytest.raises(ConfigError, match=rf"^{name} = {value}: models/smoke/xs/seed1 takes {range_}$"):
        run(monkeypatch, root, **{name: value})


def test_without_a_model_it_says_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"models: none is here yet; run `dvc repro`, or set model to a released one"):
        run(monkeypatch, checkout(tmp_path))
    with pytest.raises(ConfigError, match="nowhere"):
        run(monkeypatch, tmp_path, model="nowhere")
