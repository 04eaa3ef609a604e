"""Files damaged, swapped or edited between stages, and stages killed: an error by name, or the same numbers; the chain
of checksums that records carry."""

import json
import os
from pathlib import Path

import pytest
import yaml

from emigm.config.benchmark import load_benchmark
from emigm.files import sha256
from emigm.stages.encode import encode
from emigm.stages.evaluate import evaluate
from emigm.stages.extractor import make_extractor
from emigm.stages.prepare import prepare
from emigm.stages.reference import make_reference
from emigm.stages.sample import sample
from emigm.stages.train import train_size

TREE = {
    "name": "tiny",
    "images_of": "tiny",
    "title": "Tiny digits",
    "dry_run": True,
    "sizes": ["xs"],
    "budgets": ["4"],
    "data": {"dataset": "digits", "holdout": 0.2},
    "autoencoder": {"kind": "pixels", "scale": 1.3},
    "extractor": {"kind": "cnn", "training": {"steps": 20, "batch": 64, "lr": 0.001, "seed": 0}},
    "run": {"device": "cpu"},
    "evaluation": {"images": 70, "seeds": [0, 1], "chunk": 30, "kid_subset": 50},
    "gate": {"visible": [0, 8], "images": 64, "repeats": 1, "on_failure": "mark"},
    "model": {
        "grid": 8, "channels": 1, "patch": 2, "classes": 10, "heads": 2,
        "width": 8, "encoder_blocks": 1, "decoder_blocks": 1, "head_width": 8, "head_blocks": 1,
    },
    "train": {"steps": 6, "batch": 8, "lr": 0.001, "seeds": [0, 1], "checkpoint_every": 2},
    "ladder": {"xs": {}},
    "sampling": {"4": {"settings": {"steps": 4, "solver_steps": 4}}},
}  # fmt: skip
PARAMS = {"root": ".", "params": "params.yaml", "makes": ["tiny"], "notebooks": [], "benchmark": TREE}
STAGES = {
    "prepare": (prepare,),
    "extractor": (make_extractor,),
    "encode": (encode,),
    "reference": (make_reference,),
    "train-xs": (train_size, "xs"),
    "sample-xs-4": (sample, "xs", "4"),
    "evaluate-xs": (evaluate, "xs"),
}
"""Stage by the name of its record: function and arguments, in order."""


def run(name, benchmark):
    stage, *arguments = STAGES[name]
    stage(benchmark, *arguments)


def in_folder(folder, work):
    here = Path.cwd()
    os.chdir(folder)
    try:
        return work()
    finally:
        os.chdir(here)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A workspace in which every stage has run."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS))

    def run_all():
        for name in STAGES:
            run(name, load_benchmark())

    in_folder(folder, run_all)
    return folder


def records(folder):
    return {p.stem: json.loads(p.read_text()) for p in (folder / "results/tiny/records").iterdir()}


# The chain


def test_every_record_names_what_its_stage_read_and_wrote(whole):
    found = records(whole)
    assert set(found) == set(STAGES)
    for name, record in found.items():
        assert record["outputs"] or name == "evaluate-xs"
        assert record["inputs"] or name == "prepare"
        for file, checksum in {**record["inputs"], **record["outputs"]}.items():
            assert sha256(whole / file) == checksum
        assert 0 < record["provenance"]["cpu_seconds"] < 1e4


def test_the_chain_of_records_closes(whole):
    """What a stage reads is what an earlier one wrote, and what is written is read or shown."""
    written, read = {}, set()
    found = records(whole)
    for name in STAGES:
        for file, checksum in found[name]["inputs"].items():
            assert written[file] == checksum
            read.add(file)
        written |= found[name]["outputs"]
    assert {Path(f).name for f in written.keys() - read} == {"xs.csv", "xs-4.png", "real.png"}


def test_records_name_the_files_that_numbers_depend_on(whole):
    found = records(whole)
    named = {name: set(record["inputs"]) for name, record in found.items()}
    latents = {f"data/tiny/latents/{part}/index.json" for part in ("train", "holdout")}
    images = {f"data/tiny/images/{part}.npz" for part in ("train", "holdout")}
    weights = {f"models/tiny/xs/seed{t}/model.safetensors" for t in (0, 1)}
    samples = {f"samples/tiny/xs/4/train{t}-seed{s}/index.json" for t in (0, 1) for s in (0, 1)}
    assert named["train-xs"] == latents and named["encode"] == named["extractor"] == images
    assert weights < named["sample-xs-4"] and images < named["reference"]
    assert samples | images | {"data/tiny/reference.npz"} < named["evaluate-xs"]
    assert "data/tiny/extractor/weights.safetensors" in named["evaluate-xs"] & named["reference"]
