"""Files that appear whole or not at all."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all, also where the process is killed.

    Args:
        path: Where; what is there already is replaced.
        content: All of it.
    """
    partial = path.with_name(f".{os.getpid()}-{path.name}")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_arrays(path: Path, arrays: dict[str, Any], *, compress: bool = False) -> None:
    """Write an npz file whole.

    Args:
        path: Where.
        arrays: By name.
        compress: Make it smaller, and slower to write.
    """
    packed = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(packed, **arrays)
    write_whole(path, packed.getvalue())


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole.

    Args:
        path: Where.
        content: Numbers, strings, lists and dictionaries; no NaN.
    """
    write_whole(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: If it is damaged; names it.
    """
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
