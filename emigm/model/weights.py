"""Tensors out of other people's files (safe reading, strict checks of names and shapes), and on to a device."""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from emigm.config.errors import ConfigError, check
from emigm.io import write_atomically

HARMLESS = [
    argparse.Namespace,  # released eMIGM checkpoints hold their arguments
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),  # a best loss, an accuracy
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # the same, written by numpy 1
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "float16", "int64", "int32", "bool")),
]
"""What checkpoints of others hold beside tensors and plain values, and what runs no code when it is unpickled."""
WEB_PAGE = "is a web page, not the file itself; download it by its direct link (on the Hub: .../resolve/main/<file>)"
IMPOSTORS = {
    b"version https://git-lfs": "is a git-LFS pointer, not the file itself; run `git lfs pull` where it was cloned",
    b"<!doctype": WEB_PAGE,
    b"<html": WEB_PAGE,
}
"""How files begin that often lie in place of weights."""


def read_tensors(path: str | Path, part: str | None = None) -> dict[str, Tensor]:
    """Named tensors of a `.safetensors` file or of a PyTorch checkpoint (`.ckpt`, `.pth`, ...), on the CPU.

    `part` is the entry of a checkpoint that holds the tensors; None: all of it.

    Raises:
        ConfigError: the file is missing, truncated or damaged, holds code, or has no such part.
    """
    return tensors_of(read_checkpoint(path), path, part)


def read_checkpoint(path: str | Path) -> Any:
    """All that a file of tensors holds; see `read_tensors`. Tensors and plain values are unpickled, nothing else."""
    path = Path(path)
    check(path.is_file(), f"{path}: no such file")
    with path.open("rb") as f:
        beginning = f.read(64).lstrip().lower()
    if problem := next((text for sign, text in IMPOSTORS.items() if beginning.startswith(sign)), None):
        raise ConfigError(f"{path}: {problem}")
    try:
        if not beginning:
            raise EOFError("it is empty")
        if path.suffix == ".safetensors":
            return load_file(path)
        # Mapping the file leaves optimizer states and other parts on the disk; the old format, no zip, cannot do that.
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as e:  # both loaders raise many types for a damaged file
        # PyTorch's own message goes on to advise unrestricted unpickling, so only the name is taken from it.
        if forbidden := re.search(r"GLOBAL ([\w.]+)", str(e)):
            raise ConfigError(
                f"{path}: holds a {forbidden[1]}; only tensors and plain values are read, as other objects can run "
                "code; save it again without that"
            ) from e
        reason = "not a PyTorch checkpoint" if isinstance(e, pickle.UnpicklingError) else str(e) or type(e).__name__
        reason = reason.splitlines()[0].split(". ")[0]
        raise ConfigError(f"{path}: truncated, damaged or of another format ({reason}); download it again") from e


def tensors_of(tree: Any, path: str | Path, part: str | None) -> dict[str, Tensor]:
    """The named tensors in what a file holds, or in one entry of it; see `read_tensors`."""
    if part is not None:
        if not isinstance(tree, dict) or part not in tree:
            raise ConfigError(f"{path}: has no entry {part!r} with the tensors (found: {_summary(tree)})")
        tree = tree[part]
    if not isinstance(tree, dict) or not all(isinstance(v, Tensor) for v in tree.values()):
        raise ConfigError(f"{path}: expected named tensors, found {_summary(tree)}")
    return tree


def write_tensors(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Write named tensors, from wherever they lie, as a `.safetensors` file, atomically.

    With the bytes of `safetensors.torch.save_file`, whose own temporary file a kill would leave for ever.
    """
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def check_state(state: dict[str, Tensor], model: nn.Module, source: str | Path) -> None:
    """Raise ConfigError, naming the tensor, unless `state` fits `model` key by key and shape by shape."""
    check_tensors(state, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, source)


def check_tensors(state: dict[str, Tensor], wanted: Mapping[str, tuple[int, ...]], source: str | Path) -> None:
    """Raise ConfigError, naming the tensor, unless `state` has just the `wanted` names, in the wanted shapes,
    and finite values."""
    for name in sorted(wanted.keys() - state.keys()):
        raise ConfigError(f"{source}: tensor {name} is missing")
    for name in sorted(state.keys() - wanted.keys()):
        raise ConfigError(f"{source}: tensor {name} belongs to no part of this model")
    for name, shape in wanted.items():
        if state[name].shape != shape:
            raise ConfigError(
                f"{source}: tensor {name} has shape {tuple(state[name].shape)}, expected {tuple(shape)}; "
                "the weights are of another size"
            )
    check_finite(state, source)


def check_finite(state: Mapping[str, Tensor], source: str | Path) -> None:
    """Raise ConfigError, naming the tensor, where a value is NaN or infinite."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.is_meta and not tensor.isfinite().all():
            raise ConfigError(f"{source}: tensor {name} holds NaN or infinity; make or download the file again")


def upload(tensor: Tensor, device: str | torch.device) -> Tensor:
    """The tensor on a device, without waiting for the device.

    A copy to a GPU from ordinary memory waits until all that was launched before has been computed; one from pinned
    memory is queued behind it, and torch keeps that memory until the copy is done. Where the tensor lies on the device
    already, it is the tensor itself.
    """
    device = torch.device(device)
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _summary(tree: object) -> str:
    if not isinstance(tree, dict):
        return f"a {type(tree).__name__}"
    entries = [f"{name}: {type(value).__name__}" for name, value in list(tree.items())[:4]]
    return "{" + ", ".join(entries) + (", ..." if len(tree) > 4 else "") + "}"
