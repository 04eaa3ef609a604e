"""How images come about: the sampler watched step by step, the pictures drawn of it, their stage and their notebook."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up import REPO, checkout, write_results
from PIL import Image
from test_model import TINY, random_model
from test_notebooks import reading, run

from emigm.config.compose import compose_benchmark
from emigm.config.schema import SampleConfig
from emigm.model.model import save_model
from emigm.model.schedules import step_counts
from emigm.pictures import MASKED, MOST, SIDE, after_step, columns_of, grid_of, save_animation, to_look_at
from emigm.sample import COUNTS, Sampler, generate, generate_with_steps, random_stream
from emigm.stages.prepare import prepare
from emigm.stages.reveal import FOLDER, FOLLOWED, IN_A_ROW, make_pictures

DPM = SampleConfig(steps=5, solver_steps=4, cfg_scale=2.0, cfg_interval=(0.2, 0.6))
MDM = SampleConfig(steps=5, solver="categorical", schedule="linear")
MASKGIT = dataclasses.replace(MDM, order="confidence", choice_temperature=4.0, schedule="cosine")
CODES = dataclasses.replace(TINY, conditional="categorical", codebook=7, channels=1, mae=False)
LABELS = torch.arange(7) % TINY.classes


@pytest.mark.parametrize(("model", "cfg"), [(TINY, DPM), (CODES, MDM), (CODES, MASKGIT)], ids=["dpm", "mdm", "maskgit"])
def test_watching_changes_no_image_and_a_token_appears_once_and_stays(model, cfg):
    made, seen = random_model(model), []
    options = {"seed": 3, "chunk": 4}
    (first, second) = generate(made, LABELS, cfg, **options, on_step=lambda *now: seen.append([t.clone() for t in now]))
    assert torch.equal(first.latents, next(generate(made, LABELS, cfg, **options)).latents)
    counts = [
        step_counts(cfg.order, cfg.schedule, cfg.steps, model.tokens, random_stream(3, COUNTS, i)) for i in (0, 1)
    ]
    assert len(seen) == sum((c > 0).sum() for c in counts)
    of_first = seen[: (counts[0] > 0).sum()]
    assert [int((~mask[0]).sum()) for _, mask in of_first] == np.cumsum(counts[0][counts[0] > 0]).tolist()
    end = of_first[-1][0]
    assert torch.equal(made.unpatchify(end), first.latents) and not of_first[-1][1].any()
    for (_, before), (tokens, mask) in itertools.pairwise(of_first):
        assert not (mask & ~before).any() and torch.equal(tokens[~mask], end[~mask])
    latents, steps = generate_with_steps(made, LABELS, cfg, **options)
    assert torch.equal(latents, torch.cat([first.latents, second.latents]))
    for step in range(1, len(of_first) + 1):
        assert torch.equal(steps[:4] > step, of_first[step - 1][1])


def made_up(side=6, channels=1, tokens=9):
    """20 images, and the step of four at which each of their tokens is revealed."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (20, channels, side, side), dtype=np.uint8), rng.integers(1, 5, (20, tokens))


def test_what_later_steps_reveal_is_grey_and_the_last_step_leaves_the_image():
    pixels, steps = made_up()
    assert (after_step(pixels, steps, 0) == MASKED).all()
    assert np.array_equal(after_step(pixels, steps, 4), pixels)
    half, token = after_step(pixels, steps, 2), np.arange(9).reshape(3, 3)[1, 2]
    cell = (slice(None), slice(2, 4), slice(4, 6))  # of the token in row 1, column 2
    for i in range(len(pixels)):
        assert np.array_equal(half[i][cell], pixels[i][cell]) == (steps[i, token] <= 2)


def test_images_are_enlarged_and_reduced_by_integers_and_a_row_has_every_step_or_evenly_spaced_ones_to_the_last():
    for side, shown in ((8, 88), (21, 84), (100, 100), (256, 128), (400, 200)):
        pixels = np.arange(side * side).reshape(1, 1, side, side).astype(np.uint8)
        seen = to_look_at(pixels)
        assert seen.shape == (1, 1, shown, shown) and seen.dtype == np.uint8
        assert shown < side or np.array_equal(seen[..., :: shown // side, :: shown // side], pixels)
    assert columns_of(16, 84) == list(range(1, 17)) and columns_of(4, 84) == [1, 2, 3, 4]
    many = columns_of(128, 128)
    assert many[0] == 1 and many[-1] == 128 and len(many) < 17


@pytest.mark.parametrize("channels", [1, 3])
def test_an_animation_begins_with_the_end_and_then_shows_each_step(tmp_path, channels):
    pixels, steps = made_up(channels=channels)
    assert save_animation(tmp_path / "a.png", pixels, steps, last=4, columns=5) == 20
    with Image.open(tmp_path / "a.png") as shown:
        assert shown.n_frames == 5 and "default_image" not in shown.info and shown.info["loop"] == 0
        for frame, step in enumerate([4, 0, 1, 2, 3]):
            shown.seek(frame)
            seen = np.asarray(shown.convert("RGBA"))
            assert (seen[..., 3] == 255).all()
            tile = to_look_at(after_step(pixels[[7]], steps[[7]], step))[0]  # second row, third column
            side = tile.shape[-1]
            found = seen[side + 4 : 2 * side + 4, 2 * (side + 4) : 2 * (side + 4) + side, :3]
            assert np.array_equal(found, np.broadcast_to(tile.transpose(1, 2, 0), found.shape))


def test_of_large_photos_an_animation_shows_as_many_rows_as_stay_small(tmp_path):
    pixels, steps = made_up(side=256, channels=3, tokens=64)  # noise, which does not compress
    shown = save_animation(tmp_path / "a.png", pixels, steps, last=4, columns=5)
    assert 5 <= shown < 20 and (tmp_path / "a.png").stat().st_size < MOST
    with pytest.raises(ValueError, match="an animation of 20 images"):
        save_animation(tmp_path / "b.png", pixels, steps, last=4, columns=20)
    assert not (tmp_path / "b.png").exists()


def test_a_row_holds_one_class_unless_classes_are_many_or_images_few_and_a_grid_of_large_photos_stays_small():
    for n, classes, columns, expected in (
        (9, 3, 2, [[0, 3], [1, 4], [2, 5]]),
        (8, 64, 3, [[0, 1, 2], [3, 4, 5]]),
        (2, 64, 3, [[0, 1]]),
        (2, 3, 3, [[0, 1]]),
        (1, 1000, 3, [[0]]),
    ):
        numbered = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 1, 3, 3))
        grid = grid_of(numbered, classes, columns)
        assert grid[::4, ::4].tolist() == expected
        assert (grid[3::4] == 96).all() and (grid[:, 3::4] == 96).all()  # set apart by grey
    grid = grid_of(np.zeros((40, 3, 256, 256), np.uint8), classes=1000, columns=12)
    assert grid.shape[2] == 3 and max(grid.shape) <= SIDE


def written():
    return {str(path): path.read_bytes() for path in sorted(Path("results").glob(f"*/{FOLDER}/*"))}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkout where the stage has drawn images of random weights of H, and the benchmark."""
    root = checkout(tmp_path_factory.mktemp("reveal"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(root)
        benchmark = compose_benchmark("mnist", (), REPO)
        prepare(benchmark)
        cfg = benchmark.model_config("h")
        save_model(Path("models/mnist/h/seed0"), random_model(cfg).state_dict(), cfg, seed=0,
                   autoencoder=benchmark.autoencoder.space)  # fmt: skip
        make_pictures(benchmark, "h")
    return root, benchmark


@pytest.fixture
def drawn(made, monkeypatch):
    """The stage's folder, the benchmark and the record."""
    monkeypatch.chdir(made[0])
    record = json.loads(Path("results/mnist/records/reveal-h.json").read_text())
    return Path("results/mnist") / FOLDER, made[1], record


def tile(path, row, column):
    return np.asarray(Image.open(path))[row * 88 :, column * 88 :][:84, :84].astype(int)


def test_the_stage_draws_the_images_of_the_sample_stage_and_the_same_bytes_again(drawn):
    folder, benchmark, record = drawn

    def sampled(**changes):
        cfg = dataclasses.replace(benchmark.sample_config("h", "16"), **changes)
        sampler = Sampler(benchmark, "h", Path("models/mnist/h/seed0"), cfg, train_seed=0, device="cpu")
        pixels, _, _ = next(sampler.chunks(0, [(0, benchmark.evaluation.chunk)]))
        return to_look_at(pixels)[:, 0].astype(int)

    wanted = sampled()
    with Image.open(folder / "animation.png") as animation:
        end = np.asarray(animation.convert("L")).astype(int)
    assert abs(end[88 : 88 + 84, 3 * 88 : 3 * 88 + 84] - wanted[13]).max() <= 1
    for place, schedule in enumerate(("exp", "cosine", "linear")):
        ends = sampled(schedule=schedule)
        for block, i in enumerate(FOLLOWED):
            assert abs(tile(folder / "schedules.png", 3 * block + place, 15) - ends[i]).max() <= 1
    for i in range(IN_A_ROW):
        assert abs(tile(folder / "guidance.png", 2, i) - wanted[i]).max() <= 1
        assert abs(tile(folder / "neighbours.png", 0, i) - wanted[i]).max() <= 1
    assert record["outputs"].keys() == written().keys() and len(written()) == 4
    before = written()
    make_pictures(benchmark, "h")
    assert written() == before


def test_the_notebook_shows_the_pictures_and_reads_the_record(drawn, tmp_path, monkeypatch):
    space = run("reveal", Path.cwd(), monkeypatch, out=str(tmp_path))
    figure = space["_shown"][0].figure
    panels = {axes.get_title()[:3]: axes for axes in figure.axes}
    assert set(panels) == {"(a)", "(b)", "(c)"}
    assert [t.get_text() for t in panels["(a)"].get_yticklabels()] == ["exp", "cosine", "linear"] * 2
    names = ["animation.png", "reading.json", "reading.md", "reveal.png", "reveal.svg"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert (tmp_path / "animation.png").read_bytes() == (drawn[0] / "animation.png").read_bytes()
    text = reading(space)
    assert "eMIGM-H at N = 16: after 8 of 16 steps, of 49 tokens these are revealed: exp " in text
    assert "takes 32 forward passes at every step" in text and "nearest of 4,000 training images" in text


@pytest.mark.parametrize("has_run", [True, False])
def test_the_notebook_marks_a_dry_run_and_says_that_nothing_has_run(made, monkeypatch, tmp_path, has_run):
    root = write_results(tmp_path, sizes={"h": 4.0}, dry_run=True).parents[1]
    if has_run:
        shutil.copytree(made[0] / "results", root / "results", dirs_exist_ok=True)
    else:
        shutil.rmtree(root / "results" / "mnist" / "grids")
    space = run("reveal", root, monkeypatch)
    figure = space["_shown"][0].figure
    if has_run:
        assert "DRY RUN" in reading(space) and "DRY RUN" in [text.get_text() for text in figure.texts]
    else:
        assert "not run" in reading(space) and "not run" in figure.axes[0].texts[0].get_text()
