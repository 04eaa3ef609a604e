"""The golden chain: every stage that makes numbers, on tiny settings, against pinned weights, images and scores.

Stages depend in dvc.yaml on the code that defines their numbers. What guards the rest (configuration, files, records,
launching) is this test: a change that leaves it alone is accepted by `dvc commit`. On the kind of processor that pinned
the numbers they are exact, on another one within rounding. `python tests/test_golden.py` pins them anew, which a change
of numbers that is meant has to do.
"""

import hashlib
import json
import os
import platform
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from emigm.config.compose import merged

ROOT = Path(__file__).parents[1]
PINNED = ROOT / "tests" / "golden" / "chain.json"
STAGES = ("prepare", "extractor", "encode", "reference", "train", "sample", "evaluate", "snapshots", "reveal")
EVALUATION = {"images": 40, "seeds": [0], "chunk": 20}
TRAIN = {"steps": 12, "seeds": [3], "warmup_steps": 2}
DIFFUSION = {
    "evaluation": EVALUATION,
    "train": TRAIN | {"checkpoint_every": 5, "snapshots": [0.5], "mask_group": 16},
    "model": {"dropout": 0.1},
}
CODES = {
    "autoencoder": {"kind": "kmeans", "scale": 1.0, "codebook": 16, "patch": 2,
                    "weights": "data/codes/latents/codes.npz"},
    "evaluation": EVALUATION | {"snapshots": None},
    "model": {"grid": 4, "patch": 1, "conditional": "categorical", "codebook": 16, "mae": False},
    "train": TRAIN | {"masking": "exact_count", "schedule": "cosine", "t_min": 0.0, "snapshots": []},
    "sampling": {"4": {"settings": {"solver": "categorical", "solver_steps": None, "cfg_scale": 2.0,
                                    "schedule": "cosine", "order": "confidence", "choice_temperature": 4.5}}},
}  # fmt: skip
SYSTEMS = {"diffusion": DIFFUSION, "codes": CODES}
"""A diffusion head over pixels, and a categorical one over k-means codes whose order is by confidence."""


def run_chain(folder: Path) -> None:
    """Run all stages of both systems in `folder`, in this process and one after another."""
    os.chdir(folder)
    for name, changes in SYSTEMS.items():
        tree = yaml.safe_load((ROOT / "benchmarks" / "smoke" / "params.yaml").read_text(encoding="utf-8"))
        tree["benchmark"] = merged(tree["benchmark"], {**changes, "name": name, "images_of": name})
        Path(f"{name}.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
        for stage in STAGES:
            if stage == "snapshots" and not tree["benchmark"]["train"]["snapshots"]:
                continue
            options = ["--size", "xs"] * (stage not in STAGES[:4]) + ["--budget", "4"] * (stage == "sample")
            sys.argv = [stage, "--params", f"{name}.yaml", *options]
            runpy.run_module(f"emigm.stages.{stage}", run_name="__main__", alter_sys=True)


def measured(folder: Path) -> dict[str, list]:
    """What the chain made, by name: arrays as lists of at most 64 numbers, evenly spaced, after the digest of all."""
    from safetensors.numpy import load_file

    values = {}

    def pin(name: str, array: np.ndarray) -> None:
        flat = np.ascontiguousarray(array).reshape(-1)
        few = flat[:: -(-len(flat) // 64)].astype(float)
        values[name] = [hashlib.sha256(flat.tobytes()).hexdigest(), *few.tolist()]

    for file in sorted(folder.rglob("*.safetensors")):
        tensors = load_file(file)
        pin(file.relative_to(folder).as_posix(), np.concatenate([tensors[k].ravel() for k in sorted(tensors)]))
    for file in sorted([*folder.glob("data/*/latents/**/latents-*.npy"), *folder.glob("samples/**/*.npz")]):
        array = np.load(file)
        pin(file.relative_to(folder).as_posix(), array if file.suffix == ".npy" else array["pixels"])
    for file in sorted(folder.glob("results/*/records/*.json")):
        results = json.loads(file.read_text(encoding="utf-8"))["results"]
        for name, value in sorted(scores(results)):
            values[f"{file.relative_to(folder).as_posix()} {name}"] = [repr(value), value]
    return values


def scores(tree, name=""):
    """(name, value) of all scores in a record's results."""
    kept = ("fid", "isc", "kid", "precision", "recall", "label_accuracy", "cas", "fid_by_extractor")
    kept += ("errors", "final_loss", "revealed", "nfe")
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key not in ("mean", "std", "n"):
                yield from scores(value, f"{name}.{key}")
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from scores(value, f"{name}.{i}")
    elif isinstance(tree, (int, float)) and set(name.split(".")) & set(kept):
        yield name, float(tree)


def processor() -> str:
    """What the last bits of a result depend on: the processor, the libraries' kernels, and the number of cores."""
    import torch

    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file():
        kept = ("vendor_id", "cpu family", "model\t", "model name", "stepping", "flags")
        lines = sorted({line for line in info.read_text().splitlines() if line.startswith(kept)})
        cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), cpu)
        cpu += f" {hashlib.sha256(chr(10).join(lines).encode()).hexdigest()[:8]}"
    kernels = torch.backends.cpu.get_cpu_capability(), os.environ.get("OPENBLAS_CORETYPE", "")
    return " | ".join((cpu, f"{os.cpu_count()} cores", *kernels, f"torch {torch.__version__}, numpy {np.__version__}"))


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "measured.json").read_text(encoding="utf-8"))


def test_weights_images_and_scores_of_the_golden_chain_are_the_pinned_ones(chain):
    pinned = json.loads(PINNED.read_text(encoding="utf-8"))
    assert sorted(chain["values"]) == sorted(pinned["values"])
    exact = chain["processor"] == pinned["processor"]
    for name, (digest, *numbers) in pinned["values"].items():
        digest_here, *numbers_here = chain["values"][name]
        if exact:
            assert digest_here == digest, f"{name} has changed on the processor that pinned it"
        elif name.startswith("samples/"):  # rounding may move a token's sample over an edge
            difference = np.abs(np.array(numbers_here) - np.array(numbers))
            assert np.mean(difference <= 2) > 0.9, name
        else:
            np.testing.assert_allclose(numbers_here, numbers, rtol=1e-3, atol=1e-4, err_msg=name)


if __name__ == "__main__":
    import tempfile

    where = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()).resolve()
    out = where / "measured.json" if len(sys.argv) > 1 else PINNED
    run_chain(where)
    text = json.dumps({"processor": processor(), "values": measured(where)}, indent=0)
    out.write_text(text + "\n", encoding="utf-8")
