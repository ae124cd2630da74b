"""What lets an attack know the detector: a model that shows its scores, and their penalty."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, PyTree

from jaxrobust.detect._common import ClassConditional
from jaxrobust.types import Images, LogitsFn, Randomized, as_partial, logits_of


def exposed(logits_fn: LogitsFn, detector: ClassConditional) -> LogitsFn:
    """The model that returns `(logits, scores)`: what an adaptive attack is to be run on.

    The attack faces the detector as it is: all reference points, all classes, its thresholds. The
    white-box attack of the literature, C&W-wb, is

        loss = losses.penalized(losses.f6, detect.hinge())
        x_adv = attacks.carlini_wagner_l2(detect.exposed(logits_fn, detector), x, y, key=key,
                                          loss=loss)

    whose images score just above the threshold. Within a ball, `attacks.apgd` with
    `losses.selective(losses.margin, detect.hinge(math.inf))` goes for the misclassified image of
    the highest score, which is what an area under the curve must withstand.

    In `evaluate`, whose model shows the embedding, `attacks.through` gives an attack this view of
    it: `through(Partial(exposed, detector=detector), attack)`, the one of minimum norm in
    `against`.

    Args:
        logits_fn: `(batch, *dims) -> (logits, embedding)`, or `Randomized`.
        detector: A detector of this package: anything with `scores(outputs) -> (batch, classes)`.

    Raises:
        ValueError: For a detector without scores of every class.

    References: Carlini and Wagner 2017b, sec. 3; Pang et al. 2018, sec. 4.4; paper 004, sec. 4.3.

    >>> import numpy as np
    >>> from jaxrobust.detect import mahalanobis
    >>> z = np.array([[0.0], [2.0], [8.0], [10.0]], np.float32)
    >>> found = mahalanobis(z, np.array([0, 0, 1, 1]), num_classes=2)
    >>> model = lambda x: (jnp.concatenate([5 - x, x - 5], -1), x)
    >>> exposed(model, found)(jnp.array([[3.0]]))[1]
    Array([[ -4., -36.]], dtype=float32)
    """
    if not callable(getattr(detector, "scores", None)):
        raise ValueError(
            "detector must have scores of every class, as those of jaxrobust.detect; got "
            f"{type(detector).__name__}"
        )
    if isinstance(logits_fn, Randomized):
        return Randomized(Partial(_exposed, logits_fn.fn, detector))
    return Partial(_exposed, as_partial(logits_fn), detector)


def _exposed(logits_fn: LogitsFn, detector: Any, x: Images, *key: Array) -> PyTree:
    outputs = logits_fn(x, *key)
    return logits_of(outputs), detector.scores(outputs)


@dataclasses.dataclass(frozen=True)
class hinge:  # noqa: N801 - reads as the function it is: hinge()
    """The penalty `relu(kappa - score)` of the class that the attack drives at.

    For `losses.penalized` on what `exposed` returns. Untargeted that is the best wrong class, and
    inside `losses.targeted` (as in an attack with a target) the target.

    Args:
        kappa: By how much the score must exceed the threshold, at least 0. Our default, a
            thousandth (of a nat, for densities), keeps a success one in other compilations of the
            model, whose scores round otherwise; published is 0. Where it is infinite no score will
            do: the penalty of a score s is `1 - s` below the threshold and `1 / (1 + s)` above.

    Raises:
        ValueError: For a kappa that is negative or no number; when called, for outputs without a
            score of each class.

    References: Pang et al. 2018, sec. 4.4: `relu(log median - log density)`.

    >>> outputs = jnp.array([3.0, 1.0, 2.0]), jnp.array([9.0, -1.0, -4.0])
    >>> float(hinge(0.0)(outputs, 0)), float(hinge(0.0).towards(outputs, 1))
    (4.0, 1.0)
    """

    kappa: float = 1e-3

    def __post_init__(self) -> None:
        if not self.kappa >= 0:
            raise ValueError(f"kappa must be at least 0; got {self.kappa}")

    def __call__(self, outputs: PyTree, y: Any) -> Array:
        """Away from the true class `y`."""
        logits = logits_of(outputs)
        others = jnp.where(jnp.arange(logits.size) == y, -jnp.inf, logits)
        return self.towards(outputs, jnp.argmax(others))

    def towards(self, outputs: PyTree, target: Any) -> Array:
        """Towards the class `target`."""
        if not isinstance(outputs, tuple) or jnp.shape(outputs[1]) != jnp.shape(outputs[0]):
            raise ValueError(
                "outputs must be (logits, scores), a score of each class, as detect.exposed makes "
                f"them of a model and a detector; got {jax.tree.map(jnp.shape, outputs)}"
            )
        score = outputs[1][target]
        if math.isinf(self.kappa):
            return jnp.where(score > 0, 1 / (1 + jnp.abs(score)), 1 - score)
        return jax.nn.relu(self.kappa - score)
