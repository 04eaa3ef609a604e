"""Several nodes, as processes of one machine: two torchrun agents that meet, and the Slurm template with stand-ins for
Slurm's commands. What dies ends all within a minute, and the same command goes on."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import yaml
from stored import ROOT, free_port

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def start(folder, *command, log="node0.log", **slurm):
    """Start a command in the folder, whose bin/ comes first, without what this process knows of launchers."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "RANK", "LOCAL_RANK", "WORLD_"))}
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**inherited, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **slurm}
    with (folder / log).open("w") as out:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out, start_new_session=True)


def write_params(folder, launcher=None):
    tree = yaml.safe_load((ROOT / "benchmarks/smoke/params.yaml").read_text(encoding="utf-8"))
    benchmark = tree["benchmark"]
    benchmark |= {"name": "tiny", "images_of": "tiny", "run": {"device": "cpu", "launcher": launcher}}
    benchmark["train"] |= {"steps": 120, "seeds": [0], "checkpoint_every": 10, "snapshots": []}
    benchmark["evaluation"] |= {"snapshots": None, "seeds": [0]}
    benchmark["ladder"]["xs"]["model"] = {"width": 16, "head_width": 16}
    (folder / "params.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with the latents of a tiny benchmark, its model trained by one process, and that training's loss."""
    folder = tmp_path_factory.mktemp("nodes")
    write_params(folder)
    for stage, *options in (("prepare",), ("encode",), ("train", "--size", "xs")):
        assert start(folder, sys.executable, "-m", f"emigm.stages.{stage}", *options).wait() == 0, said(folder)
    return folder, loss(folder)


@pytest.fixture
def folder(prepared, tmp_path):
    shutil.copytree(prepared[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


def loss(folder):
    record = json.loads((folder / "results/tiny/records/train-xs.json").read_text(encoding="utf-8"))
    return record["results"]["final_loss"]["values"][0]


def nodes(folder, stage, *options, processes):
    """Two torchrun agents with a meeting point, as two nodes start them; the first holds it."""
    together = ["--nnodes=2", "--rdzv-backend=c10d", "--rdzv-id=test", f"--rdzv-endpoint=127.0.0.1:{free_port()}"]
    command = ["torchrun", *together, f"--nproc-per-node={processes}"]
    stage = ["-m", f"emigm.stages.{stage}", "--size", "xs", *options]
    holds = [f"--rdzv-conf=is_host={holds}" for holds in ("true", "false")]
    return [start(folder, *command, conf, *stage, log=f"node{n}.log") for n, conf in enumerate(holds)]


def ranks(folder):
    """Processes that run a stage in the folder, launchers left out."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, where = (process / "cmdline").read_bytes(), os.readlink(process / "cwd")
        except OSError:
            continue
        if b"\0emigm.stages" in command and where == str(folder) and b"torchrun" not in command:
            found.append(int(process.name))
    return found


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return value


def ended(processes, folder, seconds=60):
    for process in processes:
        process.wait(seconds)
    wait_for(lambda: not ranks(folder))
    return [process.returncode for process in processes]


whole_run = partial(ended, seconds=600)  # ends when it is done, not within a minute


def said(folder):
    return "".join(path.read_text() for path in sorted(folder.glob("node*.log")))


def test_a_killed_process_of_two_nodes_ends_training_on_both_and_the_same_command_goes_on(folder, prepared):
    shutil.rmtree(folder / "models")
    running = nodes(folder, "train", processes=2)
    wait_for(lambda: list(folder.glob(".state/**/*.pt")))
    os.kill(max(ranks(folder)), signal.SIGKILL)
    assert 0 not in ended(running, folder)
    assert not list(folder.glob("models/tiny/xs/seed0/model.safetensors"))
    assert whole_run(nodes(folder, "train", processes=2), folder) == [0, 0], said(folder)
    begun = [int(n) for n in re.findall(r"(\d+)/120 \[", said(folder))]
    assert min(n for n in begun if n) >= 10  # from a resume point, not from the start
    assert loss(folder) == pytest.approx(prepared[1], rel=1e-4)


def test_the_launcher_that_holds_the_meeting_point_killed_before_the_processes_meet_leaves_none_waiting(folder):
    running = nodes(folder, "train", processes=1)
    wait_for(lambda: len(ranks(folder)) == 2)
    running[0].kill()
    ended(running, folder)


SRUN = f"""#!{sys.executable}
# Starts two processes as srun does, and ends both where one fails.
import os, subprocess, sys
assert sys.argv[1:3] == ["--kill-on-bad-exit=1", "python"], sys.argv
ranks = [{{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i), "SLURM_NTASKS": "2"}} for i in range(2)]
tasks = [subprocess.Popen([sys.executable, *sys.argv[3:]], env={{**os.environ, **rank}}) for rank in ranks]
sys.exit(max(abs(task.wait()) for task in tasks))
"""
SCRIPTS = {
    "bin/srun": SRUN,
    "bin/scontrol": '#!/bin/bash\necho "$@" >> scontrol.log\n[ "$1" = show ] && echo 127.0.0.1\nexit 0\n',
    "bin/dvc": f"#!/bin/bash\nexec {sys.executable} -m emigm.stages.train --size xs\n",
    ".venv/bin/activate": "",
}


def test_the_slurm_template_requeues_at_the_walltime_and_goes_on(folder, prepared):
    shutil.rmtree(folder / "models")
    write_params(folder, "srun --kill-on-bad-exit=1 python")
    for name, text in SCRIPTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    template = (ROOT / "benchmarks/slurm/imagenet256.sbatch").read_text()
    (folder / "job").write_text(template.replace("MASTER_PORT=29500", f"MASTER_PORT={free_port()}"))
    command, slurm = ("bash", "job"), {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "node[1-4]"}
    job = start(folder, *command, **slurm)
    wait_for(lambda: list(folder.glob(".state/**/*.pt")))
    job.send_signal(signal.SIGTERM)  # as --signal=B:TERM@300 does
    assert ended([job], folder) == [0]
    assert "requeue 77" in (folder / "scontrol.log").read_text()
    assert whole_run([start(folder, *command, **slurm)], folder) == [0], said(folder)
    assert loss(folder) == pytest.approx(prepared[1], rel=1e-4)
