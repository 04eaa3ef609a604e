"""The notebook for trying a model by hand, on a tiny one of random weights."""

import contextlib
import os
import subprocess
import sys

import nbformat
import numpy as np
import pytest
from made_up import REPO, checkout
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
    """Execute the cells in this process; returns their variables, with what was displayed in `displayed`, as arrays."""
    monkeypatch.chdir(root)
    displayed = []
    space = {"displayed": displayed}
    for i, cell in enumerate(cells()):
        exec(compile(cell.source, f"cell {i}", "exec"), space)
        if "parameters" in cell.metadata.get("tags", []):
            space |= parameters
        space["display"] = lambda shown, **_: displayed.append(np.asarray(shown))
    return space


def test_the_notebook_asks_a_question_and_is_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert "?" in notebook.cells[0].source.splitlines()[0]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells())


def test_papermill_runs_it_with_its_defaults_on_the_model_that_is_there(root):
    command = [sys.executable, "-m", "papermill", NOTEBOOK, "out.ipynb", "--no-progress-bar"]
    done, environment = None, {**os.environ, "PYTHONPATH": str(REPO)}
    for _ in range(3):  # once in a while a message of a widget's cell is lost on its way, and papermill waits for ever
        with contextlib.suppress(subprocess.TimeoutExpired):
            options = {"cwd": root, "env": environment, "capture_output": True, "text": True, "timeout": 240}
            done = subprocess.run(command, **options)
            break
    assert done is not None, "papermill hung three times"
    assert done.returncode == 0, done.stderr[-2000:]
    outputs = [out for cell in nbformat.read(root / "out.ipynb", 4).cells for out in cell.get("outputs", ())]
    data = [out.get("data", {}) for out in outputs]
    assert "models/smoke/xs/seed1: 10 classes, 16 tokens" in data[0]["text/plain"]
    assert sum("image/png" in one for one in data) == 2
    assert "application/vnd.jupyter.widget-view+json" in data[-1]
    assert not any(out.output_type == "error" for out in outputs)


def test_the_same_parameters_give_the_same_pictures_and_each_control_changes_them(root, monkeypatch):
    parameters = {"model": "models/smoke/xs/seed1", "steps": 4, "images": 3}
    space = run(monkeypatch, root, **parameters)
    start, again = space["displayed"][:2], run(monkeypatch, root, **parameters)["displayed"]
    assert all(np.array_equal(start[i % 2], picture) for i, picture in enumerate(again))
    assert np.array_equal(start[0][:, :88], start[1][:, -88:])  # the last step is the first image
    for name, value in (("label", 7), ("steps", 8), ("schedule", "linear"), ("scale", 4.0), ("interval", (0.0, 1.0)),
                        ("seed", 5)):  # fmt: skip
        space["displayed"].clear()
        space["controls"][name].value = value
        images, strip = space["displayed"]
        assert images.shape == start[0].shape and not np.array_equal(images, start[0]), name
        assert np.array_equal(images[:, :88], strip[:, -88:])
        start = [images, strip]


def test_without_a_model_it_says_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"models: none is here yet; run `dvc repro`, or set model to a released one"):
        run(monkeypatch, checkout(tmp_path))
    with pytest.raises(ConfigError, match="nowhere"):
        run(monkeypatch, tmp_path, model="nowhere")
