"""The digits' split, and the latent store with its errors."""

import json

import numpy as np
import pytest

from emigm import data
from emigm.config import DataConfig
from emigm.images import load_images, load_split, save_images
from emigm.latents import LatentStore, write_latents
from emigm.parsing import ConfigError


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "SHARD_ROWS", 4)
    latents = np.arange(11 * 2 * 3, dtype=np.float32).reshape(11, 2, 3)
    write_latents(tmp_path / "latents", latents, np.arange(11) % 3, {"autoencoder": "none"})
    return tmp_path / "latents", latents


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


def test_rows_come_back_in_any_order_across_shards(store):
    folder, latents = store
    opened = LatentStore(folder)
    index = np.array([10, 0, 5, 3, 4, 5])
    assert len(opened) == 11 and len(list(folder.glob("*.npy"))) == 3
    assert np.array_equal(opened.rows(index), latents[index])
    assert np.array_equal(opened.labels, np.arange(11) % 3)


def test_a_missing_shard_is_named(store):
    folder, _ = store
    (folder / "latents-00001.npy").unlink()
    with pytest.raises(ConfigError, match=r"latents-00001\.npy: shard is missing.*encode"):
        LatentStore(folder)


def test_a_truncated_shard_is_named_with_both_sizes(store):
    folder, _ = store
    file = folder / "latents-00002.npy"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(
        ConfigError, match=rf"latents-00002\.npy: shard is truncated \({size - 5} bytes, expected {size}\)"
    ):
        LatentStore(folder)


def test_a_changed_shard_fails_its_checksum(store):
    folder, _ = store
    file = folder / "latents-00000.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(ConfigError, match=r"latents-00000\.npy: checksum differs"):
        LatentStore(folder)


def test_missing_and_damaged_indexes_are_named(store, tmp_path):
    folder, _ = store
    with pytest.raises(ConfigError, match=r"index\.json: no such file; run the encode stage"):
        LatentStore(tmp_path / "nothing")
    (folder / "index.json").write_text(json.dumps({"facts": {}})[:-3])
    with pytest.raises(ConfigError, match=r"index\.json: not valid JSON"):
        LatentStore(folder)


def test_images_come_back_and_damage_is_named(tmp_path):
    pixels, labels = np.zeros((3, 1, 8, 8), np.uint8), np.arange(3)
    save_images(tmp_path / "a.npz", pixels, labels)
    assert all(np.array_equal(a, b) for a, b in zip(load_images(tmp_path / "a.npz"), (pixels, labels), strict=True))
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:200])
    with pytest.raises(ConfigError, match=r"a\.npz: truncated or damaged"):
        load_images(tmp_path / "a.npz")
    with pytest.raises(ConfigError, match=r"b\.npz: no such file"):
        load_images(tmp_path / "b.npz")
