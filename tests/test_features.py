"""Features of images: a small classifier, and Inception with random weights; metrics against independent references."""

import dataclasses
from importlib import import_module

import numpy as np
import pytest
import torch
from cleanfid.fid import frechet_distance as cleanfid_distance
from PIL import Image
from stored import Code
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from emigm.config.errors import ConfigError
from emigm.config.schema import ClassifierTraining, DataConfig, ExtractorConfig
from emigm.data.images import load_split
from emigm.metrics.classifier import (
    TRACE,
    classification_accuracy_score,
    note_weights,
    save_classifier,
    train_classifier,
)
from emigm.metrics.features import Features, load_extractor, write_source
from emigm.metrics.scores import (
    ROWS,
    fid,
    fid_of_parts,
    inception_score,
    kid,
    nearest,
    nearest_distance,
    precision_recall,
    reference_of,
    same_number,
    scores,
    statistics,
)
from emigm.tools.fetch import MAKE_RANDOM

TRAINING = ClassifierTraining(steps=80, batch=128, lr=1e-3, seeds=(0, 5))
CFG = ExtractorConfig("cnn", training=TRAINING)
INCEPTION = ExtractorConfig("inception", weights="weights.pth")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The split, and an extractor trained for a few steps from two seeds."""
    split = load_split(DataConfig("digits", holdout=0.2))
    folder = tmp_path_factory.mktemp("extractor")
    models = {seed: train_classifier(*split["train"], TRAINING, seed) for seed in TRAINING.seeds}
    note_weights(folder, *(save_classifier(folder, seed, model) for seed, model in models.items()))
    return split, load_extractor(CFG, folder), folder


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """Weights file, extractor's folder, and extractor of an Inception with random weights."""
    folder = tmp_path_factory.mktemp("inception")
    weights = folder / "weights.pth"
    import_module(MAKE_RANDOM).write_inception(weights)
    write_source(folder / "extractor", weights)
    yield weights, folder / "extractor", load_extractor(INCEPTION, folder / "extractor", batch=4, workers=2)
    weights.unlink()  # 96 MB


@pytest.fixture(scope="module")
def photos():
    """Smooth random images, uint8 (6, 3, 64, 64), two sets."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (2, 6, 8, 8, 3), dtype=np.uint8)
    large = [[np.asarray(Image.fromarray(i).resize((64, 64), Image.Resampling.BICUBIC)) for i in s] for s in small]
    return [np.ascontiguousarray(np.stack(s).transpose(0, 3, 1, 2)) for s in large]


@pytest.fixture(scope="module")
def found(inception, photos):
    """Features of both sets."""
    return [inception[2](pixels) for pixels in photos]


def test_the_classifier_classifies_and_its_features_have_the_stated_trace(digits):
    split, extract, _ = digits
    features = extract(split["train"][0])
    for pool in (features["pool"], features["seed5"]):
        assert torch.cov(pool.double().T).trace().item() == pytest.approx(TRACE, rel=1e-3)
    held_out, labels, reference = extract(split["holdout"][0]), split["holdout"][1], reference_of(features)
    right, wrong = (scores(held_out, reference, c)["label_accuracy"] for c in (labels, (labels + 1) % 10))
    assert right > 0.9 and wrong < 0.1  # against the classes asked for


def test_each_seed_has_features_of_its_own_and_others_are_not_taken_for_them(digits):
    split, extract, folder = digits
    pixels = split["holdout"][0][:50]
    features = extract(pixels)
    assert torch.equal(features["pool"], features["seed0"]) and not torch.equal(features["pool"], features["seed5"])
    assert list(extract.identity["sha256"]) == ["0", "5"] and len(set(extract.identity["sha256"].values())) == 2
    for seeds in ((5,), (5, 0), (0, 5, 6)):
        changed = ExtractorConfig("cnn", training=dataclasses.replace(TRAINING, seeds=seeds))
        with pytest.raises(ConfigError, match=r"its classifiers are not those of extractor\.training\.seeds"):
            load_extractor(changed, folder)


def test_classification_accuracy_is_of_real_images_after_training_on_others(digits):
    train, holdout = digits[0]["train"], digits[0]["holdout"]
    good = classification_accuracy_score(train, holdout, TRAINING, 80)
    assert good == scores(digits[1](holdout[0]), reference_of(digits[1](train[0])), holdout[1])["label_accuracy"]
    assert classification_accuracy_score(train, holdout, TRAINING, 10) < good
    noise = np.random.default_rng(0).integers(0, 17, train[0].shape, dtype=np.uint8)
    assert classification_accuracy_score((noise, train[1]), holdout, TRAINING, 80) < 0.5


def test_the_batch_changes_nothing_but_rounding(digits):
    split, extract, folder = digits
    pixels = split["holdout"][0][:50]
    at_once, in_batches = extract(pixels), load_extractor(CFG, folder, batch=7)(pixels)
    assert list(at_once) == list(in_batches) == ["pool", "logits", "seed0", "seed5"]
    assert all(torch.allclose(at_once[name], in_batches[name], atol=1e-5) for name in at_once)


@pytest.mark.parametrize("n", [2, ROWS, ROWS + 1, 2 * ROWS + 300])
def test_accumulated_statistics_are_those_of_numpy_on_all_features_at_once(n):
    pool = torch.randn(n, 24, generator=torch.Generator().manual_seed(0)) + 30  # a mean that cancellation would show at
    mu, sigma = statistics(pool)
    np.testing.assert_allclose(mu, pool.double().numpy().mean(0), rtol=1e-14)
    np.testing.assert_allclose(sigma, np.cov(pool.double().numpy(), rowvar=False), atol=1e-14 * n**0.5)


def test_images_that_an_extractor_does_not_take_are_refused(digits, inception):
    with pytest.raises(ConfigError, match="cnn takes uint8 images of shape 1 x 8 x 8, not uint8 of shape 3 x 9"):
        digits[1](np.zeros((2, 3, 9, 9), np.uint8))
    with pytest.raises(ConfigError, match="inception takes uint8 images of shape 3 x height x width, not float32"):
        inception[2](np.zeros((2, 3, 9, 9), np.float32))


def write_pngs(folder, pixels):
    folder.mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{i}.png")
    return str(folder)


def test_inception_scores_agree_with_torch_fidelity_on_two_folders(inception, photos, found, tmp_path):
    from torch_fidelity import calculate_metrics

    theirs = calculate_metrics(
        input1=write_pngs(tmp_path / "generated", photos[0]),
        input2=write_pngs(tmp_path / "real", photos[1]),
        **dict.fromkeys(("fid", "isc", "kid", "prc", "save_cpu_ram"), True),
        **dict.fromkeys(("cuda", "cache", "verbose"), False),
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(inception[0]),
        isc_splits=6, kid_subset_size=6, kid_subsets=20, batch_size=4,
    )  # fmt: skip
    generated, reference = found[0], reference_of(found[1])
    assert fid(generated, reference) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert inception_score(generated) == pytest.approx(theirs["inception_score_mean"], rel=1e-5)
    assert kid(generated, reference) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert precision_recall(generated, reference) == (theirs["precision"], theirs["recall"])


def test_the_trunk_is_the_network_where_nothing_is_resized(inception):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 299, 299), dtype=np.uint8)
    features = inception[2](pixels)
    assert torch.allclose(features["pool"], features["clean"], rtol=1e-4, atol=1e-5 * features["pool"].abs().max())


def test_spatial_features_are_those_of_adm_s_evaluator_in_its_order(inception, photos, found):
    """The first seven channels of mixed_6/conv behind its ReLU, (B, height, width, channel) flattened."""
    network, x = inception[2].network, torch.from_numpy(photos[0][:3]).float()
    x = (interpolate_bilinear_2d_like_tensorflow1x(x, size=(299, 299), align_corners=False) - 128) / 128
    for name, module in network.named_children():
        if name == "Mixed_6d":
            break
        x = module(x)
    unit = network.Mixed_6d.branch1x1
    x = torch.nn.functional.conv2d(x, unit.conv.weight[:7])
    bn = unit.bn
    x = (x - bn.running_mean[:7, None, None]) / (bn.running_var[:7, None, None] + bn.eps) ** 0.5
    x = (x * bn.weight[:7, None, None] + bn.bias[:7, None, None]).clamp(min=0).numpy()
    expected = np.array([[x[i, c, h, w] for h in range(17) for w in range(17) for c in range(7)] for i in range(3)])
    mine = found[0]["spatial"][:3].numpy()
    assert mine.shape == (3, 2023) and (mine > 0).any() and (mine == 0).any()
    np.testing.assert_allclose(mine, expected, rtol=1e-3, atol=1e-4 * expected.max())


def test_resized_features_are_those_of_clean_fid_s_own_loader(inception, photos, found, tmp_path):
    from cleanfid.fid import get_folder_features

    trunk, device = inception[2].trunk, torch.device("cpu")
    theirs = get_folder_features(
        write_pngs(tmp_path / "images", photos[0][:3]),
        lambda x: trunk((x.float() - 128) / 128).detach(),
        num_workers=0, device=device, mode="clean", verbose=False,
    )  # fmt: skip
    mine = found[0]["clean"][:3].numpy()
    assert np.allclose(mine, theirs, rtol=1e-4, atol=1e-5 * abs(mine).max())
    assert abs(mine - found[0]["pool"][:3].numpy()).max() > 1e-2 * abs(mine).max()  # the resizing does matter


def test_the_second_pass_can_be_left_out(inception, photos, found):
    once = load_extractor(INCEPTION, inception[1], batch=4, workers=2, clean=False)
    assert once.identity["published"] is False and once.key != inception[2].key
    features = once(photos[0][:4])
    assert list(features) == ["pool", "logits", "spatial"] == once.names
    assert all(torch.equal(features[name], found[0][name][:4]) for name in features)


def test_mixed_precision_does_not_reach_features(inception, photos, found):
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(inception[2](photos[0][:4])["pool"], found[0]["pool"][:4])
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def test_weights_that_are_missing_damaged_or_of_another_network_are_named(inception, tmp_path):
    place = r"must name torch-fidelity's pt_inception-2015-12-05-6726825d\.pth"
    weights, folder = tmp_path / "w.pth", tmp_path / "e"

    def refused(work, message):
        with pytest.raises(ConfigError, match=message):
            work()

    def load():
        load_extractor(INCEPTION, folder)

    def see():
        write_source(folder, weights)

    refused(see, rf"w\.pth: no such file \(.*{place}")
    refused(load, r"source\.json: no such file; the extractor stage has not run")
    weights.write_bytes(inception[0].read_bytes()[:100_000])
    refused(see, rf"w\.pth: truncated, damaged or of another format .*{place}")
    torch.save({"conv.weight": torch.zeros(1)}, weights)
    see()
    refused(load, rf"w\.pth: not the weights of this extractor .*Missing key.*{place}")
    torch.save({"conv.weight": torch.ones(1)}, weights)
    refused(load, r"w\.pth: not the file the extractor stage has seen")
    weights.unlink()
    refused(load, rf"w\.pth: no such file \(.*{place}")
    torch.save(Code(tmp_path / "ran"), weights)  # before torch-fidelity unpickles it
    refused(see, r"w\.pth: ")
    assert not (tmp_path / "ran").exists()


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


def test_nearest_distances_in_blocks_are_those_of_all_images():
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (n, 3, 4, 4), dtype=np.uint8) for n in (2500, 7))
    expected = [np.sqrt(((b.astype(float) - image) ** 2).mean((1, 2, 3))).min() for image in a.astype(float)]
    assert nearest(a, b)[0][:, 0] == pytest.approx(expected, rel=1e-4)
    assert nearest_distance(a, b) == pytest.approx(np.mean(expected), rel=1e-4) and nearest_distance(b, b) == 0


def test_as_many_training_images_as_held_out_ones_are_compared():
    train, holdout = np.arange(100)[:, None], np.arange(30)[:, None]
    chosen = same_number(train, holdout)
    assert len(chosen) == len(np.unique(chosen)) == 30 and len(same_number(holdout, train)) == 30
