"""The bar that shows how far a run is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def progress_bar(
    show: bool, total: int, done: int
) -> Iterator[Callable[[int, dict[str, Any]], None]]:
    """A bar of steps, or none; yields what is called with steps taken and their metrics."""
    if not show:
        yield lambda steps, metrics: None
        return
    from rich import get_console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )  # fmt: skip
    with Progress(*columns, disable=not get_console().is_terminal) as bar:
        task = bar.add_task("", total=total, completed=done)

        def advance(steps: int, metrics: dict[str, Any]) -> None:
            shown = "  ".join(
                f"{name} {value:.3f}" for name, value in metrics.items()
                if isinstance(value, float)
            )  # fmt: skip
            bar.update(task, advance=steps, description=shown)

        yield advance
