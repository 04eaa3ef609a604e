"""What `emigm bench` does: the options checked against each other, and the measurement that they ask for."""

import argparse
from pathlib import Path

from benchmarks.speed import embedded
from benchmarks.speed.bench import bench
from emigm.config.errors import ConfigError
from emigm.config.schema import RunConfig
from emigm.distributed import join


def main(options: argparse.Namespace, folder: Path) -> int:
    """Measure, and write the records into `folder`, where the options name no other; returns the exit status."""
    for name in ("repeats", "threads", "batch", "steps"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value}: must be at least 1")
    for name in ("official", "size", "batch", "threads", "compile"):
        if options.embedded and getattr(options, name):
            raise ConfigError(f"--{name} has no effect with --embedded")
    if options.embedded and options.device == "cuda":
        raise ConfigError("--device cuda has no effect with --embedded, which measures the CPU")
    if options.steps is not None and not options.embedded:
        raise ConfigError("--steps has no effect without --embedded")
    out = options.out or folder
    if options.embedded:
        print(embedded.measure_beside(folder, out, options.steps or 20, options.repeats))
        return 0
    given = {"official": options.official, "repeats": options.repeats, "batch": options.batch}
    given |= {"compiled": options.compile, "threads": options.threads or 1, "out": out}
    device = join(RunConfig(device=options.device)).device.split(":")[0]
    for path in bench(options.size or ["256-xs"], device=device, **given):
        print(f"{path}: written")
    return 0
