"""ADM's files: reference statistics in, samples out."""

import zipfile

import numpy as np
import pytest
from stored import write_samples

from emigm.config.errors import ConfigError
from emigm.data.samples import Chunks
from emigm.metrics.adm import AdmReference, export_npz

D = {"pool": 6, "spatial": 3}
"""Features of the tests' extractor."""


def reference_arrays(dtype=np.float32) -> dict[str, np.ndarray]:
    """What ADM's files hold, small."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 6))
    images = rng.integers(0, 256, (7, 5, 4, 3), dtype=np.uint8)
    spatial = {"mu_s": np.arange(3).astype(dtype), "sigma_s": np.eye(3, dtype=dtype)}
    return {"arr_0": images, "mu": x.mean(0).astype(dtype), "sigma": np.cov(x.T).astype(dtype)} | spatial


@pytest.mark.parametrize(
    ("dtype", "save"), [(np.float16, np.savez), (np.float32, np.savez_compressed), (np.float64, np.savez)]
)
def test_statistics_of_any_float_type_and_images_come_back(tmp_path, dtype, save):
    arrays = reference_arrays(dtype)
    save(tmp_path / "r.npz", **arrays)
    reference = AdmReference(tmp_path / "r.npz", D)
    for name, keys in {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}.items():
        for array, key in zip(reference.statistics[name], keys, strict=True):
            assert array.dtype == np.float64 and np.array_equal(array, arrays[key])
    assert list(AdmReference(tmp_path / "r.npz", {"pool": 6}).statistics) == ["pool"]  # none that are no use
    assert reference.images == 7 and reference.keys == ["arr_0", "mu", "mu_s", "sigma", "sigma_s"]
    images = arrays["arr_0"].transpose(0, 3, 1, 2)
    for start, stop in ((0, 3), (3, 7), (6, 7), (1, 2)):  # the last goes back
        assert np.array_equal(reference.pixels(start, stop), images[start:stop])
    save(tmp_path / "r.npz", mu=arrays["mu"], sigma=arrays["sigma"])
    reference = AdmReference(tmp_path / "r.npz", D)
    assert reference.images is None and list(reference.statistics) == ["pool"]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (lambda data: None, r"no such file \(evaluation\.reference must name .*VIRTUAL_imagenet"),
        (lambda data: b"", r"truncated, damaged or no \.npz .*download it again"),
        (lambda data: data[:900], r"truncated, damaged or no \.npz .*download it again"),
        (lambda data: b"<html>too many downloads</html>", r"truncated, damaged or no \.npz"),
        (lambda data: data.replace(reference_arrays()["mu"].tobytes(), bytes(4 * 6)), r"truncated, damaged .*CRC"),
    ],
    ids=["missing", "empty", "cut", "a page", "a changed number"],
)
def test_a_missing_or_damaged_reference_is_named_with_the_remedy(tmp_path, contents, message):
    path = tmp_path / "r.npz"
    np.savez(path, **reference_arrays())
    data = contents(path.read_bytes())
    path.unlink() if data is None else path.write_bytes(data)
    with pytest.raises(ConfigError, match=rf"r\.npz: {message}"):
        AdmReference(path, D)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_images_of_a_reference_are_named_when_they_are_read(tmp_path, save):
    path = tmp_path / "r.npz"
    images = np.random.default_rng(0).integers(0, 256, (7, 64, 64, 3), dtype=np.uint8)  # more than a buffer
    save(path, arr_0=images, **{k: v for k, v in reference_arrays().items() if k != "arr_0"})  # the first in the file
    data = bytearray(path.read_bytes())
    data[40_000:40_032] = bytes(32)
    path.write_bytes(data)
    reference = AdmReference(path, D)
    with pytest.raises(ConfigError, match=r"r\.npz: truncated, damaged or no \.npz"):
        reference.pixels(0, 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mu": None}, r"no mu among \['arr_0', 'mu_s', 'sigma', 'sigma_s'\]"),
        ({"mu": None, "sigma": None}, "no mu and no sigma among"),
        ({"mu": np.zeros(7)}, r"mu is float64 of shape \(7,\), expected floats of shape \(6,\)"),
        ({"sigma": np.zeros((6, 2))}, r"sigma is float64 of shape \(6, 2\), expected floats of shape \(6, 6\)"),
        ({"mu": np.zeros(6, int)}, "mu is int64 of shape"),
        ({"mu_s": np.zeros(4)}, r"mu_s is float64 of shape \(4,\), expected floats of shape \(3,\)"),
        ({"sigma_s": -np.eye(3)}, "sigma_s is no covariance"),
        ({"mu": np.full(6, np.nan)}, "mu holds NaN or infinity"),
        ({"sigma": np.full((6, 6), np.inf)}, "sigma holds NaN or infinity"),
        ({"mu": np.array([{}] * 6, dtype=object)}, "truncated, damaged or no .*Object arrays"),
        ({"arr_0": np.zeros((2, 3, 8, 8), np.uint8)}, r"arr_0 is uint8 of shape \(2, 3, 8, 8\), expected uint8"),
        ({"arr_0": np.zeros((2, 8, 8, 3))}, "arr_0 is float64"),
    ],
)
def test_a_reference_that_does_not_hold_what_it_needs_is_refused(tmp_path, changes, message):
    arrays = {k: v for k, v in (reference_arrays() | changes).items() if v is not None}
    np.savez(tmp_path / "r.npz", **arrays)
    with pytest.raises(ConfigError, match=r"r\.npz: " + message):
        AdmReference(tmp_path / "r.npz", D)


def samples(folder, shape=(3, 4, 5)):
    """Three chunks of random images; all pixels and labels."""
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (10, *shape), dtype=np.uint8), rng.integers(0, 10, 10)
    write_samples(folder, pixels, labels, 4)
    return pixels, labels


def test_exported_samples_are_what_adm_s_evaluator_reads(tmp_path):
    pixels, labels = samples(tmp_path / "s")
    export_npz(tmp_path / "s", tmp_path / "out.npz", 10)
    with np.load(tmp_path / "out.npz") as f:
        assert f.files == ["arr_0", "arr_1"] and f["arr_0"].dtype == np.uint8
        assert np.array_equal(f["arr_0"], pixels.transpose(0, 2, 3, 1)) and np.array_equal(f["arr_1"], labels)
    with zipfile.ZipFile(tmp_path / "out.npz") as archive, archive.open("arr_0.npy") as member:
        assert archive.testzip() is None and np.lib.format.read_magic(member) == (1, 0)


def test_samples_that_cannot_be_exported_are_named_and_leave_nothing(tmp_path):
    samples(tmp_path / "s")
    samples(tmp_path / "grey", (1, 8, 8))
    mixed = Chunks(tmp_path / "working", 5, 4)
    for i, (n, side) in enumerate([(4, 4), (1, 8)]):
        mixed.write(i, np.zeros((n, 3, side, side), np.uint8), np.zeros(n, int))
    mixed.finish()
    mixed.move(tmp_path / "mixed")
    for folder, name, images, message in (
        ("none", "out.npz", 10, "no such folder; the sample stage has not run"),
        ("s", "out.npz", 50_000, "holds 10 images without a gap"),
        ("s", "out.zip", 10, r"out\.zip: the name must end in \.npz"),
        ("grey", "out.npz", 10, "takes RGB images, not images of 1 channel"),
        ("mixed", "out.npz", 5, "images of several sizes"),
    ):
        with pytest.raises(ConfigError, match=message):
            export_npz(tmp_path / folder, tmp_path / name, images)
    assert not [p for p in tmp_path.iterdir() if p.is_file()]
