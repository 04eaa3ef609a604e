"""Compose a benchmark from `benchmarks/` as DVC does, for commands outside the pipeline. No torch in this module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emigm.config.benchmark import Benchmark, load_benchmark, parse_benchmark
from emigm.config.errors import ConfigError
from emigm.config.parsing import known

FOLDER = Path("benchmarks")


def compose_benchmark(name: str | None, overrides: Sequence[str] = (), folder: Path = FOLDER) -> Benchmark:
    """What `dvc exp run -S benchmark=<name> -S <override> ...` would run.

    Args:
        name: a file of `<folder>/benchmark`; None: params.yaml as it is, without overrides.
        overrides: in Hydra's words, such as "benchmark.weights=trained".
        folder: Hydra's configuration.

    Raises:
        ConfigError: the benchmark is unknown, or an override or a value in it is wrong.
    """
    if name is None:
        if overrides:
            raise ConfigError("-S needs the benchmark's name before it; without one params.yaml is taken as it is")
        return load_benchmark()
    if not (folder / "benchmark").is_dir():
        raise ConfigError(f"{folder}/benchmark: no such folder; run from the repository's root")
    known("benchmark", name, sorted(p.stem for p in (folder / "benchmark").glob("*.yaml")))

    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(str(folder.resolve()), version_base=None):
            tree = OmegaConf.to_container(compose("config", [f"benchmark={name}", *overrides]), resolve=True)
    except (HydraException, OmegaConfBaseException) as e:
        reason = str(e.__cause__ or e).splitlines()[0]
        raise ConfigError(
            f"-S {' -S '.join(overrides)}: {reason}; write -S benchmark.<key>=<value>, or "
            "-S +benchmark.<key>=<value> for a key that the file leaves out"
        ) from e
    return parse_benchmark(tree["benchmark"])
