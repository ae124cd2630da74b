"""Fingerprints tell apart what computes differently, and only that."""

import functools

import jax
import numpy as np
from contracts import random_layers

import jaxrobust as jr
from jaxrobust.identity import digest, fingerprint


def scaled(factor):
    return lambda x: factor * x


def test_settings_closures_and_arrays_count():
    pgd = jr.attacks.pgd
    few, many = functools.partial(pgd, num_steps=2), functools.partial(pgd, num_steps=40)
    noisy = functools.partial(pgd, num_steps=2, gradient=jr.gradients.smoothed(0.1, 2))
    noisier = functools.partial(pgd, num_steps=2, gradient=jr.gradients.smoothed(0.2, 2))
    pinned = jr.attacks.at_eps(few, 0.1), jr.attacks.at_eps(few, 0.2)
    targeted = functools.partial(few, loss=jr.losses.targeted(jr.losses.margin))
    margin = functools.partial(few, loss=jr.losses.margin)
    one, two = random_layers(0), random_layers(1)
    bounds = [jr.certify.on_layers(jr.certify.interval, layers) for layers in (one, two)]
    models = [jax.tree_util.Partial(jr.layers.apply, layers) for layers in (one, two)]
    closures = [scaled(2.0), scaled(3.0), scaled(np.ones(3)), scaled(np.zeros(3))]
    others = [lambda x: x + 1, lambda x: x + 2, lambda x: x - 1]
    everything = [few, many, noisy, noisier, *pinned, targeted, margin, *bounds, *models]
    everything += closures + others
    assert len({fingerprint(thing) for thing in everything}) == len(everything)


def test_the_same_made_again_is_the_same():
    def make():
        return functools.partial(
            jr.attacks.pgd, num_steps=2, gradient=jr.gradients.eot(3), loss=scaled(np.arange(3.0))
        )

    assert fingerprint(make()) == fingerprint(make())
    model = jr.models.mlp((4,))
    again = jr.models.mlp((4,))
    assert fingerprint(model.apply) == fingerprint(again.apply)
    assert fingerprint(model.apply) != fingerprint(jr.models.mlp((5,)).apply)


def test_recursion_ends():
    def loop(x):
        return loop(x)

    assert fingerprint(loop) == fingerprint(loop)


def test_digest_sees_every_number_and_the_dtype():
    x = np.zeros((3000, 2), np.float32)
    y = x.copy()
    y[2500, 1] = 1e-30
    assert len({digest(x), digest(y), digest(x.astype(np.float64)), digest(x.T)}) == 4
