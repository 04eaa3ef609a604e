"""Parts of a long job in a working folder: a killed run goes on with those that it finished. No torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from emigm.config.errors import ConfigError, RunError
from emigm.io import read_index, sha256, write_index

INDEX = "index.json"
"""Of a finished folder: what its files are, and their checksums."""


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
