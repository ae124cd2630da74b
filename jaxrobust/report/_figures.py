"""Figures of a report: charts as SVG, images as PNG, the same bytes for the same document.

Only matplotlib's object interface is used, so a figure never touches pyplot's global state.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from jaxrobust.evaluation import Report
from jaxrobust.report._document import Document, Entry

COLOURS = (
    "#0072B2", "#D55E00", "#007E5C", "#B3589A", "#B07C00", "#3D8FC4", "#5C5C5C", "#7A4B2A",
)  # fmt: skip
"""Okabe and Ito's colours, the lighter ones darkened until a line of them reads on white."""

MARKERS = "osD^vPX*"
PROVED: dict[str, Any] = {"drawstyle": "steps-pre"}
"""Between two radii, what is proved at the larger one holds."""
MEASURED: dict[str, Any] = {"drawstyle": "steps-post"}
"""Between two radii, what broke at the smaller one is broken."""
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.6)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))
WIDTH = 4.5  # inches: at the width of a phone, text keeps about the size it has here
INK, FAINT = "#2B3138", "#D5DAE0"
TILE_PIXELS = 96
MOST_TILES = 6
"""Examples shown of one report."""

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "jaxrobust",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.0,
    "axes.labelsize": 10.0,
    "axes.edgecolor": "#8A939E",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#E6E9ED",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.handlelength": 1.9,
    "legend.labelspacing": 0.35,
}


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


def colour_of(index: int) -> str:
    """The colour that classifier `index` has everywhere."""
    return COLOURS[index % len(COLOURS)]


def clean_words(text: str) -> str:
    """One line of printable text, as a drawing can hold it."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def accuracy_figure(document: Document, norm: str) -> bytes:
    """Accuracy against eps for every classifier with a curve in this norm, as SVG."""
    shown = [(i, e) for i, e in enumerate(document.entries) if norm in e.curves]
    names: list[tuple[Any, str]] = [(_key(i), entry.name) for i, entry in shown]
    kinds: list[tuple[Any, str]] = [(Line2D([], [], color=INK, lw=1.8), "attacked (at most)")]
    if any(entry.curves[norm].certified for _, entry in shown):
        dashed = Line2D([], [], color=INK, lw=1.5, ls=(0, (3.5, 2)))
        kinds.append((dashed, "certified (at least)"))
        kinds.append((Patch(color=INK, alpha=0.13, lw=0), "not known to these"))

    num_bands = sum(bool(entry.curves[norm].certified) for _, entry in shown)

    def draw(axes: Axes) -> None:
        marked = set()
        for i, entry in shown:
            curve, colour = entry.curves[norm], colour_of(i)
            axes.plot(curve.eps, curve.accuracy, color=colour, lw=1.8, zorder=3, **MEASURED)
            lower = curve.best_certified()
            if lower:
                dashed = {"color": colour, "lw": 1.5, "ls": (0, (3.5, 2)), "zorder": 3}
                axes.plot(curve.eps, lower, **dashed, **PROVED)
                ends, floor, ceiling = between(curve.eps, lower, curve.accuracy)
                axes.fill_between(
                    ends,
                    floor,
                    ceiling,
                    color=colour,
                    alpha=0.11 if num_bands <= 3 else 0.05,
                    lw=0,
                    zorder=1,
                )
            for report in entry.reports.values():
                if report.norm == norm and report.attacks:
                    marked.add(report.eps)
                    _point(axes, report, i)
        for eps in sorted(marked):
            axes.axvline(eps, color="#8A939E", lw=0.8, ls=(0, (1, 2)), zorder=0)
        against_eps(axes, norm, "accuracy")

    return chart([draw], [2.6], [names, kinds])


def between(eps: list[float], lower: list[float], upper: list[float]) -> list[np.ndarray]:
    """What is not known between the radii: both ends of each interval, its floor, its ceiling.

    >>> [side.tolist() for side in between([0.0, 0.1, 0.2], [0.9, 0.5, 0.1], [0.9, 0.8, 0.4])]
    [[0.0, 0.1, 0.1, 0.2], [0.5, 0.5, 0.1, 0.1], [0.9, 0.9, 0.8, 0.8]]
    """
    ends, floor, ceiling = (np.repeat(values, 2) for values in (eps, lower, upper))
    return [ends[1:-1], floor[2:], ceiling[:-2]]


def smoothed_figure(report: Report) -> bytes:
    """Certified accuracy of smoothed classifiers against the radius, by certificate and bound.

    The attacks' curve stands above them as far as the attacks went. As SVG.
    """
    series = {
        (name, bound): report.examples[f"{bound}_radius/{name}"]
        for name in report.smoothed_accuracy
        for bound in smoothed_bounds(report, name)
    }
    finite = [radius[np.isfinite(radius)].max(initial=0) for radius in series.values()]
    grid = np.linspace(0, 1.05 * max(report.eps, *finite), 400)
    names = list(report.smoothed_accuracy)
    looks = {
        (name, bound): {
            "color": colour_of(names.index(name)), "lw": 1.6,
            "ls": _DASHES[smoothed_bounds(report, name).index(bound) % len(_DASHES)],
        }
        for name, bound in series
    }  # fmt: skip
    attacked = {"color": INK, "lw": 1.8}
    mark = {"color": "#8A939E", "lw": 0.8, "ls": (0, (1, 2))}

    def draw(axes: Axes) -> None:
        for (name, bound), look in looks.items():
            axes.plot(grid, report.smoothed_at(name, grid, bound), **look, **PROVED)
        if report.attacks:
            within = np.append(grid[grid < report.eps], report.eps)
            axes.plot(within, report.accuracy_at(within), **attacked, **MEASURED)
        axes.axvline(report.eps, zorder=0, **mark)
        against_eps(axes, report.norm, "accuracy")

    keys = [(Line2D([], [], **look), f"{name}, {bound}") for (name, bound), look in looks.items()]
    others: list[tuple[Any, str]] = [(Line2D([], [], **mark), "eps of the attacks")]
    if report.attacks:
        others.insert(0, (Line2D([], [], **attacked), "attacked (at most)"))
    return chart([draw], [2.6], [keys, others])


def smoothed_bounds(report: Report, name: str) -> list[str]:
    """The bounds that a probabilistic certificate has radii of."""
    end = f"_radius/{name}"
    return [column.removesuffix(end) for column in report.examples if column.endswith(end)]


def against_eps(axes: Axes, norm: str, ylabel: str) -> None:
    """The axes of accuracies against the radius."""
    axes.set_ylim(0, 1.02)
    axes.set_xlim(left=0)
    axes.margins(x=0.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel(f"eps ({clean_words(norm)})")
    axes.set_ylabel(ylabel)


def training_figure(entry: Entry, index: int) -> bytes | None:
    """Loss and accuracies against the step, as SVG; None where the history holds neither.

    Metrics are told apart by their names: those with "loss" or "accuracy" in them are drawn.
    """
    series = training_series(entry)
    groups = [
        {key: points for key, points in series.items() if drawn_as(key[1]) == word}
        for word in ("loss", "accuracy")
    ]
    groups = [group for group in groups if group]
    if not groups:
        return None
    looks: dict[tuple[str, str], dict[str, Any]] = {}
    for group in groups:
        metrics = list(dict.fromkeys(name for _, name in group))
        for phase, name in group:
            k = metrics.index(name)
            look: dict[str, Any] = {"color": colour_of(index), "ls": _DASHES[k % len(_DASHES)]}
            if phase == "training":
                look |= {"alpha": 0.5, "lw": 1.3}
            else:
                look |= {"lw": 1.6, "marker": MARKERS[k % len(MARKERS)], "ms": 3.8}
            looks[phase, name] = look
    keys = [
        (Line2D([], [], **look), f"{phase} {name.replace('_', ' ')}")
        for (phase, name), look in looks.items()
    ]

    def draw(group: dict[tuple[str, str], np.ndarray]) -> Callable[[Axes], None]:
        def panel(axes: Axes) -> None:
            for key, points in group.items():
                axes.plot(points[:, 0], points[:, 1], **looks[key])
            values = np.concatenate([points[:, 1] for points in group.values()])
            if "accuracy" in next(iter(group))[1]:
                axes.set_ylim(0, 1.02)
                axes.yaxis.set_major_formatter(PercentFormatter(1.0))
                axes.set_ylabel("accuracy")
            elif values.min() > 0 and values.max() > 50 * values.min():
                axes.set_yscale("log")
                axes.set_ylabel("loss (log scale)")
            else:
                axes.set_ylim(bottom=min(0.0, float(values.min())))
                axes.set_ylabel("loss")

        return panel

    panels = [draw(group) for group in groups]
    return chart(panels, [1.55] * len(panels), [keys], xlabel="training step")


def training_series(entry: Entry) -> dict[tuple[str, str], np.ndarray]:
    """Finite points `(step, value)` of each metric, by ("training" or "validation", name)."""
    series: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for line in entry.history:
        phases = {"training": line, "validation": line.get("validation") or {}}
        for phase, metrics in phases.items():
            for name, value in metrics.items():
                numeric = isinstance(value, (int, float)) and math.isfinite(value)
                if numeric and name not in ("step", "epoch"):
                    series.setdefault((phase, name), []).append((line["step"], value))
    return {key: np.asarray(points, float) for key, points in series.items()}


def drawn_as(name: str) -> str:
    """The panel of training figures that a metric belongs in: "loss", "accuracy" or none.

    >>> drawn_as("adversarial_accuracy"), drawn_as("validation_loss"), drawn_as("eps")
    ('accuracy', 'loss', '')
    """
    return next((word for word in ("accuracy", "loss") if word in name), "")


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
    with _styled():
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


def slug(text: str) -> str:
    """A part of a file name.

    >>> slug("linf 0.1")
    'linf-0.1'
    """
    return re.sub(r"[^a-zA-Z0-9.]+", "-", text).strip("-.") or "x"


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


def _key(index: int) -> Line2D:
    return Line2D(
        [], [], color=colour_of(index), lw=3.2, marker=MARKERS[index % 8], ms=5.5,
        markeredgecolor="white", markeredgewidth=0.8,
    )  # fmt: skip


def _point(axes: Axes, report: Report, index: int) -> None:
    """The accuracy that was measured, with its interval."""
    low, high = report.intervals.get("robust", (report.robust_accuracy,) * 2)
    axes.vlines(report.eps, low, high, color=colour_of(index), lw=1.2, zorder=4)
    axes.plot(
        [report.eps], [report.robust_accuracy], color=colour_of(index), zorder=5, clip_on=False,
        marker=MARKERS[index % 8], ms=5.5, markeredgecolor="white", markeredgewidth=0.8,
    )  # fmt: skip


def chart(
    panels: list[Callable[[Axes], None]],
    heights: list[float],
    keys: list[list[tuple[Any, str]]],
    xlabel: str | None = None,
) -> bytes:
    """Panels under one another, a shared x axis below and the keys above, as SVG."""
    keys = [[(handle, _shortened(clean_words(name))) for handle, name in key] for key in keys]
    if any(len(name) > 22 for key in keys for _, name in key):  # they do not fit side by side
        keys = [[item for key in keys for item in key]]
    key_height = 0.2 * max(map(len, keys)) + 0.14
    gap, bottom, left, right = 0.17, 0.52, 0.66, 0.12
    height = key_height + sum(heights) + gap * (len(heights) - 1) + bottom
    with _styled():
        figure = Figure(figsize=(WIDTH, height), facecolor="white")
        FigureCanvasSVG(figure)
        top, shared = height - key_height, None
        for i, (panel, panel_height) in enumerate(zip(panels, heights, strict=True)):
            box = (
                left / WIDTH, (top - panel_height) / height, 1 - (left + right) / WIDTH,
                panel_height / height,
            )  # fmt: skip
            axes = figure.add_axes(box, sharex=shared)
            shared = shared or axes
            panel(axes)
            axes.yaxis.set_label_coords(-0.52 / (WIDTH - left - right), 0.5)
            if i + 1 < len(panels):
                axes.tick_params(labelbottom=False)
            elif xlabel is not None:
                axes.set_xlabel(xlabel)
                axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            top -= panel_height + gap
        for i, key in enumerate(keys):
            legend = figure.legend(
                [handle for handle, _ in key], ["x"] * len(key), loc="upper left",
                borderaxespad=0.1, borderpad=0.2,
                bbox_to_anchor=(0.08 / WIDTH + 0.5 * i, 1.0),
            )  # fmt: skip
            # Set afterwards: matplotlib leaves out labels that start with an underscore.
            for text, (_, name) in zip(legend.get_texts(), key, strict=True):
                text.set_text(name)
        out = io.BytesIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=nothing)
    return out.getvalue()


def _shortened(text: str) -> str:
    return text if len(text) <= 46 else text[:45].rstrip() + "\u2026"


@contextlib.contextmanager
def _styled() -> Iterator[None]:
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # Names may be in scripts that the measuring font lacks; the reader's fonts draw them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield
