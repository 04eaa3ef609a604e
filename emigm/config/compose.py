"""Composing: a benchmark's source, with what it inherits, becomes the one file that DVC and the stages read.

`benchmarks/<name>/benchmark.yaml` is written by people and may say `extends: <other>`. `emigm compose` writes from it
the composed `params.yaml` (of the default benchmark at the repository's root, of every other in its own folder) and
makes that folder's dvc.yaml a link to the root's. Both are committed, and a test compares them. No torch here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from emigm.config.benchmark import Benchmark, load_benchmark, parse_params
from emigm.config.errors import ConfigError
from emigm.config.parsing import known, parse_yaml, read_yaml
from emigm.io import write_atomically

FOLDER = Path("benchmarks")
SOURCE = "benchmark.yaml"
DEFAULT = "mnist"
"""The benchmark that plain `dvc repro` runs, composed into params.yaml at the root."""


def sources(root: Path = Path()) -> list[str]:
    """Names of the benchmarks that have a source."""
    return sorted(p.parent.name for p in (root / FOLDER).glob(f"*/{SOURCE}"))


def params_file(name: str) -> Path:
    """The composed file of a benchmark, relative to the root."""
    return Path("params.yaml") if name == DEFAULT else FOLDER / name / "params.yaml"


def compose(name: str, root: Path = Path()) -> dict[str, Any]:
    """The tree of a benchmark's composed file: its source merged onto what it extends, key by key.

    Mappings are merged; lists and plain values replace what they stand for.

    Raises:
        ConfigError: no such benchmark, its sources extend each other in a circle, or it names no notebooks.
    """
    known("benchmark", name, sources(root))
    tree: dict[str, Any] = {}
    for source in reversed(_lineage(name, root)):
        tree = _merge(tree, {k: v for k, v in read_yaml(root / FOLDER / source / SOURCE).items() if k != "extends"})
    file = params_file(name)
    up = [".."] * (len(file.parts) - 1)
    images_of = tree.setdefault("images_of", name)
    along_training = (tree.get("evaluation") or {}).get("snapshots") is not None
    notebooks, sizes = tree.pop("notebooks", None), tree.get("sizes", [])
    if not (isinstance(notebooks, list) and notebooks):
        source = FOLDER / name / SOURCE
        raise ConfigError(f"{source}: notebooks names none; its page shows at least one, such as [scores]")
    return {
        "root": str(PurePosixPath(*up)) if up else ".",
        "params": file.as_posix(),
        "makes": [name] if images_of == name else [],
        "snapshots": sizes if along_training else [],
        "reveal": sizes[-1:] if "reveal" in notebooks else [],
        "notebooks": notebooks,
        "benchmark": {"name": name, **{k: v for k, v in tree.items() if k != "name"}},
    }


def _lineage(name: str, root: Path) -> list[str]:
    """The benchmark, what it extends, what that extends, ..."""
    names = [name]
    while (parent := read_yaml(root / FOLDER / names[-1] / SOURCE).get("extends")) is not None:
        where = f"{FOLDER / names[-1] / SOURCE}: extends"
        known(where, parent, sources(root))
        if parent in names:
            raise ConfigError(f"{where}: {parent} extends it in turn; remove one of them")
        names.append(parent)
    return names


def _merge(below: Any, above: Any) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return {k: _merge(below.get(k), above[k]) if k in above else below[k] for k in {**below, **above}}


def composed_text(name: str, root: Path = Path()) -> str:
    """What the composed file holds; raises ConfigError where it is no valid benchmark."""
    tree = compose(name, root)
    parse_params(tree, str(FOLDER / name / SOURCE))
    head = f"# Composed by `emigm compose` from {FOLDER.as_posix()}/{name}/{SOURCE}; edit that and compose again.\n"
    return head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120)


def write_composed(root: Path = Path()) -> list[Path]:
    """Write every benchmark's composed file and the link to the pipeline; returns the files that changed.

    Where links cannot be made, a copy of the pipeline is written instead.
    """
    changed = []
    pipeline = root / "dvc.yaml"
    for name in sources(root):
        path, text = root / params_file(name), composed_text(name, root)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_atomically(path, lambda p, text=text: p.write_text(text, encoding="utf-8"))
            changed.append(path)
        link = path.with_name("dvc.yaml")
        if link != pipeline and not (link.is_file() and link.read_bytes() == pipeline.read_bytes()):
            link.unlink(missing_ok=True)
            try:
                link.symlink_to(os.path.relpath(pipeline, link.parent))
            except OSError:
                link.write_bytes(pipeline.read_bytes())
            changed.append(link)
    return changed


def compose_benchmark(name: str | None, overrides: Sequence[str] = (), root: Path = Path()) -> Benchmark:
    """The benchmark that `dvc repro` runs, with settings changed as `dvc exp run -S <override>` does.

    Args:
        name: a benchmark; None: the default one.
        overrides: such as "benchmark.weights=trained", or "+benchmark.<key>=<value>" as DVC wants it of a key that the
            file leaves out.
        root: of the repository.

    Raises:
        ConfigError: the benchmark is unknown, or an override or a value in it is wrong.
    """
    name = DEFAULT if name is None else name
    if not (root / FOLDER).is_dir():
        raise ConfigError(f"{root / FOLDER}: no such folder; run from the repository's root")
    known("benchmark", name, sources(root))
    if not overrides:
        return load_benchmark(root / params_file(name))
    tree = read_yaml(root / params_file(name))
    for override in overrides:
        key, separator, value = override.partition("=")
        *path, last = key.removeprefix("+").split(".")
        if not separator or not last or path[:1] != ["benchmark"]:
            raise ConfigError(f"-S {override}: write -S benchmark.<key>=<value>")
        node = tree
        for step in path:
            node = node.setdefault(step, {})
            if not isinstance(node, dict):
                raise ConfigError(f"-S {override}: {step} is no mapping, so nothing lies below it")
        node[last] = parse_yaml(value, f"-S {override}")
    return parse_params(tree, str(params_file(name)))
