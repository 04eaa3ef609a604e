"""The Python API and the command line around checkpoints."""

import dataclasses

import pytest
from PIL import Image
from test_model import TINY, random_model

from emigm import cli
from emigm.api import Generator, load_generator
from emigm.config.errors import ConfigError
from emigm.config.parsing import as_dict
from emigm.config.schema import AutoencoderConfig, SampleConfig
from emigm.model.model import save_model
from emigm.paper.settings import PAPER_MODELS, paper_sampling

CFG = dataclasses.replace(TINY, channels=1)
SAMPLING = SampleConfig(steps=2, solver_steps=3, cfg_scale=2.0, cfg_interval=(0.2, 0.8))
PIXELS = AutoencoderConfig("pixels", 1.0)


@pytest.fixture
def folder(tmp_path):
    save_model(tmp_path / "model", random_model(CFG).state_dict(), CFG, autoencoder=as_dict(PIXELS))
    return tmp_path / "model"


def test_a_generator_makes_one_row_a_seed_and_one_picture_a_class(folder):
    rows = load_generator(folder)(classes=[0, 3, 3], seeds=[1, 2], sampling=SAMPLING)
    assert [len(row) for row in rows] == [3, 3]
    assert all(isinstance(p, Image.Image) and p.size == (4, 4) and p.mode == "L" for row in rows for p in row)
    again = Generator.from_pretrained(folder)([0, 3, 3], [2], SAMPLING)[0]
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


@pytest.mark.parametrize("key", PAPER_MODELS, ids=str)
def test_the_papers_settings_are_those_of_its_budgets(key):
    resolution, size = key
    low, high = (paper_sampling(resolution, size, n) for n in (16, {256: 128, 512: 64}[resolution]))
    assert (low.solver_steps, high.solver_steps, low.cfg_scale, high.cfg_scale) == (8, 14, 4.0, 4.0)
    assert high.cfg_interval == {"b": (0.05, 0.4), "h": (0.3, 0.7)}.get(size, (0.18, 0.6)) or resolution == 512
    with pytest.raises(ConfigError, match="the paper's budgets"):
        paper_sampling(resolution, size, 32)


def test_the_command_line_round_trips_a_checkpoint_and_names_mistakes(folder, tmp_path, capsys):
    assert cli.main(["export", str(folder), str(tmp_path / "tiny.pth")]) == 0
    assert cli.main(["import", str(tmp_path / "tiny.pth"), str(tmp_path / "again")]) == 1  # none of the nine
    assert "tiny.pth" in capsys.readouterr().err
    assert cli.main(["import", str(tmp_path / "none.pth"), str(tmp_path / "again")]) == 1
    assert "none.pth: no such file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["import", "a", "b", "--model", "256-xxl"])
    assert "256-xs" in capsys.readouterr().err


def test_parity_without_a_clone_is_one_clear_error(tmp_path, capsys):
    assert cli.main(["parity", "--official", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err
