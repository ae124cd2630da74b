"""The README's tables, from the recorded numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import records
from experiments.spatial.config import EPS_WITHIN, LINEAR, SIX, TAU, UPPER
from experiments.spatial.evaluate import AFFINE, BOUNDS, PRINTED


def tables(folder: Path) -> dict[str, str]:
    """Markdown tables by their names in the README."""
    found = {name: content["found"] for name, content in records.read(folder).items()}
    return {
        "attacks": _attacks(found),
        "bounds": _bounds(found, UPPER, BOUNDS, PRINTED),
        "meeting": _meeting(found),
        "affine": _bounds(found, LINEAR, AFFINE, ("linear",)),
    }


def _attacks(found: dict[str, Any]) -> str:
    rows = []
    for name in SIX:
        cells = [name, *[""] * 7]
        if f"clean {name}" in found:
            cells[1] = f"{100 * found[f'clean {name}']['accuracy']:.2f}"
            cells[2] = f"{found[f'clean {name}']['lead']:.3g}"
        if f"stadv {name}" in found:
            of = found[f"stadv {name}"]
            at = of["tau"].index(TAU)
            cells[3] = f"{100 * of['success'][of['tau'].index(0.0)]:.1f}"
            cells[4] = f"{100 * of['success'][at]:.1f}"
            cells[5] = f"{of['variation'][at]:.3g} ({of['median variation'][at]:.2g})"
        if f"within {name}" in found:
            of = found[f"within {name}"]
            cells[6] = f"{100 - 100 * of['loss'][of['eps'].index(2.0)]:.1f}"
        if f"rotations {name}" in found:
            cells[7] = f"{100 * found[f'rotations {name}']['accuracy']:.1f}"
        rows.append(cells)
    head = ["", "clean, %", "lead", "stAdv success at tau 0, %", f"at tau {TAU}, %",
            "its mean (median) variation", "accuracy within eps 2, %",
            "under rotations and translations, %"]  # fmt: skip
    return records.table(head, rows)


def _bounds(
    found: dict[str, Any], names: Sequence[str], bounds: Sequence[str], printed: Sequence[str]
) -> str:
    rows = []
    shown = [*bounds, *(f"{bound}, as printed" for bound in printed)]
    for name in names:
        of = found.get(f"upper {name}")
        cells = [""] * (len(bounds) + len(shown))
        if of:
            cells = [f"{of[f'{bound} per eps']:.3g}" for bound in bounds]
            cells += [_proved(of, bound) for bound in shown]
        rows.append([name, *cells])
    head = ["", *(f"{b}, per eps" for b in bounds), *(f"{b} at 0.01, %" for b in bounds),
            *(f"{b} as printed, %" for b in printed)]  # fmt: skip
    return records.table(head, rows)


def _meeting(found: dict[str, Any]) -> str:
    """Of the images that are attacked: proved by the tightest bound, and not broken."""
    radii = [eps for eps in EPS_WITHIN if eps <= 0.15]
    rows = []
    for name in (*UPPER, *LINEAR):
        proved = found.get(f"upper {name}", {}).get("proved of attacked", {})
        within = found.get(f"within {name}")
        cells = [""] * len(radii)
        if proved and within:
            bound = "linear" if name in LINEAR else "sdp_l2"
            cells = [
                f"{certified.count('1')} / {broken.count('0')}"
                for certified, broken in zip(proved[bound], within["broken"], strict=True)
            ][: len(radii)]
        rows.append([name, *cells])
    return records.table(["", *(f"eps {eps:g}" for eps in radii)], rows)


def _proved(of: dict[str, Any], bound: str) -> str:
    return f"{100 - 100 * of['loss'][bound][of['eps'].index(0.01)]:.1f}"
