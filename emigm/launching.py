"""How a stage is started and ended (its command line, its lock, its processes, one line where it cannot go on), and its
jobs on the cores of one machine, under one progress bar with an ETA. No torch."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NoReturn

from tqdm import tqdm

from emigm.config.benchmark import load_benchmark
from emigm.config.errors import REFUSALS, RunError, UserError, check, refusal
from emigm.config.paths import STATE
from emigm.io import lock

LOCK_TRIES = 30  # tenths of a second: workers of a killed run hold a lock until the system has ended them too
ERROR_DELAY = 3.0  # seconds by which an error of another process than the main one is held back until they have met
LAUNCHED = "EMIGM_LAUNCHED"  # set in the environment of processes that `launch` started
AGAIN = "type the same command again, and it goes on where it stopped"
PR_SET_PDEATHSIG, M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = 1, -1, -3  # of Linux, and of glibc
Progress = Callable[[int], None]
"""Called by a job with the number of its units that are done; first of all with what an earlier run left done."""
Job = Callable[[Any, Progress], Any]


def run_stage(stage: Callable[..., None], *arguments: str, one_process: bool = False) -> None:
    """Parse the command line (`--params` and one option for each of `arguments`) and run stage(benchmark, **options).

    `one_process`: the stage has no use for several, and `run.launcher` is not for it.
    """
    module = sys.modules[stage.__module__]  # whose own name is "__main__"
    parser = argparse.ArgumentParser(description=(module.__doc__ or "").strip().split("\n")[0])
    parser.add_argument("--params", default="params.yaml", help="composed configuration (default: %(default)s)")
    for argument in arguments:
        parser.add_argument(f"--{argument}", required=True)
    options = vars(parser.parse_args())
    with in_one_line():
        benchmark = load_benchmark(options.pop("params"))
        if not one_process:
            launch(benchmark.run.launcher)
        with only_one(benchmark.name, "-".join([module.__spec__.name.rpartition(".")[2], *options.values()])):
            stage(benchmark, **options)


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """End the command in one line on a user's mistake, Ctrl-C, a disk's refusal or the end of another of its processes;
    and end it with DVC or the launcher, where that started it: a failed run must not go on behind its back."""
    if {"DVC_STAGE", "LOCAL_RANK"} & os.environ.keys():
        stages = sys.modules.get("emigm.stages")  # has noted who it was before seconds of imports
        die_with_parent(stages.STARTED_BY if stages else os.getppid())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    except UserError as e:
        _end(1, f"error: {e}")
    except KeyboardInterrupt:
        _end(128 + signal.SIGINT, f"interrupted; {AGAIN}")
    except OSError as e:
        if e.errno not in REFUSALS:
            raise
        _end(1, f"error: {refusal(e)}")
    except RuntimeError as e:  # torch has no type of its own for what gloo says
        if place()[1] == 1 or not ("gloo" in str(e) or type(e).__name__.startswith("Dist")):
            raise
        _end(1, f"error: another process of this stage has ended; {AGAIN}")


def _end(status: int, message: str) -> NoReturn:
    """Exit with the message, unless another process has said what ends them all."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a second Ctrl-C does not wait for anything
        signal.signal(number, signal.SIG_DFL)
    rank, dist, messages = place()[0], sys.modules.get("torch.distributed"), None
    if dist and dist.is_initialized():
        with contextlib.suppress(RuntimeError):  # the process that counts can have ended
            messages = dist.distributed_c10d._get_default_store().add("messages", 1)
    if messages is None and rank:  # the end of the main process, which says the same, ends this one meanwhile
        time.sleep(ERROR_DELAY)
    if messages in (None, 1):
        print(message + (f" (process {rank})" if rank else ""), file=sys.stderr)
    sys.exit(status)


@contextlib.contextmanager
def only_one(benchmark: str, stage: str) -> Iterator[None]:
    """Hold the lock on a stage of a benchmark in this workspace (of several processes, the main one does) until the
    process ends, killed or not; raises RunError where the same stage runs already."""
    if place()[0]:
        yield
        return
    path = STATE / benchmark / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', stage)}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        tries = LOCK_TRIES
        while lock(file.fileno()) is False:
            time.sleep(0.1)
            tries -= 1
            if not tries:
                running = f"stage {stage} of benchmark {benchmark} is running already in this folder"
                raise RunError(f"{path}: {running}; wait until it has ended, or end it")
        yield


def place() -> tuple[int, int, int]:
    """(rank, number of processes, rank on this machine), as torchrun or srun say; (0, 1, 0) without either."""
    names = (("RANK", "SLURM_PROCID", 0), ("WORLD_SIZE", "SLURM_NTASKS", 1), ("LOCAL_RANK", "SLURM_LOCALID", 0))
    # SLURM sets its variables in an interactive allocation too, where nothing was launched.
    slurm = LAUNCHED in os.environ and "RANK" not in os.environ
    return tuple(int(os.environ.get(by_srun if slurm else by_torchrun, n)) for by_torchrun, by_srun, n in names)


def launch(launcher: str | None) -> None:
    """Start this command again under `launcher`, in place of this process, unless that has happened already.

    In a stage's command DVC would take another number of processes for another result.
    """
    if launcher is None or {LAUNCHED, "LOCAL_RANK"} & os.environ.keys():
        return
    command = [*shlex.split(os.path.expandvars(launcher)), "-m", sys.modules["__main__"].__spec__.name, *sys.argv[1:]]
    exists = shutil.which(command[0]) is not None
    check(exists, f"run.launcher: no command {command[0]!r}; install it or set another launcher")
    os.environ[LAUNCHED] = "1"
    os.execvp(command[0], command)


# Jobs


def die_with_parent(parent: int) -> None:
    """Have the system kill this process when the one that started it is killed, so that it cannot go on beside a second
    run; where `parent` has ended before this call, the process ends here."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if parent != os.getppid():
            os.kill(os.getpid(), signal.SIGKILL)


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next tensor: otherwise page faults cost 6% of a training step of the small
    models on a CPU."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # bytes; the most that glibc takes
        libc.mallopt(M_TRIM_THRESHOLD, 2**30)


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel(job: Job, items: Sequence[Any], total: int, unit: str, label: str) -> list[Any]:
    """[job(item, progress) for item in items], on all cores, one thread each, under one progress bar with an ETA.

    Small models use two cores better as two single-threaded processes than as one with two threads. Every job runs to
    its end even when another fails; then the first failure is raised.

    Args:
        job: a module's function.
        items: its arguments.
        total: units of work in one job.
        unit: their name.
        label: what the bar is called.

    Raises:
        RunError: the system ended a worker process.
    """
    # Forked workers share what is imported already; a child of a spawn imports torch again, for seconds.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    counters, workers = context.Array("q", len(items)), min(len(items), cores())
    with ProcessPoolExecutor(workers, context, _start_worker, (counters, os.getpid())) as pool:
        try:
            futures = [pool.submit(_run_job, job, i, item) for i, item in enumerate(items)]
            with _bar(total * len(items), unit, label) as bar:
                waiting = set(futures)
                while waiting:
                    _, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                    bar.update(sum(counters) - bar.n)
            return [f.result() for f in futures]
        except BrokenProcessPool as e:
            raise RunError(
                f"{label}: the system ended a worker process, as it does where memory runs out; free some, or leave "
                "fewer cores to this command (taskset), and type it again: it goes on where it stopped"
            ) from e
        except KeyboardInterrupt:  # for its workers the pool would wait
            for worker in multiprocessing.active_children():
                worker.kill()
            raise


def in_turn(job: Job, items: Sequence[Any], total: int, unit: str, label: str, show: bool) -> list[Any]:
    """As `parallel`, but one job after another in this process; `show`: whether it is the one with the bar."""
    with _bar(total * len(items), unit, label, show) as bar:
        return [job(item, _reporter(bar, i * total)) for i, item in enumerate(items)]


def _bar(total: int, unit: str, label: str, show: bool = True) -> tqdm:
    return tqdm(total=total, unit=unit, desc=label, mininterval=1.0, smoothing=0.05, disable=not show)


def _reporter(bar: tqdm, before: int) -> Progress:
    """Moves the bar by one job's units, `before` of which belong to earlier jobs."""
    started = False

    def progress(done: int) -> None:
        nonlocal started
        if started or bar.disable:
            bar.update(before + done - bar.n)
        else:  # what an earlier run did took no time, so it is no part of the speed
            bar.initial += before + done - bar.n
            bar.n = bar.last_print_n = before + done
            bar.refresh()
        started = True

    return progress


_counters: Any = None


def _start_worker(counters: Any, parent: int) -> None:
    global _counters
    _counters = counters
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches all; the parent ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent(parent)
    keep_freed_memory()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _run_job(job: Job, index: int, item: Any) -> Any:
    return job(item, functools.partial(_counters.__setitem__, index))


def ahead(read: Callable[[Any], Any], items: Iterable[Any], *, threaded: bool) -> Iterator[Any]:
    """read(item) for every item, in order; `threaded`: a thread reads each while the caller works with the last."""
    if not threaded:
        yield from map(read, items)
        return
    with ThreadPoolExecutor(1) as thread:
        waiting: deque = deque()
        for item in items:
            waiting.append(thread.submit(read, item))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        if waiting:
            yield waiting.popleft().result()
