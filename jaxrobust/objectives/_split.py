"""A model in two parts: its first layer, and the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from jaxtyping import Array, PyTree

from jaxrobust.objectives._base import Forward

Stem: TypeAlias = Callable[[PyTree, Array], Array]
"""`stem(params, x) -> hidden`, rows independent of one another and without a state."""


def from_split_module(module: Any) -> tuple[Stem, Forward]:
    """The two parts of a Flax module of `models`, for `yopo`.

    Args:
        module: With methods `stem(variables, x)` and `trunk(variables, hidden)`, whose composition
            it is. Where the model has a state (batch statistics), the trunk is called with
            `train=True` and all collections but "params" mutable.

    Returns:
        `(stem, trunk)`: `stem(params, x) -> hidden`, and `trunk(params, model_state, hidden) ->
        (outputs, model_state)` in training mode.

    Raises:
        ValueError: For a module without such parts.

    >>> from_split_module(max)
    Traceback (most recent call last):
    ValueError: module must have methods stem(variables, x) and trunk(variables, hidden), ...
    """
    if not all(callable(getattr(module, part, None)) for part in ("stem", "trunk")):
        raise ValueError(
            "module must have methods stem(variables, x) and trunk(variables, hidden), as "
            f"models.madry_cnn() has; got {type(module).__name__}"
        )

    def stem(params: PyTree, x: Array) -> Array:
        return module.stem({"params": params}, x)

    def trunk(params: PyTree, model_state: PyTree, hidden: Array) -> tuple[PyTree, PyTree]:
        variables = {"params": params, **model_state}
        if not model_state:
            return module.trunk(variables, hidden), model_state
        return module.trunk(variables, hidden, train=True, mutable=list(model_state))

    return stem, trunk
