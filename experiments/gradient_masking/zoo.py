"""Deliberately masked defences in small, each with what breaks it, and honest networks.

They are no likenesses of the published defences, but the shortest code that hides its gradient in
the same way. Broken, for study.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array

import jaxrobust as jr
from experiments.gradient_masking import layers, models, train
from experiments.gradient_masking.config import Sizes
from experiments.gradient_masking.train import Data

TEMPERATURE = 100.0
"""Of the distilled network, Papernot's."""

SIGMA = 0.2
"""Deviation of the noise of the stability-trained network, paper 000's on MNIST."""

REFERENCES, REJECTED = 512, 0.05
"""Training images that local dimensions are measured among, and the share of them it rejects."""

SLOPE = 0.15
"""Weight of the slopes in the cascade's training; our choice, a larger one costs accuracy."""

DRAWS = 20
"""Draws of a random model in each gradient of its cure, as in AutoAttack's "rand"."""


class Defence(NamedTuple):
    """A defence as it is deployed, and how it is broken.

    Attributes:
        row: The row of the case study's table that it stands for; "" for honest networks.
        symptoms: Findings of which any is right.
        cure: What breaks it, in words.
        logits_fn: The model.
        plain: The same attack without the cure, by which it seems robust.
        attack: What breaks it, in the common form.
        detectors: As `diagnose` and `evaluate` take them.
    """

    row: str
    symptoms: tuple[str, ...]
    cure: str
    logits_fn: Any
    plain: Any
    attack: Any
    detectors: dict[str, Any]


@functools.cache  # one object for each setting, so that nothing is retraced
def climb(num_steps: int, num_restarts: int = 3, **settings: Any) -> Any:
    """PGD on the margin, unless said otherwise."""
    settings = {"loss": jr.losses.margin, "num_restarts": num_restarts} | settings
    return functools.partial(jr.attacks.pgd, num_steps=num_steps, **settings)


@functools.cache
def ascend(num_steps: int, loss: Any) -> Any:
    """APGD, for a loss with a hinge: PGD's steps of one size jump to and fro across it."""
    return functools.partial(jr.attacks.apgd, num_steps=num_steps, num_restarts=3, loss=loss)


@functools.cache
def guess(num_queries: int) -> Any:
    """Square, for what no gradient describes."""
    return functools.partial(jr.attacks.square, num_queries=num_queries)


def _instead(view: Any, logits_fn: Any) -> Any:
    del logits_fn
    return view


def on(view: Any, attack: Any) -> Any:
    """An attack on a view of the defence: the same outputs, better gradients."""
    return jr.attacks.through(Partial(_instead, view), attack)


def _thermometer(sizes: Sizes, data: Data, key: Array) -> Defence:
    start = train.start(sizes, data, key, layers.LEVELS)
    params = train.fit(train.natural(models.of_thermometer), start, None, sizes, data, key)
    return Defence(
        "thermometer encoding, Buckman et al.",
        ("zero gradients", "vanishing gradients"),
        "gradients.bpda, ramps for steps",
        Partial(models.of_thermometer, params),
        climb(sizes.attack_steps),
        on(Partial(models.of_soft_thermometer, params), climb(sizes.attack_steps)),
        {},
    )


def _compressed(sizes: Sizes, data: Data, key: Array) -> Defence:
    start = train.start(sizes, data, key)
    params = train.fit(train.natural(models.of_compressed), start, None, sizes, data, key)
    return Defence(
        "input transformations, Guo et al.",
        ("zero gradients", "vanishing gradients"),
        "gradients.bpda, the identity for the compressor",
        Partial(models.of_compressed, params),
        climb(sizes.attack_steps),
        on(Partial(models.of_straight_compressed, params), climb(sizes.attack_steps)),
        {},
    )


def _frozen(sizes: Sizes) -> Any:
    """An attack on one draw of a model's randomness, by which random defences were judged."""
    return climb(sizes.attack_steps, 1, gradient=jr.gradients.eot(1, fresh=False))


def averaged(sizes: Sizes) -> Any:
    """The same over fresh draws at each step."""
    return climb(sizes.attack_steps, 1, gradient=jr.gradients.eot(DRAWS))


def _pruned(sizes: Sizes, data: Data, key: Array) -> Defence:
    start = train.start(sizes, data, key)
    params = train.fit(train.random(models.with_pruning), start, None, sizes, data, key)
    return Defence(
        "stochastic activation pruning, Dhillon et al.",
        ("shattered gradients", "unbounded attack fails", "averaging finds more"),
        f"gradients.bpda, the mean of the units for the draw; gradients.eot({DRAWS})",
        jr.Randomized(Partial(models.with_pruning, params)),
        _frozen(sizes),
        on(jr.Randomized(Partial(models.with_straight_pruning, params)), averaged(sizes)),
        {},
    )


def _resized(sizes: Sizes, data: Data, key: Array) -> Defence:
    start = train.start(sizes, data, key)
    params = train.fit(train.random(models.of_resized), start, None, sizes, data, key)
    return Defence(
        "random resizing and padding, Xie et al.",
        ("averaging finds more",),
        f"gradients.eot({DRAWS})",
        jr.Randomized(Partial(models.of_resized, params)),
        _frozen(sizes),
        averaged(sizes),
        {},
    )


def _distilled(sizes: Sizes, data: Data, key: Array) -> Defence:
    loss, start = train.softened(models.plain), train.start(sizes, data, key)
    teacher = train.fit(loss, start, (TEMPERATURE, None), sizes, data, key)
    params = train.fit(loss, start, (TEMPERATURE, teacher), sizes, data, key)
    view = jr.transforms.rescaled_logits(Partial(models.plain, params), TEMPERATURE)
    cross_entropy = climb(sizes.attack_steps, loss=jr.losses.cross_entropy)
    return Defence(
        "defensive distillation, Papernot et al. (not in the table)",
        ("saturated logits", "zero gradients"),
        "transforms.rescaled_logits, by the temperature",
        Partial(models.plain, params),
        cross_entropy,
        on(view, cross_entropy),
        {},
    )


def _purified(sizes: Sizes, data: Data, key: Array) -> Defence:
    start = train.start(sizes, data, key)
    params = train.fit(train.natural(models.of_purified), start, None, sizes, data, key)
    return Defence(
        "purification by many iterations, Song et al., Samangouei et al.",
        ("shattered gradients", "unbounded attack fails"),
        "attacks.reparametrize, codes that the iterations decode",
        Partial(models.of_purified, params),
        climb(sizes.attack_steps),
        jr.attacks.reparametrize(
            layers.unpurified, climb(sizes.attack_steps), encoder=layers.purified,
            codes=jr.Ball("linf", sizes.eps + 0.5 / layers.WELLS),
        ),
        {},
    )  # fmt: skip


def _winners(sizes: Sizes, data: Data, key: Array) -> Defence:
    """Smoothed gradients and stand-ins for the units find less here than Square does."""
    start = train.start(sizes, data, key)
    params = train.fit(train.natural(models.with_winners), start, None, sizes, data, key)
    return Defence(
        "non-differentiable units, k-winners of Xiao et al. (not in the table)",
        ("black box finds more", "random search finds more"),
        "attacks.square, values alone",
        Partial(models.with_winners, params),
        climb(sizes.attack_steps),
        guess(50 * sizes.attack_steps),
        {},
    )


def _dimension(sizes: Sizes, data: Data, key: Array) -> Defence:
    params = honest(sizes, data, key)
    _, hidden = jax.jit(layers.dense)(params, jnp.asarray(data.x[: 2 * REFERENCES]))
    reference, held = hidden[:REFERENCES], hidden[REFERENCES:]
    most = jnp.quantile(layers.local_dimension(held, reference), 1 - REJECTED)
    loss = jr.losses.penalized(jr.losses.f6, models.rejected)
    return Defence(
        "detection by local dimension, Ma et al.",
        ("rejected, not withstood",),
        "losses.penalized, an attack that knows the detector",
        Partial(models.with_dimension, params, reference, most),
        ascend(sizes.attack_steps, jr.losses.f6),
        ascend(sizes.attack_steps, loss),
        {"local dimension": models.accepted},
    )


def honest(sizes: Sizes, data: Data, key: Array) -> Any:
    """Weights of the naturally trained network."""
    start = train.start(sizes, data, key)
    return train.fit(train.natural(models.plain), start, None, sizes, data, key)


def _natural(sizes: Sizes, data: Data, key: Array) -> Defence:
    return _control(sizes, Partial(models.plain, honest(sizes, data, key)))


def _madry(sizes: Sizes, data: Data, key: Array) -> Defence:
    start = train.start(sizes, data, key)
    params = train.fit(train.adversarial(models.plain), start, sizes.eps, sizes, data, key)
    return _control(sizes, Partial(models.plain, params))


def _stable(sizes: Sizes, data: Data, key: Array) -> Defence:
    start = train.start(sizes, data, key)
    params = train.fit(train.stable(models.plain, SIGMA), start, None, sizes, data, key)
    return _control(sizes, Partial(models.plain, params))


def _noisy(sizes: Sizes, data: Data, key: Array) -> Defence:
    noisy = jr.transforms.gaussian_noise(_stable(sizes, data, key).logits_fn, SIGMA)
    symptoms = ("stochastic gradients",)
    return Defence(
        "", symptoms, f"gradients.eot({DRAWS})", noisy, _frozen(sizes), averaged(sizes), {}
    )


def _cascade(sizes: Sizes, data: Data, key: Array) -> Defence:
    """One of the two rows of the table that hide nothing: plain PGD tells the truth about it."""
    loss, start = train.cascade(models.plain), train.start(sizes, data, key)
    given = (sizes.eps, honest(sizes, data, key), SLOPE)
    found = _control(sizes, Partial(models.plain, train.fit(loss, start, given, sizes, data, key)))
    return found._replace(row="cascade adversarial training, Na et al.")


def _control(sizes: Sizes, logits_fn: Any) -> Defence:
    attack = climb(sizes.attack_steps)
    return Defence("", (), "none needed", logits_fn, attack, attack, {})


Builder = Callable[[Sizes, Data, Array], Defence]

MASKED: dict[str, Builder] = {
    "thermometer": _thermometer,
    "compressed": _compressed,
    "pruned": _pruned,
    "resized": _resized,
    "distilled": _distilled,
    "purified": _purified,
    "winners": _winners,
    "dimension": _dimension,
}
"""The zoo: `(sizes, data, key) -> Defence`, trained on the spot."""

CONTROLS: dict[str, Builder] = {
    "natural": _natural,
    "madry": _madry,
    "cascade": _cascade,
    "stable": _stable,
    "stable, noisy": _noisy,
}
"""Honest networks; the noisy one is to be found stochastic, and nothing worse."""


def accuracy(defence: Defence, attack: Any, sizes: Sizes, data: Data, key: Array) -> float:
    """Share of the test images that stay right, or are rejected, under an attack."""
    random = isinstance(defence.logits_fn, jr.Randomized)
    report = jr.evaluate(
        defence.logits_fn, (data.x_test, data.y_test), attacks={"attack": attack},
        ball=jr.Ball("linf", sizes.eps), key=key, votes=10 if random else 1,
        detectors=defence.detectors, batch_size=min(128, len(np.asarray(data.y_test))),
    )  # fmt: skip
    if defence.detectors:
        return report.detectors[next(iter(defence.detectors))].robust_accuracy
    return report.robust_accuracy
