"""Copy a trained model to where git tracks it: EMA weights of the first training seed, rounded to float16.

Whoever has the repository can then generate without any training (`emigm generate mnist-h`). The copy names the file it
was made from by its checksum, which the training's record has too.
"""

from __future__ import annotations

import torch

from emigm.config.benchmark import Benchmark
from emigm.config.parsing import as_dict
from emigm.config.paths import model_folder, weights_folder
from emigm.launching import run_stage
from emigm.model.model import WEIGHTS_FILE, read_model_config, save_model
from emigm.model.weights import read_tensors


def weights(benchmark: Benchmark, size: str) -> None:
    folder = model_folder(benchmark, size, benchmark.train_config(size).seeds[0])
    cfg, facts = read_model_config(folder)
    state = {name: tensor.to(torch.float16) for name, tensor in read_tensors(folder / WEIGHTS_FILE).items()}
    source = {"file": (folder / WEIGHTS_FILE).as_posix(), "sha256": facts.pop("weights")}
    own = {"sampling": as_dict(benchmark.finest_sampling(size)), "source": source, "rounded": "float16"}
    save_model(weights_folder(benchmark.name, size), state, cfg, **facts, **own)


if __name__ == "__main__":
    run_stage(weights, "size", one_process=True)
