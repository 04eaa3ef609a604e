"""In which precision matrix products and convolutions are computed. Weights and what is between them stay float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from emigm.config.errors import ConfigError
from emigm.config.schema import Precision

HALVES = {"float16": torch.float16, "bf16": torch.bfloat16}


def autocast(precision: Precision, device: str | torch.device) -> contextlib.AbstractContextManager:
    """Context of a forward pass. Its backward pass belongs in `products`, which this contains.

    Raises:
        ConfigError: the GPU has no bfloat16.
    """
    device = torch.device(device)
    if precision not in HALVES:
        return products(precision, device)
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(
            f"precision: bf16, but {torch.cuda.get_device_name(device)} has no bfloat16; set precision: float16"
        )
    return torch.autocast(device.type, HALVES[precision])


@contextlib.contextmanager
def products(precision: Precision, device: str | torch.device) -> Iterator[None]:
    """What a GPU does with the products of float32 tensors, convolutions included: they are rounded to TensorFloat-32
    under `tf32` alone, though PyTorch does it to all convolutions unless told not to. On a CPU nothing changes."""
    if torch.device(device).type == "cpu":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def overflow(result: str, precision: Precision, key: str) -> str:
    """Message on NaN or infinity in a result of a forward pass."""
    if precision == "float16":
        return f"{result}: NaN or infinity under float16, whose largest number is 65504; set {key}: bf16 or float32"
    return f"{result}: NaN or infinity in {precision}; the weights are damaged, or of another model"
