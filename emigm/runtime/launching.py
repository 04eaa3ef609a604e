"""How a stage is started: its command line, its processes, and one line for a user's mistake."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable

from emigm.config.benchmark import load_benchmark
from emigm.config.errors import ConfigError, UserError


def run_stage(stage: Callable[..., None], *arguments: str, one_process: bool = False) -> None:
    """Parse the command line (`--params` and one option for each of `arguments`) and run the stage.

    A user's mistake ends in its one message and exit status 1.

    Args:
        stage: called with the benchmark and the options.
        arguments: names of the options.
        one_process: the stage has no use for several, and `run.launcher` is not for it.
    """
    parser = argparse.ArgumentParser(description=(sys.modules[stage.__module__].__doc__ or "").strip().split("\n")[0])
    parser.add_argument("--params", default="params.yaml", help="composed configuration (default: %(default)s)")
    for name in arguments:
        parser.add_argument(f"--{name}", required=True)
    options = vars(parser.parse_args())
    try:
        benchmark = load_benchmark(options.pop("params"))
        if not one_process:
            launch(benchmark.run.launcher)
        stage(benchmark, **options)
    except UserError as e:
        rank = place()[0]
        if rank:  # the main process says what all have to say, and its end ends the others
            time.sleep(ERROR_DELAY)
        sys.exit(f"error: {e}" + (f" (process {rank})" if rank else ""))


ERROR_DELAY = 3.0
"""Seconds by which an error of another process than the main one is held back."""


def place() -> tuple[int, int, int]:
    """(rank, number of processes, rank on this machine), as torchrun or srun say; (0, 1, 0) without either."""
    names = (("RANK", "SLURM_PROCID", 0), ("WORLD_SIZE", "SLURM_NTASKS", 1), ("LOCAL_RANK", "SLURM_LOCALID", 0))
    # SLURM sets its variables in an interactive allocation too, where nothing was launched.
    slurm = LAUNCHED in os.environ and "RANK" not in os.environ
    return tuple(int(os.environ.get(by_srun if slurm else by_torchrun, n)) for by_torchrun, by_srun, n in names)


LAUNCHED = "EMIGM_LAUNCHED"
"""Set in the environment of processes that `launch` started."""


def launch(launcher: str | None) -> None:
    """Start this command again under `launcher`, in place of this process, unless that has happened already.

    The launcher is no part of a stage's command, so that DVC does not take another number of processes for another
    result.
    """
    if launcher is None or LAUNCHED in os.environ or "LOCAL_RANK" in os.environ:
        return
    command = [*shlex.split(launcher), "-m", sys.modules["__main__"].__spec__.name, *sys.argv[1:]]
    if shutil.which(command[0]) is None:
        raise ConfigError(f"run.launcher: no command {command[0]!r}; install it or set another launcher")
    os.environ[LAUNCHED] = "1"
    os.execvp(command[0], command)
