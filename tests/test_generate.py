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

CFG = dataclasses.replace(TINY, channels=1)
OWN = SampleConfig(steps=2, solver_steps=3, cfg_scale=2.0, cfg_interval=(0.2, 0.8))


def make(folder, seed=0, **facts):
    """A model folder of random weights that generates pixels; returns its path."""
    facts = {"autoencoder": as_dict(AutoencoderConfig("pixels"))} | facts
    save_model(folder, random_model(CFG, seed=seed).state_dict(), CFG, **facts)
    return str(folder)


@pytest.fixture
def model(checkout):
    """A model folder that names its sampling settings."""
    return make(checkout / "model", sampling=as_dict(OWN))


def run(model, *options):
    """Images of class 1, unless other classes are named; returns the settings that the grid notes."""
    assert cli.main(["generate", "--device", "cpu", "--classes", "1", "--out", "new/grid.png", model, *options]) == 0
    return json.loads(Image.open("new/grid.png").text["emigm"])


def test_the_grid_holds_the_images_of_the_api_enlarged_and_says_how_it_came_about(model, capsys):
    note = run(model, "--classes", "0,2-3", "--seeds", "4,5", "--batch", "2")
    assert note == {"model": model, "classes": [0, 2, 3], "seeds": [4, 5], "sampling": as_dict(OWN)}
    assert "2 seeds x 3 classes" in capsys.readouterr().out
    sheet = np.asarray(Image.open("new/grid.png"))
    side = 16 * 4  # images of 4 x 4 pixels, enlarged to 64
    top, left = sheet.shape[0] - 2 * (side + 1), sheet.shape[1] - 3 * (side + 1)
    for y, row in enumerate(load_generator(model)([0, 2, 3], [4, 5])):
        for x, image in enumerate(row):
            cell = sheet[top + y * (side + 1) :, left + x * (side + 1) :][:side:16, :side:16]
            np.testing.assert_array_equal(cell, np.asarray(image.convert("RGB")))
    assert (sheet[:top] < 128).any() and (sheet[top:, :left] < 128).any()  # the titles


def test_settings_are_those_of_the_options_the_model_or_its_benchmarks_largest_budget(
    model, tmp_path, monkeypatch, refused
):
    options = ["--steps", "3", "--cfg-interval", "0.1", "0.5", "--schedule", "cosine", "--precision", "bf16"]
    changed = {"steps": 3, "cfg_interval": [0.1, 0.5], "schedule": "cosine", "precision": "bf16"}
    assert run(model, *options)["sampling"] == as_dict(OWN) | changed
    bare = make(tmp_path / "bare")
    said = refused("generate", "--device", "cpu", bare, "--classes", 1, "--out", "grid.png", "--cfg-scale", 2)
    assert "give --steps and --solver-steps" in said
    assert run(bare, "--steps", "2", "--solver-steps", "3")["sampling"] == as_dict(SampleConfig(2, 3))
    smoke, asked = compose_benchmark("smoke"), []
    monkeypatch.setattr(generate, "compose_benchmark", lambda name: asked.append(name) or smoke)
    of_benchmark = run(make(tmp_path / "models" / "smoke" / "xs" / "seed0"))
    assert asked == ["smoke"] and of_benchmark["sampling"] == as_dict(smoke.sample_config("xs", "4"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--classes 0,9", "--classes: 9 is no class"),
        ("--out a.jpg", "--out a.jpg: name a file that ends in .png"),
        ("--steps 0", "steps = 0"),
        ("--solver-steps 2", "solver_steps = 2 is too few"),
        ("--cfg-interval 0.5 0.5", "cfg_interval"),
        ("--batch 0", "--batch 0"),
        ("--device cuda", "PyTorch sees no GPU"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(model, tmp_path, monkeypatch, refused, options, message):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    command = ("generate", "--device", "cpu", model, "--classes", 0, "--out", "a.png")
    assert message in refused(*command, *options.split())
    assert not list(tmp_path.glob("*.png")) + list(tmp_path.glob("*.jpg"))


def test_classes_that_are_too_many_for_one_row_go_on_below():
    classes, seeds = list(range(100)), [0, 1]
    rows = [[Image.new("RGB", (64, 64), (c, 100 + s, 0)) for c in classes] for s in seeds]
    sheet = generate.labelled(rows, classes, seeds)
    assert sheet.width < 2700
    colours = {sheet.getpixel((x, y)) for x in range(0, sheet.width, 13) for y in range(0, sheet.height, 13)}
    assert {(c, 100 + s, 0) for c in classes for s in seeds} <= colours


def test_numbers_and_ranges_are_understood_and_what_is_none_is_refused_with_an_example(capsys):
    for text, listed in (("3", [3]), ("0,2", [0, 2]), ("1-3, 7", [1, 2, 3, 7])):
        assert cli.numbers(text) == listed
    for text in ("", "a", "-1", "3-1", "1,,2", "1.5"):
        with pytest.raises(SystemExit):
            cli.main(["generate", "m", f"--classes={text}", "--out", "a.png"])
        assert "such as 0,2,5-7" in capsys.readouterr().err
