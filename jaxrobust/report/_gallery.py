"""The attacked images of a report, as tiles on a page and as one PNG: clean, change, attacked."""

from __future__ import annotations

import io
import math
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.patches import Rectangle

from jaxrobust.evaluation import Report
from jaxrobust.report._chart import FAINT, clean_words, styled

TILE_PIXELS = 96
MOST_TILES = 6
"""Examples shown of one report."""


class Tile(NamedTuple):
    """One attacked example, as pictures `(height, width, 3)` uint8 and words.

    Attributes:
        row: Row of the example.
        label: Its true class.
        prediction: Class the clean image is given.
        attacked_prediction: Class the adversarial image is given; None where not recorded.
        outcome: What became of it: "broken by NAME", "held", "wrong without attack".
        distance: Smallest distance at which it was seen to break, or infinity.
        clean: The image.
        change: Adversarial minus clean, in colours.
        adversarial: The attacked image.
    """

    row: int
    label: int
    prediction: int
    attacked_prediction: int | None
    outcome: str
    distance: float
    clean: np.ndarray
    change: np.ndarray
    adversarial: np.ndarray


class Gallery(NamedTuple):
    """Tiles of one report, what their colours mean, and how many images there were."""

    tiles: list[Tile]
    scale: float
    colour: bool
    num_images: int


def gallery(report: Report) -> Gallery | None:
    """The kept images of a report, broken ones first; None where there is nothing to draw."""
    clean, adversarial = report.images.get("clean"), report.images.get("adversarial")
    if clean is None or adversarial is None or len(clean) == 0:
        return None
    clean, adversarial = (_as_channels(np.asarray(a, np.float64)) for a in (clean, adversarial))
    if clean is None or adversarial is None:
        return None
    columns = report.examples
    change = adversarial - clean
    # The ball's own scale where pixels are bounded by it, so that pictures can be compared.
    largest = float(np.nanmax(np.abs(change), initial=0.0))
    scale = report.eps if report.norm == "linf" and largest <= report.eps * 1.001 else largest
    scale = scale if scale > 0 else 1.0
    outcomes = [_outcome(columns, row) for row in range(len(clean))]
    order = sorted(range(len(clean)), key=lambda row: outcomes[row][1])
    tiles = []
    for row in order[:MOST_TILES]:
        broken_by = str(columns["broken_by"][row])
        prediction = int(columns["clean_prediction"][row])
        attacked = prediction
        if broken_by:
            seen = columns.get(f"prediction/{broken_by}")
            attacked = None if seen is None else int(seen[row])
        tiles.append(
            Tile(
                row=row,
                label=int(columns["label"][row]),
                prediction=prediction,
                attacked_prediction=attacked,
                outcome=outcomes[row][0],
                distance=float(columns["distance"][row]) if broken_by else math.inf,
                clean=_pixels(clean[row]),
                change=_change_pixels(change[row], scale),
                adversarial=_pixels(adversarial[row]),
            )
        )
    return Gallery(tiles, scale, clean.shape[-1] == 3, len(clean))


def gallery_sheet(shown: Gallery, title: str) -> bytes:
    """The gallery as one PNG, two examples side by side."""
    count = len(shown.tiles)
    across = 1 if count == 1 else 2
    down = math.ceil(count / across)
    width, height = 3.7 * across + 0.2, 1.5 * down + 0.75
    with styled():
        figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
        FigureCanvasAgg(figure)
        figure.text(0.15 / width, 1 - 0.25 / height, clean_words(title), size=10, va="center")
        note = f"clean, change ({scale_words(shown)}), attacked"
        figure.text(0.15 / width, 1 - 0.47 / height, note, size=8, va="center", color="#5B6470")
        axes = figure.add_axes((0, 0, 1, 1))  # one for all: its units are inches
        axes.set_axis_off()
        for i, tile in enumerate(shown.tiles):
            left = 0.15 + 3.7 * (i % across)
            bottom = height - 0.7 - 1.5 * (i // across) - 1.1
            for j, image in enumerate((tile.clean, tile.change, tile.adversarial)):
                start = left + 1.17 * j
                box = (start, start + 1.1, bottom, bottom + 1.1)
                axes.imshow(image, extent=box, aspect="auto", interpolation="nearest")
                axes.add_patch(Rectangle((start, bottom), 1.1, 1.1, fill=False, ec=FAINT, lw=0.8))
            words = f"{tile.label}: read as {prediction_words(tile)}, {clean_words(tile.outcome)}"
            axes.text(left, bottom - 0.13, words, size=8, va="center")
        axes.set(xlim=(0, width), ylim=(0, height))
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": "jaxrobust"})
    return out.getvalue()


def class_words(prediction: int | None) -> str:
    """A predicted class; "?" where it was not recorded, "none" where the logits were not finite.

    >>> class_words(7), class_words(-1)
    ('7', 'none')
    """
    if prediction is None:
        return "?"
    return str(prediction) if prediction >= 0 else "none"


def prediction_words(tile: Tile) -> str:
    """What the clean and then the attacked image are read as."""
    before, after = class_words(tile.prediction), class_words(tile.attacked_prediction)
    return before if before == after else f"{before} \u2192 {after}"


def scale_words(shown: Gallery) -> str:
    """What the colours of the change mean."""
    if shown.colour:
        return (
            f"grey: none; black to white: \u2212{shown.scale:.3g} to +{shown.scale:.3g} a channel"
        )
    return f"blue to red: \u2212{shown.scale:.3g} to +{shown.scale:.3g}; white: none"


def picture(image: np.ndarray) -> bytes:
    """One image as PNG, its pixels enlarged to squares that stay sharp."""
    factor = max(1, TILE_PIXELS // max(image.shape[:2]))
    out = io.BytesIO()
    large = np.repeat(np.repeat(image, factor, 0), factor, 1)
    imsave(out, large, format="png", metadata={"Software": "jaxrobust"})
    return out.getvalue()


def _outcome(columns: dict[str, np.ndarray], row: int) -> tuple[str, int]:
    """What became of an example, and its place in the order of showing."""
    broken_by = str(columns["broken_by"][row])
    if not columns["clean_correct"][row]:
        return "wrong without attack", 2
    return (f"broken by {broken_by}", 0) if broken_by else ("held", 1)


def _as_channels(images: np.ndarray) -> np.ndarray | None:
    """Images as `(batch, height, width, 1 or 3)`; None where they are no images."""
    if images.ndim == 3:
        images = images[..., None]
    drawable = images.ndim == 4 and images.shape[-1] in (1, 3)
    return images if drawable else None


def _pixels(image: np.ndarray) -> np.ndarray:
    levels = np.round(255 * np.clip(np.nan_to_num(image), 0, 1)).astype(np.uint8)
    return np.broadcast_to(levels, (*levels.shape[:2], 3))


def _change_pixels(change: np.ndarray, scale: float) -> np.ndarray:
    centred = 0.5 + 0.5 * np.clip(np.nan_to_num(change) / scale, -1, 1)
    if change.shape[-1] == 3:
        return _pixels(centred)
    return matplotlib.colormaps["RdBu_r"](centred[..., 0], bytes=True)[..., :3]
