"""The Python API; `emigm generate`, whose images are those of the API, with the model's own settings unless an option
replaces them; checkpoints in and out; models by name: of a server on the loopback address that stands for the Hub, and
those that git tracks."""

import dataclasses
import json
import shutil
import types
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from loopback import COMMIT
from made_up import write_results
from PIL import Image
from test_model import TINY, random_model

from emigm import api, cli
from emigm.api import load_generator, trained_model
from emigm.config.compose import compose_benchmark
from emigm.config.errors import ConfigError
from emigm.config.parsing import as_dict
from emigm.config.schema import AutoencoderConfig, SampleConfig
from emigm.io import checksums
from emigm.model.checkpoints import export_official
from emigm.model.model import save_model
from emigm.paper.settings import PAPER_MODELS
from emigm.records.record import write_record
from emigm.stages.weights import weights
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


@pytest.fixture
def bare(tmp_path):
    """A model folder that names none."""
    return make(tmp_path / "bare")


def run(model, *options):
    """Images of class 1, unless other classes are named; returns the settings that the grid notes."""
    assert cli.main(["generate", "--device", "cpu", "--classes", "1", "--out", "new/grid.png", model, *options]) == 0
    return json.loads(Image.open("new/grid.png").text["emigm"])


def test_a_small_model_on_a_cpu_runs_in_one_thread_and_a_large_one_in_all(model, monkeypatch):
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    run(model, "--classes", "0", "--seeds", "0", "--device", "cpu")
    monkeypatch.setattr(generate, "FEW", 0)
    run(model, "--classes", "0", "--seeds", "0", "--device", "cpu")
    assert threads == [1]


def test_of_a_trained_model_the_first_seed_by_number_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in (9, 10):
        make(Path("models/mine/xs") / f"seed{seed}")
    assert trained_model("mine-xs") == Path("models/mine/xs/seed9")


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
    model, bare, tmp_path, monkeypatch, refused
):
    options = ["--steps", "3", "--cfg-interval", "0.1", "0.5", "--schedule", "cosine", "--precision", "bf16"]
    changed = {"steps": 3, "cfg_interval": [0.1, 0.5], "schedule": "cosine", "precision": "bf16"}
    assert run(model, *options)["sampling"] == as_dict(OWN) | changed
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


# The API


def test_a_model_of_ours_needs_settings_and_a_named_autoencoder(bare, tmp_path):
    save_model(tmp_path / "none", random_model(CFG).state_dict(), CFG)
    for work, message in (
        (lambda: load_generator(bare).latents([0], seed=0), "give a SampleConfig"),
        (lambda: load_generator(tmp_path / "none"), "names no autoencoder"),
        (lambda: load_generator("256-xxl"), r"no such folder or file, and none of the released models \(256-xs, "),
        (lambda: load_generator(bare, autoencoder="kl16.ckpt"), "takes no weights of others"),
    ):
        with pytest.raises(ConfigError, match=message):
            work()


def test_the_command_line_exports_and_imports_a_checkpoint_and_names_mistakes(bare, tmp_path, refused, capsys):
    exported, again = tmp_path / "tiny.pth", tmp_path / "again"
    assert cli.main(["export", bare, str(exported)]) == 0
    assert "tiny.pth" in refused("import", exported, again)  # none of the nine
    assert "none.pth: no such file" in refused("import", tmp_path / "none.pth", again)
    assert "a model folder already" in refused("import", bare, again)
    with pytest.raises(SystemExit):
        cli.main(["import", "a", "b", "--model", "256-xxl"])
    assert "256-xs" in capsys.readouterr().err
    again.mkdir()
    (again / "thesis.tex").write_text("mine")
    said = refused("import", exported, again)
    assert said.endswith("holds other files than a model's (thesis.tex); name a new folder")
    assert [p.name for p in again.iterdir()] == ["thesis.tex"]
    (again / "thesis.tex").unlink()
    for name in ("model.safetensors", "config.json", ".model.safetensors.1.tmp"):  # a model, and what a kill left
        (again / name).touch()
    assert "none.pth: no such file" in refused("import", tmp_path / "none.pth", again)


def put_folder(server, repository, folder, **where):
    for name in ("config.json", "model.safetensors"):
        server.put(repository, name, (Path(folder) / name).read_bytes(), **where)


def picture(*model, **options):
    return load_generator(*model, **options)([0, 1], [5], OWN)[0][1].tobytes()


def test_a_repository_is_loaded_and_cached(server, tmp_path, refused):
    folder = make(tmp_path / "model", sampling=as_dict(OWN))
    put_folder(server, "me/tiny", folder)
    assert load_generator("me/tiny").sampling == OWN and picture("me/tiny") == picture(folder)
    bodies = sum(method == "GET" for method, _ in server.requests)
    assert picture("me/tiny") == picture(folder)
    assert sum(method == "GET" for method, _ in server.requests) == bodies
    said = refused("generate", "me/none", "--classes", "0", "--out", "a.png")
    assert "me/none: config.json is neither in the Hub's cache nor" in said and "check the name" in said


def test_both_files_are_of_the_asked_revision(server, tmp_path):
    old, new = make(tmp_path / "old"), make(tmp_path / "new", seed=1)
    put_folder(server, "me/tiny", old, commit="a" * 40, branch="v1")
    put_folder(server, "me/tiny", new)
    assert picture("me/tiny", revision="v1") == picture(old) != picture(new) == picture("me/tiny")


def test_a_released_name_fetches_the_checkpoint_and_its_autoencoder(server, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setitem(PAPER_MODELS, (256, "xs"), TINY)
    monkeypatch.setattr(api, "paper_sampling", lambda resolution, size, steps: OWN)
    monkeypatch.setattr(api, "load_autoencoder", lambda cfg, device: asked.append(cfg))
    save_model(tmp_path / "model", random_model(TINY).state_dict(), TINY)
    export_official(tmp_path / "model", tmp_path / "tiny.pth")
    server.put("GSAI-ML/eMIGM", "256_model/eMIGM_xsmall_256_checkpoint.pth", (tmp_path / "tiny.pth").read_bytes())
    server.put("xwen99/mar-vae-kl16", "kl16.ckpt", b"weights")
    ours = load_generator("256-xs").latents([0], 5)
    assert (ours == load_generator(tmp_path / "tiny.pth", "mine.ckpt").latents([0], 5)).all()
    (released, mine) = asked
    assert (released.kind, released.scale) == ("kl16", 0.2325) and Path(released.weights).read_bytes() == b"weights"
    assert dataclasses.replace(released, weights="mine.ckpt") == mine


@pytest.fixture
def pushed(server, monkeypatch):
    """Repositories that were made; what is pushed to one lies on the server."""
    repositories = []

    def commit(repository, operations, commit_message):
        for operation in operations:
            content = operation.path_or_fileobj
            content = content if isinstance(content, bytes) else Path(content).read_bytes()
            server.put(repository, operation.path_in_repo, content)
        return types.SimpleNamespace(commit_url=f"{server.url}/{repository}/commit/{COMMIT}")

    monkeypatch.setattr(huggingface_hub, "create_repo", lambda name, **options: repositories.append((name, options)))
    monkeypatch.setattr(huggingface_hub, "file_exists", lambda name, file: False)
    monkeypatch.setattr(huggingface_hub, "create_commit", commit)
    return repositories


def test_a_pushed_folder_is_loaded_again(server, pushed, tmp_path, capsys):
    folder = make(tmp_path / "model")
    (tmp_path / "model" / "private.txt").write_text("not to be uploaded")
    assert api.push_to_hub(Path(folder), "me/tiny", sampling=OWN, private=True).endswith(COMMIT)
    assert pushed == [("me/tiny", {"private": True, "exist_ok": True})]
    assert {path.rsplit("/", 1)[1] for path in server.files} == {"config.json", "model.safetensors", "README.md"}
    assert load_generator("me/tiny").sampling == OWN and picture("me/tiny") == picture(folder)
    assert cli.main(["push", folder, "me/other"]) == 0 and "me/other" in capsys.readouterr().out
    assert load_generator("me/other").sampling is None


def test_the_card_of_a_trained_model_says_what_was_measured(server, pushed, tmp_path):
    results = write_results(tmp_path, seeds=(0, 1), samples=(0, 1), snapshots=(0.5,))
    folder = tmp_path / "models" / "mnist" / "xs" / "seed1"
    api.push_to_hub(Path(make(folder)), "me/tiny")
    text = server.files["/me/tiny/resolve/main/README.md"].content.decode()
    runs = json.loads((results / "records/evaluate-xs.json").read_text())["results"]["4"]["runs"]
    expected = np.mean([run["fid"] for run in runs if run["train_seed"] == 1 and run.get("snapshot") is None])
    assert text.count("FID at N = ") == 2 and f"FID at N = 4: {expected:.2f} (Made-up mnist; 1,000 images" in text
    assert huggingface_hub.ModelCard(text).data.pipeline_tag == "unconditional-image-generation"
    assert api.measured_scores(folder.with_name("seed7")) == ""


def test_what_cannot_be_pushed_is_one_clear_error(server, pushed, tmp_path, monkeypatch, refused):
    def unknown(*_, **__):
        raise OSError("401: who are you?\nmore")

    folder = make(tmp_path / "model")
    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub, "create_repo", unknown)
        assert "me/tiny: uploading failed (401: who are you?); check" in refused("push", folder, "me/tiny")
    with Path(folder, "model.safetensors").open("ab") as f:
        f.write(b"more")
    assert "model.safetensors: checksum differs" in refused("push", folder, "me/tiny")


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
