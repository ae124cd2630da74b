"""The main table and the findings, in a terminal."""

from __future__ import annotations

from jaxrobust.report._detected import Printer, print_detections
from jaxrobust.report._document import Document
from jaxrobust.report._tables import CERTIFIED, SMOOTHED, doubts, main_tables


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
    for table in main_tables(document):
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
    console.print(Text(words, style="dim"))
    found = doubts(document)
    if not found:
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
