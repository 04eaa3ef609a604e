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
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# What stages import, some of it late: once, and not in every trial, so that a kill finds them at work.
import sklearn.datasets
import torch._dynamo
import torch.distributed as dist
import yaml
from tqdm import tqdm

from emigm import stages
from emigm.config.benchmark import KEYS
from emigm.io import sha256, write_atomically, write_json
from emigm.records.record import SCHEMA, provenance
from emigm.stages import encode, evaluate, extractor, prepare, reference, sample, train

IMPORTED = (
    sklearn.datasets,
    torch._dynamo,
    encode,
    evaluate,
    extractor,
    prepare,
    reference,
    sample,
    train,
)
BENCHMARK: dict[str, Any] = {
    "name": "tiny",
    "images_of": "tiny",
    "title": "Tiny digits",
    "dry_run": True,
    "sizes": ["xs"],
    "budgets": ["4"],
    "data": {"dataset": "digits", "holdout": 0.2},
    "autoencoder": {"kind": "pixels", "scale": 1.3},
    "extractor": {"kind": "cnn", "training": {"steps": 20, "batch": 64, "lr": 0.001, "seed": 0}},
    "run": {"device": "cpu"},
    "evaluation": {"images": 70, "seeds": [0, 1], "chunk": 15, "kid_subset": 50},
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
KILLED = 128 + signal.SIGKILL
"""Exit status of what started several processes, of which one was killed."""
LONGEST = 300.0
"""Seconds after which a stage of the tiny benchmark hangs."""


def write_params(folder: Path) -> None:
    """Make `folder` a workspace of the tiny benchmark."""
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS))


def start(stage: str, folder: Path, log_name: str = "log.txt", processes: int = 1) -> int:
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
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _launch(processes: int) -> None:
    """Return in each of so many new processes of one stage; this one waits for them and, as torchrun does, ends the
    others when one has failed."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    places = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    started, launcher = [], os.getpid()
    for rank in range(processes):
        if (process := os.fork()) == 0:
            os.environ.update(places, RANK=str(rank), LOCAL_RANK=str(rank), DVC_STAGE="one")
            stages.STARTED_BY = launcher
            return
        started.append(process)
    failed: list[int] = []  # before this process ended the others
    for _ in started:
        _, ended = os.wait()
        if ended and not failed:
            failed.append(ended)
            time.sleep(0.2)  # a process that was killed can end after the one that lost it
            for process in started:
                with contextlib.suppress(ChildProcessError, ProcessLookupError):
                    found = os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                    if found is not None and found.si_code == os.CLD_KILLED:
                        failed.append(signal.SIGKILL)
                    os.kill(process, signal.SIGKILL)
    status = 0 if not failed else KILLED if any(map(os.WIFSIGNALED, failed)) else 1
    os._exit(status)


def run(stage: str, folder: Path, log_name: str = "log.txt", processes: int = 1) -> int:
    """Run a stage to its end; returns its exit status, or that of a killed process where it hangs."""
    process, until = start(stage, folder, log_name, processes), time.monotonic() + LONGEST
    while not (ended := os.waitpid(process, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.kill(process, signal.SIGKILL)
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(ended[1])


def run_and_kill(stage: str, folder: Path, after: float, processes: int, rng: random.Random) -> bool | None:
    """Start a stage and, after so many seconds, kill it, of several processes one or what started them; False: it had
    ended, None: it had failed by itself."""
    process = start(stage, folder, processes=processes)
    time.sleep(after)
    one_of = [process, *(p for p, _ in _children_of(process))] if processes > 1 else [process]
    with contextlib.suppress(ProcessLookupError):
        os.kill(rng.choice(one_of), signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return {0: False, -signal.SIGKILL: True, KILLED: True}.get(status)


def orphans(wait: float = 5.0) -> list[int]:
    """Processes of stages that went on although the stage was killed: children that came to this process, which is
    their reaper. Those that the system is about to end get `wait` seconds, and none may end by itself in them but other
    programs, such as the git that a record asks for its commit; those that are left are killed."""
    until, gone_on = time.monotonic() + wait, []
    at_work = {process for process, ending in _children_of(os.getpid()) if not ending}  # others were before the kill
    while True:
        at_work = {process for process in at_work if not _runs_another_program(process)}
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                gone_on += [ended[0]] if ended[0] in at_work and ended[1] != signal.SIGKILL else []
        except ChildProcessError:
            return gone_on
        if time.monotonic() > until:
            left = [process for process, _ in _children_of(os.getpid())]
            for process in left:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
            return gone_on + left
        time.sleep(0.01)


def adopt_orphans() -> None:
    """Have children of killed children come to this process."""
    import ctypes

    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


def _runs_another_program(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/exe").readlink() != Path("/proc/self/exe").readlink()
    except OSError:  # it is ending
        return False


PF_EXITING = 0x4
"""Of a process's flags: the system is ending it, which can take a while, and no signal changes how it ended."""


def _children_of(parent: int) -> Iterator[tuple[int, bool]]:
    """(process, whether it is ending or has ended) of every child."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has ended
            continue
        if int(fields[1]) == parent:
            yield int(status.parent.name), bool(int(fields[6]) & PF_EXITING)


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


def trial(
    stage: str,
    folder: Path,
    expected: dict[str, Any],
    seconds: float,
    rng: random.Random,
    processes: int = 1,
    by_hand: bool = True,
) -> dict[str, Any]:
    """Kill a stage at random moments, run it to its end, and compare; `by_hand`: what a killed run leaves stays.

    Returns:
        kills: how many hit it; lost: why the trial counts as lost, or None.
    """
    remove_outputs(stage, folder)
    kills, lost = 0, None
    for _ in range(rng.randint(1, MOST_KILLS)):
        hit = run_and_kill(stage, folder, rng.uniform(0, seconds), processes, rng)
        kills += hit is True
        if hit is None:
            lost = f"failed when started again: {(folder / 'log.txt').read_text()[-1000:]}"
        if not by_hand:
            remove_outputs(stage, folder)
    if left := orphans():
        lost = f"{len(left)} processes went on"
    elif lost:
        pass
    elif run(stage, folder, processes=processes):
        lost = (folder / "log.txt").read_text()[-1000:] or "no message"
    elif (found := outputs(stage, folder)) != expected:
        lost = f"other: {[k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k)]}"
    elif left := leftovers(folder):
        lost = f"left: {left}"
    return {"kills": kills, "lost": lost}


def remove_outputs(stage: str, folder: Path) -> None:
    """As DVC does before it runs a stage."""
    for path in [*STAGES[stage][1], f"results/tiny/records/{stage}.json"]:
        shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink(missing_ok=True)


Expected = dict[tuple[str, int], tuple[dict[str, Any], float]]
"""By stage and number of processes: its outputs without a kill, and the seconds that it took."""


def run_whole(folder: Path) -> Expected:
    """Make `folder` anew and run every stage without a kill, of several processes first where it knows them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write_params(folder)
    found: Expected = {}
    for stage in STAGES:
        if stage in IN_SEVERAL:
            found[stage, 2] = timed(stage, folder, 2)
            remove_outputs(stage, folder)
        found[stage, 1] = timed(stage, folder, 1)
    return found


def timed(stage: str, folder: Path, processes: int) -> tuple[dict[str, Any], float]:
    """A stage's outputs without a kill, and the seconds that it takes."""
    begun = time.perf_counter()
    run_or_stop(stage, folder, processes)
    return outputs(stage, folder), time.perf_counter() - begun


def run_or_stop(stage: str, folder: Path, processes: int) -> None:
    """Run a stage to its end, and stop these trials where it fails."""
    if run(stage, folder, processes=processes):
        raise SystemExit(f"{stage} failed without a kill:\n{(folder / 'log.txt').read_text()}")


TABLE = "| Stage | Trials | Kills that hit | Lost |\n|---|---:|---:|---:|"


def table(record: dict[str, Any]) -> str:
    """The record as a page."""
    parts = [f"# {record['what']}"]
    for way, by_stage in record["stages"].items():
        every = {key: sum(row[key] for row in by_stage.values()) for key in ("trials", "kills", "lost")}
        rows = [(name, row["trials"], row["kills"], row["lost"]) for name, row in [*by_stage.items(), ("all", every)]]
        lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
        parts += [f"## {way[0].upper()}{way[1:]}", "\n".join([TABLE, *lines])]
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
    rng = random.Random(options.seed)
    made_by = provenance("cpu")  # of the code that is loaded now
    names = {(stage, n): stage + (f", {n} processes" if n > 1 else "") for stage in STAGES for n in (1, 2)}
    ways = {False: "outputs removed before each start, as dvc repro does", True: "by hand, outputs stay"}
    counts = {way: {name: Counter(trials=0, kills=0, lost=0) for name in names.values()} for way in ways.values()}
    losses = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "workspace"
        expected = run_whole(folder)
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C: what was done by then is recorded
            for n in range(1, options.trials + 1):
                processes, way = 2 if n % EVERY == 0 else 1, ways[n % 2 == 0]
                stage = rng.choice(IN_SEVERAL if processes > 1 else list(STAGES))
                found = trial(stage, folder, *expected[stage, processes], rng, processes, by_hand=n % 2 == 0)
                tally = Counter(trials=1, kills=found["kills"], lost=int(found["lost"] is not None))
                counts[way][names[stage, processes]].update(tally)
                if n % 25 == 0:
                    print(f"{n} trials, {len(losses)} lost", flush=True)
                if found["lost"]:
                    losses.append({"stage": names[stage, processes], "how": way, "why": found["lost"]})
                    print(f"{names[stage, processes]}, {way}: {found['lost']}", file=sys.stderr)
                    expected = run_whole(folder)
                elif processes > 1:  # the other stages know the outputs of one
                    remove_outputs(stage, folder)
                    run_or_stop(stage, folder, 1)
        orphans(0)  # after Ctrl-C, the stage that ran
    every = [count for by_stage in counts.values() for count in by_stage.values()]
    record = {
        "schema": SCHEMA,
        "what": __doc__.split("\n")[0],
        "seed": options.seed,
        **{key: sum(count[key] for count in every) for key in ("trials", "kills", "lost")},
        "losses": losses,
        "stages": {
            way: {name: dict(count) for name, count in by_stage.items() if count["trials"]}
            for way, by_stage in counts.items()
        },
        "provenance": made_by,
    }
    folder = Path("results") / "faults"
    write_json(folder / "kills.json", record)
    write_atomically(folder / "kills.md", lambda path: path.write_text(table(record), encoding="utf-8"))
    print(f"{record['trials']} trials, {record['kills']} kills, {record['lost']} lost")


if __name__ == "__main__":
    main()
