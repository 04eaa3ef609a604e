"""The processes of one stage: who they are, where they compute, how they share work.

A stage is one process, or as many as `run.launcher` starts (torchrun sets RANK, WORLD_SIZE and LOCAL_RANK; srun sets
SLURM_PROCID, SLURM_NTASKS and SLURM_LOCALID, and needs MASTER_ADDR and MASTER_PORT).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from emigm.config import RunConfig
from emigm.parsing import ConfigError


@dataclass(frozen=True)
class World:
    """This process among those of the stage."""

    rank: int
    size: int
    device: str
    """Where it computes: "cpu", "cuda:0", ..."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes what the stage makes as a whole."""
        return self.rank == 0

    def share(self, n: int) -> range:
        """The items of 0 .. n - 1 that are this process's."""
        return range(self.rank, n, self.size)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in order of rank, in every process; small plain values only."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values


ALONE = World(0, 1, "cpu")
"""One process on the CPU."""


def join(run: RunConfig) -> World:
    """This process's place; the first call connects the processes.

    Raises:
        ConfigError: CUDA is asked for and absent, or a launcher started more processes on a machine than it has GPUs.
    """
    rank, size, local = (_from_launcher(*names) for names in _VARIABLES)
    device = "cpu"
    if run.device == "cuda" or (run.device == "auto" and torch.cuda.is_available()):
        if not torch.cuda.is_available():
            raise ConfigError("run.device: cuda, but PyTorch sees no GPU; set run.device: cpu or mend the driver")
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"run.launcher started process {local + 1} on a machine with {torch.cuda.device_count()} GPUs; "
                "start one process for each"
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device != "cpu" else "gloo", init_method="env://", rank=rank, world_size=size)
    return World(rank, size, device)


_VARIABLES = (("RANK", "SLURM_PROCID", 0), ("WORLD_SIZE", "SLURM_NTASKS", 1), ("LOCAL_RANK", "SLURM_LOCALID", 0))


def _from_launcher(torchrun: str, slurm: str, default: int) -> int:
    # SLURM sets its variables in an interactive allocation too, where nothing was launched.
    names = (torchrun, slurm) if "EMIGM_LAUNCHED" in os.environ else (torchrun,)
    return next((int(os.environ[n]) for n in names if n in os.environ), default)
