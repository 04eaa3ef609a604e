"""The latent store with its errors, and the encode stage: any number of processes, killed and started again."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from made_up import contents
from stored import photo_benchmark, record, together, write_latents

from emigm.data.images import open_images
from emigm.data.latents import LatentStore, Shards
from emigm.data.photos import DecodingError
from emigm.stages.encode import encode
from emigm.stages.prepare import prepare

LATENTS = np.arange(11 * 2 * 3, dtype=np.float32).reshape(11, 2, 3)


@pytest.fixture
def store(tmp_path):
    write_latents(tmp_path / "latents", LATENTS, np.arange(11) % 3, {"autoencoder": "none"}, shard_rows=4)
    return tmp_path / "latents"


def test_rows_come_back_in_any_order_across_shards_all_views_or_one_of_each(store):
    opened = LatentStore(store)
    index, view = np.array([10, 0, 5, 3, 4, 5]), np.array([1, 0, 0, 1, 1, 1])
    assert len(opened) == 11 and opened.shards == 3 and opened.views == 2 and opened.shape == (3,)
    assert np.array_equal(opened.rows(index), LATENTS[index])
    assert np.array_equal(opened.rows(index, view), LATENTS[index, view])
    assert np.array_equal(opened.rows(index, 1), LATENTS[index, 1])
    assert np.array_equal(opened.labels, np.arange(11) % 3) and opened.facts == {"autoencoder": "none"}
    assert sorted(p.name for p in store.iterdir()) == ["index.json", *(f"latents-0000{i}.npy" for i in range(3))]
    for outside in ((np.array([11]),), (np.array([-1]),), (index, 2)):
        with pytest.raises(IndexError):
            opened.rows(*outside)


# The stage


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A prepared benchmark of 12 training photos in shards of 3, stored as their pixels."""
    monkeypatch.chdir(tmp_path)
    benchmark = photo_benchmark(("n1", "n2"), each=6, flips=True)
    prepare(benchmark)
    return benchmark


def test_latents_hold_every_image_and_its_flip_anew_for_other_images(photos):
    work = Shards(Path(".state/photos/encode/train"), 12, "made from something else", 5)
    for i, rows in enumerate(work.ranges):
        work.write(i, np.zeros((len(rows), 2, 3, 16, 16), np.float32))
    encode(photos, shard_rows=5)
    pixels = open_images("data/photos/images", "train").pixels(range(12)) / np.float32(127.5) - 1
    train, holdout = LatentStore("data/photos/latents/train"), LatentStore("data/photos/latents/holdout")
    assert np.allclose(train.rows(np.arange(12), 0), pixels, atol=1e-6)
    assert np.allclose(train.rows(np.arange(12), 1), pixels[..., ::-1], atol=1e-6)
    assert (train.shards, train.views, holdout.views, len(holdout)) == (3, 2, 1, 2)
    facts = record("photos", "encode")["results"]["train"]
    unit = pixels * photos.autoencoder.scale
    assert facts["images"] == 12 and facts["views"] == 2 and facts["shape"] == [3, 16, 16]
    assert facts["unit_mean"] == pytest.approx(unit.mean(), abs=1e-5)
    assert facts["unit_std"] == pytest.approx(unit.std(ddof=1), rel=1e-3)
    assert not Path(".state/photos/encode").exists()


def test_two_processes_write_the_bytes_of_one_whatever_the_batch(photos):
    encode(photos, shard_rows=3)
    run = dataclasses.replace(photos.run, encode_batch=2)
    two = dataclasses.replace(photos, name="two", images_of="two", run=run)
    prepare(two)
    together(lambda world: encode(two, shard_rows=3))
    one = contents("data/photos/latents")
    assert len(one) == 4 + 1 + 2 and one == contents("data/two/latents")
    assert [record(name, "encode")["processes"] for name in ("photos", "two")] == [1, 2]
    assert not Path(".state/two/encode").exists()


def test_photos_that_do_not_decode_end_in_one_error_and_the_rest_is_kept(photos, monkeypatch):
    bad = [Path("train/n1/n1_4.JPEG"), Path("train/n1/n1_5.JPEG"), Path("val/n2/n2_0.JPEG")]
    whole = [p.read_bytes() for p in bad]
    for p, content in zip(bad, whole, strict=True):
        p.write_bytes(content[: len(content) // 2])
    with pytest.raises(DecodingError, match=r"^3 images do not decode: .*run the same command again") as caught:
        encode(photos, shard_rows=3)
    assert all(str(p) in str(caught.value) for p in bad) and not contents("data/photos/latents")
    written, write = [], Shards.write

    def note(self, i, *arguments):
        written.append((self.folder.name, i))
        write(self, i, *arguments)

    monkeypatch.setattr(Shards, "write", note)
    for p, content in zip(bad, whole, strict=True):
        p.write_bytes(content)
    encode(photos, shard_rows=3)
    assert written == [("train", 1), ("holdout", 0)]
    store = LatentStore("data/photos/latents/train")
    assert len(store) == 12 and store.shape == (3, 16, 16) and store.labels.tolist() == [0] * 6 + [1] * 6
    assert np.array_equal(store.rows(np.arange(12), 0)[..., ::-1], store.rows(np.arange(12), 1))


def test_photos_that_do_not_decode_are_counted_over_all_processes(photos):
    names = ("n1_0.JPEG", "n1_5.JPEG")  # shards 0 and 1: one for each process
    for name in names:
        Path("train/n1", name).write_bytes(b"")

    def message(world):
        with pytest.raises(DecodingError) as e:
            encode(photos, shard_rows=3)
        return str(e.value)

    messages = together(message)
    assert messages[0] == messages[1] and "2 images do not decode" in messages[0]
    assert all(name in messages[0] for name in names)


def test_no_images_mean_no_latents_and_the_reason_is_kept(photos):
    encode(photos)
    Path("data/photos/images/none.json").write_text('{"reason": "released weights"}')
    encode(photos)
    assert list(contents("data/photos/latents")) == ["none.json"]
    assert record("photos", "encode")["results"] == {"none": "released weights"}
    assert json.loads(Path("data/photos/latents/none.json").read_text()) == {"reason": "released weights"}
