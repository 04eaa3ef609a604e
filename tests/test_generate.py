"""`emigm generate`: the images are those of the API, the settings the model's own unless an option replaces them."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from test_model import TINY, random_model

from emigm import cli
from emigm.api import load_generator
from emigm.config.compose import compose_benchmark
from emigm.config.parsing import as_dict
from emigm.config.schema import AutoencoderConfig, SampleConfig
from emigm.model.model import save_model
from emigm.tools import generate
from emigm.tools.generate import labelled

CFG = dataclasses.replace(TINY, channels=1)
OWN = SampleConfig(steps=2, solver_steps=3, cfg_scale=2.0, cfg_interval=(0.2, 0.8))


def make(folder, **facts):
    save_model(folder, random_model(CFG).state_dict(), CFG, autoencoder=as_dict(AutoencoderConfig("pixels")), **facts)
    return str(folder)


@pytest.fixture
def model(tmp_path):
    """A model folder that names its sampling settings."""
    return make(tmp_path / "model", sampling=as_dict(OWN))


def run(*arguments):
    return cli.main(["generate", "--device", "cpu", *map(str, arguments)])


def note(path):
    return json.loads(Image.open(path).text["emigm"])


def test_the_grid_holds_the_images_of_the_api_enlarged_and_says_how_it_came_about(model, tmp_path, capsys):
    out = tmp_path / "new" / "grid.png"
    assert run(model, "--classes", "0,2-3", "--seeds", "4,5", "--out", out, "--batch", 2) == 0
    assert note(out) == {"model": model, "classes": [0, 2, 3], "seeds": [4, 5], "sampling": as_dict(OWN)}
    assert "2 seeds x 3 classes" in capsys.readouterr().out
    sheet = np.asarray(Image.open(out))
    rows = load_generator(model)([0, 2, 3], [4, 5])
    side = 16 * 4  # images of 4 x 4 pixels, enlarged to 64
    top, left = sheet.shape[0] - 2 * (side + 1), sheet.shape[1] - 3 * (side + 1)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            cell = sheet[top + y * (side + 1) :, left + x * (side + 1) :][:side:16, :side:16]
            np.testing.assert_array_equal(cell, np.asarray(image.convert("RGB")))
    assert (sheet[:top] < 128).any() and (sheet[top:, :left] < 128).any()  # the titles


def test_options_replace_the_models_own_settings(model, tmp_path):
    out = tmp_path / "grid.png"
    options = ("--steps", 3, "--cfg-interval", 0.1, 0.5, "--schedule", "cosine", "--precision", "bf16")
    assert run(model, "--classes", 1, "--out", out, *options) == 0
    changed = {"steps": 3, "cfg_interval": [0.1, 0.5], "schedule": "cosine", "precision": "bf16"}
    assert note(out)["sampling"] == as_dict(OWN) | changed


def test_without_settings_of_its_own_a_model_needs_the_options(tmp_path, capsys):
    model, out = make(tmp_path / "bare"), tmp_path / "grid.png"
    assert run(model, "--classes", 1, "--out", out, "--cfg-scale", 2) == 1
    assert "give --steps and --solver-steps" in capsys.readouterr().err
    assert run(model, "--classes", 1, "--out", out, "--steps", 2, "--solver-steps", 3) == 0
    assert note(out)["sampling"] == as_dict(SampleConfig(2, 3))


def test_a_model_of_a_benchmark_takes_its_largest_budget(tmp_path, monkeypatch):
    smoke = compose_benchmark("smoke")
    asked = []
    monkeypatch.setattr(generate, "compose_benchmark", lambda name: asked.append(name) or smoke)
    model, out = make(tmp_path / "models" / "smoke" / "xs" / "seed0"), tmp_path / "grid.png"
    assert run(model, "--classes", 1, "--out", out) == 0
    assert asked == ["smoke"] and note(out)["sampling"] == as_dict(smoke.sample_config("xs", "4"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--classes", "0,9", "--out", "a.png"), "--classes: 9 is no class"),
        (("--classes", "0", "--out", "a.jpg"), "--out a.jpg: name a file that ends in .png"),
        (("--classes", "0", "--out", "a.png", "--steps", "0"), "steps = 0"),
        (("--classes", "0", "--out", "a.png", "--solver-steps", "2"), "solver_steps = 2 is too few"),
        (("--classes", "0", "--out", "a.png", "--cfg-interval", "0.5", "0.5"), "cfg_interval"),
        (("--classes", "0", "--out", "a.png", "--batch", "0"), "--batch 0"),
        (("--classes", "0", "--out", "a.png", "--device", "cuda"), "PyTorch sees no GPU"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(model, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run(model, *options) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
    assert not list(tmp_path.glob("*.png")) + list(tmp_path.glob("*.jpg"))


def test_classes_that_are_too_many_for_one_row_go_on_below():
    classes, seeds = list(range(100)), [0, 1]
    rows = [[Image.new("RGB", (64, 64), (c, 100 + s, 0)) for c in classes] for s in seeds]
    sheet = labelled(rows, classes, seeds)
    assert sheet.width < 2700
    colours = {sheet.getpixel((x, y)) for x in range(0, sheet.width, 13) for y in range(0, sheet.height, 13)}
    assert {(c, 100 + s, 0) for c in classes for s in seeds} <= colours


@pytest.mark.parametrize(("text", "found"), [("3", [3]), ("0,2", [0, 2]), ("1-3, 7", [1, 2, 3, 7])])
def test_numbers_and_ranges(text, found):
    assert cli.numbers(text) == found


@pytest.mark.parametrize("text", ["", "a", "-1", "3-1", "1,,2", "1.5"])
def test_what_is_no_list_of_numbers_is_refused_with_an_example(text, capsys):
    with pytest.raises(SystemExit):
        cli.main(["generate", "m", f"--classes={text}", "--out", "a.png"])
    assert "such as 0,2,5-7" in capsys.readouterr().err
