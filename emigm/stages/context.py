"""What every stage has: its benchmark, its processes, its folder of unfinished work, and its record."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from emigm.config.benchmark import Benchmark
from emigm.config.paths import STATE
from emigm.distributed import join
from emigm.pools import Progress, in_turn, parallel
from emigm.records.record import cpu_seconds, write_record


class StageRun:
    """One run of a stage by this process.

    Args:
        benchmark: the settings.
        name: of the stage and its record, such as "sample-xs-16".
    """

    def __init__(self, benchmark: Benchmark, name: str):
        self.benchmark, self.name = benchmark, name
        self.world = join(benchmark.run)
        self.state = STATE / benchmark.name / name
        self.world.check_shared(self.state)

    def map(self, job: Callable[[Any, Progress], Any], items: Sequence[Any], total: int, unit: str) -> list[Any]:
        """[job(item, progress) for item in items], `total` units each: at once on the cores where the stage is one
        process on a CPU, else one after another, each shared by all processes."""
        label = f"{self.name} of {self.benchmark.name}"
        if self.world.is_plain:
            return parallel(job, items, total, unit, label)
        return in_turn(job, items, total, unit, label, self.world.is_main)

    def finish(self, results: dict[str, Any], **record: Any) -> None:
        """Write the record (`write_record`'s arguments); the main process calls `clean` when all outputs lie in place.

        Every process calls this."""
        others = sum(self.world.gather(cpu_seconds())[1:])
        if self.world.is_main:
            where = {"device": self.world.device, "processes": self.world.size, "others_cpu_seconds": others}
            write_record(self.benchmark, self.name, results, **where, **record)

    def clean(self) -> None:
        """Remove the folder of unfinished work."""
        if self.world.is_main:
            shutil.rmtree(self.state, ignore_errors=True)
