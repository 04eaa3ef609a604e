"""Times and memory of things that do the same, measured in turn; the rate of matrix products that a device reaches."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from emigm.config.schema import Precision
from emigm.model.precision import HALVES, products

SIDE = {"cpu": 1024, "cuda": 8192}
"""Of the square matrices whose product gives a device's rate."""


class Variant(NamedTuple):
    """One way to do something."""

    code: str
    """ "ours" or "official"."""
    precision: Precision
    run: Callable[[], object]


def clock(device: str) -> float:
    """Seconds: of this process's processor time on a CPU, which other processes hardly change; of the wall on a GPU,
    once it has done what it was told."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(run: Callable[[], object], device: str) -> float:
    """What one call takes."""
    begun = clock(device)
    run()
    return clock(device) - begun


def measure(variants: Sequence[Variant], device: str, repeats: int) -> list[dict[str, Any]]:
    """Run every variant once to warm up, then all of them in turn, `repeats` times.

    Returns:
        For each its seconds, their median, their spread, and the most memory (bytes) it took beyond what was taken
        before, None where the system does not say.
    """
    peaks = [peak_bytes(variant.run, device) for variant in variants]
    rounds = [[seconds_of(variant.run, device) for variant in variants] for _ in range(repeats)]
    return [
        {"code": variant.code, "precision": variant.precision, "seconds": list(seconds)}
        | {"median": statistics.median(seconds), "spread": spread(seconds), "peak_bytes": peak}
        for variant, seconds, peak in zip(variants, zip(*rounds, strict=True), peaks, strict=True)
    ]


def spread(seconds: Sequence[float]) -> float:
    """Largest minus smallest, relative to the median."""
    return (max(seconds) - min(seconds)) / statistics.median(seconds)


def peak_bytes(run: Callable[[], object], device: str) -> int | None:
    """The most memory (bytes) that a call, the first of its kind, takes beyond what is taken before it; where torch
    compiles, with what the compiler takes. None where the system does not say."""
    if device != "cpu":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    try:
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # else what was freed before is taken again, unseen
        Path("/proc/self/clear_refs").write_text("5")  # Linux then counts the peak anew
    except (OSError, TypeError):  # not Linux; Windows
        run()
        return None
    before = _status("VmRSS")
    run()
    return max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    """A number of bytes in Linux's account of this process."""
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def matrix_rate(device: str, precision: Precision, repeats: int = 5) -> float:
    """FLOP/s of the product of two square matrices in a precision: the best of a few."""
    side = SIDE[torch.device(device).type]
    a = torch.randn(side, side, device=device, dtype=HALVES.get(precision, torch.float32))
    with products(precision, device):
        return 2 * side**3 / min(seconds_of(lambda: a @ a, device) for _ in range(repeats))
