"""Where stages keep what they make, how they are started, and how they use the cores of one machine."""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from emigm.core.benchmark import Benchmark, load_benchmark
from emigm.core.parsing import ConfigError, UserError

STATE = Path(".state")
"""Resume points of interrupted stages; a stage removes its own when all it makes is written."""


def data_folder(benchmark: Benchmark) -> Path:
    """Images, extractor, latents and reference statistics."""
    return Path("data") / benchmark.name


def model_folder(benchmark: Benchmark, size: str, seed: int) -> Path:
    """One trained model."""
    return Path("models") / benchmark.name / size / f"seed{seed}"


def samples_folder(benchmark: Benchmark, size: str, budget: str) -> Path:
    """Generated images of one size and budget."""
    return Path("samples") / benchmark.name / size / budget


def samples_name(train_seed: int, sample_seed: int) -> str:
    """Folder of the images of one training and one sampling seed; see `emigm.samples`."""
    return f"train{train_seed}-seed{sample_seed}"


def fingerprint(*parts: Any) -> str:
    """Short hash of plain values: names the resume state, so that another configuration cannot pick it up."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


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


def die_with_parent() -> None:
    """Have the system kill this process when its parent is killed, so that it cannot go on beside a second run."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


PR_SET_PDEATHSIG = 1


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


Progress = Callable[[int], None]
"""Called by a job with the number of its units that are done; first of all with what an earlier run left done."""


def parallel(job: Callable[[Any, Progress], Any], items: Sequence[Any], total: int, unit: str, label: str) -> list[Any]:
    """[job(item, progress) for item in items], on all cores, one thread each, under one progress bar with an ETA.

    Small models use two cores better as two single-threaded processes than as one with two threads. Every job
    runs to its end even when another fails; then the first failure is raised.

    Args:
        job: a module's function.
        items: its arguments.
        total: units of work in one job.
        unit: their name.
        label: what the bar is called.
    """
    # Forked workers share what is imported already; a child of a spawn imports torch again, for seconds.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    counters = context.Array("q", len(items))
    processes = min(len(items), cores())
    results: list[Any] = []
    with ProcessPoolExecutor(processes, context, _start_worker, (counters,)) as pool:
        futures = [pool.submit(_run_job, job, i, item) for i, item in enumerate(items)]
        with tqdm(total=total * len(items), unit=unit, desc=label, mininterval=1.0, smoothing=0.05) as bar:
            waiting = set(futures)
            while waiting:
                _, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                bar.update(sum(counters) - bar.n)
        results = [f.result() for f in futures]
    return results


def in_turn(
    job: Callable[[Any, Progress], Any], items: Sequence[Any], total: int, unit: str, label: str, show: bool
) -> list[Any]:
    """As `parallel`, but one job after another in this process; `show`: whether it is the one with the bar."""
    results = []
    with tqdm(
        total=total * len(items), unit=unit, desc=label, mininterval=1.0, smoothing=0.05, disable=not show
    ) as bar:
        for i, item in enumerate(items):
            results.append(job(item, _reporter(bar, i * total) if show else lambda done: None))
    return results


def _reporter(bar: tqdm, before: int) -> Progress:
    """Moves the bar by one job's units, `before` of which belong to earlier jobs."""
    fresh = True

    def progress(done: int) -> None:
        nonlocal fresh
        new = before + done - bar.n
        if fresh:  # what was found done took no time, so it is no part of the speed
            bar.initial += new
            bar.n = bar.last_print_n = bar.n + new
            bar.refresh()
        else:
            bar.update(new)
        fresh = False

    return progress


_counters: Any = None


def _start_worker(counters: Any) -> None:
    global _counters
    _counters = counters
    die_with_parent()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _run_job(job: Callable[[Any, Progress], Any], index: int, item: Any) -> Any:
    def progress(done: int) -> None:
        _counters[index] = done

    return job(item, progress)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self):
        self.start = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self.start
