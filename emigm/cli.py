"""The `emigm` command: what users do outside the pipeline (the pipeline itself is `dvc repro`)."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from emigm.config.compose import compose_benchmark, find_root, write_composed
from emigm.config.errors import REFUSALS, ConfigError, UserError, check, refusal
from emigm.config.parsing import known, parse, read_yaml
from emigm.config.paths import results_folder, samples_folder, samples_name
from emigm.config.schema import ModelConfig, Precision, Schedule
from emigm.paper.settings import PAPER_KEYS, PAPER_MODELS

SPEED = Path("results/speed/measured")  # where `emigm bench` keeps its records
VERBS: dict[str, tuple[Callable[..., int | None], tuple[Any, ...]]] = {}
"""Name -> what runs, whose docstring is the verb's help in one line and examples in others, and its arguments."""


def verb(name: str, *arguments: Any) -> Callable:
    """Decorator: the function is `emigm <name>`; it takes the parsed arguments by name and returns an exit status."""
    return lambda run: VERBS.setdefault(name, (run, arguments))[0]


def arg(*names: str, **settings: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """An argument of a verb, as `argparse.ArgumentParser.add_argument` takes it."""
    return names, settings


def numbers(text: str) -> list[int]:
    """ "0,2,5-7" => [0, 2, 5, 6, 7]."""
    listed: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if ends is None or (ends[2] and int(ends[2]) < int(ends[1])):
            raise argparse.ArgumentTypeError(f"{text!r}: write numbers and ranges, such as 0,2,5-7")
        listed += range(int(ends[1]), int(ends[2] or ends[1]) + 1)
    return listed


def paper_model(name: str) -> ModelConfig:
    """The architecture of a released name, or that of a file: ModelConfig's keys, or a model folder's config.json."""
    if name in PAPER_KEYS:
        return PAPER_MODELS[PAPER_KEYS[name]]
    try:
        allowed = f"{', '.join(PAPER_KEYS)}, or a YAML or JSON file with the keys of ModelConfig"
        check(Path(name).is_file(), f"unknown model {name!r} (allowed: {allowed})")
        tree = read_yaml(Path(name))
        return parse(ModelConfig, tree.get("model", tree), name)
    except ConfigError as e:
        raise argparse.ArgumentTypeError(str(e)) from None


DEVICE = arg("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one")
FOLDER = arg("folder", type=Path, help="model folder: model.safetensors and config.json")
BENCHMARK = (
    arg("benchmark", nargs="?", help="such as imagenet256 (default: the one that plain dvc repro runs)"),
    arg("-S", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="as of dvc exp run"),
)
SAMPLING = (
    arg("--steps", type=int, metavar="N", help="mask-prediction steps"),
    arg("--solver-steps", type=int, metavar="K", help="evaluations of the diffusion head for a token"),
    arg("--cfg-scale", type=float, metavar="SCALE", help="guidance scale; 1: none"),
    arg("--cfg-interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help="guidance acts at times in (LOW, HIGH]"),
    arg("--schedule", choices=get_args(Schedule), help="mask schedule"),
    arg("--precision", choices=get_args(Precision), help="of the network's matrix products"),
)


def import_from_checkout() -> None:
    """Have `tests` and `benchmarks` found, which are no part of the package; torch-fidelity brings another `tests`."""
    root = Path(__file__).parents[1]
    cloned = (root / "tests" / "official").is_dir()
    check(cloned, "this command needs the repository, not the installed package alone; run it in a clone")
    sys.path.insert(0, str(root))


@verb(
    "generate",
    arg(
        "model",
        help="model folder, a benchmark's model such as mnist-h, released 256-l or .pth, or owner/name on the Hub",
    ),
    arg("--classes", type=numbers, required=True, help="such as 0,1,2 or 0-9"),
    arg("--seeds", type=numbers, default=[0], help="sampling seeds, such as 0,1 (default: 0)"),
    arg("--out", type=Path, required=True, metavar="FILE.png", help="where the images go"),
    *SAMPLING,
    arg("--autoencoder", type=Path, metavar="PATH", help="weights of KL-16 or DC-AE (default: the model's own)"),
    DEVICE,
    arg("--batch", type=int, default=16, metavar="B", help="images made at once (default: %(default)s)"),
)
def generate(model: str, classes: list[int], seeds: list[int], out: Path, batch: int, **options: Any) -> None:
    """write images of a model as one PNG: a row for each seed, a column for each class
    emigm generate mnist-h --classes 0-9 --seeds 0,1,2 --out grid.png
    emigm generate models/mnist/h/seed0 --classes 0-9 --out grid.png
    emigm generate 256-l --classes 207,360 --out grid.png"""
    from emigm.tools.generate import generate_grid

    check(batch >= 1, f"--batch {batch}: must be at least 1")
    beside = {name: options.pop(name) for name in ("autoencoder", "device")}
    given = {name: value for name, value in options.items() if value is not None}
    sampling = generate_grid(model, classes, seeds, out, given=given, batch=batch, **beside)
    print(f"{out}: {len(seeds)} seeds x {len(classes)} classes, {sampling}")


@verb("parity", arg("--official", type=Path, required=True, help="folder of a clone of ML-GSAI/eMIGM"))
def parity(official: Path) -> int:
    """compare with a clone of the official code, number by number
    emigm parity --official ../eMIGM"""
    import_from_checkout()
    from tests.official.parity import main

    return main(official)


@verb(
    "bench",
    arg("--official", type=Path, help="folder of a clone of ML-GSAI/eMIGM (default: no ratios)"),
    arg("--size", nargs="+", choices=[*PAPER_KEYS], metavar="MODEL", help="such as 512-l (default: 256-xs)"),
    DEVICE,
    arg("--batch", type=int, metavar="B", help="images at once (default: 64 on a GPU, 1 or 2 on a CPU)"),
    arg("--repeats", type=int, default=3, help="of every measurement, after one to warm up (default: %(default)s)"),
    arg("--threads", type=int, help="of the CPU (default: 1)"),
    arg("--compile", action="store_true", help="our networks by torch.compile"),
    arg("--embedded", action="store_true", help="the default benchmark's training and start-up instead"),
    arg("--steps", type=int, help="--embedded: of training, by model (default: 20)"),
    arg("--out", type=Path, help=f"folder of the records (default: {SPEED})"),
)
def bench(**options: Any) -> int:
    """measure speed, against the machine's peak GEMM throughput (MFU) and the official code
    emigm bench --official ../eMIGM --size 256-xs 512-xs
    emigm bench --embedded"""
    import_from_checkout()
    from benchmarks.speed.command import main

    return main(argparse.Namespace(**options), SPEED)


@verb(
    "import",
    arg("file", type=Path, help="the released .pth"),
    arg("folder", type=Path, help="model folder to write"),
    arg("--model", type=paper_model, metavar="NAME|FILE",
        help="such as 256-xs, or a YAML or JSON file with the architecture (default: by the shapes)"),
    arg("--token", choices=("official", "ema"), default="official",
        help="shared fake and mask token: the raw one the official evaluation computes with, or the average"),
)  # fmt: skip
def import_checkpoint(file: Path, folder: Path, model: ModelConfig | None, token: str) -> None:
    """turn a released .pth into a model folder, model.safetensors and config.json
    emigm import eMIGM_large_256_checkpoint.pth models/large-256"""
    from emigm.model.checkpoints import import_official
    from emigm.model.model import CONFIG_FILE, WEIGHTS_FILE

    check(not (file / CONFIG_FILE).is_file(), f"{file}: a model folder already, which needs no import; use it as it is")
    others = {p.name for p in folder.glob("[!.]*")} - {CONFIG_FILE, WEIGHTS_FILE}
    holds = f"holds other files than a model's ({min(others, default='')})"
    check(not others, f"{folder}: {holds}; name a new folder")
    source = import_official(file, folder, model, token=token)["source"]
    print(f"{folder}: {source['architecture'] or 'model'} from {source['file']} (sha256 {source['sha256']})")
    if shared := source.get("shared_token"):
        print(f"shared fake and mask token: {shared['used']}, {shared['max_difference']:.2e} from the other value")


@verb("export", FOLDER, arg("file", type=Path, help=".pth to write"))
def export_checkpoint(folder: Path, file: Path) -> None:
    """write a model folder as an official .pth
    emigm export models/large-256 large-256.pth"""
    from emigm.model.checkpoints import export_official

    export_official(folder, file)
    print(f"{file}: written")


@verb(
    "push",
    FOLDER,
    arg("repository", help="owner/name; it is made where it does not exist"),
    arg("--private", action="store_true", help="make a new repository private"),
)
def push(folder: Path, repository: str, private: bool) -> None:
    """upload a model folder to the Hugging Face Hub, where `emigm generate owner/name` finds it
    emigm push models/mnist/h/seed0 me/emigm-mnist --private"""
    from emigm.api import push_to_hub
    from emigm.tools.generate import benchmark_sampling

    print(push_to_hub(folder, repository, sampling=benchmark_sampling(folder), private=private))


@verb("compose")
def compose() -> None:
    """write params.yaml and dvc.yaml of every benchmark from its benchmarks/*/benchmark.yaml
    emigm compose"""
    for path in write_composed():
        print(f"{path}: written")


@verb("doctor", *BENCHMARK)
def doctor(benchmark: str | None, settings: list[str]) -> int:
    """check what a benchmark needs
    emigm doctor imagenet256"""
    from emigm.tools import doctor

    return doctor.doctor(compose_benchmark(benchmark, settings))


@verb("fetch", *BENCHMARK)
def fetch(benchmark: str | None, settings: list[str]) -> int:
    """get the released files that a benchmark needs, or make a dry run's random ones; what is there is checked
    emigm fetch mnist
    emigm fetch imagenet256
    emigm fetch imagenet256 -S 'benchmark.sizes=[xs]'"""
    from emigm.tools import fetch

    composed = compose_benchmark(benchmark, settings)
    if composed.random_files:  # what makes them is no part of the package
        import_from_checkout()
    return fetch.fetch(composed)


@verb("compare", *BENCHMARK, arg("--allow-missing", action="store_true", help="cells that have not run do not count"))
def compare(benchmark: str | None, settings: list[str], allow_missing: bool) -> int:
    """hold a benchmark's results against those the paper reports
    emigm compare imagenet256 --allow-missing"""
    from emigm.tools import compare

    return compare.compare(compose_benchmark(benchmark, settings), allow_missing)


@verb(
    "verify",
    arg("benchmark", nargs="*", help="such as mnist (default: all that have results here)"),
    arg("--against", metavar="REV|FOLDER", help="revision, or another's results/ (default: HEAD)"),
    arg("--deep", action="store_true", help="generate and score a random chunk of every model again"),
    arg("--seed", type=int, help="of the choice of chunks (default: a new one, which is printed)"),
    arg("--json", type=Path, metavar="FILE", help="write all findings there"),
    arg("--log", type=Path, metavar="FILE", help="append the verdict in one line of JSON, with the machine"),
    arg("--note", metavar="TEXT", help="what that line has to say beside (with --log)"),
)
def verify(benchmark: list[str], against: str | None, deep: bool, seed: int | None, **files: Any) -> int:
    """check the integrity of results, and whether they reproduce the tracked ones
    emigm verify
    emigm verify mnist --against HEAD~1
    emigm verify mnist --against ../theirs/results --deep"""
    from emigm.io import write_json
    from emigm.verify import verdict, verify

    check(seed is None or deep, "--seed has no effect without --deep")
    check(files["note"] is None or files["log"], "--note has no effect without --log")
    findings = verify.verify(benchmark, against, deep=deep)
    if deep:
        from emigm.verify.deep import generate_again

        generate_again(findings, seed)
    if files["json"]:
        write_json(files["json"], verdict.as_json(findings, against))
    print(verdict.report(findings, against))
    if files["log"]:
        verdict.log(files["log"], findings, against, files["note"])
    return 0 if verdict.holds(findings) else 1


@verb(
    "npz",
    arg("benchmark", help="such as imagenet256"),
    arg("size", help="model, such as xs"),
    arg("budget", help="mask-prediction steps N, such as 16"),
    arg("out", type=Path, help=".npz to write"),
    arg("--train-seed", type=int, help="default: the first"),
    arg("--seed", type=int, help="sampling seed (default: the first)"),
)
def export_samples(benchmark: str, size: str, budget: str, out: Path, train_seed: int | None, seed: int | None) -> None:
    """write generated images as an .npz for ADM's evaluator
    emigm npz imagenet256 xs 16 samples.npz"""
    from emigm.metrics.adm import export_npz
    from emigm.records.record import read_record

    composed = compose_benchmark(benchmark)
    known(f"size of {benchmark}", size, composed.ladder)
    known(f"budget of {benchmark}", budget, composed.sampling)
    record = results_folder(benchmark) / "records" / f"sample-{size}-{budget}.json"
    settings, seeds = read_record(record)["settings"], []
    for sampled, asked in ((settings["train_seeds"], train_seed), (settings["seeds"], seed)):
        seeds.append(sampled[0] if asked is None else asked)
        with_seeds = f"sampled with seeds {', '.join(map(str, sampled))}"
        check(seeds[-1] in sampled, f"{record}: {with_seeds}, not {asked}")
    folder = samples_folder(composed, size, budget) / samples_name(*seeds)
    export_npz(folder, out, settings["images"])
    print(f"{out}: {settings['images']:,} images of {folder}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(prog="emigm", description=__doc__)
    verbs = root.add_subparsers(required=True, metavar="VERB")
    own = "default: the model's own, which are those of its benchmark's largest N, or the paper's at N = 16"
    for name, (run, arguments) in VERBS.items():
        text, *examples = inspect.getdoc(run).splitlines()
        epilog, style = "\n  ".join(["examples:", *examples]), argparse.RawDescriptionHelpFormatter
        parser = verbs.add_parser(name, help=text, description=text, epilog=epilog, formatter_class=style)
        parser.set_defaults(run=run)
        sampling = parser.add_argument_group("sampling settings", own) if SAMPLING[0] in arguments else parser
        for argument in arguments:
            names, settings = argument
            (sampling if argument in SAMPLING else parser).add_argument(*names, **settings)
    return root


def enter_checkout(options: argparse.Namespace) -> None:
    """Go to the root of the checkout that we stand in; files that the user named stay those of the folder we leave."""
    here = Path.cwd()
    root = find_root(here)
    if root in (None, here):
        return
    for name, value in vars(options).items():
        may_be_file = isinstance(value, str) and name in ("model", "against")  # or a released name, a revision
        is_file = isinstance(value, Path) or (may_be_file and os.path.exists(value))
        if is_file and not os.path.isabs(value):
            setattr(options, name, type(value)(os.path.relpath(value, root)))
    os.chdir(root)


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; a user's mistake is one line on stderr and exit status 1, an interrupt one line and 130."""
    options = parser().parse_args(arguments)
    try:
        enter_checkout(options)
        run, given = options.run, {name: value for name, value in vars(options).items() if name != "run"}
        return run(**given) or 0
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except OSError as e:
        if e.errno not in REFUSALS:
            raise
        print(f"error: {refusal(e)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: no file is left half written; type the same command to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
