"""Resume points of a training run: written whole, read without running code, and never another than was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from emigm.config.errors import ConfigError, check
from emigm.io import sha256, write_atomically


class ResumePoints:
    """The newest state of one run, in a file whose name holds the steps and the checksum: <steps>-<sha256>.pt.

    Args:
        folder: where it lies, in a folder of its own.
        key: names the run.
    """

    def __init__(self, folder: Path, key: str):
        self.folder = folder / key

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state after `step` steps, and remove those before."""

        def write(temporary: Path) -> None:
            with temporary.open("wb") as f:  # to a file of its own, torch does not say that the disk is full
                torch.save(state, f)

        written = self.folder / "new"
        write_atomically(written, write)
        newest = written.rename(self.folder / f"{step:09d}-{sha256(written)}.pt")
        for file in self._files():
            if file != newest:
                file.unlink()

    def exists(self) -> bool:
        """Whether there is a state."""
        return bool(self._files())

    def load(self, entries: tuple[str, ...] = ()) -> dict[str, Any] | None:
        """The newest state, which has these entries; None: there is none.

        Raises:
            ConfigError: it is damaged, holds code, or is no such state.
        """
        if not self.exists():
            return None
        path, remedy = self._files()[-1], "delete it to start this run over"
        check(path.stem.endswith(sha256(path)), f"{path}: damaged resume point (checksum differs); {remedy}")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # processes share its pages
        except Exception as e:  # of many types; the text of some advises to run code that is in the file
            raise ConfigError(f"{path}: not a resume point ({type(e).__name__}); {remedy}") from e
        whole = isinstance(state, dict) and state.keys() >= set(entries)
        check(whole, f"{path}: not a resume point (lacks some of {', '.join(entries)}); {remedy}")
        return state

    def _files(self) -> list[Path]:
        """Of this run, oldest first."""
        return sorted(self.folder.glob("[0-9]*.pt"))
