"""Resume points of a training run: written whole, read without running code, and never another than was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from emigm.config.errors import ConfigError
from emigm.io import write_atomically
from emigm.store import Parts


class ResumePoints:
    """The newest state of one run.

    Args:
        folder: where it lies, in a folder of its own.
        key: names the run.
    """

    def __init__(self, folder: Path, key: str):
        self.folder, self.parts = folder, Parts(folder / key, key=key)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state after `step` steps, and remove those before."""

        def write(temporary: Path) -> None:
            with temporary.open("wb") as f:  # to a file of its own, torch does not say that the disk is full
                torch.save(state, f)

        before = self._files()
        number = int(before[-1].name.split("-")[0]) + 1 if before else 0
        # A new name each time, so that a kill between file and note leaves the state before.
        self.parts.add(f"{number:09d}-step{step}.pt", lambda path: write_atomically(path, write))
        for file in before:
            self.parts.remove(file.name)

    def exists(self) -> bool:
        """Whether there is a state."""
        return self._newest() is not None

    def load(self, entries: tuple[str, ...] = ()) -> dict[str, Any] | None:
        """The newest state, which has these entries; None: there is none.

        Raises:
            ConfigError: it is damaged, holds code, or is no such state.
        """
        if (path := self._newest()) is None:
            return None
        remedy = "delete it to start this run over"
        if self.parts.whole(path.name) is None:
            raise ConfigError(f"{path}: damaged resume point (checksum differs); {remedy}")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # processes share its pages
        except Exception as e:  # of many types; the text of some advises to run code that is in the file
            raise ConfigError(f"{path}: not a resume point ({type(e).__name__}); {remedy}") from e
        if not isinstance(state, dict) or not state.keys() >= set(entries):
            raise ConfigError(f"{path}: not a resume point (lacks some of {', '.join(entries)}); {remedy}")
        return state

    def _newest(self) -> Path | None:
        return next((f for f in reversed(self._files()) if self.parts.note(f.name) is not None), None)

    def _files(self) -> list[Path]:
        """Of this run, oldest first."""
        return sorted(self.parts.files.glob("[0-9]*.pt"))
