"""What every attack promises, whichever it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contracts import (
    ATTACKS,
    COMMON,
    DETERMINISTIC,
    EPS,
    MADE_OF_ATTACKS,
    attack_cases,
    images,
    problem,
)
from jax.sharding import Mesh, PartitionSpec

import jaxrobust as jr
from jaxrobust.evaluation._count import count

KEY = jax.random.key(7)
WHICH = ("name", "norm")
attacks = pytest.mark.parametrize(WHICH, attack_cases(COMMON))
within_a_ball = pytest.mark.parametrize(WHICH, attack_cases(ATTACKS))
each_norm = pytest.mark.parametrize(WHICH, attack_cases(ATTACKS, each_norm=True))


def doubled(seed):
    """A problem in float64, where attacks compiled for other shapes still agree to many digits."""
    logits_fn, _, x, y = problem(seed)
    logits_fn = jax.tree.map(lambda w: jnp.asarray(w, jnp.float64), logits_fn)
    return logits_fn, x.astype(np.float64), y


@each_norm
def test_output_is_finite_and_in_ball_and_box(name, norm):
    attack = ATTACKS[name]
    logits_fn, _, x, y = problem(0)
    ball = jr.Ball(norm, EPS[norm])
    x_adv = np.asarray(attack(logits_fn, x, y, key=KEY, ball=ball))
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert np.isfinite(x_adv).all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    distances = np.asarray(jax.vmap(ball.distance)(x, x_adv))
    assert (distances <= EPS[norm] * (1 + 1e-5)).all()
    assert distances.max() > 0.02  # it does move


@within_a_ball
def test_clean_input_at_eps_zero(name, norm):
    attack = ATTACKS[name]
    logits_fn, _, x, y = problem(1)
    x_adv = attack(logits_fn, x, y, key=KEY, ball=jr.Ball(norm, 0.0))
    np.testing.assert_array_equal(x_adv, x)


@attacks
def test_same_key_same_bits_and_another_key_is_heard(name, norm):
    attack = COMMON[name]
    logits_fn, _, x, y = problem(2)
    # In linf, all starts may end in one corner.
    ball = jr.Ball("l2" if norm == "linf" else norm, 0.5)
    first = attack(logits_fn, x, y, key=KEY, ball=ball)
    again = attack(logits_fn, x, y, key=jax.random.key(7), ball=ball)
    np.testing.assert_array_equal(first, again)
    other = attack(logits_fn, x, y, key=jax.random.key(8), ball=ball)
    assert np.array_equal(first, other) is (name in DETERMINISTIC)


EXACTLY = {
    "adaptive_norm_pgd": (20, 20 + 12),  # PGD; then its end, ten bisections and the clean image
    "apgd": (20 + 1, 2 * (20 + 1)),  # a gradient and a forward at each point
    "apgd_targeted": (2 * (20 + 1), 4 * (20 + 1) + 1),  # of each target; and what x is taken for
    "bim": (4, 4),
    "fgsm": (1, 1),
    "fab": (2 * 20 * 3, 2 * 20 * 2 + 6),  # a gradient a class; ends and steps of the final search
    "fab_targeted": (2 * 20, 2 * 20 * 2 + 6 + 1),  # of each target; and what x is taken for
    "fmn": (30, 2 * 30),
    "pgd": (20, 20),
    "pgd with restarts": (3 * 20, 3 * (20 + 1)),  # each run's end is judged
    "square": (0, 300),
}
"""Gradients and forwards of attacks that nothing stops, by hand."""

AT_MOST = {
    "boundary": (0, 1 + 100 + 10 + 2 * 400),  # the clean image, starts, bisections, two a step
    "carlini_wagner_l0": ((6 + 6) * 40, (6 + 6) * 40 + 1),  # so many a pixel and a doubling of c
    "carlini_wagner_l2": (5 * 100, 5 * 100 + 1),  # searches of so many steps, and the clean image
    "carlini_wagner_linf": ((54 + 9) * 60, (54 + 9) * 60 + 1),  # a limit and a doubling of c
    "deepfool": (50 * 2, 50 * 2 + 1),  # a gradient for each boundary of a step, and the clean image
    "jsma": (3 + 1, 3 + 1 + 1),  # a pair of six features a step, the end, and the clean image
}
"""The same of attacks that may end before."""


@attacks
def test_one_trace_for_each_shape_asks_the_model_no_more_often_than_counted(name, norm):
    attack = COMMON[name]
    logits_fn, layers, x, y = problem(2, batch=1)
    traces, forwards, gradients = [], [], []

    @jax.custom_vjp
    def counting(weights, x):
        jax.debug.callback(lambda _: forwards.append(None), x[0, 0])
        return jr.layers.apply(weights, x)

    def backward(residuals, slope):
        jax.debug.callback(lambda _: gradients.append(None), slope[0, 0])
        return jax.vjp(jr.layers.apply, *residuals)[1](slope)

    counting.defvjp(lambda weights, x: (counting(weights, x), (weights, x)), backward)

    def traced(weights, x):
        traces.append(x.shape)
        return counting(weights, x)

    def traced_by(scale, ball):
        before = len(traces)
        weights = jax.tree.map(lambda w: jnp.asarray(w) * scale, layers)
        model = jax.tree_util.Partial(traced, weights)
        jax.block_until_ready(attack(model, x, y, key=KEY, ball=ball))
        jax.effects_barrier()
        return len(traces) - before

    ball = jr.Ball(norm, 0.01)  # too small for square to end early
    assert traced_by(1.0, ball) > 1
    spent, counted = (len(gradients), len(forwards)), count(attack, logits_fn, x, ball)
    assert 0 < spent[1] <= counted[1]
    draws = 3 if name == "second_order" else 1  # all of which are one gradient there
    assert spent[0] <= draws * counted[0]
    if name in EXACTLY:
        assert spent == counted == EXACTLY[name]
    if name in AT_MOST:
        assert counted == AT_MOST[name]
    # Afterwards the model is looked at once a call, for the shape of its logits.
    assert traced_by(0.5, jr.Ball(norm, 0.05)) == 1
    assert traced_by(2.0, jr.Ball(norm, 0.2)) == 1


@attacks
def test_a_row_depends_on_neither_neighbours_nor_place(name, norm):
    """Bitwise, at equal compiled shapes."""
    attack = COMMON[name]
    logits_fn, _, x, y = problem(3)
    keys = jax.random.split(KEY, len(x))
    ball = jr.Ball(norm, EPS[norm])
    base = np.asarray(attack(logits_fn, x, y, key=keys, ball=ball))
    order = np.random.default_rng(0).permutation(len(x))
    moved = np.asarray(attack(logits_fn, x[order], y[order], key=keys[order], ball=ball))
    np.testing.assert_array_equal(moved, base[order])
    others = images(99, len(x))
    others[2] = x[2]
    alone = np.asarray(attack(logits_fn, others, y, key=keys, ball=ball))
    np.testing.assert_array_equal(alone[2], base[2])


@pytest.mark.parametrize("name", MADE_OF_ATTACKS)
def test_rows_of_attacks_made_of_attacks_are_their_own(name):
    """Under jit, and bitwise at equal shapes."""
    attack = MADE_OF_ATTACKS[name]
    logits_fn, _, x, y = problem(3, batch=6)
    keys = jax.random.split(KEY, len(x))

    @jax.jit
    def run(x, y, keys):
        return attack(logits_fn, x, y, key=keys, ball=jr.Ball("linf", 0.1))

    base = np.asarray(run(x, y, keys))
    assert np.isfinite(base).all()
    assert base.min() >= 0
    assert base.max() <= 1
    changed = (base != x).any(1)
    assert changed.any()
    if name != "every_target":
        assert np.abs(base - x).max() <= 0.1 * (1 + 1e-5)
    order = np.random.default_rng(0).permutation(len(x))
    np.testing.assert_array_equal(run(x[order], y[order], keys[order]), base[order])
    others = images(99, len(x))
    others[2] = x[2]
    np.testing.assert_array_equal(np.asarray(run(others, y, keys))[2], base[2])


@attacks
def test_other_batch_sizes_agree_in_float64(name, norm):
    """One row and eight; two, on each of four devices, below."""
    attack = COMMON[name]
    with jax.enable_x64(True):
        logits_fn, x, y = doubled(4)
        keys = jax.random.split(KEY, len(x))
        ball = jr.Ball(norm, EPS[norm])
        whole = np.asarray(attack(logits_fn, x, y, key=keys, ball=ball))
        for row in (slice(0, 1), slice(2, 3), slice(4, 5)):
            part = attack(logits_fn, x[row], y[row], key=keys[row], ball=ball)
            np.testing.assert_allclose(part, whole[row], atol=1e-6)


@attacks
def test_one_key_is_one_key_a_row(name, norm):
    attack = COMMON[name]
    logits_fn, _, x, y = problem(5)
    ball = jr.Ball(norm, EPS[norm])
    folded = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(len(x)))
    np.testing.assert_array_equal(
        attack(logits_fn, x, y, key=KEY, ball=ball), attack(logits_fn, x, y, key=folded, ball=ball)
    )


@within_a_ball
def test_vmap_over_eps_is_a_loop_over_eps(name, norm):
    attack = ATTACKS[name]
    with jax.enable_x64(True):
        logits_fn, x, y = doubled(7)

        def run(eps):
            return attack(logits_fn, x, y, key=KEY, ball=jr.Ball(norm, eps))

        radii = EPS[norm] * jnp.array([0.25, 1.0])
        swept = jax.vmap(run)(radii)
        looped = jnp.stack([run(eps) for eps in radii])
        np.testing.assert_allclose(swept, looped, atol=1e-9)


@within_a_ball
def test_per_example_eps_and_its_rows(name, norm):
    attack = ATTACKS[name]
    logits_fn, _, x, y = problem(8)
    eps = jnp.linspace(0.0, 2 * EPS[norm], len(x))
    ball = jr.Ball(norm, eps)
    x_adv = attack(logits_fn, x, y, key=KEY, ball=ball)
    distances = np.asarray(jax.vmap(jr.Ball(norm, 0.0).distance)(x, x_adv))
    assert (distances <= np.asarray(eps) * (1 + 1e-5)).all()
    assert distances.max() > EPS[norm]


@attacks
def test_legal_and_a_constant_in_a_train_step_over_four_devices(name, norm):
    """jit, a default shard_map and a traced radius change nothing; no derivative passes through."""
    attack = COMMON[name]
    assert jax.device_count() == 4
    mesh = Mesh(np.array(jax.devices()), ("rows",))
    whole, rows = PartitionSpec(), PartitionSpec("rows")
    with jax.enable_x64(True):
        logits_fn, x, y = doubled(9)
        keys = jax.random.split(KEY, len(x))
        eps = jnp.asarray(EPS[norm])

        def run(logits_fn, eps, x, y, keys):
            return attack(logits_fn, x, y, key=keys, ball=jr.Ball(norm, eps))

        specs = (whole, whole, rows, rows, rows)
        mapped = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=rows)

        def at(logits_fn, x_adv):
            logits = logits_fn(x_adv)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), x_adv

        def loss(logits_fn, eps):
            return at(logits_fn, mapped(logits_fn, eps, x, y, keys))

        grads, sharded = jax.jit(jax.grad(loss, has_aux=True))(logits_fn, eps)
        x_adv = run(logits_fn, EPS[norm], x, y, keys)
        np.testing.assert_allclose(sharded, x_adv, atol=1e-6)
        expected, _ = jax.grad(at, has_aux=True)(logits_fn, x_adv)
        for got, want in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-6)


@attacks
@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.full((8, 6), np.nan, np.float32)}, "x must be finite"),
        ({"x": np.full((8, 6), 200.0, np.float32)}, "0-255"),
        ({"x": np.full((8, 6), -0.5, np.float32)}, "box"),
        ({"x": np.zeros((8, 6), np.uint8)}, "floating point"),
        ({"x": np.zeros((8, 6), np.float16)}, "x must be float32 or float64, .* got float16"),
        ({"x": jnp.zeros((8, 6), jnp.bfloat16)}, "x must be float32 or float64"),
        ({"x": np.zeros((0, 6), np.float32)}, "empty"),
        ({"y": np.full(8, 3, np.int32)}, "labels in 0..2"),
        ({"y": np.full(8, -1, np.int32)}, "labels"),
        ({"y": np.eye(8, 3, dtype=np.int32)}, "one-hot"),
        ({"y": np.zeros(7, np.int32)}, "one label for each"),
        ({"y": np.zeros(8, np.float32)}, "integer labels"),
        ({"key": 0}, "typed key"),
        ({"key": None}, "typed key"),
        ({"key": np.zeros(2, np.uint32)}, "typed key"),
        ({"key": jax.random.key(0, impl="rbg")}, "threefry"),
        ({"key": jax.random.split(jax.random.key(0), 3)}, "one for each"),
        ({"ball": "linf"}, "Ball"),
        ({"ball": jr.Ball("linf", 8)}, "eps must be in the units of x.* got 8: .* Divide by 255"),
        ({"logits_fn": lambda x: x.sum(-1)}, "logits_fn must return"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused(name, norm, change, message):
    attack = COMMON[name]
    logits_fn, _, x, y = problem(12)
    arguments = {"logits_fn": logits_fn, "x": x, "y": y, "key": KEY, "ball": jr.Ball(norm, 0.1)}
    arguments |= change
    with pytest.raises(ValueError, match=message):
        attack(
            arguments["logits_fn"], arguments["x"], arguments["y"],
            key=arguments["key"], ball=arguments["ball"],
        )  # fmt: skip


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("name", MADE_OF_ATTACKS)
def test_wrong_input_of_attacks_made_of_attacks_is_refused(name):
    logits_fn, _, x, y = problem(12)
    ball = jr.Ball("linf", 0.1)
    for change, message in (
        ({"x": 255 * x}, "x must lie in the box"),
        ({"x": np.full_like(x, np.nan)}, "finite"),
        ({"y": np.full(8, 3, np.int32)}, "in 0..2"),
        ({"y": np.zeros(7, np.int32)}, "one label for each"),
        ({"key": 0}, "typed key"),
        ({"logits_fn": lambda x: x.sum(-1)}, "logits_fn must return"),
        ({"ball": jr.Ball("linf", 0.1, (1.0, 0.0))}, "box must be a pair"),
    ):
        of = {"logits_fn": logits_fn, "x": x, "y": y, "key": KEY, "ball": ball} | change
        with pytest.raises(ValueError, match=message):
            MADE_OF_ATTACKS[name](of["logits_fn"], of["x"], of["y"], key=of["key"], ball=of["ball"])


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("attack", [jr.attacks.fgsm, jr.attacks.bim, jr.attacks.pgd])
@pytest.mark.parametrize("eps", [-0.1, np.nan, np.inf, np.zeros(5)])
def test_wrong_eps_is_refused(attack, eps):
    logits_fn, _, x, y = problem(13)
    with pytest.raises(ValueError, match="eps must be"):
        attack(logits_fn, x, y, key=KEY, ball=jr.Ball("linf", eps))


@pytest.mark.usefixtures("untyped")
def test_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="norm must be one of linf, l2, l1; got 'l7'"):
        jr.Ball("l7", 0.1)


@pytest.mark.usefixtures("untyped")
def test_wrong_counts_and_steps_are_refused():
    logits_fn, _, x, y = problem(14)
    ball = jr.Ball("linf", 0.1)
    for wrong in ({"num_steps": 0}, {"num_steps": 2.5}, {"num_restarts": 0}, {"step_size": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            jr.attacks.pgd(logits_fn, x, y, key=KEY, ball=ball, **wrong)


@pytest.mark.parametrize(
    "attack,arrays",
    [
        (functools.partial(jr.attacks.adaptive_norm_pgd, num_steps=10), 8),
        (jr.attacks.jsma, 20),
        (functools.partial(jr.attacks.apgd_targeted, ball=jr.Ball("linf", 8 / 255)), 20),
        (jr.attacks.boundary, 12),
        (jr.attacks.carlini_wagner_l0, 15),
        (jr.attacks.carlini_wagner_linf, 15),
        (jr.attacks.fab, 10 * 3),
        (jr.attacks.fab_targeted, 30),
        (jr.attacks.fmn, 7),
        (functools.partial(jr.attacks.pgd, num_restarts=3, ball=jr.Ball("linf", 8 / 255)), 9),
        (functools.partial(jr.attacks.square, ball=jr.Ball("linf", 8 / 255)), 10),
        (functools.partial(jr.attacks.deepfool, num_candidates=10), 10 * 20),
        (jr.attacks.every_target(jr.attacks.carlini_wagner_l2), 9 * 20),
        (functools.partial(jr.attacks.autoattack, ball=jr.Ball("linf", 8 / 255), chunk=128), 30),
    ],
    ids=[
        "adaptive_norm_pgd",
        "jsma",
        "apgd_targeted",
        "boundary",
        "carlini_wagner_l0",
        "carlini_wagner_linf",
        "fab",
        "fab_targeted",
        "fmn",
        "pgd",
        "square",
        "deepfool",
        "carlini_wagner, nine targets",
        "autoattack",
    ],
)
def test_memory_at_the_size_of_cifar10(attack, arrays):
    """As stated: a few arrays of batch x dims (x candidates, x targets); far below 4 GiB."""
    shape = (128, 32, 32, 3)
    logits_fn = lambda x: x.reshape(len(x), -1)[:, :10]
    call = jax.jit(lambda x, y, keys: attack(logits_fn, x, y, key=keys))
    x, y = jax.ShapeDtypeStruct(shape, "float32"), jax.ShapeDtypeStruct(shape[:1], "int32")
    keys = jax.eval_shape(lambda: jax.random.split(KEY, shape[0]))
    used = call.lower(x, y, keys).compile().memory_analysis()
    total = used.temp_size_in_bytes + used.output_size_in_bytes + used.argument_size_in_bytes
    assert total < arrays * 4 * np.prod(shape) < 4 * 2**30
