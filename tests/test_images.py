"""Data sets: the digits' split, CIFAR-10's layouts, and photos: found, decoded, cropped, and refused by name."""

import dataclasses
import hashlib
import re
import subprocess
import sys
import types
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stored import ROOT, noise, photo_benchmark, record, write_photos

from emigm.config.errors import ConfigError
from emigm.config.schema import DataConfig, ReleasedConfig
from emigm.data.images import first_of_classes, load_split, open_images
from emigm.data.photos import DecodingError, Photos, adm_crop, decode, scan_photos, to_rgb
from emigm.io import write_index
from emigm.stages.prepare import prepare

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


def opened(path, root, classes, workers=3):
    """The photos in root, through a list of them in the file `path`."""
    write_index(path, {"root": str(root), "resolution": 16, **scan_photos(Path(root), classes, "key", 2)})
    return Photos(path, workers)


@pytest.fixture
def photos(tmp_path):
    return opened(tmp_path / "train.json", write_photos(tmp_path / "train", ["n02", "n01", "n03"]), 3)


def test_the_split_of_the_digits_is_disjoint_stratified_and_repeatable():
    split, again, other = (load_split(DataConfig("digits", holdout=0.25, split_seed=seed)) for seed in (0, 0, 1))
    (train, train_labels), (holdout, holdout_labels) = split["train"], split["holdout"]
    assert len(train) + len(holdout) == 1797 and train.dtype == np.uint8 and train.shape[1:] == (1, 8, 8)
    share = np.bincount(holdout_labels) / (np.bincount(holdout_labels) + np.bincount(train_labels))
    assert np.abs(share - 0.25).max() < 0.005
    assert not {r.tobytes() for r in train} & {r.tobytes() for r in holdout}
    assert np.array_equal(again["train"][0], train) and not np.array_equal(other["train"][0], train)


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
    flat = adm_crop(Image.new("RGB", size, (7, 130, 255)), 16)
    assert flat.shape == (16, 16, 3) and (flat == [7, 130, 255]).all()


def test_a_crop_is_the_exact_centre_and_a_large_image_is_halved_by_averaging_first():
    """Until it is less than twice too large."""
    wide = noise(24, 16)
    tall = wide.transpose(1, 0, 2)
    assert np.array_equal(adm_crop(Image.fromarray(wide), 16), wide[:, 4:20])
    assert np.array_equal(adm_crop(Image.fromarray(tall), 16), tall[4:20])
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


def stripes(*colours):
    """Four stripes of 6 rows; not so saturated that LAB in 8 bits cannot hold them."""
    return Image.fromarray(np.repeat(np.array(colours, np.uint8), 6, axis=0)[:, None].repeat(20, axis=1))


GREY = stripes((255,) * 3, (180,) * 3, (70,) * 3, (0,) * 3)
COLOUR = stripes((255,) * 3, (200, 120, 60), (40, 90, 140), (0,) * 3)
SCALED = {"I": 65535 / 255, "F": 1 / 255} | dict.fromkeys(["I;16", "I;16B", "I;16L", "I;16N"], 65535 / 255)


def in_mode(mode):
    """A known picture in a mode of Pillow, and its grey levels or colours as RGB."""
    if mode == "1":
        return GREY.convert("L").point(lambda v: 255 * (v > 128)).convert("1"), GREY.point(lambda v: 255 * (v > 128))
    if mode in SCALED:
        levels = np.asarray(GREY.convert("L")).astype(np.float64) * SCALED[mode]
        dtype = {"I": np.int32, "F": np.float32, "I;16B": ">u2"}.get(mode, "<u2")
        image = Image.frombytes(mode, GREY.size, levels.round(6).astype(dtype).tobytes())
        return image, GREY
    if mode in ("L", "LA", "La"):
        return GREY.convert("L").convert("LA").convert(mode) if mode == "La" else GREY.convert(mode), GREY
    if mode in ("P", "PA"):
        return COLOUR.convert("P", palette=Image.Palette.ADAPTIVE).convert(mode), COLOUR
    return (COLOUR.convert("RGBA") if mode == "RGBa" else COLOUR).convert(mode), COLOUR


@pytest.mark.parametrize("mode", Image.MODES)
def test_every_mode_of_pillow_becomes_the_same_rgb(mode):
    image, expected = in_mode(mode)
    assert image.mode == mode
    difference = np.asarray(to_rgb(image)).astype(int) - np.asarray(expected)
    assert np.abs(difference).max() <= 3


def test_own_photos_are_turned_as_their_camera_noted_and_those_of_imagenet_are_not(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is at the right
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg", exif=exif)
    sizes = [decode("a", tmp_path / "a.jpg", upright).size for upright in (False, True)]
    assert sizes == [(6, 4), (4, 6)]
    write_photos(tmp_path / "photos", "ab", each=2)
    dark_above = Image.fromarray(np.repeat(np.uint8([0, 255]), 4)[:, None, None] * np.ones((1, 8, 3), dtype=np.uint8))
    for path in (tmp_path / "photos").rglob("*.*"):
        dark_above.save(path, exif=exif)
    cfg = DataConfig("folder", root=str(tmp_path / "photos"), classes=2, resolution=8, holdout=0.5)
    pixels = load_split(cfg, 1)["train"][0].astype(int)
    assert (pixels[..., :2].mean() > 200) and (pixels[..., -2:].mean() < 50)


@pytest.mark.parametrize(("mode", "white"), [("I", 255), ("F", 255), ("F", 65535), ("F", 70000), ("F", -1)])
def test_grey_levels_of_modes_without_a_white_are_scaled_by_their_range_or_refused(tmp_path, mode, white):
    levels = np.asarray(GREY.convert("L")) * (white / 255)
    Image.fromarray(levels.astype({"I": np.int32, "F": np.float32}[mode])).save(tmp_path / "a.tiff")
    image = decode("a", tmp_path / "a.tiff")
    if 0 < white <= 65535:
        assert np.array_equal(np.asarray(image), np.asarray(GREY))
    else:
        assert "save it with 8 or 16 bits" in image


def test_of_many_photos_that_do_not_decode_ten_are_named():
    assert "9.JPEG; and 27 more; replace them" in str(DecodingError([f"{i}.JPEG" for i in range(37)], "replace them"))


@pytest.mark.parametrize("order", [["n02", "n10", "n9"], [*map(str, range(12))], ["10", "9", "b"]])
def test_classes_are_numbered_in_order_of_their_names(tmp_path, order):
    """As texts, or as numbers where all names are numbers."""
    photos = scan_photos(write_photos(tmp_path, order[::-1]), len(order), "key", 2)
    assert photos["classes"] == order and photos["labels"] == [i for i in range(len(order)) for _ in range(2)]
    assert photos["files"] == [f"{name}/{name}_{i}.JPEG" for name in order for i in range(2)]


def test_files_beside_the_classes_and_what_desktops_leave_are_ignored(tmp_path, capsys):
    root = write_photos(tmp_path, ["n1", "n2"])
    expected = scan_photos(root, 2, "key", 2)
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "n2/._n2_0.JPEG", "n1/thumbs.db", "n1/Desktop.ini"):
        (root / name).touch()
    (root / "n1/.ipynb_checkpoints").mkdir()
    assert scan_photos(root, 2, "key", 2) == expected and "note" not in capsys.readouterr().out
    (root / "wnids.txt").touch()
    assert scan_photos(root, 2, "key", 2) == expected
    assert "files beside the class folders are ignored (wnids.txt)" in capsys.readouterr().out


def test_the_command_that_sorts_the_validation_photos_sorts_them(tmp_path):
    (tmp_path / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\nval_1,n02 1 2 3 4 \nval_2,n01 5 6 7 8 n01 1 1 2 2 \nval_3,n02 1 2 3 4\n"
    )
    for i in (1, 2, 3):
        Image.fromarray(noise(20, 20, i)).save(tmp_path / f"val_{i}.JPEG")
    with pytest.raises(ConfigError, match=r"ImageNet\('DIR', 'val'\)") as e:
        scan_photos(tmp_path, 2, "key", 1)
    command = re.search("beside the photos, `(.*)` sorts", str(e.value))[1]
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert scan_photos(tmp_path, 2, "key", 1)["files"] == ["n01/val_2.JPEG", "n02/val_1.JPEG", "n02/val_3.JPEG"]


LAYOUTS = [
    ([], ".*: no such folder; it must hold the photos, one folder for each class"),
    (["ILSVRC2012_val_1.JPEG", "ILSVRC2012_val_2.JPEG"], "2 photos side by side.*ImageNet's validation"),
    (["n1/a.png", "n2/a.png"], r"found 2 class folders \(n1, n2\), expected benchmark\.data\.classes = 3"),
    (["a.txt"], r"found 0 class folders \(none\), expected benchmark\.data\.classes = 3"),
    (["train/n1/a.png", "val/n1/a.png"], r"found 2 class folders.*did you mean .*/train\?"),
    (["n1/a.png", "n2/a.png", "n2/list.txt", "n3/a.png"], r"1 files or .* that are none \(n2/list\.txt\); rem"),
    (["n1/a.png", "n2/a.png", "n3/images/a.png"], r"1 files or .* that are none \(n3/images/\); remove"),
    (["n1/a.png", "n2/a.png", "n3/.DS_Store"], r"1 class folders without a photo \(n3\); fill"),
]


@pytest.mark.parametrize(("files", "message"), LAYOUTS)
def test_another_layout_of_the_photos_is_refused_and_explained(tmp_path, files, message):
    for file in files:
        (tmp_path / "photos" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / file).touch()
    with pytest.raises(ConfigError, match=f"key = .*{message}"):
        scan_photos(tmp_path / "photos", 3, "key", 2)


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    """A benchmark of photos of three classes, below the home folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return photo_benchmark(root="~/train")


def test_photos_are_listed_and_opened_and_both_parts_must_have_the_same_classes(imagenet):
    prepare(imagenet)
    numbers = {"train_images": 6, "holdout_images": 3, "classes": 3, "shape": [3, 16, 16]}
    assert record("photos", "prepare")["results"] == numbers
    train, holdout = (open_images("data/photos/images", part) for part in ("train", "holdout"))
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2] and train.labels.dtype == np.int64 and len(holdout) == 3
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
    found = record("photos", "prepare")["results"]
    assert found["none"] and found["classes"] == 3
    with pytest.raises(ConfigError, match=r"images: no images \(released weights.*set benchmark\.weights: trained"):
        open_images("data/photos/images", "train")
    prepare(imagenet)
    assert len(open_images("data/photos/images", "train")) == 6


def test_a_damaged_list_and_photos_that_moved_are_named(imagenet):
    prepare(imagenet)
    manifest = Path("data/photos/images/train.json")
    whole = manifest.read_text()
    Path("train").rename("moved")
    for content, message in (
        (whole, r": no such folder, but .*train\.json lists its photos"),
        (whole[:-20], r"\.json: not valid JSON.*prepare stage"),
        (whole.replace("n1_0", "n1_1"), r"\.json: checksum differs"),
    ):
        manifest.write_text(content)
        with pytest.raises(ConfigError, match=rf"train{message}"):
            open_images(manifest.parent, "train")


# CIFAR-10


def jpeg(pixels):
    out = BytesIO()
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


def write_parquet(path, images, column="image"):
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    parquet.write_table(pyarrow.table({column: images, "label": list(range(len(images)))}), path)


@pytest.fixture
def cifar(tmp_path):
    for name, n in (("train", 6), ("test", 3)):
        write_parquet(tmp_path / f"{name}.parquet", [jpeg(noise(32, 32, i)) for i in range(n)])
    return DataConfig("cifar10", root=str(tmp_path))


def test_cifar10_is_read_from_parquet_and_its_test_images_held_out(cifar):
    split = load_split(cifar)
    pixels, labels = split["train"]
    assert pixels.shape == (6, 3, 32, 32) and labels.tolist() == [0, 1, 2, 3, 4, 5] and labels.dtype == np.int64
    assert len(split["holdout"][0]) == 3
    with Image.open(BytesIO(jpeg(noise(32, 32, 4)))) as image:
        assert np.array_equal(pixels[4], np.asarray(image).transpose(2, 0, 1))


def test_cifar10_at_a_lower_resolution_is_the_mean_of_squares(cifar):
    whole, small = load_split(cifar), load_split(dataclasses.replace(cifar, resolution=16))
    for part in whole:
        assert small[part][0].shape == (len(whole[part][0]), 3, 16, 16)
        assert np.array_equal(small[part][1], whole[part][1])
        image, halved = whole[part][0][1], small[part][0][1]
        assert abs(float(image[2, 6:8, 10:12].mean()) - halved[2, 3, 5]) <= 0.5
    for resolution in (12, 32):
        with pytest.raises(ConfigError, match=f"resolution = {resolution}: dataset: cifar10 has 16, 8 or null"):
            dataclasses.replace(cifar, resolution=resolution)


def test_the_first_images_of_each_class_alone_can_be_taken():
    pixels, labels = np.arange(7)[:, None], np.array([1, 0, 1, 0, 1, 2, 0])
    for number, taken in ((2, [0, 1, 2, 3, 5]), (1, [0, 1, 5]), (None, list(range(7)))):
        kept, classes = first_of_classes(pixels, labels, number)
        assert kept[:, 0].tolist() == taken and classes.tolist() == labels[taken].tolist()


def test_every_mistake_in_a_parquet_file_is_named(cifar):
    test, images = Path(cifar.root) / "test.parquet", [jpeg(noise(32, 32, i)) for i in range(3)]

    def refused(message, *table):
        if table:
            write_parquet(test, *table)
        with pytest.raises((ConfigError, DecodingError), match=message):
            load_split(cifar)

    undecodable = [images[0], b"no image", images[1][:-300]]
    refused(r"2 images do not decode: row 1 \(not an image\); row 2.*test\.parquet", undecodable)
    refused(r"test\.parquet: holds images of \[\(28, 28\)\] pixels", [images[0], jpeg(noise(28, 28))])
    for table in ((images, "img"), (["text"] * 3,)):
        refused(r"test\.parquet: damaged, or without columns image and label", *table)
    test.write_bytes(test.read_bytes()[:-10])
    refused(r"test\.parquet: damaged")
    test.unlink()
    refused(r"test\.parquet: no such file, but the other is there; put both")


def test_parquet_without_a_reader_says_what_to_install(tmp_path, monkeypatch):
    for name in ("train", "test"):
        (tmp_path / f"{name}.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"train\.parquet: parquet files need pyarrow; pip install pyarrow"):
        load_split(DataConfig("cifar10", root=str(tmp_path)))


def test_without_parquet_torchvision_reads_or_downloads(tmp_path, monkeypatch):
    def dataset(root, train, download):
        if not download or root != str(tmp_path):
            raise OSError("<urlopen error>")
        n = 4 if train else 2
        return types.SimpleNamespace(data=np.stack([noise(32, 32, i) for i in range(n)]), targets=list(range(n)))

    # Importing the real one takes seconds.
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", types.SimpleNamespace(CIFAR10=dataset))
    split = load_split(DataConfig("cifar10", root=str(tmp_path)))
    assert np.array_equal(split["train"][0][3], noise(32, 32, 3).transpose(2, 0, 1))
    assert split["holdout"][1].tolist() == [0, 1]
    with pytest.raises(ConfigError, match=r"data\.root = .*not there and could not be downloaded.*cifar-10-batches-py"):
        load_split(DataConfig("cifar10", root=str(tmp_path / "elsewhere")))
