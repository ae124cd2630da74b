"""The page: one self-contained HTML file, drawn from what is saved."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from jaxrobust.diagnosis import Findings
from jaxrobust.evaluation import Report
from jaxrobust.files import write_whole
from jaxrobust.report._detected import HEADINGS, detection_figure, detections
from jaxrobust.report._document import Document, Entry, as_document, load, write
from jaxrobust.report._tables import doubts, interval_words, main_tables, percent

PAGE_NAME = "index.html"
FIGURES_NAME = "figures"


def save(found: Document | Report | Findings | Mapping[str, Any], folder: str | Path) -> Path:
    """Write a report: `report.json`, `examples.npz`, `figures/` and `index.html`.

    Args:
        found: What to write: a document, what `evaluate` or `diagnose` returned, or several of
            those by name of the classifier.
        folder: Where; made if it does not exist. A report that is already there is replaced.

    Returns:
        Path of the page.

    Raises:
        ValueError: For anything else.
    """
    write(as_document(found), folder)
    return render(folder)


def render(folder: str | Path) -> Path:
    """Draw figures and page again from a saved report.

    Args:
        folder: The folder given to `save`.

    Returns:
        Path of the page, `index.html`.

    Raises:
        ValueError: If the folder holds no whole report (see `load`).
    """
    import jinja2

    folder = Path(folder)
    document = load(folder)
    files: dict[str, bytes] = {}
    context = _context(document, files)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("template.html").render(context)
    figures = folder / FIGURES_NAME
    figures.mkdir(exist_ok=True)
    for name, content in files.items():
        write_whole(figures / name, content)
    for pattern in (
        "accuracy-*.svg",
        "smoothed-*.svg",
        "detection-*.svg",
        "training-*.svg",
        "gallery-*.png",
    ):
        for stale in figures.glob(pattern):  # of an earlier report in this folder
            if stale.name not in files:
                stale.unlink()
    write_whole(folder / PAGE_NAME, page.encode())
    return folder / PAGE_NAME


def _context(document: Document, files: dict[str, bytes]) -> dict[str, Any]:
    """What the template shows; the figures go into `files` too, by name."""
    from jaxrobust.report._chart import colour_of

    tables = main_tables(document)
    return {
        "document": document,
        "colours": [colour_of(i) for i in range(len(document.entries))],
        "verdicts": [_verdict(entry) for entry in document.entries],
        "tables": tables,
        "survivors": any(
            report.accuracy_after and not report.accuracy_under
            for entry in document.entries
            for report in entry.reports.values()
        ),
        "curves": _curves(document, files),
        "smoothed": _smoothed(document, files),
        "detected": _detected(document, files),
        "detected_headings": HEADINGS,
        "judged": any(entry.reports or not entry.diagnoses for entry in document.entries)
        or not document.entries,
        "diagnosed": [
            {"column": i, "threat": threat, "findings": found}
            for i, entry in enumerate(document.entries)
            for threat, found in entry.diagnoses.items()
        ],
        "galleries": _galleries(document, files),
        "flows": any(not r.measured for entry in document.entries for r in entry.reports.values()),
        "trainings": _trainings(document, files),
        "doubts": doubts(document),
        "costs": _costs(document),
        "proofs": _proofs(document),
        "settings": _shared(document, "settings"),
        "environment": _shared(document, "environment"),
        "number": _number,
        "percent": percent,
    }


def _verdict(entry: Entry) -> list[dict[str, Any]]:
    """What a reader should take away, one item a threat."""
    items = []
    for threat, report in entry.reports.items():
        n = report.num_examples
        best = max(report.certified_accuracy, key=report.certified_accuracy.__getitem__, default="")
        certified = report.certified_accuracy.get(best, 0.0)
        attacked = bool(report.attacks)
        upper = report.robust_accuracy if attacked else report.clean_accuracy
        found = report.intervals.get("robust")
        items.append(
            {
                "threat": threat,
                "num_examples": n,
                "clean": percent(report.clean_accuracy, n),
                "attacked": attacked,
                "num_attacks": len(report.attacks),
                "measured": report.measured,
                "robust": percent(report.robust_accuracy, n),
                "interval": "" if found is None else interval_words(found, n),
                "best": best,
                "certified": percent(certified, n),
                "smoothed": [
                    (name, percent(value, n), f"{report.certificates[name].alpha:g}")
                    for name, value in report.smoothed_accuracy.items()
                ],
                "num_findings": len(report.findings),
                "parts": [
                    ("certified", _width(certified)),
                    ("held", _width(upper - certified)),
                    ("broken", _width(report.clean_accuracy - upper)),
                ],
            }
        )
    return items


def _width(fraction: float) -> str:
    return f"{100 * min(max(fraction, 0.0), 1.0):.3f}%" if math.isfinite(fraction) else "0%"


def _curves(document: Document, files: dict[str, bytes]) -> list[dict[str, Any]]:
    from jaxrobust.report._chart import slug
    from jaxrobust.report._figures import accuracy_figure

    shown = []
    norms = dict.fromkeys(norm for entry in document.entries for norm in entry.curves)
    for k, norm in enumerate(norms):
        svg = accuracy_figure(document, norm)
        files[f"accuracy-{k}-{slug(norm)}.svg"] = svg
        rows, words = [], []
        for entry in document.entries:
            if (curve := entry.curves.get(norm)) is None:
                continue
            series = {"attacked, at most": curve.accuracy}
            series |= {f"{name}, at least": values for name, values in curve.certified.items()}
            rows += [
                (entry.name, kind, list(zip(curve.eps, map(percent, values), strict=True)))
                for kind, values in series.items()
            ]
            if curve.eps:
                words.append(
                    f"{entry.name}: {percent(curve.accuracy[0])} at {curve.eps[0]:.3g}, "
                    f"{percent(curve.accuracy[-1])} at {curve.eps[-1]:.3g}"
                )
        methods = {
            m for e in document.entries if norm in e.curves for m in e.curves[norm].certified
        }
        grid = sorted({eps for _, _, points in rows for eps, _ in points})
        alt = f"Accuracy under attack against eps in {norm}. {'; '.join(words)}."
        shown.append(
            {
                "norm": norm,
                "svg": _inline(svg, f"a{k}", alt),
                "methods": sorted(methods),
                "grid": grid,
                "rows": [(name, kind, dict(points)) for name, kind, points in rows],
            }
        )
    return shown


def _smoothed(document: Document, files: dict[str, bytes]) -> list[dict[str, Any]]:
    """Accuracies certified with high probability against the radius, one figure a report."""
    from jaxrobust.report._chart import slug
    from jaxrobust.report._figures import smoothed_bounds, smoothed_figure

    shown = []
    for i, entry in enumerate(document.entries):
        for j, (threat, report) in enumerate(entry.reports.items()):
            if not report.smoothed_accuracy:
                continue
            svg = smoothed_figure(report)
            files[f"smoothed-{i}-{j}-{slug(threat)}.svg"] = svg
            radii = [share * report.eps for share in (0.0, 0.5, 1.0, 2.0)]
            rows = [
                (name, bound, [percent(float(report.smoothed_at(name, r, bound))) for r in radii])
                for name in report.smoothed_accuracy
                for bound in smoothed_bounds(report, name)
            ]
            words = [f"{name} by {bound}: {at[2]} at {radii[2]:.3g}" for name, bound, at in rows]
            alt = f"Accuracy certified with high probability against eps. {'; '.join(words)}."
            shown.append(
                {
                    "column": i,
                    "threat": threat,
                    "svg": _inline(svg, f"s{i}-{j}", alt),
                    "radii": [f"{radius:.3g}" for radius in radii],
                    "rows": rows,
                    "attacked": bool(report.attacks),
                }
            )
    return shown


def _detected(document: Document, files: dict[str, bytes]) -> list[dict[str, Any]]:
    """Detectors: their numbers, and one figure each where an attack succeeded."""
    from jaxrobust.report._chart import slug

    shown = []
    for k, found in enumerate(detections(document)):
        item: dict[str, Any] = {**found._asdict(), "svg": ""}
        if (svg := detection_figure(found)) is not None:
            files[f"detection-{k}-{slug(found.name)}.svg"] = svg
            areas = "; ".join(f"{attack}: {auc}" for attack, _, _, auc, _ in found.rows)
            alt = f"Attacked images rejected against clean images rejected. AUC {areas}."
            item["svg"] = _inline(svg, f"d{k}", alt)
        shown.append(item)
    return shown


def _galleries(document: Document, files: dict[str, bytes]) -> list[dict[str, Any]]:
    from jaxrobust.report._chart import slug
    from jaxrobust.report._gallery import (
        class_words,
        gallery,
        gallery_sheet,
        picture,
        prediction_words,
        scale_words,
    )

    shown = []
    for i, entry in enumerate(document.entries):
        for j, (threat, report) in enumerate(entry.reports.items()):
            found = gallery(report)
            if found is None:
                continue
            name = f"gallery-{i}-{j}-{slug(threat)}.png"
            files[name] = gallery_sheet(found, f"{entry.name}, {threat}")
            tiles = [
                {
                    "label": tile.label,
                    "words": prediction_words(tile),
                    "prediction": class_words(tile.prediction),
                    "attacked_prediction": class_words(tile.attacked_prediction),
                    "outcome": tile.outcome,
                    "distance": f"{tile.distance:.3g}" if math.isfinite(tile.distance) else "",
                    "images": [
                        _data_uri(picture(image))
                        for image in (tile.clean, tile.change, tile.adversarial)
                    ],
                }
                for tile in found.tiles
            ]
            shown.append(
                {
                    "column": i,
                    "threat": threat,
                    "tiles": tiles,
                    "num_images": found.num_images,
                    "colour": found.colour,
                    "scale": f"{found.scale:.3g}",
                    "words": scale_words(found),
                }
            )
    return shown


def _trainings(document: Document, files: dict[str, bytes]) -> list[dict[str, Any]]:
    from jaxrobust.report._chart import slug
    from jaxrobust.report._figures import drawn_as, training_figure, training_series

    shown = []
    for i, entry in enumerate(document.entries):
        svg = training_figure(entry, i)
        if svg is None:
            continue
        files[f"training-{i}-{slug(entry.name)}.svg"] = svg
        last = []
        for (phase, name), points in training_series(entry).items():
            value = float(points[-1, 1])
            if kind := drawn_as(name):
                words = percent(value) if kind == "accuracy" else _number(value)
                last.append(f"{phase} {name.replace('_', ' ')} {words}")
        alt = f"Training of {entry.name}. At the end: {', '.join(last)}."
        shown.append({"column": i, "svg": _inline(svg, f"t{i}", alt), "last": last})
    return shown


def _costs(document: Document) -> list[dict[str, Any]]:
    """What each attack cost, by threat."""
    shown = []
    for threat in dict.fromkeys(t for entry in document.entries for t in entry.reports):
        rows = [
            (i, name, record)
            for i, entry in enumerate(document.entries)
            if threat in entry.reports
            for name, record in entry.reports[threat].attacks.items()
        ]
        if rows:
            shown.append({"threat": threat, "rows": rows})
    return shown


def _proofs(document: Document) -> list[dict[str, Any]]:
    """What each certificate claims and why it holds, each reason once."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for entry in document.entries:
        for record_name, record in (
            item for report in entry.reports.values() for item in report.certificates.items()
        ):
            claim = f"{entry.name}, {record.norm} {record.eps:.4g}: {record.seconds:,.1f} s"
            if record.probabilistic:
                claim += f", with high probability: alpha {record.alpha:g}, {record.n:,} samples"
            reasons.setdefault((record_name, record.method, record.proof), []).append(claim)
    return [
        {"name": name, "method": method, "proof": proof, "claims": claims}
        for (name, method, proof), claims in reasons.items()
    ]


def _shared(document: Document, field: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Settings or versions: one value where all reports agree, else whose value is whose."""
    found: dict[str, dict[str, str]] = {}
    whose = [
        (f"{entry.name}, {threat}", report)
        for entry in document.entries
        for threat, report in entry.reports.items()
    ]
    for owner, report in whose:
        for name, value in _flat(getattr(report, field)).items():
            found.setdefault(name, {})[owner] = value
    rows = []
    for name, values in found.items():
        distinct = set(values.values())
        if len(distinct) == 1 and len(values) == len(dict(whose)):
            rows.append((name, [("", distinct.pop())]))
        else:
            rows.append((name, list(values.items())))
    return rows


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _number(value: float) -> str:
    """A measured number in few digits.

    >>> _number(0.01234), _number(12.3456), _number(1234567)
    ('0.0123', '12.3', '1,234,567')
    """
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _inline(svg: bytes, prefix: str, alt: str) -> Any:
    """An SVG file as a piece of a page: no namespaces, its own ids, a text for who cannot see."""
    from markupsafe import Markup

    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):  # a style would hold for the whole page
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(k): v for k, v in element.attrib.items()}
        if "id" in attributes:
            attributes["id"] = f"{prefix}-{attributes['id']}"
        for name, value in attributes.items():
            value = value.replace("url(#", f"url(#{prefix}-")
            attributes[name] = f"#{prefix}-{value[1:]}" if name == "href" else value
        element.attrib.clear()
        element.attrib.update(attributes)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", alt)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _local(name: str) -> str:
    return name.rpartition("}")[2]
