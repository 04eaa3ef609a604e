"""Official checkpoints (`.pth`) to this project's model folders, and back.

The official state dict holds the same tensors under other names: `diffloss.net.X` is `head.X` here, every other
`X` is `backbone.X`. With CFG with mask the fake class and the mask token are one parameter, which it lists twice, as
`fake_latent` and as `mask_token`. The official code averages a parameter under its first name only, so in `model_ema`
the first is the EMA and the second the raw value of the last step. Its evaluation loads both into the one parameter,
the second last: it computes with EMA weights everywhere but there. An import has to say which of the two it takes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from emigm.config.errors import ConfigError, check
from emigm.config.schema import ModelConfig
from emigm.io import sha256, write_atomically
from emigm.model.model import EMIGM, load_model, read_model_config, save_model
from emigm.model.weights import check_tensors, read_checkpoint, tensors_of
from emigm.paper.settings import PAPER_MODELS

WEIGHTS_ENTRY, RAW_ENTRY = "model_ema", "model"
OFFICIAL_HEAD, HEAD, BACKBONE = "diffloss.net.", "head.", "backbone."
FAKE, MASK = "fake_latent", "mask_token"

Token = Literal["official", "ema"]


def official_name(name: str) -> str:
    """Name in the official state dict of our tensor `name`."""
    return OFFICIAL_HEAD + name.removeprefix(HEAD) if name.startswith(HEAD) else name.removeprefix(BACKBONE)


def to_official(state: Mapping[str, Tensor], cfg: ModelConfig) -> dict[str, Tensor]:
    """Our state dict under the official names; a shared fake and mask token appears under both of its names."""
    official = {official_name(name): tensor for name, tensor in state.items()}
    if cfg.cfg_with_mask:
        official[MASK] = official[FAKE]
    return official


def from_official(official: Mapping[str, Tensor], cfg: ModelConfig, shared: Tensor | None = None) -> dict[str, Tensor]:
    """The official state dict under our names; `shared` (1, D) is the shared fake and mask token where there is
    one, by default the value that wins when the official classes load `official`."""
    state = dict(official)
    if cfg.cfg_with_mask:
        last = state.pop(MASK)
        state[FAKE] = last if shared is None else shared
    return {
        HEAD + name.removeprefix(OFFICIAL_HEAD) if name.startswith(OFFICIAL_HEAD) else BACKBONE + name: tensor
        for name, tensor in state.items()
    }


def import_official(
    path: str | Path,
    folder: str | Path,
    cfg: ModelConfig | None = None,
    *,
    token: Token = "official",
    checksum: str | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Turn an official checkpoint into a model folder (`save_model`), with its EMA weights.

    Args:
        path: the `.pth` file: a dict with an entry `model_ema`. It is never unpickled without restriction.
        cfg: its architecture; None: find out which of the paper's nine it is.
        token: the value of a shared fake and mask token: "official" for the raw weights the official evaluation
            computes with, "ema" for the average. They differ unless the file was written another way.
        checksum: the SHA-256 that the file must have; None: any.
        facts: more to record in the folder's `config.json`.

    Returns:
        What is recorded there beside the architecture; under `source`, what the file is.

    Raises:
        ConfigError: the file is missing, truncated, damaged or holds code, has another checksum, or a tensor is
            missing, unknown or of another shape; names the file and the tensor.
    """
    path = Path(path)
    entries = read_checkpoint(path)
    digest = sha256(path)
    remedy = "move it away and download it again, or correct the expected value"
    check(checksum in (None, digest), f"{path}: has SHA-256 {digest}, expected {checksum}; {remedy}")
    averaged = _plain_names(tensors_of(entries, path, WEIGHTS_ENTRY))
    if cfg is None:
        cfg = identify(averaged, path)
    else:
        _check(averaged, cfg, path, "the given architecture")
    trained_with = getattr(entries.get("args"), "use_mae", cfg.mae)  # of all the tensors none tells
    own = f"the architecture has mae = {cfg.mae}"
    check(trained_with == cfg.mae, f"{path}: was trained with use_mae = {trained_with}, {own}")
    source = {
        "file": path.name,
        "sha256": digest,
        "entry": WEIGHTS_ENTRY,
        "epoch": epoch if isinstance(epoch := entries.get("epoch"), int) else None,
        "architecture": next((f"{r}-{size}" for (r, size), paper in PAPER_MODELS.items() if paper == cfg), None),
    }
    shared = None
    if cfg.cfg_with_mask:
        choices = {"official": _evaluated_token(averaged, entries, path), "ema": averaged[FAKE]}
        difference = (choices["official"].float() - choices["ema"].float()).abs().max().item()
        shared, source["shared_token"] = choices[token], {"used": token, "max_difference": difference}
    state = {name: tensor.detach().float() for name, tensor in from_official(averaged, cfg, shared).items()}
    facts = {"origin": "released", "source": source, **facts}
    save_model(folder, state, cfg, **facts)
    return facts


def export_official(folder: str | Path, path: str | Path) -> None:
    """Write a model folder as an official checkpoint: a dict whose one entry, `model_ema`, holds the weights.

    The official code loads it for evaluation. Importing it again gives the folder's tensors, all equal.
    """
    cfg, _ = read_model_config(folder)
    state = to_official(load_model(folder).state_dict(), cfg)
    write_atomically(path, lambda p: torch.save({WEIGHTS_ENTRY: state}, p))


def identify(official: dict[str, Tensor], source: str | Path) -> ModelConfig:
    """The paper's architecture whose names and shapes `official` has.

    Raises:
        ConfigError: it has those of none of the nine; names the first tensor that differs from the closest.
    """
    tensors = {(name, tuple(tensor.shape)) for name, tensor in official.items()}
    expected = {key: set(_official_shapes(cfg).items()) for key, cfg in PAPER_MODELS.items()}
    closest = max(expected, key=lambda key: len(tensors & expected[key]) / len(tensors | expected[key]))
    _check(official, PAPER_MODELS[closest], source, f"{closest[0]}-{closest[1]}, the closest of the paper's nine")
    return PAPER_MODELS[closest]


def _check(official: dict[str, Tensor], cfg: ModelConfig, source: str | Path, compared: str) -> None:
    """Raise ConfigError, naming the official tensor and a remedy, unless every tensor is the architecture's."""
    try:
        check_tensors(official, _official_shapes(cfg), source)
    except ConfigError as e:
        raise ConfigError(
            f"{e} (compared with {compared}); if it is another architecture, give it (`emigm import --model FILE`: "
            "YAML or JSON with the keys of ModelConfig), else download the file again"
        ) from e


@cache
def _official_shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):  # shapes only
        state = to_official(EMIGM(cfg).state_dict(), cfg)
    return {n: tuple(tensor.shape) for n, tensor in state.items()}


def _plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without what DistributedDataParallel and torch.compile put in front of their names."""
    return {re.sub(r"^((module|_orig_mod)\.)+", "", name): tensor for name, tensor in state.items()}


def _evaluated_token(averaged: Mapping[str, Tensor], entries: Mapping[str, Any], path: Path) -> Tensor:
    """The shared token (1, D) that the official evaluation ends up with.

    It loads `model`, if the file has it, and replaces averaged parameters by their first name; `mask_token` is a
    second name, so the value in `model` stays. From a file with `model_ema` only, it loads that.
    """
    if RAW_ENTRY not in entries:
        return averaged[MASK]
    token = _plain_names(tensors_of(entries, path, RAW_ENTRY)).get(MASK)
    if token is None or token.shape != averaged[MASK].shape:
        raise ConfigError(
            f"{path}: entry {RAW_ENTRY!r} lacks the tensor {MASK} of shape {tuple(averaged[MASK].shape)}, which the "
            "official evaluation computes with; download the file again"
        )
    return token
