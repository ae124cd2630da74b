"""Flow fields: images whose pixels are moved, how rough a flow is, and balls of smooth flows.

A flow is `(height, width, 2)`: by how many pixels down and to the right of itself each pixel of the
new image looks into the old one. Like `Ball`, all of it speaks of one example.
"""

from jaxrobust.flow._ball import FlowBall
from jaxrobust.flow._roughness import (
    NullSpace,
    check_null_space,
    largest_displacement,
    quadratic_variation,
    smoothed,
    solved,
    total_variation,
)
from jaxrobust.flow._warp import warp

__all__ = [
    "FlowBall",
    "NullSpace",
    "check_null_space",
    "largest_displacement",
    "quadratic_variation",
    "smoothed",
    "solved",
    "total_variation",
    "warp",
]
