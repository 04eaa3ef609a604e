"""How a stage is started and ended: its command line, its lock, its processes, and one line where it cannot go on."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from emigm.config.benchmark import load_benchmark
from emigm.config.errors import ConfigError, RunError, UserError
from emigm.config.paths import STATE
from emigm.io import lock
from emigm.pools import die_with_parent


def run_stage(stage: Callable[..., None], *arguments: str, one_process: bool = False) -> None:
    """Parse the command line (`--params` and one option for each of `arguments`) and run the stage.

    A user's mistake, a full disk and Ctrl-C end in one message each.

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
    spec = sys.modules[stage.__module__].__spec__  # as the module's own name is "__main__"
    module = (spec.name if spec else stage.__module__).rsplit(".", 1)[-1]
    with in_one_line():
        benchmark = load_benchmark(options.pop("params"))
        if not one_process:
            launch(benchmark.run.launcher)
        with only_one(benchmark.name, "-".join([module, *options.values()])):
            stage(benchmark, **options)


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """End the command in one line on a user's mistake, Ctrl-C or a full disk; and with DVC, where that started it."""
    if "DVC_STAGE" in os.environ:  # its failed run must not go on behind its back
        die_with_parent(started_by())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except UserError as e:
        _fail(str(e))
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C does not wait for anything
        if place()[0] == 0:
            print("interrupted; type the same command again, and it goes on where it stopped", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _fail(f"{e.filename or 'disk'}: {e.strerror}; make room and type the same command again")


def _fail(message: str) -> NoReturn:
    rank = place()[0]
    if rank:  # the main process says what all have to say, and its end ends the others
        time.sleep(ERROR_DELAY)
    sys.exit(f"error: {message}" + (f" (process {rank})" if rank else ""))


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def started_by() -> int:
    """The process that started this one; it may have ended since."""
    stages = sys.modules.get("emigm.stages")  # has noted it before seconds of imports
    return stages.STARTED_BY if stages else os.getppid()


@contextlib.contextmanager
def only_one(benchmark: str, stage: str) -> Iterator[None]:
    """Hold the lock on a stage of a benchmark in this workspace; of several processes, the main one does.

    The system gives it back when the process ends, killed or not: what a killed run leaves blocks nothing.

    Raises:
        RunError: the same stage runs already.
    """
    if place()[0]:
        yield
        return
    path = STATE / benchmark / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', stage)}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for _ in range(LOCK_TRIES):
            if lock(file.fileno()) is not False:
                break
            time.sleep(0.1)
        else:
            raise RunError(
                f"{path}: stage {stage} of benchmark {benchmark} is running already in this folder; wait until it has "
                "ended, or end it"
            )
        yield


LOCK_TRIES = 30
"""Tenths of a second to wait for a lock: workers of a killed run hold it until the system has ended them too."""
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
