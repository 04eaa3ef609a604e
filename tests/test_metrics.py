"""Metrics through torch-fidelity, against independent references."""

import numpy as np
import pytest
import torch
from cleanfid.fid import frechet_distance as cleanfid_distance
from torch_fidelity.metric_fid import fid_statistics_to_metric

from emigm.config.errors import ConfigError
from emigm.metrics.features import Features
from emigm.metrics.scores import (
    clean_fid,
    fid,
    fid_of_parts,
    inception_score,
    kid,
    load_reference,
    nearest_distance,
    nearest_distances,
    reference_of,
    same_number,
    save_reference,
    scores,
    statistics,
)


def random_features(n: int, seed: int, d: int = 8) -> Features:
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + seed
    return Features(torch.from_numpy(mixed).float(), torch.from_numpy(rng.standard_normal((n, 10))).float())


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


@pytest.mark.parametrize(("images", "width"), [(300, 8), (300, 200), (50, 64)], ids=["", "wide", "singular"])
def test_fid_agrees_with_torch_fidelity_clean_fid_and_singular_values(images, width):
    """The trace of the square root of a product of covariances is a sum of singular values of the centred features."""
    a, b = random_features(images, 0, width), random_features(400, 1, width)
    centred = [(f.pool - f.pool.mean(0)).double().numpy() / (len(f.pool) - 1) ** 0.5 for f in (a, b)]
    product = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    means = ((a.pool.double().mean(0) - b.pool.double().mean(0)) ** 2).sum().item()
    expected = means + (centred[0] ** 2).sum() + (centred[1] ** 2).sum() - 2 * product
    reference = reference_of(b)
    assert fid(a, reference) == pytest.approx(expected, rel=1e-6)
    mine, theirs = statistics(a.pool), statistics(b.pool)
    keys = ("mu", "sigma")
    official = fid_statistics_to_metric(dict(zip(keys, mine, strict=True)), dict(zip(keys, theirs, strict=True)), False)
    assert fid(a, reference) == pytest.approx(official["frechet_inception_distance"], rel=1e-6)
    if images > width:  # of singular matrices its root may leave the real numbers
        assert fid(a, reference) == pytest.approx(cleanfid_distance(*mine, *theirs), rel=1e-6)


def test_fid_of_parts_is_the_mean_over_disjoint_parts_of_more_images_than_features():
    images, reference = random_features(80, 0), reference_of(random_features(200, 1))
    found = fid_of_parts(images, reference)
    halves = [fid(Features(images.pool[part], images.logits[part]), reference) for part in (slice(40), slice(40, 80))]
    assert list(found) == ["40", "20"] and found["40"] == pytest.approx(np.mean(halves))
    assert found["20"] > found["40"] > fid(images, reference)
    few = random_features(4 * images.pool.shape[1], 0)
    assert list(fid_of_parts(few, reference)) == [str(2 * images.pool.shape[1])]


def test_resized_features_are_scored_against_resized_ones_or_not_at_all():
    a, b = random_features(300, 0), random_features(400, 1)
    both = [f._replace(clean=f.pool + 1) for f in (a, b)]
    assert clean_fid(both[0], reference_of(both[1])) == pytest.approx(fid(a, reference_of(b)), rel=1e-6)
    assert clean_fid(both[0], reference_of(both[1])._replace(clean=None)) is None


def test_without_reference_features_what_needs_them_is_not_measured():
    a, reference = random_features(300, 0), reference_of(random_features(400, 1))
    found = scores(a, reference._replace(pool=None), None, 100)
    assert found["kid"] is found["precision"] is found["recall"] is found["label_accuracy"] is None
    assert found["fid"] == fid(a, reference) and found["isc"] > 1


def test_few_images_give_finite_scores_and_one_image_an_error():
    reference = reference_of(random_features(400, 1))
    found = scores(random_features(3, 0), reference, None, 100)
    assert found["precision"] is None and all(np.isfinite(v) for v in found.values() if v is not None)
    assert clean_fid(random_features(9, 0), reference) is None
    with pytest.raises(ConfigError, match=r"evaluation\.images = 1: FID needs at least two"):
        fid(random_features(1, 0), reference)


def test_kid_agrees_with_its_definition():
    a, b = random_features(60, 0), random_features(60, 1)
    x, y = a.pool.double().numpy(), b.pool.double().numpy()
    kernel = lambda p, q: (p @ q.T / p.shape[1] + 1) ** 3  # noqa: E731
    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    n = len(x)
    unbiased = sum((k.sum() - np.trace(k)) / (n * (n - 1)) for k in (xx, yy)) - 2 * xy.mean()
    assert kid(a, reference_of(b), n) == pytest.approx(unbiased, rel=1e-4)


def test_precision_and_recall_agree_with_all_distances_at_once():
    """Precision is of the generated images, recall of the real ones."""
    a, b = random_features(150, 0).pool, random_features(2300, 1).pool  # more than one block of rows
    b[:40] = a[:40] + 0.01
    radii = [torch.cdist(f, f).kthvalue(4).values for f in (a, b)]
    between = torch.cdist(a, b)
    found = scores(Features(a, a), reference_of(Features(b, b)), None, 100)
    assert found["precision"] == pytest.approx((between <= radii[1]).any(1).float().mean().item(), abs=1e-6)
    assert found["recall"] == pytest.approx((between <= radii[0][:, None]).any(0).float().mean().item(), abs=1e-6)
    assert 0 < found["recall"] < found["precision"] < 1


def test_reference_files_come_back(tmp_path):
    features, path = random_features(50, 0), tmp_path / "r.npz"
    for clean in (None, features.pool + 1):
        reference = reference_of(features._replace(clean=clean), kind="training images")
        save_reference(path, reference)
        again = load_reference(path)
        assert np.array_equal(again.mu, reference.mu) and torch.equal(again.pool, reference.pool)
        assert again.facts == {"kind": "training images"} and (again.clean is None) == (clean is None)
    save_reference(path, reference._replace(pool=None))
    assert load_reference(path).pool is None


def test_nearest_distances_in_blocks_are_those_of_all_images():
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (n, 3, 4, 4), dtype=np.uint8) for n in (2500, 7))
    expected = [np.sqrt(((b.astype(float) - image) ** 2).mean((1, 2, 3))).min() for image in a.astype(float)]
    assert nearest_distances(a, b) == pytest.approx(expected, rel=1e-4)
    assert nearest_distance(a, b) == pytest.approx(np.mean(expected), rel=1e-4) and nearest_distance(b, b) == 0


def test_as_many_training_images_as_held_out_ones_are_compared():
    train, holdout = np.arange(100)[:, None], np.arange(30)[:, None]
    chosen = same_number(train, holdout)
    assert len(chosen) == len(np.unique(chosen)) == 30 and len(same_number(holdout, train)) == 30
