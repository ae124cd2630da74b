"""Finished batches on disk, so that a killed evaluation goes on where it was."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxrobust import files


class Store:
    """Batches by stage and number in a folder, or nothing at all where there is no folder.

    A batch that is missing, half-written, damaged or of other rows is computed again.

    Args:
        folder: Where they lie; None keeps nothing.
        identity: What the evaluation is of; a folder of another one is refused.
    """

    def __init__(self, folder: str | Path | None, identity: dict[str, Any]) -> None:
        self.folder = None if folder is None else Path(folder)
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "evaluation.json"
        try:
            stored = json.loads(path.read_text()) if path.exists() else None
        except json.JSONDecodeError:
            stored = None  # half-written, so nothing was finished under it
        if stored is None:
            files.write_json(path, identity)
            return
        for name, ours in identity.items():
            if stored.get(name) != ours:
                raise ValueError(
                    f"directory {folder} holds another evaluation: its {name} is "
                    f"{stored.get(name)!r}; got {ours!r}"
                )

    def load(self, stage: str, batch: int, rows: np.ndarray) -> dict[str, np.ndarray] | None:
        """A finished batch, if it is there, whole, and of these rows."""
        if self.folder is None:
            return None
        try:
            with self._path(stage, batch).open("rb") as file, np.load(file) as stored:
                arrays = dict(stored)
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
            return None
        return arrays if np.array_equal(arrays.pop("rows", np.empty(0)), rows) else None

    def save(self, stage: str, batch: int, rows: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
        """Write a finished batch; it appears whole or not at all."""
        if self.folder is None:
            return
        path = self._path(stage, batch)
        columns: dict[str, Any] = {"rows": rows, **arrays}
        files.write_arrays(path, columns)

    def _path(self, stage: str, batch: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{zlib.crc32(stage.encode()):08x}-{batch:06d}.npz"
