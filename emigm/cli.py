"""The `emigm` command: what users do outside the pipeline (the pipeline itself is `dvc repro`)."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args, get_type_hints

from emigm.config.errors import ConfigError, UserError
from emigm.config.parsing import known, parse, read_yaml
from emigm.config.schema import ModelConfig, SampleConfig
from emigm.paper.settings import PAPER_MODELS, paper_key

SPEED = Path("results/speed/measured")
"""Where `emigm bench` keeps its records."""

SAMPLING = ("steps", "solver_steps", "cfg_scale", "cfg_interval", "schedule", "precision")
"""Sampling settings that `emigm generate` takes."""


def generate(options: argparse.Namespace) -> int:
    from emigm.tools.generate import generate_grid

    given = {k: value for k in SAMPLING if (value := getattr(options, k)) is not None}
    if "cfg_interval" in given:
        given["cfg_interval"] = tuple(given["cfg_interval"])
    if options.batch < 1:
        raise ConfigError(f"--batch {options.batch}: must be at least 1")
    sampling = generate_grid(
        options.model,
        options.classes,
        options.seeds,
        options.out,
        given=given,
        autoencoder=options.autoencoder,
        device=options.device,
        batch=options.batch,
    )
    print(f"{options.out}: {len(options.seeds)} seeds x {len(options.classes)} classes, {sampling}")
    return 0


def import_from_checkout() -> None:
    """Have `tests` and `benchmarks` found, which are no part of the package; torch-fidelity brings another `tests`."""
    sys.path.insert(0, str(Path(__file__).parents[1]))


def parity(options: argparse.Namespace) -> int:
    import_from_checkout()
    from tests.official.parity import main as compare

    return compare(options.official)


def bench(options: argparse.Namespace) -> int:
    import_from_checkout()
    from benchmarks.speed import embedded
    from benchmarks.speed.bench import bench as measure
    from emigm.config.schema import RunConfig
    from emigm.distributed import join

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
    if options.embedded:
        print(embedded.measure_beside(SPEED, options.out, options.steps or 20, options.repeats))
        return 0
    given = {"official": options.official, "repeats": options.repeats, "batch": options.batch}
    given |= {"compiled": options.compile, "threads": options.threads or 1, "out": options.out}
    device = join(RunConfig(device=options.device)).device.split(":")[0]
    for path in measure(options.size or ["256-xs"], device=device, **given):
        print(f"{path}: written")
    return 0


def import_checkpoint(options: argparse.Namespace) -> int:
    from emigm.model.checkpoints import import_official
    from emigm.model.model import CONFIG_FILE, WEIGHTS_FILE

    if (options.file / CONFIG_FILE).is_file():
        raise ConfigError(f"{options.file}: a model folder already, which needs no import; use it as it is")
    there = {p.name for p in options.folder.glob("[!.]*")}  # hidden: what a killed import left
    if others := sorted(there - {CONFIG_FILE, WEIGHTS_FILE}):
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


def compose(options: argparse.Namespace) -> int:
    from emigm.config.compose import write_composed

    for path in write_composed():
        print(f"{path}: written")
    return 0


def push(options: argparse.Namespace) -> int:
    from emigm.tools.generate import benchmark_sampling
    from emigm.tools.hub import push_to_hub

    sampling = benchmark_sampling(options.folder)
    print(push_to_hub(options.folder, options.repository, sampling=sampling, private=options.private))
    return 0


def fetch(options: argparse.Namespace) -> int:
    from emigm.config.compose import compose_benchmark
    from emigm.tools.fetch import fetch as get

    return get(compose_benchmark(options.benchmark, options.set))


def doctor(options: argparse.Namespace) -> int:
    from emigm.config.compose import compose_benchmark
    from emigm.tools.doctor import doctor as examine

    return examine(compose_benchmark(options.benchmark, options.set))


def compare(options: argparse.Namespace) -> int:
    from emigm.config.compose import compose_benchmark
    from emigm.tools.compare import compare as against_paper

    return against_paper(compose_benchmark(options.benchmark, options.set), options.allow_missing)


def export_samples(options: argparse.Namespace) -> int:
    from emigm.config.compose import compose_benchmark
    from emigm.config.paths import results_folder
    from emigm.metrics.adm import export_npz
    from emigm.records.record import read_record

    benchmark = compose_benchmark(options.benchmark)
    known(f"size of {options.benchmark}", options.size, benchmark.ladder)
    known(f"budget of {options.benchmark}", options.budget, benchmark.sampling)
    record = results_folder(options.benchmark) / "records" / f"sample-{options.size}-{options.budget}.json"
    settings = read_record(record)["settings"]
    chosen = {"train_seeds": options.train_seed, "seeds": options.seed}
    train_seed, seed = (known_seed(settings[key], value, record) for key, value in chosen.items())
    folder = Path("samples") / options.benchmark / options.size / options.budget / f"train{train_seed}-seed{seed}"
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
    found = examine(options.benchmark, options.against, deep=options.deep)
    if options.deep:
        from emigm.verify.deep import generate_again

        generate_again(found, options.seed)
    if options.json:
        write_json(options.json, as_json(found, options.against))
    print(report(found, options.against))
    if options.log:
        log(options.log, found, options.against, options.note)
    return 0 if holds(found) else 1


def known_seed(sampled: list[int], chosen: int | None, record: Path) -> int:
    """The chosen seed, or the first."""
    if chosen is None:
        return sampled[0]
    if chosen not in sampled:
        raise ConfigError(f"{record}: sampled with seeds {', '.join(map(str, sampled))}, not {chosen}")
    return chosen


def paper_model(name: str) -> ModelConfig:
    """The architecture of a released name, or that of a file: ModelConfig's keys, or a model folder's config.json."""
    if key := paper_key(name):
        return PAPER_MODELS[key]
    if not Path(name).is_file():
        models = ", ".join(f"{r}-{s}" for r, s in PAPER_MODELS)
        raise argparse.ArgumentTypeError(
            f"unknown model {name!r} (allowed: {models}, or a YAML or JSON file with the keys of ModelConfig)"
        )
    try:
        tree = read_yaml(Path(name))
        return parse(ModelConfig, tree.get("model", tree), name)
    except ConfigError as e:
        raise argparse.ArgumentTypeError(str(e)) from None


def numbers(text: str) -> list[int]:
    """ "0,2,5-7" => [0, 2, 5, 6, 7]."""
    found: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if ends is None or (ends[2] and int(ends[2]) < int(ends[1])):
            raise argparse.ArgumentTypeError(f"{text!r}: write numbers and ranges, such as 0,2,5-7")
        found += range(int(ends[1]), int(ends[2] or ends[1]) + 1)
    return found


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(prog="emigm", description=__doc__.split("\n")[0])
    verbs = root.add_subparsers(required=True, metavar="VERB")

    def add(run: Callable[[argparse.Namespace], int], name: str, text: str, *examples: str) -> argparse.ArgumentParser:
        epilog = "\n".join(("examples:" if len(examples) > 1 else "example:", *(f"  {e}" for e in examples)))
        verb = verbs.add_parser(
            name, help=text, description=text, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        verb.set_defaults(run=run)
        return verb

    verb = add(
        generate,
        "generate",
        "write images of a model as one PNG: a row for each seed, a column for each class",
        "emigm generate models/mnist/h/seed0 --classes 0-9 --seeds 0,1,2 --out grid.png",
        "emigm generate 256-l --classes 207,360 --out grid.png",
    )
    verb.add_argument(
        "model",
        help="model folder, released name such as 256-l, released .pth, or a repository on the Hub as owner/name",
    )
    verb.add_argument("--classes", type=numbers, required=True, help="such as 0,1,2 or 0-9")
    verb.add_argument("--seeds", type=numbers, default=[0], help="sampling seeds, such as 0,1 (default: 0)")
    verb.add_argument("--out", type=Path, required=True, metavar="FILE.png", help="where the images go")
    own = "default: the model's own, which are those of its benchmark's largest budget, or the paper's at N = 16"
    group = verb.add_argument_group("sampling settings", own)
    group.add_argument("--steps", type=int, metavar="N", help="mask-prediction steps")
    group.add_argument("--solver-steps", type=int, metavar="K", help="evaluations of the diffusion head for a token")
    group.add_argument("--cfg-scale", type=float, metavar="SCALE", help="guidance scale; 1: none")
    hints = get_type_hints(SampleConfig)
    interval = {"type": float, "nargs": 2, "metavar": ("LOW", "HIGH")}
    group.add_argument("--cfg-interval", **interval, help="guidance acts at times above LOW, up to HIGH")
    group.add_argument("--schedule", choices=get_args(hints["schedule"]), help="mask schedule")
    group.add_argument("--precision", choices=get_args(hints["precision"]), help="of the network's matrix products")
    verb.add_argument(
        "--autoencoder", type=Path, metavar="PATH", help="weights of KL-16 or DC-AE (default: the model's own)"
    )
    add_device(verb)
    verb.add_argument("--batch", type=int, default=16, metavar="B", help="images made at once (default: %(default)s)")

    verb = add(
        parity,
        "parity",
        "compare with a clone of the official code, number by number",
        "emigm parity --official ../eMIGM",
    )
    verb.add_argument("--official", type=Path, required=True, help="folder of a clone of ML-GSAI/eMIGM")

    verb = add(
        bench,
        "bench",
        "measure speed, against the machine's matrix rate and the official code; writes results/speed/measured",
        "emigm bench --official ../eMIGM --size 256-xs 512-xs",
        "emigm bench --embedded",
    )
    verb.add_argument("--official", type=Path, help="folder of a clone of ML-GSAI/eMIGM (default: no ratios)")
    models = [f"{r}-{s}" for r, s in PAPER_MODELS]
    verb.add_argument("--size", nargs="+", choices=models, metavar="MODEL", help="such as 512-l (default: 256-xs)")
    add_device(verb)
    verb.add_argument("--batch", type=int, metavar="B", help="images at once (default: 64 on a GPU, 1 or 2 on a CPU)")
    verb.add_argument(
        "--repeats", type=int, default=3, help="of every measurement, after one to warm up (default: %(default)s)"
    )
    verb.add_argument("--threads", type=int, help="of the CPU (default: 1)")
    verb.add_argument("--compile", action="store_true", help="our networks by torch.compile")
    verb.add_argument("--embedded", action="store_true", help="the default benchmark's training and start-up instead")
    verb.add_argument("--steps", type=int, help="--embedded: of training, by size (default: 20)")
    verb.add_argument("--out", type=Path, default=SPEED, help="folder of the records (default: %(default)s)")

    verb = add(
        import_checkpoint,
        "import",
        "turn a released .pth into a model folder, model.safetensors and config.json",
        "emigm import eMIGM_large_256_checkpoint.pth models/large-256",
    )
    verb.add_argument("file", type=Path, help="the released .pth")
    verb.add_argument("folder", type=Path, help="model folder to write")
    verb.add_argument(
        "--model",
        type=paper_model,
        metavar="NAME|FILE",
        help="such as 256-xs, or a YAML or JSON file with the architecture (default: found out from the shapes)",
    )
    verb.add_argument(
        "--token",
        choices=("official", "ema"),
        default="official",
        help="shared fake and mask token: the raw one the official evaluation computes with, or the average",
    )

    verb = add(
        export_checkpoint,
        "export",
        "write a model folder as an official .pth",
        "emigm export models/large-256 large-256.pth",
    )
    verb.add_argument("folder", type=Path, help="model folder: model.safetensors and config.json")
    verb.add_argument("file", type=Path, help=".pth to write")

    verb = add(
        push,
        "push",
        "upload a model folder to the Hugging Face Hub, where `emigm generate owner/name` finds it",
        "emigm push models/mnist/h/seed0 me/emigm-mnist --private",
    )
    verb.add_argument("folder", type=Path, help="model folder: model.safetensors and config.json")
    verb.add_argument("repository", help="owner/name; it is made where it does not exist")
    verb.add_argument("--private", action="store_true", help="make a new repository private")

    add(
        compose,
        "compose",
        "write every benchmark's params.yaml and link to the pipeline from benchmarks/*/benchmark.yaml",
        "emigm compose",
    )

    verb = add(doctor, "doctor", "check what a benchmark needs, and estimate what it takes", "emigm doctor imagenet256")
    add_benchmark(verb)

    verb = add(
        fetch,
        "fetch",
        "get the released files that a benchmark needs, or make a dry run's random ones; goes on where it stopped",
        "emigm fetch imagenet256",
        "emigm fetch imagenet256-dry",
        "emigm fetch imagenet256 -S 'benchmark.sizes=[xs]'",
    )
    add_benchmark(verb)

    verb = add(
        compare,
        "compare",
        "hold a benchmark's results against those the paper reports",
        "emigm compare imagenet256",
        "emigm compare imagenet256 --allow-missing",
    )
    add_benchmark(verb)
    verb.add_argument("--allow-missing", action="store_true", help="cells that have not run do not count")

    verb = add(
        verify,
        "verify",
        "say whether results are whole, and whether they reproduce the tracked ones",
        "emigm verify",
        "emigm verify mnist --against HEAD~1",
        "emigm verify mnist --against ../theirs/results --deep",
    )
    verb.add_argument("benchmark", nargs="*", help="such as mnist (default: all that have results here)")
    verb.add_argument("--against", metavar="REV|FOLDER", help="revision, or another's results/ (default: HEAD)")
    verb.add_argument("--deep", action="store_true", help="generate and score a random chunk of every size again")
    verb.add_argument("--seed", type=int, help="of the choice of chunks (default: a new one, which is printed)")
    verb.add_argument("--json", type=Path, metavar="FILE", help="write all that was found there")
    verb.add_argument(
        "--log", type=Path, metavar="FILE", help="append the verdict in one line of JSON, with the machine"
    )
    verb.add_argument("--note", metavar="TEXT", help="what that line has to say beside (with --log)")

    verb = add(
        export_samples,
        "npz",
        "write generated images as an .npz for ADM's evaluator",
        "emigm npz imagenet256 xs 16 samples.npz",
    )
    verb.add_argument("benchmark", help="such as imagenet256")
    verb.add_argument("size", help="model size, such as xs")
    verb.add_argument("budget", help="mask-prediction steps N, such as 16")
    verb.add_argument("out", type=Path, help=".npz to write")
    verb.add_argument("--train-seed", type=int, help="default: the first")
    verb.add_argument("--seed", type=int, help="sampling seed (default: the first)")
    return root


def add_device(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one"
    )


def add_benchmark(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("benchmark", nargs="?", help="such as imagenet256 (default: the one that plain dvc repro runs)")
    verb.add_argument(
        "-S", dest="set", action="append", default=[], metavar="KEY=VALUE", help="as of dvc exp run; may be repeated"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; a user's mistake is one line on stderr and exit status 1, an interrupt one line and 130."""
    options = parser().parse_args(arguments)
    try:
        return options.run(options)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: no file is left half written; type the same command to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
