"""Models by name: through the Hub's cache, from a server on the loopback address that stands for the Hub."""

import dataclasses
import json
import types
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from loopback import COMMIT
from made_up import write_results
from test_generate import OWN, make
from test_model import TINY, random_model

from emigm import api, cli
from emigm.api import load_generator
from emigm.config.parsing import as_dict
from emigm.model.checkpoints import export_official
from emigm.model.model import save_model
from emigm.paper.settings import PAPER_MODELS


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
