"""Metrics against independent references; test_features.py has those of torch-fidelity."""

import numpy as np
import pytest
import torch
from cleanfid.fid import frechet_distance as cleanfid_distance

from emigm.config.errors import ConfigError
from emigm.metrics.features import Features
from emigm.metrics.scores import (
    fid,
    fid_of_parts,
    kid,
    load_reference,
    nearest_distance,
    nearest_distances,
    precision_recall,
    reference_of,
    same_number,
    save_reference,
    scores,
    statistics,
)


def random_features(n: int, seed: int, d: int = 8) -> Features:
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + seed
    return named(torch.from_numpy(mixed).float(), torch.from_numpy(rng.standard_normal((n, 10))).float())


def named(pool, logits=None, **others) -> Features:
    return {"pool": pool, "logits": pool if logits is None else logits, **others}


@pytest.mark.parametrize(("images", "width"), [(300, 8), (300, 200), (50, 64)], ids=["", "wide", "singular"])
def test_fid_agrees_with_clean_fid_and_singular_values(images, width):
    """The trace of the square root of a product of covariances is a sum of singular values of the centred features."""
    a, b = random_features(images, 0, width), random_features(400, 1, width)
    pools = [f["pool"].double() for f in (a, b)]
    centred = [(pool - pool.mean(0)).numpy() / (len(pool) - 1) ** 0.5 for pool in pools]
    product = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    means = ((pools[0].mean(0) - pools[1].mean(0)) ** 2).sum().item()
    expected = means + (centred[0] ** 2).sum() + (centred[1] ** 2).sum() - 2 * product
    assert fid(a, reference_of(b)) == pytest.approx(expected, rel=1e-6)
    if images > width:  # of singular matrices its root may leave the real numbers
        assert expected == pytest.approx(cleanfid_distance(*statistics(pools[0]), *statistics(pools[1])), rel=1e-6)


def test_fid_of_parts_is_the_mean_over_disjoint_parts_of_more_images_than_features():
    images, reference = random_features(80, 0), reference_of(random_features(200, 1))
    found = fid_of_parts(images, reference)
    halves = [fid(named(images["pool"][part]), reference) for part in (slice(40), slice(40, 80))]
    assert list(found) == ["40", "20"] and found["40"] == pytest.approx(np.mean(halves))
    assert found["20"] > found["40"] > fid(images, reference)
    width = images["pool"].shape[1]
    assert list(fid_of_parts(random_features(4 * width, 0), reference)) == [str(2 * width)]


@pytest.mark.parametrize(("features", "metric"), [("clean", "clean_fid"), ("spatial", "sfid")])
def test_other_features_are_scored_against_their_own_statistics_or_not_at_all(features, metric):
    a, b = random_features(300, 0), random_features(400, 1)
    both = [f | {features: f["pool"] + 1} for f in (a, b)]
    assert scores(both[0], reference_of(both[1]), None)[metric] == pytest.approx(fid(a, reference_of(b)), rel=1e-6)
    assert scores(both[0], reference_of(b), None)[metric] is None is scores(a, reference_of(both[1]), None)[metric]


def test_fid_by_extractor_is_that_of_each_classifier_s_own_features():
    a, b, others = random_features(300, 0), random_features(400, 1), (random_features(300, 2), random_features(400, 3))
    both = [f | {"seed3": f["pool"], "seed7": other["pool"]} for f, other in zip((a, b), others, strict=True)]
    found = scores(both[0], reference_of(both[1]), None)
    assert found["fid_by_extractor"] == {"3": found["fid"], "7": fid(others[0], reference_of(others[1]))}
    assert scores(a, reference_of(b), None)["fid_by_extractor"] is None


def test_without_reference_features_what_needs_them_is_not_measured():
    a, reference = random_features(300, 0), reference_of(random_features(400, 1))
    found = scores(a, reference._replace(pool=None), None)
    assert found["kid"] is found["precision"] is found["recall"] is found["label_accuracy"] is None
    assert found["fid"] == fid(a, reference) and found["isc"] > 1


def test_few_images_give_finite_scores_and_one_image_an_error():
    reference = reference_of(random_features(400, 1))
    found = scores(random_features(3, 0), reference, None)
    assert found["precision"] is None and all(np.isfinite(v) for v in found.values() if v is not None)
    with pytest.raises(ConfigError, match=r"evaluation\.images = 1: FID needs at least two"):
        fid(random_features(1, 0), reference)


@pytest.mark.parametrize("rows", [2000, 7])
def test_kid_agrees_with_its_definition_in_blocks_too(monkeypatch, rows):
    monkeypatch.setattr("emigm.metrics.scores.ROWS", rows)
    a, b = random_features(40, 0), random_features(25, 1)
    x, y = (f["pool"].double().tolist() for f in (a, b))

    def kernel(p, q):
        return (sum(i * j for i, j in zip(p, q, strict=True)) / len(p) + 1) ** 3

    within = [np.mean([kernel(p, q) for i, p in enumerate(z) for j, q in enumerate(z) if i != j]) for z in (x, y)]
    between = np.mean([kernel(p, q) for p in x for q in y])
    assert kid(a, reference_of(b)) == pytest.approx(sum(within) - 2 * between, rel=1e-10)


@pytest.mark.parametrize("rows", [2000, 64])
def test_precision_and_recall_are_counted_as_adm_s_evaluator_counts_them(monkeypatch, rows):
    """A manifold is the balls around all images of a side, each up to its third nearest neighbour other than itself,
    edge included; precision is of the generated images, recall of the real ones. Copies, within a side and of the
    other one, are neighbours at distance zero."""
    monkeypatch.setattr("emigm.metrics.scores.ROWS", rows)
    a, b = random_features(150, 0)["pool"], random_features(230, 1)["pool"]
    b[:40] = a[:40] + 0.01
    a[100:104], b[200] = a[100], a[100]
    distances = [
        [(p[:, None] - q).square().sum(-1).sqrt() for q in (a.double(), b.double())] for p in (a.double(), b.double())
    ]
    radii = [distances[i][i].fill_diagonal_(torch.inf).sort(1).values[:, 2] for i in (0, 1)]
    precision = (distances[0][1] <= radii[1]).any(1).double().mean().item()
    recall = (distances[1][0] <= radii[0]).any(1).double().mean().item()
    found = precision_recall(named(a), reference_of(named(b)))
    assert found == pytest.approx((precision, recall), abs=1e-6) and 0 < recall < precision < 1
    assert precision_recall(named(b), reference_of(named(b))) == (1, 1)


def test_reference_files_come_back(tmp_path):
    features, path = random_features(50, 0), tmp_path / "r.npz"
    for others in ({}, {"clean": features["pool"] + 1, "seed0": features["pool"] - 1}):
        reference = reference_of(features | others, kind="training images")
        save_reference(path, reference)
        again = load_reference(path)
        assert list(again.statistics) == ["pool", *others] and torch.equal(again.pool, reference.pool)
        for name, pair in reference.statistics.items():
            assert all(np.array_equal(x, y) for x, y in zip(again.statistics[name], pair, strict=True))
        assert again.facts == {"kind": "training images"}
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
