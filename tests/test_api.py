"""The Python API and the command line around checkpoints."""

import pytest
from PIL import Image
from test_generate import CFG, OWN, make
from test_model import random_model

from emigm import cli
from emigm.api import Generator, load_generator
from emigm.config.errors import ConfigError
from emigm.model.model import save_model
from emigm.paper.settings import PAPER_MODELS, paper_sampling


@pytest.fixture
def folder(tmp_path):
    return make(tmp_path / "model")


def test_a_generator_makes_one_row_a_seed_and_one_picture_a_class(folder):
    rows = load_generator(folder)(classes=[0, 3, 3], seeds=[1, 2], sampling=OWN)
    assert [len(row) for row in rows] == [3, 3]
    assert all(isinstance(p, Image.Image) and p.size == (4, 4) and p.mode == "L" for row in rows for p in row)
    again = Generator.from_pretrained(folder)([0, 3, 3], [2], OWN)[0]
    assert again[1].tobytes() == rows[1][1].tobytes() != rows[0][1].tobytes()


def test_a_model_of_ours_needs_settings_and_a_named_autoencoder(folder, tmp_path):
    save_model(tmp_path / "bare", random_model(CFG).state_dict(), CFG)
    for work, message in (
        (lambda: load_generator(folder).latents([0], seed=0), "give a SampleConfig"),
        (lambda: load_generator(tmp_path / "bare"), "names no autoencoder"),
        (lambda: load_generator("256-xxl"), r"no such folder or file, and none of the released models \(256-xs, "),
        (lambda: load_generator(folder, autoencoder="kl16.ckpt"), "takes no weights of others"),
    ):
        with pytest.raises(ConfigError, match=message):
            work()


@pytest.mark.parametrize(("resolution", "size"), PAPER_MODELS)
def test_the_papers_settings_are_those_of_its_budgets(resolution, size):
    low, high = (paper_sampling(resolution, size, n) for n in (16, {256: 128, 512: 64}[resolution]))
    assert (low.solver_steps, high.solver_steps, low.cfg_scale, high.cfg_scale) == (8, 14, 4.0, 4.0)
    assert high.cfg_interval == {"b": (0.05, 0.4), "h": (0.3, 0.7)}.get(size, (0.18, 0.6)) or resolution == 512
    with pytest.raises(ConfigError, match="the paper's budgets"):
        paper_sampling(resolution, size, 32)


def test_the_command_line_exports_and_imports_a_checkpoint_and_names_mistakes(folder, tmp_path, refused, capsys):
    exported, again = tmp_path / "tiny.pth", tmp_path / "again"
    assert cli.main(["export", folder, str(exported)]) == 0
    assert "tiny.pth" in refused("import", exported, again)  # none of the nine
    assert "none.pth: no such file" in refused("import", tmp_path / "none.pth", again)
    assert "a model folder already" in refused("import", folder, again)
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
