"""Models that can be run in two parts: the first layer, and the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from jaxtyping import Array

Part: TypeAlias = Literal["whole", "stem", "trunk"]


class Split:
    """For modules whose `__call__` takes `part`: `trunk(variables, stem(variables, x))` is all.

    >>> import jax, jax.numpy as jnp
    >>> from jaxrobust.models import mlp
    >>> model, x = mlp((8,)), jnp.ones((2, 4))
    >>> variables = model.init(jax.random.key(0), x)
    >>> model.stem(variables, x).shape, model.trunk(variables, model.stem(variables, x)).shape
    ((2, 8), (2, 10))
    """

    def stem(self, variables: Mapping[str, Any], x: Any) -> Array:
        """Output of the first layer, its ReLU included where one follows at once."""
        module: Any = self
        return module.apply(variables, x, part="stem")

    def trunk(self, variables: Mapping[str, Any], hidden: Array, **options: Any) -> Any:
        """What the module returns whose first layer gave `hidden`; options go to `apply`."""
        module: Any = self
        return module.apply(variables, hidden, part="trunk", **options)
