"""Jobs on the cores of one machine, under one progress bar with an ETA."""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tqdm import tqdm

from emigm.config.errors import RunError

PR_SET_PDEATHSIG, M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = 1, -1, -3  # of Linux, and of glibc
Progress = Callable[[int], None]
"""Called by a job with the number of its units that are done; first of all with what an earlier run left done."""
Job = Callable[[Any, Progress], Any]


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
