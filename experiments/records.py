"""Measurements that are kept: each in a JSON file of its own, not made again while it is true."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxrobust as jr


def keep(path: Path, about: dict[str, Any], make: Callable[[], Any], command: str) -> None:
    """Make a measurement and write it, unless the file is there and about the same.

    Args:
        path: The JSON file.
        about: What the numbers depend on: name, network, checksum of its weights, settings, seed.
        make: Returns the numbers.
        command: That makes this file.
    """
    about = plain(about)
    if path.exists() and about.items() <= jr.files.read_json(path).items():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    found = make()
    content = about | {
        "found": found,
        "seconds": time.perf_counter() - start,
        "command": command,
        "commit": commit(),
        "environment": jr.evaluation.environment(),
    }
    jr.files.write_json(path, content)
    print(f"{path.stem}: {content['seconds']:.0f} s", flush=True)


def read(folder: Path) -> dict[str, Any]:
    """The recorded measurements of a folder, by their "name"."""
    contents = map(jr.files.read_json, sorted(folder.glob("*.json")))
    return {content["name"]: content for content in contents}


def plain(value: Any) -> Any:
    """A value as JSON reads it back; dataclasses become dictionaries."""
    return json.loads(json.dumps(value, default=dataclasses.asdict))


def commit() -> str:
    """The commit this runs from."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parent,
    )  # fmt: skip
    return done.stdout.strip()
