"""What a loss is for: a target, a detector to please, and when it is reached."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxrobust.losses._carlini_wagner import CarliniWagner
from jaxrobust.losses._common import Loss, margin
from jaxrobust.types import logits_of


@dataclasses.dataclass(frozen=True)
class targeted:  # noqa: N801 - reads as the function it is: targeted(loss)
    """Turn a loss into its targeted form: y becomes the wanted class.

    That is the loss negated, but for Carlini and Wagner's, which are not symmetric and bring a
    targeted form of their own. A penalty stays a penalty.

    Args:
        loss: Any loss of this module's form.

    >>> float(targeted(margin)(jnp.array([3.0, 1.0]), jnp.array(0)))
    2.0
    """

    loss: Loss

    def __post_init__(self) -> None:
        if isinstance(self.loss, targeted):
            raise ValueError(f"loss must not be targeted already; got {self.loss!r}")

    def __call__(self, outputs: PyTree, y: Any) -> Array:
        """How near the outputs are to the target `y`."""
        if isinstance(self.loss, penalized):
            return self.loss.joined(targeted(self.loss.loss), outputs, y, True)
        if isinstance(self.loss, CarliniWagner):
            return self.loss.towards(logits_of(outputs), y)
        return -self.loss(outputs, y)


@dataclasses.dataclass(frozen=True)
class penalized:  # noqa: N801 - reads as the function it is: penalized(loss, penalty)
    """A loss minus a penalty: what an attack climbs that must also please a detector.

    Args:
        loss: Any loss of this module's form, targeted or not.
            Best one that is 0 from success on, as `f6` is: one that goes on rising, as `margin`
            does, outweighs any penalty.
        penalty: `penalty(outputs, y) -> scalar`, 0 exactly where the image passes and positive
            otherwise: a detector's hinge on an embedding that the model returns beside its logits.
            One that depends on where the attack is heading has a method `towards(outputs, target)`
            too, which targeted forms take, as `detect.hinge` does.

    >>> from jaxrobust.losses import f6
    >>> far = lambda outputs, y: jnp.maximum(0.0, jnp.abs(outputs[1]) - 1.0)
    >>> float(penalized(f6, far)((jnp.array([1.0, 3.0]), jnp.array(1.5)), jnp.array(0)))
    -0.5
    """

    loss: Loss
    penalty: Callable[[Any, Any], Array]

    def __post_init__(self) -> None:
        if isinstance(self.penalty, type):
            raise ValueError(
                f"penalty must be a function of (outputs, y); got the class "
                f"{self.penalty.__name__}, which must be called first: {self.penalty.__name__}()"
            )

    def __call__(self, outputs: PyTree, y: Any) -> Array:
        """The loss, less the penalty."""
        return self.joined(self.loss, outputs, y, _is_targeted(self.loss))

    def joined(self, loss: Loss, outputs: PyTree, y: Any, towards: bool) -> Array:
        """What is climbed, the loss in its present form."""
        return loss(outputs, y) - self.of(outputs, y, towards)

    def of(self, outputs: PyTree, y: Any, towards: bool) -> Array:
        """The penalty, in its targeted form where there is one and it is wanted."""
        penalty = getattr(self.penalty, "towards", self.penalty) if towards else self.penalty
        return penalty(outputs, y)


_BEST = 100.0
"""More than the logarithm of any float32."""


@dataclasses.dataclass(frozen=True)
class selective(penalized):  # noqa: N801 - reads as the function it is: selective(loss, penalty)
    """The loss until it is reached, and from there on the penalty alone, less of it being better.

    The same aim as `penalized`, for attacks within a ball. In a sum a penalty in nats can drown a
    margin of a few logits, and an image that is still classified correctly but very natural may
    count for more than one that is not. Here an image that reaches the loss's aim has the value
    `-log(penalty)`, 100 where there is none, and any other one the loss, at most 0, less 100. With
    `detect.hinge(math.inf)`, which always finds something to ask for, that is the misclassified
    image of the highest score: what a detector's area under the curve must withstand.

    Values jump where the aim is reached, so that only an attack which keeps its best image
    (`attacks.apgd`) ends on the right side.

    References: Bryniarski et al., Evading adversarial example detection defenses with orthogonal
        projected gradient descent, ICLR 2022, sec. 4 (selective gradients).

    >>> from jaxrobust.losses import margin
    >>> far = lambda outputs, y: jnp.maximum(0.0, jnp.abs(outputs[1]) - 1.0)
    >>> loss = selective(margin, far)
    >>> float(loss((jnp.array([1.0, 3.0]), jnp.array(4.0)), jnp.array(0)))  # -log(3)
    -1.098612...
    >>> float(loss((jnp.array([1.0, 3.0]), jnp.array(0.0)), jnp.array(1)))  # the margin is -2
    -102.0
    """

    def joined(self, loss: Loss, outputs: PyTree, y: Any, towards: bool) -> Array:
        """What is climbed, the loss in its present form."""
        penalty = self.of(outputs, y, towards)
        paid = ~(penalty <= 0)
        value = jnp.where(paid, -jnp.log(jnp.where(paid, penalty, 1)), _BEST)
        missed = jnp.minimum(loss(outputs, y), 0) - _BEST
        return jnp.where(success(loss, outputs, y), value, missed)


def _is_targeted(loss: Loss) -> bool:
    while isinstance(loss, penalized):
        loss = loss.loss
    return isinstance(loss, targeted)


def confident(loss: Any, kappa: float | None) -> Any:
    """A Carlini-Wagner loss at confidence kappa, also inside `targeted` or `penalized`.

    Args:
        loss: One of `f1` to `f7`.
        kappa: By how much the wanted logit must exceed all others, at least 0; where None, the loss
            stays as it is.

    Raises:
        ValueError: For a kappa below 0, and for any other loss where it is above.

    >>> from jaxrobust.losses import f6
    >>> float(confident(f6, 5.0)(jnp.array([1.0, 3.0]), jnp.array(0)))
    -3.0
    """
    if kappa is None:
        return loss
    if not 0 <= kappa < float("inf"):
        raise ValueError(f"kappa must be finite and at least 0; got {kappa}")
    if isinstance(loss, targeted | penalized):
        return dataclasses.replace(loss, loss=confident(loss.loss, kappa))
    if isinstance(loss, CarliniWagner):
        return dataclasses.replace(loss, kappa=float(kappa))
    if kappa > 0:
        raise ValueError(f"kappa above 0 needs one of losses.f1 to f7 as the loss; got {loss!r}")
    return loss


def success(loss: Loss, outputs: PyTree, y: Any) -> Array:
    """Whether an attack with this loss has reached its aim at these outputs of one example.

    Untargeted: the predicted class is not `y`; targeted: it is. Ties go to the lower class index,
    as in `argmax`; logits with NaN or +inf predict nothing, so that untargeted they are a success
    at any confidence. A penalty must be 0, and a confidence (`confident`) be reached.

    >>> bool(success(margin, jnp.array([3.0, 1.0]), jnp.array(1)))
    True
    """
    aimed, reached, towards = loss, True, _is_targeted(loss)
    while isinstance(aimed, targeted | penalized):
        if isinstance(aimed, penalized):
            reached &= aimed.of(outputs, y, towards) <= 0
        aimed = aimed.loss
    logits = logits_of(outputs)
    predicts = jnp.all(logits < jnp.inf)
    hit = predicts & (jnp.argmax(logits) == y)
    if isinstance(aimed, CarliniWagner) and aimed.kappa:
        gap = margin(logits, y)
        reached &= ~predicts | ((-gap if towards else gap) >= aimed.kappa)
    return reached & (hit if towards else ~hit)
