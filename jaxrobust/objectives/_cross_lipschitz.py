"""Cross-Lipschitz regularisation: differences of the logits vary slowly."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxrobust.objectives._base import Forward
from jaxrobust.objectives._input_products import squared_products
from jaxrobust.types import Objective


def cross_lipschitz(forward: Forward, *, weight: float | Array = 0.1) -> Objective:
    """`weight / (n K^2)` times the sum over images and pairs of classes of `||df_l - df_m||^2`.

    Pairs (l, m) and (m, l) both count, over n images and K classes; df is the derivative of a logit
    in the image. A regulariser alone, to be added to a loss. The sum over pairs is `2 K` times that
    over classes of `||df_l - df_mean||^2`, so that K products do instead of K^2 differences, and
    nothing but one of them is kept; see `jacobian` for what a product costs, and for batch
    statistics and the model's state.

    Args:
        forward: `(params, model_state, x) -> (outputs, model_state)`.
        weight: Lambda: 0.1 is the released code's default, 1e-4 in its example; the papers' values
            for each data set are unknown.

    Returns:
        An objective with the metric `cross_lipschitz`, without the weight.

    Raises:
        ValueError: For a negative weight.

    References:
        Hein and Andriushchenko 2017, "Formal Guarantees on the Robustness of a Classifier against
        Adversarial Manipulation"; paper 001 (which swaps its footnotes).

    >>> import jax
    >>> from jaxrobust.types import Batch
    >>> objective = cross_lipschitz(lambda w, s, x: (x @ w, s), weight=1.0)
    >>> batch = Batch(jnp.ones((1, 1)), jnp.array([0]), jnp.array([0]))
    >>> weights = jnp.array([[3.0, 7.0]])
    >>> out, _ = objective.value_and_grad(weights, {}, (), batch, key=jax.random.key(0))
    >>> round(float(out.loss), 4)  # 2 (7 - 3)^2 / 2^2
    8.0
    """

    def directions(key: Key[Array, ""], rows: int, classes: int) -> Float[Array, "n 1 classes"]:
        del key, rows
        centred = jnp.eye(classes) - 1 / classes
        return centred[:, None] * jnp.sqrt(2.0 / classes)

    return squared_products(forward, directions, weight=weight, metric="cross_lipschitz")
