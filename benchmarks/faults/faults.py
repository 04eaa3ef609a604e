"""Stages killed (-9) at random moments and started again: is everything byte for byte as without a kill?

python benchmarks/faults/faults.py --trials 1000        writes results/faults/kills.json and kills.md

In a temporary folder a tiny benchmark runs once without a kill. Then, again and again, one stage's outputs are removed;
the stage is started, killed after a random time, once or several times, and started a last time. In every other trial
its outputs are removed before each start, as `dvc repro` does; in those between they stay, as where a stage is started
by hand. Every fifth trial is of a stage of two processes, of which one, or what started them, is killed. Counted as
lost is a trial whose outputs differ from those of the same processes without a kill, whose last run fails, or that
leaves a process, a temporary file or a resume point behind. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib
import json
import os
import random
import runpy
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml
from tqdm import tqdm

from emigm import stages
from emigm.config.benchmark import KEYS
from emigm.io import sha256, write_atomically, write_json
from emigm.records.record import SCHEMA, provenance

BENCHMARK: dict[str, Any] = {
    "name": "tiny",
    "images_of": "tiny",
    "title": "Tiny digits",
    "dry_run": True,
    "sizes": ["xs"],
    "budgets": ["4"],
    "data": {"dataset": "digits", "holdout": 0.2},
    "autoencoder": {"kind": "pixels", "scale": 1.3},
    "extractor": {"kind": "cnn", "training": {"steps": 20, "batch": 64, "lr": 0.001, "seeds": [0, 1]}},
    "run": {"device": "cpu"},
    "evaluation": {"images": 70, "seeds": [0, 1], "chunk": 15, "cas_steps": 5},
    "gate": {"visible": [0, 8], "images": 64, "repeats": 1, "on_failure": "mark"},
    "model": {
        "grid": 8, "channels": 1, "patch": 2, "classes": 10, "heads": 2, "width": 8,
        "encoder_blocks": 1, "decoder_blocks": 1, "head_width": 8, "head_blocks": 1,
    },
    "train": {"steps": 12, "batch": 8, "lr": 0.001, "seeds": [0, 1], "checkpoint_every": 3},
    "ladder": {"xs": {}},
    "sampling": {"4": {"settings": {"steps": 4, "solver_steps": 4}}},
}  # fmt: skip
PARAMS = {key: [] for key in KEYS} | {"benchmark": BENCHMARK}  # what only dvc.yaml reads is empty
STAGES: dict[str, tuple[list[str], list[str]]] = {
    "prepare": (["prepare"], ["data/tiny/images"]),
    "extractor": (["extractor"], ["data/tiny/extractor"]),
    "encode": (["encode"], ["data/tiny/latents"]),
    "reference": (["reference"], ["data/tiny/reference.npz"]),
    "train-xs": (["train", "--size", "xs"], ["models/tiny/xs", "results/tiny/curves/xs.csv"]),
    "sample-xs-4": (["sample", "--size", "xs", "--budget", "4"], ["samples/tiny/xs/4", "results/tiny/grids/xs-4.png"]),
    "evaluate-xs": (["evaluate", "--size", "xs"], []),
}
"""By the name of its record: a stage's command, and what it makes beside the record."""
IN_SEVERAL = ("encode", "reference", "train-xs", "sample-xs-4", "evaluate-xs")
"""Stages that share their work among processes."""
EVERY = 5
"""Trials to one of two processes."""
MOST_KILLS = 3
"""Of one trial."""
GRACE = 1.0
"""Seconds that the system may take to end the processes of a killed stage."""
LONGEST = 300.0
"""Seconds after which a stage of the tiny benchmark hangs."""
LOG = "log.txt"

for name in ("sklearn.datasets", "torch._dynamo", *(f"emigm.stages.{command[0]}" for command, _ in STAGES.values())):
    importlib.import_module(name)  # once, and not in every trial, so that a kill finds stages at work


def start(stage: str, folder: Path, log_name: str = LOG, processes: int = 1) -> int:
    """Start a stage in `folder`, as the leader of a process group, its output in a file; returns its process, or what
    started its processes.

    What `python -m emigm.stages.<stage>` does, or torchrun of several, without seconds of imports.
    """
    starter = os.getpid()
    if process := os.fork():
        with contextlib.suppress(ProcessLookupError):
            os.setpgid(process, process)  # here too, so that the group is there for whoever kills it
        return process
    status = 1
    try:
        os.setpgid(0, 0)
        stages.STARTED_BY = starter  # as the stage's own module notes it; under DVC a stage ends with who started it
        os.chdir(folder)
        log = os.open(log_name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout = sys.stderr = os.fdopen(log, "w", buffering=1)
        if processes > 1:
            _launch(processes)
        tqdm.set_lock(threading.RLock())  # else one of all forked processes, which a killed one may hold for ever
        sys.argv = ["", *STAGES[stage][0][1:]]
        runpy.run_module(f"emigm.stages.{STAGES[stage][0][0]}", run_name="__main__", alter_sys=True)
        dist.destroy_process_group() if dist.is_initialized() else None  # no handler at exit runs here
        status = 0
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else 1
        if isinstance(e.code, str):
            print(e.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _launch(processes: int) -> None:
    """Return in each of so many new processes of one stage; this one waits for them and, as torchrun does, ends the
    others when one has failed."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    started, launcher, failed = [], os.getpid(), False
    for rank in map(str, range(processes)):
        if (process := os.fork()) == 0:
            os.environ.update(WORLD_SIZE=str(processes), MASTER_ADDR="localhost", MASTER_PORT=port)
            os.environ.update(RANK=rank, LOCAL_RANK=rank, DVC_STAGE="one")
            stages.STARTED_BY = launcher
            return
        started.append(process)
    while started:
        ended, status = os.wait()
        started.remove(ended)
        failed = failed or bool(status)
        for process in started if status else ():
            os.kill(process, signal.SIGKILL)
    os._exit(int(failed))


def run(stage: str, folder: Path, log_name: str = LOG, processes: int = 1) -> int:
    """Run a stage to its end; returns its exit status, or that of a killed process where it hangs."""
    process = start(stage, folder, log_name, processes)
    hung = threading.Timer(LONGEST, os.kill, (process, signal.SIGKILL))
    hung.start()
    try:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    finally:
        hung.cancel()


def run_and_kill(stage: str, folder: Path, after: float, processes: int, rng: random.Random) -> bool | None:
    """Start a stage and, after so many seconds, kill it, of several processes one or what started them; False: it had
    ended, None: it had failed by itself."""
    process = start(stage, folder, processes=processes)
    time.sleep(after)
    ended, status = os.waitpid(process, os.WNOHANG)
    if not ended:
        with contextlib.suppress(ProcessLookupError):
            os.kill(rng.choice([process, *(children(process) if processes > 1 else ())]), signal.SIGKILL)
        _, status = os.waitpid(process, 0)
    killed = not ended and (processes > 1 or os.WIFSIGNALED(status))
    return False if status == 0 else True if killed else None


def adopt_orphans() -> None:
    """Have children of killed children come to this process."""
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


def orphans(wait: float = 5.0) -> list[int]:
    """Processes of stages that went on although the stage was killed: children that came to this process, which is
    their reaper, and still work after `GRACE` seconds. Those that are left after `wait` seconds are killed."""
    begun, gone_on = time.monotonic(), set()
    while children(os.getpid()):
        passed = time.monotonic() - begun
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                gone_on |= {ended[0]} if passed > GRACE and ended[1] != signal.SIGKILL else set()
        if passed > wait:
            for process in children(os.getpid()):
                gone_on.add(process)
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
        time.sleep(0.01)
    return sorted(gone_on)


def children(parent: int) -> list[int]:
    """Processes that a process has started, or adopted."""
    fields = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            fields.append((int(path.parent.name), path.read_text().rsplit(")", 1)[1].split()))
    return [process for process, (_, started_by, *_) in fields if int(started_by) == parent]


def outputs(stage: str, folder: Path) -> dict[str, Any]:
    """Everything a stage makes: files by checksum, its record but for what a clock, not a seed, decides."""
    paths = [folder / path for path in STAGES[stage][1]]
    files = [p for path in paths for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file()]
    record = json.loads((folder / "results/tiny/records" / f"{stage}.json").read_text())
    del record["provenance"]
    return {str(p.relative_to(folder)): sha256(p) for p in files} | {"record": _timeless(record)}


def _timeless(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: _timeless(v) for k, v in tree.items() if "second" not in k}
    return [_timeless(v) for v in tree] if isinstance(tree, list) else tree


def leftovers(folder: Path) -> list[str]:
    """Files that a finished stage should not leave: temporaries, resume points."""
    state = [p for p in (folder / ".state").rglob("*") if p.is_file() and p.suffix != ".lock"]
    return [str(p.relative_to(folder)) for p in [*folder.rglob(".*.tmp"), *state]]


def remove_outputs(stage: str, folder: Path) -> None:
    """As DVC does before it runs a stage."""
    for path in [*STAGES[stage][1], f"results/tiny/records/{stage}.json"]:
        shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink(missing_ok=True)


Expected = tuple[dict[str, Any], float]
"""A stage's outputs without a kill, and the seconds that it takes."""


def trial(
    stage: str, folder: Path, expected: Expected, rng: random.Random, processes: int = 1, by_hand: bool = True
) -> tuple[int, str | None]:
    """Kill a stage at random moments, run it to its end, and compare; `by_hand`: what a killed run leaves stays.

    Returns:
        How many kills hit it; why the trial counts as lost, or None.
    """
    remove_outputs(stage, folder)
    kills, lost = 0, None
    for _ in range(rng.randint(1, MOST_KILLS)):
        hit = run_and_kill(stage, folder, rng.uniform(0, expected[1]), processes, rng)
        kills += hit is True
        if hit is None:
            lost = f"failed when started again: {(folder / LOG).read_text()[-1000:]}"
        if not by_hand:
            remove_outputs(stage, folder)
    if left := orphans():
        return kills, f"{len(left)} processes went on"
    if lost is None and run(stage, folder, processes=processes):
        lost = (folder / LOG).read_text()[-1000:] or "no message"
    if lost is None and (made := outputs(stage, folder)) != expected[0]:
        lost = f"other: {[k for k in expected[0].keys() | made.keys() if expected[0].get(k) != made.get(k)]}"
    if lost is None and (left := leftovers(folder)):
        lost = f"left: {left}"
    return kills, lost


def timed(stage: str, folder: Path, processes: int) -> Expected:
    """A stage's run without a kill; these trials stop where it fails."""
    begun = time.perf_counter()
    if run(stage, folder, processes=processes):
        raise SystemExit(f"{stage} failed without a kill:\n{(folder / LOG).read_text()}")
    return outputs(stage, folder), time.perf_counter() - begun


def run_whole(folder: Path) -> dict[tuple[str, int], Expected]:
    """Make `folder` a workspace of the tiny benchmark and run every stage without a kill, of several processes first
    where it knows them; by stage and number of processes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    expected = {}
    for stage in STAGES:
        for processes in (2, 1) if stage in IN_SEVERAL else (1,):
            remove_outputs(stage, folder)
            expected[stage, processes] = timed(stage, folder, processes)
    return expected


def table(record: dict[str, Any]) -> str:
    """The record as a page."""
    parts = [f"# {record['what']}"]
    for way, by_stage in record["stages"].items():
        keys = ("trials", "kills", "lost")
        rows = by_stage | {"all": {key: sum(row[key] for row in by_stage.values()) for key in keys}}
        lines = [f"| {name} | " + " | ".join(str(row[key]) for key in keys) + " |" for name, row in rows.items()]
        head = "| Stage | Trials | Kills that hit | Lost |\n|---|---:|---:|---:|"
        parts += [f"## {way[0].upper()}{way[1:]}", "\n".join([head, *lines])]
    device, commit = (record["provenance"][key] for key in ("device", "commit"))
    parts.append(
        "In a trial a stage is killed (-9) up to three times and started a last time. Lost: other bytes than without a "
        f"kill, a failure, or something left behind. On {device}, commit {str(commit)[:12]}."
    )
    parts += [f"- Lost: {loss['stage']} ({loss['how']}): {loss['why']}" for loss in record["losses"]]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of stages and moments")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it
    adopt_orphans()
    rng, facts = random.Random(options.seed), provenance("cpu")  # of the code that is loaded now
    names = {(stage, n): stage + (f", {n} processes" if n > 1 else "") for stage in STAGES for n in (1, 2)}
    ways = ("outputs removed before each start, as dvc repro does", "by hand, outputs stay")
    counts = {way: {name: Counter(trials=0, kills=0, lost=0) for name in names.values()} for way in ways}
    losses, total = [], Counter(trials=0, kills=0, lost=0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "workspace"
        expected = run_whole(folder)
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C: what was done by then is recorded
            for n in range(1, options.trials + 1):
                processes, by_hand = 2 if n % EVERY == 0 else 1, n % 2 == 0
                stage = rng.choice(IN_SEVERAL if processes > 1 else list(STAGES))
                name, way = names[stage, processes], ways[by_hand]
                kills, lost = trial(stage, folder, expected[stage, processes], rng, processes, by_hand)
                for count in (total, counts[way][name]):
                    count.update(trials=1, kills=kills, lost=int(lost is not None))
                if n % 25 == 0:
                    print(f"{n} trials, {len(losses)} lost", flush=True)
                if lost is not None:
                    losses.append({"stage": name, "how": way, "why": lost})
                    print(f"{name}, {way}: {lost}", file=sys.stderr)
                    expected = run_whole(folder)
                elif processes > 1:  # the other stages know the outputs of one
                    remove_outputs(stage, folder)
                    timed(stage, folder, 1)
        orphans(0)  # after Ctrl-C, the stage that ran
    tried = {w: {name: dict(c) for name, c in rows.items() if c["trials"]} for w, rows in counts.items()}
    record = {"schema": SCHEMA, "what": __doc__.split("\n")[0], "seed": options.seed, **total}
    record |= {"losses": losses, "stages": tried, "provenance": facts}
    folder = Path("results") / "faults"
    write_json(folder / "kills.json", record)
    write_atomically(folder / "kills.md", lambda path: path.write_text(table(record), encoding="utf-8"))
    print("{trials} trials, {kills} kills, {lost} lost".format(**total))


if __name__ == "__main__":
    main()
