"""The `emigm` command: what users do outside the pipeline (the pipeline itself is `dvc repro`)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from emigm.config.errors import ConfigError, UserError
from emigm.paper.settings import PAPER_MODELS


def parity(options: argparse.Namespace) -> int:
    from emigm.tools.parity import main as compare

    return compare(options.official)


def import_checkpoint(options: argparse.Namespace) -> int:
    from emigm.model.checkpoints import import_official

    facts = import_official(options.file, options.folder, options.model, token=options.token)
    source = facts["source"]
    print(f"{options.folder}: {source['architecture'] or 'model'} from {source['file']} (sha256 {source['sha256']})")
    if shared := source.get("shared_token"):
        print(f"shared fake and mask token: {shared['used']}, {shared['max_difference']:.2e} from the other value")
    return 0


def export_checkpoint(options: argparse.Namespace) -> int:
    from emigm.model.checkpoints import export_official

    export_official(options.folder, options.file)
    print(f"{options.file}: written")
    return 0


def compose(options: argparse.Namespace) -> int:
    from emigm.config.compose import write_composed

    for path in write_composed():
        print(f"{path}: written")
    return 0


def doctor(options: argparse.Namespace) -> int:
    from emigm.config.compose import compose_benchmark
    from emigm.tools.doctor import doctor as examine

    return examine(compose_benchmark(options.benchmark, options.set))


def compare(options: argparse.Namespace) -> int:
    from emigm.config.compose import compose_benchmark
    from emigm.tools.compare import compare as against_paper

    return against_paper(compose_benchmark(options.benchmark, options.set), options.allow_missing)


def export_samples(options: argparse.Namespace) -> int:
    from emigm.config.paths import results_folder
    from emigm.metrics.adm import export_npz
    from emigm.records.record import read_record

    record = results_folder(options.benchmark) / "records" / f"sample-{options.size}-{options.budget}.json"
    settings = read_record(record)["settings"]
    chosen = {"train_seeds": options.train_seed, "seeds": options.seed}
    train_seed, seed = (known_seed(settings[key], value, record) for key, value in chosen.items())
    folder = Path("samples") / options.benchmark / options.size / options.budget / f"train{train_seed}-seed{seed}"
    export_npz(folder, options.out, settings["images"])
    print(f"{options.out}: {settings['images']:,} images of {folder}")
    return 0


def known_seed(known: list[int], chosen: int | None, record: Path) -> int:
    """The chosen seed, or the first."""
    if chosen is None:
        return known[0]
    if chosen not in known:
        raise ConfigError(f"{record}: sampled with seeds {', '.join(map(str, known))}, not {chosen}")
    return chosen


def paper_model(name: str):
    resolution, _, size = name.partition("-")
    key = (int(resolution) if resolution.isdigit() else 0, size)
    if key not in PAPER_MODELS:
        known = ", ".join(f"{r}-{s}" for r, s in PAPER_MODELS)
        raise argparse.ArgumentTypeError(f"unknown model {name!r} (allowed: {known})")
    return PAPER_MODELS[key]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(prog="emigm", description=__doc__.split("\n")[0])
    verbs = root.add_subparsers(required=True, metavar="VERB")

    verb = verbs.add_parser("parity", help="compare with a clone of the official code, number by number")
    verb.add_argument("--official", type=Path, required=True, help="folder of a clone of ML-GSAI/eMIGM")
    verb.set_defaults(run=parity)

    verb = verbs.add_parser("import", help="turn a released .pth into model.safetensors and config.json")
    verb.add_argument("file", type=Path)
    verb.add_argument("folder", type=Path)
    verb.add_argument("--model", type=paper_model, help="such as 256-xs (default: found out from the shapes)")
    verb.add_argument(
        "--token",
        choices=("official", "ema"),
        default="official",
        help="shared fake and mask token: the raw one the official evaluation computes with, or the average",
    )
    verb.set_defaults(run=import_checkpoint)

    verb = verbs.add_parser("export", help="write a model folder as an official .pth")
    verb.add_argument("folder", type=Path)
    verb.add_argument("file", type=Path)
    verb.set_defaults(run=export_checkpoint)

    verb = verbs.add_parser(
        "compose", help="write every benchmark's params.yaml and link to the pipeline from benchmarks/*/benchmark.yaml"
    )
    verb.set_defaults(run=compose)

    verb = verbs.add_parser("doctor", help="check what a benchmark needs, and estimate what it takes")
    add_benchmark(verb)
    verb.set_defaults(run=doctor)

    verb = verbs.add_parser("compare", help="hold a benchmark's results against those the paper reports")
    add_benchmark(verb)
    verb.add_argument("--allow-missing", action="store_true", help="cells that have not run do not count")
    verb.set_defaults(run=compare)

    verb = verbs.add_parser("npz", help="write generated images as an .npz for ADM's evaluator")
    verb.add_argument("benchmark")
    verb.add_argument("size")
    verb.add_argument("budget")
    verb.add_argument("out", type=Path)
    verb.add_argument("--train-seed", type=int, help="default: the first")
    verb.add_argument("--seed", type=int, help="sampling seed (default: the first)")
    verb.set_defaults(run=export_samples)
    return root


def add_benchmark(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("benchmark", nargs="?", help="such as imagenet256 (default: the one in params.yaml)")
    verb.add_argument(
        "-S", dest="set", action="append", default=[], metavar="KEY=VALUE", help="as of dvc exp run; may be repeated"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; a user's mistake is one line on stderr and exit status 1."""
    options = parser().parse_args(arguments)
    try:
        return options.run(options)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
