"""Official checkpoints: what is imported, what is refused, and the token the official code leaves unaveraged."""

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import test_model
import torch
from safetensors.torch import load_file, save_file
from stored import Code, record
from test_distributed import benchmark, encoded

from emigm import cli
from emigm.config.errors import ConfigError, RunError
from emigm.config.parsing import as_dict
from emigm.config.schema import ReleasedConfig
from emigm.io import sha256
from emigm.model import checkpoints
from emigm.model.checkpoints import export_official, identify, import_official, to_official
from emigm.model.model import EMIGM, load_model, read_model_config, save_model
from emigm.paper.settings import PAPER_MODELS
from emigm.stages.train import train_size

TINY = replace(test_model.TINY, buffer=2)
SEPARATE = replace(TINY, cfg_with_mask=False)


def random_state(cfg, seed):
    """Every tensor of the official state dict, random; a shared token is equal under both of its names."""
    torch.manual_seed(seed)
    model = EMIGM(cfg)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p))
    return to_official(model.state_dict(), cfg)


def saved_as_official(path, cfg, **changes):
    """A file as the official training writes it: EMA under first names, everything else beside it."""
    raw, ema = random_state(cfg, 1), random_state(cfg, 2)
    if cfg.cfg_with_mask:
        ema["mask_token"] = raw["mask_token"]
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter], lr=1e-3)
    parameter.grad = torch.ones(2)
    optimizer.step()
    tree = {"model": raw, "model_ema": {name: torch.nn.Parameter(t) for name, t in ema.items()}}
    tree |= {"optimizer": optimizer.state_dict(), "epoch": 799, "scaler": {}}
    tree["args"] = argparse.Namespace(model="emigm_tiny", use_mae=cfg.mae, lr=8e-4, resume="")
    torch.save({name: part for name, part in (tree | changes).items() if part is not None}, path)
    return raw, ema


def imported(folder):
    """Tensors of a model folder under their official names, without the second name of a shared token."""
    cfg, _ = read_model_config(folder)
    state = to_official(load_file(folder / "model.safetensors"), cfg)
    return {n: t for n, t in state.items() if not (cfg.cfg_with_mask and n == "mask_token")}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "eMIGM_tiny_checkpoint.pth"
    saved_as_official(path, TINY)
    return path


BOTH = pytest.mark.parametrize("cfg", [TINY, SEPARATE], ids=["shared token", "own mask token"])


@BOTH
def test_import_takes_every_averaged_tensor_and_no_raw_one_and_records_their_origin(tmp_path, cfg):
    path = tmp_path / "x.pth"
    raw, ema = saved_as_official(path, cfg)
    facts = import_official(path, tmp_path / "model", cfg, token="ema", note="mine", checksum=sha256(path))
    state = imported(tmp_path / "model")
    for name, tensor in state.items():
        assert tensor.equal(ema[name]) and not tensor.equal(raw[name]), name
    assert state.keys() == ema.keys() - ({"mask_token"} if cfg.cfg_with_mask else set())
    assert ("shared_token" in facts["source"]) == cfg.cfg_with_mask  # no choice where the mask has a token of its own
    assert load_model(tmp_path / "model", expect=cfg).cfg == cfg
    facts = json.loads((tmp_path / "model" / "config.json").read_text())
    assert facts["origin"] == "released" and facts["note"] == "mine"
    expected = {"file": path.name, "sha256": sha256(path), "entry": "model_ema", "epoch": 799, "architecture": None}
    assert expected.items() <= facts["source"].items()  # the architecture: none of the paper's


@pytest.mark.parametrize("changes", [{}, {"model": None, "optimizer": None, "args": None}, {"model_ema": ...}],
                         ids=["by training", "averages alone", "the average under both names"])  # fmt: skip
def test_the_shared_token_is_the_one_that_the_official_evaluation_computes_with(tmp_path, changes):
    changes = {name: random_state(TINY, 2) if part is ... else part for name, part in changes.items()}
    raw, ema = saved_as_official(tmp_path / "x.pth", TINY, **changes)
    facts = import_official(tmp_path / "x.pth", tmp_path / "model", TINY)
    state = imported(tmp_path / "model")
    assert state["fake_latent"].equal(raw["mask_token"])
    assert state["class_emb.weight"].equal(ema["class_emb.weight"])
    difference = (raw["mask_token"] - ema["fake_latent"]).abs().max().item()
    assert facts["source"]["shared_token"] == {"used": "official", "max_difference": pytest.approx(difference)}


@BOTH
def test_export_and_import_give_back_every_tensor(tmp_path, cfg):
    save_model(tmp_path / "a", EMIGM(cfg).state_dict(), cfg)
    export_official(tmp_path / "a", tmp_path / "x.pth")
    import_official(tmp_path / "x.pth", tmp_path / "b", cfg)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    state = torch.load(tmp_path / "x.pth", weights_only=True)["model_ema"]
    assert state.keys() == random_state(cfg, 1).keys()


@pytest.mark.parametrize(
    "name", ["fake_latent", "mask_token", "decoder_blocks.1.attn.qkv.bias", "diffloss.net.final_layer.linear.weight"]
)
@pytest.mark.parametrize("tamper", ["missing", "added", "wrong shape"])
def test_tampered_tensor_is_refused_by_name(tmp_path, name, tamper):
    state, path = random_state(TINY, 1), tmp_path / "x.pth"
    tensor = state.pop(name)
    if tamper == "added":
        state |= {name: tensor, (name := f"{name}_2"): torch.zeros(1)}
    elif tamper == "wrong shape":
        state[name] = torch.cat([tensor, tensor])
    torch.save({"model_ema": state}, path)
    with pytest.raises(ConfigError) as error:
        import_official(path, tmp_path / "model", TINY)
    assert str(path) in str(error.value) and name in str(error.value) and "download" in str(error.value)
    assert not (tmp_path / "model").exists()


def test_what_does_not_fit_is_refused_and_the_file_left(file, tmp_path):
    for changes, cfg, options, message in (
        ({}, TINY, {"checksum": "0000"}, r"checkpoint\.pth: has SHA-256 [0-9a-f]{64}.*0000"),
        ({}, replace(TINY, width=32), {}, "shape.*expected.*another size"),
        ({"model": {}}, TINY, {}, r"checkpoint\.pth.*mask_token"),  # the token that is evaluated
        ({"args": argparse.Namespace(use_mae=False)}, TINY, {}, "use_mae = False"),
    ):
        saved_as_official(file, TINY, **changes)
        before = sha256(file)
        with pytest.raises(ConfigError, match=message):
            import_official(file, tmp_path / "model", cfg, **options)
        assert sha256(file) == before and not (tmp_path / "model").exists()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_as_ddp_and_compile_write_them_are_accepted(tmp_path, prefix):
    without_trick = replace(TINY, mae=False)
    raw, ema = saved_as_official(tmp_path / "x.pth", without_trick)
    named = [{prefix + name: tensor for name, tensor in state.items()} for state in (raw, ema)]
    torch.save({"model": named[0], "model_ema": named[1]}, tmp_path / "prefixed.pth")
    for name in ("x", "prefixed"):
        import_official(tmp_path / f"{name}.pth", tmp_path / name, without_trick)
    assert (tmp_path / "x/model.safetensors").read_bytes() == (tmp_path / "prefixed/model.safetensors").read_bytes()


ZIPPED = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])


@ZIPPED
@pytest.mark.parametrize("value", [np.float64(0.5), np.float32(0.5), np.int64(3), np.bool_(True)], ids=repr)
def test_a_numpy_scalar_among_the_entries_is_read_and_half_precision_weights_become_float32(tmp_path, value, zipped):
    tree = {"model_ema": {name: t.half() for name, t in random_state(TINY, 1).items()}, "best": value}
    torch.save(tree, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    import_official(tmp_path / "x.pth", tmp_path / "model", TINY)
    assert {p.dtype for p in load_model(tmp_path / "model").parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a git-LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html>Sign in</html>", "is a web page.*direct link"),
        (b"\n<html>", "is a web page"),
        (-1, "truncated, damaged"),
        ({"state_dict": {}}, "has no entry 'model_ema'.*state_dict"),
        ({"model_ema": None, "epoch": 1}, "expected named tensors"),  # the official code without an EMA
        ({"model_ema": np.ones(2)}, "holds a numpy.*only tensors and plain values"),
        (None, "no such file"),
    ],
)
def test_what_a_file_is_instead_is_said_in_one_line(file, tmp_path, content, message):
    if content is None:
        file.unlink()
    elif isinstance(content, dict):
        torch.save(content, file)
    else:
        file.write_bytes(file.read_bytes()[:content] if isinstance(content, int) else content)
    with pytest.raises(ConfigError, match=f"{file.name}: .*{message}") as error:
        import_official(file, tmp_path / "model", TINY)
    assert "\n" not in str(error.value) and not (tmp_path / "model").exists()


def test_another_format_is_told_from_a_truncated_file(tmp_path):
    save_file(random_state(SEPARATE, 1), path := tmp_path / "x.safetensors")
    for message in ("has no entry 'model_ema'", "truncated, damaged"):
        with pytest.raises(ConfigError, match=rf"x\.safetensors: {message}"):
            import_official(path, tmp_path / "model", SEPARATE)
        path.write_bytes(path.read_bytes()[:-500])


@pytest.mark.parametrize("where", ["model_ema", "args", "extra", "inside the arguments"])
@ZIPPED
def test_file_with_code_is_refused_and_the_code_not_run(tmp_path, where, zipped):
    payload = Code(tmp_path / "ran")
    inside = argparse.Namespace(lr=payload if where == "inside the arguments" else 1)
    torch.save({"model_ema": random_state(TINY, 1), "args": inside, where: payload}, tmp_path / "x.pth",
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    with pytest.raises(ConfigError, match=r"x\.pth.*mkdir") as error:
        import_official(tmp_path / "x.pth", tmp_path / "model", TINY)
    assert not (tmp_path / "ran").exists()
    assert "weights_only" not in str(error.value)  # no advice to run it after all


def test_every_paper_architecture_is_identified_from_its_shapes():
    for cfg in PAPER_MODELS.values():
        with torch.device("meta"):
            state = to_official(EMIGM(cfg).state_dict(), cfg)
        assert identify(state, "x.pth") == cfg


def test_another_architecture_is_refused_against_the_closest_one_until_it_is_given(
    tmp_path, monkeypatch, capsys, refused
):
    monkeypatch.setattr(checkpoints, "PAPER_MODELS", {(256, "xs"): TINY, (256, "s"): replace(TINY, width=32)})
    saved_as_official(tmp_path / "x.pth", TINY)
    facts = import_official(tmp_path / "x.pth", tmp_path / "found")
    assert facts["source"]["architecture"] == "256-xs" and load_model(tmp_path / "found").cfg == TINY
    other = replace(TINY, head_blocks=3)
    saved_as_official(tmp_path / "x.pth", other)
    arguments = ["import", str(tmp_path / "x.pth"), str(tmp_path / "model")]
    assert re.search(r"x\.pth.*diffloss\.net\.res_blocks\.2\..*256-xs.*--model FILE", refused(*arguments))
    (tmp_path / "mine.json").write_text(json.dumps(as_dict(other)))
    (tmp_path / "mine.yaml").write_text(f"model: {json.dumps(as_dict(other))}")  # as in a model folder's config.json
    for name in ("mine.json", "mine.yaml"):
        assert cli.main([*arguments, "--model", str(tmp_path / name)]) == 0
        assert load_model(tmp_path / "model").cfg == other
    (tmp_path / "mine.yaml").write_text("widht: 3")
    for name, problem in (("mine.yaml", "unknown key"), ("none.yaml", "or a YAML or JSON file with the keys of")):
        with pytest.raises(SystemExit):
            cli.main([*arguments, "--model", str(tmp_path / name)])
        assert problem in capsys.readouterr().err
    saved_as_official(tmp_path / "x.pth", SEPARATE)
    with pytest.raises(ConfigError, match=r"mask_token has shape \(1, 1, 16\), expected \(1, 16\)"):
        import_official(tmp_path / "x.pth", tmp_path / "model")


RELEASED = ReleasedConfig(repository="lab/eMIGM", folder="weights/emigm", files={"xs": "eMIGM_tiny_checkpoint.pth"})


def released_benchmark(cfg=TINY, **changes):
    released = {"weights": "released", "released": RELEASED, "train": {**benchmark().train, "seeds": (0,)}}
    return benchmark(**{"model": as_dict(cfg), **released, **changes})


@pytest.fixture
def released_file(tmp_path, monkeypatch):
    """The released file where the benchmark above looks for it."""
    monkeypatch.chdir(tmp_path)
    path = Path(RELEASED.folder) / RELEASED.files["xs"]
    path.parent.mkdir(parents=True)
    return path


def test_the_train_stage_imports_released_weights_and_says_so(released_file):
    raw, ema = saved_as_official(released_file, TINY)
    tiny = released_benchmark()
    train_size(tiny, "xs")
    state = imported(Path("models/tiny/xs/seed0"))
    assert state["fake_latent"].equal(raw["mask_token"]) and state["z_proj.weight"].equal(ema["z_proj.weight"])
    cfg, facts = read_model_config("models/tiny/xs/seed0")
    assert cfg == TINY and facts["origin"] == "released" and facts["autoencoder"] == tiny.autoencoder.space
    written = record("tiny", "train-xs")
    assert written["weights"] == "released" and written["settings"]["source"] == facts["source"]
    assert facts["source"]["sha256"] == sha256(released_file)
    results = written["results"]
    assert results["parameters"] == sum(t.numel() for t in state.values())
    assert results["flops"] is results["seconds"] is results["images"] is results["context"] is None
    assert Path("results/tiny/curves/xs.csv").read_text() == "step,loss,least,greatest\n"


def test_released_weights_pass_the_gate_where_held_out_latents_are(released_file):
    cfg = replace(TINY, channels=1, classes=2)
    saved_as_official(released_file, cfg)
    gate = replace(benchmark().gate, visible=(0, 8), images=16, repeats=2, on_failure="stop", max_ratio=0.01)
    strict = released_benchmark(cfg, gate=gate)
    encoded(Path("."), strict)
    with pytest.raises(RunError, match=r"tiny-xs, released weights: the model ignores context.*autoencoder\.scale"):
        train_size(strict, "xs")
    train_size(released_benchmark(cfg, gate=replace(gate, max_ratio=1.0)), "xs")
    context = record("tiny", "train-xs")["results"]["context"]
    assert context["passed"] and set(context["errors"]) == {"0", "8"}


def test_the_configurations_checksum_architecture_and_choice_of_token_apply(released_file):
    _, ema = saved_as_official(released_file, TINY)
    with pytest.raises(ConfigError, match="expected 0000"):
        train_size(released_benchmark(released=replace(RELEASED, sha256={"xs": "0" * 64})), "xs")
    with pytest.raises(ConfigError, match=r"eMIGM_tiny_checkpoint\.pth: tensor diffloss\.net\.res_blocks\.2"):
        train_size(released_benchmark(replace(TINY, head_blocks=3)), "xs")
    train_size(released_benchmark(released=replace(RELEASED, token="ema")), "xs")
    assert imported(Path("models/tiny/xs/seed0"))["fake_latent"].equal(ema["fake_latent"])
