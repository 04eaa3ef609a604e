"""The trained models that git tracks: made from a training's own, checked by `emigm fetch`, found by name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_model import random_model

from emigm import cli
from emigm.api import load_generator, trained_model
from emigm.config.compose import compose_benchmark
from emigm.config.errors import ConfigError
from emigm.config.parsing import as_dict
from emigm.io import checksums
from emigm.model.model import save_model
from emigm.records.record import write_record
from emigm.stages.weights import weights

FOLDER = Path("results/smoke/weights/xs")


@pytest.fixture
def trained(checkout):
    """A checkout with one model, as if it had been trained, with its record and the copy for git."""
    benchmark = compose_benchmark("smoke")
    cfg, recipe, space = benchmark.model_config("xs"), benchmark.train_config("xs"), benchmark.autoencoder.space
    for seed in recipe.seeds:
        save_model(f"models/smoke/xs/seed{seed}", random_model(cfg).state_dict(), cfg, seed=seed, autoencoder=space)
    made = {"size": "xs", "gate": benchmark.gate, "train": recipe, "model": cfg}
    write_record(benchmark, "train-xs", {}, device="cpu", outputs=checksums("models/smoke/xs"), **made)
    weights(benchmark, "xs")
    return benchmark


def fetched(capsys):
    """Exit status of `emigm fetch smoke`, and what it says."""
    status, said = cli.main(["fetch", "smoke"]), capsys.readouterr()
    return status, said.out + said.err


def test_the_copy_makes_the_images_of_the_trained_model_but_for_rounding_in_half_the_bytes(trained):
    seed = trained.train_config("xs").seeds[0]
    own, copy = load_generator(f"models/smoke/xs/seed{seed}"), load_generator(FOLDER)
    assert copy.sampling == trained.finest_sampling("xs")
    a, b = (model.latents([0, 1, 2, 3], 0, copy.sampling) for model in (own, copy))
    assert (a - b).abs().max() < 0.005 * a.abs().max()
    assert b.dtype == torch.float32 and not torch.equal(a, b)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (Path("models/smoke/xs/seed0"), FOLDER)]
    assert sizes[1] < 0.6 * sizes[0]
    first = (FOLDER / "model.safetensors").read_bytes()
    weights(trained, "xs")
    assert (FOLDER / "model.safetensors").read_bytes() == first


def test_a_name_is_the_model_trained_here_or_else_the_copy(trained, capsys):
    options = ("--classes", "0-2", "--out", "grid.png", "--device", "cpu")
    assert trained_model("smoke-xs") == Path("models/smoke/xs/seed0")
    shutil.rmtree("models")
    assert cli.main(["generate", "smoke-xs", *options]) == 0
    assert capsys.readouterr().out.startswith(f"smoke-xs: {FOLDER}\n")
    note = json.loads(Image.open("grid.png").text["emigm"])
    assert note["model"] == str(FOLDER) and note["sampling"] == as_dict(trained.finest_sampling("xs"))
    for name in ("smoke-h", "xs", "-xs"):
        assert trained_model(name) is None
    with pytest.raises(ConfigError, match=r"smoke-h: no such folder or file, .* such as mnist-h"):
        load_generator("smoke-h")


def test_fetch_says_whose_weights_came_with_the_repository_and_how_to_use_them(trained, capsys):
    status, said = fetched(capsys)
    assert status == 0 and "1 models came with the repository" in said
    assert f"{FOLDER}: there (" in said
    assert "float16; trained as results/smoke/records/train-xs.json says, seed 0" in said
    (command,) = [line.strip().split()[1:] for line in said.splitlines() if line.startswith("  emigm generate")]
    assert cli.main([*command, "--device", "cpu"]) == 0 and Path("grid.png").is_file()


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (FOLDER / "model.safetensors", b"F16", b"I16", "not the weights that config.json beside it names; get it back"),
        (FOLDER / "config.json", b"0", b"1", f"checksum differs; get it back by `git checkout -- {FOLDER}`"),
        (Path("results/smoke/records/train-xs.json"), b"seed0/mo", b"seed7/mo", "of another training than results/"),
    ],
)
def test_fetch_refuses_weights_that_were_changed_or_are_of_another_training(trained, capsys, file, old, new, message):
    file.write_bytes(file.read_bytes().replace(old, new))
    status, said = fetched(capsys)
    assert status == 1 and message in said and said.count("error: ") == 1
