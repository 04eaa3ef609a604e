"""The processes of one stage: who they are, where they compute, how they share work.

A stage is one process, or as many as `run.launcher` starts: with torchrun, or with srun, which also needs MASTER_ADDR
and MASTER_PORT. A process that fails must end the others: torchrun sees to it; srun does with --kill-on-bad-exit=1.
"""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from emigm.config.errors import check
from emigm.config.schema import RunConfig
from emigm.launching import place

TIMEOUT = timedelta(hours=1)  # for another process: main may be writing a large file, or the machines may differ
MEETING = timedelta(minutes=5)  # to meet at the start: nodes that read Python from a shared disk differ by minutes


@dataclass(frozen=True)
class World:
    """This process among those of the stage; `device` is where it computes: "cpu", "cuda:0", ..."""

    rank: int
    size: int
    device: str

    @property
    def is_main(self) -> bool:
        """Whether this process writes what the stage makes as a whole."""
        return self.rank == 0

    @property
    def is_plain(self) -> bool:
        """Whether the stage is one process on the CPU, free to fork others."""
        return self.size == 1 and self.device == "cpu"

    def share(self, n: int) -> range:
        """The items of 0 .. n - 1 that are this process's."""
        return range(self.rank, n, self.size)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in order of rank, in every process; small plain values only."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def mean(self, value: Tensor) -> Tensor:
        """Mean of every process's value (a tensor on `device`), in every process."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.size
        return value

    def check_shared(self, folder: Path) -> None:
        """Make the folder where there are several processes; raise ConfigError unless all see the same one."""
        if self.size > 1 and self.is_main:
            folder.mkdir(parents=True, exist_ok=True)
        self.barrier()
        seen = self.gather(self.size == 1 or folder.is_dir())
        blind = seen.index(False) if False in seen else None
        unseen = f"process {blind} does not see this folder of the main process"
        remedy = "put the repository on a file system that all nodes share"
        check(blind is None, f"{folder.absolute()}: {unseen}; {remedy}")

    def start_memory(self) -> None:
        """Start measuring `peak_memory`."""
        if self.device != "cpu":
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_memory(self) -> int | None:
        """Largest GPU memory (bytes) that tensors of one process took since `start_memory`; None on the CPU."""
        return None if self.device == "cpu" else max(self.gather(torch.cuda.max_memory_allocated(self.device)))


ALONE = World(0, 1, "cpu")
"""One process on the CPU."""


def join(run: RunConfig) -> World:
    """This process's place; the first call connects the processes.

    Raises:
        ConfigError: CUDA is asked for and absent, a launcher started more processes on a machine than it has GPUs,
            or srun's processes do not know where to meet.
    """
    rank, size, local = place()
    device = _device(run.device, local)
    if size > 1 and not dist.is_initialized():
        missing = " and ".join(name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ)
        remedy = 'export MASTER_ADDR="$(scontrol show hostnames | head -n 1)" MASTER_PORT=29500 first'
        check(not missing, f"run.launcher started {size} processes, which need {missing} to meet; {remedy}")
        backend, gpu = ("gloo", None) if device == "cpu" else ("nccl", torch.device(device))
        store, *_ = next(dist.rendezvous("env://", rank, size, timeout=MEETING))
        store.set(f"met{rank}", "")  # a process whose launcher was killed never comes, and `TIMEOUT` is not for it
        store.wait([f"met{i}" for i in range(size)], MEETING)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT, device_id=gpu)
        atexit.register(dist.destroy_process_group)
    return World(rank, size, device)


def _device(wanted: str, local: int) -> str:
    """Device of the `local`-th process of this machine."""
    has_gpu = torch.cuda.is_available()
    if wanted == "cpu" or (wanted == "auto" and not has_gpu):
        return "cpu"
    check(has_gpu, "run.device: cuda, but PyTorch sees no GPU; set run.device: cpu or mend the driver")
    gpus = torch.cuda.device_count()
    if gpus == 1 and "LOCAL_RANK" not in os.environ:
        local = 0  # srun can show each process its own GPU alone
    started = f"run.launcher started process {local + 1} on a machine with {gpus} GPUs"
    check(local < gpus, f"{started}; start one process for each")
    torch.cuda.set_device(local)
    return f"cuda:{local}"
