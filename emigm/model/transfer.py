"""Copies to the device on which a network computes."""

from __future__ import annotations

import torch
from torch import Tensor


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
