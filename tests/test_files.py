"""Files written whole or not at all, by whatever library; checksums; resume points."""

import errno
import multiprocessing
import os
import resource
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from emigm.config.errors import ConfigError, RunError
from emigm.io import HOST, checksums, lock, sha256, write_arrays, write_atomically, write_index
from emigm.model.weights import read_tensors, write_tensors
from emigm.resume import ResumePoints


def test_temporaries_match_no_pattern_and_those_of_dead_writers_are_removed(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    names = [f"{HOST}.{pid}.x" for pid in (ended.pid, f"{ended.pid}0000", os.getpid())] + [f"elsewhere.{ended.pid}.x"]
    dead, held, mine, foreign = (tmp_path / f".a.json.{name}.tmp" for name in names)
    for path in (dead, held, mine, foreign):
        path.touch()
    seen = []

    def write(temporary):
        seen.extend(p for pattern in ("*.json", "*.npz", "*.pt", "[0-9]*") for p in tmp_path.glob(pattern))
        assert temporary.parent == tmp_path and temporary.suffix == ".tmp"
        temporary.write_text("{}")

    with held.open() as f:
        assert lock(f.fileno())
        write_atomically(tmp_path / "a.json", write)
    assert seen == [] and {p.name for p in tmp_path.iterdir()} == {"a.json", held.name, mine.name, foreign.name}


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path):
    def fail(temporary):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a.json").write_text("whole")
    with pytest.raises(RunError, match=r"a\.json: cannot be written \(No space left on device\); make room"):
        write_atomically(tmp_path / "a.json", fail)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["whole"]


def write_large(folder, kind):
    """In a process of its own, which the system lets write 10 kB a file."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    array = np.random.default_rng(0).random(10_000)
    write = {
        "npz": lambda: write_arrays(folder / "a.npz", a=array),
        "safetensors": lambda: write_tensors(folder / "a.safetensors", {"a": torch.from_numpy(array)}),
        "resume point": lambda: ResumePoints(folder, "k").save(1, {"a": torch.from_numpy(array)}),
        "text": lambda: write_index(folder / "a.json", {"a": array.tolist()}),
    }[kind]
    try:
        write()
    except RunError as e:
        (folder / "message").write_text(str(e))


@pytest.mark.parametrize("kind", ["npz", "safetensors", "resume point", "text"])
def test_a_full_disk_is_one_line_whatever_library_writes(tmp_path, kind):
    process = multiprocessing.get_context("fork").Process(target=write_large, args=(tmp_path, kind))
    process.start()
    process.join(60)
    message = (tmp_path / "message").read_text()
    assert "cannot be written (File too large); make room" in message and "\n" not in message
    assert [p.name for p in tmp_path.iterdir()] == ["message"]


def test_weights_are_the_bytes_that_safetensors_writes_by_way_of_no_file_but_our_own(tmp_path, monkeypatch):
    state = {"b": torch.arange(6.0).view(2, 3).T, "a": torch.ones(2, dtype=torch.float16)}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "theirs.safetensors")
    theirs = (tmp_path / "theirs.safetensors").read_bytes()
    (tmp_path / "theirs.safetensors").unlink()
    seen, write = [], Path.write_bytes

    def watched(path, data):
        seen.append((path.name, os.listdir(tmp_path)))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", watched)
    write_tensors(tmp_path / "ours.safetensors", state)
    assert (tmp_path / "ours.safetensors").read_bytes() == theirs
    ((temporary, beside),) = seen
    assert beside == [temporary] and temporary.startswith(".ours.safetensors.")
    assert all(torch.equal(state[k], v) for k, v in read_tensors(tmp_path / "ours.safetensors").items())


def test_checksums_name_files_as_from_the_workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("d/b", "d/a/c", "e"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    found = checksums(tmp_path / "d", "e")
    assert list(found) == ["d/a/c", "d/b", "e"] and found["e"] == sha256(Path("e"))


# Resume points


class Code:
    """What unpickles as a call."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("content", [[1, 2], {"step": 3}, torch.zeros(2), Code(), {"model": Code()}])
def test_a_resume_point_that_is_none_is_one_line_without_unsafe_advice(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "x.pt")
    Path("x.pt").rename(f"train-k-000000001-{sha256(Path('x.pt'))}.pt")
    with pytest.raises(ConfigError) as error:
        ResumePoints(Path(), "train-k").load(("model", "step"))
    message = str(error.value)
    assert "delete it to start this run over" in message and "\n" not in message
    assert "weights_only" not in message and not Path("ran").exists()


def test_the_newest_resume_point_is_taken_and_only_it_is_kept(tmp_path):
    points = ResumePoints(tmp_path, "k")
    assert points.load(("step",)) is None
    for step in (2, 10, 10):
        points.save(step, {"step": step})
        assert points.load(("step",)) == {"step": step}
        assert len(list(tmp_path.iterdir())) == 1
    ResumePoints(tmp_path, "other").save(1, {"step": 1})
    assert points.load(("step",)) == {"step": 10}
