"""The notebook for trying a model by hand, on a tiny one of random weights."""

import io
import re

import nbformat
import numpy as np
import pytest
from made_up import REPO, cells_of, checkout, run_notebook
from PIL import Image
from test_model import random_model

from emigm.config.compose import compose_benchmark
from emigm.config.errors import ConfigError
from emigm.model.model import save_model

MODEL = "models/smoke/xs/seed1"


@pytest.fixture
def root(tmp_path):
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


def test_the_same_parameters_give_the_same_pictures_and_each_control_changes_them(root, monkeypatch):
    monkeypatch.chdir(root)
    first, space = (run_notebook("explore", root, model=MODEL, steps=4, images=3) for _ in range(2))
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
def test_a_parameter_that_cannot_be_meant_is_an_error(root, parameters, message):
    with pytest.raises(ConfigError, match=message):
        run_notebook("explore", root, **parameters)


def test_without_a_trained_model_it_takes_the_one_that_came_with_the_repository(root):
    (root / "results" / "smoke" / "weights").mkdir(parents=True)
    (root / "models" / "smoke" / "xs" / "seed1").rename(root / "results" / "smoke" / "weights" / "xs")
    space = run_notebook("explore", root, steps=4, images=3)
    assert space["model"].as_posix() == "results/smoke/weights/xs" and len(pictures(space)) == 2


def test_without_a_model_it_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match=r"models: none is here yet; run `dvc repro`, or set model to a released one"):
        run_notebook("explore", checkout(tmp_path))
