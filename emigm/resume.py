"""Resume points of a training run: written whole, read without running code, and never another than was written."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from emigm.config.errors import ConfigError
from emigm.io import sha256, write_atomically


class ResumePoints:
    """The newest state of one run, in a file whose name holds its step and its checksum.

    Its name and not a second file: a kill between two files would leave a state that nothing vouches for.

    Args:
        folder: where the file lies.
        key: names the run; what is in the folder under another key is not its.
    """

    def __init__(self, folder: Path, key: str):
        self.folder, self.key = folder, key

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state after `step` steps, and remove those before."""
        written = self.folder / f"{self.key}.pt"

        def save(temporary: Path) -> None:
            with temporary.open("wb") as f:  # to a file of its own, torch does not say that the disk is full
                torch.save(state, f)

        write_atomically(written, save)
        newest = written.rename(self.folder / f"{self.key}-{step:09d}-{sha256(written)}.pt")
        for file in self._files():
            if file != newest:
                file.unlink(missing_ok=True)

    def exists(self) -> bool:
        """Whether there is a state."""
        return bool(self._files())

    def load(self, entries: tuple[str, ...] = ()) -> dict[str, Any] | None:
        """The newest state, which has these entries; None: there is none.

        Raises:
            ConfigError: it is damaged, holds code, or is no such state.
        """
        if not (files := self._files()):
            return None
        path, remedy = files[-1], "delete it to start this run over"
        if sha256(path) != path.stem.split("-")[-1]:
            raise ConfigError(f"{path}: damaged resume point (checksum differs); {remedy}")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # processes share its pages
        except pickle.UnpicklingError as e:  # whose text advises to read it without restriction
            raise ConfigError(
                f"{path}: holds other objects than tensors and plain values, which could run code; {remedy}"
            ) from e
        except Exception as e:  # torch.load raises many types for what is no such file
            raise ConfigError(f"{path}: not a resume point ({type(e).__name__}); {remedy}") from e
        if not isinstance(state, dict) or (missing := [name for name in entries if name not in state]):
            found = f"has no {missing[0]!r}" if isinstance(state, dict) else f"holds a {type(state).__name__}"
            raise ConfigError(f"{path}: not a resume point ({found}); {remedy}")
        return state

    def _files(self) -> list[Path]:
        """Of this run, oldest first."""
        return sorted(self.folder.glob(f"{self.key}-[0-9]*-[0-9a-f]*.pt"))
