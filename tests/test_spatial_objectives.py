"""Training against flows: the certificate's scale, the pool, and the norms of paper 002."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrobust as jr
from jaxrobust import flow, objectives
from jaxrobust.certify import sdp_constants
from jaxrobust.layers import Dense
from jaxrobust.objectives._spatial import Pool, _weighted
from jaxrobust.types import Batch

KEY = jax.random.key(0)
MODEL = jr.models.mlp((9,), num_classes=3)
FORWARD = objectives.from_module(MODEL.apply)


def layers(params):
    return MODEL.layers({"params": params})


def start(seed=0, batch=12, shape=(4, 5, 1)):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.uniform(size=(batch, *shape)), jnp.float32)
    y = jnp.asarray(rng.integers(0, 3, size=batch))
    return MODEL.init(jax.random.key(seed), x)["params"], Batch(x, y, jnp.arange(batch))


def first_step(objective, params, batch, key=KEY):
    @jax.jit
    def step(params, batch, key):
        return objective.value_and_grad(params, {}, objective.init(params, KEY), batch, key=key)

    return step(params, batch, key)


def climb(gain, x, ball, key, num_steps=30):
    """The flow of a ball that raises `gain(image)` of one image most, by steepest ascent."""

    def step(r, _):
        uphill = jax.grad(lambda r: gain(flow.warp(x, r)))(r)
        return ball.project(ball.step(r, uphill, ball.eps / 5)), None

    first = ball.sample(x.shape[:2], key, x.dtype)
    return jax.lax.scan(step, first, None, num_steps)[0]


def flow_attack(logits_fn, x, y, *, key, eps, num_steps=10):
    """A cheap attack: steepest ascent of the margin in the flow ball."""
    ball = flow.FlowBall(eps)

    def one(x, y, key):
        gain = lambda image: jr.losses.margin(logits_fn(image[None])[0], y)
        return jnp.clip(flow.warp(x, climb(gain, x, ball, key, num_steps)), 0, 1)

    return jax.vmap(one)(x, y, jr.types.row_keys(key, len(x)))


@pytest.mark.parametrize(
    ("rule", "channels"), [("dirichlet", 1), ("zero_mean", 3), ((1, 2), 1)], ids=str
)
def test_the_certificates_value_bounds_what_flows_do(rule, channels):
    shape, eps = (4, 5), 0.4
    reach = math.sqrt(2) * flow.largest_displacement(shape, rule).ravel()
    ball, found = flow.FlowBall(eps, rule), []
    for seed in range(2):
        params, batch = start(seed, shape=(*shape, channels))
        upper = sdp_constants(_weighted(layers(params), reach, shape), solver="dual").upper
        model = functools.partial(jr.layers.apply, layers(params))

        def change(image, x, pair, model=model):
            logits = model(jnp.stack([image, x]))
            return (logits[0] - logits[1]) @ pair

        pair = jnp.array([1.0, -1.0, 0.0])

        @jax.jit
        @jax.vmap
        def best(x, key, pair=pair, change=change):
            r = climb(lambda image: change(image, x, pair), x, ball, key)
            return ball.distance(r), change(flow.warp(x, r), x, pair)

        far, gained = best(batch.x, jax.random.split(jax.random.key(seed), len(batch.x)))
        assert float(far.max()) <= eps * (1 + 1e-5)
        found.append(float(gained.max()) / (eps / 4 * upper[0, 1]))
    assert 0.03 < max(found) <= 1


def test_spatial_sdp_is_the_regulariser_of_the_weighted_network():
    params, batch = start()
    solver = objectives.warm_mixing(8, num_steps=50)
    options = {"weight": 0.7, "eps": 0.2, "all_pairs": True}
    spatial = objectives.spatial_sdp(FORWARD, layers, solver, shape=(4, 5), **options)
    out, grads = first_step(spatial, params, batch)
    kernel = np.sqrt(2) * flow.largest_displacement((4, 5)).reshape(-1, 1)

    def weighted(params):
        flatten, first, *rest = layers(params)
        return [flatten, Dense(jnp.asarray(kernel, jnp.float32) * first.kernel, first.bias), *rest]

    upper = sdp_constants(jax.device_get(weighted(params)), solver="dual", tol=1e-7).upper
    pairs = upper[np.triu_indices(3, 1)]
    assert float(out.metrics["pair_value"]) == pytest.approx(pairs.mean(), rel=1e-3)
    plain = objectives.sdp_regularized(FORWARD, weighted, solver, **options)
    other, expected = first_step(plain, params, batch)
    assert float(out.loss) == pytest.approx(float(other.loss), rel=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (grads, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(grads))
    # Certified at this radius: as the constants say.
    logits = np.asarray(FORWARD(params, {}, batch.x)[0], np.float64)
    own = logits[np.arange(12), batch.y][:, None]
    worst = logits + 0.2 / 4 * upper[np.asarray(batch.y)]
    worst[np.arange(12), batch.y] = -np.inf
    assert float(out.metrics["sdp_error"]) == pytest.approx((worst.max(1) >= own[:, 0]).mean())


def trained(objective, data, num_epochs=6, **options):
    params = MODEL_8.init(jax.random.key(1), data.x[:1])["params"]
    options = {"key": KEY, "num_epochs": num_epochs, "batch_size": 64} | options
    return jr.train.fit(objective, params, optax.adam(3e-3), (data.x, data.y), **options)


MODEL_8 = jr.models.mlp((24,))
FORWARD_8 = objectives.from_module(MODEL_8.apply)


@pytest.fixture(scope="module")
def digits():
    data = jr.data.load("digits", "train")
    return data._replace(x=data.x[:1024], y=data.y[:1024])


def accuracy_under_flows(params, data, eps):
    model = lambda x: FORWARD_8(params, {}, x)[0]
    x, y = jnp.asarray(data.x[:256]), jnp.asarray(data.y[:256])
    attacked = jax.jit(functools.partial(flow_attack, model, eps=eps))(x, y, key=KEY)
    right = lambda x: float(jnp.mean(jnp.argmax(model(x), -1) == y))
    return right(x), right(attacked)


def test_training_lowers_the_bound_and_withstands_flows(digits):
    read = lambda params: MODEL_8.layers({"params": params})
    attack = functools.partial(flow_attack, eps=2.0, num_steps=5)
    methods = {
        "plain": objectives.hinge(FORWARD_8),
        "sdp": objectives.spatial_sdp(
            FORWARD_8, read, objectives.warm_mixing(8), weight=0.02, eps=0.1, shape=(8, 8)
        ),
        "pool": objectives.flow_adversarial(
            FORWARD_8, attack, shape=digits.x.shape, weight=1.0, num_epochs=2
        ),
    }
    params = {name: trained(method, digits, 10).params for name, method in methods.items()}
    reach = math.sqrt(2) * flow.largest_displacement((8, 8)).ravel()
    bounds = {
        name: sdp_constants(_weighted(read(params[name]), reach, (8, 8))).upper.max()
        for name in ("plain", "sdp")
    }
    assert bounds["sdp"] < 0.6 * bounds["plain"]
    (clean, plain), (_, pool) = (
        accuracy_under_flows(params[name], digits, 2.0) for name in ("plain", "pool")
    )
    assert clean > 0.9
    assert pool > plain + 0.02


def shifted(logits_fn, x, y, *, key):
    """An attack whose images tell what the network was and which key came."""
    del y
    level = jax.nn.sigmoid(jnp.mean(logits_fn(jnp.ones_like(x[:1])))) * 0.5
    return jnp.clip(0.5 * x + level + 0.01 * jax.random.uniform(key), 0, 1)


def run(objective, params, batches, rate=0.3):
    """Plain gradient descent; yields parameters, state and loss before each step."""
    state = objective.init(params, KEY)
    step = jax.jit(
        lambda p, s, b, k: objective.value_and_grad(p, {}, s, b, key=jax.random.fold_in(KEY, k))
    )
    for k, batch in enumerate(batches):
        out, grads = step(params, state, batch, k)
        yield params, state, batch, out
        state = out.state
        params = jax.tree.map(lambda p, g: p - rate * g, params, grads)


def test_the_pool_is_that_of_a_dictionary():
    """Ten rows in batches of four: two rows are left out of each epoch."""
    params, data = start(batch=10)
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(7):
        order = rng.permutation(10)[:8].reshape(2, 4)
        batches += [Batch(data.x[rows], data.y[rows], jnp.asarray(rows)) for rows in order]
    objective = objectives.flow_adversarial(FORWARD, shifted, shape=data.x.shape, weight=0.3)
    pool, missed = {}, 0
    cross_entropy = lambda p, x, y: float(
        optax.softmax_cross_entropy_with_integer_labels(FORWARD(p, {}, x)[0], y).mean()
    )
    for k, (now, _, batch, out) in enumerate(run(objective, params, batches)):
        rows = np.asarray(batch.index)
        if (k // 2) % 3 == 0:
            model = lambda x, now=now: FORWARD(now, {}, x)[0]
            key = jax.random.fold_in(jax.random.fold_in(KEY, k), 1)
            pool |= dict(zip(rows, shifted(model, batch.x, batch.y, key=key), strict=True))
        missed += sum(row not in pool for row in rows)
        images = jnp.stack([pool.get(r, x) for r, x in zip(rows, batch.x, strict=True)])
        clean, attacked = (cross_entropy(now, x, batch.y) for x in (batch.x, images))
        assert float(out.loss) == pytest.approx(clean + 0.3 * attacked, abs=2e-5)
        stored = out.state[1]
        assert stored.images.dtype == jnp.uint16
        for row in rows:
            if bool(stored.filled[row]):
                np.testing.assert_allclose(
                    stored.images[row] / 65535.0, pool[row], atol=1 / 131070 + 1e-6
                )
    assert missed > 0  # the case was met
    assert float(jnp.abs(pool[0] - data.x[0]).max()) > 0.1


def test_the_attack_runs_when_it_is_due_and_is_a_constant():
    params, batch = start(batch=4)
    calls = []

    def attack(logits_fn, x, y, *, key):
        jax.debug.callback(lambda: calls.append(1))
        return shifted(logits_fn, x, y, key=key)

    objective = objectives.flow_adversarial(FORWARD, attack, shape=batch.x.shape, num_epochs=3)
    first = None
    for _, _, _, out in run(objective, params, [batch] * 7, rate=0.0):
        first = first or out
    jax.effects_barrier()
    assert len(calls) == 3  # at steps 0, 3 and 6
    # Frozen images: the derivative is that of a loss at constants.
    images = shifted(lambda x: FORWARD(params, {}, x)[0], batch.x, batch.y,
                     key=jax.random.fold_in(jax.random.fold_in(KEY, 0), 1))  # fmt: skip

    def total(params):
        ce = lambda x: jnp.mean(
            optax.softmax_cross_entropy_with_integer_labels(FORWARD(params, {}, x)[0], batch.y)
        )
        return ce(batch.x) + 0.3 * ce(images)

    out, grads = first_step(objective, params, batch, jax.random.fold_in(KEY, 0))
    expected, slope = jax.value_and_grad(total)(params)
    assert float(out.loss) == pytest.approx(float(expected), rel=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (grads, slope)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_pool_of_another_box_and_in_float64():
    box = jr.Box(-1.0, 3.0)
    with jax.enable_x64(True):
        params, batch = start(batch=4)
        x = 4 * batch.x.astype(jnp.float64) - 1
        params = jax.tree.map(lambda w: w.astype(jnp.float64), params)
        flipped = lambda logits_fn, x, y, *, key: 2 - x
        objective = objectives.flow_adversarial(FORWARD, flipped, shape=x.shape, box=box)
        out, grads = first_step(objective, params, batch._replace(x=x))
        kept = out.state[1].images / 65535 * 4 - 1
        np.testing.assert_allclose(kept, 2 - x, atol=4 / 131070 * (1 + 1e-9))
        assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(grads))


def test_a_resumed_run_ends_in_the_same_bits(tmp_path, digits):
    few = digits._replace(x=digits.x[:150], y=digits.y[:150])
    make = lambda: objectives.flow_adversarial(FORWARD_8, shifted, shape=few.x.shape, num_epochs=2)
    straight = trained(make(), few, num_epochs=4, batch_size=32)

    class KilledError(Exception):
        pass

    epochs = []

    def dying(params, model_state):
        epochs.append(1)
        if len(epochs) == 3:
            raise KilledError
        return {"seen": len(epochs)}

    options = {"num_epochs": 4, "batch_size": 32, "directory": tmp_path}
    with pytest.raises(KilledError):
        trained(make(), few, validate=dying, **options)
    resumed = trained(make(), few, resume=True, **options)
    pairs = zip(
        jax.tree.leaves((straight.params, straight.objective_state)),
        jax.tree.leaves((resumed.params, resumed.objective_state)),
        strict=True,
    )
    for a, b in pairs:
        np.testing.assert_array_equal(a, b)
    pool = resumed.objective_state[1]
    assert isinstance(pool, Pool)
    assert int(pool.step) == 16
    assert 128 <= int(pool.filled.sum()) <= 150


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": -1.0}, "weight must be"),
        ({"weight": math.nan}, "weight must be"),
        ({"num_epochs": 0}, "num_epochs must be"),
        ({"shape": 12}, "shape must be that of all training images"),
        ({"shape": (0, 4, 5, 1)}, "shape must be an integer of at least 1"),
        ({"shape": (12, 4, 4, 1)}, "shape must be that of all training images"),
        ({"shape": (11, 4, 5, 1)}, "shape must be that of all training images"),
        ({"box": (1.0, 0.0)}, "box must be a pair"),
    ],
)
def test_a_pool_that_cannot_be_meant_is_refused(changes, message):
    params, batch = start()
    options = {"shape": batch.x.shape} | changes
    make = lambda: objectives.flow_adversarial(FORWARD, shifted, **options)
    with pytest.raises(ValueError, match=message):
        first_step(make(), params, batch)


def test_rows_that_the_pool_does_not_have_show():
    params, batch = start(batch=4)
    objective = objectives.flow_adversarial(FORWARD, shifted, shape=(4, 4, 5, 1))
    beyond = batch._replace(index=jnp.array([0, 1, 2, 4]))
    assert math.isnan(first_step(objective, params, beyond)[0].loss)


def test_images_of_another_shape_are_refused():
    params, _ = start()
    solver = objectives.warm_mixing(8)
    options = {"weight": 0.1, "eps": 0.1}
    objective = objectives.spatial_sdp(FORWARD, layers, solver, shape=(3, 5), **options)
    with pytest.raises(ValueError, match=r"shape must be height and width .* 20 inputs"):
        objective.init(params, KEY)
    with pytest.raises(ValueError, match="null_space must be a pixel"):
        objectives.spatial_sdp(FORWARD, layers, solver, shape=(4, 5), null_space=(4, 0), **options)


SPECTRAL = functools.partial(objectives.spectral_norm, num_steps=50)


@pytest.mark.parametrize(
    ("make", "weight", "norm"),
    [
        (objectives.frobenius_norm, 0.08, lambda w: np.linalg.norm(w)),
        (SPECTRAL, 0.09, lambda w: np.linalg.norm(w, 2)),
    ],
    ids=["f_fro", "f_spe"],
)  # fmt: skip
def test_the_norm_baselines_of_paper_002(make, weight, norm):
    """Hinge loss plus lambda times the sum of the layers' norms, 784-512-10."""
    model = jr.models.mlp((512,))
    forward = objectives.from_module(model.apply)
    read = lambda params: model.layers({"params": params})
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(size=(6, 28, 28, 1)), jnp.float32)
    batch = Batch(x, jnp.arange(6), jnp.arange(6))
    params = model.init(KEY, x)["params"]
    objective = objectives.add(objectives.hinge(forward), make(read, weight))
    out, grads = first_step(objective, params, batch)
    logits = np.asarray(forward(params, {}, x)[0], np.float64)
    own = logits[np.arange(6), np.arange(6)]
    others = np.where(np.eye(10)[:6] > 0, -np.inf, logits).max(1)
    hinge = np.maximum(0, 1 + others - own).mean()
    norms = sum(norm(np.float64(params[f"Dense_{i}"]["kernel"])) for i in (0, 1))
    assert float(out.loss) == pytest.approx(hinge + weight * norms, rel=1e-3)
    assert set(out.metrics) == {"accuracy", "norms"}
    after = jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads)
    assert float(first_step(objective, after, batch)[0].loss) < out.loss
