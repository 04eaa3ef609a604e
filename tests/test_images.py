"""Data sets: the digits' split, CIFAR-10's layouts, and photos: found, decoded, cropped, and refused by name."""

import dataclasses
import hashlib
import json
import subprocess
import sys
import types
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emigm.config.benchmark import load_benchmark
from emigm.config.errors import ConfigError
from emigm.config.schema import DataConfig, ReleasedConfig
from emigm.data.images import load_images, load_split, open_images, save_images
from emigm.data.photos import DecodingError, Photos, adm_crop, decode, scan_photos
from emigm.io import write_index
from emigm.stages.prepare import prepare

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT.parent / "shared" / "data" / "imagenet-sample" / "train"

# sha256 of the RGB bytes of the crops that util/crop.py of the official code (commit
# de78623fca791679f214c138e034e16215e963fd) makes, with Pillow 13.0.0, from photos of 1600 x 1200 (halved once or
# twice), 220 x 180 (enlarged), 500 x 212 and 500 x 500 pixels.
OFFICIAL_CROPS = {
    ("n03337140", 256): "0bb5363d312c71235abd4296a039d24fbaf2560c738d6eddc5830d4128ba02cb",
    ("n03337140", 512): "5a5c179c52a1817c91d8131eceac94c9a35f021f7622145e10a36ede098d2c8f",
    ("n03485407", 256): "19a1441c602822098f3e0d1550826909beb78d35cfccc4f44694d0f647100476",
    ("n01882714", 256): "1bcfd74e5025aa45256039dc0af975f8e5066df9a966b709781412d33eccf7d5",
    ("n03961711", 256): "7c7084be65d88fb006ed55795da431c3b30126afc4980d29a2ebb93b2287dc4e",
}


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_photos(root, classes, each=2, size=(40, 24), suffix="JPEG"):
    """Photos of noise, one folder for each class."""
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(noise(*size, seed=10 * c + i)).save(root / name / f"{name}_{i}.{suffix}")
    return root


def write_manifest(path, root, resolution=16, **photos):
    write_index(path, {"root": str(root), "resolution": resolution, **photos})
    return path


@pytest.fixture
def photos(tmp_path):
    root = write_photos(tmp_path / "train", ["n02", "n01", "n03"])
    return Photos(write_manifest(tmp_path / "train.json", root, **scan_photos(root, 3, "key", 2)), workers=3)


# The digits


def test_the_split_is_disjoint_stratified_and_repeatable():
    split = load_split(DataConfig("digits", holdout=0.25))
    (train, train_labels), (holdout, holdout_labels) = split["train"], split["holdout"]
    assert len(train) + len(holdout) == 1797 and train.dtype == np.uint8 and train.shape[1:] == (1, 8, 8)
    share = np.bincount(holdout_labels) / (np.bincount(holdout_labels) + np.bincount(train_labels))
    assert np.abs(share - 0.25).max() < 0.005
    rows = {r.tobytes() for r in train}
    assert sum(r.tobytes() in rows for r in holdout) == 0
    assert np.array_equal(load_split(DataConfig("digits", holdout=0.25))["train"][0], train)
    assert not np.array_equal(load_split(DataConfig("digits", holdout=0.25, split_seed=1))["train"][0], train)


def test_an_impossible_holdout_is_refused():
    with pytest.raises(ConfigError, match="holdout"):
        load_split(DataConfig("digits", holdout=1.5))


def test_preparing_images_needs_no_torch():
    code = "import sys, emigm.stages.prepare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_images_come_back_and_damage_is_named(tmp_path):
    pixels, labels = np.zeros((3, 1, 8, 8), np.uint8), np.arange(3)
    save_images(tmp_path / "a.npz", pixels, labels)
    assert all(np.array_equal(a, b) for a, b in zip(load_images(tmp_path / "a.npz"), (pixels, labels), strict=True))
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:200])
    with pytest.raises(ConfigError, match=r"a\.npz: truncated or damaged"):
        load_images(tmp_path / "a.npz")
    with pytest.raises(ConfigError, match=r"b\.npz: no such file"):
        load_images(tmp_path / "b.npz")


def test_arrays_are_opened_as_a_source(tmp_path):
    pixels = np.arange(5 * 64, dtype=np.uint16).reshape(5, 1, 8, 8).astype(np.uint8)
    save_images(tmp_path / "holdout.npz", pixels, np.arange(5))
    source = open_images(tmp_path, "holdout")
    assert len(source) == 5 and source.shape == (1, 8, 8) and source.labels.tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(source.pixels(range(1, 4)), pixels[1:4]) and np.array_equal(
        source.pixels([4, 0]), pixels[[4, 0]]
    )
    with pytest.raises(ConfigError, match=r"train\.npz: no such file"):
        open_images(tmp_path, "train")


# ADM's crop


@pytest.mark.parametrize(("name", "resolution"), OFFICIAL_CROPS)
def test_crops_are_those_of_the_official_code(name, resolution):
    if not PHOTOS.is_dir():
        pytest.skip("needs the sample photos in shared/data, which only developers have")
    path = PHOTOS / name / f"{name}_1.JPEG"
    crop = adm_crop(decode(path.name, path), resolution)
    assert hashlib.sha256(crop.tobytes()).hexdigest() == OFFICIAL_CROPS[name, resolution]


@pytest.mark.parametrize("size", [(16, 16), (31, 17), (33, 100), (5, 9), (64, 1000), (129, 65)])
def test_a_crop_is_a_square_of_its_resolution_for_any_shape(size):
    assert adm_crop(Image.fromarray(noise(*size)), 16).shape == (16, 16, 3)
    flat = adm_crop(Image.new("RGB", size, (7, 130, 255)), 16)
    assert (flat == [7, 130, 255]).all()


def test_a_crop_at_the_right_scale_is_the_exact_centre():
    pixels = noise(24, 16)
    assert np.array_equal(adm_crop(Image.fromarray(pixels), 16), pixels[:, 4:20])
    assert np.array_equal(adm_crop(Image.fromarray(pixels.transpose(1, 0, 2)), 16), pixels.transpose(1, 0, 2)[4:20])


def test_a_large_image_is_halved_by_averaging_until_it_is_less_than_twice_too_large():
    pixels = noise(64, 64).astype(np.float64)
    for _ in range(2):  # Pillow averages along rows, then along columns, and rounds halves upwards each time
        pixels = np.floor((pixels[:, ::2] + pixels[:, 1::2]) / 2 + 0.5)
        pixels = np.floor((pixels[::2] + pixels[1::2]) / 2 + 0.5)
    assert np.array_equal(adm_crop(Image.fromarray(noise(64, 64)), 16), pixels.astype(np.uint8))


# Photos


def test_photos_come_in_any_order_whatever_the_number_of_threads(photos):
    pixels = photos.pixels([5, 0, 3])
    assert pixels.shape == (3, *photos.shape) == (3, 3, 16, 16) and pixels.dtype == np.uint8
    for row, i in zip(pixels, [5, 0, 3], strict=True):
        with Image.open(photos.root / photos.files[i]) as image:
            assert np.array_equal(row, adm_crop(image.convert("RGB"), 16).transpose(2, 0, 1))
    assert np.array_equal(Photos(photos.path, workers=1).pixels([5, 0, 3]), pixels)
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "1", "I;16", "LA"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / f"a.{'jpg' if mode == 'CMYK' else 'png'}"
    if mode == "I;16":
        Image.fromarray(np.full((20, 20), 40000, np.uint16)).save(path)
    else:
        Image.new("RGB", (20, 20), (200, 200, 200)).convert(mode).save(path)
    assert adm_crop(decode(path.name, path), 16).shape == (16, 16, 3)


def test_every_photo_that_does_not_decode_is_named_with_its_reason(photos):
    truncated, text, missing = (photos.root / photos.files[i] for i in (1, 2, 5))
    truncated.write_bytes(truncated.read_bytes()[:-400])
    text.write_text("<html>404</html>")
    missing.unlink()
    with pytest.raises(DecodingError) as caught:
        photos.pixels(range(6))
    assert len(caught.value.failures) == 3 and "3 images do not decode" in str(caught.value)
    for path, reason in ((truncated, "truncated"), (text, "not an image"), (missing, "No such file")):
        assert any(str(path) in line and reason in line for line in caught.value.failures)
    assert len(photos.pixels([0, 3, 4])) == 3


def test_many_failures_are_counted_and_the_first_are_named():
    message = str(DecodingError([f"{i}.JPEG (not an image)" for i in range(37)], "replace them"))
    assert message.startswith("37 images do not decode: 0.JPEG") and "and 27 more; replace them" in message
    assert "9.JPEG" in message and "10.JPEG" not in message


def test_classes_are_numbered_in_order_of_their_names_and_hidden_files_ignored(tmp_path):
    root = write_photos(tmp_path / "train", ["n10", "n02", "n9"], each=2)
    (root / ".DS_Store").touch()
    (root / "n02" / "._n02_0.JPEG").touch()
    found = scan_photos(root, 3, "key", 2)
    assert found["classes"] == ["n02", "n10", "n9"] and found["labels"] == [0, 0, 1, 1, 2, 2]
    assert found["files"][:3] == ["n02/n02_0.JPEG", "n02/n02_1.JPEG", "n10/n10_0.JPEG"]


LAYOUTS = {
    "missing": (lambda root: None, r"key = .*: no such folder; it must hold the photos, one folder for each class"),
    "flat": (
        lambda root: (root.mkdir(), [(root / f"ILSVRC2012_val_0000000{i}.JPEG").touch() for i in range(4)]),
        r"4 photos side by side and no class folders.*validation.*move each into its class's folder",
    ),
    "few": (lambda root: write_photos(root, ["n1", "n2"], 1), r"found 2 class folders \(n1, n2\), expected .* = 3"),
    "empty": (lambda root: root.mkdir(), r"found 0 class folders \(none\), expected benchmark\.data\.classes = 3"),
    "parent": (lambda root: write_photos(root, ["train", "val"], 1), r"found 2 class folders.*did you mean .*/train\?"),
    "archive": (
        lambda root: (write_photos(root, ["n1", "n2", "n3"], 1), (root / "n4.tar").touch()),
        r"files beside the class folders \(n4\.tar\); unpack or remove them",
    ),
    "stray": (
        lambda root: (write_photos(root, ["n1", "n2", "n3"], 1), (root / "n2" / "list.txt").touch()),
        r"1 files or folders among the photos that are none \(n2/list\.txt\); remove",
    ),
    "nested": (
        lambda root: (write_photos(root, ["n1", "n2", "n3"], 1), (root / "n3" / "images").mkdir()),
        r"1 files or folders among the photos that are none \(n3/images/\); remove",
    ),
    "hollow": (
        lambda root: (write_photos(root, ["n1", "n2"], 1), (root / "n3").mkdir()),
        r"1 class folders without a photo \(n3\); fill",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_layout_of_the_photos_is_refused_and_explained(tmp_path, layout):
    build, message = LAYOUTS[layout]
    build(tmp_path / "photos")
    with pytest.raises(ConfigError, match=message):
        scan_photos(tmp_path / "photos", 3, "key", 2)


# The stage


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    """A benchmark of photos of three classes."""
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "train", ["n1", "n2", "n3"])
    write_photos(tmp_path / "val", ["n1", "n2", "n3"], each=1)
    data = DataConfig("imagenet", root="train", holdout_root="val", classes=3, resolution=16)
    digits = load_benchmark(ROOT / "benchmarks/smoke/params.yaml")
    return dataclasses.replace(
        digits, name="photos", images_of="photos", data=data, model={**digits.model, "classes": 3}
    )


def results(benchmark):
    return json.loads(Path("results", benchmark.name, "records", "prepare.json").read_text())["results"]


def test_photos_are_listed_and_opened(imagenet):
    prepare(imagenet)
    assert results(imagenet) == {"train_images": 6, "holdout_images": 3, "classes": 3, "shape": [3, 16, 16]}
    train, holdout = (open_images("data/photos/images", part) for part in ("train", "holdout"))
    assert len(train) == 6 and train.labels.tolist() == [0, 0, 1, 1, 2, 2] and train.labels.dtype == np.int64
    assert holdout.pixels([2]).shape == (1, 3, 16, 16)


def test_both_parts_must_have_the_same_classes(imagenet):
    Path("val", "n3").rename(Path("val", "n4"))
    with pytest.raises(ConfigError, match=r"holdout_root = val: its class folders are not those.*2 are in one.*n3"):
        prepare(imagenet)


def test_released_weights_need_no_photos(imagenet):
    prepare(imagenet)
    bare = dataclasses.replace(imagenet.data, root="absent", holdout_root="absent")
    source = ReleasedConfig("authors/model", "weights", dict.fromkeys(imagenet.sizes, "a.pth"))
    train = {**imagenet.train, "seeds": [0]}
    released = dataclasses.replace(imagenet, data=bare, train=train, weights="released", released=source)
    prepare(released)
    assert [p.name for p in Path("data/photos/images").iterdir()] == ["none.json"]
    assert results(released)["none"] and results(released)["classes"] == 3
    with pytest.raises(ConfigError, match=r"images: no images \(released weights.*set benchmark\.weights: trained"):
        open_images("data/photos/images", "train")
    prepare(imagenet)
    assert len(open_images("data/photos/images", "train")) == 6


def test_a_damaged_list_and_photos_that_moved_are_named(imagenet):
    prepare(imagenet)
    manifest = Path("data/photos/images/train.json")
    Path("train").rename("moved")
    with pytest.raises(ConfigError, match=r"train: no such folder, but .*train\.json lists its photos"):
        open_images(manifest.parent, "train")
    manifest.write_text(manifest.read_text()[:-20])
    with pytest.raises(ConfigError, match=r"train\.json: not valid JSON.*prepare stage"):
        open_images(manifest.parent, "train")
    manifest.write_text("{}")
    with pytest.raises(ConfigError, match=r"train\.json: checksum differs"):
        open_images(manifest.parent, "train")
    write_index(manifest, {})
    with pytest.raises(ConfigError, match=r"train\.json: has no 'root'"):
        open_images(manifest.parent, "train")


# CIFAR-10


def jpeg(pixels):
    out = BytesIO()
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


def write_parquet(path, images, labels, column="image"):
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    parquet.write_table(pyarrow.table({column: images, "label": labels}), path)


@pytest.fixture
def cifar(tmp_path):
    for name, n in (("train", 6), ("test", 3)):
        write_parquet(tmp_path / f"{name}.parquet", [jpeg(noise(32, 32, i)) for i in range(n)], list(range(n)))
    return DataConfig("cifar10", root=str(tmp_path))


def test_cifar10_is_read_from_parquet_and_its_test_images_held_out(cifar):
    split = load_split(cifar)
    pixels, labels = split["train"]
    assert pixels.shape == (6, 3, 32, 32) and labels.tolist() == [0, 1, 2, 3, 4, 5] and labels.dtype == np.int64
    assert len(split["holdout"][0]) == 3
    with Image.open(BytesIO(jpeg(noise(32, 32, 4)))) as image:
        assert np.array_equal(pixels[4], np.asarray(image).transpose(2, 0, 1))


def test_every_mistake_in_a_parquet_file_is_named(cifar):
    test = Path(cifar.root) / "test.parquet"
    images = [jpeg(noise(32, 32, i)) for i in range(3)]
    write_parquet(test, [images[0], b"no image", images[1][:-300]], [0, 1, 2])
    with pytest.raises(DecodingError, match=r"2 images do not decode: row 1 \(not an image\); row 2.*test\.parquet"):
        load_split(cifar)
    write_parquet(test, [images[0], jpeg(noise(28, 28))], [0, 1])
    with pytest.raises(ConfigError, match=r"test\.parquet: holds images of \[\(28, 28\)\] pixels"):
        load_split(cifar)
    for contents, column in ((images, "img"), (["text"] * 3, "image")):
        write_parquet(test, contents, [0, 1, 2], column)
        with pytest.raises(ConfigError, match=r"test\.parquet: damaged, or without columns image and label"):
            load_split(cifar)
    test.write_bytes(test.read_bytes()[:-10])
    with pytest.raises(ConfigError, match=r"test\.parquet: damaged"):
        load_split(cifar)
    test.unlink()
    with pytest.raises(ConfigError, match=r"test\.parquet: no such file, but .*train\.parquet is there"):
        load_split(cifar)


def test_parquet_without_a_reader_says_what_to_install(tmp_path, monkeypatch):
    for name in ("train", "test"):
        (tmp_path / f"{name}.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"train\.parquet: parquet files need pyarrow; pip install pyarrow"):
        load_split(DataConfig("cifar10", root=str(tmp_path)))


def fake_torchvision(monkeypatch, dataset):
    """Importing the real one takes seconds."""
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", types.SimpleNamespace(CIFAR10=dataset))


def test_without_parquet_torchvision_reads_or_downloads(tmp_path, monkeypatch):
    asked = []

    def dataset(root, train, download):
        asked.append((root, train, download))
        n = 4 if train else 2
        return types.SimpleNamespace(data=np.stack([noise(32, 32, i) for i in range(n)]), targets=list(range(n)))

    fake_torchvision(monkeypatch, dataset)
    split = load_split(DataConfig("cifar10", root=str(tmp_path)))
    assert asked == [(str(tmp_path), True, True), (str(tmp_path), False, True)]
    assert np.array_equal(split["train"][0][3], noise(32, 32, 3).transpose(2, 0, 1))
    assert split["holdout"][1].tolist() == [0, 1]


def test_a_failed_download_says_what_to_put_where(tmp_path, monkeypatch):
    def dataset(root, train, download):
        raise OSError("<urlopen error>")

    fake_torchvision(monkeypatch, dataset)
    with pytest.raises(ConfigError, match=r"data\.root = .*not there and could not be downloaded.*cifar-10-batches-py"):
        load_split(DataConfig("cifar10", root=str(tmp_path)))
