"""Composing: a benchmark's source, with what it inherits, becomes the one file that DVC and the stages read.

`benchmarks/<name>/benchmark.yaml` is written by people and may say `extends: <other>`. `emigm compose` writes from it
the composed `params.yaml` (of the default benchmark at the repository's root, of every other in its own folder) and
that folder's copy of the root's dvc.yaml. Both are committed, and a test compares them. No torch here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from emigm.config.benchmark import Benchmark, parse_params
from emigm.config.errors import check
from emigm.config.parsing import known, parse_yaml, read_yaml
from emigm.io import write_atomically

FOLDER = Path("benchmarks")
SOURCE = "benchmark.yaml"
DEFAULT = "mnist"  # what plain `dvc repro` runs, composed into params.yaml at the root


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
    tree = _source(name, root)
    images_of = tree.setdefault("images_of", name)
    along_training = (tree.get("evaluation") or {}).get("snapshots") is not None
    notebooks, sizes, models_of = tree.pop("notebooks", None), tree.get("sizes", []), tree.get("models_of") or name
    lacks = "notebooks names none; its page shows at least one, such as [scores]"
    check(isinstance(notebooks, list) and notebooks, f"{FOLDER / name / SOURCE}: {lacks}")
    return {
        "root": "." if name == DEFAULT else "../..",
        "params": params_file(name).as_posix(),
        "makes": [name] if images_of == name else [],
        "models_of": models_of,
        "trains": sizes if models_of == name else [],
        "snapshots": sizes if along_training else [],
        "reveal": sizes[-1:] if "reveal" in notebooks else [],
        "tracked": list(sizes) if name == DEFAULT else [],  # its models are small
        "notebooks": notebooks,
        "benchmark": {"name": name, **{k: v for k, v in tree.items() if k != "name"}},
    }


def _each(sampling: dict[str, Any], source: Path) -> dict[str, Any]:
    """Sampling configurations with those that name `each` written out.

    `"exp_{N}": {each: {N: [4, 16]}, settings: {steps: "{N}", schedule: exp}}` stands for exp_4 and exp_16: one for each
    combination of values, but for those whose guidance interval would be empty.
    """
    written: dict[str, Any] = {}
    for pattern, entry in sampling.items():
        entry = dict(entry)
        values = entry.pop("each", {})
        for combination in itertools.product(*values.values()):
            names = dict(zip(values, combination, strict=True))
            filled = _filled(entry, names)
            low, high = filled.get("settings", {}).get("cfg_interval", (0.0, 1.0))
            if not values or low < high:
                name = pattern.format(**{k: str(v).replace(".", "") for k, v in names.items()}) if values else pattern
                check(name not in written, f"{source}: sampling: two configurations are called {name}; rename one")
                written[name] = filled
    return written


def _filled(tree: Any, names: dict[str, Any]) -> Any:
    """The tree with every value "{name}" replaced by what the name stands for."""
    if isinstance(tree, dict):
        return {key: _filled(value, names) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_filled(value, names) for value in tree]
    return names.get(tree[1:-1], tree) if isinstance(tree, str) and tree[:1] == "{" else tree


def _source(name: str, root: Path, heirs: tuple[str, ...] = ()) -> dict[str, Any]:
    """What the benchmark's source says, merged onto what it extends; `heirs` extend it."""
    path = FOLDER / name / SOURCE
    tree = read_yaml(root / path)
    tree["sampling"] = _each(tree.get("sampling") or {}, path)
    if "budgets" in tree and tree["budgets"] is None:  # all that this file names
        tree["budgets"] = list(tree["sampling"])
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    known(f"{path}: extends", parent, sources(root))
    circle = parent in (name, *heirs)
    check(not circle, f"{path}: extends: {parent} extends it in turn; remove one of them")
    return merged(_source(parent, root, (name, *heirs)), tree)


def merged(below: Any, above: Any) -> Any:
    """`above` merged onto `below`, mapping by mapping."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return {k: merged(below.get(k), above[k]) if k in above else below[k] for k in {**below, **above}}


def composed_text(name: str, root: Path = Path()) -> str:
    """What the composed file holds; raises ConfigError where it is no valid benchmark."""
    tree = compose(name, root)
    parse_params(tree, str(FOLDER / name / SOURCE))
    head = f"# Composed by `emigm compose` from {FOLDER.as_posix()}/{name}/{SOURCE}; edit that and compose again.\n"
    return head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120)


def write_composed(root: Path = Path()) -> list[Path]:
    """Write every benchmark's composed file and its copy of the root's dvc.yaml; returns the files that changed."""
    names, changed = _benchmarks(root), []
    pipeline = (root / "dvc.yaml").read_bytes()
    for name in names:
        params = root / params_file(name)
        contents = {params: composed_text(name, root).encode(), params.with_name("dvc.yaml"): pipeline}
        for path, content in contents.items():
            if not path.is_file() or path.read_bytes() != content:
                write_atomically(path, lambda p, content=content: p.write_bytes(content))
                changed.append(path)
    return changed


def _benchmarks(root: Path) -> list[str]:
    names = sources(root)
    check(bool(names), f"{root / FOLDER}: no benchmarks; run from the repository's root or below")
    return names


def find_root(start: Path) -> Path | None:
    """The checkout of a folder: the nearest at or above it with dvc.yaml and benchmarks/; None: there is none."""
    folders = (start, *start.parents)
    return next((f for f in folders if (f / "dvc.yaml").is_file() and (f / FOLDER).is_dir()), None)


def compose_benchmark(name: str | None, overrides: Sequence[str] = (), root: Path = Path()) -> Benchmark:
    """The benchmark that `dvc repro` runs, with settings changed as `overridden` says; name None: the default one."""
    name = name or DEFAULT
    return parse_params(overridden(name, overrides, root), str(params_file(name)))


def overridden(name: str, overrides: Sequence[str], root: Path = Path()) -> dict[str, Any]:
    """The tree of a composed file, with settings changed as `dvc exp run -S <override>` does.

    Args:
        name: a benchmark.
        overrides: such as "benchmark.weights=trained", or "+benchmark.<key>=<value>" as DVC wants it of a key that the
            file leaves out.
        root: of the repository.

    Raises:
        ConfigError: the benchmark is unknown, or an override is not written as one.
    """
    known("benchmark", name, _benchmarks(root))
    tree = read_yaml(root / params_file(name))
    for override in overrides:
        key, separator, value = override.partition("=")
        *path, last = key.removeprefix("+").split(".")
        is_setting = separator and last and path[:1] == ["benchmark"]
        check(is_setting, f"-S {override}: write -S benchmark.<key>=<value>")
        node = tree
        for step in path:
            node = node.setdefault(step, {})
            check(isinstance(node, dict), f"-S {override}: {step} is no mapping, so nothing lies below it")
        node[last] = parse_yaml(value, f"-S {override}")
    return tree
