"""Minimum-norm attacks in the common form, towards every target, and attacks on other models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import problem

import jaxrobust as jr

KEY = jax.random.key(5)
FMN = functools.partial(jr.attacks.fmn, num_steps=20)


def test_every_target_is_the_attack_towards_each():
    logits_fn, _, x, y = problem(0, batch=4, sizes=(6, 8, 4))
    found = jr.attacks.every_target(FMN)(logits_fn, x, y, key=KEY)
    assert found.x_adv.shape == (4, 3, 6)
    for i, label in enumerate(y):
        assert found.target[i].tolist() == [t for t in range(4) if t != label]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(4))
    for j in range(3):
        target = np.asarray(found.target[:, j])
        alone = FMN(logits_fn, x, y, key=jax.vmap(jax.random.fold_in)(keys, target), target=target)
        np.testing.assert_allclose(found.x_adv[:, j], alone, atol=1e-5)
        hit = np.asarray(logits_fn(found.x_adv[:, j])).argmax(-1) == target
        np.testing.assert_array_equal(found.success[:, j], hit)
    assert found.success.any()


def test_against_hands_on_the_box_and_the_norm_and_ignores_the_radius():
    logits_fn, _, x, y = problem(1, batch=4)
    for norm in ("linf", "l2"):
        alone = jr.attacks.deepfool(logits_fn, x, y, key=KEY, norm=norm)
        for eps in (0.0, 0.5):
            ball = jr.Ball(norm, eps)
            x_adv = jr.attacks.against(jr.attacks.deepfool)(logits_fn, x, y, key=KEY, ball=ball)
            np.testing.assert_array_equal(x_adv, alone)
    wide = jr.Box(-1.0, 2.0)
    alone = jr.attacks.deepfool(logits_fn, x, y, key=KEY, box=wide)
    x_adv = jr.attacks.against(jr.attacks.deepfool)(
        logits_fn, x, y, key=KEY, ball=jr.Ball("l2", 0.1, wide)
    )
    np.testing.assert_array_equal(x_adv, alone)


@pytest.mark.usefixtures("untyped")
def test_wrong_kinds_of_attack_and_loss_are_refused():
    logits_fn, _, x, y = problem(1, batch=4)
    for inside in (jr.attacks.pgd, functools.partial(jr.attacks.pgd, num_steps=3), "pgd"):
        with pytest.raises(
            ValueError, match="attack must take box=, of minimum norm: one within a ball"
        ):
            jr.attacks.against(inside)
    for aimless in (jr.attacks.deepfool, jr.attacks.fab_targeted):
        with pytest.raises(ValueError, match="attack must take target="):
            jr.attacks.every_target(aimless)
    for wrap in (
        lambda attack: jr.attacks.first_success({"one": attack}),
        lambda attack: jr.attacks.at_eps(attack, 0.1),
        lambda attack: jr.attacks.transfer(logits_fn, attack),
        lambda attack: jr.attacks.through(lambda model: model, attack),
    ):
        with pytest.raises(ValueError, match=r"must be wrapped in attacks\.against"):
            wrap(jr.attacks.deepfool)
    far = lambda outputs, y: jnp.zeros(())
    wrong = (jr.losses.cross_entropy, jr.losses.penalized(jr.losses.margin, far))
    for loss in (*wrong, jr.losses.targeted(jr.losses.f6)):
        for attack in ("l0", "l2", "linf"):
            with pytest.raises(ValueError, match="loss must"):
                getattr(jr.attacks, f"carlini_wagner_{attack}")(logits_fn, x, y, key=KEY, loss=loss)
    with pytest.raises(ValueError, match="step_size must be positive; got 0"):
        FMN(logits_fn, x, y, key=KEY, step_size=0)


@pytest.mark.parametrize("masked", [-1e9, float(jnp.finfo(jnp.float32).min)])
def test_a_class_that_is_masked_by_a_large_number_changes_nothing(masked):
    logits_fn, _, x, y = problem(1, batch=4)
    with_one = lambda x: jnp.pad(logits_fn(x), ((0, 0), (0, 1)), constant_values=masked)
    for attack in (jr.attacks.deepfool, FMN):
        found, same = (attack(f, x, y, key=KEY) for f in (logits_fn, with_one))
        assert (np.asarray(with_one(same)).argmax(-1) != y).all()
        np.testing.assert_allclose(same, found, atol=1e-5)


@pytest.mark.parametrize("dtype,most", [(jnp.bfloat16, 1.15), (jnp.float16, 1.03)])
def test_logits_of_half_precision_are_attacked_about_as_well(dtype, most):
    logits_fn, _, x, y = problem(1, batch=4)
    coarse = lambda x: logits_fn(x).astype(dtype)
    for attack in (jr.attacks.deepfool, FMN):
        found, near = (np.asarray(attack(f, x, y, key=KEY)) for f in (logits_fn, coarse))
        assert near.dtype == x.dtype
        assert (np.asarray(coarse(near)).argmax(-1) != y).all()
        far, least = (np.linalg.norm(z - x, axis=-1) for z in (near, found))
        assert (far <= most * least).all()


def test_first_success_counts_an_image_only_within_the_ball():
    logits_fn, _, x, y = problem(2, batch=8)
    free = jr.attacks.against(jr.attacks.deepfool)
    ball = jr.Ball("l2", 0.15)
    x_adv = np.asarray(
        jr.attacks.first_success({"deepfool": free})(logits_fn, x, y, key=KEY, ball=ball)
    )
    length = np.linalg.norm(x_adv - x, axis=1)
    assert (length <= 0.15 * (1 + 1e-5)).all()
    least = np.linalg.norm(np.asarray(free(logits_fn, x, y, key=KEY, ball=ball)) - x, axis=1)
    assert 0 < np.mean(least < 0.15) < 1
    wrong = np.asarray(logits_fn(x_adv)).argmax(-1) != y
    np.testing.assert_array_equal(wrong, least < 0.15)


def test_a_member_that_fails_is_not_believed():
    logits_fn, _, x, y = problem(3, batch=4)

    def broken(logits_fn, x, y, *, key, ball):
        return jnp.full_like(x, jnp.nan)

    attack = jr.attacks.first_success({"broken": broken})
    x_adv = attack(logits_fn, x, y, key=KEY, ball=jr.Ball("linf", 0.1))
    np.testing.assert_array_equal(x_adv, x)


def test_transfer_is_the_attack_on_the_other_model():
    source, _, x, y = problem(4)
    victim, _, _, _ = problem(5)
    attack = functools.partial(jr.attacks.pgd, num_steps=3)
    ball = jr.Ball("linf", 0.1)
    x_adv = jr.attacks.transfer(source, attack)(victim, x, y, key=KEY, ball=ball)
    np.testing.assert_array_equal(x_adv, attack(source, x, y, key=KEY, ball=ball))
    assert not np.array_equal(x_adv, attack(victim, x, y, key=KEY, ball=ball))
    attacks = {"transfer": jr.attacks.transfer(source, attack)}
    labels = np.asarray(victim(x)).argmax(-1)
    report = jr.evaluate(victim, (x, labels), attacks=attacks, ball=ball, key=KEY, batch_size=2)
    assert report.attacks["transfer"].gradients == 3


@pytest.mark.usefixtures("untyped")
def test_the_victim_must_be_able_to_take_the_images():
    source, _, x, y = problem(4)
    attack = jr.attacks.transfer(source, jr.attacks.fgsm)
    with pytest.raises(ValueError, match=r"labels in 0\.\.1"):
        attack(lambda x: x[:, :2], x, y, key=KEY, ball=jr.Ball("linf", 0.1))
