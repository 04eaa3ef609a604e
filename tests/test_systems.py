"""The choices of Table 1: exact mask counts, the categorical head, autoencoders of codes."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from test_model import CODES, random_model

from emigm.autoencoders.autoencoder import load_autoencoder
from emigm.autoencoders.codebook import fit_codebook
from emigm.config.compose import compose_benchmark
from emigm.config.errors import ConfigError
from emigm.config.schema import AutoencoderConfig, SampleConfig, TrainConfig
from emigm.gate import context_errors
from emigm.io import sha256, write_arrays
from emigm.model.model import EMIGM
from emigm.model.schedules import exact_reveal_counts
from emigm.records.record import read_record
from emigm.sample import generate, most_confident, sample_codes
from emigm.stages.encode import encode
from emigm.stages.extractor import make_extractor
from emigm.stages.prepare import prepare
from emigm.stages.reference import make_reference
from emigm.train import draw_training

TRAIN = TrainConfig(steps=1, batch=8, lr=1e-3)
SYSTEMS = {
    "MaskGIT": SampleConfig(
        5, cfg_scale=2.0, schedule="cosine", order="confidence", choice_temperature=4.5, solver="categorical"
    ),
    "exact": SampleConfig(5, cfg_scale=2.0, schedule="cosine", order="exact", solver="categorical"),
    "MDM": SampleConfig(5, cfg_scale=2.0, schedule="linear", solver="categorical"),
}


def draw():  # 4 of 16 tokens are visible
    return draw_training(CODES, TRAIN, TRAIN.batch, np.random.default_rng(3), torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("steps", "tokens"), [(8, 64), (16, 256), (64, 256), (16, 16), (20, 16), (1, 9)])
def test_exact_reveal_counts_are_mars_cosine_rule(steps, tokens):
    """floor(L cos(pi/2 n/N)) tokens stay masked after step n, but at least one is revealed at every step."""
    left, counts = tokens, exact_reveal_counts("cosine", steps, tokens)
    for n, count in enumerate(counts.tolist(), 1):
        stay = 0 if n == steps else math.floor(tokens * math.cos(math.pi / 2 * n / steps))
        after = max(0, min(left - 1, stay))
        assert count == left - after
        left = after
    assert len(counts) == steps and left == 0


def test_the_categorical_loss_starts_at_the_entropy_of_equal_chances_and_is_cross_entropy():
    model = EMIGM(CODES)
    codes, labels = torch.randint(5, (8, 1, 4, 4)), torch.zeros(8, dtype=torch.int64)
    assert model(codes, labels, draw()).item() == pytest.approx(math.log(5), rel=1e-6)
    torch.nn.init.normal_(model.head.logits.weight)
    d = draw()
    loss, _ = model.token_losses(codes, labels, d)
    mask = torch.zeros(8 * 16, dtype=torch.bool).index_fill_(0, d.rows, True).view(8, 16)
    z = model.condition(model.patchify(codes), mask, labels, int(d.counts[0]), d.dropped)
    logp = model.head(z).log_softmax(-1).gather(2, codes.flatten(1)[..., None])[..., 0]  # (B, L)
    torch.testing.assert_close(loss[0], -logp.flatten()[d.rows])


def kmeans_of(pixels, folder, codes=6, patch=2):
    write_arrays(folder / "codebook.npz", centres=fit_codebook(pixels, codes, patch))
    weights = str(folder / "codebook.npz")
    return AutoencoderConfig("kmeans", weights=weights, codebook=codes, patch=patch)


def few_patches(images=40, channels=3, kinds=6):
    """Images of 4 x 6 pixels made of just so many different patches of 2 x 2."""
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (kinds, channels, 2, 2), dtype=np.uint8)
    chosen = patches[rng.integers(0, kinds, (images, 2, 3))]  # (n, 2, 3, c, 2, 2)
    return chosen.transpose(0, 3, 1, 4, 2, 5).reshape(images, channels, 4, 6)


def test_a_codebook_that_is_missing_damaged_or_of_another_size_is_refused(tmp_path):
    cfg, path = kmeans_of(few_patches(), tmp_path), tmp_path / "codebook.npz"
    with pytest.raises(ConfigError, match=r"6 patches of 12 numbers, not 7 of 2 x 2.*dvc repro"):
        load_autoencoder(dataclasses.replace(cfg, codebook=7))
    whole, arrays = path.read_bytes(), dict(np.load(path))
    np.savez(path, **arrays | {"centres": arrays["centres"] + 1})
    changed = path.read_bytes()
    for content, message in ((changed, "checksum differs"), (whole[:-9], "truncated or damaged"), (None, "no such")):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(ConfigError, match=rf"codebook\.npz: {message}.*dvc repro"):
            load_autoencoder(cfg)
    with pytest.raises(ConfigError, match=r"codebook = 7: the images have only 6 different patches"):
        fit_codebook(few_patches(), 7, 2)


def test_the_record_of_codes_says_what_they_lose_and_the_reference_scores_it(tmp_path, monkeypatch):
    overrides = {"autoencoder.codebook": 32, "model.codebook": 32, "extractor.training.steps": 5}
    overrides |= {"evaluation.images": 20, "evaluation.chunk": 10}
    overrides = [f"benchmark.{key}={value}" for key, value in overrides.items()]
    benchmark = compose_benchmark("codes", overrides, Path(__file__).parents[1])
    monkeypatch.chdir(tmp_path)
    for stage in (prepare, make_extractor, encode, make_reference):
        stage(benchmark)
    encoded, reference = (read_record(f"results/codes/records/{s}.json")["results"] for s in ("encode", "reference"))
    assert encoded["train"]["shape"] == [1, 7, 7] and encoded["train"]["codes_used"] == 32
    lost = [encoded[part]["reconstruction_rmse"] for part in ("train", "holdout")]
    assert 0 < lost[0] < 60 and lost[1] == pytest.approx(lost[0], rel=0.05) and "unit_std" not in encoded["train"]
    assert list(encoded["weights_sha256"].values()) == [sha256(Path("data/codes/latents/codebook.npz"))]
    baselines = reference["baselines"]
    assert baselines["reconstruction"]["fid"]["mean"] > baselines["holdout"]["fid"]["mean"]


NORMAL = dataclasses.replace(TRAIN, masking="truncated_normal", schedule=None, t_min=None)
KMEANS = AutoencoderConfig("kmeans", codebook=4, weights="x", patch=2)


@pytest.mark.parametrize(
    ("fits", "changes", "message"),
    [
        (SYSTEMS["MaskGIT"], {"solver_steps": 8}, "solver_steps has no effect for solver: categorical"),
        (SYSTEMS["MaskGIT"], {"choice_temperature": None}, "choice_temperature is missing"),
        (SYSTEMS["MaskGIT"], {"solver": "dpm-solver", "solver_steps": 8}, "needs solver: categorical"),
        (CODES, {"codebook": None}, "codebook is missing for conditional: categorical"),
        (CODES, {"patch": 2}, "a token of conditional: categorical is one code"),
        (NORMAL, {"schedule": "exp"}, "schedule has no effect for masking: truncated_normal"),
        (NORMAL, {"weight": "elbo"}, "needs a masking time"),
        (KMEANS, {"codebook": None}, "codebook is missing for kind: kmeans"),
        (KMEANS, {"kind": "kl16", "codebook": None}, "patch has no effect for kind: kl16"),
        (AutoencoderConfig("pixels"), {"precision": "float16"}, "precision: float16 has no effect for kind: pixels"),
        (KMEANS, {"scale": 2.0}, "scale = 2.0 has no effect"),
    ],
)
def test_choices_that_do_not_fit_are_refused_by_name(fits, changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(fits, **changes)


def test_codes_of_patches_are_the_nearest_centres_whatever_the_batch(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (60, 1, 4, 4), dtype=np.uint8)
    kmeans = load_autoencoder(kmeans_of(pixels, tmp_path))
    raw = kmeans.encode(torch.from_numpy(pixels), batch=60)
    assert torch.equal(raw, kmeans.encode(torch.from_numpy(pixels), batch=7))
    patch = pixels[5, :, 2:, :2].reshape(1, -1) / 127.5 - 1  # second row, first column
    assert raw[5, 0, 1, 0] == ((kmeans.centres.numpy() - patch) ** 2).sum(1).argmin()
    assert np.array_equal(fit_codebook(pixels, 6, 2), fit_codebook(pixels, 6, 2))
    pixels = few_patches()  # a codebook of all patches that occur loses nothing
    kmeans = load_autoencoder(kmeans_of(pixels, tmp_path))
    raw = kmeans.encode(torch.from_numpy(pixels))
    assert raw.shape == (40, 1, 2, 3) and raw.dtype == torch.float32 and set(raw.unique().tolist()) == set(range(6))
    assert torch.equal(kmeans.decode(kmeans.sample(raw)), torch.from_numpy(pixels))


def test_codes_are_drawn_with_their_probabilities():
    logits = torch.tensor([0.1, 2.0, -1.0, 0.7]).expand(20000, -1)
    uniform = torch.from_numpy(np.random.default_rng(0).random(20000, dtype=np.float32))
    codes, log_p = sample_codes(logits, uniform)
    expected = logits[0].softmax(0)
    torch.testing.assert_close(torch.bincount(codes, minlength=4) / 20000, expected, rtol=0, atol=0.012)
    torch.testing.assert_close(log_p, expected.log()[codes])
    assert sample_codes(logits[:2], torch.tensor([0.0, 1.0]))[0].tolist() == [0, 3]


def test_without_noise_the_most_confident_tokens_are_kept_and_with_much_noise_any():
    log_p = torch.tensor([[-3.0, -1.0, -2.0, -0.5]]).expand(4000, -1)
    uniform = torch.from_numpy(np.random.default_rng(0).random((4000, 4), dtype=np.float32))
    assert (most_confident(log_p, uniform, 0.0, 2) == torch.tensor([3, 1])).all()
    kept = torch.bincount(most_confident(log_p, uniform, 1e4, 2).flatten(), minlength=4) / 8000
    torch.testing.assert_close(kept, torch.full((4,), 0.25), rtol=0, atol=0.02)


def test_every_token_is_revealed_once_with_more_steps_than_tokens_and_the_gate_measures_cross_entropy():
    cfg, labels = dataclasses.replace(SYSTEMS["MaskGIT"], steps=20, cfg_scale=1.0), torch.zeros(64, dtype=torch.int64)
    model = random_model(CODES, 1)
    assert next(generate(model, labels[:3], cfg, seed=0)).passes == 16
    codes = torch.randint(5, (64, 1, 4, 4))
    errors = context_errors(model, codes, labels, (0, 8), seed=0, repeats=2)
    assert all(e > math.log(5) - 0.2 for e in errors.values())  # random weights know nothing of random codes
