"""Objectives that train on noise, against hand-made losses, limits and finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

import jaxrobust as jr
from jaxrobust import objectives
from jaxrobust.objectives._smooth_adv import log_mean_softmax
from jaxrobust.types import Batch

KEY = jax.random.key(0)
BALL = jr.Ball("l2", 0.3)
FEW = functools.partial(jr.attacks.pgd, num_steps=4, random_start=False)


def forward(params, model_state, x):
    return jnp.tanh(x @ params["w"]) @ params["v"], model_state


OBJECTIVES = {
    "stability": lambda f, sigma=0.3, **kw: objectives.stability(f, sigma=sigma, **kw),
    "stability, kl": lambda f, sigma=0.3, **kw: objectives.stability(
        f, sigma=sigma, form="kl", **kw
    ),
    "gaussian_augmentation": lambda f, sigma=0.3: objectives.gaussian_augmentation(f, sigma=sigma),
    "smooth_adv": lambda f, sigma=0.3, **kw: objectives.smooth_adv(
        f, FEW, ball=BALL, sigma=sigma, num_samples=3, **kw
    ),
}
every = pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES.keys())


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    params = {"w": jnp.array(rng.normal(size=(6, 5))), "v": jnp.array(rng.normal(size=(5, 3)))}
    x = jnp.array(rng.uniform(size=(8, 6)), jnp.float32)
    batch = Batch(x, jnp.array(rng.integers(0, 3, 8)), jnp.arange(8))
    return jax.tree.map(lambda w: w.astype(jnp.float32), params), batch


def evaluate(objective, params, batch, key=KEY, model_state=None):
    state = objective.init(params, KEY)
    return objective.value_and_grad(params, model_state or {}, state, batch, key=key)


def close(left, right, rtol=1e-5):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6)


def softmax(logits):
    powers = np.exp(np.asarray(logits, np.float64))
    return powers / powers.sum(-1, keepdims=True)


@every
def test_one_key_one_draw_and_another_key_another(make, case):
    params, batch = case
    objective = make(forward)
    once, again, other = (
        evaluate(objective, params, batch, key=jax.random.key(seed)) for seed in (1, 1, 2)
    )
    assert float(once[0].loss) == float(again[0].loss)
    assert float(once[0].loss) != float(other[0].loss)
    close(once, again)


@every
def test_fit_draws_anew_at_every_step(make, case):
    """At a rate of zero, on one batch, only the noise moves the loss."""
    params, batch = case
    one = make(forward)
    seen = []

    def watched(*args, **kwargs):
        out, grads = one.value_and_grad(*args, **kwargs)
        jax.debug.callback(lambda loss: seen.append(float(loss)), out.loss)
        return out, grads

    jr.train.fit(
        jr.Objective(one.init, watched), params, optax.sgd(0.0), (batch.x, batch.y), key=KEY,
        num_epochs=4, batch_size=8,
    )  # fmt: skip
    jax.effects_barrier()
    assert np.ptp(seen) > 1e-3
    assert len(set(np.round(seen, 5))) == 4


@every
def test_jit_is_eager_and_the_gradient_is_that_of_the_loss(make, case):
    params, batch = case
    objective = make(forward)
    out, grads = evaluate(objective, params, batch)
    close(jax.jit(lambda p: evaluate(objective, p, batch))(params), (out, grads))
    if "adversarial_accuracy" in out.metrics:
        return  # the attacked images are constants: see the test of smooth_adv
    with jax.enable_x64(True):
        batch = batch._replace(x=jnp.asarray(batch.x, jnp.float64))
        params = jax.tree.map(lambda w: jnp.asarray(w, jnp.float64), params)

        @jax.custom_vjp
        def loss(params):
            return evaluate(objective, params, batch)[0].loss

        loss.defvjp(
            lambda p: (loss(p), evaluate(objective, p, batch)[1]),
            lambda grads, g: (jax.tree.map(lambda leaf: g * leaf, grads),),
        )
        check_grads(loss, (params,), order=1, modes=["rev"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "passes"),
    [("stability", 2), ("stability, kl", 2), ("gaussian_augmentation", 1), ("smooth_adv", 3)],
)
def test_the_model_state_goes_through_every_image_trained_on(name, passes, case):
    params, batch = case

    def counting(params, model_state, x):
        return forward(params, {}, x)[0], {"seen": model_state["seen"] + len(x)}

    options = {"eval_forward": counting} if name == "smooth_adv" else {}
    objective = OBJECTIVES[name](counting, **options)
    out, _ = evaluate(objective, params, batch, model_state={"seen": 0})
    assert out.model_state == {"seen": passes * len(batch.y)}


@pytest.mark.parametrize("form", ["cross_entropy", "kl"])
def test_stability_is_the_papers_formula(form, case):
    """L + gamma (-sum_j P(j | x) log P(j | x')), and less the entropy of P(. | x) for KL."""
    params, batch = case
    objective = objectives.stability(forward, sigma=0.4, weight=0.7, form=form)
    out, _ = evaluate(objective, params, batch)
    noisy_x = batch.x + 0.4 * jax.random.normal(KEY, batch.x.shape)
    clean, noisy = (softmax(forward(params, {}, x)[0]) for x in (batch.x, noisy_x))
    distance = -np.sum(clean * np.log(noisy), axis=1).mean()
    if form == "kl":
        distance += np.sum(clean * np.log(clean), axis=1).mean()
        assert distance > 0
    plain = -np.log(clean[np.arange(8), batch.y]).mean()
    close(out.loss, plain + 0.7 * distance)
    hits = lambda p: (p.argmax(-1) == np.asarray(batch.y)).mean()
    expected = {"accuracy": hits(clean), "noisy_accuracy": hits(noisy), "stability": distance}
    assert set(out.metrics) == set(expected)
    for name, value in expected.items():
        close(out.metrics[name], value)
    assert out.state == ()


def test_stability_without_weight_is_the_loss(case):
    params, batch = case
    out, grads = evaluate(objectives.stability(forward, sigma=0.4, weight=0.0), params, batch)
    plain, expected = evaluate(objectives.cross_entropy(forward), params, batch)
    close((out.loss, grads), (plain.loss, expected))
    hinged = objectives.stability(forward, sigma=0.4, weight=0.0, loss=jr.losses.hinge)
    close(evaluate(hinged, params, batch)[0].loss,
          evaluate(objectives.hinge(forward), params, batch)[0].loss)  # fmt: skip


def test_stability_without_noise(case):
    """The divergence and its gradient vanish; the cross-entropy is the entropy, and pulls on."""
    params, batch = case
    plain, plain_grads = evaluate(objectives.cross_entropy(forward), params, batch)
    kl, kl_grads = evaluate(objectives.stability(forward, sigma=0.0, form="kl"), params, batch)
    close((kl.loss, kl_grads), (plain.loss, plain_grads))
    out, grads = evaluate(objectives.stability(forward, sigma=0.0), params, batch)

    def entropy(params):
        p = jax.nn.softmax(forward(params, {}, batch.x)[0])
        return -jnp.sum(p * jnp.log(p), axis=-1).mean()

    close(out.metrics["stability"], entropy(params))
    close(grads, jax.tree.map(jnp.add, plain_grads, jax.grad(entropy)(params)), rtol=1e-4)


def test_gaussian_augmentation_is_the_loss_at_the_noisy_images(case):
    params, batch = case
    out, grads = evaluate(objectives.gaussian_augmentation(forward, sigma=0.4), params, batch)
    noisy = batch._replace(x=batch.x + 0.4 * jax.random.normal(KEY, batch.x.shape))
    assert float(noisy.x.max()) > 1  # not clipped to the box
    plain, expected = evaluate(objectives.cross_entropy(forward), params, noisy)
    close((out.loss, grads), (plain.loss, expected))
    close(out.metrics, {"noisy_accuracy": plain.metrics["accuracy"]})
    still, _ = evaluate(objectives.gaussian_augmentation(forward, sigma=0.0), params, batch)
    close(still.loss, evaluate(objectives.cross_entropy(forward), params, batch)[0].loss)


def smooth_adv_by_hand(params, batch, attack, sigma, num_samples):
    """Attacked images and noises, one example after the other."""
    noise_key, attack_key = jax.random.split(KEY)
    shape = (len(batch.y), num_samples, *batch.x.shape[1:])
    noise = sigma * jax.random.normal(noise_key, shape)
    found = []
    for i, draws in enumerate(noise):

        def smoothed(x, draws=draws):
            probabilities = jax.nn.softmax(forward(params, {}, x[:, None] + draws)[0])
            return jnp.log(probabilities.mean(1))

        key = jax.random.fold_in(attack_key, i)[None]
        row = slice(i, i + 1)
        found.append(attack(smoothed, batch.x[row], batch.y[row], key=key, ball=BALL)[0])
    return jnp.stack(found), noise


def test_smooth_adv_trains_at_the_images_found_against_the_smoothed_model(case):
    params, batch = case
    attack = functools.partial(jr.attacks.pgd, num_steps=4)  # the random start is the row's
    objective = objectives.smooth_adv(forward, attack, ball=BALL, sigma=0.3, num_samples=3)
    out, grads = evaluate(objective, params, batch)
    x_adv, noise = smooth_adv_by_hand(params, batch, attack, 0.3, 3)

    def mean_loss(params):
        logits = forward(params, {}, x_adv[:, None] + noise)[0]
        y = jnp.broadcast_to(batch.y[:, None], logits.shape[:2])
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    value, expected = jax.value_and_grad(mean_loss)(params)
    close((out.loss, grads), (value, expected), rtol=1e-4)
    assert set(out.metrics) == {"adversarial_accuracy"}


def test_the_attack_raises_the_smoothed_loss_on_every_example(case):
    params, batch = case
    x_adv, noise = smooth_adv_by_hand(params, batch, FEW, 0.3, 5)

    def smoothed_loss(x):
        p = softmax(forward(params, {}, x[:, None] + noise)[0]).mean(1)
        return -np.log(p[np.arange(8), batch.y])

    assert (smoothed_loss(x_adv) > smoothed_loss(batch.x)).all()


def test_what_the_attack_climbs_is_the_smooth_adv_loss():
    """Cross-entropy of the model handed to it, not the mean of the cross-entropies."""
    rng = np.random.default_rng(1)
    noise, x = jnp.array(rng.normal(size=(4, 3))), jnp.array(rng.normal(size=(2, 3)))
    logits = log_mean_softmax(lambda x: 2 * x, noise, x)
    p = softmax(2 * (np.asarray(x)[:, None] + np.asarray(noise)))
    value = jax.vmap(jr.losses.cross_entropy)(logits, jnp.array([0, 2]))
    close(value, -np.log(p.mean(1)[[0, 1], [0, 2]]))
    assert (value < -np.log(p).mean(1)[[0, 1], [0, 2]] - 0.01).all()  # Jensen


def test_smooth_adv_without_noise_is_madry(case):
    params, batch = case
    smooth = objectives.smooth_adv(forward, FEW, ball=BALL, sigma=0.0, num_samples=2)
    plain = objectives.madry(forward, FEW, ball=BALL)
    (out, grads), (want, want_grads) = (evaluate(o, params, batch) for o in (smooth, plain))
    close((out.loss, out.metrics, grads), (want.loss, want.metrics, want_grads), rtol=1e-4)


def test_smooth_adv_follows_a_schedule_of_eps_and_wants_an_evaluation_mode(case):
    params, batch = case
    warmup = optax.linear_schedule(0.0, 0.3, 2)
    objective = objectives.scheduled(
        lambda eps: objectives.smooth_adv(forward, FEW, ball=jr.Ball("linf", eps), sigma=0.1),
        eps=warmup,
    )
    state, seen = objective.init(params, KEY), []
    for _ in range(4):
        out, _ = objective.value_and_grad(params, {}, state, batch, key=KEY)
        state = out.state
        seen.append(float(out.metrics["eps"]))
    np.testing.assert_allclose(seen, [0, 0.15, 0.3, 0.3], atol=1e-7)
    with pytest.raises(ValueError, match="eval_forward"):
        evaluate(objective, params, batch, model_state={"mean": jnp.zeros(6)})


@pytest.mark.parametrize(
    "make",
    [
        lambda: objectives.stability(forward, sigma=-0.1),
        lambda: objectives.stability(forward, sigma=0.1, weight=-1.0),
        lambda: objectives.gaussian_augmentation(forward, sigma=float("nan")),
        lambda: objectives.smooth_adv(forward, FEW, ball=BALL, sigma=-1.0),
        lambda: objectives.smooth_adv(forward, FEW, ball=BALL, sigma=0.1, num_samples=0),
    ],
)
def test_wrong_numbers_are_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()


@pytest.mark.usefixtures("untyped")
def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="form must be one of cross_entropy, kl; got 'l2'"):
        objectives.stability(forward, sigma=0.1, form="l2")
