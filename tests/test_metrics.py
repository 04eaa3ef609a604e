"""Metrics through torch-fidelity, against independent references."""

import numpy as np
import pytest
import torch

from emigm.classifier import TRACE, save_classifier, train_digits_classifier
from emigm.config import ClassifierTraining, DataConfig, ExtractorConfig
from emigm.images import load_split
from emigm.metrics import (
    Features,
    fid,
    inception_score,
    load_extractor,
    load_reference,
    nearest_distance,
    reference_of,
    save_reference,
    scores,
)
from emigm.parsing import ConfigError

TRAINING = ClassifierTraining(steps=80, batch=128, lr=1e-3, seed=0)
CFG = ExtractorConfig("digits-cnn", training=TRAINING)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The split, and an extractor trained for a few steps."""
    split = load_split(DataConfig("digits"))
    path = tmp_path_factory.mktemp("extractor") / "extractor.safetensors"
    save_classifier(path, train_digits_classifier(*split["train"], TRAINING))
    return split, load_extractor(CFG, path), path


def random_features(n: int, seed: int, d: int = 8) -> Features:
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + seed
    return Features(torch.from_numpy(mixed).float(), torch.from_numpy(rng.standard_normal((n, 10))).float())


def test_fid_agrees_with_clean_fid():
    from cleanfid.fid import frechet_distance

    a, b = random_features(300, 0), random_features(400, 1)
    stats = [(f.pool.double().numpy().mean(0), np.cov(f.pool.double().numpy(), rowvar=False)) for f in (a, b)]
    assert fid(a, reference_of(b)) == pytest.approx(frechet_distance(*stats[0], *stats[1]), rel=1e-4)


def test_fid_of_a_set_with_itself_is_zero_and_statistics_may_have_any_float_type():
    a, b = random_features(300, 0), random_features(400, 1)
    reference = reference_of(b)
    assert fid(b, reference) == pytest.approx(0, abs=1e-4)
    for dtype in (np.float32, np.float64):
        recast = reference._replace(mu=reference.mu.astype(dtype), sigma=reference.sigma.astype(dtype))
        assert fid(a, recast) == pytest.approx(fid(a, reference), rel=1e-4)


def test_inception_score_spans_one_to_the_number_of_classes():
    flat = Features(torch.zeros(1000, 2), torch.zeros(1000, 10))
    sure = Features(torch.zeros(1000, 2), 50 * torch.eye(10).repeat(100, 1))
    assert inception_score(flat) == pytest.approx(1)
    assert inception_score(sure) == pytest.approx(10, rel=0.1)


def test_precision_is_of_the_generated_and_recall_of_the_real_images():
    """Generated images that cover one half of the real ones: all plausible, half of the real ones missed."""
    rng = np.random.default_rng(0)
    real = torch.from_numpy(np.concatenate([rng.standard_normal((300, 2)), rng.standard_normal((300, 2)) + 50])).float()
    half = Features(real[:300] + 0.01, torch.zeros(300, 10))
    found = scores(half, reference_of(Features(real, torch.zeros(600, 10))), np.zeros(300, int), 100)
    assert found["precision"] > 0.95 and found["recall"] == pytest.approx(0.5, abs=0.05)


def test_the_extractor_classifies_and_its_features_have_the_stated_trace(digits):
    split, extract, _ = digits
    features = extract(split["train"][0])
    assert torch.cov(features.pool.double().T).trace().item() == pytest.approx(TRACE, rel=1e-3)
    holdout, labels = split["holdout"]
    assert (extract(holdout).logits.argmax(1).numpy() == labels).mean() > 0.9


def test_fid_sees_tokens_shuffled_within_their_class(digits):
    """The floor that a model without context reaches lies well above that of held-out images."""
    split, extract, _ = digits
    pixels, labels = split["train"]
    rng, shuffled = np.random.default_rng(0), pixels.copy()
    for c in range(10):
        members = np.flatnonzero(labels == c)
        for y in range(0, 8, 2):
            for x in range(0, 8, 2):
                shuffled[members, :, y : y + 2, x : x + 2] = pixels[rng.permutation(members), :, y : y + 2, x : x + 2]
    reference = reference_of(extract(pixels))
    assert fid(extract(shuffled), reference) > 1.5 * fid(extract(split["holdout"][0]), reference)


def test_label_accuracy_is_against_the_classes_asked_for(digits):
    split, extract, _ = digits
    pixels, labels = split["holdout"]
    reference = reference_of(extract(split["train"][0]))
    right = scores(extract(pixels), reference, labels, 100)["label_accuracy"]
    wrong = scores(extract(pixels), reference, (labels + 1) % 10, 100)["label_accuracy"]
    assert right > 0.9 and wrong < 0.1


def test_reference_files_come_back_and_damage_is_named(tmp_path):
    reference = reference_of(random_features(50, 0))
    save_reference(tmp_path / "r.npz", reference)
    again = load_reference(tmp_path / "r.npz")
    assert np.array_equal(again.mu, reference.mu) and torch.equal(again.pool, reference.pool)
    (tmp_path / "r.npz").write_bytes((tmp_path / "r.npz").read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"r\.npz: truncated or damaged"):
        load_reference(tmp_path / "r.npz")


def test_a_missing_or_damaged_extractor_is_named(tmp_path, digits):
    with pytest.raises(ConfigError, match=r"none\.safetensors: no such file"):
        load_extractor(CFG, tmp_path / "none.safetensors")
    damaged = tmp_path / "cut.safetensors"
    damaged.write_bytes(digits[2].read_bytes()[:500])
    with pytest.raises(ConfigError, match=r"cut\.safetensors: truncated"):
        load_extractor(CFG, damaged)


def test_nearest_distance_is_zero_for_copies_and_rms_otherwise():
    a = np.zeros((2, 1, 8, 8), np.uint8)
    assert nearest_distance(a, a) == 0
    assert nearest_distance(a, a + 10) == pytest.approx(10)
