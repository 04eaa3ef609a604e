"""Official checkpoints: what is imported, what is refused, and the token the official code leaves unaveraged."""

import argparse
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import test_model
import torch
from safetensors.torch import load_file, save_file
from test_distributed import benchmark, encoded

from emigm.config.errors import ConfigError, RunError
from emigm.config.parsing import as_dict
from emigm.config.schema import ReleasedConfig
from emigm.model import checkpoints
from emigm.model.checkpoints import export_official, fetch_official, identify, import_official, to_official
from emigm.model.model import EMIGM, load_model, read_model_config, save_model
from emigm.paper.settings import PAPER_MODELS
from emigm.records.record import read_record
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
    tree = {
        "model": raw,
        "model_ema": {name: torch.nn.Parameter(t) for name, t in ema.items()},
        "optimizer": optimizer.state_dict(),
        "epoch": 799,
        "scaler": {},
        "args": argparse.Namespace(model="emigm_tiny", use_mae=cfg.mae, lr=8e-4, resume=""),
        **changes,
    }
    torch.save({name: part for name, part in tree.items() if part is not None}, path)
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


@pytest.mark.parametrize("cfg", [TINY, SEPARATE], ids=["shared token", "own mask token"])
def test_import_takes_every_averaged_tensor_and_no_raw_one(tmp_path, cfg):
    path = tmp_path / "x.pth"
    raw, ema = saved_as_official(path, cfg)
    import_official(path, tmp_path / "model", cfg, token="ema")
    state = imported(tmp_path / "model")
    for name, tensor in state.items():
        assert tensor.equal(ema[name]), name
        assert not tensor.equal(raw[name]), name
    assert state.keys() == ema.keys() - ({"mask_token"} if cfg.cfg_with_mask else set())
    assert load_model(tmp_path / "model", expect=cfg).cfg == cfg


def test_shared_token_is_by_default_the_raw_one_that_the_official_evaluation_uses(tmp_path):
    path = tmp_path / "x.pth"
    raw, ema = saved_as_official(path, TINY)
    facts = import_official(path, tmp_path / "model", TINY)
    state = imported(tmp_path / "model")
    assert state["fake_latent"].equal(raw["mask_token"])
    assert state["class_emb.weight"].equal(ema["class_emb.weight"])
    difference = (raw["mask_token"] - ema["fake_latent"]).abs().max().item()
    assert facts["source"]["shared_token"] == {"used": "official", "max_difference": pytest.approx(difference)}


def test_shared_token_is_the_second_name_in_a_file_of_averaged_weights_only(tmp_path):
    path = tmp_path / "x.pth"
    _, ema = saved_as_official(path, TINY, model=None, optimizer=None, args=None)
    import_official(path, tmp_path / "model", TINY)
    assert imported(tmp_path / "model")["fake_latent"].equal(ema["mask_token"])


def test_shared_token_comes_from_the_raw_weights_even_if_the_average_names_it_twice(tmp_path):
    path = tmp_path / "x.pth"
    ema = random_state(TINY, 2)  # the average under both names
    raw, _ = saved_as_official(path, TINY, model_ema=ema)
    import_official(path, tmp_path / "model", TINY)
    assert imported(tmp_path / "model")["fake_latent"].equal(raw["mask_token"])


def test_no_choice_is_recorded_for_a_model_with_a_mask_token_of_its_own(tmp_path):
    path = tmp_path / "x.pth"
    saved_as_official(path, SEPARATE)
    assert "shared_token" not in import_official(path, tmp_path / "model", SEPARATE)["source"]


def test_unknown_choice_of_token_is_refused(file, tmp_path):
    with pytest.raises(ConfigError, match=r"'raw'.*official, ema"):
        import_official(file, tmp_path / "model", TINY, token="raw")


def test_origin_of_the_weights_is_recorded(file, tmp_path):
    import_official(file, tmp_path / "model", TINY, note="mine")
    facts = json.loads((tmp_path / "model" / "config.json").read_text())
    assert facts["origin"] == "released" and facts["note"] == "mine"
    source = facts["source"]
    assert source["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (source["file"], source["entry"], source["epoch"]) == (file.name, "model_ema", 799)
    assert source["architecture"] is None  # none of the paper's


@pytest.mark.parametrize("cfg", [TINY, SEPARATE], ids=["shared token", "own mask token"])
def test_export_and_import_give_back_every_tensor(tmp_path, cfg):
    save_model(tmp_path / "a", EMIGM(cfg).state_dict(), cfg)
    export_official(tmp_path / "a", tmp_path / "x.pth")
    import_official(tmp_path / "x.pth", tmp_path / "b", cfg)
    a, b = (load_file(tmp_path / f / "model.safetensors") for f in "ab")
    assert a.keys() == b.keys()
    assert all(a[name].equal(b[name]) for name in a)


def test_import_and_export_give_back_the_official_entry(tmp_path):
    state = random_state(TINY, 3)
    torch.save({"model_ema": state}, tmp_path / "x.pth")
    import_official(tmp_path / "x.pth", tmp_path / "model", TINY)
    export_official(tmp_path / "model", tmp_path / "y.pth")
    again = torch.load(tmp_path / "y.pth", weights_only=True)["model_ema"]
    assert again.keys() == state.keys()
    assert all(again[name].equal(state[name]) for name in state)


def test_half_precision_weights_become_float32(tmp_path):
    state = {name: t.half() for name, t in random_state(TINY, 3).items()}
    torch.save({"model_ema": state}, tmp_path / "x.pth")
    import_official(tmp_path / "x.pth", tmp_path / "model", TINY)
    assert {p.dtype for p in load_model(tmp_path / "model").parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "name", ["fake_latent", "mask_token", "decoder_blocks.1.attn.qkv.bias", "diffloss.net.final_layer.linear.weight"]
)
@pytest.mark.parametrize("tamper", ["missing", "added", "wrong shape"])
def test_tampered_tensor_is_refused_by_name(tmp_path, name, tamper):
    state = random_state(TINY, 1)
    if tamper == "missing":
        del state[name]
    elif tamper == "added":
        name += "_2"
        state[name] = torch.zeros(1)
    else:
        state[name] = torch.cat([state[name], state[name]])
    path = tmp_path / "x.pth"
    torch.save({"model_ema": state}, path)
    with pytest.raises(ConfigError) as error:
        import_official(path, tmp_path / "model", TINY)
    assert str(path) in str(error.value) and name in str(error.value) and "download" in str(error.value)
    assert not (tmp_path / "model").exists()


def test_raw_weights_without_the_token_that_is_evaluated_are_refused(tmp_path):
    raw = random_state(TINY, 1)
    del raw["mask_token"]
    saved_as_official(tmp_path / "x.pth", TINY, model=raw)
    with pytest.raises(ConfigError, match=r"x\.pth.*mask_token"):
        import_official(tmp_path / "x.pth", tmp_path / "model", TINY)


def test_another_size_is_refused(file, tmp_path):
    with pytest.raises(ConfigError, match=r"shape.*expected.*another size"):
        import_official(file, tmp_path / "model", replace(TINY, width=32))


def test_model_trained_without_the_mae_trick_is_not_taken_for_one_with_it(tmp_path):
    path = tmp_path / "x.pth"
    saved_as_official(path, replace(TINY, mae=False))
    with pytest.raises(ConfigError, match="use_mae = False"):
        import_official(path, tmp_path / "model", TINY)
    import_official(path, tmp_path / "model", replace(TINY, mae=False))


@pytest.mark.parametrize("kept", [0, 1, 1000, -1])
def test_truncated_file_is_refused(file, tmp_path, kept):
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ConfigError, match=f"{file.name}.*(truncated|damaged)"):
        import_official(file, tmp_path / "model", TINY)


def test_missing_file_and_missing_entry_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"x\.pth: no such file"):
        import_official(tmp_path / "x.pth", tmp_path / "model", TINY)
    torch.save({"state_dict": random_state(TINY, 1)}, tmp_path / "x.pth")
    with pytest.raises(ConfigError, match=r"x\.pth.*'model_ema'.*state_dict"):
        import_official(tmp_path / "x.pth", tmp_path / "model", TINY)
    torch.save({"model_ema": None, "epoch": 1}, tmp_path / "x.pth")  # the official code without an EMA
    with pytest.raises(ConfigError, match=r"x\.pth"):
        import_official(tmp_path / "x.pth", tmp_path / "model", TINY)


def test_file_of_another_format_is_refused(tmp_path):
    save_file({n: t for n, t in random_state(SEPARATE, 1).items()}, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match=r"x\.safetensors.*\.pth"):
        import_official(tmp_path / "x.safetensors", tmp_path / "model", SEPARATE)


class Payload:
    """What a malicious file holds: unpickled without restriction, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("where", ["model_ema", "args", "extra"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_file_with_code_is_refused_and_the_code_not_run(tmp_path, where, zipped):
    tree = {"model_ema": random_state(TINY, 1), "args": argparse.Namespace(), where: Payload(tmp_path / "ran")}
    torch.save(tree, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ConfigError, match=r"x\.pth.*mkdir") as error:
        import_official(tmp_path / "x.pth", tmp_path / "model", TINY)
    assert not (tmp_path / "ran").exists()
    assert "weights_only" not in str(error.value)  # no advice to run it after all


def test_code_inside_the_arguments_is_not_run_either(tmp_path):
    args = argparse.Namespace(lr=Payload(tmp_path / "ran"))
    saved_as_official(tmp_path / "x.pth", TINY, args=args)
    with pytest.raises(ConfigError, match="mkdir"):
        import_official(tmp_path / "x.pth", tmp_path / "model", TINY)
    assert not (tmp_path / "ran").exists()


def test_every_paper_architecture_is_identified_from_its_shapes():
    for cfg in PAPER_MODELS.values():
        with torch.device("meta"):
            state = to_official(EMIGM(cfg).state_dict(), cfg)
        assert identify(state, "x.pth") == cfg


def test_import_finds_the_architecture_and_says_which(tmp_path, monkeypatch):
    nine = {(256, "xs"): TINY, (256, "s"): replace(TINY, encoder_blocks=2), (512, "xs"): replace(TINY, channels=4)}
    monkeypatch.setattr(checkpoints, "PAPER_MODELS", nine)
    for (resolution, size), cfg in nine.items():
        saved_as_official(tmp_path / "x.pth", cfg)
        facts = import_official(tmp_path / "x.pth", tmp_path / "model")
        assert facts["source"]["architecture"] == f"{resolution}-{size}"
        assert load_model(tmp_path / "model").cfg == cfg


def test_unknown_architecture_is_refused_against_the_closest_one(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "PAPER_MODELS", {(256, "xs"): TINY, (256, "s"): replace(TINY, width=32)})
    saved_as_official(tmp_path / "x.pth", replace(TINY, head_blocks=3))
    with pytest.raises(ConfigError, match=r"x\.pth.*diffloss\.net\.res_blocks\.2\..*256-xs"):
        import_official(tmp_path / "x.pth", tmp_path / "model")
    saved_as_official(tmp_path / "x.pth", SEPARATE)
    with pytest.raises(ConfigError, match=r"mask_token has shape \(1, 1, 16\), expected \(1, 16\)"):
        import_official(tmp_path / "x.pth", tmp_path / "model")


RELEASED = ReleasedConfig(repository="lab/eMIGM", folder="weights/emigm", files={"xs": "eMIGM_tiny_checkpoint.pth"})


def test_another_checksum_is_refused_and_the_file_left(file, tmp_path):
    content = file.read_bytes()
    with pytest.raises(ConfigError, match=rf"{file.name}: has SHA-256 {hashlib.sha256(content).hexdigest()}.*0000"):
        import_official(file, tmp_path / "model", TINY, checksum="0000")
    assert file.read_bytes() == content and not (tmp_path / "model").exists()
    import_official(file, tmp_path / "model", TINY, checksum=hashlib.sha256(content).hexdigest())


def test_a_released_file_that_is_there_is_taken_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    path = tmp_path / RELEASED.files["xs"]
    path.touch()
    assert fetch_official(replace(RELEASED, folder=str(tmp_path)), "xs") == path


def test_a_released_file_that_is_absent_is_downloaded_to_its_place(tmp_path, monkeypatch):
    asked = []

    def download(repository, name, local_dir):
        asked.append((repository, name))
        (Path(local_dir) / name).write_text("weights")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", asked.append)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    path = fetch_official(replace(RELEASED, folder=str(tmp_path)), "xs")
    url = "https://huggingface.co/lab/eMIGM/resolve/main/eMIGM_tiny_checkpoint.pth"
    assert path.read_text() == "weights" and asked == [url, ("lab/eMIGM", "eMIGM_tiny_checkpoint.pth")]


@pytest.mark.parametrize("failing", ["get_hf_file_metadata", "hf_hub_download"])
def test_without_a_network_the_file_its_place_and_its_page_are_named(tmp_path, monkeypatch, failing):
    def fail(*args, **options):
        raise ConnectionError("name resolution failed\nand more")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: None)
    monkeypatch.setattr(huggingface_hub, failing, fail)
    with pytest.raises(ConfigError) as e:
        fetch_official(replace(RELEASED, folder=str(tmp_path)), "xs")
    place = tmp_path / "eMIGM_tiny_checkpoint.pth"
    assert str(e.value) == (
        f"{place}: no such file, and downloading it failed (name resolution failed); download "
        "eMIGM_tiny_checkpoint.pth from https://huggingface.co/lab/eMIGM/tree/main and put it there"
    )


def released_benchmark(cfg=TINY, **changes):
    base = benchmark()
    options = {
        "model": as_dict(cfg),
        "weights": "released",
        "released": RELEASED,
        "train": {**base.train, "seeds": [0]},
    }
    return benchmark(**{**options, **changes})


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
    record = json.loads(Path("results/tiny/records/train-xs.json").read_text())
    assert record["weights"] == "released" and record["settings"]["source"] == facts["source"]
    assert record["settings"]["source"]["sha256"] == hashlib.sha256(released_file.read_bytes()).hexdigest()
    results = record["results"]
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
    context = read_record("results/tiny/records/train-xs.json")["results"]["context"]
    assert context["passed"] and set(context["errors"]) == {"0", "8"}


def test_the_checksum_of_the_configuration_and_its_choice_of_token_apply(released_file):
    _, ema = saved_as_official(released_file, TINY)
    with pytest.raises(ConfigError, match="expected 0000"):
        train_size(released_benchmark(released=replace(RELEASED, sha256={"xs": "0" * 64})), "xs")
    train_size(released_benchmark(released=replace(RELEASED, token="ema")), "xs")
    assert imported(Path("models/tiny/xs/seed0"))["fake_latent"].equal(ema["fake_latent"])


def test_released_weights_of_another_architecture_are_refused(released_file):
    saved_as_official(released_file, replace(TINY, head_blocks=3))
    with pytest.raises(ConfigError, match=r"eMIGM_tiny_checkpoint\.pth: tensor diffloss\.net\.res_blocks\.2"):
        train_size(released_benchmark(), "xs")


def test_released_weights_with_several_training_seeds_are_refused():
    with pytest.raises(ConfigError, match=r"train\.seeds = \[0, 1\].*one seed"):
        released_benchmark(train={**benchmark().train, "seeds": [0, 1]})
