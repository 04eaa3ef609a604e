"""Files written whole or not at all, and checksums. No torch, and nothing of the project."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomically(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Have `write(temporary)` make a file beside `path`, then move it there: readers never see half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, tree: Any) -> None:
    """Write JSON atomically; NaN and infinity are refused, so a failed measurement cannot pass as a number."""
    text = json.dumps(tree, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda p: p.write_text(text))


def sha256(path: Path) -> str:
    """Checksum of a file, in hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def fingerprint(*parts: Any) -> str:
    """Short hash of plain values: names the resume state, so that another configuration cannot pick it up."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
