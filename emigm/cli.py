"""The `emigm` command: what users do outside the pipeline (the pipeline itself is `dvc repro`)."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from emigm.config.compose import compose_benchmark, find_root, write_composed
from emigm.config.errors import ConfigError, UserError
from emigm.config.parsing import known, parse, read_yaml
from emigm.config.paths import results_folder, samples_folder, samples_name
from emigm.config.schema import ModelConfig, Precision, Schedule
from emigm.paper.settings import PAPER_MODELS, paper_key

SPEED = Path("results/speed/measured")  # where `emigm bench` keeps its records
MODELS = [f"{resolution}-{size}" for resolution, size in PAPER_MODELS]


def generate(options: argparse.Namespace) -> int:
    from emigm.tools.generate import generate_grid

    given = {name: value for name in GIVEN if (value := getattr(options, name)) is not None}
    if options.batch < 1:
        raise ConfigError(f"--batch {options.batch}: must be at least 1")
    beside = {name: getattr(options, name) for name in ("autoencoder", "device", "batch")}
    sampling = generate_grid(options.model, options.classes, options.seeds, options.out, given=given, **beside)
    print(f"{options.out}: {len(options.seeds)} seeds x {len(options.classes)} classes, {sampling}")
    return 0


def import_from_checkout() -> None:
    """Have `tests` and `benchmarks` found, which are no part of the package; torch-fidelity brings another `tests`."""
    root = Path(__file__).parents[1]
    if not (root / "tests" / "official").is_dir():
        raise ConfigError("this command needs the repository, not the installed package alone; run it in a clone")
    sys.path.insert(0, str(root))


def parity(options: argparse.Namespace) -> int:
    import_from_checkout()
    from tests.official.parity import main as compare

    return compare(options.official)


def bench(options: argparse.Namespace) -> int:
    import_from_checkout()
    from benchmarks.speed.command import main as measure

    return measure(options, SPEED)


def import_checkpoint(options: argparse.Namespace) -> int:
    from emigm.model.checkpoints import import_official
    from emigm.model.model import CONFIG_FILE, WEIGHTS_FILE

    if (options.file / CONFIG_FILE).is_file():
        raise ConfigError(f"{options.file}: a model folder already, which needs no import; use it as it is")
    present = {p.name for p in options.folder.glob("[!.]*")}  # hidden: what a killed import left
    if others := sorted(present - {CONFIG_FILE, WEIGHTS_FILE}):
        raise ConfigError(f"{options.folder}: holds other files than a model's ({others[0]}); name a new folder")
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


def push(options: argparse.Namespace) -> int:
    from emigm.tools.generate import benchmark_sampling
    from emigm.tools.hub import push_to_hub

    sampling = benchmark_sampling(options.folder)
    print(push_to_hub(options.folder, options.repository, sampling=sampling, private=options.private))
    return 0


def compose(options: argparse.Namespace) -> int:
    for path in write_composed():
        print(f"{path}: written")
    return 0


def fetch(options: argparse.Namespace) -> int:
    from emigm.tools.fetch import fetch as get

    benchmark = compose_benchmark(options.benchmark, options.set)
    if benchmark.random_files:  # what makes them is no part of the package
        import_from_checkout()
    return get(benchmark)


def doctor(options: argparse.Namespace) -> int:
    from emigm.tools.doctor import doctor as examine

    return examine(compose_benchmark(options.benchmark, options.set), options.gpus)


def compare(options: argparse.Namespace) -> int:
    from emigm.tools.compare import compare as against_paper

    return against_paper(compose_benchmark(options.benchmark, options.set), options.allow_missing)


def export_samples(options: argparse.Namespace) -> int:
    from emigm.metrics.adm import export_npz
    from emigm.records.record import read_record

    benchmark = compose_benchmark(options.benchmark)
    known(f"size of {options.benchmark}", options.size, benchmark.ladder)
    known(f"budget of {options.benchmark}", options.budget, benchmark.sampling)
    record = results_folder(options.benchmark) / "records" / f"sample-{options.size}-{options.budget}.json"
    settings = read_record(record)["settings"]
    seeds = []
    for sampled, chosen in ((settings["train_seeds"], options.train_seed), (settings["seeds"], options.seed)):
        seeds.append(sampled[0] if chosen is None else chosen)
        if seeds[-1] not in sampled:
            raise ConfigError(f"{record}: sampled with seeds {', '.join(map(str, sampled))}, not {chosen}")
    folder = samples_folder(benchmark, options.size, options.budget) / samples_name(*seeds)
    export_npz(folder, options.out, settings["images"])
    print(f"{options.out}: {settings['images']:,} images of {folder}")
    return 0


def verify(options: argparse.Namespace) -> int:
    from emigm.io import write_json
    from emigm.verify.verdict import as_json, holds, log, report
    from emigm.verify.verify import verify as examine

    for name, needs in (("seed", "deep"), ("note", "log")):
        if getattr(options, name) is not None and not getattr(options, needs):
            raise ConfigError(f"--{name} has no effect without --{needs}")
    findings = examine(options.benchmark, options.against, deep=options.deep)
    if options.deep:
        from emigm.verify.deep import generate_again

        generate_again(findings, options.seed)
    if options.json:
        write_json(options.json, as_json(findings, options.against))
    print(report(findings, options.against))
    if options.log:
        log(options.log, findings, options.against, options.note)
    return 0 if holds(findings) else 1


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
    if key := paper_key(name):
        return PAPER_MODELS[key]
    if not Path(name).is_file():
        allowed = f"{', '.join(MODELS)}, or a YAML or JSON file with the keys of ModelConfig"
        raise argparse.ArgumentTypeError(f"unknown model {name!r} (allowed: {allowed})")
    try:
        tree = read_yaml(Path(name))
        return parse(ModelConfig, tree.get("model", tree), name)
    except ConfigError as e:
        raise argparse.ArgumentTypeError(str(e)) from None


class Verb(NamedTuple):
    """What `emigm <name>` runs, what it does in words, its arguments, and examples."""

    run: Callable[[argparse.Namespace], int]
    text: str
    arguments: Sequence[Any]
    examples: tuple[str, ...]


def arg(*names: str, **settings: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """An argument of a verb, as `argparse.ArgumentParser.add_argument` takes it."""
    return names, settings


# fmt: off
DEVICE = arg("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one")
FOLDER = arg("folder", type=Path, help="model folder: model.safetensors and config.json")
BENCHMARK = (
    arg("benchmark", nargs="?", help="such as imagenet256 (default: the one that plain dvc repro runs)"),
    arg("-S", dest="set", action="append", default=[], metavar="KEY=VALUE", help="as of dvc exp run; may be repeated"),
)
SAMPLING = (
    arg("--steps", type=int, metavar="N", help="mask-prediction steps"),
    arg("--solver-steps", type=int, metavar="K", help="evaluations of the diffusion head for a token"),
    arg("--cfg-scale", type=float, metavar="SCALE", help="guidance scale; 1: none"),
    arg("--cfg-interval", type=float, nargs=2, metavar=("LOW", "HIGH"),
        help="guidance acts at times above LOW, up to HIGH"),
    arg("--schedule", choices=get_args(Schedule), help="mask schedule"),
    arg("--precision", choices=get_args(Precision), help="of the network's matrix products"),
)
GIVEN = [names[0][2:].replace("-", "_") for names, _ in SAMPLING]
VERBS = {
    "generate": Verb(generate, "write images of a model as one PNG: a row for each seed, a column for each class", (
        arg("model",
            help="model folder, a benchmark's model such as mnist-h, released name such as 256-l, released .pth, or a "
            "repository on the Hub as owner/name"),
        arg("--classes", type=numbers, required=True, help="such as 0,1,2 or 0-9"),
        arg("--seeds", type=numbers, default=[0], help="sampling seeds, such as 0,1 (default: 0)"),
        arg("--out", type=Path, required=True, metavar="FILE.png", help="where the images go"),
        *SAMPLING,
        arg("--autoencoder", type=Path, metavar="PATH", help="weights of KL-16 or DC-AE (default: the model's own)"),
        DEVICE,
        arg("--batch", type=int, default=16, metavar="B", help="images made at once (default: %(default)s)"),
    ), ("emigm generate mnist-h --classes 0-9 --seeds 0,1,2 --out grid.png",
        "emigm generate models/mnist/h/seed0 --classes 0-9 --out grid.png",
        "emigm generate 256-l --classes 207,360 --out grid.png")),
    "parity": Verb(parity, "compare with a clone of the official code, number by number", (
        arg("--official", type=Path, required=True, help="folder of a clone of ML-GSAI/eMIGM"),
    ), ("emigm parity --official ../eMIGM",)),
    "bench": Verb(bench, f"measure speed, against the machine's matrix rate and the official code; writes {SPEED}", (
        arg("--official", type=Path, help="folder of a clone of ML-GSAI/eMIGM (default: no ratios)"),
        arg("--size", nargs="+", choices=MODELS, metavar="MODEL", help="such as 512-l (default: 256-xs)"),
        DEVICE,
        arg("--batch", type=int, metavar="B", help="images at once (default: 64 on a GPU, 1 or 2 on a CPU)"),
        arg("--repeats", type=int, default=3, help="of every measurement, after one to warm up (default: %(default)s)"),
        arg("--threads", type=int, help="of the CPU (default: 1)"),
        arg("--compile", action="store_true", help="our networks by torch.compile"),
        arg("--embedded", action="store_true", help="the default benchmark's training and start-up instead"),
        arg("--steps", type=int, help="--embedded: of training, by size (default: 20)"),
        arg("--out", type=Path, help=f"folder of the records (default: {SPEED})"),
    ), ("emigm bench --official ../eMIGM --size 256-xs 512-xs", "emigm bench --embedded")),
    "import": Verb(import_checkpoint, "turn a released .pth into a model folder, model.safetensors and config.json", (
        arg("file", type=Path, help="the released .pth"),
        arg("folder", type=Path, help="model folder to write"),
        arg("--model", type=paper_model, metavar="NAME|FILE",
            help="such as 256-xs, or a YAML or JSON file with the architecture (default: found out from the shapes)"),
        arg("--token", choices=("official", "ema"), default="official",
            help="shared fake and mask token: the raw one the official evaluation computes with, or the average"),
    ), ("emigm import eMIGM_large_256_checkpoint.pth models/large-256",)),
    "export": Verb(export_checkpoint, "write a model folder as an official .pth", (
        FOLDER,
        arg("file", type=Path, help=".pth to write"),
    ), ("emigm export models/large-256 large-256.pth",)),
    "push": Verb(push, "upload a model folder to the Hugging Face Hub, where `emigm generate owner/name` finds it", (
        FOLDER,
        arg("repository", help="owner/name; it is made where it does not exist"),
        arg("--private", action="store_true", help="make a new repository private"),
    ), ("emigm push models/mnist/h/seed0 me/emigm-mnist --private",)),
    "compose": Verb(compose, "write params.yaml and dvc.yaml of every benchmark from its benchmarks/*/benchmark.yaml",
        (), ("emigm compose",)),
    "doctor": Verb(doctor, "check what a benchmark needs, and estimate what it takes", (
        *BENCHMARK,
        arg("--gpus", type=int, metavar="N", help="how N GPUs share each batch, and the time they take, instead"),
    ), ("emigm doctor imagenet256", "emigm doctor imagenet256 --gpus 32")),
    "fetch": Verb(fetch,
        "get the released files that a benchmark needs, or make a dry run's random ones; goes on where it stopped; "
        "checks the trained models that came with the repository",
        BENCHMARK, ("emigm fetch mnist", "emigm fetch imagenet256", "emigm fetch imagenet256-dry",
            "emigm fetch imagenet256 -S 'benchmark.sizes=[xs]'")),
    "compare": Verb(compare, "hold a benchmark's results against those the paper reports", (
        *BENCHMARK,
        arg("--allow-missing", action="store_true", help="cells that have not run do not count"),
    ), ("emigm compare imagenet256", "emigm compare imagenet256 --allow-missing")),
    "verify": Verb(verify, "say whether results are whole, and whether they reproduce the tracked ones", (
        arg("benchmark", nargs="*", help="such as mnist (default: all that have results here)"),
        arg("--against", metavar="REV|FOLDER", help="revision, or another's results/ (default: HEAD)"),
        arg("--deep", action="store_true", help="generate and score a random chunk of every size again"),
        arg("--seed", type=int, help="of the choice of chunks (default: a new one, which is printed)"),
        arg("--json", type=Path, metavar="FILE", help="write all that was found there"),
        arg("--log", type=Path, metavar="FILE", help="append the verdict in one line of JSON, with the machine"),
        arg("--note", metavar="TEXT", help="what that line has to say beside (with --log)"),
    ), ("emigm verify", "emigm verify mnist --against HEAD~1",
        "emigm verify mnist --against ../theirs/results --deep")),
    "npz": Verb(export_samples, "write generated images as an .npz for ADM's evaluator", (
        arg("benchmark", help="such as imagenet256"),
        arg("size", help="model size, such as xs"),
        arg("budget", help="mask-prediction steps N, such as 16"),
        arg("out", type=Path, help=".npz to write"),
        arg("--train-seed", type=int, help="default: the first"),
        arg("--seed", type=int, help="sampling seed (default: the first)"),
    ), ("emigm npz imagenet256 xs 16 samples.npz",)),
}
# fmt: on


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(prog="emigm", description=__doc__.split("\n")[0])
    verbs = root.add_subparsers(required=True, metavar="VERB")
    own = "default: the model's own, which are those of its benchmark's largest budget, or the paper's at N = 16"
    for name, (run, text, arguments, examples) in VERBS.items():
        epilog = "\n  ".join(("examples:" if len(examples) > 1 else "example:", *examples))
        style = argparse.RawDescriptionHelpFormatter
        verb = verbs.add_parser(name, help=text, description=text, epilog=epilog, formatter_class=style)
        verb.set_defaults(run=run)
        sampling = verb.add_argument_group("sampling settings", own) if SAMPLING[0] in arguments else verb
        for names, settings in arguments:
            (sampling if (names, settings) in SAMPLING else verb).add_argument(*names, **settings)
    return root


MAYBE_FILES = ("model", "against")  # or a name: of a released model, of a revision


def enter_checkout(options: argparse.Namespace) -> None:
    """Go to the root of the checkout that we stand in; files that the user named stay those of the folder we leave."""
    here = Path.cwd()
    root = find_root(here)
    if root in (None, here):
        return
    for name, value in vars(options).items():
        is_file = isinstance(value, Path) or (isinstance(value, str) and name in MAYBE_FILES and os.path.exists(value))
        if is_file and not os.path.isabs(value):
            setattr(options, name, type(value)(os.path.relpath(value, root)))
    os.chdir(root)


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; a user's mistake is one line on stderr and exit status 1, an interrupt one line and 130."""
    options = parser().parse_args(arguments)
    try:
        enter_checkout(options)
        return options.run(options)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: no file is left half written; type the same command to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
