"""The main table and the findings, in a terminal."""

from __future__ import annotations

from jaxrobust.diagnosis import Findings
from jaxrobust.report._detected import Printer, print_detections
from jaxrobust.report._document import Document
from jaxrobust.report._tables import CERTIFIED, SMOOTHED, doubts, main_tables, percent


def print_tables(document: Document, console: Printer | None = None) -> None:
    """Print one table a threat, and what is to be doubted about it.

    Args:
        document: What to print.
        console: Where, a `rich.console.Console`; the standard output where None.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    entries = document.entries
    tables = main_tables(document)
    for table in tables:
        shown = Table(
            title=Text(f"Accuracy, {table.threat}", style="bold"),
            title_justify="left",
            box=None,
            pad_edge=False,
            padding=(0, 2, 0, 0),
        )
        shown.add_column("")
        for i, count in zip(table.columns, table.num_examples, strict=True):
            name = Text(entries[i].name, style="bold")
            shown.add_column(name.append(f"\n{count} images", style="dim not bold"))
        group = ""
        for row in table.rows:
            if group and row.group != group:
                shown.add_row()
            group = row.group
            kinds = {CERTIFIED: "certified ", SMOOTHED: "smoothed, "}
            label = kinds.get(row.group, "") + row.label
            cells = []
            for cell in row.cells:
                text = Text("\u2013" if cell is None else cell.value.replace("\xa0", " "))
                if cell is not None and cell.interval:
                    text.append(f"  {cell.interval.replace(chr(0xA0), ' ')}", style="dim")
                cells.append(text)
            shown.add_row(Text(label), *cells)
        console.print(shown)
        console.print()
    print_detections(document, console)
    words = "Intervals: 95 % Clopper-Pearson. Attacks: upper bounds."
    if any(r.smoothed_accuracy for entry in entries for r in entry.reports.values()):
        words += " Smoothed: certified with probability 1 - alpha an image, for the majority vote."
    if tables:
        console.print(Text(words, style="dim"))
    found = doubts(document)
    if not found and tables:
        console.print(Text("Findings: none"))
    for doubt in found:
        finding = doubt.finding
        head = Text(f"\nFinding: {finding.name}", style="bold")
        head.append(
            f"  {entries[doubt.column].name}, {doubt.threat}: measured {finding.value:.4g}, "
            f"threshold {finding.threshold:.4g}",
            style="not bold",
        )
        console.print(head)
        console.print(Text(f"{finding.meaning} {finding.cure}"))
    for entry in entries:
        for threat, diagnosis in entry.diagnoses.items():
            print_findings(diagnosis, f"{entry.name}, {threat}", console)


def print_findings(found: Findings, title: str = "", console: Printer | None = None) -> None:
    """Print what a diagnosis measured, and what it found in words.

    Args:
        found: What `diagnose` returned.
        title: What to call the model.
        console: Where, a `rich.console.Console`; the standard output where None.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    title = title or f"{found.norm} {found.eps:g}, {found.num_examples} images"
    shown = Table(
        title=Text(f"Does it hide its gradients? {title}", style="bold"),
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for heading in ("", "measured", "threshold", ""):
        shown.add_column(heading)
    for name, _, value, threshold, verdict in found.rows():
        style = {"warning": "bold", "note": ""}.get(verdict, "dim")
        cells = (name, "-" if value is None else f"{value:.3g}", f"{threshold:.3g}", verdict)
        shown.add_row(*(Text(cell, style=style) for cell in cells))
    console.print(shown)
    right = "; ".join(
        f"{percent(share, found.num_examples)} under {name}" for name, share in found.shares()
    )
    console.print(Text(f"\nRight: {right}. These attacks are short: this is no evaluation."))
    if not found.found:
        console.print(Text("Findings: none. That is no proof."))
    for finding in found.found:
        console.print(Text(f"\n{finding.severity.capitalize()}: {finding.name}", style="bold"))
        console.print(Text(f"{finding.meaning} {finding.cure}"))
