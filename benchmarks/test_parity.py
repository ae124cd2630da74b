"""The same attack on the same weights gives the same images as Foolbox's."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import foolbox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from foolbox import attacks as theirs
from jax.tree_util import Partial
from torch import nn

import jaxrobust as jr
from benchmarks._rivals import from_torch, logits_gap, to_torch, torch_mlp

PIXEL_TOLERANCE = 1e-5
SHARE_OFF = 1e-3
"""Share of pixels that may differ by more: where a gradient is nearly 0, its sign is rounding."""

NUM_STEPS = 20
REL_STEP = 0.1
EPS = {"linf": 0.1, "l2": 0.8}

PAIRS = {
    "fgsm linf": ("linf", jr.attacks.fgsm, theirs.LinfFastGradientAttack),
    "fgsm l2": ("l2", jr.attacks.fgsm, theirs.L2FastGradientAttack),
    "pgd linf": ("linf", jr.attacks.pgd, theirs.LinfProjectedGradientDescentAttack),
    "pgd l2": ("l2", jr.attacks.pgd, theirs.L2ProjectedGradientDescentAttack),
}
"""By name: the norm, our attack and Foolbox's class."""


class Setting(NamedTuple):
    """A trained network in both libraries, and the images it is attacked on."""

    logits_fn: Partial
    module: nn.Module
    x: np.ndarray
    y: np.ndarray


class Agreement(NamedTuple):
    """How far two libraries agree on one attack."""

    name: str
    eps: float
    share_off: float
    largest_gap: float
    our_accuracy: float
    their_accuracy: float
    num_examples: int


@functools.cache
def digits_mlp(seed: int = 0) -> Setting:
    """A small network trained for seconds on scikit-learn's digits, and their test split."""
    train, test = jr.data.load("digits", "train"), jr.data.load("digits", "test")
    init_key, fit_key = jax.random.split(jax.random.key(seed))
    model = jr.models.mlp((64,))
    fitted = jr.train.fit(
        jr.objectives.cross_entropy(jr.objectives.from_module(model.apply)),
        model.init(init_key, train.x[:1])["params"], optax.adam(2e-3), (train.x, train.y),
        key=fit_key, num_epochs=15, batch_size=50,
    )  # fmt: skip
    logits_fn = Partial(model.apply, {"params": fitted.params})
    module = torch_mlp(fitted.params, test.x.shape[1:])
    logits_gap(logits_fn, module, test.x)
    return Setting(logits_fn, module, test.x, test.y)


def compare(name: str, setting: Setting) -> Agreement:
    """Run one pair of attacks from the clean images and compare what comes back."""
    norm, ours, theirs_class = PAIRS[name]
    eps = EPS[norm]
    if name.startswith("pgd"):
        ours = functools.partial(
            ours, num_steps=NUM_STEPS, step_size=REL_STEP * eps, random_start=False
        )
        rival = theirs_class(rel_stepsize=REL_STEP, steps=NUM_STEPS, random_start=False)
    else:
        rival = theirs_class(random_start=False)
    logits_fn, module, x, y = setting
    x_ours = ours(logits_fn, x, y, key=jax.random.key(0), ball=jr.Ball(norm, eps))
    wrapped = foolbox.PyTorchModel(module, bounds=(0, 1), device="cpu")
    labels = torch.from_numpy(y.astype(np.int64))
    _, x_theirs, success = rival(wrapped, to_torch(x), labels, epsilons=eps)
    gap = np.abs(np.asarray(x_ours) - from_torch(x_theirs))
    standing = np.asarray(jnp.argmax(logits_fn(x_ours), -1)) == y
    return Agreement(
        name, eps, float(np.mean(gap > PIXEL_TOLERANCE)), float(gap.max()),
        float(standing.mean()), 1 - float(success.numpy().mean()), len(y),
    )  # fmt: skip


def measure(seed: int) -> dict[str, list[dict[str, Any]]]:
    """All pairs, as a table."""
    setting = digits_mlp(seed)
    return {"agreement": [compare(name, setting)._asdict() for name in PAIRS]}


@pytest.mark.parametrize("name", PAIRS)
def test_same_images_as_foolbox(name: str) -> None:
    """All but a thousandth of the pixels agree, and at most one example's fate differs."""
    found = compare(name, digits_mlp())
    assert found.share_off <= SHARE_OFF
    assert abs(found.our_accuracy - found.their_accuracy) * found.num_examples <= 1 + 1e-6


def test_the_attacks_have_something_to_find() -> None:
    """Agreement would mean nothing on a network that no attack, or anything, breaks."""
    setting = digits_mlp()
    clean = float(np.mean(np.argmax(setting.logits_fn(setting.x), -1) == setting.y))
    assert clean > 0.8
    assert all(compare(name, setting).our_accuracy < clean - 0.2 for name in PAIRS)
