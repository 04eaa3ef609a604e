"""Files written whole or not at all, and the checksums that readers hold them against. No torch.

What several files make up (samples, latents, a model) has one JSON file beside them that lists their checksums, and
carries a checksum of itself; a lone `.npz` carries its own. A flipped bit, a cut, a swap or an edit by hand is an error
of the stage that reads the file, never another number. `Parts` are files of a long job: a killed run goes on with
those that it finished.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emigm.config.errors import ConfigError, RunError, UserError, check

TEMPORARY = ".tmp"
"""Suffix of files under way, which no reader's pattern matches: a killed writer leaves one."""
HOST = re.sub(r"[^A-Za-z0-9-]", "-", platform.node()) or "-"
"""This machine, in the names of temporary files: processes of another machine are not seen here."""
CHECKSUM = "sha256"
"""Key of a JSON file's, and name of an `.npz`'s, checksum of all else in it."""
INDEX = "index.json"
"""Of a finished folder of `Parts`: what its files are, and their checksums."""


def write_atomically(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Have `write(temporary)` make a file beside `path`, then move it there: readers never see half a file.

    Files that killed writers of this machine left in the folder are removed.

    Raises:
        RunError: the disk is full or does not let itself be written; `path` is as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{HOST}.{os.getpid()}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent)
        try:
            write(temporary)
            with temporary.open("r+b") as f:  # on the disk before its name is: a power cut leaves no empty file
                os.fsync(f.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except UserError:
        raise
    except Exception as e:  # every library has its own error for a full disk
        error: BaseException | None = e
        while error is not None and not isinstance(error, OSError):
            error = error.__context__
        if error is None:
            raise
        raise RunError(
            f"{path}: cannot be written ({error.strerror or error}); make room or give write access, then type the "
            "same command again: what is finished is kept"
        ) from e


def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of this machine's processes that are no more."""
    for file in folder.glob(f".*.{HOST}.*{TEMPORARY}") if sys.platform != "win32" else ():
        try:
            os.kill(int(file.name.split(".")[-2]), 0)  # sends nothing
        except (ProcessLookupError, ValueError):  # ended; or no process's
            with contextlib.suppress(PermissionError):  # another user's, in a folder such as /tmp
                file.unlink(missing_ok=True)
        except PermissionError:  # another user's, at work
            continue


def lock(handle: int) -> bool | None:
    """Lock an open file for this process until it is closed, at the latest when the process ends, however it ends.

    Returns:
        At once: False where another process holds it, None where the file system has no locks.
    """
    if sys.platform == "win32":
        return None
    import fcntl  # absent there

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        return False if isinstance(e, BlockingIOError) else None
    return True


def write_json(path: str | Path, tree: Any) -> None:
    """Write JSON atomically; NaN and infinity are refused, so a failed measurement cannot pass as a number."""
    text = json.dumps(tree, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def read_json(path: str | Path, remedy: str) -> dict[str, Any]:
    """A JSON file that holds an object; raises ConfigError, with the remedy, for a missing or damaged one."""
    try:
        tree = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; {remedy}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as e:
        raise ConfigError(f"{path}: not valid JSON ({e}); {remedy}") from e
    check(isinstance(tree, dict), f"{path}: holds a {type(tree).__name__}, expected an object; {remedy}")
    return tree


def write_index(path: str | Path, tree: dict[str, Any]) -> None:
    """Write JSON with a checksum of its own content, for `read_index`."""
    tree = json.loads(json.dumps(tree))  # as it will be read: keys are text, tuples are lists
    write_json(path, {**tree, CHECKSUM: _digest(tree)})


def read_index(path: str | Path, remedy: str) -> dict[str, Any]:
    """What `write_index` wrote; raises ConfigError when missing, damaged or changed since."""
    tree = read_json(path, remedy)
    check(tree.pop(CHECKSUM, None) == _digest(tree), f"{path}: checksum differs; {remedy}")
    return tree


def write_array(path: str | Path, array: np.ndarray) -> None:
    """Write one array as `.npy`, atomically."""
    write_atomically(path, lambda p: _save(p, np.save, np.ascontiguousarray(array)))


def write_arrays(path: str | Path, **arrays: np.ndarray) -> None:
    """Write named arrays as one `.npz` with a checksum of their names, types, shapes and values."""
    arrays[CHECKSUM] = np.array(_digest_arrays(arrays))
    write_atomically(path, lambda p: _save(p, np.savez, **arrays))


def _save(path: Path, save: Callable[..., None], *args: np.ndarray, **arrays: np.ndarray) -> None:
    with path.open("wb") as f:  # given a name, numpy adds a suffix to it
        save(f, *args, **arrays)


def read_arrays(path: str | Path, names: Iterable[str], remedy: str) -> dict[str, np.ndarray]:
    """What `write_arrays` wrote; raises ConfigError, with the remedy, when it is missing, damaged or changed, or lacks
    one of the `names`."""
    check(Path(path).is_file(), f"{path}: no such file; {remedy}")
    try:
        with np.load(path) as f:
            arrays = dict(f)
    except Exception as e:  # numpy and zipfile raise many types for a damaged file
        said = (str(e).splitlines() or [type(e).__name__])[0][:150]
        raise ConfigError(f"{path}: truncated or damaged ({said}); {remedy}") from e
    check(str(arrays.pop(CHECKSUM, None)) == _digest_arrays(arrays), f"{path}: checksum differs; {remedy}")
    for name in names:
        check(name in arrays, f"{path}: has no array {name!r}; {remedy}")
    return arrays


def sha256(path: Path) -> str:
    """Checksum of a file, in hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def checksums(*files: str | Path) -> dict[str, str]:
    """Path => checksum of every file, for a record's `inputs` and `outputs`; paths as from the workspace's root.

    A folder stands for all files in it. A file that lists others' checksums stands for these.
    """
    sums = {}
    for file in map(Path, files):
        for path in sorted(p for p in file.rglob("*") if p.is_file()) if file.is_dir() else [file]:
            inside = path.is_absolute() and path.is_relative_to(Path.cwd())
            sums[(path.relative_to(Path.cwd()) if inside else path).as_posix()] = sha256(path)
    return sums


def fingerprint(*parts: Any) -> str:
    """Short hash of plain values: names the resume state, so that another configuration cannot pick it up."""
    return _digest(parts)[:16]


def _digest(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _digest_arrays(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()


class Parts:
    """Files that make up what a job makes, written by one process or several at once.

    Beside each lies a note with its checksum, the key and what it cost. A file without its note, as a writer leaves it
    that is killed between the two, does not count.

    Args:
        folder: working folder; holds `files`, and the notes.
        names: of the files, in order.
        key: what they are made from; a file made from something else does not count.
    """

    def __init__(self, folder: Path, names: Sequence[str] = (), key: str = ""):
        self.folder, self.names, self.key = folder, list(names), key
        self.files = folder / "files"

    def add(self, name: str, write: Callable[[Path], Any], **facts: Any) -> None:
        """Have `write(path)` write a file atomically, then note it, with facts such as what it cost."""
        path = self.files / name
        write(path)
        note = {"key": self.key, "checksum": sha256(path), "bytes": path.stat().st_size, "facts": facts}
        write_index(self._note_file(name), note)

    def whole(self, name: str) -> dict[str, Any] | None:
        """checksum, bytes and facts of a file that is as it was written, and made from the same."""
        try:
            note = read_index(self._note_file(name), "")
        except ConfigError:  # missing, or the machine went down before it was on the disk
            return None
        path = self.files / name
        return note if note["key"] == self.key and path.is_file() and sha256(path) == note["checksum"] else None

    def missing(self, among: Iterable[int] | None = None) -> list[int]:
        """Numbers of the files, of all or of those `among`, that are still to be written or are not whole."""
        return [i for i in (range(len(self.names)) if among is None else among) if self.whole(self.names[i]) is None]

    def notes(self) -> list[dict[str, Any]]:
        """Notes of all files; raises RunError where one is not whole."""
        notes = {name: self.whole(name) for name in self.names}
        for name, note in notes.items():
            if note is None:
                raise RunError(f"{self.files / name}: is missing or damaged; type the same command again")
        return list(notes.values())

    def seal(self, index: dict[str, Any]) -> None:
        """Write the index of `files`, and remove from there what is none of this job's."""
        for file in self.files.iterdir():
            if file.name not in self.names:
                file.unlink()
        write_index(self.files / INDEX, index)

    def move(self, folder: Path) -> None:
        """Move `files` to `folder`, in place of what is there, and remove the working folder."""
        if folder.exists():
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(self.files, folder)  # copies where .state and the folder are on two disks
        shutil.rmtree(self.folder)

    def _note_file(self, name: str) -> Path:
        return self.folder / "notes" / f"{name}.json"
