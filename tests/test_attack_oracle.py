"""Every attack against the exact answer on affine classifiers, and on models that mislead."""

import functools
import inspect

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import ATTACKS, COMMON, MINIMUM_NORM, NORMS, SPEAKS_OF, TARGETED

import jaxrobust as jr

KEY = jax.random.key(11)
SHAPE = (3, 1, 5)
MEASURE = {"linf": "inf", "l2": 2, "l1": 1}

FACTOR = {"deepfool": 1.02, "fab_targeted": 1.01}
"""Most that an untargeted minimum-norm attack may exceed the exact distance by; 1.25 elsewhere."""

LONGER = {"deepfool": 1e-4 + 1e-6}
"""What an attack adds to the distance before that: DeepFool's longer step, and rounding."""

UNAWARE = {"fgsm"}
"""Attacks that one step keeps from the optimum within the box."""


LOCAL = {"boundary"}
"""Attacks that find the nearest image of the class they end in, which need not be the nearest."""

GREEDY = {"jsma"}
"""Attacks that promise no success; their own tests compare with brute force."""


@functools.cache
def affine(classes=4, batch=8):
    """A random affine classifier, images with pixels on the box's edge, and its own labels."""
    rng = np.random.default_rng(classes)
    kernel = rng.normal(size=(np.prod(SHAPE), classes)).astype(np.float32)
    kernel[-2:] = 0  # inputs that do not matter
    bias = rng.normal(size=classes).astype(np.float32) * 0.1
    x = np.clip(rng.uniform(-0.2, 1.2, size=(batch, *SHAPE)), 0, 1).astype(np.float32)
    y = (x.reshape(batch, -1) @ kernel + bias).argmax(1).astype(np.int32)

    def logits(weights, x):
        return x.reshape(len(x), -1) @ weights[0] + weights[1]

    logits_fn = jax.tree_util.Partial(logits, (jnp.asarray(kernel), jnp.asarray(bias)))
    return logits_fn, kernel.astype(float), bias.astype(float), x, y


@functools.cache
def exact(norm, classes=4, batch=8):
    """Distance to each class's region within the box; `(batch, classes)`, inf where it is empty."""
    _, kernel, bias, x, _ = affine(classes, batch)
    found = np.zeros((batch, classes))
    z = cp.Variable(kernel.shape[0])
    start = cp.Parameter(kernel.shape[0])
    for t in range(classes):
        gaps = (kernel[:, [t]] - kernel).T @ z + bias[t] - bias
        problem = cp.Problem(cp.Minimize(cp.norm(z - start, MEASURE[norm])),
                             [gaps >= 0, z >= 0, z <= 1])  # fmt: skip
        for i in range(batch):
            start.value = x[i].ravel().astype(float)
            found[i, t] = problem.solve(solver="CLARABEL")
    return found


def distance(norm, x, x_adv):
    return np.linalg.norm((np.asarray(x_adv) - x).reshape(len(x), -1), float(MEASURE[norm]), axis=1)


def cases(names, sizes=(1, 3, 8)):
    """Name, norm and batch size: each attack in all of its norms and at all sizes, in turn."""
    found = []
    for name in names:
        norms = SPEAKS_OF.get(name, NORMS)
        turns = max(len(norms), len(sizes)) if norms else 0
        found += [(name, norms[i % len(norms)], sizes[i % len(sizes)]) for i in range(turns)]
    return found


def by_name(names):
    """A test of each attack."""
    return pytest.mark.parametrize("name", names)


attacks = by_name(COMMON)


def minimum_norm(name, norm):
    """The attack for one norm."""
    attack = MINIMUM_NORM[name]
    return functools.partial(jr.attacks.against(attack), ball=jr.Ball(norm, 0.0))


@pytest.mark.parametrize(("name", "norm", "batch"), cases(MINIMUM_NORM))
def test_minimum_norm_untargeted(name, norm, batch):
    logits_fn, _, _, x, y = affine()
    x, y = x[:batch], y[:batch]
    x_adv = np.asarray(minimum_norm(name, norm)(logits_fn, x, y, key=KEY))
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    reached = np.asarray(logits_fn(x_adv)).argmax(1)
    assert (reached != y).all()
    others = np.where(np.arange(4) == y[:, None], np.inf, exact(norm)[:batch])
    best = others[np.arange(batch), reached] if name in LOCAL else others.min(1)
    found = distance(norm, x, x_adv)
    assert (found <= FACTOR.get(name, 1.25) * (best + LONGER.get(name, 0))).all()
    assert (found >= (1 - 1e-4) * best).all()  # or the oracle is wrong
    wrong = ((y + 1) % 4).astype(np.int32)  # such an image comes back as it is
    np.testing.assert_array_equal(minimum_norm(name, norm)(logits_fn, x, wrong, key=KEY), x)


@pytest.mark.parametrize(("name", "norm", "batch"), cases(TARGETED))
def test_minimum_norm_targeted(name, norm, batch):
    logits_fn, _, _, x, y = affine()
    x, y = x[:batch], y[:batch]
    target = ((y + 1) % 4).astype(np.int32)
    attack = MINIMUM_NORM[name]
    chosen = {"norm": norm} if "norm" in inspect.signature(attack).parameters else {}
    x_adv = np.asarray(attack(logits_fn, x, y, key=KEY, target=target, **chosen))
    best = exact(norm)[np.arange(batch), target]
    possible = np.isfinite(best)
    assert (np.asarray(logits_fn(x_adv)).argmax(1) == target)[possible].all()
    np.testing.assert_array_equal(x_adv[~possible], x[~possible])
    assert (distance(norm, x, x_adv)[possible] / best[possible]).max() <= 1.25
    # An image of the wanted class comes back as it is.
    np.testing.assert_array_equal(attack(logits_fn, x, target, key=KEY, target=y, **chosen), x)


LONG = {
    "l2": functools.partial(jr.attacks.carlini_wagner_l2, num_steps=1000, initial_c=1e-2),
    "linf": functools.partial(
        jr.attacks.carlini_wagner_linf, initial_c=1e-2, decrease_factor=0.99, abort_early=False
    ),
}
"""Carlini and Wagner's attacks with about their published steps; in linf, with smaller ones."""


@pytest.mark.parametrize("norm", LONG)
def test_carlini_wagner_at_full_steps(norm):
    """Within 2 % of every class that is there; so is the nearest, as an untargeted attack."""
    logits_fn, _, _, x, y = affine()
    found = jr.attacks.every_target(LONG[norm])(logits_fn, x[:4], y[:4], key=KEY)
    best = np.take_along_axis(exact(norm)[:4], np.asarray(found.target), 1)
    np.testing.assert_array_equal(found.success, np.isfinite(best))
    far = np.stack([distance(norm, x[:4], x_adv) for x_adv in np.moveaxis(found.x_adv, 1, 0)], 1)
    ratio = far[np.isfinite(best)] / best[np.isfinite(best)]
    assert ratio.min() >= 1 - 1e-4
    assert ratio.max() <= 1.02


COARSE = {("square", "l2"), ("apgd", "l1")}
"""Attacks whose smallest move is much of so small an image: a square of three pixels' width, a few
of 15 entries. Where several classes are near, they halt before the best place between them."""


@pytest.mark.parametrize(("name", "norm", "batch"), cases(n for n in ATTACKS if n not in UNAWARE))
def test_within_a_ball(name, norm, batch):
    classes = 2 if (name, norm) in COARSE else 4
    logits_fn, _, _, x, y = affine(classes)
    x, y = x[:batch], y[:batch]
    others = np.where(np.arange(classes) == y[:, None], np.inf, exact(norm, classes)[:batch])
    eps = float(1.25 * others.min(1).max())
    x_adv = ATTACKS[name](logits_fn, x, y, key=KEY, ball=jr.Ball(norm, eps))
    assert (np.asarray(logits_fn(x_adv)).argmax(1) != y).all()
    assert (distance(norm, x, x_adv) <= eps * (1 + 1e-4)).all()


CLIMBERS = {
    "bim": functools.partial(jr.attacks.bim, num_steps=50, step_size=0.2),
    "pgd": functools.partial(jr.attacks.pgd, num_steps=50),
    "apgd": functools.partial(jr.attacks.apgd, num_restarts=5, larger_eps=True),
    "second_order": functools.partial(
        jr.attacks.second_order, sigma=0.05, num_steps=50, num_samples=2
    ),
    "square": functools.partial(jr.attacks.square, num_queries=1500),
}


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        (name, norm)
        for name in CLIMBERS
        for norm in SPEAKS_OF.get(name, NORMS)
        if (name, norm) not in COARSE
    ],
)
def test_targets_within_a_ball(name, norm):
    """The wanted class a quarter beyond its exact distance, and never nearer than that."""
    logits_fn, _, _, x, y = affine()
    target = ((y + 1) % 4).astype(np.int32)
    best = exact(norm)[np.arange(len(x)), target]
    rows = np.isfinite(best)
    assert rows.sum() >= 4
    x, target, best = x[rows], target[rows], best[rows]
    attack = functools.partial(CLIMBERS[name], loss=jr.losses.targeted(jr.losses.margin))
    for factor in (1.25, 0.99):
        ball = jr.Ball(norm, jnp.asarray(factor * best, jnp.float32))
        x_adv = np.asarray(attack(logits_fn, x, target, key=KEY, ball=ball))
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
        assert (distance(norm, x, x_adv) <= factor * best * (1 + 1e-4)).all()
        assert ((np.asarray(logits_fn(x_adv)).argmax(1) == target) == (factor > 1)).all()


@pytest.mark.parametrize(("version", "norm"), [("standard", "linf"), ("plus", "l2")])
def test_autoattack_breaks_what_can_be_broken(version, norm):
    """At full length: all beyond the exact distance, and none before it."""
    logits_fn, _, _, x, y = affine(classes=3, batch=3)
    others = np.where(np.arange(3) == y[:, None], np.inf, exact(norm, 3, 3)).min(1)
    for factor in (1.05, 0.99):
        ball = jr.Ball(norm, jnp.asarray(factor * others, jnp.float32))
        x_adv = jr.attacks.autoattack(logits_fn, x, y, key=KEY, ball=ball, version=version)
        assert (distance(norm, x, x_adv) <= factor * others * (1 + 1e-4)).all()
        assert ((np.asarray(logits_fn(x_adv)).argmax(1) != y) == (factor > 1)).all()


BLIND = {"second_order"}
"""Attacks that take their gradient beside the image, where one of those models has none."""

MISLEADING = ("constant", "broken", "flat")


def misleading(which, x):
    """One of three: no difference anywhere; NaN off the half; steps without a gradient."""
    rows = x.reshape(len(x), -1)
    off = jnp.any(rows != 0.5, -1, keepdims=True)
    zero = 0 * rows[:, 0]
    broken = jnp.where(off, jnp.nan, jnp.stack([rows.mean(-1), zero, zero], -1))
    flat = jax.nn.one_hot(jnp.where(rows[:, 0] > 0.6, 1, 0), 3)
    return jnp.stack([0 * flat, broken, flat])[which]


@attacks
def test_no_false_success_on_a_model_that_misleads(name):
    """What comes back is finite and legal, and the clean image where a minimum-norm attack fails.

    Images on which the model's logits are NaN are wrong, so `broken` is broken by any of them.
    """
    x, y = np.full((2, *SHAPE), 0.5, np.float32), np.zeros(2, np.int32)
    for which in range(len(MISLEADING)):
        model = jax.tree_util.Partial(misleading, jnp.asarray(which))
        x_adv = np.asarray(COMMON[name](model, x, y, key=KEY, ball=jr.Ball("linf", 0.05)))
        assert np.isfinite(x_adv).all(), MISLEADING[which]
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
        wrong = np.asarray(jr.types.predicted_class(model(jnp.asarray(x_adv)))) != y
        assert wrong.all() or MISLEADING[which] != "broken" or name in BLIND
        if name in MINIMUM_NORM:
            np.testing.assert_array_equal(x_adv[~wrong], x[~wrong])


@attacks
def test_randomised_models_are_attacked(name):
    def noisy(x, key):
        flat = x.reshape(len(x), -1)
        return jnp.stack(
            [flat.sum(-1), flat.shape[1] / 2 + 0.05 * jax.random.normal(key, (len(x),))], -1
        )

    x = np.full((4, 5), 0.55, np.float32)
    y = np.zeros(4, np.int32)
    x_adv = np.asarray(COMMON[name](jr.Randomized(noisy), x, y, key=KEY, ball=jr.Ball("linf", 0.2)))
    assert np.isfinite(x_adv).all()
    assert (x_adv.sum(1) < x.sum(1)).all()
    if name in MINIMUM_NORM:  # not where a lucky draw succeeds, but where most do
        assert (x_adv.sum(1) < 2.5).all()


@by_name(TARGETED)
@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": np.full(8, 4, np.int32)}, "target must hold labels in 0..3"),
        ({"target": np.zeros(3, np.int32)}, "target must have one label for each"),
        ({"box": (1.0, 0.0)}, "box must be a pair"),
        ({"box": (0.0, 0.5)}, "x must lie in the box"),
    ],
)  # fmt: skip
def test_wrong_targets_and_boxes_are_refused(name, change, message):
    logits_fn, _, _, x, y = affine()
    with pytest.raises(ValueError, match=message):
        MINIMUM_NORM[name](logits_fn, x, y, key=KEY, **change)


@by_name(TARGETED)
def test_the_true_class_is_no_target(name):
    logits_fn, _, _, x, y = affine()
    target = ((y + 1) % 4).astype(np.int32)
    target[[2, 5]] = y[[2, 5]]
    with pytest.raises(ValueError, match=r"target must differ from y.* rows 2, 5 "):
        MINIMUM_NORM[name](logits_fn, x, y, key=KEY, target=target)


@attacks
@pytest.mark.parametrize("classes", [2, 1000])
def test_any_number_of_classes_of_any_callable(name, classes):
    rng = np.random.default_rng(classes)
    kernel = jnp.asarray(rng.normal(size=(6, classes)), jnp.float32)

    def logits_fn(x):
        return x @ kernel

    x = rng.uniform(0.3, 0.7, size=(2, 6)).astype(np.float32)
    y = np.asarray(logits_fn(x)).argmax(1).astype(np.int32)
    x_adv = np.asarray(COMMON[name](logits_fn, x, y, key=KEY, ball=jr.Ball("linf", 0.3)))
    assert np.isfinite(x_adv).all()
    margin = jax.vmap(jr.losses.margin)
    raised = np.asarray(margin(logits_fn(x_adv), y)) > np.asarray(margin(logits_fn(x), y))
    assert (raised | ((x_adv == x).all(1) if name in GREEDY else False)).all()
