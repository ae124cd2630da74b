"""Write down what an evaluation found: one folder, one page, the same numbers in the terminal.

A `Document` holds one `Entry` a classifier. `save` writes `report.json` (every number),
`examples.npz` (one row an example, checked by its sha256), `figures/` and a self-contained
`index.html`; `load` reads the first two back and `render` draws the page again from them. A
`Certified` holds certified accuracies by radius and method, for a table and a chart of its own.
matplotlib, jinja2 and rich are imported when something is drawn, not before.
"""

from jaxrobust.report._certified import Certified, certified_figure, print_certified
from jaxrobust.report._document import Curve, Document, Entry, load
from jaxrobust.report._page import render, save
from jaxrobust.report._terminal import print_findings, print_tables

__all__ = [
    "Certified",
    "Curve",
    "Document",
    "Entry",
    "certified_figure",
    "load",
    "print_certified",
    "print_findings",
    "print_tables",
    "render",
    "save",
]
