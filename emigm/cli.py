"""The `emigm` command: what users do outside the pipeline (the pipeline itself is `dvc repro`)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from emigm.paper import PAPER_MODELS
from emigm.parsing import UserError


def parity(options: argparse.Namespace) -> int:
    from emigm.parity import main as compare

    return compare(options.official)


def import_checkpoint(options: argparse.Namespace) -> int:
    from emigm.checkpoints import import_official

    facts = import_official(options.file, options.folder, options.model, token=options.token)
    source = facts["source"]
    print(f"{options.folder}: {source['architecture'] or 'model'} from {source['file']} (sha256 {source['sha256']})")
    if shared := source.get("shared_token"):
        print(f"shared fake and mask token: {shared['used']}, {shared['max_difference']:.2e} from the other value")
    return 0


def export_checkpoint(options: argparse.Namespace) -> int:
    from emigm.checkpoints import export_official

    export_official(options.folder, options.file)
    print(f"{options.file}: written")
    return 0


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
    return root


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
