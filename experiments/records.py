"""Measurements that are kept, each in a JSON file of its own, and tables of them in a README."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.tree_util import Partial
from scipy.stats import binomtest

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


def show(tables: dict[str, str], readme: Path, preset: str) -> None:
    """Put the cpu preset's tables into the README, and print those of any other.

    Args:
        tables: By name: each goes from `<!-- its name -->` to `<!-- end -->`.
        readme: Of the experiment; where there is none, tables are printed too.
        preset: What the numbers are of.
    """
    if preset != "cpu" or not readme.exists():
        print(*tables.values(), sep="\n")
        return
    text = readme.read_text()
    for name, table in tables.items():
        mark = re.compile(f"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, count = mark.subn(lambda at, table=table: f"{at[1]}{table}{at[2]}", text)
        if count != 1:
            raise ValueError(f"{readme.name} must hold <!-- {name} --> once; it does {count} times")
    readme.write_text(text)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown.

    >>> print(table(["a", "b"], [["1", "2"]]), end="")
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]]) + "\n"


def ends(share: float, num: int, digits: int = 1) -> str:
    """Clopper-Pearson's 95 % interval of a share of so many images, in percent.

    >>> ends(0.5, 100)
    '39.8-60.2'
    """
    interval = binomtest(round(share * num), num).proportion_ci(0.95, method="exact")
    return f"{100 * interval.low:.{digits}f}-{100 * interval.high:.{digits}f}"


def plain(value: Any) -> Any:
    """A value as JSON reads it back; dataclasses become dictionaries."""
    return json.loads(json.dumps(value, default=dataclasses.asdict))


def trained_steps(folder: Path) -> int:
    """Steps of the last checkpoint of a training; 0 where there is none."""
    return max((int(p.name) for p in folder.glob("checkpoints/*") if p.name.isdigit()), default=0)


def restored(
    apply: Callable[..., Any], folder: Path, steps: int, kept: Path | None = None
) -> Partial | None:
    """A trained network as a function that returns logits; None where its training is not over.

    Args:
        apply: Of its model; networks that share it share compiled programs.
        folder: Where its checkpoints lie.
        steps: Of the whole training.
        kept: A copy of a small network beside its results: written where the checkpoints are, read
            where they are not.
    """
    if trained_steps(folder) >= steps:
        params, model_state = jr.train.restore(folder)
        variables = {"params": params, **model_state}
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            jr.files.write_arrays(kept, flatten_dict(variables, sep="/"))
    elif kept is not None and kept.exists():
        with np.load(kept) as arrays:
            variables = unflatten_dict(dict(arrays), sep="/")
    else:
        return None
    return Partial(apply, jax.tree.map(jnp.asarray, variables))


def code(*sources: Path) -> str:
    """A checksum of source files: what was measured by other code is measured again."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]


def commit() -> str:
    """The commit this runs from, "-dirty" where anything but recorded results has changed."""
    git = functools.partial(
        subprocess.run, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent
    )
    name = git(["git", "describe", "--always", "--abbrev=12"]).stdout.strip()
    changed = git(["git", "status", "--porcelain", "-uno", "--", ".", ":!experiments/*/results/*"])
    return f"{name}-dirty" if changed.stdout.strip() else name
