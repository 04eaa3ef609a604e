"""Files written whole or not at all, by whatever library; checksums; parts of long jobs, resume points among them."""

import errno
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from stored import FORK, Code

from emigm.config.errors import ConfigError, RunError
from emigm.io import HOST, INDEX, Parts, read_index, write_arrays, write_atomically, write_index
from emigm.model.weights import read_tensors, write_tensors
from emigm.train import ResumePoints


def test_temporaries_match_no_pattern_and_those_of_dead_writers_of_this_machine_are_removed(tmp_path):
    dead, held, foreign = (
        tmp_path / f".a.json.{name}.tmp" for name in (f"{HOST}.{2**22 + 1}", f"{HOST}.1", "elsewhere.1")
    )
    for path in (dead, held, foreign):
        path.touch()
    seen = []

    def write(temporary):
        seen.extend(p for pattern in ("*.json", "*.npz", "*.pt", "[0-9]*") for p in tmp_path.glob(pattern))
        assert temporary.parent == tmp_path and temporary.suffix == ".tmp"
        write_atomically(tmp_path / "b.json", lambda p: p.write_text("{}"))  # removes no file of a writer at work
        temporary.write_text("{}")

    write_atomically(tmp_path / "a.json", write)
    assert seen == [] and {p.name for p in tmp_path.iterdir()} == {"a.json", "b.json", held.name, foreign.name}


def test_a_dead_writers_file_that_cannot_be_removed_is_left_alone(tmp_path, monkeypatch):
    """Another user's, in a folder such as /tmp."""
    left = tmp_path / f".a.json.{HOST}.{2**22 + 1}.tmp"
    left.touch()

    def unlink(path, missing_ok=False, plain=Path.unlink):
        if path == left:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        plain(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    write_atomically(tmp_path / "a.json", lambda p: p.write_text("{}"))
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", left.name}


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path):
    def fail(temporary):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a.json").write_text("whole")
    with pytest.raises(RunError, match=r"a\.json: cannot be written \(No space left on device\); make room"):
        write_atomically(tmp_path / "a.json", fail)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["whole"]


WRITERS = {
    "npz": lambda folder, array: write_arrays(folder / "a.npz", a=array),
    "safetensors": lambda folder, array: write_tensors(folder / "a.safetensors", {"a": torch.from_numpy(array)}),
    "resume point": lambda folder, array: ResumePoints(folder, "k").save(1, {"a": torch.from_numpy(array)}),
    "text": lambda folder, array: write_index(folder / "a.json", {"a": array.tolist()}),
}


def write_large(folder, kind):
    """In a process of its own, which the system lets write 10 kB a file."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    try:
        WRITERS[kind](folder, np.random.default_rng(0).random(10_000))
    except RunError as e:
        (folder / "message").write_text(str(e))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_one_line_whatever_library_writes(tmp_path, kind):
    process = FORK.Process(target=write_large, args=(tmp_path, kind))
    process.start()
    process.join(60)
    message = (tmp_path / "message").read_text()
    assert "cannot be written (File too large); make room" in message and "\n" not in message
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["message"]


def test_weights_are_the_bytes_that_safetensors_writes(tmp_path):
    state = {"b": torch.arange(6.0).view(2, 3).T, "a": torch.ones(2, dtype=torch.float16)}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "theirs.safetensors")
    write_tensors(tmp_path / "ours.safetensors", state)
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    assert all(torch.equal(state[k], v) for k, v in read_tensors(tmp_path / "ours.safetensors").items())


def test_a_finished_folder_holds_the_parts_and_their_index_alone(tmp_path):
    parts, out = Parts(tmp_path / "work", ["0", "1"]), tmp_path / "out"
    for name in parts.names:
        parts.add(name, lambda path: write_atomically(path, lambda temporary: temporary.write_text("x")))
    for left in (parts.files / "3", parts.files / f".0.{HOST}.x.tmp", out / "old" / "a"):
        left.parent.mkdir(parents=True, exist_ok=True)
        left.touch()
    parts.seal({"facts": 1})
    parts.move(out)
    assert {p.name for p in out.iterdir()} == {"0", "1", INDEX}
    assert read_index(out / INDEX, "") == {"facts": 1} and not (tmp_path / "work").exists()


@pytest.mark.parametrize("content", [[1, 2], {"step": 3}, torch.zeros(2), Code(), {"model": Code()}])
def test_a_resume_point_that_is_none_is_one_line_without_unsafe_advice(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    points = ResumePoints(Path(), "train-k")
    points.save(1, content)
    with pytest.raises(ConfigError) as error:
        points.load(("model", "step"))
    message = str(error.value)
    assert "delete it to start this run over" in message and "\n" not in message
    assert "weights_only" not in message and not Path("ran").exists()


def test_the_newest_resume_point_is_taken_and_only_it_is_kept(tmp_path, monkeypatch):
    points = ResumePoints(tmp_path, "k")
    assert points.load(("step",)) is None and not points.exists()
    for step in (2, 10, 10):
        points.save(step, {"step": step})
        assert points.load(("step",)) == {"step": step} and points.exists()
        assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == 1
    ResumePoints(tmp_path, "other").save(1, {"step": 1})
    monkeypatch.setattr("emigm.train.sha256", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # killed before the file has its name
        points.save(12, {"step": 12})
    monkeypatch.undo()
    assert points.load(("step",)) == {"step": 10}
