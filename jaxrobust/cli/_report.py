"""`jaxrobust report`: draw the page again from saved results."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from jaxrobust import report
from jaxrobust.cli._certificates import RESULTS_NAME
from jaxrobust.cli._common import announce


@dataclasses.dataclass(frozen=True)
class Render:
    """Draw figures and page of a report folder again from its report.json and examples.npz."""

    folder: tyro.conf.Positional[Path]
    """Folder of the report."""

    def run(self) -> None:
        """Render and show the tables."""
        if (self.folder / RESULTS_NAME).is_file() and not (self.folder / "report.json").is_file():
            raise ValueError(
                f"{self.folder} holds certificates of jaxrobust certify, which has no page: its "
                f"chart is certified.svg, its numbers are {RESULTS_NAME}"
            )
        report.print_tables(report.load(self.folder))
        report.render(self.folder)
        announce(self.folder)
