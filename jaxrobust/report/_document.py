"""What a report says, and how it lies on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxrobust import files
from jaxrobust.diagnosis import Findings
from jaxrobust.evaluation import Report

FORMAT = 1
"""Version of the layout of `report.json`; raised whenever an older `load` would misread it."""

JSON_NAME = "report.json"
ARRAYS_NAME = "examples.npz"
_NON_FINITE = "non-finite"


@dataclasses.dataclass(frozen=True)
class Curve:
    """Accuracy of one classifier against the radius, as fractions.

    Attributes:
        eps: Radii, rising.
        accuracy: Right under every attack within each radius: an upper bound.
        certified: Right and certified at each radius, by name of the certificate: lower bounds.

    >>> Curve([0.0, 0.1], [0.9, 0.5], {"interval": [0.9, 0.25]}).best_certified()
    [0.9, 0.25]
    """

    eps: list[float]
    accuracy: list[float]
    certified: dict[str, list[float]]

    def __post_init__(self) -> None:
        for name, values in {"accuracy": self.accuracy, **self.certified}.items():
            if len(values) != len(self.eps):
                raise ValueError(
                    f"{name} must hold one value for each of the {len(self.eps)} radii of eps; "
                    f"got {len(values)}"
                )

    def best_certified(self) -> list[float]:
        """The largest lower bound at each radius; empty where there is no certificate."""
        return [max(values) for values in zip(*self.certified.values(), strict=True)]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One classifier.

    Attributes:
        name: What to call it.
        description: What it is and how it was trained, in a sentence.
        reports: Evaluations by label of the threat, such as "linf 0.1".
        curves: Accuracy against eps, by norm.
        history: Metrics of its training, as `jaxrobust.train.fit` returns them; may be empty.
        diagnoses: What `jaxrobust.diagnose` found, by label of the threat.
    """

    name: str
    description: str
    reports: dict[str, Report]
    curves: dict[str, Curve]
    history: list[dict[str, Any]]
    diagnoses: dict[str, Findings] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Document:
    """Everything that a page shows.

    Attributes:
        title: Title of the page.
        command: Command line that makes it again.
        entries: The classifiers, in the order to show them.
        notes: Sentences a reader should know before the numbers.
        created: When the numbers were made.
    """

    title: str
    command: str
    entries: list[Entry]
    notes: list[str]
    created: str


def as_document(found: Any) -> Document:
    """A document; made of one report or diagnosis, or of several by name of the classifier."""
    if isinstance(found, Document):
        return found
    kinds = (Report, Findings)
    several = {"classifier": found} if isinstance(found, kinds) else found
    if not isinstance(several, Mapping) or not all(isinstance(r, kinds) for r in several.values()):
        raise ValueError(
            "found must be a Document, a Report, Findings, or a dictionary of these by name; got "
            f"{type(found).__name__}"
        )
    entries = []
    for name, one in several.items():
        threat = f"{one.norm} {one.eps:g}"
        if isinstance(one, Findings):
            entries.append(Entry(name, "", {}, {}, [], {threat: one}))
        else:
            entries.append(Entry(name, "", {threat: one}, {}, []))
    judged = any(entry.reports for entry in entries) or not entries
    title = "How robust is it?" if judged else "Does it hide its gradients?"
    return Document(title, "", entries, [], "")


def write(document: Document, folder: str | Path) -> None:
    """Write `report.json` and `examples.npz`, each whole or not at all.

    Equal documents give equal bytes: keys are sorted, and the order of attacks and certificates,
    which means something, is written down beside them.

    Args:
        document: What to write.
        folder: Where; made if it does not exist.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    entries = []
    for i, entry in enumerate(document.entries):
        reports = []
        for j, (threat, report) in enumerate(entry.reports.items()):
            arrays |= {f"{i}/{j}/{k}": _plain(v) for k, v in report.arrays().items()}
            summary = report.summary()
            order = {k: list(v) for k, v in summary.items() if isinstance(v, dict)}
            reports.append({"threat": threat, "order": order, "summary": summary})
        curves = [
            {
                "norm": norm,
                "eps": curve.eps,
                "accuracy": curve.accuracy,
                "certified": [{"name": k, "accuracy": v} for k, v in curve.certified.items()],
            }
            for norm, curve in entry.curves.items()
        ]
        entries.append(
            {
                "name": entry.name,
                "description": entry.description,
                "reports": reports,
                "curves": curves,
                "history": entry.history,
            }
        )
        if entry.diagnoses:
            entries[-1]["diagnoses"] = [
                {"threat": threat, "summary": found.summary()}
                for threat, found in entry.diagnoses.items()
            ]
    packed = io.BytesIO()
    np.savez_compressed(packed, **dict(sorted(arrays.items())))  # pyright: ignore[reportArgumentType]
    content = {
        "format": FORMAT,
        "title": document.title,
        "command": document.command,
        "created": document.created,
        "notes": document.notes,
        "entries": entries,
        "arrays": {"file": ARRAYS_NAME, "sha256": hashlib.sha256(packed.getvalue()).hexdigest()},
    }
    text = json.dumps(_encoded(content), indent=1, sort_keys=True, allow_nan=False) + "\n"
    files.write_whole(folder / ARRAYS_NAME, packed.getvalue())
    files.write_whole(folder / JSON_NAME, text.encode())


def load(folder: str | Path) -> Document:
    """Read back what `save` wrote.

    Args:
        folder: The folder given to `save`.

    Returns:
        The document, equal to the one saved.

    Raises:
        ValueError: If the folder is missing, a file of it is missing, incomplete or not the one
            that was saved, or the format is of another version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"folder must hold a saved report; there is no folder {folder}")
    try:
        content = json.loads(_read(folder, JSON_NAME), object_hook=_decoded)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{JSON_NAME} in {folder} is incomplete or damaged: {error}") from error
    version = content.get("format") if isinstance(content, dict) else None
    if version != FORMAT:
        raise ValueError(
            f"{JSON_NAME} in {folder} must be of format {FORMAT}, which this version reads; "
            f"got {version!r}"
        )
    packed = _read(folder, ARRAYS_NAME)
    try:
        expected = content["arrays"]["sha256"]
        if hashlib.sha256(packed).hexdigest() != expected:
            raise ValueError(
                f"{ARRAYS_NAME} in {folder} is not the file that {JSON_NAME} was saved with "
                "(its sha256 differs): it is damaged, or a save was interrupted"
            )
        arrays = _unpacked(packed, folder)
        return Document(
            content["title"],
            content["command"],
            [_entry(entry, f"{i}/", arrays) for i, entry in enumerate(content["entries"])],
            content["notes"],
            content["created"],
        )
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{JSON_NAME} in {folder} is no complete report: {error!r}") from error


def _entry(content: dict[str, Any], prefix: str, arrays: dict[str, np.ndarray]) -> Entry:
    reports = {}
    for j, stored in enumerate(content["reports"]):
        own = f"{prefix}{j}/"
        columns = {k.removeprefix(own): v for k, v in arrays.items() if k.startswith(own)}
        summary = stored["summary"]
        ordered = {k: {name: summary[k][name] for name in v} for k, v in stored["order"].items()}
        reports[stored["threat"]] = Report.restored(summary | ordered, columns)
    curves = {
        curve["norm"]: Curve(
            curve["eps"],
            curve["accuracy"],
            {bound["name"]: bound["accuracy"] for bound in curve["certified"]},
        )
        for curve in content["curves"]
    }
    diagnoses = {
        one["threat"]: Findings.restored(one["summary"]) for one in content.get("diagnoses", [])
    }
    return Entry(
        content["name"], content["description"], reports, curves, content["history"], diagnoses
    )


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else str(error.strerror)
        raise ValueError(f"{name} in {folder} cannot be read: it {reason}") from error


def _unpacked(packed: bytes, folder: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(packed), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise ValueError(f"{ARRAYS_NAME} in {folder} is incomplete or damaged: {error}") from error


def _plain(array: Any) -> np.ndarray:
    """The array in a type that needs no pickle: names held as objects become strings."""
    array = np.asarray(array)
    return array.astype(str) if array.dtype == object else array


def _encoded(value: Any) -> Any:
    """The value in JSON's own types; a float that JSON does not know becomes a tagged word."""
    if isinstance(value, dict):
        return {str(k): _encoded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encoded(v) for v in value]
    if isinstance(value, (np.ndarray, np.generic)) or hasattr(value, "__array__"):
        return _encoded(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return {_NON_FINITE: str(value)}
    return value


def _decoded(value: dict[str, Any]) -> Any:
    return float(value[_NON_FINITE]) if value.keys() == {_NON_FINITE} else value
