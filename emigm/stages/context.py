"""What every stage has: its benchmark, its processes, its folder of unfinished work, and its record."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any

from emigm.config.benchmark import Benchmark
from emigm.config.paths import STATE
from emigm.distributed import join
from emigm.launching import Progress, cores, in_turn, parallel
from emigm.records.record import cpu_seconds, write_record


class StageRun:
    """One run of a stage, whose name is that of its record ("sample-xs-16"), by this process."""

    def __init__(self, benchmark: Benchmark, name: str):
        self.benchmark, self.name = benchmark, name
        self.world = join(benchmark.run)
        self.state = STATE / benchmark.name / name
        self.world.check_shared(self.state)
        self.others_cpu_seconds = 0.0

    def map(self, job: Callable[[Any, Progress], Any], items: Sequence[Any], total: int, unit: str) -> list[Any]:
        """[job(item, progress) for item in items], `total` units each: at once on the cores where the stage is one
        process on a CPU, else one after another, each shared by all processes."""
        label = f"{self.name} of {self.benchmark.name}"
        if self.world.is_plain:
            return parallel(job, items, total, unit, label)
        return in_turn(job, items, total, unit, label, self.world.is_main)

    def workers(self, items: int) -> int:
        """How many processes `map` has work on so many items."""
        return min(items, cores()) if self.world.is_plain else self.world.size

    def goes_on(self) -> bool:
        """Every process calls this when its share of the work is done: waits for the others, and is true in the main
        process alone, which makes of it what the stage makes as a whole."""
        self.others_cpu_seconds = sum(self.world.gather(cpu_seconds())[1:])
        return self.world.is_main

    def finish(self, results: dict[str, Any], **record: Any) -> None:
        """Write the record (`write_record`'s arguments); called by the main process alone, as `clean` is."""
        where = {"device": self.world.device, "processes": self.world.size}
        write_record(self.benchmark, self.name, results, **where, others_cpu_seconds=self.others_cpu_seconds, **record)

    def clean(self) -> None:
        """Remove the folder of unfinished work, when all outputs lie in place."""
        shutil.rmtree(self.state, ignore_errors=True)
