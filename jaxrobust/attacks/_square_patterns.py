"""The l2 Square attack's patterns: two opposite bumps side by side, of unit length."""

from __future__ import annotations

import numpy as np


def bump(rows: int, columns: int) -> np.ndarray:
    """One bump: concentric squares added up with weights `1 / k^2`, scaled to l2 length 1.

    References: Andriushchenko et al. 2020, sec. 4.2.

    >>> (bump(3, 3) / bump(3, 3)[0, 0]).round(4)
    array([[1., 1., 1.],
           [1., 5., 1.],
           [1., 1., 1.]])
    """
    row, column = np.ogrid[:rows, :columns]
    ring = np.maximum(np.abs(row - rows // 2), np.abs(column - columns // 2))
    weights = 1.0 / np.arange(1, max(rows // 2, columns // 2) + 2) ** 2
    return unit(np.cumsum(weights[::-1])[::-1][ring])


def pattern(rows: int, columns: int) -> np.ndarray:
    """A bump in the upper half and its negative in the lower."""
    upper = rows // 2
    return unit(np.concatenate([bump(upper, columns), -bump(rows - upper, columns)]))


def unit(values: np.ndarray) -> np.ndarray:
    """Scaled to l2 length 1; zero stays zero."""
    return values / max(np.sqrt(np.sum(values**2)), np.finfo(float).tiny)


def bank(windows: list[tuple[int, int]]) -> np.ndarray:
    """`(windows, 2, rows, columns)`: each window's pattern, upright and on its side, padded."""
    found = np.zeros((len(windows), 2, *np.max(windows, 0)))
    for number, (rows, columns) in enumerate(windows):
        found[number, 0, :rows, :columns] = pattern(rows, columns)
        found[number, 1, :rows, :columns] = pattern(columns, rows).T
    return found


def tiles(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The start: a grid of patterns, five along the shorter side.

    Returns:
        Of each pixel its tile, and its value in the upright pattern and in the one on its side.
        What is left over at the border is zero.
    """
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    area = (down * side, across * side)
    border = [((size - used) // 2, size - used - (size - used) // 2)
              for size, used in zip((height, width), area, strict=True)]  # fmt: skip
    number = np.kron(np.arange(down * across).reshape(down, across), np.ones((side, side), int))
    one = pattern(side, side)
    upright, lying = (np.tile(shape, (down, across)) for shape in (one, one.T))
    return np.pad(number, border), np.pad(upright, border), np.pad(lying, border)
