"""What the contract tests run over: list a new attack or certificate here, and it is tested."""

from __future__ import annotations

import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np

import jaxrobust as jr
from jaxrobust.layers import Dense, Flatten, Relu

FEW = functools.partial(jr.attacks.pgd, num_steps=20)

ATTACKS = {
    "fgsm": jr.attacks.fgsm,
    "bim": functools.partial(jr.attacks.bim, num_steps=4),
    "pgd": FEW,
    "pgd with restarts": functools.partial(FEW, num_restarts=3),
    "pgd, eot gradient": functools.partial(FEW, gradient=jr.gradients.eot(2)),
    "second_order": functools.partial(
        jr.attacks.second_order, sigma=0.05, num_steps=20, num_samples=3
    ),
    "square": functools.partial(jr.attacks.square, num_queries=300),
    "first_success": jr.attacks.first_success({"fgsm": jr.attacks.fgsm, "pgd": FEW}, chunk=3),
    "apgd": functools.partial(jr.attacks.apgd, num_steps=20),
    "apgd_targeted": functools.partial(jr.attacks.apgd_targeted, num_steps=20, num_targets=2),
}
"""Every attack within a ball."""

MINIMUM_NORM = {
    "adaptive_norm_pgd": functools.partial(
        jr.attacks.adaptive_norm_pgd, num_steps=20, loss=jr.losses.margin
    ),
    "boundary": functools.partial(
        jr.attacks.boundary, num_steps=400, spherical_step=0.1, source_step=0.1, update_every=1
    ),
    "carlini_wagner_l0": functools.partial(
        jr.attacks.carlini_wagner_l0,
        num_steps=40,
        learning_rate=0.05,
        initial_c=1.0,
        largest_c=30.0,
    ),
    "carlini_wagner_l2": functools.partial(
        jr.attacks.carlini_wagner_l2,
        num_steps=100,
        num_searches=5,
        learning_rate=0.05,
        initial_c=0.01,
    ),
    "carlini_wagner_linf": functools.partial(
        jr.attacks.carlini_wagner_linf,
        num_steps=60,
        learning_rate=0.02,
        initial_c=0.1,
        abort_early=False,  # a tenth of so few steps is no time to judge progress
    ),
    "deepfool": jr.attacks.deepfool,
    "fab": functools.partial(jr.attacks.fab, num_steps=20, num_restarts=2),
    "fab_targeted": functools.partial(jr.attacks.fab_targeted, num_steps=20, num_targets=3),
    "fmn": functools.partial(jr.attacks.fmn, num_steps=30),
    "jsma": functools.partial(jr.attacks.jsma, on="softmax", theta=-1.0),
}
"""Every minimum-norm attack, `attack(logits_fn, x, y, *, key, box, target, ...)`."""

TARGETED = [k for k, f in MINIMUM_NORM.items() if "target" in inspect.signature(f).parameters]
"""Those of them that can be given a class to reach."""

SOURCE = jax.tree_util.Partial(
    jnp.matmul, b=jnp.asarray(np.random.default_rng(5).normal(size=(6, 3)), jnp.float32)
)
"""Another model of the problems below."""


def nearest_target(logits_fn, x, y, *, key, ball):
    """The nearest result of an attack towards every class, in the common form."""
    found = jr.attacks.every_target(MINIMUM_NORM["fmn"])(logits_fn, x, y, key=key, box=ball.box)
    length = jnp.linalg.norm((found.x_adv - x[:, None]).reshape(*found.success.shape, -1), axis=-1)
    nearest = jnp.argmin(jnp.where(found.success, length, jnp.inf), 1)
    return jax.vmap(lambda images, i: images[i])(found.x_adv, nearest)


MADE_OF_ATTACKS = {
    "autoattack": functools.partial(jr.attacks.autoattack, version="rand", chunk=3),
    "every_target": nearest_target,
    "most_confusing": jr.attacks.most_confusing(FEW, jr.losses.margin),
    "reparametrize": jr.attacks.reparametrize(
        jax.nn.sigmoid,
        FEW,
        encoder=lambda x: jnp.log(x + 1e-3) - jnp.log(1 - x + 1e-3),
        codes=jr.Ball("linf", 0.5, box=jr.Box(-8.0, 8.0)),
    ),
    "transfer": jr.attacks.transfer(SOURCE, FEW),
}
"""Attacks whose parts are listed above: what they add is tested, not all that they hold."""

COMMON = ATTACKS | {name: jr.attacks.against(attack) for name, attack in MINIMUM_NORM.items()}
"""Every attack, in the common form."""

SPEAKS_OF = {
    "adaptive_norm_pgd": ("linf", "l2"),
    "boundary": ("l2",),
    "carlini_wagner_l0": (),
    "carlini_wagner_l2": ("l2",),
    "carlini_wagner_linf": ("linf",),
    "deepfool": ("linf", "l2"),
    "jsma": (),
    "square": ("linf", "l2"),
}
"""Norms of an attack that does not know them all; none where it speaks of pixels."""

DETERMINISTIC = {"fgsm", "bim"} | (MINIMUM_NORM.keys() - {"adaptive_norm_pgd", "boundary", "fab"})
"""Attacks that draw nothing."""

CERTIFICATES = {
    "interval": jr.certify.interval,
    "spectral": jr.certify.spectral,
    "frobenius": jr.certify.frobenius,
    "lp": jr.certify.lp,
    "sdp": jr.certify.sdp,
}
"""Every certificate of an explicit network, as `f(layers, x, y, *, eps, norm)`.

One that takes no `norm` speaks of linf.
"""

TIGHT_ON_AFFINE = {
    ("interval", "linf"),
    ("interval", "l2"),
    ("interval", "l1"),
    ("lp", "linf"),
    ("sdp", "linf"),
}
"""Certificate and norm where the bound equals the true margin of an affine network."""

EPS = {"linf": 0.1, "l2": 0.5, "l1": 1.5}
NORMS = tuple(EPS)


def norm_of(name):
    """The norm in which an attack is put to most tests: another for each, in turn."""
    norms = SPEAKS_OF.get(name) or NORMS  # one that speaks of pixels is handed any ball
    return norms[list(COMMON).index(name) % len(norms)]


def attack_cases(names, each_norm=False):
    """Attack and norm: all of them, or all of "pgd" and one of each other.

    What an attack does with its ball is the ball's code, which `pgd` shows in every norm.
    """
    return [
        (name, norm)
        for name in names
        for norm in (SPEAKS_OF.get(name, NORMS) if each_norm or name == "pgd" else [norm_of(name)])
    ]


TAKES_A_NORM = [k for k, f in CERTIFICATES.items() if "norm" in inspect.signature(f).parameters]
CASES = [
    (name, norm) for name in CERTIFICATES for norm in (NORMS if name in TAKES_A_NORM else ["linf"])
]
"""Every certificate with every norm that it speaks of."""


def certificate(name: str, norm: str):
    """The certificate for one norm, as `f(layers, x, y, *, eps)`."""
    bound = CERTIFICATES[name]
    return functools.partial(bound, norm=norm) if name in TAKES_A_NORM else bound


def random_layers(seed: int, sizes: tuple[int, ...] = (6, 8, 3), scale: float = 1.0):
    """A random fully connected ReLU network as explicit layers."""
    rng = np.random.default_rng(seed)
    layers = [Flatten()]
    for fan_in, fan_out in itertools.pairwise(sizes):
        kernel = rng.normal(size=(fan_in, fan_out)) * scale / np.sqrt(fan_in)
        bias = rng.normal(size=fan_out) * 0.1
        layers += [Dense(kernel.astype(np.float32), bias.astype(np.float32)), Relu()]
    return layers[:-1]


def images(seed: int, batch: int, shape: tuple[int, ...] = (6,)) -> np.ndarray:
    """Random images, some of them at the edge of the box."""
    draws = np.random.default_rng(seed).uniform(-0.2, 1.2, size=(batch, *shape))
    return np.clip(draws, 0, 1).astype(np.float32)


def problem(seed: int, batch: int = 8, sizes: tuple[int, ...] = (6, 8, 3)):
    """A network as a `logits_fn`, its layers, images, and the labels it gives them."""
    layers = random_layers(seed, sizes)
    logits_fn = jax.tree_util.Partial(jr.layers.apply, jax.tree.map(jnp.asarray, layers))
    x = images(seed + 1, batch, sizes[:1])
    y = np.asarray(jnp.argmax(logits_fn(jnp.asarray(x)), -1)).astype(np.int32)
    return logits_fn, layers, x, y
